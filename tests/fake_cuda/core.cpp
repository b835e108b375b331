// The device: memory, streams, errors, settings, and the bill. Holds no knowledge of kernels or matrices.
#include "core.h"

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace fake {

namespace {

constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 256;          // of allocations
constexpr size_t ARENA = size_t(1) << 45;  // addresses for all allocations of a process, none used twice
constexpr uint8_t POISON = 0xff;           // NaN as a float, out of every range as an index
constexpr uint8_t CANARY = 0xa5;           // behind the end of an allocation, up to its alignment
// In a dry run what is larger is not copied; smaller things are flags and sizes that the host acts on.
constexpr size_t DRY_COPY = 4096;

thread_local void *current_context = nullptr;

const char *setting(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : nullptr;
}

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// The next addresses, with an inaccessible page behind them: what runs over the end of an allocation ends there.
Address reserve(size_t bytes) {
    static uint8_t *next = nullptr, *end = nullptr;
    if (!next) {
        void *arena = mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena == MAP_FAILED) fail(UNKNOWN, "no addresses for the device's memory");
        next = (uint8_t *)arena;
        end = next + ARENA;
    }
    size_t pages = rounded(bytes, PAGE);
    if (size_t(end - next) < pages + PAGE) fail(UNKNOWN, "the addresses for the device's memory are used up");
    uint8_t *begin = next + pages - rounded(bytes, ALIGNMENT);
    next += pages + PAGE;
    return (Address)begin;
}

uint8_t *first_page(const Memory &memory) { return (uint8_t *)(memory.begin / PAGE * PAGE); }
size_t of_pages(const Memory &memory) { return memory.begin + rounded(memory.bytes, ALIGNMENT) - (Address)first_page(memory); }

void map(Memory &memory) {
    if (mprotect(first_page(memory), of_pages(memory), PROT_READ | PROT_WRITE)) fail(UNKNOWN, "mprotect: %s", strerror(errno));
    memory.mapped = true;
    if (dry() || most_blocks()) return; // untouched pages take no memory
    memset((void *)memory.begin, POISON, memory.bytes);
    memset((uint8_t *)memory.begin + memory.bytes, CANARY, rounded(memory.bytes, ALIGNMENT) - memory.bytes);
}

void unmap(Memory &memory) {
    bool whole = true;
    if (!dry() && !most_blocks()) {
        const uint8_t *behind = (uint8_t *)memory.begin + memory.bytes;
        for (size_t i = 0; i < rounded(memory.bytes, ALIGNMENT) - memory.bytes; i++) whole &= behind[i] == CANARY;
    }
    memory.mapped = false;
    memory.freed = true;
    madvise(first_page(memory), of_pages(memory), MADV_DONTNEED);
    mprotect(first_page(memory), of_pages(memory), PROT_NONE);
    if (!whole) fail(ILLEGAL_ADDRESS, "something wrote behind the end of an allocation of %zu bytes", memory.bytes);
}

// --- the bill

std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + '"';
}

void write_work(FILE *file, const char *name, const std::map<std::string, Work> &all) {
    fprintf(file, "  \"%s\": [", name);
    const char *separator = "\n";
    for (auto &[what, work] : all) {
        fprintf(file, "%s    {\"what\": %s, \"count\": %llu, \"blocks\": %llu, \"operations\": %.17g}", separator,
                quoted(what).c_str(), (unsigned long long)work.count, (unsigned long long)work.blocks, work.operations);
        separator = ",\n";
    }
    fprintf(file, "\n  ],\n");
}

