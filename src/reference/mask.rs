//! Which weights are pruned: a fraction of each block, or N of every M.

use std::fmt;
use std::str::FromStr;

use ndarray::{Array2, ArrayView2, Axis, Zip, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::activation::check_fraction;
use crate::linalg::Scalar;

/// How many weights become zero, and in which pattern.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparsity {
    /// The fraction p_w of every block.
    Unstructured(f64),
    /// N zeros among every M consecutive columns (in processing order) of every row.
    NofM {
        /// Zeros per group.
        n: usize,
        /// Columns per group.
        m: usize,
    },
}

impl Sparsity {
    /// The fraction of zeros asked for.
    pub fn fraction(self) -> f64 {
        match self {
            Sparsity::Unstructured(p) => p,
            Sparsity::NofM { n, m } => n as f64 / m as f64,
        }
    }

    /// Checks the fraction, and for N:M that groups fill `width` (a block, or a whole row) exactly.
    pub(crate) fn check(self, width: usize) -> Result<(), ConfigError> {
        match self {
            Sparsity::Unstructured(p) => check_fraction("weight sparsity", p),
            Sparsity::NofM { n, m } if n < m && width.is_multiple_of(m) => Ok(()),
            Sparsity::NofM { n, m } if n < m => Err(ConfigError::Group { n, m, width }),
            Sparsity::NofM { n, m } => Err(ConfigError::NotNofM { n, m }),
        }
    }
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Sparsity::Unstructured(p) => write!(f, "{p}"),
            Sparsity::NofM { n, m } => write!(f, "{n}:{m}"),
        }
    }
}

impl FromStr for Sparsity {
    type Err = String;

    /// `"0.5"` or `"2:4"`.
    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || format!("`{text}` is no sparsity: give a fraction such as 0.5, or N:M such as 2:4");
        let sparsity = match text.split_once(':') {
            Some((n, m)) => {
                let number = |text: &str| text.trim().parse().map_err(|_| hint());
                Sparsity::NofM { n: number(n)?, m: number(m)? }
            }
            None => Sparsity::Unstructured(text.trim().parse().map_err(|_| hint())?),
        };
        match sparsity {
            Sparsity::NofM { m, .. } => sparsity.check(m),
            Sparsity::Unstructured(_) => sparsity.check(0),
        }
        .map_err(|error| error.to_string())?;
        Ok(sparsity)
    }
}

impl Serialize for Sparsity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Sparsity::Unstructured(p) => serializer.serialize_f64(*p),
            Sparsity::NofM { .. } => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Sparsity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Fraction(f64),
            Text(String),
        }
        let text = match Either::deserialize(deserializer)? {
            Either::Fraction(p) => p.to_string(),
            Either::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What becomes of an N:M group that the end of a block, or of the layer, cuts short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NarrowGroups {
    /// An error: M must divide the block size and the input channels.
    #[default]
    Refuse,
    /// Its N lowest scores are pruned, or all there are: the original SparseGPT, Wanda and magnitude.
    Prune,
    /// A group of at most N columns stays dense; of a wider one the N lowest scores are pruned: the original DuoGPT.
    Keep,
}

impl NarrowGroups {
    /// Whether a group of `width` columns, of which N are to be pruned, stays as it is.
    pub(crate) fn keeps(self, n: usize, width: usize) -> bool {
        self == NarrowGroups::Keep && width <= n
    }

    /// Checks that groups of M fill `width`, where they have to.
    pub(crate) fn check(self, sparsity: Sparsity, width: usize) -> Result<(), ConfigError> {
        match (self, sparsity) {
            (NarrowGroups::Prune | NarrowGroups::Keep, Sparsity::NofM { m, .. }) => sparsity.check(m),
            _ => sparsity.check(width),
        }
    }
}

/// Where the threshold of a block's scores lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Threshold {
    /// Prune score <= sorted\[floor(p n B)\]: one weight more than the fraction, and all ties; p = 0 still prunes
    /// one weight per block. The rule of the original code.
    Inclusive,
    /// Exactly floor(p n B) per block; equal scores are ordered by row, then by column.
    Exact,
}

impl Threshold {
    /// The mask (`true` = pruned) of one block of scores (n x B).
    // ANCHOR: select
    pub fn select<T: Scalar>(self, score: ArrayView2<T>, p: f64) -> Array2<bool> {
        let numel = score.len();
        if numel == 0 {
            return Array2::default(score.raw_dim());
        }
        let index = (numel as f64 * p).floor() as usize;
        match self {
            Threshold::Inclusive => {
                let threshold = *score
                    .iter()
                    .copied()
                    .collect::<Vec<_>>()
                    .select_nth_unstable_by(index, T::total_order)
                    .1;
                score.mapv(|s| s <= threshold)
            }
            Threshold::Exact => lowest(&score.iter().copied().collect::<Vec<_>>(), index)
                .into_shape_with_order(score.raw_dim())
                .expect("one flag per score"),
        }
    }
    // ANCHOR_END: select
}

