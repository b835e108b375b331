//! Files that are there whole or not at all.

use std::fs;
use std::path::Path;

use crate::tensors::TensorError;

/// Writes beside `path` and renames, so that no reader ever sees half a file.
///
/// # Errors
/// [`TensorError::Io`] with the file.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<(), TensorError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = path.with_file_name(name);
    fs::write(&partial, content).and_then(|()| fs::rename(&partial, path)).map_err(|error| {
        let _ = fs::remove_file(&partial);
        TensorError::io(path)(error)
    })
}
