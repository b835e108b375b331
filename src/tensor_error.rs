//! What is wrong with a file, or with a tensor in it.

use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

/// Why a safetensors file could not be read or written. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The header promises more bytes than there are.
    #[error("{}: the file is truncated or not a safetensors file ({detail}); fetch it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The header makes no sense.
    #[error("{}: the safetensors header is malformed ({detail})", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// A tensor is not there.
    #[error("{}: tensor `{name}` is missing", path.display())]
    MissingTensor {
        /// The file, or the directory of a checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape than the model or format prescribes.
    #[error("{}: tensor `{name}` has shape {found:?}, expected {expected}", path.display())]
    ShapeMismatch {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What would fit.
        expected: String,
        /// What is there.
        found: Vec<usize>,
    },
    /// A tensor has an element type that is not read here.
    #[error("{}: tensor `{name}` has element type {found:?}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What would fit.
        expected: &'static str,
        /// What is there.
        found: Dtype,
    },
    /// NaN or an infinity where a number must be.
    #[error("{}: tensor `{name}` has a value that is not finite at index {index:?}; the file is damaged or its training diverged", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Index of the first such value.
        index: Vec<usize>,
    },
    /// The header is right, but the data contradict it or each other.
    #[error("{}: tensor `{name}` is damaged at byte {offset} of the file: {detail}; fetch or convert it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Where in the file the first contradiction is.
        offset: usize,
        /// What is there, and what was expected.
        detail: String,
    },
    /// A value does not fit the type it is to be stored in.
    #[error("{}: tensor `{name}` has the value {value:e} at index {index:?}, too large for {dtype:?}; use another --dtype", path.display())]
    Overflow {
        /// The file to be written.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Index of the first such value.
        index: Vec<usize>,
        /// The value.
        value: f64,
        /// The type asked for.
        dtype: Dtype,
    },
}

impl TensorError {
    /// An operating system's error, with the file.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> TensorError {
        let path = path.to_path_buf();
        move |source| TensorError::Io { path, source }
    }
}