/// The mask of a block of scores (n x B): the fraction p under `threshold`, or N of every M columns of every row.
pub fn select<T: Scalar>(score: ArrayView2<T>, sparsity: Sparsity, threshold: Threshold) -> Array2<bool> {
    match sparsity {
        Sparsity::Unstructured(p) => threshold.select(score, p),
        Sparsity::NofM { n, m } => lowest_per_group(score, m, n, NarrowGroups::Refuse),
    }
}

/// Flags the `count` lowest scores in every `width` consecutive columns of every row (n x k; the last group may be
/// narrower: see [`NarrowGroups`]); of equal scores the left ones.
pub fn lowest_per_group<T: Scalar>(
    score: ArrayView2<T>,
    width: usize,
    count: usize,
    narrow: NarrowGroups,
) -> Array2<bool> {
    let (n, k) = score.dim();
    let mut mask = Array2::from_elem((n, k), false);
    mask.axis_iter_mut(Axis(0)).into_par_iter().zip(score.axis_iter(Axis(0))).for_each(
        |(mut mask, score)| {
            for start in (0..k).step_by(width.max(1)) {
                let group = start..(start + width).min(k);
                if !narrow.keeps(count, group.len()) {
                    let group = s![group];
                    mask.slice_mut(group).assign(&lowest(&score.slice(group).to_vec(), count));
                }
            }
        },
    );
    mask
}

/// A copy of the weights (n x k) with +0 where the mask is `true`.
pub fn zero_pruned<T: Scalar>(weight: ArrayView2<T>, mask: ArrayView2<bool>) -> Array2<T> {
    Zip::from(weight).and(mask).map_collect(|&w, &pruned| if pruned { T::zero() } else { w })
}

/// Flags the `count` lowest scores (all, if there are fewer); of equal scores the earlier ones.
// ANCHOR: lowest
pub fn lowest<T: Scalar>(score: &[T], count: usize) -> ndarray::Array1<bool> {
    let mut pruned = ndarray::Array1::from_elem(score.len(), false);
    let count = count.min(score.len());
    if count == 0 {
        return pruned;
    }
    let mut order: Vec<usize> = (0..score.len()).collect();
    // Adding zero folds -0 into +0: the two are equal scores.
    let key = |&i: &usize| score[i] + T::zero();
    order.select_nth_unstable_by(count - 1, |a, b| key(a).total_order(&key(b)).then(a.cmp(b)));
    for &i in &order[..count] {
        pruned[i] = true;
    }
    pruned
}
// ANCHOR_END: lowest

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_inclusive_threshold_takes_one_more_and_all_ties() {
        let score = array![[1.0, 2.0], [3.0, 4.0]];
        assert_eq!(Threshold::Inclusive.select(score.view(), 0.5), array![[true, true], [true, false]]);
        assert_eq!(Threshold::Inclusive.select(score.view(), 0.0), array![[true, false], [false, false]]);
        let tied = array![[1.0, 1.0], [1.0, 4.0]];
        assert_eq!(Threshold::Inclusive.select(tied.view(), 0.0), array![[true, true], [true, false]]);
    }

    #[test]
    fn the_exact_threshold_takes_the_fraction_and_breaks_ties_by_position() {
        let tied = array![[1.0, 1.0], [-0.0, 0.0]];
        assert_eq!(Threshold::Exact.select(tied.view(), 0.0), array![[false, false], [false, false]]);
        assert_eq!(Threshold::Exact.select(tied.view(), 0.25), array![[false, false], [true, false]]);
        assert_eq!(Threshold::Exact.select(tied.view(), 0.75), array![[true, false], [true, true]]);
        assert_eq!(lowest(&[0.0, -0.0], 1), array![true, false]);
        assert_eq!(lowest(&[2.0, 1.0], 2), array![true, true]);
        // 0.29 * 100 is 28.999999999999996 in f64, for f32 scores too.
        let hundred = Array2::from_shape_fn((10, 10), |(i, j)| (i * 10 + j) as f32);
        assert_eq!(Threshold::Exact.select(hundred.view(), 0.29).iter().filter(|m| **m).count(), 28);
    }

    #[test]
    fn sparsity_reads_fractions_and_groups_and_refuses_the_rest() {
        assert_eq!("0.5".parse(), Ok(Sparsity::Unstructured(0.5)));
        assert_eq!("2:4".parse(), Ok(Sparsity::NofM { n: 2, m: 4 }));
        for wrong in ["1", "-0.1", "NaN", "4:4", "5:4", "0:0", "half", "2:", "1e400"] {
            assert!(wrong.parse::<Sparsity>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn groups_are_a_fraction_and_must_fill_the_width() {
        assert_eq!(Sparsity::Unstructured(0.3).fraction(), 0.3);
        assert_eq!(Sparsity::NofM { n: 3, m: 8 }.fraction(), 0.375);
        assert_eq!(Sparsity::NofM { n: 2, m: 4 }.check(12), Ok(()));
        assert_eq!(Sparsity::NofM { n: 2, m: 4 }.check(6), Err(ConfigError::Group { n: 2, m: 4, width: 6 }));
        for n in [4, 5] {
            assert_eq!(Sparsity::NofM { n, m: 4 }.check(6), Err(ConfigError::NotNofM { n, m: 4 }));
        }
    }
}
