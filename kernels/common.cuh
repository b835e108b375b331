// Stands in front of every kernel file. Kernels include nothing, so that NVRTC compiles them without any header.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;

#define WARP 32u
#define ALL_LANES 0xffffffffu

// The only way to declare shared memory: the emulator watches it. Type must be one word, so arrays need a typedef.
#ifndef EMULATED
#define SHARED(Type, name) __shared__ Type name
#endif

// Half-width numbers are their bits.
struct Bf16 {
    u16 bits;
};
struct F16 {
    u16 bits;
};

// The hardware's conversions of f16; the emulator has its own.
#ifndef EMULATED
__device__ __forceinline__ float f16_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ u16 float_to_f16(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

// from[I] where `there` is not 0, else +0. As a load with a predicate: the compiler makes a branch of it, and in every branch
// the address anew.
#ifndef EMULATED
template <int I> __device__ __forceinline__ float load_if(u32 there, const float *from) {
    float x;
    asm("{ .reg .pred p; setp.ne.u32 p, %1, 0; mov.f32 %0, 0f00000000; @p ld.global.nc.f32 %0, [%2 + %3]; }"
        : "=f"(x)
        : "r"(there), "l"(from), "n"(4 * I));
    return x;
}
template <int I, class T> __device__ __forceinline__ T load_if(u32 there, const T *from) {
    u16 bits;
    asm("{ .reg .pred p; setp.ne.u32 p, %1, 0; mov.u16 %0, 0; @p ld.global.nc.u16 %0, [%2 + %3]; }"
        : "=h"(bits)
        : "r"(there), "l"(from), "n"(2 * I));
    return T{bits};
}
#else
template <int I, class T> T load_if(u32 there, const T *from) { return there ? from[I] : T(); }
#endif

// The same number as a float.
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(Bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float widen(F16 x) { return f16_to_float(x.bits); }

// The nearest number of type T, of two equally near ones the even.
template <class T> __device__ __forceinline__ T nearest(float x);
template <> __device__ __forceinline__ float nearest<float>(float x) { return x; }
template <> __device__ __forceinline__ F16 nearest<F16>(float x) { return F16{float_to_f16(x)}; }
template <> __device__ __forceinline__ Bf16 nearest<Bf16>(float x) {
    u32 bits = __float_as_uint(x);
    if (x != x) return Bf16{(u16)(bits >> 16 | 0x40)}; // stays a NaN
    return Bf16{(u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Keys whose order as integers is the order of |x|, NaN last; and the key of infinity.
template <class T> struct Magnitude;
template <> struct Magnitude<float> {
    static constexpr int BITS = 32;
    static constexpr u32 INFINITE = 0x7f800000u;
    static __device__ __forceinline__ u32 key(float x) { return __float_as_uint(x) & 0x7fffffffu; }
    static __device__ __forceinline__ float zero() { return 0.0f; }
};
template <> struct Magnitude<Bf16> {
    static constexpr int BITS = 16;
    static constexpr u32 INFINITE = 0x7f80u;
    static __device__ __forceinline__ u32 key(Bf16 x) { return x.bits & 0x7fffu; }
    static __device__ __forceinline__ Bf16 zero() { return Bf16{0}; }
};
template <> struct Magnitude<F16> {
    static constexpr int BITS = 16;
    static constexpr u32 INFINITE = 0x7c00u;
    static __device__ __forceinline__ u32 key(F16 x) { return x.bits & 0x7fffu; }
    static __device__ __forceinline__ F16 zero() { return F16{0}; }
};

// A key whose order as an integer is the order of x. -0 and +0 have one key: they are equal scores.
__device__ __forceinline__ u32 order_key(float x) {
    u32 bits = x == 0.0f ? 0u : __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The sum of the values of this lane and those below it.
__device__ __forceinline__ u32 warp_scan(u32 value) {
    u32 lane = threadIdx.x % WARP;
    for (u32 by = 1; by < WARP; by *= 2) {
        u32 below = __shfl_up_sync(ALL_LANES, value, by);
        if (lane >= by) value += below;
    }
    return value;
}

// The sum over a warp, in one fixed order; every lane gets it.
__device__ __forceinline__ float warp_sum(float value) {
    for (u32 with = WARP / 2; with > 0; with /= 2) value += __shfl_xor_sync(ALL_LANES, value, with);
    return value;
}

// Eight half-width numbers: what one asynchronous copy moves, and one row of a matrix that `load_matrices` takes.
struct alignas(16) Eight {
    u32 pairs[4];
};

// What only the hardware does; the emulator has its own. Copies to shared memory land when the thread waits for their group:
// copy_wait<LEFT> leaves the last LEFT groups under way.
#ifndef EMULATED
__device__ __forceinline__ u32 shared_address(const void *at) { return (u32)__cvta_generic_to_shared(at); }
__device__ __forceinline__ void copy_async(Eight *to, const Eight *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <u32 LEFT> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
// Four 8 x 8 matrices, transposed: lane l points to row l % 8 of matrix l / 8, and gets the numbers in rows 2 (l % 4) and
// 2 (l % 4) + 1 of column l / 4 of each.
__device__ __forceinline__ void load_matrices(u32 (&out)[4], const Eight *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// C (16 x 8) += A (16 x 16) B (16 x 8) on tensor cores, by a warp; fragments as PTX lays them out for mma.m16n8k16. Lane l
// holds, with g = l / 4 and t = 2 (l % 4): A at rows g and g + 8, columns t, t + 1, then t + 8, t + 9; B at those rows of
// column g; C at rows g and g + 8, columns t, t + 1.
#define MULTIPLY(name, type)                                                                                           \
    __device__ __forceinline__ void name(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {                           \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "         \
            "{%8, %9}, {%0, %1, %2, %3};"                                                                              \
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                           \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                           \
    }
MULTIPLY(multiply_bf16, "bf16")
MULTIPLY(multiply_f16, "f16")
#endif

// One digit of a radix selection.
struct Digit {
    u32 digit; // of the element looked for
    u32 rank;  // its rank among the elements with that digit
};

// Finds the element of rank `rank`, from 0, among those that `histogram` counts by digit. For one whole warp.
__device__ __forceinline__ Digit find_digit(const u32 *histogram, u32 rank) {
    u32 first = threadIdx.x % WARP * 8, sum = 0;
    for (u32 i = 0; i < 8; i++) sum += histogram[first + i];
    u32 end = warp_scan(sum), below = end - sum, digit = first;
    u32 owner = __ffs(__ballot_sync(ALL_LANES, rank < end)) - 1;
    while (digit < first + 7 && rank >= below + histogram[digit]) below += histogram[digit++];
    Digit found;
    found.digit = __shfl_sync(ALL_LANES, digit, owner);
    found.rank = rank - __shfl_sync(ALL_LANES, below, owner);
    return found;
}

// The key of rank `rank`, from 0, among key(j), j < k: radix selection by a whole block, 8 bits per pass. Thread t asks for the
// keys of j = t + blockDim.x i. Integer counts: the same result every time.
template <int BITS, class Key> __device__ __forceinline__ u32 select_key(u32 k, u32 rank, Key key) {
    typedef u32 Histogram[256];
    SHARED(Histogram, histogram);
    SHARED(Digit, found);
    u32 found_so_far = 0; // its digits
    for (int shift = BITS - 8; shift >= 0; shift -= 8) {
        for (u32 i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
        __syncthreads();
        for (u32 j = threadIdx.x; j < k; j += blockDim.x) {
            u32 key_j = key(j);
            if ((u64)key_j >> (shift + 8) == found_so_far) atomicAdd(&histogram[key_j >> shift & 255], 1u);
        }
        __syncthreads();
        if (threadIdx.x / WARP == 0) {
            Digit digit = find_digit(histogram, rank);
            if (threadIdx.x == 0) found = digit;
        }
        __syncthreads();
        found_so_far = found_so_far << 8 | found.digit;
        rank = found.rank;
    }
    return found_so_far;
}

// Compaction by a whole block: calls write(j, place) for every j < k with keep(j), place counting them in ascending
// order. Gives back how many they are.
template <class Keep, class Write> __device__ __forceinline__ u32 compact(u32 k, Keep keep, Write write) {
    typedef u32 PerWarp[WARP];
    SHARED(PerWarp, kept_by_warp);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, total = 0;
    for (u32 first = 0; first < k; first += blockDim.x) {
        u32 j = first + threadIdx.x;
        bool kept = j < k && keep(j);
        u32 kept_lanes = __ballot_sync(ALL_LANES, kept);
        if (lane == 0) kept_by_warp[warp] = __popc(kept_lanes);
        __syncthreads();
        u32 place = total + __popc(kept_lanes & ((1u << lane) - 1));
        for (u32 w = 0; w < blockDim.x / WARP; w++) {
            if (w < warp) place += kept_by_warp[w];
            total += kept_by_warp[w];
        }
        if (kept) write(j, place);
        __syncthreads();
    }
    return total;
}
