//! Random data with a few strong channels, as activations have.

use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// tokens x k.
pub fn activations(tokens: usize, k: usize) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    Array2::from_shape_simple_fn((tokens, k), || random.random_range(-1.0f32..1.0))
        * &ndarray::Array1::from_shape_fn(k, |j| if j % 61 == 0 { 8.0 } else { 1.0 })
}
