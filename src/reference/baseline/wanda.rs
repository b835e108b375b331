//! Wanda: weight magnitude times input norm, per row, no compensation.

use ndarray::{Array2, ArrayView2, Axis, Zip, s};
use rayon::prelude::*;

use crate::linalg::Scalar;
use crate::reference::PruneError;
use crate::reference::mask::{Sparsity, lowest};
use crate::reference::prune::{Pruned, check_finite};
use crate::reference::statistics::ChannelNorms;

/// Prunes `weight` (n x k) by the score |W_ij| sqrt(mean over sequences of sum x_j^2): in each row exactly
/// floor(k p), or N of every M, with the lowest score; equal scores go from the left. The rest stays as it is.
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
    // A row is one group for a fraction, and cut into groups of M for N:M.
    let (width, zeros) = match sparsity {
        Sparsity::Unstructured(p) => (k, (k as f64 * p).floor() as usize),
        Sparsity::NofM { n, m } => (m, n),
    };
    let mut mask = Array2::from_elem((n, k), false);
    mask.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(|(row, mut mask)| {
        for start in (0..k).step_by(width.max(1)) {
            let group = s![start..start + width];
            let score = score.slice(s![row, start..start + width]).to_vec();
            mask.slice_mut(group).assign(&lowest(&score, zeros));
        }
    });
    let mut pruned = weight.to_owned();
    Zip::from(&mut pruned).and(&mask).for_each(|w, &mask| {
        if mask {
            *w = T::zero();
        }
    });
    Ok(Pruned { weight: pruned, mask, score })
}