// At the end of the process: what was done, and what the host has not given back.
void write_bill() {
    const char *path = setting("FAKE_CUDA_BILL");
    if (!path) return;
    State &s = state();
    FILE *file = fopen(path, "w");
    if (!file) {
        fprintf(stderr, "fake CUDA: %s: %s\n", path, strerror(errno));
        return;
    }
    auto number = [](uint64_t x) { return (unsigned long long)x; };
    const Bill &bill = s.bill;
    fprintf(file, "{\n  \"calls\": {");
    const char *separator = "\n";
    for (auto &[name, count] : bill.calls) {
        fprintf(file, "%s    %s: %llu", separator, quoted(name).c_str(), number(count));
        separator = ",\n";
    }
    fprintf(file, "\n  },\n  \"bytes\": {\"up\": %llu, \"up_zeros\": %llu, \"down\": %llu, \"within\": %llu, \"set\": %llu},\n",
            number(bill.up), number(bill.up_zeros), number(bill.down), number(bill.within), number(bill.set));
    fprintf(file, "  \"synchronisations\": %llu,\n  \"allocations\": %llu,\n  \"most_bytes\": %llu,\n",
            number(bill.synchronisations), number(bill.allocations), number(bill.most_bytes));
    write_work(file, "launches", bill.launches);
    write_work(file, "products", bill.products);
    size_t allocations = 0;
    for (auto &[begin, memory] : s.memory) allocations += !s.given_back.count(begin);
    fprintf(file,
            "  \"left\": {\"contexts\": %u, \"allocations\": %zu, \"pinned\": %zu, \"streams\": %zu, \"events\": %zu, "
            "\"modules\": %zu, \"blas\": %zu, \"solvers\": %zu, \"programs\": %zu},\n",
            s.context_users, allocations, s.pinned.size(), s.live_streams.size(), s.live_events.size(),
            s.live_modules.size(), s.live_blas.size(), s.live_solvers.size(), s.live_programs.size());
    fprintf(file, "  \"broken\": %s\n}\n", quoted(s.broken).c_str());
    fclose(file);
}

// --- failing on demand

struct Demand {
    std::string name;
    uint64_t at;
    int status; // 0: the library's own
};

// FAKE_CUDA_FAIL=name:count or name:count:status; with the name `work`, queued operation number `count` breaks
// the device.
const Demand *demand() {
    static const std::unique_ptr<Demand> parsed = [] {
        std::unique_ptr<Demand> none;
        const char *value = setting("FAKE_CUDA_FAIL");
        if (!value) return none;
        char name[128];
        unsigned long long at;
        int status = 0;
        int read = sscanf(value, "%127[^:]:%llu:%d", name, &at, &status);
        if (read < 2 || at == 0) {
            fprintf(stderr, "fake CUDA: FAKE_CUDA_FAIL=%s, expected name:count or name:count:status\n", value);
            abort();
        }
        return std::make_unique<Demand>(Demand{name, at, status});
    }();
    return parsed.get();
}

// Texts of errors, by status; the pointers stay valid.
std::map<int, std::deque<std::string>> &texts() {
    static auto *all = new std::map<int, std::deque<std::string>>;
    return *all;
}

} // namespace

void fail(int status, const char *format, ...) {
    char buffer[8192];
    va_list list;
    va_start(list, format);
    vsnprintf(buffer, sizeof buffer, format, list);
    va_end(list);
    throw Error{status, buffer};
}

