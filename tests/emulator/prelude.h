// What nvcc and the hardware give a kernel, as declarations: the emulator compiles this, kernels/common.cuh and one
// kernel file as one source. The definitions are in runtime.cpp, compiled apart, so that the checks do not watch them.
#define EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct Index3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
// Where in the source a call stands.
struct Site {
    const char *file;
    int line;
};
#define HERE(file, line) const char *file = __builtin_FILE(), int line = __builtin_LINE()

extern "C" {
Index3 emulator_thread_index();
Index3 emulator_block_index();
Index3 emulator_block_size();
Index3 emulator_grid_size();
void emulator_barrier(Site site);
// Every lane of the mask gives a value; gives back the one of lane `source`, or all lanes' lowest bits (source < 0).
unsigned long long emulator_exchange(const char *what, unsigned mask, unsigned long long value, int source, Site site);
void *emulator_shared(const void *declaration, unsigned long bytes, const char *name, Site site);
void emulator_atomic(void *address, unsigned long bytes, Site site);
void emulator_fence();
// Copies 16 bytes, which land when this thread waits for their group.
void emulator_copy(void *to, const void *from, Site site);
void emulator_copy_commit();
void emulator_copy_wait(unsigned left, Site site);
// The four 8 x 8 matrices of 16 bits whose rows the lanes point to, transposed, as PTX's ldmatrix.x4.trans hands them out.
void emulator_load_matrices(unsigned *result, const void *row, Site site);
// PTX's mma.m16n8k16 on numbers with so many bits of mantissa, which cuts sums as tensor cores do.
void emulator_multiply(float *c, const unsigned *a, unsigned b0, unsigned b1, int mantissa, Site site);
}

#define threadIdx emulator_thread_index()
#define blockIdx emulator_block_index()
#define blockDim emulator_block_size()
#define gridDim emulator_grid_size()

#define SHARED(Type, name)                                                                                          \
    static char name##_declaration;                                                                                 \
    Type &name = *(Type *)emulator_shared(&name##_declaration, sizeof(Type), #name, Site{__FILE__, __LINE__})

inline void __syncthreads(HERE(file, line)) { emulator_barrier(Site{file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, HERE(file, line)) {
    emulator_exchange("__syncwarp", mask, 0, -1, Site{file, line});
}
inline void __threadfence() { emulator_fence(); }
inline unsigned __ballot_sync(unsigned mask, int predicate, HERE(file, line)) {
    return emulator_exchange("__ballot_sync", mask, predicate != 0, -1, Site{file, line});
}
template <class T>
__attribute__((no_sanitize_thread)) T emulator_shuffle(const char *what, unsigned mask, T value, int source, Site site) {
    static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = emulator_exchange(what, mask, bits, source, site);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T value, int source, HERE(file, line)) {
    return emulator_shuffle("__shfl_sync", mask, value, source & 31, Site{file, line});
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, HERE(file, line)) {
    return emulator_shuffle("__shfl_xor_sync", mask, value, (emulator_thread_index().x ^ with) & 31, Site{file, line});
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int by, HERE(file, line)) {
    int lane = emulator_thread_index().x & 31;
    return emulator_shuffle("__shfl_up_sync", mask, value, lane < by ? lane : lane - by, Site{file, line});
}

template <class T>
__attribute__((no_sanitize_thread)) T atomicAdd(T *address, T value, HERE(file, line)) {
    emulator_atomic(address, sizeof(T), Site{file, line});
    T old = *address;
    *address = old + value;
    return old;
}
template <class T>
__attribute__((no_sanitize_thread)) T atomicMin(T *address, T value, HERE(file, line)) {
    emulator_atomic(address, sizeof(T), Site{file, line});
    T old = *address;
    *address = value < old ? value : old;
    return old;
}

// The wrappers of common.cuh around what only hardware does.
inline void copy_async(void *to, const void *from, HERE(file, line)) { emulator_copy(to, from, Site{file, line}); }
inline void copy_commit() { emulator_copy_commit(); }
template <unsigned LEFT> void copy_wait(HERE(file, line)) { emulator_copy_wait(LEFT, Site{file, line}); }
inline void load_matrices(unsigned (&result)[4], const void *row, HERE(file, line)) {
    emulator_load_matrices(result, row, Site{file, line});
}
inline void multiply_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, HERE(file, line)) {
    emulator_multiply(c, a, b0, b1, 7, Site{file, line});
}
inline void multiply_f16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, HERE(file, line)) {
    emulator_multiply(c, a, b0, b1, 10, Site{file, line});
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
inline float fabsf(float x) { return __builtin_fabsf(x); }
inline float fmaf(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline float sqrtf(float x) { return __builtin_sqrtf(x); }
inline float f16_to_float(unsigned short bits) {
    _Float16 x;
    __builtin_memcpy(&x, &bits, 2);
    return x;
}
inline unsigned short float_to_f16(float x) {
    _Float16 rounded = x;
    unsigned short bits;
    __builtin_memcpy(&bits, &rounded, 2);
    return bits;
}

// The caller of a kernel with arguments behind pointers, as cuLaunchKernel takes them.
template <class... A> struct Caller {
    template <unsigned... I> struct Indices {};
    template <unsigned N, unsigned... I> struct Count : Count<N - 1, N - 1, I...> {};
    template <unsigned... I> struct Count<0, I...> {
        using Type = Indices<I...>;
    };
    template <unsigned... I>
    __attribute__((no_sanitize_thread)) static void call(void (*kernel)(A...), void *const *arguments, Indices<I...>) {
        kernel(*(A *)arguments[I]...);
    }
};
template <class... A>
__attribute__((no_sanitize_thread)) void emulator_call(void (*kernel)(A...), void *const *arguments) {
    Caller<A...>::call(kernel, arguments, typename Caller<A...>::template Count<sizeof...(A)>::Type());
}
// The kinds of a kernel's parameters, a letter each.
template <class T> struct Kind;
template <class T> struct Kind<T *> {
    static constexpr char letter = 'p';
};
template <> struct Kind<unsigned> {
    static constexpr char letter = 'u';
};
template <> struct Kind<float> {
    static constexpr char letter = 'f';
};
template <class... A> const char *emulator_parameters(void (*)(A...)) {
    static const char kinds[] = {Kind<A>::letter..., 0};
    return kinds;
}
