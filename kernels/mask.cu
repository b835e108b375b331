// mask: which weights of a block of columns go.
//
//   inclusive:  M = S <= sorted(S)[rank]
//   exact:      the rank + 1 lowest scores; of equal ones the earlier, first row first, then first column
//
// Layout:   s (f32) and mask (u8, 1 = pruned): n rows of `width` columns, row-major, `stride` numbers from row to row.
//           selection: { digits of the threshold's key found so far, rank among the keys that begin with them }.
//
// version 1  mask_counting: counts, for every score, those in front of it. O((n width)^2); the check of version 2.
// version 2  radix selection over order-preserving keys, 8 bits per pass: four times mask_histogram and mask_digit,
//            then mask_inclusive; or mask_count_ties, mask_scan, mask_exact. No sort; integer counts: the same bits
//            every time. Moves 4 reads of 4 bytes per score for the threshold, and 5 or 9 bytes per score after it.

extern "C" __global__ void __launch_bounds__(256)
    mask_counting(const float *s, u8 *mask, u32 n, u32 width, u32 stride, u32 rank, u32 exact) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x, numel = (u64)n * width;
    if (i >= numel) return;
    u64 at = i / width * stride + i % width;
    u32 key = order_key(s[at]);
    u64 in_front = 0;
    for (u64 j = 0; j < numel; j++) {
        u32 other = order_key(s[j / width * stride + j % width]);
        in_front += other < key || (exact && other == key && j < i);
    }
    mask[at] = in_front <= rank;
}

// Prunes nothing.
extern "C" __global__ void __launch_bounds__(256) mask_clear(u8 *mask, u32 n, u32 width, u32 stride) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)n * width) mask[i / width * stride + i % width] = 0;
}

// Adds to `histogram` (256) how often each value of the next digit follows the digits found so far. Any grid.
extern "C" __global__ void __launch_bounds__(256)
    mask_histogram(const float *s, const u32 *selection, u32 *histogram, u32 n, u32 width, u32 stride, u32 shift) {
    typedef u32 Histogram[256];
    SHARED(Histogram, counts);
    counts[threadIdx.x] = 0;
    __syncthreads();
    u32 found = selection[0];
    u64 numel = (u64)n * width;
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < numel; i += (u64)gridDim.x * 256) {
        u32 key = order_key(s[i / width * stride + i % width]);
        if ((u64)key >> (shift + 8) == found) atomicAdd(&counts[key >> shift & 255], 1u);
    }
    __syncthreads();
    if (counts[threadIdx.x]) atomicAdd(&histogram[threadIdx.x], counts[threadIdx.x]);
}

// Appends the digit, and clears the histogram for the next pass. One warp.
extern "C" __global__ void __launch_bounds__(32) mask_digit(u32 *histogram, u32 *selection) {
    Digit found = find_digit(histogram, selection[1]);
    __syncwarp();
    if (threadIdx.x == 0) {
        selection[0] = selection[0] << 8 | found.digit;
        selection[1] = found.rank;
    }
    for (u32 i = threadIdx.x; i < 256; i += WARP) histogram[i] = 0;
}

extern "C" __global__ void __launch_bounds__(256)
    mask_inclusive(const float *s, const u32 *selection, u8 *mask, u32 n, u32 width, u32 stride) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)n * width) return;
    u64 at = i / width * stride + i % width;
    mask[at] = order_key(s[at]) <= selection[0];
}

// How many scores of each row equal the threshold (n). A warp per row.
extern "C" __global__ void __launch_bounds__(256)
    mask_count_ties(const float *s, const u32 *selection, u32 *ties, u32 n, u32 width, u32 stride) {
    u32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= n) return;
    u32 count = 0;
    for (u32 first = 0; first < width; first += WARP) {
        u32 j = first + lane;
        bool tie = j < width && order_key(s[(u64)row * stride + j]) == selection[0];
        count += __popc(__ballot_sync(ALL_LANES, tie));
    }
    if (lane == 0) ties[row] = count;
}

// ties <- the sum of the rows above. One block of 256 threads, each with a run of rows.
extern "C" __global__ void __launch_bounds__(256) mask_scan(u32 *ties, u32 n) {
    typedef u32 PerWarp[8];
    SHARED(PerWarp, warp_sums);
    u32 run = (n + 255) / 256, first = threadIdx.x * run, sum = 0;
    u32 end = first + run < n ? first + run : n;
    for (u32 row = first; row < end; row++) sum += ties[row];
    u32 above = warp_scan(sum);
    if (threadIdx.x % WARP == WARP - 1) warp_sums[threadIdx.x / WARP] = above;
    above -= sum;
    __syncthreads();
    for (u32 w = 0; w < threadIdx.x / WARP; w++) above += warp_sums[w];
    for (u32 row = first; row < end; row++) {
        u32 here = ties[row];
        ties[row] = above;
        above += here;
    }
}

// Below the threshold all, at it the first selection[1] + 1. A warp per row; ties: those of the rows above (n).
extern "C" __global__ void __launch_bounds__(256)
    mask_exact(const float *s, const u32 *selection, const u32 *ties, u8 *mask, u32 n, u32 width, u32 stride) {
    u32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= n) return;
    u32 threshold = selection[0], take = selection[1] + 1, before = ties[row];
    for (u32 first = 0; first < width; first += WARP) {
        u32 j = first + lane;
        u64 at = (u64)row * stride + j;
        u32 key = j < width ? order_key(s[at]) : ALL_LANES;
        u32 tied = __ballot_sync(ALL_LANES, j < width && key == threshold);
        u32 place = before + __popc(tied & ((1u << lane) - 1));
        if (j < width) mask[at] = key < threshold || (key == threshold && place < take);
        before += __popc(tied);
    }
}
