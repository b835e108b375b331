//! The new checkpoint directory: written under a temporary name, renamed when it is complete.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::convert;
use super::directory::{check_target, companions, copy, partial_name, place_for, write_index};
use super::report::LinearReport;
use crate::files::write_atomically;
use crate::linalg::Scalar;
use crate::model::sparse_bitmask::StorageFormat;
use crate::model::{Checkpoint, CheckpointError};
use crate::progress::Silent;
use crate::reference::Sparsity;
use crate::tensors::{Dtype, FloatType, TensorError, TensorFile, TensorWriter, reserve, round_for_storage};

/// How the weights of a new directory are stored.
#[derive(Clone, Copy)]
pub struct Storage {
    /// The type of every floating-point tensor; without it each keeps its own.
    pub dtype: Option<FloatType>,
    /// The format of the decoder layers' linears.
    pub format: StorageFormat,
    /// What these are pruned to.
    pub sparsity: Sparsity,
}

/// A checkpoint directory that is being written, as `<target>.partial`. If it is dropped before [`finish`](Self::finish), it
/// is removed; if the process is killed, or the disk refuses a write after the first layer, it stays, and
/// [`resume`](Self::resume) continues it.
pub struct OutputDirectory {
    target: PathBuf,
    partial: PathBuf,
    storage: Storage,
    /// A writer per shard, in the order of the source's shards.
    shards: Vec<TensorWriter>,
    /// Tensor to shard and stored type.
    place: HashMap<String, (usize, Option<FloatType>)>,
    /// Whether the directory stays when this value is dropped.
    keep: Cell<bool>,
}

impl OutputDirectory {
    /// Creates the shards of `checkpoint` with all tensors but the decoder layers' linears, which
    /// [`write`](Self::write) adds. All the room that will be needed is taken now.
    ///
    /// # Errors
    /// [`CheckpointError`]: the target exists, an interrupted run has left its directory, the disk refuses, or a value
    /// does not fit the type.
    pub fn create(target: &Path, checkpoint: &Checkpoint, storage: Storage) -> Result<Self, CheckpointError> {
        check_target(target)?;
        let partial = partial_name(target);
        if partial.symlink_metadata().is_ok() {
            return Err(CheckpointError::Unusable {
                path: partial,
                detail: "left by a run that was interrupted; continue it with --resume, or remove it".into(),
            });
        }
        fs::create_dir(&partial).map_err(|error| CheckpointError::Unusable {
            path: partial.clone(),
            detail: format!("cannot be created ({error}); choose another --output"),
        })?;
        let mut output = OutputDirectory {
            target: target.into(),
            partial,
            storage,
            shards: Vec::new(),
            place: HashMap::new(),
            keep: Cell::new(false),
        };
        output.copy_files(checkpoint)?;
        output.create_shards(checkpoint)?;
        output.take_room(checkpoint)?;
        Ok(output)
    }

    /// Continues an interrupted run with the same fingerprint and returns its reports on finished layers. Begins anew where no
    /// run was interrupted, or where it finished no layer.
    ///
    /// # Errors
    /// [`CheckpointError`]: the interrupted run had other settings, or its files are damaged; and as [`create`](Self::create).
    pub fn resume(
        target: &Path,
        checkpoint: &Checkpoint,
        storage: Storage,
        fingerprint: &str,
    ) -> Result<(Self, Vec<LinearReport>), CheckpointError> {
        check_target(target)?;
        let partial = partial_name(target);
        let path = partial.join(JOURNAL);
        if !path.is_file() {
            if partial.is_dir() {
                fs::remove_dir_all(&partial).map_err(TensorError::io(&partial))?;
            }
            return Ok((Self::create(target, checkpoint, storage)?, Vec::new()));
        }
        let text = fs::read_to_string(&path).map_err(TensorError::io(&path))?;
        let journal: Journal = serde_json::from_str(&text).map_err(|error| CheckpointError::Malformed {
            path: path.clone(),
            detail: format!("not the record of a run ({error}); remove {}", partial.display()),
        })?;
        if journal.fingerprint != fingerprint {
            return Err(CheckpointError::Unusable {
                path: partial,
                detail: "is of a run with other settings, data or model; repeat that run, or remove it"
                    .into(),
            });
        }
        let mut output = OutputDirectory {
            target: target.into(),
            partial,
            storage,
            shards: vec![],
            place: HashMap::new(),
            keep: Cell::new(true),
        };
        for number in 0..checkpoint.shards().len() {
            let path = output.partial.join(checkpoint.file_name(number));
            output.shards.push(TensorWriter::reopen(&path)?);
            for (name, info) in TensorFile::open(&path)?.in_file_order() {
                output.place.insert(name.into(), (number, FloatType::of(info.dtype)));
            }
        }
        output.take_room(checkpoint)?;
        output.keep.set(false); // from here on a failure cleans up
        Ok((output, journal.linears))
    }

