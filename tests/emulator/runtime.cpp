// A CUDA device on one CPU thread: one fiber per CUDA thread, blocks one after the other, in an order drawn from a
// seed; and the checks of every access and every synchronisation. See README.md in this directory.
//
// Kernels are compiled with -fsanitize=thread, this file is not: the compiler's calls to __tsan_read4 and the like end
// here. A failed check writes the report and leaves the kernel for good: no access is made that the check refused.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

struct Index3 {
    unsigned x, y, z;
};
struct Site {
    const char *file;
    int line;
};
struct Region {
    uintptr_t begin;
    size_t bytes;
    int argument; // of the kernel, from 0; -1: none
    bool written; // by the kernel
};
struct Launch {
    void (*call)(void *const *);
    void *const *arguments;
    Index3 grid, block;
    Region *regions;
    size_t region_count;
    uint64_t most_blocks; // run of the grid: the last, the first, and others at random; 0: all
    uint64_t seed;
    char *report;
    size_t report_bytes;
    // Set by a refused access: where in the library it was made, for addr2line.
    uintptr_t program_counter;
};

namespace {

constexpr size_t STACK = 64 * 1024, PAGE = 4096;
constexpr uint64_t MOST_ACCESSES = 4'000'000'000; // a kernel that does more is taken to never end

// When and by whom a piece of memory was last written and read. Threads are numbered from 1 across blocks.
struct Moment {
    uint32_t barriers = 0, warp_barriers = 0, fences = 0;
};
// What thread `by` had done, or had seen done behind a barrier of its block, before a __threadfence: another block that meets
// it through an atomic on one word, and then has a __threadfence itself, sees it.
struct Release {
    uint32_t by;
    Moment fence;
};
struct Cell {
    uint32_t writer = 0;
    bool atomic = false;
    bool copying = false; // an asynchronous copy into it is under way
    Moment written;
    uint32_t reader = 0;      // 0: none; else the last one
    uint8_t more_readers = 0; // 0: that one alone; 1: others of its warp; 2: of its block; 3: of any
    Moment read;
};

// An allocation, or one shared variable. `granule` bytes share a cell: 4 until a smaller access comes.
struct Memory {
    uintptr_t begin = 0;
    size_t bytes = 0, granule = 4;
    const char *name = nullptr; // of a shared variable
    int argument = -1;
    bool written = false;
    Cell *cells = nullptr;
    size_t mapped = 0;

    bool holds(uintptr_t address, size_t size) const {
        return address >= begin && size <= bytes && address - begin <= bytes - size;
    }
    void map(size_t new_granule) {
        granule = new_granule;
        mapped = (bytes / granule + 1) * sizeof(Cell) + PAGE;
        void *pages = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pages == MAP_FAILED) abort();
        cells = (Cell *)pages;
    }
    void unmap() {
        if (cells) munmap(cells, mapped);
        cells = nullptr;
    }
    void refine() {
        Memory coarse = *this;
        map(1);
        // Most of a large allocation may be untouched, and so the pages of its cells.
        for (size_t i = 0; i < bytes; i++) {
            const Cell &cell = coarse.cells[i / coarse.granule];
            if (cell.writer || cell.reader || cell.copying) cells[i] = cell;
        }
        coarse.unmap();
    }
};

enum class State { runnable, barrier, exchange, exited };

struct Copy {
    uintptr_t to, from;
    unsigned group;
};
struct Thread {
    ucontext_t context; // to begin with
    bool begun;
    jmp_buf place; // to go on at: swapcontext would ask the kernel for the signal mask each time
    std::vector<Copy> copies;
    unsigned groups; // of asynchronous copies committed so far
    State state;
    Moment now;
    Site site; // of what it waits for
    const char *what;
    unsigned mask;
    uint64_t value;
    int source;
    bool fenced;
    Moment fence;                    // the last one
    std::vector<Release> met, seen; // by atomics; and after a fence
};

