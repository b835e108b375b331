//! Why a task cannot be evaluated.

use std::path::PathBuf;

use crate::tensors::TensorError;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ZeroShotError {
    /// A task file that cannot be read, or a tensor.
    #[error(transparent)]
    File(#[from] TensorError),
    /// A task without a file.
    #[error("{}: no such file; {}", path.display(), if there.is_empty() {
        "the directory has none of the tasks".into()
    } else {
        format!("the tasks that the directory has: {there}")
    })]
    NoTask {
        /// The expected file.
        path: PathBuf,
        /// The tasks that have files.
        there: String,
    },
    /// A line that cannot be evaluated.
    #[error("{}: line {line}: {detail}", path.display())]
    Document {
        /// The task file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        detail: String,
    },
    /// A file without documents.
    #[error("{}: the file has no documents", path.display())]
    NoDocuments {
        /// The task file.
        path: PathBuf,
    },
}
