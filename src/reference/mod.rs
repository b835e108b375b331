//! The algorithm, written to be read.
//!
//! Every equation of the paper stands here once, in the order in which it is used, in
//! plain code over `f32` or `f64`; the same text runs the real models. The `f64` instance is the oracle that other
//! implementations are compared with. The `f32` instance measures how much error arithmetic alone makes. Where the
//! paper and the original code differ, both exist, and a field of [`PruneConfig`] chooses.
//!
//! Read in this order:
//!
//! 1. [`activation`] what a linear layer sees at run time: each token's largest entries
//! 2. [`statistics`] what pruning needs of the calibration data
//! 3. [`order`] in which order the columns are processed
//! 4. [`factor`](mod@factor) from H to L with H^-1 = L L^T
//! 5. [`score`](mod@score) what the output residual adds: Q, U, a, b, c, D, and the score S
//! 6. [`mask`] which weights are pruned
//! 7. [`prune`](mod@prune) Algorithm 1, which puts the six together
//! 8. [`exact`] what it approximates: Eq. 3 taken literally, and the best weights for a given mask
//! 9. [`baseline`] SparseGPT, Wanda, magnitude and GPTAQ on the same inputs
//! 10. [`teal`] thresholds that make activation pruning independent of the token
//! 11. [`spmspv`] the product that dual sparsity speeds up: y = W (x * mask) with weights stored without their zeros
//!
//! # Notation
//!
//! | symbol | shape | meaning |
//! |---|---|---|
//! | W | n x k | weight of one linear layer, a row per output channel: y = W x |
//! | X~ | k x m | dense input: what the layer sees in the original model |
//! | X^ | k x m | sparse input: what it sees in the model pruned so far, after activation pruning |
//! | dX = X~ - X^ | k x m | activation difference |
//! | H = X^ X^T | k x k | Hessian of the layer's objective |
//! | L | k x k | lower Cholesky factor of the *inverse*: H^-1 = L L^T |
//! | Q, U, D | k x k | dX X^T L; its strictly upper part; U L^T |
//! | a, b, c | k | diag(dX dX^T); row sums of U^2; diag(Q) / diag(L) |
//! | S | n x k | score: the loss that pruning a weight costs |
//! | p_w, p_x | | weight and activation sparsity: fractions of zeros |
//! | B | | block size of mask selection and lazy update |
//!
//! Activations are stored transposed, a row per token, as a model produces them. "Processing order" is the order of
//! [`order`]; everything else is in the original column order.

pub mod activation;
pub mod baseline;
pub mod config;
pub mod error;
pub mod exact;
pub mod factor;
pub mod mask;
pub mod method;
pub mod order;
pub mod prune;
pub mod score;
pub mod spmspv;
pub mod statistics;
pub mod teal;

pub use config::{Alpha, DeadChannels, Dialect, ExistingZeros, FailedFactor, LazyUpdate, PruneConfig};
pub use error::{ConfigError, PruneError};
pub use factor::FactorError;
pub use mask::{NarrowGroups, Sparsity, Threshold};
pub use method::Method;
pub use order::ColumnOrder;
pub use prune::{LoopTrace, Prepared, Pruned};
pub use statistics::{ChannelNorms, ResidualStatistics, Statistics};
