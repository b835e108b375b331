//! A checkpoint in another storage format: the same tensors, names, shards and other files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::directory::{check_target, companions, copy, partial_name, place_for, write_index};
use super::report;
use crate::model::sparse_bitmask::{self, ENTRY, OLDER_ENTRY, StorageFormat};
use crate::model::{Checkpoint, CheckpointError};
use crate::progress::Observer;
use crate::reference::Sparsity;
use crate::tensors::{Dtype, FloatType, TensorError, TensorInfo, TensorWriter};

/// Writes `checkpoint` as the directory `target`, its decoder layers' linears in `format`, everything else unchanged.
/// Conversion there and back restores every byte, if the tensors are laid out as [`TensorWriter`] and the safetensors library do.
///
/// # Errors
/// [`CheckpointError`]: `target` exists, a compressed weight is damaged, or the disk refuses. The unfinished directory is removed.
pub fn convert(
    checkpoint: &Checkpoint,
    target: &Path,
    format: StorageFormat,
    observer: &dyn Observer,
) -> Result<(), CheckpointError> {
    check_target(target)?;
    let partial = partial_name(target);
    if partial.symlink_metadata().is_ok() {
        return Err(CheckpointError::Unusable {
            path: partial,
            detail: "left by a run that was interrupted; remove it, or choose another --output".into(),
        });
    }
    let written = write(checkpoint, &partial, format, observer).and_then(|()| {
        fs::rename(&partial, target).map_err(TensorError::io(target))?;
        Ok(())
    });
    if written.is_err() {
        // Nothing half-written is left; a failure here has nobody to go to.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// Writes the files of `checkpoint` into a new directory.
pub(super) fn write(
    checkpoint: &Checkpoint,
    directory: &Path,
    format: StorageFormat,
    observer: &dyn Observer,
) -> Result<(), CheckpointError> {
    fs::create_dir(directory).map_err(|error| CheckpointError::Unusable {
        path: directory.into(),
        detail: format!("cannot be created ({error}); choose another --output"),
    })?;
    let compressible: BTreeSet<String> = match format {
        StorageFormat::Dense => BTreeSet::new(),
        StorageFormat::SparseBitmask => checkpoint.linear_tensors().collect(),
    };
    let shards: Vec<Vec<(String, TensorInfo)>> =
        (0..checkpoint.shards().len()).map(|shard| checkpoint.tensors_of(shard)).collect();
    let tensors: usize = shards.iter().map(Vec::len).sum();
    observer.begin((tensors + compressible.len()) as u64);

    // How long the files get, and how sparse the model is.
    let (mut stored, mut weights, mut zeros) = (BTreeMap::new(), 0, 0);
    for (name, info) in shards.iter().flatten() {
        let values = info.shape.iter().product::<usize>();
        weights += values;
        if compressible.contains(name) {
            let dense = checkpoint.tensor_data(name)?;
            let nonzero = sparse_bitmask::stored_values(&dense.bytes, info.dtype.bitsize() / 8);
            zeros += values - nonzero;
            stored.insert(name.as_str(), nonzero);
            checkpoint.drop_pages();
            observer.advance();
        }
    }

    for (name, from) in companions(&checkpoint.directory)? {
        copy(&from, &directory.join(&name))?;
    }
    let report = checkpoint.directory.join(report::FILE_NAME);
    if report.is_file() {
        copy(&report, &directory.join(report::FILE_NAME))?;
    }
    let sparsity = (format == StorageFormat::SparseBitmask).then(|| zeros as f64 / weights.max(1) as f64);
    set_format(&directory.join("config.json"), sparsity)?;

    let (mut total_bytes, mut weight_map) = (0, serde_json::Map::new());
    for (number, tensors) in shards.iter().enumerate() {
        let file = checkpoint.file_name(number);
        let mut entries: Vec<(String, Dtype, Vec<usize>)> = Vec::new();
        for (name, info) in tensors {
            match stored.get(name.as_str()) {
                Some(&stored) => entries.extend(sparse_bitmask::parts(name, info, stored)),
                None => entries.push((name.clone(), info.dtype, info.shape.clone())),
            }
        }
        let headers = entries.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice()));
        let metadata = &checkpoint.shards()[number].metadata;
        let writer = TensorWriter::create(&place_for(directory, file)?, headers, metadata)?;
        for (name, info) in tensors {
            let dense = checkpoint.tensor_data(name)?;
            match (stored.get(name.as_str()), &info.shape[..]) {
                (Some(&stored), &[n, k]) => {
                    let parts = sparse_bitmask::compress(&dense.bytes, (n, k), info.dtype.bitsize() / 8);
                    for ((part, _, _), bytes) in sparse_bitmask::parts(name, info, stored).iter().zip(parts) {
                        writer.write(part, &bytes)?;
                    }
                }
                _ => writer.write(name, &dense.bytes)?,
            }
            checkpoint.drop_pages();
            observer.advance();
        }
        writer.sync()?;
        observer.finished(&file.to_string_lossy());
        for (name, dtype, shape) in entries {
            total_bytes += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            weight_map.insert(name, file.to_string_lossy().into());
        }
    }
    if checkpoint.is_sharded() {
        write_index(directory, weight_map, total_bytes)?;
    }
    Ok(())
}

