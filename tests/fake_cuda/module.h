// Machine code without a device: a shared object of tests/emulator's runtime and a kernel file, behind a header.
#pragma once
#include "core.h"

namespace fake {

struct Dimensions {
    unsigned x, y, z;
};

struct Module;
struct Function {
    Module *module;
    std::string name, parameters; // as `emulator_parameters` of prelude.h says them
    void (*call)(void *const *);
};

// What nvrtcGetCUBIN hands out for a shared object: no length is said to cuModuleLoadData, so it stands in front.
std::string image_of(const std::string &object);

Module *load_module(const void *image);
void unload_module(Module *module);
Function *find_function(Module *module, const char *name);
// Takes the parameters at once, and runs the kernel when something waits for it.
void launch(const Function &function, Dimensions grid, Dimensions block, void **parameters, void *stream);

} // namespace fake