Launch *launch;
Index3 block_index;
unsigned block_number, thread_count, current;
std::vector<Thread> threads;
std::vector<unsigned> runnable;
unsigned exited, at_barrier;
std::vector<Memory> global, shared;
std::map<uintptr_t, std::vector<Release>> released; // by the word of the atomics
std::vector<Release> seen_by_block;                 // by all its threads: there was a barrier since
struct Declared {
    const void *declaration;
    std::vector<uint8_t> bytes;
};
std::vector<Declared *> declared;
uint8_t *stacks;
ucontext_t host;
bool failed;
uint64_t accesses, random_state;

uint64_t draw() { // splitmix64
    uint64_t z = (random_state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

uint32_t identity() { return block_number * thread_count + current + 1; }
unsigned block_of(uint32_t id) { return (id - 1) / thread_count; }
unsigned thread_of(uint32_t id) { return (id - 1) % thread_count; }
uint32_t warp_of(uint32_t id) { return block_of(id) * ((thread_count + 31) / 32) + thread_of(id) / 32; }

void say(const char *format, ...) {
    size_t used = strlen(launch->report);
    va_list list;
    va_start(list, format);
    vsnprintf(launch->report + used, launch->report_bytes - used, format, list);
    va_end(list);
}

[[noreturn]] void leave() {
    failed = true;
    setcontext(&host);
    abort();
}

void say_who() { say("block %u thread %u: ", block_number, current); }

[[noreturn]] void go_on() {
    Thread &next = threads[current];
    if (next.begun) _longjmp(next.place, 1);
    next.begun = true;
    setcontext(&next.context);
    abort();
}

// Goes on with another thread, or with the host when there is none.
void switch_away() {
    Thread &self = threads[current];
    if (runnable.empty()) {
        if (exited < thread_count) {
            say("deadlock: ");
            unsigned said = 0;
            for (unsigned t = 0; t < thread_count && said < 8; t++)
                if (threads[t].state != State::exited) {
                    say("%sblock %u thread %u waits in %s", said++ ? "; " : "", block_number, t, threads[t].what);
                    if (threads[t].state == State::exchange) say(" with mask %08x", threads[t].mask);
                    say(" at %s:%d", threads[t].site.file, threads[t].site.line);
                }
            leave();
        }
        setcontext(&host);
    }
    size_t pick = draw() % runnable.size();
    current = runnable[pick];
    runnable[pick] = runnable.back();
    runnable.pop_back();
    if (&threads[current] != &self && !_setjmp(self.place)) go_on();
}

void wake(unsigned thread) {
    threads[thread].state = State::runnable;
    runnable.push_back(thread);
}

void append(std::vector<Release> &to, const std::vector<Release> &from) {
    to.insert(to.end(), from.begin(), from.end());
}

void release_barrier() {
    if (at_barrier == 0 || at_barrier + exited < thread_count) return;
    for (unsigned t = 0; t < thread_count; t++)
        if (threads[t].state == State::barrier) {
            threads[t].now.barriers++;
            append(seen_by_block, threads[t].seen);
            threads[t].seen.clear();
            wake(t);
        }
    at_barrier = 0;
}

void run_thread() {
    launch->call(launch->arguments);
    threads[current].state = State::exited;
    exited++;
    release_barrier();
    switch_away();
}

void prepare_thread(unsigned number) {
    Thread &thread = threads[number];
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = stacks + number * STACK + PAGE;
    thread.context.uc_stack.ss_size = STACK - PAGE;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_thread, 0);
    thread.begun = false;
    thread.copies.clear();
    thread.groups = 0;
    thread.now = Moment();
    thread.fenced = false;
    thread.met.clear();
    thread.seen.clear();
    wake(number);
}

void run_block() {
    exited = at_barrier = 0;
    runnable.clear();
    seen_by_block.clear();
    for (unsigned t = 0; t < thread_count; t++) prepare_thread(t);
    size_t pick_first = draw() % runnable.size();
    current = runnable[pick_first];
    runnable[pick_first] = runnable.back();
    runnable.pop_back();
    threads[current].begun = true;
    swapcontext(&host, &threads[current].context); // until all have exited, or a check has failed
    for (Memory &memory : shared) memory.unmap();
    shared.clear();
    for (Declared *variable : declared) delete variable;
    declared.clear();
}

// Whether what happened at `then` by thread `id` surely comes before what the current thread does now.
bool before(uint32_t id, uint8_t more, Moment then) {
    if (id == identity() && more == 0) return true;
    if (more == 3) return false;
    if (block_of(id) != block_number) {
        auto covers = [&](const Release &release) {
            if (block_of(release.by) != block_of(id)) return false;
            bool own = more == 0 && release.by == id && then.fences < release.fence.fences;
            return own || then.barriers < release.fence.barriers;
        };
        for (auto *seen : {&seen_by_block, &threads[current].seen})
            for (const Release &release : *seen)
                if (covers(release)) return true;
        return false;
    }
    Moment now = threads[current].now;
    if (then.barriers < now.barriers) return true;
    return more < 2 && warp_of(id) == warp_of(identity()) && then.warp_barriers < now.warp_barriers;
}

enum class Kind { read, write, atomic, copy }; // copy: the beginning of an asynchronous one
const char *const VERBS[] = {"reads", "writes", "adds to", "copies to"};

void say_memory(const Memory &memory) {
    if (memory.name) say("shared `%s`", memory.name);
    else if (memory.argument >= 0) say("the memory of argument %d", memory.argument);
    else say("memory that no argument points to");
}

void say_place(const Memory &memory, uintptr_t address, size_t size) {
    say_memory(memory);
    say(", bytes %zu to %zu of %zu", address - memory.begin, address - memory.begin + size, memory.bytes);
}

Memory *find(uintptr_t address, size_t size) {
    static size_t last_global, last_shared;
    if (last_shared < shared.size() && shared[last_shared].holds(address, size)) return &shared[last_shared];
    if (last_global < global.size() && global[last_global].holds(address, size)) return &global[last_global];
    for (last_shared = 0; last_shared < shared.size(); last_shared++)
        if (shared[last_shared].holds(address, size)) return &shared[last_shared];
    for (last_global = 0; last_global < global.size(); last_global++)
        if (global[last_global].holds(address, size)) return &global[last_global];
    return nullptr;
}

// The linker's names for the ends of this library: its constants may be read.
extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

void access(uintptr_t address, size_t size, Kind kind, uintptr_t program_counter, const Site *site) {
    if (!launch) return;
    uintptr_t stack = (uintptr_t)stacks + current * STACK;
    if (address - stack < STACK) return;
    if (kind == Kind::read && address >= (uintptr_t)__ehdr_start && address + size <= (uintptr_t)_end) return;
    auto refuse = [&] {
        if (site) say(" at %s:%d", site->file, site->line);
        else launch->program_counter = program_counter - 1 - (uintptr_t)__ehdr_start;
        leave();
    };
    if (++accesses > MOST_ACCESSES) {
        say_who();
        say("the kernel does not end");
        refuse();
    }
    Memory *memory = find(address, size);
    if (!memory) {
        say_who();
        say("out of bounds: %s %zu bytes", VERBS[(int)kind], size);
        Memory *nearest = nullptr;
        size_t distance = 1 << 12;
        for (auto *all : {&shared, &global})
            for (Memory &m : *all) {
                size_t d = address >= m.begin + m.bytes ? address - m.begin - m.bytes
                           : address < m.begin          ? m.begin - address
                                                        : 0; // begins inside, ends outside
                if (d < distance) distance = d, nearest = &m;
            }
        if (nearest) {
            say(" of ");
            say_memory(*nearest);
            say(", byte %lld of %zu", (long long)(address - nearest->begin), nearest->bytes);
        }
        refuse();
    }
    if (address % size != 0) {
        say_who();
        say("misaligned: %s %zu bytes of ", VERBS[(int)kind], size);
        say_place(*memory, address, size);
        refuse();
    }
    if (size < memory->granule) memory->refine();
    Moment now = threads[current].now;
    uint32_t self = identity();
    for (size_t at = address - memory->begin; at < address - memory->begin + size; at += memory->granule) {
        Cell &cell = memory->cells[at / memory->granule];
        auto race = [&](const char *verb, uint32_t other) {
            say_who();
            say("race: %s ", VERBS[(int)kind]);
            say_place(*memory, address, size);
            say(", which block %u thread %u %s with no barrier between", block_of(other), thread_of(other), verb);
            refuse();
        };
        if (cell.copying) {
            say_who();
            say("%s ", VERBS[(int)kind]);
            say_place(*memory, address, size);
            for (unsigned t = 0; t < thread_count; t++)
                for (const Copy &copy : threads[t].copies)
                    if (address < copy.to + 16 && copy.to < address + size)
                        say(", into which thread %u copies without having waited", t);
            refuse();
        }
        if (memory->name && kind == Kind::read && !cell.writer) {
            say_who();
            say("uninitialised: reads ");
            say_place(*memory, address, size);
            refuse();
        }
        bool both_atomic = kind == Kind::atomic && cell.atomic;
        if (cell.writer && !both_atomic && !before(cell.writer, 0, cell.written)) race("wrote", cell.writer);
        if (kind == Kind::read) {
            // A read that comes after all earlier ones stands for them: whatever comes after it comes after them.
            if (!cell.reader || before(cell.reader, cell.more_readers, cell.read)) {
                cell.more_readers = 0;
            } else {
                uint8_t more = block_of(cell.reader) != block_number   ? 3
                               : warp_of(cell.reader) != warp_of(self) ? 2
                                                                       : 1;
                if (more > cell.more_readers) cell.more_readers = more;
            }
            cell.reader = self;
            cell.read = now;
        } else {
            // A copy under way orders nothing yet: what it writes lands at its wait.
            if (cell.reader && !before(cell.reader, cell.more_readers, cell.read)) race("read", cell.reader);
            if (kind == Kind::copy) {
                cell.copying = true;
                continue;
            }
            cell.writer = self;
            cell.written = now;
            cell.atomic = kind == Kind::atomic;
        }
    }
    memory->written |= kind != Kind::read;
}

} // namespace