std::string text(const char *format, ...) {
    char buffer[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(buffer, sizeof buffer, format, list);
    va_end(list);
    return buffer;
}

State &state() {
    static State *const all = [] {
        atexit(write_bill);
        return new State; // handlers of the end of the process still use it
    }();
    return *all;
}

bool dry() {
    static const bool set = setting("FAKE_CUDA_DRY");
    return set;
}

bool reads_host_late() {
    static const bool set = setting("FAKE_CUDA_PAGEABLE");
    return set;
}

uint64_t total_memory() {
    static const char *value = setting("FAKE_CUDA_MEMORY");
    return value ? strtoull(value, nullptr, 10) : uint64_t(141) << 30;
}

uint64_t most_blocks() {
    static const char *value = setting("FAKE_CUDA_BLOCKS");
    return value ? strtoull(value, nullptr, 10) : 0;
}

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// --- clocks

void Clock::merge(const Clock &other) {
    if (of_stream.size() < other.of_stream.size()) of_stream.resize(other.of_stream.size());
    for (size_t s = 0; s < other.of_stream.size(); s++) of_stream[s] = std::max(of_stream[s], other.of_stream[s]);
}
bool Clock::covers(size_t stream, uint64_t operation) const {
    return operation == 0 || (stream < of_stream.size() && of_stream[stream] >= operation);
}
void Clock::set(size_t stream, uint64_t operation) {
    if (of_stream.size() <= stream) of_stream.resize(stream + 1);
    of_stream[stream] = operation;
}

// --- calls

const char *last_text(int status) {
    auto found = texts().find(status);
    return found == texts().end() ? nullptr : found->second.back().c_str();
}

namespace {
void remember(const char *name, const Error &error) {
    std::string whole = std::string(name) + ": " + error.text;
    if (setting("FAKE_CUDA_VERBOSE") || error.status != NOT_READY) fprintf(stderr, "fake CUDA: %s\n", whole.c_str());
    texts()[error.status].push_back(whole);
}

// An error of work that was given earlier: nothing on the device can be trusted any more.
void break_device(const std::string &what, const Error &error) {
    State &s = state();
    if (!s.broken.empty()) return;
    s.broken = what + ": " + error.text;
    s.broken_status = error.status;
    remember(what.c_str(), error);
}
} // namespace

int call(const char *name, Needs needs, int injected, int broken, const std::function<void()> &body) {
    std::lock_guard<std::recursive_mutex> lock(state().lock);
    State &s = state();
    uint64_t count = ++s.bill.calls[name];
    try {
        if (const Demand *d = demand())
            if (d->at == count && d->name == name) fail(d->status ? d->status : injected, "failed on demand");
        if (needs != Needs::nothing && !s.initialised) fail(NOT_INITIALIZED, "cuInit was not called");
        if (needs == Needs::context) {
            if (!s.broken.empty()) return broken ? broken : s.broken_status;
            require_context();
        }
        body();
        return SUCCESS;
    } catch (const Error &error) {
        remember(name, error);
        return error.status;
    }
}

int driver_call(const char *name, Needs needs, const std::function<void()> &body) {
    return call(name, needs, UNKNOWN, 0, body);
}

void *primary_context() { return &state(); }
void set_current(void *context) { current_context = context; }
void *current() { return current_context; }

void require_context() {
    if (current_context != primary_context()) fail(INVALID_CONTEXT, "no context is current on this thread");
    if (state().context_users == 0) fail(INVALID_CONTEXT, "the context was released");
}

// --- streams

Stream *new_stream() {
    State &s = state();
    s.streams.push_back(std::make_unique<Stream>());
    Stream *stream = s.streams.back().get();
    stream->index = s.streams.size() - 1;
    return stream;
}

Stream &stream_of(void *handle) {
    State &s = state();
    if (!handle) { // the default stream, which waits for no other here
        static Stream *const nameless = new_stream();
        return *nameless;
    }
    if (!s.live_streams.count((Stream *)handle)) fail(INVALID_HANDLE, "the stream does not exist");
    return *(Stream *)handle;
}

void enqueue(Stream &stream, std::string what, std::function<void(Stream &)> run) {
    stream.waiting.push_back({std::move(what), ++stream.given, state().host, std::move(run)});
}

void run_until(Stream &stream, uint64_t number) {
    State &s = state();
    while (stream.done < number && !stream.waiting.empty()) {
        Operation operation = std::move(stream.waiting.front());
        stream.waiting.pop_front();
        stream.done = operation.number;
        if (!s.broken.empty()) continue; // nothing runs any more
        stream.known.merge(operation.before);
        stream.known.set(stream.index, operation.number);
        try {
            static uint64_t count = 0;
            if (const Demand *d = demand())
                if (d->name == "work" && ++count == d->at) fail(d->status ? d->status : ILLEGAL_ADDRESS, "failed on demand");
            operation.run(stream);
        } catch (const Error &error) {
            break_device(operation.what, error);
        }
    }
}

namespace {
void after_waiting(const Clock &known) {
    State &s = state();
    s.host.merge(known);
    s.bill.synchronisations++;
    if (s.reserved > std::max(s.used, s.threshold)) s.reserved = std::max(s.used, s.threshold);
    if (!s.broken.empty()) throw Error{s.broken_status, s.broken};
}
} // namespace

void synchronise(Stream &stream) {
    run_until(stream, stream.given);
    after_waiting(stream.known);
}

void synchronise_all() {
    Clock known;
    for (auto &stream : state().streams) {
        run_until(*stream, stream->given);
        known.merge(stream->known);
    }
    after_waiting(known);
}

// --- memory

Memory *find(Address address) {
    auto &all = state().memory;
    auto after = all.upper_bound(address);
    if (after == all.begin()) return nullptr;
    Memory &memory = std::prev(after)->second;
    return address <= memory.begin + memory.bytes ? &memory : nullptr;
}

void *touch(Stream &stream, Address address, size_t bytes, size_t alignment, Use use, const char *what) {
    if (address % alignment) fail(ILLEGAL_ADDRESS, "%s is not aligned to %zu bytes", what, alignment);
    if (bytes == 0) return (void *)address;
    Memory *memory = find(address);
    if (!memory) fail(ILLEGAL_ADDRESS, "%s is no memory of the device", what);
    if (memory->freed) fail(ILLEGAL_ADDRESS, "%s was freed before (%zu bytes)", what, memory->bytes);
    if (!memory->mapped) fail(ILLEGAL_ADDRESS, "%s is not allocated yet in the order of the streams", what);
    size_t at = address - memory->begin;
    if (bytes > memory->bytes - at)
        fail(ILLEGAL_ADDRESS, "%s needs bytes %zu to %zu of an allocation of %zu", what, at, at + bytes, memory->bytes);
    auto &known = stream.known;
    if (!known.covers(memory->writer, memory->written))
        fail(ILLEGAL_ADDRESS, "%s was written on another stream, and nothing orders the two", what);
    if (use == Use::write) {
        for (auto [other, number] : memory->reads)
            if (!known.covers(other, number))
                fail(ILLEGAL_ADDRESS, "%s is read on another stream, and nothing orders the two", what);
        memory->reads.clear();
        memory->writer = stream.index;
        memory->written = known.of_stream[stream.index];
    } else {
        memory->reads[stream.index] = known.of_stream[stream.index];
    }
    return (void *)address;
}

Address allocate(Stream &stream, size_t bytes) {
    State &s = state();
    if (bytes == 0) fail(INVALID_VALUE, "an allocation of no bytes");
    uint64_t reserved = std::max(s.reserved, s.used + bytes);
    if (bytes > total_memory() || reserved > total_memory() - s.elsewhere)
        fail(OUT_OF_MEMORY, "%zu bytes, of which %llu are free", bytes,
             (unsigned long long)(total_memory() - s.elsewhere - s.used));
    s.reserved = reserved;
    s.used += bytes;
    s.bill.allocations++;
    s.bill.most_bytes = std::max(s.bill.most_bytes, s.used);
    Address address = reserve(bytes);
    Memory &memory = s.memory[address];
    memory.begin = address;
    memory.bytes = bytes;
    enqueue(stream, "cuMemAllocAsync", [address](Stream &on) {
        Memory &memory = state().memory[address];
        map(memory);
        touch(on, address, memory.bytes, 1, Use::write, "the allocation");
    });
    return address;
}

void release(Stream &stream, Address address) {
    State &s = state();
    auto found = s.memory.find(address);
    if (found == s.memory.end()) fail(INVALID_VALUE, "no allocation begins there");
    if (!s.given_back.insert(address).second) fail(INVALID_VALUE, "an allocation of %zu bytes is freed twice", found->second.bytes);
    s.used -= found->second.bytes;
    enqueue(stream, "cuMemFreeAsync", [address](Stream &on) {
        Memory &memory = state().memory[address];
        touch(on, address, memory.bytes, 1, Use::write, "the freed memory");
        unmap(memory);
    });
}

void take_elsewhere(uint64_t bytes, int status, const char *what) {
    State &s = state();
    if (s.reserved + s.elsewhere + bytes > total_memory()) fail(status, "no memory for %s", what);
    s.elsewhere += bytes;
}

} // namespace fake
