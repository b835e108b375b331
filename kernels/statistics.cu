// statistics: what one group of linears needs to know of its inputs, summed over tokens:
//
//   H = sum X^ X^T        dX X^T with dX = X~ - X^        diag(dX dX^T)
//
// dX is formed before it is multiplied: the difference of X~ X^T and H would cancel. Sums over all tokens, divided by the
// number of sequences at the end, are the running mean without its roundings.
//
// Layout:   dense, sparse: tokens x k, row-major. H, dX X^T: k x k, diag: k, of double-floats: the high and the low floats in
//           arrays of their own.
//           x, dx (version 2): splits of X^ and dX, 16-bit numbers, split x capacity x stride, row-major, zero after column k
//           and after the last token up to a multiple of 32; stride is a multiple of 128.
//
// version 1  difference, column_squares, and gemm in f32. The check of version 2.
// version 2  split_*, then hessian_* and drift_* on tensor cores. docs/gpu.md has the derivation and what to expect of it.

// ---- version 1

// Moves 12 bytes per entry.
extern "C" __global__ void __launch_bounds__(256)
    difference(const float *dense, const float *sparse, float *dx, u32 tokens, u32 k) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)tokens * k) dx[i] = dense[i] - sparse[i];
}

// A thread per channel, tokens in order, as the reference sums. Moves 4 bytes per entry, a warp reads neighbours.
extern "C" __global__ void __launch_bounds__(256) column_squares(const float *dx, float *squares, u32 tokens, u32 k) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= k) return;
    float sum = 0.0f;
    for (u32 token = 0; token < tokens; token++) {
        float x = dx[(u64)token * k + j];
        sum += x * x;
    }
    squares[j] += sum;
}

// ---- both

// The double-float (high, low) += x: TwoSum, whose error goes to low. Loses 2^-48 of the sum, whatever came before.
__device__ __forceinline__ void add_double_float(float *high, float *low, float x) {
    float before = *high, sum = before + x, added = sum - before;
    float error = (before - (sum - added)) + (x - added) + *low;
    *high = sum + error;
    *low = error - (*high - sum);
}

// out = (high + low) / count: rows x columns. Of a symmetric matrix only what is on and left of the diagonal is read.
extern "C" __global__ void __launch_bounds__(256)
    mean(const float *high, const float *low, float *out, u32 rows, u32 columns, float count, u32 symmetric) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)rows * columns) return;
    u32 row = i / columns, column = i % columns;
    u64 at = symmetric && column > row ? (u64)column * columns + row : i;
    out[i] = (high[at] + low[at]) / count;
}

// ---- version 2

constexpr u32 CHUNK = 32; // tokens of one block of split, and of one partial sum of squares

// The splits of x: each the nearest number of type H to what those before it leave. `apart`: from split to split.
//
//   inputs   splits of X^   splits of dX, a difference in f32
//   bf16     1 bf16         2 bf16         exact
//   f16      1 f16          2 f16          exact, below half of f16's range
//   f32      3 bf16         3 bf16         exact
template <class H, u32 SPLITS>
__device__ __forceinline__ void split(u16 *to, u64 apart, float x) {
#pragma unroll
    for (u32 p = 0; p < SPLITS; p++) {
        H part = nearest<H>(x);
        to[p * apart] = part.bits;
        x -= widen(part); // exact
    }
}

// T: type of the inputs. H: type of the splits; X of X^, D of dX. Without `dense` there is no dX.
// A thread takes one channel and every eighth token of a chunk; squares: one sum per chunk and channel.
template <class T, class H, u32 X, u32 D>
__device__ __forceinline__ void split_both(const T *dense, const T *sparse, u16 *x, u16 *dx, float *squares, u32 tokens,
                                           u32 k, u32 stride, u32 capacity, u32 first) {
    typedef float Sums[8 * WARP];
    SHARED(Sums, sums);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 j = blockIdx.x * WARP + lane;
    u64 apart = (u64)capacity * stride;
    u32 end = (first + tokens + CHUNK - 1) / CHUNK * CHUNK; // the rest of the last chunk is cleared
    float sum = 0.0f;
    for (u32 t = blockIdx.y * CHUNK + warp; t < (blockIdx.y + 1) * CHUNK && first + t < end; t += 8) {
        bool real = t < tokens && j < k;
        u64 from = (u64)t * k + j, to = (u64)(first + t) * stride + j;
        float sparse_x = real ? widen(sparse[from]) : 0.0f;
        split<H, X>(x + to, apart, sparse_x);
        if (!dense) continue;
        float dense_x = real ? widen(dense[from]) : 0.0f, d = dense_x - sparse_x;
        split<H, D>(dx + to, apart, d);
        sum += d * d;
    }
    if (!dense) return;
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && j < k) {
        for (u32 other = 1; other < 8; other++) sum += sums[other * WARP + lane];
        squares[(u64)blockIdx.y * k + j] = sum;
    }
}

