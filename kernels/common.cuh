// Stands in front of every kernel file. Kernels include nothing, so that NVRTC compiles them without any header.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

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
