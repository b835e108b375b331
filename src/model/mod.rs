//! Models: configuration, checkpoint, tokenizer, and the forward pass in four groups per decoder layer. The
//! names are LLaMA's; the other [architectures](architecture) are described by their differences from it.

pub mod architecture;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod forward;
pub mod gguf;
pub mod jitter;
pub mod sparse_bitmask;
pub mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use forward::{Group, Layer, Linear};
pub use jitter::Jitter;

use std::path::PathBuf;

use crate::tensors::TensorError;

/// Why a model directory cannot be used. Every message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A weight file.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A file or directory that is missing, cannot be read, or exists already where one is to be created.
    #[error("{}: {detail}", path.display())]
    Unusable {
        /// The file or directory.
        path: PathBuf,
        /// What was expected, and what to do.
        detail: String,
    },
    /// A file with invalid content.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A model that is not supported.
    #[error("{}: {detail}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what is.
        detail: String,
    },
}
