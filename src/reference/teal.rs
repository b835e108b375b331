//! TEAL: activation pruning with one threshold per tensor, calibrated, instead of one per token.
//!
//! Calibration counts the magnitudes of a tensor in a histogram; the threshold t for a wanted sparsity is read off
//! it, and at run time the entries with |x| > t stay. No token is sorted, and a single token can be sparser or denser than
//! wanted. [`greedy_allocation`] chooses the sparsity of each projection of a layer. For a whole model
//! see [`calibrate::thresholds`](crate::calibrate::thresholds).

use ndarray::{ArrayView2, ArrayViewMut2, s};

use super::ConfigError;
use super::activation::check_fraction;
use crate::linalg::Scalar;

/// Low bits of an f32 magnitude that a bin does not tell apart. What is left is bf16's: a bin per bf16 number.
const DROPPED_BITS: u32 = 16;
/// One bin for every pattern of the higher bits, without the sign.
const BINS: usize = 1 << (31 - DROPPED_BITS);

/// How often each magnitude occurred in one tensor.
///
/// The bins are logarithmic, 128 to an octave: the range need not be known beforehand, and each is 0.4 to 0.8 % wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MagnitudeHistogram {
    bins: Vec<u64>,
    total: u64,
}

impl Default for MagnitudeHistogram {
    fn default() -> Self {
        MagnitudeHistogram { bins: vec![0; BINS], total: 0 }
    }
}

impl MagnitudeHistogram {
    /// Counts the entries of `x` (tokens x k). NaN counts as larger than any number.
    pub fn update<T: Scalar>(&mut self, x: ArrayView2<T>) {
        for x in x {
            let magnitude = x.widen().abs() as f32;
            self.bins[(magnitude.to_bits() >> DROPPED_BITS) as usize] += 1;
        }
        self.total += x.len() as u64;
    }

    /// Entries counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The threshold t at which floor(p * total) of the counted entries have |x| <= t, up to the entries of one bin:
    /// within it they are taken as evenly spread. 0 for p = 0, and for an empty histogram.
    ///
    /// # Errors
    /// [`ConfigError::Fraction`] when `sparsity` is outside \[0, 1).
    pub fn threshold(&self, sparsity: f64) -> Result<f64, ConfigError> {
        check_fraction("activation sparsity", sparsity)?;
        let wanted = (self.total as f64 * sparsity).floor() as u64;
        if wanted == 0 {
            return Ok(0.0);
        }
        let mut below = 0;
        for (bin, &count) in self.bins.iter().enumerate() {
            if below + count >= wanted {
                let edge = |bin: usize| f64::from(f32::from_bits((bin as u32) << DROPPED_BITS));
                let (low, high) = (edge(bin), edge(bin + 1));
                let share = (wanted - below) as f64 / count as f64;
                // Past the largest number there is no upper edge.
                return Ok(if high.is_finite() { low + share * (high - low) } else { low });
            }
            below += count;
        }
        Ok(0.0) // not reached: the bins sum to the total, which is at least `wanted`
    }
}

/// Zeroes the entries of `x` (tokens x k) with |x| <= t, except in the first `dense_tokens` tokens. TEAL keeps the first
/// half of a prompt dense.
// ANCHOR: prune_below
pub fn prune_below<T: Scalar>(mut x: ArrayViewMut2<T>, threshold: f64, dense_tokens: usize) {
    let first = dense_tokens.min(x.nrows());
    // In f64, so that the cut does not depend on the type.
    x.slice_mut(s![first.., ..]).mapv_inplace(|x| if x.widen().abs() <= threshold { T::zero() } else { x });
}
// ANCHOR_END: prune_below

