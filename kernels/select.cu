// select: the active inputs of one token, as a list, for spmspv.cu.
//
//   h = round(round(x / sqrt(mean(x^2) + eps)) g)                              RMSNorm; without g: h = x
//   top:    those with |h| >= t, t = sorted(|h|)[index], index = floor(k p_x); ties at t all stay; a NaN is pruned, and
//           everything where t is NaN                                           (as activation.cu)
//   above:  those with not |h| <= t, for a calibrated t; a NaN stays            (TEAL)
//   Of both: without those that are zero.
//
// Layout:   x, g, h: k numbers of type T. columns (u32), values (f32): the list, ascending, from the front of k; count: how
//           many they are. It stays on the device: the product takes its length from there.
// Rounding: squares, sum and scale in f32; to T after the scale and after g, as a model that computes in T does.
//
// version 1  one block of 1024 threads. Per token: k read, 3 passes over h for 16-bit types (two digits and the list) and 5
//            for f32, by the threads that wrote it, from cache; 6 + 2 k / 1024 barriers per pass of the list. Moves 2 k numbers
//            of type T once and 8 bytes per entry of the list: for k = 4096 in bf16 at 50 % 33 KB, which takes as long
//            as its dozen latencies, not as its bytes.

// h <- RMSNorm of x. A thread meets in h only what it wrote itself, at j = threadIdx.x + 1024 i.
template <class T> __device__ void rms_norm(const T *x, const T *g, T *h, u32 k, float eps) {
    typedef float PerWarp[WARP];
    SHARED(PerWarp, squares);
    float sum = 0.0f;
    for (u32 j = threadIdx.x; j < k; j += 1024) {
        float x_j = widen(x[j]);
        sum += x_j * x_j;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) squares[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = warp_sum(squares[threadIdx.x % WARP]);
    float scale = 1.0f / sqrtf(sum / k + eps);
    for (u32 j = threadIdx.x; j < k; j += 1024) {
        float scaled = widen(nearest<T>(widen(x[j]) * scale));
        h[j] = nearest<T>(scaled * widen(g[j]));
    }
}

// h is written where there is a g, and else is x.
template <class T>
__device__ void select(const T *x, const T *g, T *h, u32 *columns, float *values, u32 *count, u32 k, float eps, u32 top,
                       u32 index, float threshold) {
    if (g) rms_norm(x, g, h, k, eps);
    u32 lowest = 0;
    if (top) lowest = select_key<Magnitude<T>::BITS>(k, index, [&](u32 j) { return Magnitude<T>::key(h[j]); });
    auto keep = [&](u32 j) {
        u32 key = Magnitude<T>::key(h[j]);
        bool kept = top ? key >= lowest && key <= Magnitude<T>::INFINITE : !(fabsf(widen(h[j])) <= threshold);
        return kept && key != 0;
    };
    u32 total = compact(k, keep, [&](u32 j, u32 place) {
        columns[place] = j;
        values[place] = widen(h[j]);
    });
    if (threadIdx.x == 0) *count = total;
}

#define SELECT(T)                                                                                                     \
    (const T *x, const T *g, T *h, u32 *columns, float *values, u32 *count, u32 k, float eps, u32 top, u32 index,     \
     float threshold) {                                                                                               \
        select(x, g, h, columns, values, count, k, eps, top, index, threshold);                                       \
    }
extern "C" __global__ void __launch_bounds__(1024) select_f32 SELECT(float)
extern "C" __global__ void __launch_bounds__(1024) select_bf16 SELECT(Bf16)
extern "C" __global__ void __launch_bounds__(1024) select_f16 SELECT(F16)
