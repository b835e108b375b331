// libcuda: the functions of CUDA's driver that this project calls, on the device of core.cpp.
#include "core.h"
#include "module.h"
#include "plant.h"

#include <algorithm>
#include <cstring>
#include <sys/mman.h>

using namespace fake;

namespace {

constexpr int DRIVER_VERSION = 13000;
constexpr int DEVICE = 0;
constexpr uint64_t MODULE_BYTES = 4 << 20;

// CUdevice_attribute
constexpr int MAX_THREADS_PER_BLOCK = 1, MULTIPROCESSORS = 16, L2_CACHE_SIZE = 38, CAPABILITY_MAJOR = 75,
              CAPABILITY_MINOR = 76, PAGEABLE_MEMORY_ACCESS = 88, MEMORY_POOLS_SUPPORTED = 115;
// CUmemPool_attribute
constexpr int RELEASE_THRESHOLD = 4, RESERVED_CURRENT = 5, USED_CURRENT = 7;
constexpr unsigned EVENT_DISABLE_TIMING = 2;

void check_device(int device) {
    if (device != DEVICE) fail(INVALID_DEVICE, "device %d; there is one, number 0", device);
}

template <class T> T &out(T *pointer) {
    if (!pointer) fail(INVALID_VALUE, "a null pointer for a result");
    return *pointer;
}

// The pool has the address of its threshold.
void *pool() { return &state().threshold; }
void check_pool(void *given) {
    if (given != pool()) fail(INVALID_HANDLE, "no such memory pool");
}

bool is_pinned(const void *host, size_t bytes) {
    auto &all = state().pinned;
    auto after = all.upper_bound((uintptr_t)host);
    if (after == all.begin()) return false;
    auto &[begin, block] = *std::prev(after);
    return (uintptr_t)host - begin <= block.first && bytes <= block.first - ((uintptr_t)host - begin);
}

// In a dry run only what the host acts on is copied.
bool skipped(size_t bytes) { return dry() && bytes > 4096; }

bool all_zero(const void *host, size_t bytes) {
    const char *b = (const char *)host;
    return bytes >= 256 && b[0] == 0 && memcmp(b, b + 1, bytes - 1) == 0;
}

void upload(Address to, const void *from, size_t bytes, Stream &stream) {
    if (bytes && !from) fail(INVALID_VALUE, "copies from a null pointer");
    State &s = state();
    s.bill.up += bytes;
    if (!dry() && all_zero(from, bytes)) s.bill.up_zeros += bytes;
    bool late = is_pinned(from, bytes) || reads_host_late();
    auto staged = std::make_shared<std::vector<uint8_t>>();
    if (!late && !skipped(bytes)) staged->assign((const uint8_t *)from, (const uint8_t *)from + bytes);
    enqueue(stream, "cuMemcpyHtoDAsync", [=](Stream &on) {
        void *place = touch(on, to, bytes, 1, Use::write, "the target of a copy");
        if (!skipped(bytes)) memcpy(place, late ? from : staged->data(), bytes);
    });
}

void download(void *to, Address from, size_t bytes, Stream &stream) {
    if (bytes && !to) fail(INVALID_VALUE, "copies to a null pointer");
    state().bill.down += bytes;
    // Until something waits for the copy, its target holds nothing.
    if (!dry()) memset(to, 0xff, bytes);
    enqueue(stream, "cuMemcpyDtoHAsync", [=](Stream &on) {
        void *place = touch(on, from, bytes, 1, Use::read, "the source of a copy");
        if (!skipped(bytes)) memcpy(to, place, bytes);
    });
}

} // namespace

// --- versions, devices, contexts

