// score: S_ij = W_ij^2 * scale_j for one block of columns (Eq. 7).
//
// Layout:   w, s: n rows of `width` columns, row-major, `stride` numbers from row to row; scale: width.
// Parallel: a thread per entry. Moves 8 bytes per entry. Rounds after the square and after the product.

extern "C" __global__ void __launch_bounds__(256)
    score(const float *w, const float *scale, float *s, u32 n, u32 width, u32 stride) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (u64)n * width) return;
    u32 column = i % width;
    u64 at = i / width * stride + column;
    float square = w[at] * w[at];
    s[at] = square * scale[column];
}
