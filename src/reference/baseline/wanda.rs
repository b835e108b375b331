//! Wanda: weight magnitude times input norm, per row, no compensation.

use ndarray::ArrayView2;

use crate::linalg::Scalar;
use crate::reference::PruneError;
use crate::reference::mask::{Sparsity, lowest_per_group, zero_pruned};
use crate::reference::prune::{Pruned, check_finite};
use crate::reference::statistics::ChannelNorms;

/// Prunes `weight` (n x k) by the score |W_ij| sqrt(mean over sequences of sum x_j^2): in each row exactly
/// floor(k p) weights, or N of every M, with the lowest score; of equal scores the left ones. The others keep their
/// values.
///
/// # Errors
/// Shapes that do not fit, weights that are not finite, a sparsity out of range.
pub fn wanda<T: Scalar>(
    weight: ArrayView2<T>,
    norms: &ChannelNorms<T>,
    sparsity: Sparsity,
) -> Result<Pruned<T>, PruneError> {
    let (n, k) = weight.dim();
    if norms.square_norms.len() != k {
        return Err(PruneError::Shape {
            what: "weight",
            expected: (n, norms.square_norms.len()),
            found: (n, k),
        });
    }
    sparsity.check(k)?;
    check_finite("weight", weight)?;
    let norm = norms.square_norms.mapv(T::sqrt);
    let score = weight.mapv(T::abs) * &norm;
    check_finite("score", score.view())?;
    // For a fraction a row is one group.
    let (width, zeros) = match sparsity {
        Sparsity::Unstructured(p) => (k, (k as f64 * p).floor() as usize),
        Sparsity::NofM { n, m } => (m, n),
    };
    let mask = lowest_per_group(score.view(), width, zeros);
    Ok(Pruned { weight: zero_pruned(weight, mask.view()), mask, score })
}
