// libnvrtc: compiles a kernel file with g++ for the emulator, as tests/emulator/mod.rs does.
#include "core.h"
#include "module.h"
#include "plant.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <sstream>
#include <unistd.h>

using namespace fake;

namespace {

// nvrtcResult
enum { OUT_OF_HOST_MEMORY = 1, CREATION_FAILURE = 2, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6,
       INTERNAL = 11 };

// No real compiler has this minor version: kept machine code of the one is never taken for that of the other. It changes with
// the sources of the stand-ins (build.sh).
constexpr int MAJOR = 13, MINOR = 1000 + FAKE_CUDA_BUILD;
constexpr int ARCHITECTURES[] = {80, 90, 100, 120};

struct Program {
    std::string source, name, log, image;
};

int nvrtc_call(const char *name, const std::function<void()> &body) {
    return call(name, Needs::nothing, INTERNAL, 0, body);
}

Program &program_of(void *handle) {
    if (!state().live_programs.count(handle)) fail(INVALID_PROGRAM, "the program does not exist");
    return *(Program *)handle;
}

// Where build.sh put this library, the prelude and the runtime.
std::string directory() {
    Dl_info info;
    dladdr((void *)&directory, &info);
    char *whole = realpath(info.dli_fname, nullptr);
    std::string path = whole ? whole : info.dli_fname;
    free(whole);
    return path.substr(0, path.rfind('/'));
}

std::string content(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

// The names of the `__global__` functions, as `KernelFile::kernels_of` finds them.
std::vector<std::string> kernels_of(const std::string &source) {
    const std::string begin = "__global__ void", bounds = "__launch_bounds__(";
    std::vector<std::string> names;
    auto skip_space = [&](size_t at) { return source.find_first_not_of(" \n", at); };
    for (size_t at = source.find(begin); at != std::string::npos; at = source.find(begin, at)) {
        at = skip_space(at + begin.size());
        if (source.compare(at, bounds.size(), bounds) == 0) at = skip_space(source.find(')', at) + 1);
        size_t end = at;
        while (end < source.size() && (isalnum(source[end]) || source[end] == '_')) end++;
        names.push_back(source.substr(at, end - at));
    }
    return names;
}

void compile(Program &program, int count, const char *const *options) {
    bool contracted = true; // as the compiler does unless it is told otherwise
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        if (option == "-fmad=false") contracted = false;
        else if (option.rfind("-arch=sm_", 0) == 0) {
            int wanted = atoi(option.c_str() + 9);
            bool known = false;
            for (int architecture : ARCHITECTURES) known |= architecture == wanted;
            if (!known) fail(INVALID_OPTION, "%s", option.c_str());
        } else if (option != "--std=c++17" && option != "--ptxas-options=-v") fail(INVALID_OPTION, "%s", option.c_str());
    }
    std::string here = directory(), text = content(here + "/prelude.h") + "\n#line 1 \"common.cuh\"\n" + program.source + "\n";
    for (const std::string &kernel : kernels_of(program.source)) {
        text += "extern \"C\" void call_" + kernel + "(void *const *a) { emulator_call(" + kernel + ", a); }\n";
        text += "extern \"C\" const char *parameters_" + kernel + "() { return emulator_parameters(" + kernel + "); }\n";
    }
    const char *temporary = getenv("TMPDIR");
    std::string work = std::string(temporary && *temporary ? temporary : "/tmp") + "/fake-cuda-XXXXXX";
    if (!mkdtemp(work.data())) fail(INTERNAL, "%s: %s", work.c_str(), strerror(errno));
    std::ofstream(work + "/kernel.cpp") << text;
    const char *set = getenv("CXX");
    std::string compiler = set && *set ? set : "g++", contraction = contracted ? " -ffp-contract=fast -mfma" : "";
    std::string command = "cd '" + work + "' && exec > log 2>&1 && " + compiler + " " KERNEL_FLAGS + contraction +
                          " -c -o kernel.o kernel.cpp && " + compiler + " -shared -Wl,-Bsymbolic -o kernel.so kernel.o '" + here +
                          "/runtime.o'";
    int status = system(command.c_str());
    program.log = content(work + "/log");
    std::string object = content(work + "/kernel.so");
    for (const char *file : {"/kernel.cpp", "/kernel.o", "/kernel.so", "/log"}) unlink((work + file).c_str());
    rmdir(work.c_str());
    if (status || object.empty()) fail(COMPILATION, "%s: %s", program.name.c_str(), program.log.c_str());
    program.image = image_of(object);
}

} // namespace

