// activation: per-token magnitude pruning.
//
//   t = sorted(|x|)[index], index = floor(k p_x);   out_j = x_j where |x_j| >= t, 0 elsewhere;   ties at t all stay.
//   A NaN goes; where t is NaN everything goes.
//
// Layout:   x, out: tokens x k, row-major. kept: tokens x k, the kept columns of each token in ascending order from the
//           front of its row; count: tokens, how many they are (ties can keep more than k - index).
// Parallel: a block of 256 threads per token.
//
// version 1  activation_counting_*: counts, for every entry, the entries that are no larger. O(k^2) per token; the
//            check of version 2.
// version 2  activation_*: radix selection over the bits of |x|, 8 per pass (4 passes for f32, 2 for f16 and bf16),
//            then one pass that writes and compacts. Integer counts: the same bits every time.
//            Moves per token of f32: 6 reads of 4 k bytes, of which 5 hit a cache while k <= 32768, 4 k written, and
//            4 bytes per kept index.

template <class T> __device__ void activation_counting(const T *x, T *out, u32 k, u32 index) {
    x += (u64)blockIdx.x * k;
    out += (u64)blockIdx.x * k;
    for (u32 j = threadIdx.x; j < k; j += blockDim.x) {
        u32 key = Magnitude<T>::key(x[j]), no_larger = 0;
        for (u32 i = 0; i < k; i++) no_larger += Magnitude<T>::key(x[i]) <= key;
        out[j] = no_larger > index && key <= Magnitude<T>::INFINITE ? x[j] : Magnitude<T>::zero();
    }
}

template <class T> __device__ void activation(const T *x, T *out, u32 *kept, u32 *count, u32 k, u32 index) {
    typedef u32 Histogram[256];
    typedef u32 PerWarp[8];
    SHARED(Histogram, histogram);
    SHARED(PerWarp, kept_by_warp);
    SHARED(Digit, found);
    x += (u64)blockIdx.x * k;
    out += (u64)blockIdx.x * k;
    kept += (u64)blockIdx.x * k;
    u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;

    u32 threshold = 0, rank = index; // threshold: the digits found so far
    for (int shift = Magnitude<T>::BITS - 8; shift >= 0; shift -= 8) {
        histogram[thread] = 0;
        __syncthreads();
        for (u32 j = thread; j < k; j += 256) {
            u32 key = Magnitude<T>::key(x[j]);
            if ((u64)key >> (shift + 8) == threshold) atomicAdd(&histogram[key >> shift & 255], 1u);
        }
        __syncthreads();
        if (warp == 0) {
            Digit digit = find_digit(histogram, rank);
            if (lane == 0) found = digit;
        }
        __syncthreads();
        threshold = threshold << 8 | found.digit;
        rank = found.rank;
    }

    u32 total = 0;
    for (u32 first = 0; first < k; first += 256) {
        u32 j = first + thread;
        bool keep = false;
        if (j < k) {
            u32 key = Magnitude<T>::key(x[j]);
            keep = key >= threshold && key <= Magnitude<T>::INFINITE;
            out[j] = keep ? x[j] : Magnitude<T>::zero();
        }
        u32 kept_lanes = __ballot_sync(ALL_LANES, keep);
        if (lane == 0) kept_by_warp[warp] = __popc(kept_lanes);
        __syncthreads();
        u32 place = total + __popc(kept_lanes & ((1u << lane) - 1));
        for (u32 w = 0; w < 8; w++) {
            if (w < warp) place += kept_by_warp[w];
            total += kept_by_warp[w];
        }
        if (keep) kept[place] = j;
        __syncthreads();
    }
    if (thread == 0) count[blockIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(256)
    activation_counting_f32(const float *x, float *out, u32 k, u32 index) {
    activation_counting(x, out, k, index);
}
extern "C" __global__ void __launch_bounds__(256)
    activation_counting_bf16(const Bf16 *x, Bf16 *out, u32 k, u32 index) {
    activation_counting(x, out, k, index);
}
extern "C" __global__ void __launch_bounds__(256)
    activation_counting_f16(const F16 *x, F16 *out, u32 k, u32 index) {
    activation_counting(x, out, k, index);
}
extern "C" __global__ void __launch_bounds__(256)
    activation_f32(const float *x, float *out, u32 *kept, u32 *count, u32 k, u32 index) {
    activation(x, out, kept, count, k, index);
}
extern "C" __global__ void __launch_bounds__(256)
    activation_bf16(const Bf16 *x, Bf16 *out, u32 *kept, u32 *count, u32 k, u32 index) {
    activation(x, out, kept, count, k, index);
}
extern "C" __global__ void __launch_bounds__(256)
    activation_f16(const F16 *x, F16 *out, u32 *kept, u32 *count, u32 k, u32 index) {
    activation(x, out, kept, count, k, index);
}