/// Upper bound, in bytes, of the directory that [`write`] makes in [`StorageFormat::SparseBitmask`] of a checkpoint after its
/// linears are pruned to `sparsity` and its values are stored in `dtype` (`None`: as in the checkpoint).
pub(super) fn most_bytes(
    checkpoint: &Checkpoint,
    dtype: Option<FloatType>,
    sparsity: Sparsity,
) -> Result<u64, TensorError> {
    let linears: BTreeSet<String> = checkpoint.linear_tensors().collect();
    let mut bytes = 0;
    for shard in 0..checkpoint.shards().len() {
        for (name, mut info) in checkpoint.tensors_of(shard) {
            info.dtype = match (dtype, FloatType::of(info.dtype)) {
                (Some(to), Some(_)) => to.dtype(),
                _ => info.dtype,
            };
            let of = |dtype: Dtype, shape: &[usize]| shape.iter().product::<usize>() * dtype.bitsize() / 8;
            bytes += match info.shape[..] {
                [n, k] if linears.contains(&name) => {
                    // A fraction of zeros is rounded down, in each row or in each block of columns.
                    let stored = ((1.0 - sparsity.fraction()) * (n * k) as f64).ceil() as usize + n + k;
                    let parts = sparse_bitmask::parts(&name, &info, stored.min(n * k));
                    parts.iter().map(|(_, dtype, shape)| of(*dtype, shape)).sum()
                }
                _ => of(info.dtype, &info.shape),
            };
            bytes += 1 << 12; // its entries in headers, index and report
        }
    }
    let beside = companions(&checkpoint.directory)?;
    let length = |path: &Path| fs::metadata(path).map(|file| file.len()).map_err(TensorError::io(path));
    Ok(bytes as u64 + beside.iter().map(|(_, path)| length(path)).sum::<Result<u64, _>>()?)
}

/// Declares in a `config.json` that weights are compressed, with the model's fraction of zeros, or (`None`) that they are not. The
/// rest of the text does not change, so that conversion there and back restores every byte.
pub(super) fn set_format(path: &Path, sparsity: Option<f64>) -> Result<(), CheckpointError> {
    let malformed = |detail: String| CheckpointError::Malformed { path: path.into(), detail };
    let text = fs::read_to_string(path).map_err(TensorError::io(path))?;
    let not_json = |error: serde_json::Error| malformed(format!("not JSON: {error}"));
    let mut json: Value = serde_json::from_str(&text).map_err(not_json)?;
    let object = json.as_object_mut().ok_or_else(|| malformed("not a JSON object".into()))?;
    let mut edited = text.clone();
    for key in [ENTRY, OLDER_ENTRY] {
        if object.shift_remove(key).is_some() {
            edited = without_last_entry(&edited, key)
                .filter(|text| {
                    serde_json::from_str::<Value>(text).is_ok_and(|left| left.as_object() == Some(object))
                })
                .unwrap_or_else(|| format!("{:#}\n", Value::Object(object.clone())));
        }
    }
    if let Some(sparsity) = sparsity {
        let entry = format!("{:#}", sparse_bitmask::entry(sparsity)).replace('\n', "\n  ");
        let brace = edited.rfind('}').ok_or_else(|| malformed("not a JSON object".into()))?;
        let content = edited[..brace].trim_end().len();
        let comma = if object.is_empty() { "" } else { "," };
        edited.insert_str(content, &format!("{comma}\n  \"{ENTRY}\": {entry}"));
    }
    if edited != text {
        fs::write(path, edited).map_err(TensorError::io(path))?;
    }
    Ok(())
}

/// The text of a JSON object without its last entry, if that entry has this key.
fn without_last_entry(text: &str, key: &str) -> Option<String> {
    let start = text.rfind(&format!("\"{key}\":"))?;
    let before = text[..start].trim_end().strip_suffix(',')?;
    let brace = text.rfind('}')?;
    let end = text[..brace].trim_end().len();
    Some(format!("{before}{}", &text[end..]))
}
