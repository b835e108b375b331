// panel: Algorithm 1's loop over one block of columns, for j = 0 .. width - 1:
//
//   q = 0 where pruned, W_j where kept        e = (W_j - q) / L_jj
//   W_c += W_j (alpha D_jc) - e L_cj   for c > j, with W_j from before pruning; afterwards column j holds q
//
// With N:M (m > 0), at j = 0, m, 2 m, ...: S_c = W_c^2 scale_c for the m columns from j, and unless the mask is forced
// the n_zeros lowest of each row go, of equal ones the leftmost.
//
// Layout:   w, s (f32), mask (u8, 1 = pruned): n rows, row-major, `stride` numbers from row to row, from the block's first
//           column. lt (L^T) and d: row-major, `stride` from row to row, from the block's first diagonal entry.
//           e, before (W_j at its turn): n x width. scale: width.
// Rounding: W_j (alpha D_jc), e L_cj, their difference and the sum each round once, as in the reference: no fma.
//
// version 1  panel_any: a thread per row, everything in global memory; any width. The check of version 2.
// version 2  panel_32 .. panel_256: a warp per row, which stays in registers, `width / 32` columns per lane; rows of L^T and
//            alpha D come through shared memory in slices that the block's 8 rows share; W_j by shuffle. Per row:
//            2 width^2 operations, 3.5 width^2 bytes read from shared memory, and 17 width bytes moved. Slices are read
//            again by every block: width^2 bytes per row from L2.

extern "C" __global__ void __launch_bounds__(256)
    panel_any(float *w, u8 *mask, float *s, float *e, float *before, const float *lt, const float *d, const float *scale,
              u32 n, u32 width, u32 stride, float alpha, u32 n_zeros, u32 m, u32 forced) {
    u64 row = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    w += row * stride;
    mask += row * stride;
    s += row * stride;
    for (u32 j = 0; j < width; j++) {
        if (m && j % m == 0) {
            for (u32 c = j; c < j + m; c++) {
                float square = w[c] * w[c];
                s[c] = square * scale[c];
            }
            for (u32 c = j; c < j + m && !forced; c++) {
                u32 in_front = 0;
                for (u32 i = j; i < j + m; i++) in_front += s[i] < s[c] || (s[i] == s[c] && i < c);
                mask[c] = in_front < n_zeros;
            }
        }
        // ANCHOR: column
        float w_j = w[j], q = mask[j] ? 0.0f : w_j, e_j = (w_j - q) / lt[(u64)j * stride + j];
        e[row * width + j] = e_j;
        before[row * width + j] = w_j;
        w[j] = q;
        for (u32 c = j + 1; c < width; c++) {
            float alpha_d = alpha * d[(u64)j * stride + c];
            float residual = w_j * alpha_d, compensation = e_j * lt[(u64)j * stride + c];
            w[c] += residual - compensation;
        }
        // ANCHOR_END: column
    }
}

