//! Magnitude pruning: the smallest weights of a layer are pruned. It needs no data.

use ndarray::ArrayView2;

use crate::linalg::Scalar;
use crate::reference::PruneError;
use crate::reference::mask::{NarrowGroups, Sparsity, Threshold, lowest_per_group, zero_pruned};
use crate::reference::prune::{Pruned, check_finite};

/// Prunes `weight` (n x k): |w| <= sorted\[floor(n k p)\] over the whole matrix, or in each row N of every M.
///
/// # Errors
/// Weights that are not finite, a sparsity out of range.
pub fn magnitude<T: Scalar>(
    weight: ArrayView2<T>,
    sparsity: Sparsity,
    narrow: NarrowGroups,
) -> Result<Pruned<T>, PruneError> {
    narrow.check(sparsity, weight.ncols())?;
    check_finite("weight", weight)?;
    let score = weight.mapv(T::abs);
    let mask = match sparsity {
        Sparsity::Unstructured(p) => Threshold::Inclusive.select(score.view(), p),
        Sparsity::NofM { n, m } => lowest_per_group(score.view(), m, n, narrow),
    };
    Ok(Pruned { weight: zero_pruned(weight, mask.view()), mask, score })
}