EXPORT int cuInit(unsigned flags) {
    return driver_call("cuInit", Needs::nothing, [&] {
        if (flags) fail(INVALID_VALUE, "flags %u", flags);
        state().initialised = true;
    });
}
EXPORT int cuDriverGetVersion(int *version) {
    return driver_call("cuDriverGetVersion", Needs::nothing, [&] { out(version) = DRIVER_VERSION; });
}
EXPORT int cuDeviceGetCount(int *count) {
    return driver_call("cuDeviceGetCount", Needs::initialised, [&] { out(count) = 1; });
}
EXPORT int cuDeviceGet(int *device, int ordinal) {
    if (planted("cuDeviceGet", {ARGUMENT(ordinal)})) return SUCCESS;
    return driver_call("cuDeviceGet", Needs::initialised, [&] {
        check_device(ordinal);
        out(device) = DEVICE;
    });
}
EXPORT int cuDeviceGetName(char *name, int length, int device) {
    return driver_call("cuDeviceGetName", Needs::initialised, [&] {
        check_device(device);
        snprintf(name, length, "a stand-in for a device");
    });
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    return driver_call("cuDeviceTotalMem_v2", Needs::initialised, [&] {
        check_device(device);
        out(bytes) = total_memory();
    });
}
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    return driver_call("cuDeviceGetAttribute", Needs::initialised, [&] {
        check_device(device);
        switch (attribute) { // those of an H200
        case MAX_THREADS_PER_BLOCK: out(value) = 1024; return;
        case MULTIPROCESSORS: out(value) = 132; return;
        case L2_CACHE_SIZE: out(value) = 50 << 20; return;
        case CAPABILITY_MAJOR: out(value) = 9; return;
        case CAPABILITY_MINOR: out(value) = 0; return;
        case PAGEABLE_MEMORY_ACCESS: out(value) = reads_host_late(); return;
        case MEMORY_POOLS_SUPPORTED: out(value) = 1; return;
        }
        fail(INVALID_VALUE, "attribute %d is not known here", attribute);
    });
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    return driver_call("cuDevicePrimaryCtxRetain", Needs::initialised, [&] {
        check_device(device);
        state().context_users++;
        out(context) = primary_context();
    });
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    if (planted("cuDevicePrimaryCtxRelease_v2", {ARGUMENT(device)})) return SUCCESS;
    State &s = state();
    unsigned users = s.context_users;
    int status = driver_call("cuDevicePrimaryCtxRelease_v2", Needs::initialised, [&] {
        check_device(device);
        if (users == 0) fail(INVALID_CONTEXT, "released more often than retained");
        if (users > 1) return;
        for (auto &stream : s.streams) run_until(*stream, stream->given);
        if (current() == primary_context()) set_current(nullptr);
    });
    if (users) s.context_users--; // also after a failure: the host has done its part
    return status;
}
EXPORT int cuCtxGetCurrent(void **context) {
    return driver_call("cuCtxGetCurrent", Needs::initialised, [&] { out(context) = current(); });
}
EXPORT int cuCtxSetCurrent(void *context) {
    if (planted("cuCtxSetCurrent", {ARGUMENT(context)})) return SUCCESS;
    return driver_call("cuCtxSetCurrent", Needs::initialised, [&] {
        if (context && (context != primary_context() || state().context_users == 0))
            fail(INVALID_CONTEXT, "the context does not exist");
        set_current(context);
    });
}
EXPORT int cuCtxSynchronize() {
    return driver_call("cuCtxSynchronize", Needs::context, [&] { synchronise_all(); });
}

// --- streams and events

EXPORT int cuStreamCreate(void **stream, unsigned) {
    return driver_call("cuStreamCreate", Needs::context, [&] {
        Stream *made = new_stream();
        state().live_streams.insert(made);
        out(stream) = made;
    });
}
EXPORT int cuStreamDestroy_v2(void *handle) {
    if (planted("cuStreamDestroy_v2", {ARGUMENT(handle)})) return SUCCESS;
    bool known = state().live_streams.count((Stream *)handle);
    Stream *stream = (Stream *)handle;
    int status = driver_call("cuStreamDestroy_v2", Needs::context, [&] {
        run_until(stream_of(handle), stream->given); // it ends when its work is done
    });
    if (known) state().live_streams.erase(stream);
    return status;
}
EXPORT int cuStreamSynchronize(void *stream) {
    if (planted("cuStreamSynchronize", {ARGUMENT(stream)})) return SUCCESS;
    return driver_call("cuStreamSynchronize", Needs::context, [&] { synchronise(stream_of(stream)); });
}

namespace {
Event &event_of(void *handle) {
    if (!state().live_events.count((Event *)handle)) fail(INVALID_HANDLE, "the event does not exist");
    return *(Event *)handle;
}
} // namespace