/// Distributes an activation sparsity over the projections of one decoder layer (TEAL's greedy procedure).
///
/// `sizes` are the numbers of weights of the projections, `target` the sparsity wanted of the layer: the fraction of its
/// weights that are multiplied by a zero. All projections start dense. In each step one of them becomes sparser, by `step` of the layer's
/// weights (the last step may be smaller): of the projections that can still become sparser, the one that then has the
/// smallest `error`. As every step saves the same number of weights, that is the least error per weight. `error` measures the
/// layer's output error for a trial of the sparsities; of equal errors the first projection's wins.
///
/// # Errors
/// [`ConfigError`]: a target outside \[0, 1), a step that is not positive, or steps so coarse that no projection can
/// take another while staying below 1.
pub fn greedy_allocation(
    sizes: &[usize],
    target: f64,
    step: f64,
    mut error: impl FnMut(&[f64]) -> f64,
) -> Result<Vec<f64>, ConfigError> {
    check_fraction("activation sparsity", target)?;
    if step.is_nan() || step <= 0.0 {
        return Err(ConfigError::NotPositive { what: "step of the allocation", value: step });
    }
    let layer: f64 = sizes.iter().map(|&size| size as f64).sum();
    let mut sparsity = vec![0.0; sizes.len()];
    if layer == 0.0 {
        return Ok(sparsity);
    }
    for taken in 0.. {
        let grown = (target - f64::from(taken) * step).min(step) * layer;
        if grown <= 0.0 {
            break;
        }
        let mut cheapest: Option<(usize, f64, f64)> = None;
        for (i, &size) in sizes.iter().enumerate() {
            let before = sparsity[i];
            let after = before + grown / size as f64;
            if after >= 1.0 {
                continue;
            }
            sparsity[i] = after;
            let cost = error(&sparsity);
            sparsity[i] = before;
            if cheapest.is_none_or(|(_, _, least)| cost < least || (least.is_nan() && !cost.is_nan())) {
                cheapest = Some((i, after, cost));
            }
        }
        let Some((i, after, _)) = cheapest else { return Err(ConfigError::Step { step, target }) };
        sparsity[i] = after;
    }
    Ok(sparsity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use ndarray::{Array2, array};

    #[test]
    fn the_threshold_meets_the_sparsity_up_to_one_bin() {
        let x = Array2::from_shape_fn((40, 250), |(i, j)| {
            let u = ((i * 250 + j) * 7919 % 10007) as f64 / 10007.0 + 1e-6;
            if j % 2 == 0 { -u.ln() } else { u.ln() }
        });
        let mut histogram = MagnitudeHistogram::default();
        let (first, second) = x.view().split_at(ndarray::Axis(0), 13);
        histogram.update(first);
        histogram.update(second);
        assert_eq!(histogram.total(), 10_000);
        for p in [0.0, 0.01, 0.25, 0.5, 0.9, 0.999] {
            let t = histogram.threshold(p).unwrap();
            let zeros = |t: f64| x.iter().filter(|x| x.abs() <= t).count() as i64;
            // A bin is at most 2^-7 of its magnitude wide.
            let bin = zeros(t * (1.0 + 1.0 / 128.0)) - zeros(t * (1.0 - 1.0 / 128.0));
            let off = zeros(t) - (10_000.0 * p) as i64;
            assert!(off.abs() <= bin, "p = {p}: {off} entries off, {bin} in the bins around t = {t}");
            let mut pruned = x.clone();
            prune_below(pruned.view_mut(), t, 0);
            assert_eq!(pruned.iter().filter(|x| **x == 0.0).count() as i64, zeros(t));
        }
    }

    #[test]
    fn the_threshold_lies_between_two_values_of_different_bins() {
        let mut histogram = MagnitudeHistogram::default();
        histogram.update(array![[0.5f32, -4.0, 1.0, -2.0]].view());
        for (p, goes, stays) in [(0.25, 0.5, 1.0), (0.5, 1.0, 2.0), (0.75, 2.0, 4.0)] {
            let t = histogram.threshold(p).unwrap();
            assert!(goes <= t && t < stays, "p = {p}, t = {t}");
        }
        assert_eq!(histogram.threshold(0.24), Ok(0.0));
        assert!(histogram.threshold(1.0).is_err());
        assert_eq!(MagnitudeHistogram::default().threshold(0.5), Ok(0.0));
    }

    #[test]
    fn within_a_bin_entries_are_taken_as_evenly_spread() {
        let bin = 1.0 / 128.0; // from 1 to 2 there are 128
        let mut histogram = MagnitudeHistogram::default();
        histogram.update(Array2::from_shape_fn((1, 8), |(_, j)| 1.0 + bin * j as f64 / 8.0).view());
        for p in [0.125, 0.5, 0.75] {
            assert_eq!(histogram.threshold(p), Ok(1.0 + p * bin));
        }
    }

    #[test]
    fn zeros_infinities_and_nan_have_bins() {
        let mut histogram = MagnitudeHistogram::default();
        histogram.update(array![[0.0, -0.0, f64::INFINITY, f64::NAN, 1e300, 5e-324]].view());
        assert_eq!(histogram.total(), 6);
        assert!(histogram.threshold(0.5).unwrap() < 1e-38); // three are zero as f32
        assert_eq!(histogram.threshold(0.99), Ok(f64::INFINITY));
    }

    #[test]
    fn dense_tokens_stay() {
        let mut x = array![[0.1, -2.0], [0.1, -0.5], [-3.0, 0.5]];
        prune_below(x.view_mut(), 0.5, 1);
        assert_eq!(x, array![[0.1, -2.0], [0.0, 0.0], [-3.0, 0.0]]);
        prune_below(x.view_mut(), 9.0, 7);
        assert_eq!(x[(0, 1)], -2.0);
    }

    #[test]
    fn the_allocation_grows_what_costs_least_per_weight_and_meets_the_target() {
        // Error 4 s^2 for one projection and s^2 for the other: the optimum has the first at a quarter of the
        // second for equal sizes.
        let error = |s: &[f64]| 4.0 * s[0] * s[0] + s[1] * s[1];
        let s = greedy_allocation(&[100, 100], 0.4, 0.01, error).unwrap();
        assert_abs_diff_eq!(s[..], [0.16, 0.64][..], epsilon = 0.02);
        // Three times the weights: a third of the sparsity per step, so the step costs less there.
        let s = greedy_allocation(&[100, 300], 0.02, 0.02, |s| s[0] * s[0] + s[1] * s[1]).unwrap();
        assert_eq!(s, [0.0, 0.02 * 400.0 / 300.0]);
        for target in [0.0, 0.1, 0.33, 0.5, 0.9] {
            let sizes = [64, 32, 32, 64, 176];
            let s = greedy_allocation(&sizes, target, 0.007, |s| s.iter().map(|s| s * s * s).sum()).unwrap();
            let met: f64 = s.iter().zip(sizes).map(|(s, size)| s * size as f64).sum::<f64>() / 368.0;
            // Each of at most 130 steps adds two roundings of numbers below 1.
            assert_abs_diff_eq!(met, target, epsilon = 260.0 * f64::EPSILON);
            assert!(s.iter().all(|s| (0.0..1.0).contains(s)));
        }
    }

    #[test]
    fn a_failed_measurement_is_the_last_choice() {
        let error = |s: &[f64]| if s[0] > 0.0 { f64::NAN } else { s[1] };
        assert_eq!(greedy_allocation(&[10, 10], 0.25, 0.25, error), Ok(vec![0.0, 0.5]));
        // Of equal errors the first projection's wins.
        assert_eq!(greedy_allocation(&[10, 10], 0.25, 0.25, |_| 1.0), Ok(vec![0.5, 0.0]));
    }

    #[test]
    fn senseless_allocations_are_refused() {
        let error = |_: &[f64]| 0.0;
        assert!(greedy_allocation(&[1], 1.0, 0.1, error).is_err());
        for step in [0.0, -1.0, f64::NAN] {
            assert!(greedy_allocation(&[1], 0.5, step, error).is_err());
        }
        // A step of 0.8 weights fits each projection once; the third finds no room.
        let coarse = greedy_allocation(&[1, 1], 0.9, 0.4, error);
        assert_eq!(coarse, Err(ConfigError::Step { step: 0.4, target: 0.9 }));
        assert_eq!(greedy_allocation(&[], 0.5, 0.1, error), Ok(vec![]));
    }
}
