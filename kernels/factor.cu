// factor: what stands between the statistics and the loop, around cuSOLVER's Cholesky factorisation.
//
// With J the reversal of the columns, J H J = M M^T gives H^-1 = L L^T with L^T = J M^-1 J: one factorisation and one
// triangular solve, as in the reference. The kernels here move k x k matrices, row-major.

// out_ij = scale * a[order_i, order_j]. Moves 8 bytes per entry, reads in any order within a row.
extern "C" __global__ void __launch_bounds__(256)
    permute_both(const float *a, const u32 *order, float *out, u32 k, float scale) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)k * k) return;
    out[i] = a[(u64)order[i / k] * k + order[i % k]] * scale;
}

// out[i, j] = w[i, order_j], or 0 where zero[j]: n x k.
extern "C" __global__ void __launch_bounds__(256)
    permute_columns_f32(const float *w, const u32 *order, const u8 *zero, float *out, u32 n, u32 k) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)n * k) return;
    u32 column = i % k;
    out[i] = zero[column] ? 0.0f : w[i / k * k + order[column]];
}

extern "C" __global__ void __launch_bounds__(256)
    permute_columns_u8(const u8 *mask, const u32 *order, u8 *out, u32 n, u32 k) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)n * k) return;
    out[i] = mask[i / k * k + order[i % k]];
}

// a_ii = diagonal_i.
extern "C" __global__ void __launch_bounds__(256) set_diagonal(float *a, const float *diagonal, u32 k) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < k) a[(u64)i * k + i] = diagonal[i];
}

// diagonal_i = a_ii.
extern "C" __global__ void __launch_bounds__(256) get_diagonal(const float *a, float *diagonal, u32 k) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < k) diagonal[i] = a[(u64)i * k + i];
}

// out = the identity.
extern "C" __global__ void __launch_bounds__(256) identity(float *out, u32 k) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)k * k) out[i] = i / k == i % k ? 1.0f : 0.0f;
}

// upper_ij = reversed[k-1-i, k-1-j] on and right of the diagonal, 0 left of it: L^T from M^-1.
extern "C" __global__ void __launch_bounds__(256) reverse_upper(const float *reversed, float *upper, u32 k) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)k * k) return;
    upper[i] = i % k >= i / k ? reversed[(u64)k * k - 1 - i] : 0.0f;
}

// U in place of Q, and the score's factor:   b_p = sum_j U_pj^2,   c_p = Q_pp / L_pp,
// scale_p = 1 / L_pp^2 + alpha (a_p - b_p + 2 c_p). A warp per row; the sum runs over lanes, then across them.
extern "C" __global__ void __launch_bounds__(256)
    strictly_upper(float *q, const float *lt, const float *a, float *scale, u32 k, float alpha) {
    u32 p = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (p >= k) return;
    float *row = q + (u64)p * k;
    float diagonal = row[p], l = lt[(u64)p * k + p], b = 0.0f;
    __syncwarp(); // the diagonal is read before it is cleared
    for (u32 j = lane; j < k; j += WARP) {
        if (j <= p) row[j] = 0.0f;
        else b += row[j] * row[j];
    }
    b = warp_sum(b);
    float c = diagonal / l;
    if (lane == 0) scale[p] = 1.0f / (l * l) + alpha * (a[p] - b + 2.0f * c);
}

// scale_p = 1 / L_pp^2: SparseGPT.
extern "C" __global__ void __launch_bounds__(256) plain_scale(const float *lt, float *scale, u32 k) {
    u32 p = blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= k) return;
    float l = lt[(u64)p * k + p];
    scale[p] = 1.0f / (l * l);
}

// first <- the lowest index of a value that is not finite; left alone where all are.
extern "C" __global__ void __launch_bounds__(256) find_not_finite(const float *a, u64 *first, u32 rows, u32 columns) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)rows * columns) return;
    if ((__float_as_uint(a[i]) & 0x7f800000u) == 0x7f800000u) atomicMin(first, i);
}