EXPORT int cuEventCreate(void **event, unsigned flags) {
    return driver_call("cuEventCreate", Needs::context, [&] {
        auto *made = new Event{!(flags & EVENT_DISABLE_TIMING), nullptr};
        state().live_events.insert(made);
        out(event) = made;
    });
}
EXPORT int cuEventDestroy_v2(void *handle) {
    if (planted("cuEventDestroy_v2", {ARGUMENT(handle)})) return SUCCESS;
    bool known = state().live_events.count((Event *)handle);
    int status = driver_call("cuEventDestroy_v2", Needs::context, [&] { event_of(handle); });
    if (known) {
        state().live_events.erase((Event *)handle);
        delete (Event *)handle;
    }
    return status;
}
EXPORT int cuEventRecord(void *handle, void *stream) {
    if (planted("cuEventRecord", {ARGUMENT(handle), ARGUMENT(stream)})) return SUCCESS;
    return driver_call("cuEventRecord", Needs::context, [&] {
        Stream &on = stream_of(stream);
        auto record = std::make_shared<Record>(Record{&on, on.given + 1, {}});
        event_of(handle).record = record;
        enqueue(on, "cuEventRecord", [record](Stream &on) {
            record->known = on.known;
            record->seconds = now();
        });
    });
}
EXPORT int cuStreamWaitEvent(void *stream, void *handle, unsigned) {
    return driver_call("cuStreamWaitEvent", Needs::context, [&] {
        auto record = event_of(handle).record;
        if (!record) return; // never recorded: nothing to wait for
        enqueue(stream_of(stream), "cuStreamWaitEvent", [record](Stream &on) {
            run_until(*record->stream, record->number);
            on.known.merge(record->known);
        });
    });
}
EXPORT int cuEventSynchronize(void *handle) {
    if (planted("cuEventSynchronize", {ARGUMENT(handle)})) return SUCCESS;
    return driver_call("cuEventSynchronize", Needs::context, [&] {
        State &s = state();
        if (auto record = event_of(handle).record) {
            run_until(*record->stream, record->number);
            s.host.merge(record->known);
        }
        s.bill.synchronisations++;
        if (!s.broken.empty()) throw Error{s.broken_status, s.broken};
    });
}
EXPORT int cuEventQuery(void *handle) {
    return driver_call("cuEventQuery", Needs::context, [&] {
        auto record = event_of(handle).record;
        if (record && record->stream->done < record->number) fail(NOT_READY, "not reached yet");
    });
}
EXPORT int cuEventElapsedTime_v2(float *milliseconds, void *begin, void *end) {
    return driver_call("cuEventElapsedTime_v2", Needs::context, [&] {
        for (void *handle : {begin, end}) {
            Event &event = event_of(handle);
            if (!event.timing) fail(INVALID_HANDLE, "an event without timing");
            if (!event.record) fail(INVALID_HANDLE, "an event that was not recorded");
            if (event.record->seconds == 0.0) fail(NOT_READY, "not reached yet");
        }
        out(milliseconds) = 1e3 * (event_of(end).record->seconds - event_of(begin).record->seconds);
    });
}
EXPORT int cuEventElapsedTime(float *milliseconds, void *begin, void *end) {
    return cuEventElapsedTime_v2(milliseconds, begin, end);
}

// --- memory

