// statistics: what one group of linears needs to know of its inputs, summed over tokens:
//
//   H = sum X^ X^T        dX X^T with dX = X~ - X^        diag(dX dX^T)
//
// dX is formed before it is multiplied: G - H would cancel. Sums over all tokens, divided by the number of sequences at
// the end, are the running mean without its roundings. Each entry is a pair (high, low) of floats, so that adding to it loses
// 2^-48 of it however much came before.
//
// Layout:   dense, sparse: tokens x k, row-major. H, dX X^T: k x k, high and low apart; diag: k, likewise.
//           pieces (version 2): 16-bit numbers, piece x capacity x stride, row-major, zero behind column k and behind the
//           last token up to a multiple of 32; stride is a multiple of 128.
//
// version 1  difference, column_squares, and gemm in f32. The check of version 2.
// version 2  split_*, then hessian_* and drift_* on tensor cores, whose inputs are sums of half-width pieces:
//
//            input   pieces of X^   pieces of dX   products for H   for dX X^T   what is lost
//            bf16    1 bf16         2 bf16         1                2            nothing
//            f16     1 f16          2 f16          1                2            nothing, below half of f16's range
//            f32     3 bf16         3 bf16         6                6            2^-24 of a product
//
//            The difference of two numbers of p bits is two numbers of p bits exactly: its rounding to p bits, and the
//            error of that. An f32 is three bf16 pieces exactly (8 bits each, and the exponent's range is the same; two f16
//            pieces would need scaling, and still lose bits). Of their nine products the six with 2^-16 or more count:
//            (low, high), (middle, middle), (high, low), then (middle, high), (high, middle), then (high, high).
//
//            Products of pieces are exact. A tensor core cuts where it adds, and nothing rounds to nearest: terms are cut
//            one (sm_80) or two bits behind the last bit of the largest of 8 or 16, and so is their sum. Sums of positive
//            terms shrink by it, the more the longer they run. So a sum stays there for one slab only (32 tokens; 16 with
//            three pieces), small products first; slabs are added in f32, to nearest; and after at most `capacity` tokens
//            the result is added to the pair. No error grows with the number of tokens:
//
//              |error| <= (22 + slabs between two flushes / 2) 2^-23 sum |x| |y|
//
//            (per block of 8 products: 9 terms cut by less than 2^-24 of the largest, and the sum by 2^-23; four blocks per
//            slab; 2^-24 per addition of a slab). An SGEMM that adds m tokens one by one has m / 2 in its place: more, from
//            46 tokens on. tests/cuda.rs measures both.
//
//            A block computes a tile of 128 x 128 by 8 warps, 64 x 32 each; of H the tiles on and below the diagonal.
//            Slabs of the tile's rows and columns come by asynchronous copies, STAGES - 1 ahead; one barrier per slab.
//            Groups of 8 numbers are permuted within a slab's row (^ row % 8), so that neither the copies nor the loads of
//            8 rows meet in one bank. The fragments of B stay in registers for all pieces of A.
//
//            Operations: k (k + 128) tokens for H, 4 k^2 tokens for dX X^T from bf16, 6 k (k + 128) and 12 k^2 from f32.
//            Bytes: 16 per entry of H and dX X^T and flush; pieces come from L2, 256 (P + Q) bytes per token and tile.
//            Expected, not measured: on an A100 70 % of the bf16 rate. On an H100 or H200 mma.sync itself reaches about
//            62 % of the rate of wgmma; shared memory (104 KB per 64 mma of a warp) and L2 leave 55 to 60 % of it.

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

