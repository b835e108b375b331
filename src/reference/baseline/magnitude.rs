//! Magnitude pruning: the smallest weights of a layer go. Needs no data.

use ndarray::ArrayView2;

use crate::linalg::Scalar;
use crate::reference::PruneError;
use crate::reference::mask::{Sparsity, Threshold};
use crate::reference::prune::{Pruned, check_finite};
use crate::reference::statistics::ChannelNorms;

/// Prunes `weight` (n x k): |w| <= sorted\[floor(n k p)\] over the whole matrix, or in each row N of every M.
///
/// # Errors
/// Weights that are not finite, a sparsity out of range.
pub fn magnitude<T: Scalar>(weight: ArrayView2<T>, sparsity: Sparsity) -> Result<Pruned<T>, PruneError> {
    let p = match sparsity {
        // In groups magnitude is Wanda with all inputs alike.
        Sparsity::NofM { .. } => {
            let ones = ndarray::Array1::ones(weight.ncols());
            return super::wanda::wanda(weight, &ChannelNorms { sequences: 1, square_norms: ones }, sparsity);
        }
        Sparsity::Unstructured(p) => p,
    };
    sparsity.check(weight.ncols())?;
    check_finite("weight", weight)?;
    let score = weight.mapv(T::abs);
    let mask = Threshold::Inclusive.select(score.view(), p);
    let mut pruned = weight.to_owned();
    pruned.zip_mut_with(&mask, |w, &mask| {
        if mask {
            *w = T::zero();
        }
    });
    Ok(Pruned { weight: pruned, mask, score })
}
