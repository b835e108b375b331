//! What pruning needs to know of the calibration data: H, dX X^T and diag(dX dX^T).

use ndarray::{Array1, Array2, ArrayView2, Axis, Zip, s};

use crate::linalg::{Scalar, gemm, gram};

/// Running means over the calibration sequences, in the original column order.
///
/// One sequence contributes its sum over tokens, and `s` sequences their mean, so after sequence s + 1
///
/// ```text
/// H <- s/(s+1) H + 1/(s+1) X^ X^T
/// ```
///
/// and alike for the other two. Any positive multiple gives the same pruned weights, unless a channel is dead
/// (see [`factor`](super::factor)).
#[derive(Clone, Debug)]
pub struct Statistics<T> {
    /// Sequences seen.
    pub sequences: usize,
    /// H = X^ X^T (k x k).
    pub hessian: Array2<T>,
    /// What the output residual needs; `None` for methods without it (dX = 0).
    pub residual: Option<ResidualStatistics<T>>,
}

/// The statistics of dX = X~ - X^, from which the output residual W dX is corrected.
#[derive(Clone, Debug)]
pub struct ResidualStatistics<T> {
    /// dX X^T (k x k), with X = X^.
    pub dxxt: Array2<T>,
    /// diag(dX dX^T) (k): the square norm of dX in each input channel.
    pub square_norms: Array1<T>,
}

impl<T: Scalar> Statistics<T> {
    /// No sequences yet, for k input channels: H alone, as SparseGPT needs it.
    pub fn hessian_only(k: usize) -> Self {
        Statistics { sequences: 0, hessian: Array2::zeros((k, k)), residual: None }
    }

    /// No sequences yet, for k input channels: H, dX X^T and diag(dX dX^T), as DuoGPT and GPTAQ need them.
    pub fn with_residual(k: usize) -> Self {
        let residual = ResidualStatistics { dxxt: Array2::zeros((k, k)), square_norms: Array1::zeros(k) };
        Statistics { residual: Some(residual), ..Self::hessian_only(k) }
    }

    /// Input channels k.
    pub fn channels(&self) -> usize {
        self.hessian.nrows()
    }

    /// Adds one sequence to the means. Rows are tokens: `dense` is X~^T and `sparse` X^^T, both tokens x k.
    ///
    /// dX is formed before it is multiplied (G - H with G = X~ X^T would cancel), a chunk of tokens at a time: a chunk
    /// stays in cache and takes little memory.
    ///
    /// # Panics
    /// When the shapes differ from each other or from k.
    // ANCHOR: update
    pub fn update(&mut self, dense: ArrayView2<T>, sparse: ArrayView2<T>) {
        let (keep, add) = running_mean(self.sequences);
        // Side by side, so that the cores share all of the work.
        let update_hessian = || gram(add, sparse.t(), keep, &mut self.hessian);
        let update_residual = || {
            if let Some(residual) = &mut self.residual {
                residual.update(keep, add, dense, sparse);
            }
        };
        rayon::join(update_hessian, update_residual);
        self.sequences += 1;
    }
    // ANCHOR_END: update
}

impl<T: Scalar> ResidualStatistics<T> {
    /// mean <- keep mean + add (dX X^T, diag(dX dX^T)), both inputs tokens x k.
    fn update(&mut self, keep: f64, add: f64, dense: ArrayView2<T>, sparse: ArrayView2<T>) {
        assert_eq!(dense.dim(), sparse.dim(), "dense and sparse input differ in shape");
        self.dxxt *= T::of(keep);
        self.square_norms *= T::of(keep);
        let mut buffer = Array2::zeros((CHUNK.min(dense.nrows()), dense.ncols()));
        let chunks = dense.axis_chunks_iter(Axis(0), CHUNK).zip(sparse.axis_chunks_iter(Axis(0), CHUNK));
        for (dense, sparse) in chunks {
            let mut dx = buffer.slice_mut(s![..dense.nrows(), ..]);
            Zip::from(&mut dx).and(dense).and(sparse).for_each(|dx, &dense, &sparse| *dx = dense - sparse);
            gemm(add, dx.t(), sparse, 1.0, self.dxxt.view_mut());
            add_square_norms(&mut self.square_norms, 1.0, add, dx.view());
        }
    }
}

/// Tokens whose dX is held at a time: few enough to stay in cache, enough for a fast product.
const CHUNK: usize = 512;

/// The running mean of one number per input channel: the sum over tokens of x^2. Wanda needs no more than this,
/// the diagonal of H.
#[derive(Clone, Debug)]
pub struct ChannelNorms<T> {
    /// Sequences seen.
    pub sequences: usize,
    /// Mean over sequences of the sum over tokens of x^2 (k).
    pub square_norms: Array1<T>,
}

impl<T: Scalar> ChannelNorms<T> {
    /// No sequences yet, for k input channels.
    pub fn new(k: usize) -> Self {
        ChannelNorms { sequences: 0, square_norms: Array1::zeros(k) }
    }

    /// Adds one sequence (tokens x k) to the mean.
    ///
    /// # Panics
    /// When `x` does not have k columns.
    pub fn update(&mut self, x: ArrayView2<T>) {
        let (keep, add) = running_mean(self.sequences);
        add_square_norms(&mut self.square_norms, keep, add, x);
        self.sequences += 1;
    }
}

/// Weights s/(s+1) of what is there and 1/(s+1) of what comes.
pub(crate) fn running_mean(seen: usize) -> (f64, f64) {
    let total = (seen + 1) as f64;
    (seen as f64 / total, 1.0 / total)
}

/// mean <- keep mean + add diag(X X^T), X given as tokens x k.
pub(super) fn add_square_norms<T: Scalar>(mean: &mut Array1<T>, keep: f64, add: f64, x: ArrayView2<T>) {
    let mut squares = Array1::<T>::zeros(mean.len());
    for token in x.axis_iter(Axis(0)) {
        Zip::from(&mut squares).and(&token).for_each(|sum, &x| *sum += x * x);
    }
    Zip::from(mean).and(&squares).for_each(|mean, &sum| *mean = T::of(keep) * *mean + T::of(add) * sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_tokens_add_up_to_their_sequence() {
        // Small integers and halves of them: every sum is exact.
        for tokens in [0, 1, CHUNK, 2 * CHUNK + 3] {
            let dense = Array2::from_shape_fn((tokens, 5), |(i, j)| ((i * 7 + j * 3) % 9) as f64 - 4.0);
            let sparse = dense.mapv(|x| if x.abs() < 2.0 { 0.0 } else { x + 1.0 });
            let mut statistics = Statistics::with_residual(5);
            statistics.update(dense.view(), sparse.view());
            statistics.update(sparse.view(), dense.view());
            let dx = &dense - &sparse;
            let residual = statistics.residual.unwrap();
            assert_eq!(statistics.hessian, (sparse.t().dot(&sparse) + dense.t().dot(&dense)) / 2.0);
            assert_eq!(residual.dxxt, (dx.t().dot(&sparse) - dx.t().dot(&dense)) / 2.0);
            assert_eq!(residual.square_norms, dx.t().dot(&dx).diag());
        }
    }

    #[test]
    #[should_panic(expected = "differ in shape")]
    fn inputs_of_different_lengths_are_refused() {
        let x = Array2::<f64>::zeros((2 * CHUNK, 3));
        Statistics::with_residual(3).update(x.view(), x.slice(s![..CHUNK, ..]));
    }
}
