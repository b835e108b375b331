//! Perplexity, zero-shot accuracy, and comparisons of methods.

pub mod comparison;
pub mod noise;
pub mod perplexity;
pub mod zero_shot;

use ndarray::ArrayView1;
use rayon::prelude::*;

use crate::backend::Backend;
use crate::calibrate::streams::Stream;
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::forward::{Head, State};
use crate::progress::Observer;
use crate::tensors::TensorError;

/// Runs a stream through the whole model, one layer in memory at a time, and passes on each state with its number and the
/// head, which computes its logits. The observer gets `layers + 1` units per state.
fn through_the_model<T: Scalar, B: Backend<T>, R: Send>(
    checkpoint: &Checkpoint,
    mut stream: Stream<T, B>,
    observer: &dyn Observer,
    then: impl Fn(usize, &State<T>, &Head<T>) -> R + Sync,
) -> Result<Vec<R>, TensorError> {
    let layers = checkpoint.config.num_hidden_layers;
    for number in 0..layers {
        let layer = checkpoint.layer::<T>(number)?;
        checkpoint.drop_pages();
        stream.layer(&layer, || observer.advance());
        observer.finished(&format!("layer {} of {layers}", number + 1));
    }
    let head = checkpoint.head::<T>()?;
    let each = |(i, state): (usize, &State<T>)| {
        let result = then(i, state, &head);
        observer.advance();
        result
    };
    Ok(stream.states.par_iter().enumerate().map(each).collect())
}

/// ln sum exp, in f64.
fn log_sum_exp<T: Scalar>(logits: ArrayView1<T>) -> f64 {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.widen()));
    largest + logits.iter().map(|x| (x.widen() - largest).exp()).sum::<f64>().ln()
}
