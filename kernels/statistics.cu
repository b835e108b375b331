// statistics: what is not a matrix product in the statistics of one sequence.
//
//   dX = X~ - X^                                  formed before it is multiplied: G - H would cancel
//   diag(dX dX^T) <- keep diag(dX dX^T) + add sum over tokens of dX^2
//
// H and dX X^T follow by gemm in f32, with keep and add as its beta and alpha. Inputs are f32: their 24 bits would be
// three bf16 pieces, nine products where one f32 product does.
//
// Layout:   dense, sparse, dx: tokens x k, row-major; squares: k.

// Moves 12 bytes per entry.
extern "C" __global__ void __launch_bounds__(256)
    difference(const float *dense, const float *sparse, float *dx, u32 tokens, u32 k) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)tokens * k) dx[i] = dense[i] - sparse[i];
}

// A thread per channel, tokens in order, as the reference sums. Moves 4 bytes per entry, a warp reads neighbours.
extern "C" __global__ void __launch_bounds__(256)
    column_squares(const float *dx, float *squares, u32 tokens, u32 k, float keep, float add) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= k) return;
    float sum = 0.0f;
    for (u32 token = 0; token < tokens; token++) {
        float x = dx[(u64)token * k + j];
        sum += x * x;
    }
    squares[j] = keep * squares[j] + add * sum;
}