// SLOTS: columns per lane; column 32 u + lane is in slot u. SLICE: rows of L^T and D in shared memory at a time, a divisor
// of 32.
template <u32 SLOTS, u32 SLICE>
__device__ __forceinline__ void panel(float *w, u8 *mask, float *s, float *e, float *before, const float *lt,
                                      const float *d, const float *scale, u32 n, u32 width, u32 stride, float alpha,
                                      u32 n_zeros, u32 m, u32 forced) {
    constexpr u32 B = 32 * SLOTS;
    typedef float Slice[SLICE * B];
    SHARED(Slice, lt_slice);
    SHARED(Slice, d_slice);
    u32 lane = threadIdx.x % WARP;
    u64 row = (u64)blockIdx.x * 8 + threadIdx.x / WARP;
    bool real = row < n; // a warp after the last row takes part in the barriers
    w += row * stride;
    mask += row * stride;
    s += row * stride;
    e += row * width;
    before += row * width;

    float w_[SLOTS], e_[SLOTS], before_[SLOTS], s_[SLOTS];
    u32 pruned[SLOTS]; // a bit per lane
#pragma unroll
    for (u32 u = 0; u < SLOTS; u++) {
        u32 c = 32 * u + lane;
        bool inside = real && c < width;
        w_[u] = inside ? w[c] : 0.0f;
        pruned[u] = __ballot_sync(ALL_LANES, inside && (!m || forced) && mask[c]);
        e_[u] = before_[u] = s_[u] = 0.0f;
    }

#pragma unroll
    for (u32 u = 0; u < SLOTS; u++) { // the slot of column j
#pragma unroll 1
        for (u32 first = 32 * u; first < 32 * u + 32 && first < width; first += SLICE) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < SLICE * B; i += 256) {
                u32 j = first + i / B, c = i % B;
                bool inside = j < width && c < width && c >= j;
                u64 at = (u64)j * stride + c;
                lt_slice[i] = inside ? lt[at] : 0.0f;
                d_slice[i] = inside ? alpha * d[at] : 0.0f;
            }
            __syncthreads();
#pragma unroll 1
            for (u32 r = 0; r < SLICE && first + r < width; r++) {
                u32 j = first + r;
                if (m && j % m == 0) {
                    u32 in_front[SLOTS];
#pragma unroll
                    for (u32 v = u; v < SLOTS; v++) {
                        u32 c = 32 * v + lane;
                        in_front[v] = 0;
                        if (c >= j && c < j + m) {
                            float square = w_[v] * w_[v];
                            s_[v] = square * scale[c];
                        }
                    }
#pragma unroll 1
                    for (u32 i = j; i < j + m; i++) {
                        float other = 0.0f;
#pragma unroll
                        for (u32 v = u; v < SLOTS; v++)
                            if (v == i / 32) other = s_[v];
                        other = __shfl_sync(ALL_LANES, other, i % 32);
#pragma unroll
                        for (u32 v = u; v < SLOTS; v++)
                            in_front[v] += other < s_[v] || (other == s_[v] && i < 32 * v + lane);
                    }
#pragma unroll
                    for (u32 v = u; v < SLOTS; v++) {
                        u32 c = 32 * v + lane;
                        bool prune = !forced && c >= j && c < j + m && in_front[v] < n_zeros;
                        pruned[v] |= __ballot_sync(ALL_LANES, prune);
                    }
                }
                float w_j = __shfl_sync(ALL_LANES, w_[u], j % 32);
                float q = pruned[u] >> j % 32 & 1 ? 0.0f : w_j;
                float e_j = (w_j - q) / lt_slice[r * B + j];
                if (lane == j % 32) {
                    w_[u] = q;
                    e_[u] = e_j;
                    before_[u] = w_j;
                }
#pragma unroll
                for (u32 v = u; v < SLOTS; v++) {
                    u32 c = 32 * v + lane;
                    if (c > j) {
                        float residual = w_j * d_slice[r * B + c], compensation = e_j * lt_slice[r * B + c];
                        w_[v] += residual - compensation;
                    }
                }
            }
        }
    }

#pragma unroll
    for (u32 u = 0; u < SLOTS; u++) {
        u32 c = 32 * u + lane;
        if (real && c < width) {
            w[c] = w_[u];
            e[c] = e_[u];
            before[c] = before_[u];
            if (m) {
                s[c] = s_[u];
                mask[c] = pruned[u] >> lane & 1;
            }
        }
    }
}

#define PANEL(B, SLICE)                                                                                                \
    (float *w, u8 *mask, float *s, float *e, float *before, const float *lt, const float *d, const float *scale, u32 n, \
     u32 width, u32 stride, float alpha, u32 n_zeros, u32 m, u32 forced) {                                             \
        panel<B / 32, SLICE>(w, mask, s, e, before, lt, d, scale, n, width, stride, alpha, n_zeros, m, forced);        \
    }
extern "C" __global__ void __launch_bounds__(256) panel_32 PANEL(32, 32)
extern "C" __global__ void __launch_bounds__(256) panel_64 PANEL(64, 32)
extern "C" __global__ void __launch_bounds__(256) panel_128 PANEL(128, 32)
// Without the second bound the assembler for sm_120 makes room for three blocks, and spills.
extern "C" __global__ void __launch_bounds__(256, 2) panel_256 PANEL(256, 16)