EXPORT int cuMemAllocAsync(Address *address, size_t bytes, void *stream) {
    if (planted("cuMemAllocAsync", {ARGUMENT(bytes), ARGUMENT(stream)})) return SUCCESS;
    return call("cuMemAllocAsync", Needs::context, OUT_OF_MEMORY, 0, [&] {
        if (bytes >> 45) fail(INVALID_VALUE, "%zu bytes are more than there are addresses", bytes);
        out(address) = allocate(stream_of(stream), bytes);
    });
}
EXPORT int cuMemFreeAsync(Address address, void *stream) {
    if (planted("cuMemFreeAsync", {ARGUMENT(address), ARGUMENT(stream)})) return SUCCESS;
    if (freed_early(address)) return SUCCESS;
    bool known = state().memory.count(address);
    int status = driver_call("cuMemFreeAsync", Needs::context, [&] { release(stream_of(stream), address); });
    if (known && status) state().given_back.insert(address); // the host has done its part
    return status;
}
EXPORT int cuMemHostAlloc(void **host, size_t bytes, unsigned) {
    return call("cuMemHostAlloc", Needs::context, OUT_OF_MEMORY, 0, [&] {
        void *pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (bytes == 0 || pages == MAP_FAILED) fail(OUT_OF_MEMORY, "%zu bytes of host memory", bytes);
        memset(pages, 0xff, bytes);
        state().pinned[(uintptr_t)pages] = {bytes, pages};
        out(host) = pages;
    });
}
EXPORT int cuMemFreeHost(void *host) {
    if (planted("cuMemFreeHost", {ARGUMENT(host)})) return SUCCESS;
    bool known = state().pinned.count((uintptr_t)host);
    size_t bytes = known ? state().pinned[(uintptr_t)host].first : 0;
    int status = driver_call("cuMemFreeHost", Needs::context, [&] {
        if (!known) fail(INVALID_VALUE, "no pinned memory begins there");
        for (auto &stream : state().streams) run_until(*stream, stream->given); // it waits for the device
    });
    if (known) {
        state().pinned.erase((uintptr_t)host);
        munmap(host, bytes);
    }
    return status;
}
EXPORT int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    if (planted("cuMemcpyHtoDAsync_v2", {ARGUMENT(to), ARGUMENT(from), ARGUMENT(bytes), ARGUMENT(stream)}, stream)) return SUCCESS;
    return driver_call("cuMemcpyHtoDAsync_v2", Needs::context, [&] { upload(to, from, bytes, stream_of(stream)); });
}
EXPORT int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    if (planted("cuMemcpyDtoHAsync_v2", {ARGUMENT(to), ARGUMENT(from), ARGUMENT(bytes), ARGUMENT(stream)}, stream)) return SUCCESS;
    return driver_call("cuMemcpyDtoHAsync_v2", Needs::context, [&] { download(to, from, bytes, stream_of(stream)); });
}
EXPORT int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    return driver_call("cuMemcpyDtoDAsync_v2", Needs::context, [&] {
        state().bill.within += bytes;
        enqueue(stream_of(stream), "cuMemcpyDtoDAsync", [=](Stream &on) {
            const void *source = touch(on, from, bytes, 1, Use::read, "the source of a copy");
            void *target = touch(on, to, bytes, 1, Use::write, "the target of a copy");
            if (from < to + bytes && to < from + bytes) fail(ILLEGAL_ADDRESS, "source and target of a copy overlap");
            if (!dry()) memcpy(target, source, bytes);
        });
    });
}
EXPORT int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    if (planted("cuMemsetD8Async", {ARGUMENT(to), ARGUMENT(value), ARGUMENT(bytes), ARGUMENT(stream)})) return SUCCESS;
    return driver_call("cuMemsetD8Async", Needs::context, [&] {
        state().bill.set += bytes;
        enqueue(stream_of(stream), "cuMemsetD8Async", [=](Stream &on) {
            void *place = touch(on, to, bytes, 1, Use::write, "the memory to set");
            // Fresh pages are zero already.
            bool lazily = value == 0 && most_blocks();
            if (!dry() && !lazily) memset(place, value, bytes);
        });
    });
}
EXPORT int cuMemGetInfo_v2(size_t *free, size_t *total) {
    return driver_call("cuMemGetInfo_v2", Needs::context, [&] {
        State &s = state();
        out(free) = total_memory() - s.reserved - s.elsewhere;
        out(total) = total_memory();
    });
}
EXPORT int cuDeviceGetDefaultMemPool(void **handle, int device) {
    return driver_call("cuDeviceGetDefaultMemPool", Needs::initialised, [&] {
        check_device(device);
        out(handle) = pool();
    });
}
EXPORT int cuMemPoolSetAttribute(void *handle, int attribute, void *value) {
    return driver_call("cuMemPoolSetAttribute", Needs::initialised, [&] {
        check_pool(handle);
        if (attribute != RELEASE_THRESHOLD) fail(INVALID_VALUE, "attribute %d is not known here", attribute);
        state().threshold = out((uint64_t *)value);
    });
}
EXPORT int cuMemPoolGetAttribute(void *handle, int attribute, void *value) {
    return driver_call("cuMemPoolGetAttribute", Needs::initialised, [&] {
        check_pool(handle);
        State &s = state();
        switch (attribute) {
        case RELEASE_THRESHOLD: out((uint64_t *)value) = s.threshold; return;
        case RESERVED_CURRENT: out((uint64_t *)value) = s.reserved; return;
        case USED_CURRENT: out((uint64_t *)value) = s.used; return;
        }
        fail(INVALID_VALUE, "attribute %d is not known here", attribute);
    });
}
EXPORT int cuMemPoolTrimTo(void *handle, size_t bytes) {
    return driver_call("cuMemPoolTrimTo", Needs::initialised, [&] {
        check_pool(handle);
        State &s = state();
        s.reserved = std::max<uint64_t>(s.used, std::min<uint64_t>(s.reserved, bytes));
    });
}

// --- modules and launches

