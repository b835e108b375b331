//! Which differences between methods are larger than the noise, from repeated measurements.

use serde::Serialize;

/// A quantity of one method, over repeats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Mean over the repeats.
    pub mean: f64,
    /// Their standard deviation (of R repeats: sqrt(sum (x - mean)^2 / (R - 1))); null for one.
    pub standard_deviation: Option<f64>,
    /// Standard error that all repeats share, because they were measured on the same sample: 0 for a perplexity, which
    /// is defined on exactly these windows; the standard error over the documents for an accuracy; null if unknown.
    pub sampling_error: Option<f64>,
    /// The repeats.
    pub values: Vec<f64>,
}

impl Estimate {
    /// Mean and standard deviation of at least one repeat.
    pub fn new(values: Vec<f64>, sampling_error: Option<f64>) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
        let standard_deviation = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
        Estimate { mean, standard_deviation, sampling_error, values }
    }

    /// Standard deviation of one repeat, as far as it is known: sqrt(s^2 + e^2) with s over the repeats and e the sampling
    /// error.
    pub fn spread(&self) -> f64 {
        self.standard_deviation.unwrap_or(0.0).hypot(self.sampling_error.unwrap_or(0.0))
    }

    /// Variance of the mean as far as it is known, and whether that is all of it.
    fn variance(&self) -> (f64, bool) {
        let of_repeats = self.standard_deviation.map(|s| s * s / self.values.len() as f64);
        let of_sample = self.sampling_error.map(|e| e * e);
        (of_repeats.unwrap_or(0.0) + of_sample.unwrap_or(0.0), of_repeats.is_some() && of_sample.is_some())
    }
}

/// The rank of a method among those that it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Better than every other by more than the noise.
    Best,
    /// Within the noise of the best; or the best, with another one within its noise.
    Ambiguous,
    /// Worse than the best by more than the noise.
    Behind,
    /// The noise was not measured: there is one repeat only, or a sampling error is unknown.
    Unknown,
}

/// A difference of at most so many standard errors is within the noise.
pub const STANDARD_ERRORS: f64 = 2.0;

/// Compares every estimate with the one that has the best mean. Their difference is within the noise when it is at most
/// two standard errors of the difference: 2 sqrt(s1^2/R1 + e1^2 + s2^2/R2 + e2^2), with s the standard deviation over
/// R repeats and e the sampling error. The two samples are treated as independent; for accuracies on the same documents
/// that gives [`Standing::Ambiguous`] too often rather than too seldom.
pub fn standings(estimates: &[Estimate], higher_is_better: bool) -> Vec<Standing> {
    let better = |a: f64, b: f64| if higher_is_better { a > b } else { a < b };
    let mut best = 0;
    for (i, estimate) in estimates.iter().enumerate() {
        if better(estimate.mean, estimates[best].mean) {
            best = i;
        }
    }
    let mut standings: Vec<Standing> = (estimates.iter().enumerate())
        .map(|(i, estimate)| {
            let ((one, one_is_all), (other, other_is_all)) =
                (estimates[best].variance(), estimate.variance());
            let difference = (estimate.mean - estimates[best].mean).abs();
            if i == best {
                Standing::Best
            } else if difference <= STANDARD_ERRORS * (one + other).sqrt() {
                Standing::Ambiguous
            } else if one_is_all && other_is_all {
                Standing::Behind
            } else {
                Standing::Unknown
            }
        })
        .collect();
    for doubt in [Standing::Unknown, Standing::Ambiguous] {
        if standings.contains(&doubt) {
            standings[best] = doubt;
        }
    }
    standings
}

#[cfg(test)]
mod tests {
    use super::Standing::{Ambiguous, Behind, Best, Unknown};
    use super::*;

    fn exact(values: &[f64]) -> Estimate {
        Estimate::new(values.into(), Some(0.0))
    }

    #[test]
    fn mean_and_standard_deviation() {
        let estimate = exact(&[1.0, 2.0, 6.0]);
        assert_eq!(estimate.mean, 3.0);
        assert_eq!(estimate.standard_deviation, Some(7f64.sqrt())); // (4 + 1 + 9) / 2
        assert_eq!(exact(&[4.0]).standard_deviation, None);
    }

    #[test]
    fn a_difference_of_two_standard_errors_is_still_noise() {
        // Means 0 and d, deviations sqrt(2), two repeats each: the difference has a standard error of sqrt(2).
        let at = |d: f64| standings(&[exact(&[-1.0, 1.0]), exact(&[d - 1.0, d + 1.0])], false);
        let two = 2.0 * 2f64.sqrt();
        assert_eq!(at(two - 1e-9), [Ambiguous, Ambiguous]);
        assert_eq!(at(two + 1e-9), [Best, Behind]);
        assert_eq!(at(-two - 1e-9), [Behind, Best]);
        assert_eq!(at(0.0), [Ambiguous, Ambiguous]);
    }

    #[test]
    fn each_is_held_against_the_best_and_not_against_its_neighbour() {
        let of = |mean: f64| exact(&[mean - 0.1, mean + 0.1]); // standard error of a difference: 0.1414
        assert_eq!(standings(&[of(31.0), of(31.2), of(31.4)], false), [Ambiguous, Ambiguous, Behind]);
        assert_eq!(standings(&[of(31.0), of(31.2), of(31.4)], true), [Behind, Ambiguous, Ambiguous]);
        assert_eq!(standings(&[of(31.0), of(33.0), of(35.0)], true), [Behind, Behind, Best]);
    }

    #[test]
    fn one_repeat_says_nothing_but_that_equal_is_equal() {
        assert_eq!(standings(&[exact(&[31.0]), exact(&[35.0])], false), [Unknown, Unknown]);
        assert_eq!(standings(&[exact(&[31.0]), exact(&[31.0])], false), [Ambiguous, Ambiguous]);
        // The documents alone can make a difference doubtful, but not certain.
        let accuracy = |mean| Estimate::new(vec![mean], Some(0.03));
        assert_eq!(standings(&[accuracy(0.5), accuracy(0.55)], true), [Ambiguous, Ambiguous]);
        assert_eq!(standings(&[accuracy(0.5), accuracy(0.95)], true), [Unknown, Unknown]);
    }

    #[test]
    fn an_unknown_sampling_error_leaves_no_winner() {
        let of = |mean: f64| Estimate::new(vec![mean, mean], None);
        assert_eq!(standings(&[of(0.0), of(1.0)], true), [Unknown, Unknown]);
    }
}
