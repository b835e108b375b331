// spmspv: y = W (x * mask) for one token, the decoding product.
//
//   y_i = sum over the selected j of W_ij x_j          x: the list that select.cu leaves on the device
//
// Layout:   W: n x k, column by column, in one of the formats of src/reference/spmspv. A tile is 256 rows, a segment the
//           part of one column in one tile; segment (j, t) has number j * tiles + t. Several matrices with one x (q, k, v;
//           gate, up) are one matrix whose rows are stacked.
//           columns (u32), x (f32): the list; count: its length. y (f32): n.
// Parallel: grid (tiles, splits), 8 warps a block. The list is dealt in equal runs to the 8 * splits warps of a tile: it is
//           the active columns that are split, so every warp has as much to do at any sparsity. Sums over the warps of a
//           block, then over the splits by the block that comes last, always in one order: the same input gives the same
//           bits. There is no faster mode: no atomics on floats that could be saved.
// Sums:     f32, fused multiply-add: one rounding per term (products of 16-bit numbers are exact).
// x must be finite: a stored zero, or filling, times infinity is NaN.
//
// What bounds it, in bf16: bytes, and instructions. An H200 issues 132 x 128 lane-instructions a cycle, at 1.75 GHz 6.9 for
// every byte of 4.3 TB/s. Counted in the machine code for sm_90 (NVRTC 13.0), heads and loop included:
//
//             bytes per weight of an active column    lane-instructions, there are    are needed     of the bytes' rate
//   gemv, skip   2                                    13.8 per weight                 4.3            all
//   index        1.52 at 50 %, so 3.0 per nonzero     20.8 per nonzero                22             95 %
//   bitmap       1.17 at 50 %, so 2.3 per nonzero     16.1 per nonzero                22             73 %
//
// The last column is a bound, not a measurement. Shared memory bounds index too: per 32 nonzeros two loads, and two accesses of
// about two turns each, 6 of the 6.6 cycles that an SM has for their bytes. popc bounds bitmap: 16 lanes a cycle, 8 of the
// 16 cycles that an SM has for the bytes of a segment.
//
// version 0  gemv_*: all of x, dense W: the product that sparsity has to beat
// version 1  skip_*: dense W, whose columns that are not selected are not read
// version 2  index_*: packed values and a byte of row index beside each
// version 3  bitmap_*: packed values, a bit per weight, a byte per 32 rows

typedef float Sums[8 * 256]; // per warp and row of the tile

// y <- the sums of all warps of all splits of this tile. partial: (tiles, splits, 256); arrived: (tiles), zero before
// and after.
__device__ __forceinline__ void finish(const Sums &sums, float *y, float *partial, u32 *arrived, u32 n) {
    SHARED(u32, last);
    u32 tile = blockIdx.x, splits = gridDim.y, row = threadIdx.x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 warp = 0; warp < 8; warp++) sum += sums[warp * 256 + row];
    if (splits > 1) {
        partial += (u64)tile * splits * 256;
        partial[blockIdx.y * 256 + row] = sum;
        __syncthreads();
        if (row == 0) {
            __threadfence(); // what the block wrote, before it says so
            last = atomicAdd(&arrived[tile], 1u) == splits - 1;
            __threadfence(); // and what the others wrote, after they said so
        }
        __syncthreads();
        if (!last) return;
        sum = 0.0f;
#pragma unroll 8
        for (u32 split = 0; split < splits; split++) sum += partial[split * 256 + row];
        if (row == 0) arrived[tile] = 0;
    }
    if (tile * 256 + row < n) y[tile * 256 + row] = sum;
}