// (high, low) += x: the error of high + x goes to low.
__device__ __forceinline__ void add_to_pair(float *high, float *low, float x) {
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

// The pieces of x: each the nearest number of type H to what those before it leave of x + rest.
template <class H, u32 PIECES>
__device__ __forceinline__ void split(u16 *to, u64 piece, float x, float rest) {
#pragma unroll
    for (u32 p = 0; p < PIECES; p++) {
        H part = nearest<H>(x);
        to[p * piece] = part.bits;
        x = (x - widen(part)) + rest; // exact: of the two either rest is zero, or x - part is a number of H
        rest = 0.0f;
    }
}

// T: type of the inputs. H: type of the pieces; X of X^, D of dX. Without `dense` there is no dX.
// A thread takes one channel and every eighth token of a chunk; squares: one sum per chunk and channel.
template <class T, class H, u32 X, u32 D>
__device__ __forceinline__ void split_both(const T *dense, const T *sparse, u16 *x, u16 *dx, float *squares, u32 tokens,
                                           u32 k, u32 stride, u32 capacity, u32 first) {
    typedef float Sums[8 * WARP];
    SHARED(Sums, sums);
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 j = blockIdx.x * WARP + lane;
    u64 piece = (u64)capacity * stride;
    u32 end = (first + tokens + CHUNK - 1) / CHUNK * CHUNK; // the rest of the last chunk is cleared
    float sum = 0.0f;
    for (u32 t = blockIdx.y * CHUNK + warp; t < (blockIdx.y + 1) * CHUNK && first + t < end; t += 8) {
        bool real = t < tokens && j < k;
        u64 from = (u64)t * k + j, to = (u64)(first + t) * stride + j;
        float sparse_x = real ? widen(sparse[from]) : 0.0f;
        split<H, X>(x + to, piece, sparse_x, 0.0f);
        if (!dense) continue;
        float dense_x = real ? widen(dense[from]) : 0.0f, d = dense_x - sparse_x;
        float rest = 0.0f;
        if (sizeof(T) == 2) { // what d lost: the pieces hold it too
            float subtracted = d - dense_x;
            rest = (dense_x - (d - subtracted)) - (sparse_x + subtracted);
        }
        split<H, D>(dx + to, piece, d, rest);
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
    for (u32 chunk = 0; chunk < chunks; chunk++) add_to_pair(high + j, low + j, squares[(u64)chunk * k + j]);
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

// (high, low) += sum over tokens of A^T B, for A of P pieces and B of Q: block (J, I) computes tile I, J.
// `stride` and `piece`, from row to row and from piece to piece, count groups of eight.
template <class H, u32 P, u32 Q, u32 SLAB, u32 STAGES, bool SYMMETRIC>
__device__ __forceinline__ void products(const Eight *a, const Eight *b, float *high, float *low, u32 k, u32 stride,
                                         u32 piece, u32 slabs) {
    constexpr u32 GROUPS = 16;             // of eight, in a row of a tile
    constexpr u32 OPERAND = SLAB * GROUPS; // of eight, in a slab of one piece
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
                       operand < P ? a + (operand * piece + from) : b + ((operand - P) * piece + from));
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
                if (row < k && column < k) add_to_pair(high + at, low + at, total[m][n][i]);
            }
}

#define PRODUCTS(H, P, Q, SLAB, STAGES, SYMMETRIC)                                                                     \
    (const Eight *a, const Eight *b, float *high, float *low, u32 k, u32 stride, u32 piece, u32 slabs) {               \
        products<H, P, Q, SLAB, STAGES, SYMMETRIC>(a, b, high, low, k, stride, piece, slabs);                          \
    }
extern "C" __global__ void __launch_bounds__(256, 2) hessian_bf16 PRODUCTS(Bf16, 1, 1, 32, 3, true)
extern "C" __global__ void __launch_bounds__(256, 2) drift_bf16 PRODUCTS(Bf16, 2, 1, 32, 2, false)
extern "C" __global__ void __launch_bounds__(256, 2) hessian_f16 PRODUCTS(F16, 1, 1, 32, 3, true)
extern "C" __global__ void __launch_bounds__(256, 2) drift_f16 PRODUCTS(F16, 2, 1, 32, 2, false)
extern "C" __global__ void __launch_bounds__(256, 2) hessian_f32 PRODUCTS(Bf16, 3, 3, 16, 2, true)
extern "C" __global__ void __launch_bounds__(256, 2) drift_f32 PRODUCTS(Bf16, 3, 3, 16, 2, false)
