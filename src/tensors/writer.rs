//! Writing a safetensors file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo as Entry;
use serde_json::json;

use super::file::TensorFile;
use super::header::{LENGTH, METADATA};
use crate::tensor_error::TensorError;

/// Writes one safetensors file whose tensors come in any order. Beyond the crate, which wants all tensors at once: a header in
/// the order of another file's, a full disk found before the first tensor, and a file that can be continued.
pub struct TensorWriter {
    path: PathBuf,
    file: File,
    /// Bytes of the file.
    places: HashMap<String, Range<u64>>,
}

impl TensorWriter {
    /// Creates the file with its header. `tensors` are name, type and shape in the order of the header. The data of longer
    /// elements come first, so that all lie aligned, as readers ask that map them; otherwise they are in the same order. The
    /// file gets its full length at once: a full disk is found here, and not after hours.
    ///
    /// # Errors
    /// [`TensorError::Io`].
    pub fn create<'a>(
        path: &Path,
        tensors: impl IntoIterator<Item = (&'a str, Dtype, &'a [usize])>,
        metadata: &HashMap<String, String>,
    ) -> Result<Self, TensorError> {
        let tensors: Vec<_> = tensors.into_iter().collect();
        let mut by_length: Vec<_> = tensors.iter().collect();
        by_length.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.bitsize()));
        let (mut end, mut offsets) = (0, HashMap::new());
        for (name, dtype, shape) in by_length {
            let bytes = (shape.iter().product::<usize>() * dtype.bitsize()).div_ceil(8);
            offsets.insert(*name, (end, end + bytes));
            end += bytes;
        }
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            let sorted: BTreeMap<_, _> = metadata.iter().collect();
            header.insert(METADATA.into(), json!(sorted));
        }
        for (name, dtype, shape) in tensors {
            let entry = Entry { dtype, shape: shape.to_vec(), data_offsets: offsets[name] };
            header.insert(name.into(), json!(entry));
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' '); // the data begin aligned
        let start = LENGTH + header.len();

        let create = || -> io::Result<File> {
            let mut file = File::create(path)?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            reserve(&file, (start + end) as u64)?;
            Ok(file)
        };
        let file = create().map_err(TensorError::io(path))?;
        let place = |(begin, end)| (start + begin) as u64..(start + end) as u64;
        let places = offsets.into_iter().map(|(name, offsets)| (name.into(), place(offsets))).collect();
        Ok(TensorWriter { path: path.to_path_buf(), file, places })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file that [`create`](Self::create) made, to write more of its tensors.
    ///
    /// # Errors
    /// [`TensorError`] when it cannot be opened or its header not be read.
    pub fn reopen(path: &Path) -> Result<Self, TensorError> {
        let written = TensorFile::open(path)?;
        let place = |bytes: &Range<usize>| bytes.start as u64..bytes.end as u64;
        let places = written.tensors.iter().map(|(name, info)| (name.clone(), place(&info.bytes))).collect();
        let file = File::options().write(true).open(path).map_err(TensorError::io(path))?;
        Ok(TensorWriter { path: path.to_path_buf(), file, places })
    }

    /// Puts one tensor's bytes in their place.
    ///
    /// # Errors
    /// [`TensorError::Io`]; [`TensorError::ShapeMismatch`] when the header promised another number of bytes.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TensorError> {
        let missing = || TensorError::MissingTensor { path: self.path.clone(), name: name.into() };
        let place = self.places.get(name).ok_or_else(missing)?;
        if place.end - place.start != bytes.len() as u64 {
            return Err(TensorError::ShapeMismatch {
                path: self.path.clone(),
                name: name.into(),
                expected: format!("{} bytes", place.end - place.start),
                found: vec![bytes.len()],
            });
        }
        self.file.write_all_at(bytes, place.start).map_err(TensorError::io(&self.path))
    }

    /// Makes sure that all that was written is on the disk.
    ///
    /// # Errors
    /// [`TensorError::Io`].
    pub fn sync(&self) -> Result<(), TensorError> {
        self.file.sync_all().map_err(TensorError::io(&self.path))
    }
}

/// Gives a file its length, with all of its blocks.
///
/// # Errors
/// What the system says, such as that the disk is full.
pub fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = length.try_into().map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: the descriptor is open for as long as the file is borrowed.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