EXPORT int cuModuleLoadData(void **handle, const void *image) {
    return driver_call("cuModuleLoadData", Needs::context, [&] {
        take_elsewhere(MODULE_BYTES, OUT_OF_MEMORY, "a module");
        Module *module = load_module(image);
        state().live_modules.insert(module);
        out(handle) = module;
    });
}
EXPORT int cuModuleUnload(void *handle) {
    if (planted("cuModuleUnload", {ARGUMENT(handle)})) return SUCCESS;
    State &s = state();
    bool known = s.live_modules.count(handle);
    int status = driver_call("cuModuleUnload", Needs::context, [&] {
        if (!known) fail(INVALID_HANDLE, "the module does not exist");
        for (auto &stream : s.streams) run_until(*stream, stream->given); // its kernels may still wait
    });
    if (known) {
        s.live_modules.erase(handle);
        s.elsewhere -= MODULE_BYTES;
        for (auto function = s.live_functions.begin(); function != s.live_functions.end();)
            function = ((Function *)*function)->module == handle ? s.live_functions.erase(function) : std::next(function);
        unload_module((Module *)handle);
    }
    return status;
}
EXPORT int cuModuleGetFunction(void **handle, void *module, const char *name) {
    return driver_call("cuModuleGetFunction", Needs::context, [&] {
        if (!state().live_modules.count(module)) fail(INVALID_HANDLE, "the module does not exist");
        Function *function = find_function((Module *)module, name);
        state().live_functions.insert(function);
        out(handle) = function;
    });
}
EXPORT int cuFuncGetAttribute(int *value, int attribute, void *handle) {
    return driver_call("cuFuncGetAttribute", Needs::context, [&] {
        constexpr int SHARED_SIZE_BYTES = 1;
        if (!state().live_functions.count(handle)) fail(INVALID_HANDLE, "the function does not exist");
        if (attribute != SHARED_SIZE_BYTES) fail(INVALID_VALUE, "attribute %d is not known here", attribute);
        out(value) = 48 << 10; // the most that a kernel can have without asking for it
    });
}
EXPORT int cuFuncSetAttribute(void *handle, int attribute, int value) {
    return driver_call("cuFuncSetAttribute", Needs::context, [&] {
        constexpr int SHARED_MEMORY_CARVEOUT = 9;
        if (!state().live_functions.count(handle)) fail(INVALID_HANDLE, "the function does not exist");
        if (attribute != SHARED_MEMORY_CARVEOUT) fail(INVALID_VALUE, "attribute %d is not known here", attribute);
        if (value < -1 || value > 100) fail(INVALID_VALUE, "a carve-out of %d percent", value);
    });
}
EXPORT int cuLaunchKernel(void *handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                          unsigned block_z, unsigned shared, void *stream, void **parameters, void **extra) {
    if (planted("cuLaunchKernel", {ARGUMENT(stream)})) return SUCCESS;
    return driver_call("cuLaunchKernel", Needs::context, [&] {
        if (!state().live_functions.count(handle)) fail(INVALID_HANDLE, "the function does not exist");
        Dimensions grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
        uint64_t threads = uint64_t(block_x) * block_y * block_z;
        if (!grid_x || !grid_y || !grid_z || !threads || threads > 1024 || block_z > 64)
            fail(INVALID_VALUE, "a grid of %u x %u x %u blocks of %u x %u x %u threads", grid_x, grid_y, grid_z, block_x,
                 block_y, block_z);
        if (grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535)
            fail(INVALID_VALUE, "a grid of %u x %u x %u blocks", grid_x, grid_y, grid_z);
        if (shared || extra || !parameters) fail(INVALID_VALUE, "dynamic shared memory, or parameters in a buffer");
        launch(*(Function *)handle, grid, block, parameters, stream);
    });
}

// --- errors

EXPORT int cuGetErrorName(int status, const char **name) {
    static const std::map<int, const char *> NAMES = {
        {SUCCESS, "CUDA_SUCCESS"},
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
        {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {NOT_READY, "CUDA_ERROR_NOT_READY"},
        {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
        {UNKNOWN, "CUDA_ERROR_UNKNOWN"},
    };
    auto found = NAMES.find(status);
    if (found == NAMES.end()) return INVALID_VALUE;
    *name = found->second;
    return SUCCESS;
}
// Unlike the driver's, it says what was wrong the last time.
EXPORT int cuGetErrorString(int status, const char **string) {
    std::lock_guard<std::recursive_mutex> lock(state().lock);
    const char *said = last_text(status);
    return said ? (*string = said, SUCCESS) : cuGetErrorName(status, string);
}
