// Faults of the host code, planted into its calls. Nothing else here knows of them.
#include "plant.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace fake {

namespace {

// FAKE_CUDA_PLANT=function:count:change; count 0: each call.
struct Plant {
    std::string function;
    uint64_t count;
    std::string change;
};

[[noreturn]] void refuse(const char *why) {
    fprintf(stderr, "fake CUDA: FAKE_CUDA_PLANT=%s: %s\n", getenv("FAKE_CUDA_PLANT"), why);
    abort();
}

const Plant *plant() {
    static const std::unique_ptr<Plant> parsed = [] {
        std::unique_ptr<Plant> none;
        const char *value = getenv("FAKE_CUDA_PLANT");
        if (!value || !*value) return none;
        std::string text = value;
        size_t first = text.find(':'), second = text.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) refuse("expected function:count:change");
        return std::make_unique<Plant>(Plant{text.substr(0, first), strtoull(text.c_str() + first + 1, nullptr, 10),
                                             text.substr(second + 1)});
    }();
    return parsed.get();
}

void say(const Plant &plant) {
    static bool said = false;
    if (!said) fprintf(stderr, "fake CUDA: planted %s:%llu:%s\n", plant.function.c_str(), (unsigned long long)plant.count, plant.change.c_str());
    said = true;
}

std::set<Address> &early() {
    static auto *all = new std::set<Address>;
    return *all;
}

const Argument &named(const std::vector<Argument> &arguments, const std::string &name) {
    auto found = std::find_if(arguments.begin(), arguments.end(), [&](const Argument &a) { return a.name == name; });
    if (found == arguments.end()) refuse("the call has no argument of this name");
    return *found;
}

} // namespace

bool planted(const std::string &function, const std::vector<Argument> &arguments, void *stream) {
    const Plant *p = plant();
    if (!p || p->function != function) return false;
    std::lock_guard<std::recursive_mutex> lock(state().lock);
    static uint64_t calls = 0;
    if (++calls != p->count && p->count) return false;
    say(*p);
    if (p->change == "skip") return true;
    size_t end = p->change.find_first_of("=+-^*~!");
    if (end == std::string::npos) refuse("no such change");
    const Argument &argument = named(arguments, p->change.substr(0, end));
    std::string rest = p->change.substr(end + 1);
    int64_t number = strtoll(rest.c_str(), nullptr, 0), value = 0;
    if (argument.bytes > sizeof value) refuse("an argument that is no number");
    memcpy(&value, argument.place, argument.bytes);
    switch (p->change[end]) {
    case '=': value = number; break;
    case '+': value += number; break;
    case '-': value -= number; break;
    case '^': value ^= number; break;
    case '*': value *= number; break;
    case '~': { // the two change places
        const Argument &other = named(arguments, rest);
        if (other.bytes != argument.bytes) refuse("arguments of two sizes");
        memcpy(argument.place, other.place, argument.bytes);
        memcpy(other.place, &value, argument.bytes);
        return false;
    }
    case '!': // its memory is freed before the call
        early().insert(Address(value));
        release(stream_of(stream), Address(value));
        return false;
    }
    memcpy(argument.place, &value, argument.bytes);
    return false;
}

std::string planted_source(const std::string &source) {
    const Plant *p = plant();
    if (!p || p->function != "source") return source;
    size_t arrow = p->change.find("=>");
    if (arrow == std::string::npos) refuse("expected source:0:old=>new");
    std::string old = p->change.substr(0, arrow), changed = source;
    size_t at = changed.find(old);
    if (at == std::string::npos) return source; // another file
    changed.replace(at, old.size(), p->change.substr(arrow + 2));
    say(*p);
    return changed;
}

bool freed_early(Address address) { return early().count(address); }

} // namespace fake