// All formats: a warp processes its run of the list. The lanes fetch 32 entries at once, and their places: the
// number of the segment, or of the column. The heads of FLIGHT segments (what says where the values are) are loaded while the
// FLIGHT segments before are on their way.
// LISTED: x is the list's; else it is all of x, and columns is not read.
template <bool LISTED, class Format>
__device__ __forceinline__ void product(const Format format, const u32 *__restrict__ columns,
                                        const float *__restrict__ x, u32 length, float *y, float *partial,
                                        u32 *arrived, u32 n) {
    constexpr u32 FLIGHT = Format::FLIGHT;
    SHARED(Sums, sums);
    u32 lane = threadIdx.x % WARP;
    float *own = sums + threadIdx.x / WARP * 256;
    typename Format::Sum sum;
    format.begin(sum, own);

    // The first length % warps warps have one entry more.
    u32 warp = blockIdx.y * 8 + threadIdx.x / WARP, warps = gridDim.y * 8, more = length % warps;
    u32 first = length / warps * warp + (warp < more ? warp : more), end = first + length / warps + (warp < more);
    for (; first < end; first += WARP) {
        u32 entries = end - first < WARP ? end - first : WARP, of_lane = 0;
        float x_of_lane = 0.0f;
        if (lane < entries) {
            of_lane = format.place(LISTED ? columns[first + lane] : first + lane);
            x_of_lane = x[first + lane];
        }
        typename Format::Head heads[FLIGHT];
        auto load_heads = [&](u32 i) {
#pragma unroll
            for (u32 f = 0; f < FLIGHT; f++) {
                u32 place = __shfl_sync(ALL_LANES, of_lane, i + f);
                heads[f] = {};
                if (i + f < entries) heads[f] = format.head(place);
            }
        };
        load_heads(0);
#pragma unroll 1
        for (u32 i = 0; i < entries; i += FLIGHT) {
            typename Format::Head now[FLIGHT];
            typename Format::Segment segments[FLIGHT];
#pragma unroll
            for (u32 f = 0; f < FLIGHT; f++) {
                now[f] = heads[f];
                format.load(segments[f], now[f]);
            }
            if (i + FLIGHT < entries) load_heads(i + FLIGHT);
#pragma unroll
            for (u32 f = 0; f < FLIGHT; f++)
                format.add(sum, own, segments[f], now[f], __shfl_sync(ALL_LANES, x_of_lane, i + f));
        }
    }
    format.end(sum, own);
    finish(sums, y, partial, arrived, n);
}

// Versions 0 and 1: a lane has 8 rows: one 16-byte load per column of f16 and bf16, two of f32; their sums in registers.

// The 8 numbers of 16 or 32 bytes.
__device__ __forceinline__ void unpack(const uint4 (&quads)[2], float (&w)[8], float) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        w[4 * i] = __uint_as_float(quads[i].x);
        w[4 * i + 1] = __uint_as_float(quads[i].y);
        w[4 * i + 2] = __uint_as_float(quads[i].z);
        w[4 * i + 3] = __uint_as_float(quads[i].w);
    }
}
template <class T> __device__ __forceinline__ void unpack(const uint4 (&quads)[1], float (&w)[8], T) {
    u32 pairs[4] = {quads[0].x, quads[0].y, quads[0].z, quads[0].w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        w[2 * i] = widen(T{(u16)pairs[i]});
        w[2 * i + 1] = widen(T{(u16)(pairs[i] >> 16)});
    }
}

// w: columns of `stride` numbers, n rounded up to a multiple of 8.
template <class T> struct Dense {
    static constexpr u32 QUADS = sizeof(T) / 2, FLIGHT = 4 / QUADS; // 64 bytes of a lane are on their way
    const T *__restrict__ w;
    u32 stride;

    struct Head {
        bool there;
        u32 column;
    };
    struct Segment {
        uint4 quads[QUADS];
    };
    struct Sum {
        float of_row[8];
    };
    static __device__ __forceinline__ u32 row() { return threadIdx.x % WARP * 8; }
    __device__ __forceinline__ u32 place(u32 column) const { return column; }
    __device__ __forceinline__ void begin(Sum &sum, float *) const { sum = {}; }
    __device__ __forceinline__ Head head(u32 column) const {
        return Head{blockIdx.x * 256 + row() < stride, column};
    }
    __device__ __forceinline__ void load(Segment &segment, const Head &head) const {
        segment = {};
        if (!head.there) return;
        const uint4 *from = (const uint4 *)(w + (head.column * stride + blockIdx.x * 256 + row()));
#pragma unroll
        for (u32 i = 0; i < QUADS; i++) segment.quads[i] = from[i];
    }
    __device__ __forceinline__ void add(Sum &sum, float *, const Segment &segment, const Head &, float x) const {
        float weights[8];
        unpack(segment.quads, weights, T());
#pragma unroll
        for (u32 r = 0; r < 8; r++) sum.of_row[r] = fmaf(weights[r], x, sum.of_row[r]);
    }
    __device__ __forceinline__ void end(const Sum &sum, float *own) const {
#pragma unroll
        for (u32 r = 0; r < 8; r++) own[row() + r] = sum.of_row[r];
    }
};