#define SPLIT(T, H, X, D)                                                                                              \
    (const T *dense, const T *sparse, u16 *x, u16 *dx, float *squares, u32 tokens, u32 k, u32 stride, u32 capacity,    \
     u32 first) {                                                                                                      \
        split_both<T, H, X, D>(dense, sparse, x, dx, squares, tokens, k, stride, capacity, first);                     \
    }
extern "C" __global__ void __launch_bounds__(256) split_bf16 SPLIT(Bf16, Bf16, 1, 2)
extern "C" __global__ void __launch_bounds__(256) split_f16 SPLIT(F16, F16, 1, 2)
extern "C" __global__ void __launch_bounds__(256) split_f32 SPLIT(float, Bf16, 3, 3)

// (high, low) += the sums of all chunks. A thread per channel.
extern "C" __global__ void __launch_bounds__(256)
    add_squares(const float *squares, float *high, float *low, u32 chunks, u32 k) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= k) return;
    float h = high[j], l = low[j]; // in registers: loads of `squares` wait for no store
#pragma unroll 8
    for (u32 chunk = 0; chunk < chunks; chunk++) add_double_float(&h, &l, squares[(u64)chunk * k + j]);
    high[j] = h;
    low[j] = l;
}

template <class H> struct TensorCore;
template <> struct TensorCore<Bf16> {
    static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        multiply_bf16(c, a, b0, b1);
    }
};
template <> struct TensorCore<F16> {
    static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        multiply_f16(c, a, b0, b1);
    }
};

