// What the four stand-ins share: one device, its memory, streams whose work waits, errors, and the bill. See README.md.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

// The functions of CUDA alone are visible in the library.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace fake {

using Address = uint64_t;

// Status numbers of CUDA's driver that the stand-ins give.
enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    UNKNOWN = 999,
};

// Ends a call with a status of its library; the text says what was wrong.
struct Error {
    int status;
    std::string text;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(int status, const char *format, ...);
__attribute__((format(printf, 1, 2))) std::string text(const char *format, ...);

// How much of each stream's work surely lies before something: entry s counts the operations of stream s.
struct Clock {
    std::vector<uint64_t> of_stream;
    void merge(const Clock &other);
    bool covers(size_t stream, uint64_t operation) const;
    void set(size_t stream, uint64_t operation);
};

struct Stream;

// An operation on a stream. It runs when something waits for it, and not before.
struct Operation {
    std::string what;
    uint64_t number; // from 1, in its stream
    Clock before;    // what the host had waited for when it gave the operation
    std::function<void(Stream &)> run;
};

struct Stream {
    size_t index; // in clocks
    std::deque<Operation> waiting;
    uint64_t given = 0, done = 0;
    Clock known; // what has happened before its next operation
};

// The place in a stream that an event stands for.
struct Record {
    Stream *stream;
    uint64_t number;
    Clock known;
    double seconds = 0.0; // when the place was passed
};

struct Event {
    bool timing;
    std::shared_ptr<Record> record;
};

// An allocation. Its addresses are never given out again.
struct Memory {
    Address begin = 0;
    size_t bytes = 0;
    bool mapped = false, freed = false; // in the order of the stream
    size_t writer = 0;                  // the stream of the last write, and the operation
    uint64_t written = 0;
    std::map<size_t, uint64_t> reads; // the last read of each stream
};

enum class Use { read, write };

// A launch of a kernel, or a product, of one shape: equal ones are counted together.
struct Work {
    uint64_t count = 0, blocks = 0;
    double operations = 0.0; // floating-point operations of one
};

struct Bill {
    std::map<std::string, uint64_t> calls;
    uint64_t up = 0, up_zeros = 0, down = 0, within = 0, set = 0; // bytes
    uint64_t synchronisations = 0, allocations = 0, most_bytes = 0;
    std::map<std::string, Work> launches, products;
};

// All there is. One lock orders the calls of all threads.
struct State {
    std::recursive_mutex lock;
    bool initialised = false;
    unsigned context_users = 0; // of the primary context
    std::vector<std::unique_ptr<Stream>> streams;
    std::set<Stream *> live_streams;
    std::set<Event *> live_events;
    std::set<void *> live_modules, live_functions, live_blas, live_solvers, live_programs;
    std::map<Address, Memory> memory; // by the first address, freed ones too
    std::map<uintptr_t, std::pair<size_t, void *>> pinned; // host memory: bytes
    std::set<Address> given_back; // allocations that the host has freed
    Clock host;                   // what the host has waited for
    uint64_t used = 0, reserved = 0, threshold = 0, elsewhere = 0; // bytes: of the pool, and beside it
    std::string broken; // why every call fails from now on
    int broken_status = SUCCESS;
    Bill bill;
};
State &state();

// Settings of the environment; see README.md.
bool dry();
bool reads_host_late();
uint64_t total_memory();
uint64_t most_blocks(); // of a launch; 0: all

// --- calls

// What a call needs before it does anything.
enum class Needs { nothing, initialised, context };

// Runs the body of an entry point: counts it, fails on demand (FAKE_CUDA_FAIL), checks what it needs, and turns an `Error` into the
// status of its library. `broken` is the status of a call behind an error that cannot be recovered from; 0: the driver's own.
int call(const char *name, Needs needs, int injected, int broken, const std::function<void()> &body);
// Of the driver.
int driver_call(const char *name, Needs needs, const std::function<void()> &body);

void require_context();
void set_current(void *context);
void *current();
void *primary_context();

const char *last_text(int status);

// --- streams

Stream &stream_of(void *handle);
Stream *new_stream();
void enqueue(Stream &stream, std::string what, std::function<void(Stream &)> run);
// Runs the operations of a stream up to and with one; the host has then waited for them.
void run_until(Stream &stream, uint64_t number);
void synchronise(Stream &stream);
void synchronise_all();
double now();

// --- memory

// A piece of one allocation: `what` names it in errors. Checks alignment, bounds, life, and that nothing else uses it.
void *touch(Stream &stream, Address address, size_t bytes, size_t alignment, Use use, const char *what);
Memory *find(Address address);
Address allocate(Stream &stream, size_t bytes);
void release(Stream &stream, Address address);
// Memory beside the pool: of libraries and modules. Fails with `status` where there is none.
void take_elsewhere(uint64_t bytes, int status, const char *what);

} // namespace fake
