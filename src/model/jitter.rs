//! Small random changes of the weights, which show how much of a result is chance.

use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::linalg::Scalar;

/// Makes every weight w of a decoder layer's linears w (1 + relative u), with u uniform in [-1, 1) from ChaCha8.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Jitter {
    /// Largest change of a weight, as a fraction of it.
    pub relative: f64,
    /// Seed of a series of changes.
    pub seed: u64,
    /// Index in the series, from 0.
    pub repeat: u32,
}

impl Jitter {
    /// Changes the weights of the linear with this number. Each linear has its own random stream, so the result does not
    /// depend on when or how often it is read.
    pub fn apply<T: Scalar>(&self, linear: u32, weight: &mut Array2<T>) {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(u64::from(self.repeat) << 32 | u64::from(linear));
        weight.mapv_inplace(|w| T::of(w.widen() * (1.0 + self.relative * random.random_range(-1.0..1.0))));
    }
}
