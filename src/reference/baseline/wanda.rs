//! Wanda: weight magnitude times input norm, per row, no compensation.

use ndarray::{Array2, ArrayView2, Axis, Zip};

use crate::linalg::Scalar;
use crate::reference::activation::check_fraction;
use crate::reference::mask::{NarrowGroups, Sparsity, lowest_per_group, zero_pruned};
use crate::reference::prune::{Pruned, check_finite};
use crate::reference::statistics::ChannelNorms;
use crate::reference::{ConfigError, PruneError};

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
    narrow: NarrowGroups,
) -> Result<Pruned<T>, PruneError> {
    let k = weight.ncols();
    narrow.check(sparsity, k)?;
    let score = score(weight, norms)?;
    // For a fraction a row is one group.
    let (width, zeros) = match sparsity {
        Sparsity::Unstructured(p) => (k, (k as f64 * p).floor() as usize),
        Sparsity::NofM { n, m } => (m, n),
    };
    let mask = lowest_per_group(score.view(), width, zeros, narrow);
    Ok(Pruned { weight: zero_pruned(weight, mask.view()), mask, score })
}

fn score<T: Scalar>(weight: ArrayView2<T>, norms: &ChannelNorms<T>) -> Result<Array2<T>, PruneError> {
    let (n, k) = weight.dim();
    let channels = norms.square_norms.len();
    if channels != k {
        return Err(PruneError::Shape { what: "weight", expected: (n, channels), found: (n, k) });
    }
    check_finite("weight", weight)?;
    let score = weight.mapv(T::abs) * &norms.square_norms.mapv(T::sqrt);
    check_finite("score", score.view())?;
    Ok(score)
}

/// One trial of the search for the share of the scores' sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShareTrial {
    /// The share of each row's sum of scores that pruned weights may add up to.
    pub alpha: f64,
    /// The sparsity that it gives.
    pub sparsity: f64,
}

/// The variant of Wanda that prunes each row by its share of the scores (`use_variant`): of the sorted scores as many as
/// add up to at most alpha of the row's sum, all ties with the last of them too. alpha is found by bisection of 0 ..
/// 0.8 from 0.4, until the sparsity is within 0.001 of the one asked for, or the interval narrower than that. Returns
/// the trials, the last of which counts.
///
/// # Errors
/// As [`wanda`], and [`ConfigError::Share`] for a sparsity so low that a row has no score small enough.
pub fn wanda_by_share<T: Scalar>(
    weight: ArrayView2<T>,
    norms: &ChannelNorms<T>,
    sparsity: f64,
) -> Result<(Pruned<T>, Vec<ShareTrial>), PruneError> {
    check_fraction("weight sparsity", sparsity)?;
    let score = score(weight, norms)?;
    let mut sorted = score.clone();
    sorted.rows_mut().into_iter().for_each(|mut row| {
        if let Some(row) = row.as_slice_mut() {
            row.sort_unstable_by(T::total_order);
        }
    });
    let mut shares = sorted.clone();
    shares.accumulate_axis_inplace(Axis(1), |&before, sum| *sum += before);
    let totals = score.sum_axis(Axis(1));
    let select = |alpha: f64| -> Result<Array2<bool>, ConfigError> {
        let mut mask = Array2::from_elem(score.raw_dim(), false);
        for (row, mut mask) in mask.rows_mut().into_iter().enumerate() {
            let most = totals[row] * T::of(alpha);
            let count = shares.row(row).iter().filter(|share| **share <= most).count();
            let last = count.checked_sub(1).ok_or(ConfigError::Share { row, alpha })?;
            let threshold = sorted[(row, last)];
            Zip::from(&mut mask).and(score.row(row)).for_each(|pruned, &score| *pruned = score <= threshold);
        }
        Ok(mask)
    };
    let (mut alpha, mut low, mut high) = (0.4, 0.0, 0.8);
    let mut trials = Vec::new();
    loop {
        let mask = select(alpha)?;
        let reached = mask.iter().filter(|pruned| **pruned).count() as f64 / mask.len().max(1) as f64;
        trials.push(ShareTrial { alpha, sparsity: reached });
        if (reached - sparsity).abs() <= 0.001 || high - low < 0.001 {
            return Ok((Pruned { weight: zero_pruned(weight, mask.view()), mask, score }, trials));
        }
        if reached > sparsity {
            high = alpha;
        } else {
            low = alpha;
        }
        alpha = (low + high) / 2.0;
    }
}