#define GEMV(T)                                                                                                       \
    (const T *w, const float *x, float *y, float *partial, u32 *arrived, u32 n, u32 k) {                              \
        product<false>(Dense<T>{w, (n + 7) / 8 * 8}, nullptr, x, k, y, partial, arrived, n);                          \
    }
extern "C" __global__ void __launch_bounds__(256, 4) gemv_f32 GEMV(float)
extern "C" __global__ void __launch_bounds__(256, 4) gemv_bf16 GEMV(Bf16)
extern "C" __global__ void __launch_bounds__(256, 4) gemv_f16 GEMV(F16)

#define SKIP(T)                                                                                                       \
    (const T *w, const u32 *columns, const float *x, const u32 *count, float *y, float *partial, u32 *arrived,        \
     u32 n) {                                                                                                         \
        product<true>(Dense<T>{w, (n + 7) / 8 * 8}, columns, x, *count, y, partial, arrived, n);                      \
    }
extern "C" __global__ void __launch_bounds__(256, 4) skip_f32 SKIP(float)
extern "C" __global__ void __launch_bounds__(256, 4) skip_bf16 SKIP(Bf16)
extern "C" __global__ void __launch_bounds__(256, 4) skip_f16 SKIP(F16)

// Version 2: a warp takes a segment in steps of 32 neighbouring values: all of one column, so of different rows, which are
// added to the warp's own 256 sums in shared memory, without atomics. Rows ascend, so at 50 % the 32 rows of a step lie within
// about 64: a bank is hit twice, seldom more. (4 values a lane would take a quarter of the loads, but spread a step over 256
// rows: four hits and more; and a segment of 132 values would take a second round for 4.)

template <class T> struct Index {
    static constexpr u32 FLIGHT = 2;
    static constexpr i32 STEPS = 8;
    const T *__restrict__ values;
    const u8 *__restrict__ rows;
    const u32 *__restrict__ offsets;

    struct Head {
        u32 begin; // in values
        i32 left;  // values from this lane's first on
    };
    struct Segment {
        T value[STEPS];
        u32 row[STEPS];
    };
    struct Sum {};
    __device__ __forceinline__ u32 place(u32 column) const { return column * gridDim.x + blockIdx.x; }
    __device__ __forceinline__ void begin(Sum &, float *own) const {
        for (u32 row = threadIdx.x % WARP; row < 256; row += WARP) own[row] = 0.0f;
        __syncwarp();
    }
    __device__ __forceinline__ Head head(u32 segment) const {
        u32 begin = offsets[segment] * 8, end = offsets[segment + 1] * 8;
        return Head{begin, (i32)(end - begin - threadIdx.x % WARP)};
    }
    __device__ __forceinline__ void load(Segment &segment, const Head &head) const {
        const T *value = values + (head.begin + threadIdx.x % WARP);
        const u8 *row = rows + (head.begin + threadIdx.x % WARP);
#pragma unroll
        for (i32 step = 0; step < STEPS; step++) {
            if (step * 32 >= head.left) break;
            segment.value[step] = value[step * 32];
            segment.row[step] = row[step * 32];
        }
    }
    __device__ __forceinline__ void add(Sum &, float *own, const Segment &segment, const Head &head, float x) const {
#pragma unroll
        for (i32 step = 0; step < STEPS; step++) {
            if (step * 32 >= head.left) break;
            float &sum = own[segment.row[step]];
            sum = fmaf(widen(segment.value[step]), x, sum);
        }
        __syncwarp(); // the next segment has the same rows on other lanes
    }
    __device__ __forceinline__ void end(const Sum &, float *) const {}
};

