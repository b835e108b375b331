//! Why nothing, or nothing more, was generated.

use std::io;

use crate::device_error::DeviceError;
use crate::model::CheckpointError;
use crate::tensors::TensorError;

/// Why nothing, or nothing more, was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device that multiplies.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The arithmetic overflowed, or the model is damaged.
    #[error(
        "the logits after token {position} are not all finite: the model's values overflow in this arithmetic (try --precision \
         f64), or its weights are damaged"
    )]
    NotFinite {
        /// Tokens so far.
        position: usize,
    },
    /// The consumer of the tokens failed.
    #[error(transparent)]
    Output(#[from] io::Error),
}