extern "C" {

Index3 emulator_thread_index() {
    Index3 size = launch->block;
    return {current % size.x, current / size.x % size.y, current / size.x / size.y};
}
Index3 emulator_block_index() { return block_index; }
Index3 emulator_block_size() { return launch->block; }
Index3 emulator_grid_size() { return launch->grid; }

void emulator_barrier(Site site) {
    Thread &self = threads[current];
    self.state = State::barrier;
    self.site = site;
    self.what = "__syncthreads";
    for (unsigned t = 0; t < thread_count; t++) {
        Site other = threads[t].site;
        if (threads[t].state == State::barrier && (other.line != site.line || strcmp(other.file, site.file))) {
            say_who();
            say("divergent barrier: __syncthreads at %s:%d, thread %u waits at %s:%d", site.file, site.line, t,
                other.file, other.line);
            leave();
        }
    }
    at_barrier++;
    release_barrier();
    switch_away();
}

void emulator_copy(void *to, const void *from, Site site) {
    access((uintptr_t)from, 16, Kind::read, 0, &site);
    access((uintptr_t)to, 16, Kind::copy, 0, &site);
    threads[current].copies.push_back({(uintptr_t)to, (uintptr_t)from, threads[current].groups});
}
void emulator_copy_commit() { threads[current].groups++; }
void emulator_copy_wait(unsigned left, Site site) {
    Thread &self = threads[current];
    size_t landed = 0;
    for (; landed < self.copies.size() && self.copies[landed].group + left < self.groups; landed++) {
        Copy copy = self.copies[landed];
        Memory *memory = find(copy.to, 16);
        for (size_t at = copy.to - memory->begin; at < copy.to - memory->begin + 16; at += memory->granule)
            memory->cells[at / memory->granule].copying = false;
        access(copy.to, 16, Kind::write, 0, &site);
        memcpy((void *)copy.to, (const void *)copy.from, 16);
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + landed);
}

} // extern "C"