EXPORT int nvrtcVersion(int *major, int *minor) {
    return nvrtc_call("nvrtcVersion", [&] { *major = MAJOR, *minor = MINOR; });
}
EXPORT int nvrtcGetNumSupportedArchs(int *count) {
    return nvrtc_call("nvrtcGetNumSupportedArchs", [&] { *count = sizeof ARCHITECTURES / sizeof *ARCHITECTURES; });
}
EXPORT int nvrtcGetSupportedArchs(int *architectures) {
    return nvrtc_call("nvrtcGetSupportedArchs", [&] { memcpy(architectures, ARCHITECTURES, sizeof ARCHITECTURES); });
}
EXPORT int nvrtcCreateProgram(void **handle, const char *source, const char *name, int headers, const char *const *,
                              const char *const *) {
    return nvrtc_call("nvrtcCreateProgram", [&] {
        if (!source || headers) fail(INVALID_INPUT, "no source, or headers beside it");
        auto *program = new Program{planted_source(source), name ? name : "default_program", "", ""};
        state().live_programs.insert(program);
        *handle = program;
    });
}
EXPORT int nvrtcDestroyProgram(void **handle) {
    void *program = *handle;
    bool known = state().live_programs.erase(program);
    int status = nvrtc_call("nvrtcDestroyProgram", [&] {
        if (!known) fail(INVALID_PROGRAM, "the program does not exist");
    });
    if (known) delete (Program *)program;
    *handle = nullptr;
    return status;
}
EXPORT int nvrtcCompileProgram(void *handle, int count, const char *const *options) {
    return call("nvrtcCompileProgram", Needs::nothing, COMPILATION, 0,
                [&] { compile(program_of(handle), count, options); });
}
EXPORT int nvrtcGetProgramLogSize(void *handle, size_t *bytes) {
    return nvrtc_call("nvrtcGetProgramLogSize", [&] { *bytes = program_of(handle).log.size() + 1; });
}
EXPORT int nvrtcGetProgramLog(void *handle, char *log) {
    return nvrtc_call("nvrtcGetProgramLog", [&] { strcpy(log, program_of(handle).log.c_str()); });
}
EXPORT int nvrtcGetCUBINSize(void *handle, size_t *bytes) {
    return nvrtc_call("nvrtcGetCUBINSize", [&] { *bytes = program_of(handle).image.size(); });
}
EXPORT int nvrtcGetCUBIN(void *handle, char *cubin) {
    return nvrtc_call("nvrtcGetCUBIN", [&] {
        const std::string &image = program_of(handle).image;
        if (image.empty()) fail(INVALID_PROGRAM, "not compiled");
        memcpy(cubin, image.data(), image.size());
    });
}
// The device has machine code of its own: nothing asks for PTX.
EXPORT int nvrtcGetPTXSize(void *handle, size_t *) {
    return nvrtc_call("nvrtcGetPTXSize", [&] { fail(INVALID_PROGRAM, "%s as PTX", program_of(handle).name.c_str()); });
}
EXPORT int nvrtcGetPTX(void *handle, char *) {
    return nvrtc_call("nvrtcGetPTX", [&] { fail(INVALID_PROGRAM, "%s as PTX", program_of(handle).name.c_str()); });
}
