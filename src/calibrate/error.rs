//! Why a checkpoint could not be pruned.

use crate::backend::BackendError;
use crate::model::CheckpointError;
use crate::model::forward::Linear;
use crate::reference::ConfigError;
use crate::tensors::TensorError;

/// Why a checkpoint could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The source or the output directory.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor of the source or the output.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// An invalid setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// N:M or the block size does not fit a linear of this model.
    #[error("{tensor}: {source}")]
    Setting {
        /// The first linear that the settings do not fit.
        tensor: String,
        /// Why.
        source: ConfigError,
    },
    /// One linear could not be pruned.
    #[error("{tensor}: {source}")]
    Linear {
        /// Its tensor.
        tensor: String,
        /// Why.
        source: BackendError,
    },
    /// A method or option needs calibration data, and none was given.
    #[error("{what} needs calibration data; give a text or token windows")]
    NoData {
        /// The method or option that needs the data.
        what: &'static str,
    },
    /// The forward pass overflowed.
    #[error(
        "layer {layer}, {side} of {linear}: a value of the {stream} stream is not finite; try --precision f64, or check the checkpoint"
    )]
    NotFinite {
        /// The decoder layer, from 0.
        layer: usize,
        /// The first linear with such a value in its input or output.
        linear: Linear,
        /// `"input"` or `"output"`.
        side: &'static str,
        /// `"dense"` or `"sparse"`.
        stream: &'static str,
    },
}
