//! SparseGPT: Algorithm 1 with dX = 0.

use ndarray::ArrayView2;

use crate::linalg::Scalar;
use crate::reference::prune::{Pruned, prune};
use crate::reference::statistics::Statistics;
use crate::reference::{PruneConfig, PruneError};

/// Prunes `weight` (n x k) by SparseGPT. H is of whichever input the statistics saw: X^ for the dual-sparse
/// comparison, the dense-activation stream for the weight-only one. Drift statistics and `config.alpha` have no effect.
///
/// # Errors
/// As [`prune`].
pub fn sparsegpt<T: Scalar>(
    weight: ArrayView2<T>,
    statistics: &Statistics<T>,
    config: &PruneConfig,
) -> Result<Pruned<T>, PruneError> {
    let hessian = statistics.hessian.clone();
    prune(weight, &Statistics { sequences: statistics.sequences, hessian, residual: None }, config)
}