    /// config.json (dense, with its `torch_dtype` set), tokenizer and generation settings.
    fn copy_files(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        for (name, from) in companions(&checkpoint.directory)? {
            let to = self.partial.join(&name);
            copy(&from, &to)?;
        }
        let path = self.partial.join("config.json");
        convert::set_format(&path, None)?;
        if let Some(dtype) = self.storage.dtype {
            let text = fs::read_to_string(&path).map_err(TensorError::io(&path))?;
            let not_json = |error| CheckpointError::Malformed {
                path: path.clone(),
                detail: format!("not JSON: {error}"),
            };
            let mut json: serde_json::Value = serde_json::from_str(&text).map_err(not_json)?;
            let key = if json.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
            json[key] = dtype.torch_name().into();
            fs::write(&path, format!("{json:#}\n")).map_err(TensorError::io(&path))?;
        }
        Ok(())
    }

    fn create_shards(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let dtype = self.storage.dtype;
        let linears: Vec<String> = checkpoint.linear_tensors().collect();
        let mut total_bytes = 0;
        let mut weight_map = serde_json::Map::new();
        for (number, shard) in checkpoint.shards().iter().enumerate() {
            let path = place_for(&self.partial, checkpoint.file_name(number))?;
            // As in the source, but dense, and for the type of what is floating-point.
            let dense = checkpoint.tensors_of(number);
            let tensors: Vec<(&str, Dtype, &[usize])> = dense
                .iter()
                .map(|(name, info)| {
                    let stored = match (dtype, FloatType::of(info.dtype)) {
                        (Some(to), Some(_)) => to.dtype(),
                        _ => info.dtype,
                    };
                    (name.as_str(), stored, info.shape.as_slice())
                })
                .collect();
            let writer = TensorWriter::create(&path, tensors.iter().copied(), &shard.metadata)?;
            for &(name, stored, shape) in &tensors {
                let stored_as = FloatType::of(stored);
                self.place.insert(name.into(), (number, stored_as));
                total_bytes += shape.iter().product::<usize>() * stored.bitsize() / 8;
                weight_map.insert(name.into(), checkpoint.file_name(number).to_string_lossy().into());
                if linears.iter().any(|linear| linear == name) {
                    continue;
                }
                let tensor = checkpoint.tensor_data(name)?;
                match (dtype, FloatType::of(tensor.info.dtype)) {
                    (Some(to), Some(from)) if from != to => {
                        let mut values = tensor.flat::<f64>()?;
                        round_for_storage(&path, name, &mut values, to)?;
                        writer.write(name, &to.encode(values.view()))?;
                    }
                    _ => writer.write(name, &tensor.bytes)?,
                }
            }
            self.shards.push(writer);
        }
        checkpoint.drop_pages();
        if checkpoint.is_sharded() {
            write_index(&self.partial, weight_map, total_bytes)?;
        }
        Ok(())
    }

    /// Reserves room on the disk for the compressed copy, which is written at the end, while the dense weights still exist.
    fn take_room(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let path = self.partial.join(ROOM);
        if path.is_file() {
            fs::remove_file(&path).map_err(TensorError::io(&path))?;
        }
        if self.storage.format == StorageFormat::SparseBitmask {
            let bytes = convert::most_bytes(checkpoint, self.storage.dtype, self.storage.sparsity)?;
            let taken = fs::File::create(&path).and_then(|file| reserve(&file, bytes));
            taken.map_err(|error| CheckpointError::Unusable {
                path,
                detail: format!(
                    "{error}; the compressed copy needs {bytes} bytes besides the dense weights: make room, or choose --format dense"
                ),
            })?;
        }
        Ok(())
    }

    /// Rounds a pruned weight to its stored type, in place (the streams continue with the stored weight), and writes it.
    ///
    /// # Errors
    /// [`CheckpointError`]: the value does not fit the type, or the disk refuses.
    pub fn write<T: Scalar>(&self, tensor: &str, weight: &mut Array2<T>) -> Result<(), CheckpointError> {
        let missing = || TensorError::MissingTensor { path: self.target.clone(), name: tensor.into() };
        let (shard, stored) = *self.place.get(tensor).ok_or_else(missing)?;
        let stored = stored.ok_or_else(missing)?;
        round_for_storage(&self.target, tensor, weight, stored)?;
        let written = self.shards[shard].write(tensor, &stored.encode(weight.view()));
        written.map_err(|error| self.refused(error))
    }