namespace {

// Waits at a place where every lane of the mask must come; true for the last one to come. `finish` then wakes them.
bool last_to_come(const char *what, unsigned mask, uint64_t value, int source, Site site) {
    Thread &self = threads[current];
    unsigned lane = current % 32, first = current - lane;
    auto refuse = [&](const char *format, unsigned thread) {
        say_who();
        say("divergent %s at %s:%d: ", what, site.file, site.line);
        say(format, thread, mask);
        leave();
    };
    if (!(mask >> lane & 1)) refuse("thread %u is not in its own mask %08x", current);
    if (source >= 0 && !(mask >> source & 1)) refuse("it reads from lane %u, which is not in mask %08x", source);
    self.state = State::exchange;
    self.what = what;
    self.site = site;
    self.mask = mask;
    self.value = value;
    self.source = source;
    bool complete = true;
    auto same = [](const char *a, const char *b) { return a == b || strcmp(a, b) == 0; };
    for (unsigned l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        unsigned t = first + l;
        if (t >= thread_count || threads[t].state == State::exited)
            refuse("thread %u of the mask %08x has exited", t);
        const Thread &other = threads[t];
        if (other.state != State::exchange) {
            complete = false;
            continue;
        }
        if (other.site.line != site.line || !same(other.what, what) || !same(other.site.file, site.file)) {
            say_who();
            say("divergent %s at %s:%d: thread %u is in %s at %s:%d", what, site.file, site.line, t, other.what,
                other.site.file, other.site.line);
            leave();
        }
        if (other.mask != mask) refuse("thread %u came with another mask than %08x", t);
    }
    return complete;
}

// A step of a whole warp: `value` points to what each lane brings and takes away.
template <class Lane, class Step> void together(const char *what, Lane &mine, Site site, Step step) {
    if (last_to_come(what, ~0u, (uint64_t)&mine, -1, site)) {
        unsigned first = current - current % 32;
        Lane *lanes[32];
        for (unsigned l = 0; l < 32; l++) lanes[l] = (Lane *)threads[first + l].value;
        step(lanes);
        for (unsigned l = 0; l < 32; l++) wake(first + l);
    }
    switch_away();
}

// A half-width number as a double, and the exponent of its leading bit as the hardware sees it.
struct Factor {
    double value;
    int exponent;
};
constexpr int NO_EXPONENT = -10000; // of zero
Factor factor(uint16_t bits, int mantissa) {
    int width = 15 - mantissa, bias = (1 << (width - 1)) - 1, exponent = bits >> mantissa & ((1 << width) - 1);
    double magnitude = bits & ((1 << mantissa) - 1);
    double sign = bits >> 15 ? -1.0 : 1.0;
    if (exponent == (1 << width) - 1) return {magnitude ? __builtin_nan("") : sign * __builtin_inf(), bias + 1};
    if (exponent == 0 && magnitude == 0) return {0.0, NO_EXPONENT};
    if (exponent == 0) exponent = 1;
    else magnitude += 1 << mantissa;
    return {sign * __builtin_ldexp(magnitude, exponent - bias - mantissa), exponent - bias};
}

double power_of_two(int exponent) {
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

// c + sum of products as a tensor core adds: all terms are cut to `extra` bits behind the last bit of the one with the
// largest exponent, their sum is exact, and it is cut to f32. Nothing is rounded to nearest.
float cut_sum(float c, const Factor *a, const Factor *b, unsigned count, int extra) {
    uint32_t bits;
    memcpy(&bits, &c, 4);
    int largest = c == 0.0f ? NO_EXPONENT : (int)(bits >> 23 & 255) - 127;
    double plain = c;
    for (unsigned i = 0; i < count; i++) {
        int exponent = a[i].exponent + b[i].exponent;
        if (exponent > largest) largest = exponent;
        plain += a[i].value * b[i].value;
    }
    if (!(plain - plain == 0.0)) return plain; // not finite
    if (largest < -500) return 0.0f;
    double scale = power_of_two(23 + extra - largest);
    int64_t sum = (int64_t)(c * scale);
    for (unsigned i = 0; i < count; i++) sum += (int64_t)(a[i].value * b[i].value * scale);
    double result = (double)sum * power_of_two(largest - 23 - extra);
    uint64_t cut;
    memcpy(&cut, &result, 8);
    cut &= ~((1ull << 29) - 1); // 23 bits of mantissa; what is subnormal in f32 the conversion rounds
    memcpy(&result, &cut, 8);
    return (float)result;
}

// What lanes bring to an mma, and take away in c.
struct Fragments {
    uint32_t a[4], b[2];
    float c[4];
};

// D = A B + C for A (16 x 16), B (16 x 8) in the layout of PTX's mma.m16n8k16, a block of `depth` products at a time.
void multiply(Fragments *lanes[32], int mantissa) {
    constexpr unsigned DEPTH = 8; // products that are added at once
    constexpr int EXTRA = 1;
    Factor a[16][16], b[8][16]; // b by column
    for (unsigned l = 0; l < 32; l++) {
        unsigned group = l / 4, pair = l % 4 * 2;
        for (unsigned half = 0; half < 2; half++) {
            auto number = [&](uint32_t bits) { return factor(bits >> 16 * half, mantissa); };
            for (unsigned r = 0; r < 4; r++) a[group + r % 2 * 8][pair + r / 2 * 8 + half] = number(lanes[l]->a[r]);
            for (unsigned r = 0; r < 2; r++) b[group][pair + r * 8 + half] = number(lanes[l]->b[r]);
        }
    }
    for (unsigned l = 0; l < 32; l++)
        for (unsigned r = 0; r < 4; r++) {
            const Factor *row = a[l / 4 + r / 2 * 8], *column = b[l % 4 * 2 + r % 2];
            float &c = lanes[l]->c[r];
            for (unsigned first = 0; first < 16; first += DEPTH)
                c = cut_sum(c, row + first, column + first, DEPTH, EXTRA);
        }
}

// What lanes bring to a load of four 8 x 8 matrices: a row each; and take away.
struct Rows {
    uint16_t row[8];
    uint32_t result[4];
};

} // namespace

extern "C" {

unsigned long long emulator_exchange(const char *what, unsigned mask, unsigned long long value, int source, Site site) {
    if (last_to_come(what, mask, value, source, site)) {
        unsigned first = current - current % 32;
        uint64_t values[32], bits = 0;
        for (unsigned l = 0; l < 32; l++)
            if (mask >> l & 1) {
                values[l] = threads[first + l].value;
                bits |= (values[l] & 1) << l;
            }
        bool synchronises = strcmp(what, "__syncwarp") == 0;
        bool all = true; // a barrier of part of the warp orders that part alone: not tracked, so not trusted
        for (unsigned l = 0; l < 32; l++) {
            unsigned t = first + l;
            if (!(mask >> l & 1) && t < thread_count && threads[t].state != State::exited) all = false;
        }
        for (unsigned l = 0; l < 32; l++)
            if (mask >> l & 1) {
                Thread &thread = threads[first + l];
                thread.value = thread.source < 0 ? bits : values[thread.source];
                if (synchronises && all) thread.now.warp_barriers++;
                wake(first + l);
            }
    }
    switch_away();
    return threads[current].value;
}

void emulator_load_matrices(unsigned *result, const void *row, Site site) {
    Rows mine;
    access((uintptr_t)row, 16, Kind::read, 0, &site);
    memcpy(mine.row, row, 16);
    together("load_matrices", mine, site, [](Rows *lanes[32]) {
        for (unsigned l = 0; l < 32; l++)
            for (unsigned m = 0; m < 4; m++) {
                uint32_t low = lanes[8 * m + l % 4 * 2]->row[l / 4], high = lanes[8 * m + l % 4 * 2 + 1]->row[l / 4];
                lanes[l]->result[m] = low | high << 16;
            }
    });
    memcpy(result, mine.result, 16);
}

void emulator_multiply(float *c, const unsigned *a, unsigned b0, unsigned b1, int mantissa, Site site) {
    Fragments mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    together("multiply", mine, site, [=](Fragments *lanes[32]) { multiply(lanes, mantissa); });
    memcpy(c, mine.c, 16);
}

void *emulator_shared(const void *declaration, unsigned long bytes, const char *name, Site) {
    for (Declared *known : declared)
        if (known->declaration == declaration) return known->bytes.data();
    // Poisoned: all ones is NaN as a float and out of every range as an index.
    Declared *fresh = new Declared{declaration, std::vector<uint8_t>(bytes, 0xff)};
    declared.push_back(fresh);
    Memory memory;
    memory.begin = (uintptr_t)fresh->bytes.data();
    memory.bytes = bytes;
    memory.name = name;
    memory.map(4);
    shared.push_back(memory);
    return fresh->bytes.data();
}

void emulator_atomic(void *address, unsigned long bytes, Site site) {
    access((uintptr_t)address, bytes, Kind::atomic, 0, &site);
    Thread &self = threads[current];
    auto &here = released[(uintptr_t)address];
    std::vector<Release> earlier = here;
    if (self.fenced) {
        here.push_back({identity(), self.fence});
        append(here, self.seen);
        append(here, seen_by_block);
    }
    append(self.met, earlier);
}

void emulator_fence() {
    Thread &self = threads[current];
    self.now.fences++;
    self.fenced = true;
    self.fence = self.now;
    append(self.seen, self.met);
    self.met.clear();
}

// Runs a kernel. 0: done; 1: a check failed, and the report says which.
int emulator_launch(Launch *todo) {
    launch = todo;
    launch->report[0] = 0;
    launch->program_counter = 0;
    random_state = launch->seed;
    accesses = 0;
    failed = false;
    released.clear();
    thread_count = launch->block.x * launch->block.y * launch->block.z;
    unsigned block_count = launch->grid.x * launch->grid.y * launch->grid.z;
    // Two mappings a thread: those of all libraries of a process together would be more than it may have.
    stacks = (uint8_t *)mmap(nullptr, thread_count * STACK, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
    for (size_t t = 0; t < thread_count; t++)
        if (mprotect(stacks + t * STACK, PAGE, PROT_NONE)) abort();
    global.clear();
    for (size_t i = 0; i < launch->region_count; i++) {
        Memory memory;
        memory.begin = launch->regions[i].begin;
        memory.bytes = launch->regions[i].bytes;
        memory.argument = launch->regions[i].argument;
        memory.map(4);
        global.push_back(memory);
    }
    std::vector<unsigned> blocks(block_count);
    for (unsigned b = 0; b < block_count; b++) blocks[b] = b;
    threads.resize(thread_count);
    // After the swap with the last block, the first one stands in its place.
    bool few = launch->most_blocks && launch->most_blocks < block_count;
    unsigned wanted = few ? launch->most_blocks : block_count;
    for (unsigned done = 0; done < wanted && !failed; done++) {
        size_t pick = few && done < 2 ? block_count - 1 : done + draw() % (block_count - done);
        block_number = blocks[pick];
        blocks[pick] = blocks[done];
        Index3 grid = launch->grid;
        block_index = {block_number % grid.x, block_number / grid.x % grid.y, block_number / grid.x / grid.y};
        run_block();
    }
    for (size_t i = 0; i < global.size(); i++) {
        launch->regions[i].written = global[i].written;
        global[i].unmap();
    }
    munmap(stacks, thread_count * STACK);
    launch = nullptr;
    return failed;
}

// What the compiler calls before every access of a kernel.
#define CALLED_FROM (uintptr_t) __builtin_return_address(0)
#define WATCH(bytes)                                                                                                 \
    void __tsan_read##bytes(void *at) { access((uintptr_t)at, bytes, Kind::read, CALLED_FROM, nullptr); }            \
    void __tsan_write##bytes(void *at) { access((uintptr_t)at, bytes, Kind::write, CALLED_FROM, nullptr); }          \
    void __tsan_unaligned_read##bytes(void *at) { access((uintptr_t)at, bytes, Kind::read, CALLED_FROM, nullptr); }  \
    void __tsan_unaligned_write##bytes(void *at) { access((uintptr_t)at, bytes, Kind::write, CALLED_FROM, nullptr); } \
    void __tsan_volatile_read##bytes(void *at) { access((uintptr_t)at, bytes, Kind::read, CALLED_FROM, nullptr); }   \
    void __tsan_volatile_write##bytes(void *at) { access((uintptr_t)at, bytes, Kind::write, CALLED_FROM, nullptr); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
// Of whole structures and arrays.
#define WATCH_RANGE(name, kind)                                                                                      \
    void __tsan_##name##_range(void *at, unsigned long bytes) {                                                      \
        for (unsigned long i = 0; i < bytes; i++) access((uintptr_t)at + i, 1, kind, CALLED_FROM, nullptr);          \
    }
WATCH_RANGE(read, Kind::read)
WATCH_RANGE(write, Kind::write)
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
}
