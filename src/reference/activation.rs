//! Activation pruning: which inputs of a linear layer stay active for one token.

use ndarray::{ArrayView1, ArrayViewMut1, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::ConfigError;
use crate::linalg::Scalar;

/// A fraction of zeros, in \[0, 1).
pub(crate) fn check_fraction(what: &'static str, p: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&p) { Ok(()) } else { Err(ConfigError::Fraction { what, value: p }) }
}

/// Prunes every token of `x` (tokens x k) by itself; see [`prune_token`].
///
/// # Panics
/// When `sparsity` is outside \[0, 1).
pub fn prune_activations<T: Scalar>(mut x: ArrayViewMut2<T>, sparsity: f64) {
    assert!((0.0..1.0).contains(&sparsity), "activation sparsity {sparsity} is outside [0, 1)");
    if sparsity == 0.0 {
        return; // the threshold is the smallest magnitude: all entries stay
    }
    x.axis_iter_mut(Axis(0)).into_par_iter().for_each(|token| prune_token(token, sparsity));
}

/// Zeroes the entries of one token (k) whose magnitude lies below the threshold: the value at index
/// floor(k p_x) of the sorted |x|.
///
/// Without ties exactly k - floor(k p_x) entries stay. Ties at the threshold all stay, so more can.
// ANCHOR: prune_token
pub fn prune_token<T: Scalar>(mut token: ArrayViewMut1<T>, sparsity: f64) {
    if let Some(threshold) = token_threshold(token.view(), sparsity) {
        token.mapv_inplace(|x| if x.abs() >= threshold { x } else { T::zero() });
    }
}

/// The smallest magnitude that stays; `None` for a token without entries.
pub fn token_threshold<T: Scalar>(token: ArrayView1<T>, sparsity: f64) -> Option<T> {
    let mut magnitudes: Vec<T> = token.iter().map(|x| x.abs()).collect();
    let index = (token.len() as f64 * sparsity).floor() as usize;
    (index < token.len()).then(|| *magnitudes.select_nth_unstable_by(index, T::total_order).1)
}
// ANCHOR_END: prune_token

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn ties_at_the_threshold_stay() {
        let mut x = array![[1.0, -2.0, 2.0, 3.0, 2.0, 0.0]];
        prune_activations(x.view_mut(), 0.5); // sorted: 0 1 2 2 2 3, index 3
        assert_eq!(x, array![[0.0, -2.0, 2.0, 3.0, 2.0, 0.0]]);
    }

    #[test]
    fn the_index_is_the_floor_of_the_f64_product() {
        // 0.29 * 100 is 28.999999999999996 in f64: 28 entries are pruned, also for f32 activations.
        let mut x = ndarray::Array2::from_shape_fn((1, 100), |(_, j)| j as f32 + 1.0);
        prune_activations(x.view_mut(), 0.29);
        assert_eq!(x.iter().filter(|x| **x == 0.0).count(), 28);
    }
}