    /// Keeps the finished layers when the disk refuses a write.
    fn refused(&self, error: TensorError) -> CheckpointError {
        match error {
            TensorError::Io { path, source } if self.partial.join(JOURNAL).is_file() => {
                self.keep.set(true);
                let partial = self.partial.display();
                CheckpointError::Unusable {
                    path,
                    detail: format!(
                        "{source}; the finished layers are kept in {partial}: make room, then continue with --resume"
                    ),
                }
            }
            error => error.into(),
        }
    }

    /// A weight that was written before.
    ///
    /// # Errors
    /// [`TensorError`] when it is missing or damaged.
    pub fn read<T: Scalar>(&self, tensor: &str) -> Result<Array2<T>, TensorError> {
        let missing = || TensorError::MissingTensor { path: self.partial.clone(), name: tensor.into() };
        let (shard, _) = *self.place.get(tensor).ok_or_else(missing)?;
        TensorFile::open(self.shards[shard].path())?.matrix(tensor)
    }

    /// Records, for [`resume`](Self::resume), that every layer in `linears` is on the disk.
    ///
    /// # Errors
    /// [`CheckpointError`] when the disk refuses.
    pub fn layer_finished(&self, fingerprint: &str, linears: &[LinearReport]) -> Result<(), CheckpointError> {
        let journal = Journal { fingerprint: fingerprint.into(), linears: linears.to_vec() };
        let text = serde_json::to_string(&journal).expect("a journal is plain data");
        let synced = self.shards.iter().try_for_each(TensorWriter::sync);
        synced
            .and_then(|()| write_atomically(&self.partial.join(JOURNAL), text.as_bytes()))
            .map_err(|error| self.refused(error))
    }

    /// Writes a file beside the weights.
    ///
    /// # Errors
    /// [`CheckpointError`] when the disk refuses.
    pub fn write_file(&self, name: &str, content: &str) -> Result<(), CheckpointError> {
        write_atomically(&self.partial.join(name), content.as_bytes()).map_err(|error| self.refused(error))
    }

    /// Gives the directory its final name. The weights were written dense; another storage format is converted first.
    ///
    /// # Errors
    /// [`CheckpointError`]: the disk refuses, or the name has been taken; the finished layers are kept.
    pub fn finish(self) -> Result<(), CheckpointError> {
        self.shards.iter().try_for_each(TensorWriter::sync).map_err(|error| self.refused(error))?;
        let complete = match self.storage.format {
            StorageFormat::Dense => self.partial.clone(),
            StorageFormat::SparseBitmask => {
                let room = self.partial.join(ROOM);
                if room.is_file() {
                    fs::remove_file(&room).map_err(TensorError::io(&room))?;
                }
                let converted = self.partial.join(CONVERTED);
                if converted.is_dir() {
                    fs::remove_dir_all(&converted).map_err(TensorError::io(&converted))?;
                }
                match Checkpoint::open(&self.partial).and_then(|dense| {
                    convert::write(&dense, &converted, StorageFormat::SparseBitmask, &Silent)
                }) {
                    Ok(()) => converted,
                    Err(CheckpointError::Tensor(error)) => return Err(self.refused(error)),
                    Err(error) => return Err(error),
                }
            }
        };
        let journal = self.partial.join(JOURNAL);
        if self.target.symlink_metadata().is_ok() {
            self.keep.set(journal.is_file());
            return Err(CheckpointError::Unusable {
                path: self.target.clone(),
                detail: format!(
                    "appeared during this run, whose layers are kept in {}: move it away, then continue with --resume",
                    self.partial.display()
                ),
            });
        }
        fs::rename(&complete, &self.target)
            .map_err(|error| self.refused(TensorError::io(&self.target)(error)))?;
        if complete != self.partial {
            return Ok(()); // what it was made from goes with this value
        }
        self.keep.set(true);
        // Only now: a run that is killed here has lost nothing.
        let journal = self.target.join(JOURNAL);
        if journal.is_file() {
            fs::remove_file(&journal).map_err(TensorError::io(&journal))?;
        }
        Ok(())
    }
}

impl Drop for OutputDirectory {
    fn drop(&mut self) {
        if !self.keep.get() {
            // Nothing half-written is left; a failure here has nobody to go to.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// The file in a `.partial` directory that records its finished layers.
const JOURNAL: &str = "resume.json";
/// The copy in another format there, and the file that holds the room for it. (Weight files may lie in folders of any name.)
const CONVERTED: &str = "converted.partial";
const ROOM: &str = "converted.room";

#[derive(Serialize, Deserialize)]
struct Journal {
    fingerprint: String,
    linears: Vec<LinearReport>,
}
