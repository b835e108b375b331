//! TEAL's own histogram: signed values in bins of equal width, and the thresholds read off it.
//!
//! [`reference::teal`](crate::reference::teal) counts magnitudes in logarithmic bins instead, which needs no second pass
//! and assumes no symmetry. This is what the original computes, for those who port it.

use ndarray::ArrayView2;

use crate::linalg::Scalar;
use crate::reference::ConfigError;
use crate::reference::activation::check_fraction;

/// How many values lie in each bin. The outermost bin on either side holds the outliers.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearHistogram {
    /// The middle of each bin.
    pub centers: Vec<f64>,
    /// Values in each bin.
    pub counts: Vec<f64>,
}

impl LinearHistogram {
    /// Counts the entries of `x` (tokens x k) in `bins` bins. The share `outliers` of the values on either side goes to
    /// the outermost bins; between them all bins are equally wide.
    ///
    /// # Errors
    /// [`ConfigError`]: fewer than three bins, or a share outside \[0, 1).
    pub fn new<T: Scalar>(x: ArrayView2<T>, bins: usize, outliers: f64) -> Result<Self, ConfigError> {
        check_fraction("share of outliers", outliers)?;
        if bins < 3 {
            return Err(ConfigError::Bins { bins });
        }
        let mut sorted: Vec<f64> = x.iter().map(|x| x.widen()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else {
            return Ok(LinearHistogram { centers: vec![0.0; bins], counts: vec![0.0; bins] });
        };
        let cut = (outliers * sorted.len() as f64) as usize;
        let (low, high) = (sorted[cut], sorted[sorted.len() - cut.max(1)]);
        let inner = bins - 1; // edges between the outliers
        let step = (high - low) / (inner - 1) as f64;
        let mut edges = vec![least];
        edges.extend((0..inner).map(|i| if i + 1 == inner { high } else { low + i as f64 * step }));
        edges.push(most);
        // The last bin holds its right edge too.
        let below = |edge: f64| sorted.partition_point(|x| *x < edge);
        let bounds: Vec<usize> =
            edges.iter().map(|&edge| below(edge)).take(bins).chain([sorted.len()]).collect();
        Ok(LinearHistogram {
            centers: edges.windows(2).map(|edge| (edge[0] + edge[1]) / 2.0).collect(),
            counts: bounds.windows(2).map(|bound| bound[1].saturating_sub(bound[0]) as f64).collect(),
        })
    }

    /// The threshold t for a sparsity p: where the counts reach (1 + p) / 2 of all, as if the values lay symmetrically
    /// around zero. Interpolated between the bins' *centers*, though the counts reach to their right edges. 0 for p = 0.
    ///
    /// # Errors
    /// [`ConfigError::Fraction`] when `sparsity` is outside \[0, 1).
    pub fn threshold(&self, sparsity: f64) -> Result<f64, ConfigError> {
        check_fraction("activation sparsity", sparsity)?;
        if sparsity == 0.0 {
            return Ok(0.0);
        }
        let wanted = (0.5 + sparsity / 2.0) * self.counts.iter().sum::<f64>();
        let mut below = 0.0;
        for (bin, &count) in self.counts.iter().enumerate() {
            if below + count >= wanted {
                let Some(before) = bin.checked_sub(1).map(|before| self.centers[before]) else {
                    return Ok(self.centers[0]);
                };
                return Ok(before + (wanted - below) / count * (self.centers[bin] - before));
            }
            below += count;
        }
        Ok(self.centers.last().copied().unwrap_or(0.0)) // not reached: the counts sum to more than is wanted
    }
}

/// How many tokens of a prompt stay dense: the first half, of an odd number the larger; all of them where a prompt is not
/// pruned. A single token is one that is being generated, and pruned.
pub fn dense_tokens(tokens: usize, prune_prompt: bool) -> usize {
    match (tokens, prune_prompt) {
        (0 | 1, _) => 0,
        (_, true) => tokens - tokens / 2,
        (_, false) => tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn a_histogram_done_by_hand() {
        // 0 .. 99: one outlier on either side, edges 0, 1, 33.67, 66.33, 99, 99.
        let x = Array2::from_shape_fn((10, 10), |(i, j)| (i * 10 + j) as f64);
        let histogram = LinearHistogram::new(x.view(), 5, 0.01).unwrap();
        assert_eq!(histogram.counts, [1.0, 33.0, 33.0, 32.0, 1.0]);
        assert_eq!((histogram.centers[0], histogram.centers[4]), (0.5, 99.0));
        assert_eq!(histogram.threshold(0.0), Ok(0.0));
        // 75 of 100: the 8th of 32 in the fourth bin.
        let (third, fourth) = (histogram.centers[2], histogram.centers[3]);
        assert_eq!(histogram.threshold(0.5), Ok(third + 8.0 / 32.0 * (fourth - third)));
        assert!(histogram.threshold(1.0).is_err() && LinearHistogram::new(x.view(), 2, 0.01).is_err());
    }

    #[test]
    fn the_larger_half_of_a_prompt_stays_dense() {
        assert_eq!([1, 2, 5].map(|tokens| dense_tokens(tokens, true)), [0, 1, 3]);
        assert_eq!([1, 2, 5].map(|tokens| dense_tokens(tokens, false)), [0, 2, 5]);
    }
}
