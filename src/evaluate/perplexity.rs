//! Perplexity: exp of the mean, over windows, of the mean negative log-likelihood of the window's last T - 1 tokens.

use ndarray::{Array2, ArrayView1, Axis};
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::calibrate::streams::{Activations, Stream};
use crate::calibrate::windows::Windows;
use crate::evaluate::{log_sum_exp, through_the_model};
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::forward::Forward;
use crate::progress::{Observer, Silent};
use crate::tensors::TensorError;

/// The outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// exp(mean_nll).
    pub perplexity: f64,
    /// Mean over windows of their mean negative log-likelihood, in nats.
    pub mean_nll: f64,
    /// Standard error of `mean_nll` over windows; null for one window.
    pub nll_standard_error: Option<f64>,
    /// Windows measured.
    pub windows: usize,
    /// Tokens per window.
    pub sequence_length: usize,
}

/// Measures `checkpoint` on `windows`, with `activations` at the input of every linear of a decoder layer (not of
/// lm_head).
///
/// # Errors
/// [`TensorError`] when a tensor cannot be read.
pub fn perplexity<T: Scalar, B: Backend<T>>(
    checkpoint: &Checkpoint,
    windows: &Windows,
    activations: Activations,
    backend: &B,
    observer: &dyn Observer,
) -> Result<Perplexity, TensorError> {
    let nll: Vec<f64> = each_logits(checkpoint, windows, activations, backend, observer, |i, logits| {
        mean_nll(&logits, windows.tokens.row(i))
    })?;
    let count = nll.len() as f64;
    let mean = nll.iter().sum::<f64>() / count;
    let variance = nll.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0);
    Ok(Perplexity {
        perplexity: mean.exp(),
        mean_nll: mean,
        nll_standard_error: (nll.len() > 1).then(|| (variance / count).sqrt()),
        windows: windows.len(),
        sequence_length: windows.length(),
    })
}

/// The logits (tokens x vocabulary) of every window.
///
/// # Errors
/// [`TensorError`] when a tensor cannot be read.
pub fn logits<T: Scalar, B: Backend<T>>(
    checkpoint: &Checkpoint,
    windows: &Windows,
    activations: Activations,
    backend: &B,
) -> Result<Vec<Array2<T>>, TensorError> {
    each_logits(checkpoint, windows, activations, backend, &Silent, |_, logits| logits)
}

/// Runs all windows through the model and passes on each window's logits.
fn each_logits<T: Scalar, B: Backend<T>, R: Send>(
    checkpoint: &Checkpoint,
    windows: &Windows,
    activations: Activations,
    backend: &B,
    observer: &dyn Observer,
    then: impl Fn(usize, Array2<T>) -> R + Sync,
) -> Result<Vec<R>, TensorError> {
    let layers = checkpoint.config.num_hidden_layers;
    observer.begin(((layers + 1) * windows.len()) as u64);
    let forward = Forward::<T>::new(&checkpoint.config, windows.length());
    let embedding = checkpoint.embedding::<T>()?;
    let stream = Stream::new(&forward, backend, &embedding, windows, activations);
    drop(embedding);
    through_the_model(checkpoint, stream, observer, |i, state, head| {
        then(i, forward.logits(head, &state.hidden))
    })
}

/// Mean negative log-likelihood of tokens 1.. of a window given those before them.
fn mean_nll<T: Scalar>(logits: &Array2<T>, tokens: ArrayView1<u32>) -> f64 {
    let predicted = tokens.len() - 1;
    let sum: f64 = logits
        .axis_iter(Axis(0))
        .zip(tokens.iter().skip(1))
        .map(|(logits, &next)| log_sum_exp(logits) - logits[next as usize].widen())
        .sum();
    sum / predicted as f64
}
