// Modules and launches: what tests/emulator/mod.rs does for the trait Device, for a driver.
#include "module.h"
#include "plant.h"

#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

namespace fake {

namespace {

const char MAGIC[16] = "fake CUDA image";

struct Header {
    char magic[16];
    uint64_t bytes, digest;
};

uint64_t digest(const char *bytes, size_t count) { // FNV-1a
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < count; i++) hash = (hash ^ (uint8_t)bytes[i]) * 0x100000001b3;
    return hash;
}

// `Launch` and `Region` of tests/emulator/runtime.cpp.
struct Region {
    uintptr_t begin;
    size_t bytes;
    int argument;
    bool written;
};
struct Launch {
    void (*call)(void *const *);
    void *const *arguments;
    Dimensions grid, block;
    Region *regions;
    size_t region_count;
    uint64_t most_blocks, seed;
    char *report;
    size_t report_bytes;
    uintptr_t program_counter;
};

size_t size_of(char kind) { return kind == 'p' ? 8 : 4; }

// File and line of an address in a library.
std::string line(const std::string &library, uintptr_t counter) {
    std::string command = text("addr2line -s -e %s %#zx 2>&1", library.c_str(), (size_t)counter);
    char answer[256] = "";
    if (FILE *output = popen(command.c_str(), "r")) {
        if (!fgets(answer, sizeof answer, output)) answer[0] = 0;
        pclose(output);
    }
    answer[strcspn(answer, " \n")] = 0;
    return *answer ? answer : "an unknown line";
}

} // namespace

struct Module {
    int file;
    std::string path;
    void *library;
    int (*run)(Launch *);
    std::map<std::string, Function> functions;

    template <class F> F symbol(const char *name) {
        return (F)dlsym(library, name);
    }
};

std::string image_of(const std::string &object) {
    Header header = {{}, object.size(), digest(object.data(), object.size())};
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    return std::string((const char *)&header, sizeof header) + object;
}

Module *load_module(const void *image) {
    Header header;
    memcpy(&header, image, sizeof header);
    const char *object = (const char *)image + sizeof header;
    if (memcmp(header.magic, MAGIC, sizeof MAGIC)) fail(INVALID_IMAGE, "machine code of another device");
    if (digest(object, header.bytes) != header.digest) fail(INVALID_IMAGE, "damaged machine code");
    auto module = std::make_unique<Module>();
    module->file = memfd_create("kernels", MFD_CLOEXEC);
    module->path = text("/proc/%d/fd/%d", getpid(), module->file);
    for (size_t written = 0; written < header.bytes;) {
        ssize_t more = write(module->file, object + written, header.bytes - written);
        if (more <= 0) fail(OUT_OF_MEMORY, "no memory for a module: %s", strerror(errno));
        written += more;
    }
    module->library = dlopen(module->path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!module->library) fail(INVALID_IMAGE, "%s", dlerror());
    module->run = module->symbol<int (*)(Launch *)>("emulator_launch");
    if (!module->run) fail(INVALID_IMAGE, "no kernels");
    return module.release();
}

void unload_module(Module *module) {
    dlclose(module->library);
    close(module->file);
    delete module;
}

Function *find_function(Module *module, const char *name) {
    auto [at, fresh] = module->functions.try_emplace(name);
    Function &function = at->second;
    if (fresh) {
        auto parameters = module->symbol<const char *(*)()>(("parameters_" + std::string(name)).c_str());
        if (!parameters) {
            module->functions.erase(at);
            fail(NOT_FOUND, "no kernel is named %s", name);
        }
        function = {module, name, parameters(), nullptr};
        function.call = module->symbol<void (*)(void *const *)>(("call_" + function.name).c_str());
    }
    return &function;
}

namespace {

void run(const Function &function, Dimensions grid, Dimensions block, const std::vector<uint64_t> &values, Stream &stream) {
    std::vector<void *> arguments;
    for (const uint64_t &value : values) arguments.push_back((void *)&value);
    // The kernel may use what its arguments point into, and nothing else.
    std::map<Address, int> allocations;
    for (size_t i = 0; i < values.size(); i++) {
        if (function.parameters[i] != 'p' || values[i] == 0) continue;
        std::string what = text("argument %zu of %s", i, function.name.c_str());
        touch(stream, values[i], 0, 1, Use::read, what.c_str());
        Memory *memory = find(values[i]);
        if (!memory) fail(ILLEGAL_ADDRESS, "%s is no memory of the device", what.c_str());
        touch(stream, memory->begin, memory->bytes, 1, Use::read, what.c_str());
        allocations.emplace(memory->begin, i);
    }
    if (dry()) return;
    std::vector<Region> regions;
    for (auto [begin, argument] : allocations)
        regions.push_back({(uintptr_t)begin, find(begin)->bytes, argument, false});
    static uint64_t seed = 0;
    char report[4096];
    Launch todo = {function.call, arguments.data(), grid, block,  regions.data(), regions.size(), most_blocks(),
                   ++seed,        report,           sizeof report, 0};
    int failed = function.module->run(&todo);
    if (failed && todo.program_counter)
        fail(ILLEGAL_ADDRESS, "%s at %s", report, line(function.module->path, todo.program_counter).c_str());
    if (failed) fail(LAUNCH_FAILED, "%s", report);
    for (const Region &region : regions)
        if (region.written)
            touch(stream, region.begin, region.bytes, 1, Use::write,
                  text("argument %d of %s", region.argument, function.name.c_str()).c_str());
}

} // namespace

void launch(const Function &function, Dimensions grid, Dimensions block, void **parameters, void *stream) {
    // Every argument in 8 bytes; the kernel's own types say how many of them count.
    std::vector<uint64_t> values;
    for (size_t i = 0; i < function.parameters.size(); i++) {
        if (!parameters[i]) fail(INVALID_VALUE, "argument %zu of %s is missing", i, function.name.c_str());
        memcpy(&values.emplace_back(0), parameters[i], size_of(function.parameters[i]));
    }
    std::vector<Argument> arguments = {{"grid.x", &grid.x, 4}, {"grid.y", &grid.y, 4}, {"block.x", &block.x, 4}, ARGUMENT(stream)};
    for (size_t i = 0; i < values.size(); i++) arguments.push_back({text("%zu", i), &values[i], size_of(function.parameters[i])});
    if (planted(function.name, arguments, stream)) return;
    std::string shape = function.name + text(" grid %u,%u block %u (", grid.x, grid.y, block.x);
    for (size_t i = 0; i < function.parameters.size(); i++) {
        char kind = function.parameters[i];
        uint64_t value = values[i];
        float real;
        memcpy(&real, &value, 4);
        if (i) shape += ' ';
        if (kind == 'p') shape += value ? "p" : "0";
        else if (kind == 'f') shape += text("%g", real);
        else shape += text("%u", (unsigned)value);
    }
    Work &work = state().bill.launches[shape + ')'];
    work.count++;
    work.blocks += uint64_t(grid.x) * grid.y * grid.z;
    const Function *of = &function;
    enqueue(stream_of(stream), function.name, [=](Stream &on) { run(*of, grid, block, values, on); });
}

} // namespace fake