// (high, low) += sum over tokens of A^T B, for A of P splits and B of Q, small products first: those of splits p and q with
// p + q < max(P, Q). Block (J, I) computes tile I, J of 128 x 128; of a SYMMETRIC result those on and below the diagonal.
// `stride` and `apart`, from row to row and from split to split, are in groups of eight.
//
//   |error| <= (22 + slabs between two flushes / 2) 2^-23 sum |a| |b|
//
// Parallel: 8 warps, 64 x 32 of the tile each. Slabs (32 tokens; 16 with three splits) of the tile's rows and columns come by
// asynchronous copies, STAGES - 1 ahead; one barrier per slab. Groups of 8 numbers are permuted within a slab's row
// (^ row % 8), so that neither the copies nor the loads of 8 rows meet in one bank. The fragments of B stay in registers for
// all splits of A. A tensor core sums one slab at most; slabs are added in f32, and the double-float takes their sum.
template <class H, u32 P, u32 Q, u32 SLAB, u32 STAGES, bool SYMMETRIC>
__device__ __forceinline__ void products(const Eight *a, const Eight *b, float *high, float *low, u32 k, u32 stride,
                                         u32 apart, u32 slabs) {
    constexpr u32 GROUPS = 16;             // of eight, in a row of a tile
    constexpr u32 OPERAND = SLAB * GROUPS; // of eight, in a slab of one split
    constexpr u32 STAGE = (P + Q) * OPERAND, STEPS = SLAB / 16;
    constexpr u32 ORDERS = P > Q ? P : Q;
    typedef Eight Stages[STAGES * STAGE];
    SHARED(Stages, stages);
    if (SYMMETRIC && blockIdx.x > blockIdx.y) return;
    a += blockIdx.y * GROUPS;
    b += blockIdx.x * GROUPS;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 top = warp / 4 * 64, left = warp % 4 * 32; // of the warp's 64 x 32

    auto copy = [&](u32 slab) {
        Eight *to = stages + slab % STAGES * STAGE;
#pragma unroll
        for (u32 i = 0; i < STAGE; i += 256) {
            u32 at = i + threadIdx.x, operand = at / OPERAND, t = at / GROUPS % SLAB, group = at % GROUPS;
            u32 from = (slab * SLAB + t) * stride + group;
            copy_async(to + at - group + (group ^ t % 8),
                       operand < P ? a + (operand * apart + from) : b + ((operand - P) * apart + from));
        }
    };
    // The matrices of 8 x 8 from token `t` and group `group` on: `down` and `right` say which of four this lane points to.
    auto load = [&](u32 (&out)[4], u32 slab, u32 operand, u32 t, u32 group, u32 down, u32 right) {
        t += down * 8 + lane % 8;
        group += right;
        load_matrices(out, stages + slab % STAGES * STAGE + operand * OPERAND + t * GROUPS + (group ^ t % 8));
    };

    float total[4][4][4] = {};
#pragma unroll
    for (u32 slab = 0; slab < STAGES - 1; slab++) {
        if (slab < slabs) copy(slab);
        copy_commit();
    }
#pragma unroll 1
    for (u32 slab = 0; slab < slabs; slab++) {
        copy_wait<STAGES - 2>();
        __syncthreads(); // this slab is there for all, and all are done with the one before, whose place is free
        if (slab + STAGES - 1 < slabs) copy(slab + STAGES - 1);
        copy_commit();

        u32 columns[Q][STEPS][2][4];
#pragma unroll
        for (u32 q = 0; q < Q; q++)
#pragma unroll
            for (u32 step = 0; step < STEPS; step++)
#pragma unroll
                for (u32 pair = 0; pair < 2; pair++)
                    load(columns[q][step][pair], slab, P + q, 16 * step, left / 8 + 2 * pair, lane / 8 % 2, lane / 16);

#pragma unroll
        for (u32 m = 0; m < 4; m++) {
            float sum[4][4] = {};
#pragma unroll
            for (u32 i = 0; i < ORDERS; i++)
#pragma unroll
                for (u32 p = 0; p < P; p++) {
                    u32 q = ORDERS - 1 - i - p; // p + q, the order of the product, falls: order 2 is 2^-16 of order 0
                    if (q >= Q) continue;
#pragma unroll
                    for (u32 step = 0; step < STEPS; step++) {
                        u32 rows[4];
                        load(rows, slab, p, 16 * step, top / 8 + 2 * m, lane / 16, lane / 8 % 2);
#pragma unroll
                        for (u32 n = 0; n < 4; n++) {
                            const u32(&column)[4] = columns[q][step][n / 2];
                            TensorCore<H>::multiply(sum[n], rows, column[n % 2 * 2], column[n % 2 * 2 + 1]);
                        }
                    }
                }
#pragma unroll
            for (u32 n = 0; n < 4; n++)
#pragma unroll
                for (u32 i = 0; i < 4; i++) total[m][n][i] += sum[n][i];
        }
    }

#pragma unroll
    for (u32 m = 0; m < 4; m++)
#pragma unroll
        for (u32 n = 0; n < 4; n++)
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 row = blockIdx.y * 128 + top + 16 * m + lane / 4 + i / 2 * 8;
                u32 column = blockIdx.x * 128 + left + 8 * n + lane % 4 * 2 + i % 2;
                u64 at = (u64)row * k + column;
                if (row < k && column < k) add_double_float(high + at, low + at, total[m][n][i]);
            }
}

#define PRODUCTS(H, P, Q, SLAB, STAGES, SYMMETRIC)                                                                     \
    (const Eight *a, const Eight *b, float *high, float *low, u32 k, u32 stride, u32 apart, u32 slabs) {               \
        products<H, P, Q, SLAB, STAGES, SYMMETRIC>(a, b, high, low, k, stride, apart, slabs);                          \
    }
extern "C" __global__ void __launch_bounds__(256, 2) hessian_bf16 PRODUCTS(Bf16, 1, 1, 32, 3, true)
extern "C" __global__ void __launch_bounds__(256, 2) drift_bf16 PRODUCTS(Bf16, 2, 1, 32, 2, false)
extern "C" __global__ void __launch_bounds__(256, 2) hessian_f16 PRODUCTS(F16, 1, 1, 32, 3, true)
extern "C" __global__ void __launch_bounds__(256, 2) drift_f16 PRODUCTS(F16, 2, 1, 32, 2, false)
extern "C" __global__ void __launch_bounds__(256, 2) hessian_f32 PRODUCTS(Bf16, 3, 3, 16, 2, true)
extern "C" __global__ void __launch_bounds__(256, 2) drift_f32 PRODUCTS(Bf16, 3, 3, 16, 2, false)
