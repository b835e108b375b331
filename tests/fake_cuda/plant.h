// Faults of the host code, planted into its calls: FAKE_CUDA_PLANT, see README.md.
#pragma once
#include "core.h"

#include <cstring>
#include <initializer_list>

namespace fake {

// An argument of a call: its name in CUDA's documentation, and where it lies.
struct Argument {
    std::string name;
    void *place;
    size_t bytes;
};
#define ARGUMENT(variable) fake::Argument{#variable, &variable, sizeof variable}

// Whether the program is to leave out this call; else its arguments are changed as the plant says. `stream` is the one of the call,
// for a plant that frees an argument's memory too early.
bool planted(const std::string &function, const std::vector<Argument> &arguments, void *stream = nullptr);
// A source text to compile in place of another: a plant that changes a kernel.
std::string planted_source(const std::string &source);
// Whether a plant has freed the memory already.
bool freed_early(Address address);

} // namespace fake
