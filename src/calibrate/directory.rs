//! The files of a model directory besides its weights, and the names of unfinished directories.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::model::{Checkpoint, CheckpointError};
use crate::tensors::TensorError;

/// Checks, without writing, that `target` can be created.
///
/// # Errors
/// [`CheckpointError`] when the target exists or its parent does not.
pub(super) fn check_target(target: &Path) -> Result<(), CheckpointError> {
    let problem = |path: &Path, detail: &str| {
        Err(CheckpointError::Unusable { path: path.into(), detail: detail.into() })
    };
    if target.symlink_metadata().is_ok() {
        return problem(target, "the output directory exists already; choose another or remove it");
    }
    match parent(target) {
        parent if !parent.is_dir() => {
            problem(&parent, "no such directory; create it, or choose another --output")
        }
        _ if target.file_name().is_none() => problem(target, "is no name for an output directory"),
        _ => Ok(()),
    }
}

/// Files copied with the weights, besides `tokenizer*`; the last two are an older form of tokenizer.
const COPIED: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// The files of a model directory that are copied unchanged: name and path.
pub(super) fn companions(directory: &Path) -> Result<Vec<(OsString, PathBuf)>, TensorError> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|e| (e.file_name(), e.path()))).collect())
        .map_err(TensorError::io(directory))?;
    files.sort();
    files.retain(|(name, path)| {
        let name = name.to_string_lossy();
        (COPIED.contains(&&*name) || name.starts_with("tokenizer")) && path.is_file()
    });
    Ok(files)
}

/// Copies a file's content into a new file that its owner may write, whatever the permissions of the source.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), TensorError> {
    let content = fs::read(from).map_err(TensorError::io(from))?;
    fs::write(to, content).map_err(TensorError::io(to))
}

/// The path of a weight file in a new directory; creates its folder.
pub(super) fn place_for(directory: &Path, file: &Path) -> Result<PathBuf, TensorError> {
    let path = directory.join(file);
    let folder = parent(&path);
    fs::create_dir_all(&folder).map_err(TensorError::io(&folder))?;
    Ok(path)
}

/// Writes the index of a sharded checkpoint.
pub(super) fn write_index(
    directory: &Path,
    mut weight_map: serde_json::Map<String, serde_json::Value>,
    total_bytes: usize,
) -> Result<(), TensorError> {
    weight_map.sort_keys();
    let index = serde_json::json!({ "metadata": { "total_size": total_bytes }, "weight_map": weight_map });
    let path = directory.join(Checkpoint::INDEX);
    fs::write(&path, format!("{index:#}\n")).map_err(TensorError::io(&path))
}

/// Where the directory `target` is written until it is complete: `<target>.partial` beside it.
pub(super) fn partial_name(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    parent(target).join(name)
}

fn parent(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.into(),
        None => target.into(),
    }
}
