// activation: per-token magnitude pruning.
//
//   t = sorted(|x|)[index], index = floor(k p_x);   out_j = x_j where |x_j| >= t, 0 elsewhere;   ties at t all stay.
//   A NaN is pruned; if t is NaN, everything is pruned.
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
    x += (u64)blockIdx.x * k;
    out += (u64)blockIdx.x * k;
    kept += (u64)blockIdx.x * k;
    u32 threshold = select_key<Magnitude<T>::BITS>(k, index, [&](u32 j) { return Magnitude<T>::key(x[j]); });
    auto keep = [&](u32 j) {
        u32 key = Magnitude<T>::key(x[j]);
        bool keep = key >= threshold && key <= Magnitude<T>::INFINITE;
        out[j] = keep ? x[j] : Magnitude<T>::zero();
        return keep;
    };
    u32 total = compact(k, keep, [&](u32 j, u32 place) { kept[place] = j; });
    if (threadIdx.x == 0) count[blockIdx.x] = total;
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
