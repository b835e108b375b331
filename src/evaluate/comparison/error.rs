//! Why methods could not be compared.

use std::path::PathBuf;

use super::cache::CacheError;
use crate::calibrate::CalibrateError;
use crate::evaluate::zero_shot::ZeroShotError;
use crate::model::CheckpointError;
use crate::tensors::TensorError;

/// Why methods could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// The model, or an output directory.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file.
    #[error(transparent)]
    File(#[from] TensorError),
    /// A method that cannot prune the model.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// A document that cannot be scored.
    #[error(transparent)]
    ZeroShot(#[from] ZeroShotError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Neither windows nor tasks.
    #[error(
        "there is nothing to measure: give a text or token windows (--evaluation FILE), or tasks (--data DIR)"
    )]
    NothingToMeasure,
    /// A jitter that is lost in rounding, or too large.
    #[error(
        "a jitter of {relative:e} is outside [{smallest:.1e}, 0.1]: a smaller one is lost in {precision} rounding, a \
         larger one makes another model"
    )]
    Jitter {
        /// What was given.
        relative: f64,
        /// The relative distance between neighbouring numbers of the run's arithmetic.
        smallest: f64,
        /// That arithmetic.
        precision: &'static str,
    },
    /// The report of an earlier run.
    #[error("{}: this is not the report of a finished run ({detail}); remove its directory", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The pruned model overflows.
    #[error("{model}: the perplexity is not finite; try --precision f64, or leave this setting out")]
    NotFinite {
        /// The name of the model.
        model: String,
    },
}