#define INDEX(T)                                                                                                      \
    (const T *values, const u8 *rows, const u32 *offsets, const u32 *columns, const float *x, const u32 *count,       \
     float *y, float *partial, u32 *arrived, u32 n) {                                                                 \
        product<true>(Index<T>{values, rows, offsets}, columns, x, *count, y, partial, arrived, n);                   \
    }
extern "C" __global__ void __launch_bounds__(256, 4) index_f32 INDEX(float)
extern "C" __global__ void __launch_bounds__(256, 4) index_bf16 INDEX(Bf16)
extern "C" __global__ void __launch_bounds__(256, 4) index_f16 INDEX(F16)

// Version 3: half a warp has 4 of the 8 words of a segment, in one load; a lane has the same two neighbouring rows of each of
// its words, so one popc finds the values of two rows; 8 sums stay in registers.

template <class T> struct Bitmap {
    static constexpr u32 FLIGHT = 2;
    const T *__restrict__ values;
    const uint4 *__restrict__ bitmap;
    const u32 *__restrict__ prefix;
    const u32 *__restrict__ offsets;

    struct Head {
        u32 begin;  // in values
        u32 before; // a byte per word
        uint4 words;
    };
    struct Segment {
        T of_row[8];
    };
    struct Sum {
        float of_row[8];
    };
    __device__ __forceinline__ u32 place(u32 column) const { return column * gridDim.x + blockIdx.x; }
    __device__ __forceinline__ void begin(Sum &sum, float *) const { sum = {}; }
    __device__ __forceinline__ Head head(u32 segment) const {
        u32 half = segment * 2 + threadIdx.x % WARP / 16;
        return Head{offsets[segment] * 8, prefix[half], bitmap[half]};
    }
    __device__ __forceinline__ void load(Segment &segment, const Head &head) const {
        u32 words[4] = {head.words.x, head.words.y, head.words.z, head.words.w};
        u32 even = 1u << threadIdx.x % 16 * 2, odd = even * 2;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            // The value of the odd row comes after those of all rows above; that of the even row, if there is one, is the
            // last of these.
            u32 after = head.begin + (head.before >> 8 * i & 255) + __popc(words[i] & (odd - 1));
            segment.of_row[2 * i] = load_if<-1>(words[i] & even, values + after);
            segment.of_row[2 * i + 1] = load_if<0>(words[i] & odd, values + after);
        }
    }
    __device__ __forceinline__ void add(Sum &sum, float *, const Segment &segment, const Head &, float x) const {
#pragma unroll
        for (u32 r = 0; r < 8; r++) sum.of_row[r] = fmaf(widen(segment.of_row[r]), x, sum.of_row[r]);
    }
    __device__ __forceinline__ void end(const Sum &sum, float *own) const {
        u32 lane = threadIdx.x % WARP, first = lane / 16 * 128 + lane % 16 * 2;
#pragma unroll
        for (u32 r = 0; r < 8; r++) own[first + r / 2 * 32 + r % 2] = sum.of_row[r];
    }
};

#define BITMAP(T)                                                                                                     \
    (const T *values, const u32 *bitmap, const u32 *prefix, const u32 *offsets, const u32 *columns, const float *x,   \
     const u32 *count, float *y, float *partial, u32 *arrived, u32 n) {                                               \
        product<true>(Bitmap<T>{values, (const uint4 *)bitmap, prefix, offsets}, columns, x, *count, y, partial,      \
                      arrived, n);                                                                                    \
    }
extern "C" __global__ void __launch_bounds__(256, 4) bitmap_f32 BITMAP(float)
extern "C" __global__ void __launch_bounds__(256, 4) bitmap_bf16 BITMAP(Bf16)
extern "C" __global__ void __launch_bounds__(256, 4) bitmap_f16 BITMAP(F16)
