//! safetensors files: reading one by memory map, and writing one tensor by tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use ndarray::{Array, Array1, Array2, ArrayView2, Dimension, IntoDimension, Ix1, Ix2, Ix3};
pub use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};

use crate::files::parse_json;
use crate::linalg::Scalar;

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

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub(crate) bytes: Range<usize>,
}

/// One safetensors file, memory-mapped.
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, TensorInfo>,
    /// Names in the order of the header.
    listed: Vec<String>,
    /// The header's `__metadata__`.
    pub metadata: HashMap<String, String>,
}

impl TensorFile {
    /// Maps the file and checks its header: every tensor lies inside the file, without overlap or gap, in as many bytes
    /// as its type and shape take.
    ///
    /// # Errors
    /// [`TensorError::Io`], [`Truncated`](TensorError::Truncated), [`Malformed`](TensorError::Malformed).
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        let file = File::open(path).map_err(TensorError::io(path))?;
        // SAFETY: the map is read-only; like every reader of mapped checkpoints we rely on nobody truncating the
        // file while it is open.
        let map = unsafe { Mmap::map(&file) }.map_err(TensorError::io(path))?;
        let (tensors, listed, metadata) = read_header(path, &map)?;
        Ok(TensorFile { path: path.to_path_buf(), map, tensors, listed, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length and time of the last change: what tells one version of the file from another.
    pub fn identity(&self) -> (usize, Option<std::time::SystemTime>) {
        let changed = std::fs::metadata(&self.path).and_then(|metadata| metadata.modified());
        (self.map.len(), changed.ok())
    }

    /// SHA-256 of the whole file, in hexadecimal.
    pub fn sha256(&self) -> String {
        format!("{:x}", Sha256::digest(&self.map))
    }

    /// Names, in lexical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names and infos in the order of the data.
    pub fn in_file_order(&self) -> Vec<(&str, &TensorInfo)> {
        let mut tensors: Vec<_> = self.tensors.iter().map(|(name, info)| (name.as_str(), info)).collect();
        tensors.sort_by_key(|(_, info)| info.bytes.start);
        tensors
    }

    /// Names and infos in the order of the header.
    pub fn in_header_order(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.listed.iter().map(|name| (name.as_str(), &self.tensors[name]))
    }

    /// Type and place of one tensor, if it is there.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Type and place of one tensor.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo, TensorError> {
        let missing = || TensorError::MissingTensor { path: self.path.clone(), name: name.into() };
        self.get(name).ok_or_else(missing)
    }

    /// The bytes of one tensor, little-endian, row-major.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`].
    pub fn bytes(&self, name: &str) -> Result<&[u8], TensorError> {
        Ok(&self.map[self.info(name)?.bytes.clone()])
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorData<'_>, TensorError> {
        let info = self.info(name)?.clone();
        Ok(TensorData { path: &self.path, name: name.into(), bytes: Cow::Borrowed(self.bytes(name)?), info })
    }

    /// A vector. Errors as for all typed reads: missing, wrong element type or rank, not finite.
    #[allow(clippy::missing_errors_doc)]
    pub fn vector<T: Scalar>(&self, name: &str) -> Result<Array1<T>, TensorError> {
        self.tensor(name)?.vector()
    }

    /// A matrix; errors as [`vector`](Self::vector).
    #[allow(clippy::missing_errors_doc)]
    pub fn matrix<T: Scalar>(&self, name: &str) -> Result<Array2<T>, TensorError> {
        self.tensor(name)?.matrix()
    }

    /// Three dimensions; errors as [`vector`](Self::vector).
    #[allow(clippy::missing_errors_doc)]
    pub fn cube<T: Scalar>(&self, name: &str) -> Result<Array<T, Ix3>, TensorError> {
        self.tensor(name)?.floats::<T, Ix3>()
    }

    /// A tensor of any shape as a matrix with its last dimension as columns, NaN and infinities included; and its
    /// type, `None` for integers and booleans. Integers beyond 2^53 are rounded.
    ///
    /// # Errors
    /// Missing, or of an element type that is not read here.
    pub fn values(&self, name: &str) -> Result<(Array2<f64>, Option<FloatType>), TensorError> {
        let tensor = self.tensor(name)?;
        let (bytes, info) = (&tensor.bytes, &tensor.info);
        let values = decode(bytes, info.dtype)
            .or_else(|| decode_integers(bytes, info.dtype))
            .ok_or_else(|| tensor.wrong_dtype("F64, F32, F16, BF16, an integer of 8 to 64 bits, or BOOL"))?;
        let columns = info.shape.last().copied().unwrap_or(1);
        let rows = values.len().checked_div(columns).unwrap_or(0);
        let matrix = Array2::from_shape_vec((rows, columns), values).expect("rows of the last dimension");
        Ok((matrix, FloatType::of(info.dtype)))
    }

    /// An I64 matrix or vector, by dimension.
    ///
    /// # Errors
    /// Missing, of another element type, or of another number of dimensions than `D`.
    pub fn integers<D: Dimension>(&self, name: &str) -> Result<Array<i64, D>, TensorError> {
        let tensor = self.tensor(name)?;
        if tensor.info.dtype != Dtype::I64 {
            return Err(tensor.wrong_dtype("I64"));
        }
        tensor.check_dimensions::<D>()?;
        let (chunks, _) = tensor.bytes.as_chunks::<8>();
        tensor.shaped(chunks.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// A U8 matrix of zeros and ones.
    ///
    /// # Errors
    /// Missing, of another element type, or not a matrix.
    pub fn flags(&self, name: &str) -> Result<Array2<bool>, TensorError> {
        let tensor = self.tensor(name)?;
        if tensor.info.dtype != Dtype::U8 {
            return Err(tensor.wrong_dtype("U8"));
        }
        tensor.check_dimensions::<Ix2>()?;
        tensor.shaped(tensor.bytes.iter().map(|&b| b != 0).collect())
    }

    /// Gives the mapped pages back to the system; a later read fetches them again.
    pub fn drop_pages(&self) {
        // SAFETY: the map is a read-only view of a file, so a dropped page comes back with the same content.
        // A refusal only keeps the pages.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}

/// One tensor, wherever its bytes are.
pub struct TensorData<'a> {
    pub(crate) path: &'a Path,
    pub(crate) name: String,
    /// Type and shape.
    pub info: TensorInfo,
    /// Little-endian, row-major; as many as type and shape take.
    pub bytes: Cow<'a, [u8]>,
}

impl TensorData<'_> {
    /// A floating-point tensor (F64, F32, F16 or BF16), rounded to `T`, with any number of dimensions.
    ///
    /// # Errors
    /// Of another element type, of another number of dimensions than `D`, or not finite.
    fn floats<T: Scalar, D: Dimension>(&self) -> Result<Array<T, D>, TensorError> {
        self.check_dimensions::<D>()?;
        let values =
            decode(&self.bytes, self.info.dtype).ok_or_else(|| self.wrong_dtype("F64, F32, F16 or BF16"))?;
        let array = self.shaped::<T, D>(values)?;
        match array.indexed_iter().find(|(_, x)| !x.is_finite()) {
            None => Ok(array),
            Some((index, _)) => Err(TensorError::NotFinite {
                path: self.path.into(),
                name: self.name.clone(),
                index: index.into_dimension().slice().to_vec(),
            }),
        }
    }

    /// The values in some bytes of a floating-point tensor.
    fn decoded<T: Scalar>(&self, bytes: Range<usize>) -> Result<Vec<T>, TensorError> {
        decode(&self.bytes[bytes], self.info.dtype).ok_or_else(|| self.wrong_dtype("F64, F32, F16 or BF16"))
    }

    /// Refuses a tensor that does not have the number of dimensions of `D`, before it is read.
    fn check_dimensions<D: Dimension>(&self) -> Result<(), TensorError> {
        let found = &self.info.shape;
        match D::NDIM {
            Some(dimensions) if dimensions != found.len() => Err(TensorError::ShapeMismatch {
                path: self.path.into(),
                name: self.name.clone(),
                expected: format!("{dimensions} dimensions"),
                found: found.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Values of a tensor whose dimensions were checked.
    fn shaped<A, D: Dimension>(&self, values: Vec<A>) -> Result<Array<A, D>, TensorError> {
        let array = Array::from_shape_vec(self.info.shape.as_slice(), values)
            .expect("the header was checked: a value per entry");
        Ok(array.into_dimensionality::<D>().expect("the number of dimensions was checked"))
    }

    /// The data contradict something at this byte of the tensor.
    pub(crate) fn damaged(&self, byte: usize, detail: String) -> TensorError {
        let offset = self.info.bytes.start + byte;
        TensorError::Damaged { path: self.path.into(), name: self.name.clone(), offset, detail }
    }

    pub(crate) fn wrong_dtype(&self, expected: &'static str) -> TensorError {
        TensorError::Dtype {
            path: self.path.into(),
            name: self.name.clone(),
            expected,
            found: self.info.dtype,
        }
    }

    /// A vector. Errors as for all typed reads: wrong element type or rank, not finite.
    #[allow(clippy::missing_errors_doc)]
    pub fn vector<T: Scalar>(&self) -> Result<Array1<T>, TensorError> {
        self.floats::<T, Ix1>()
    }

    /// A matrix; errors as [`vector`](Self::vector).
    #[allow(clippy::missing_errors_doc)]
    pub fn matrix<T: Scalar>(&self) -> Result<Array2<T>, TensorError> {
        self.floats::<T, Ix2>()
    }

    /// Some rows of a matrix, without reading the others; errors as [`vector`](Self::vector).
    ///
    /// # Panics
    /// When the matrix has no such row.
    #[allow(clippy::missing_errors_doc)]
    pub fn rows<T: Scalar>(&self, rows: impl IntoIterator<Item = usize>) -> Result<Array2<T>, TensorError> {
        self.check_dimensions::<Ix2>()?;
        let (columns, bytes_per_row) = (self.info.shape[1], self.bytes.len() / self.info.shape[0]);
        let mut values: Vec<T> = Vec::new();
        let mut count = 0;
        for row in rows {
            let of_row = self.decoded::<T>(row * bytes_per_row..(row + 1) * bytes_per_row)?;
            if let Some(column) = of_row.iter().position(|x| !x.is_finite()) {
                let (path, name) = (self.path.into(), self.name.clone());
                return Err(TensorError::NotFinite { path, name, index: vec![row, column] });
            }
            values.extend(of_row);
            count += 1;
        }
        Ok(Array2::from_shape_vec((count, columns), values).expect("rows of equal length"))
    }

    /// A tensor of any shape as one row; errors as [`vector`](Self::vector).
    #[allow(clippy::missing_errors_doc)]
    pub fn flat<T: Scalar>(&self) -> Result<Array2<T>, TensorError> {
        let values = self.floats::<T, ndarray::IxDyn>()?;
        let length = values.len();
        Ok(values.into_shape_with_order((1, length)).expect("a fresh array is contiguous"))
    }
}

/// Little-endian integers and booleans as f64; `None` for another type.
fn decode_integers(bytes: &[u8], dtype: Dtype) -> Option<Vec<f64>> {
    macro_rules! each {
        ($type:ty) => {
            bytes.as_chunks().0.iter().map(|b| <$type>::from_le_bytes(*b) as f64).collect()
        };
    }
    Some(match dtype {
        Dtype::BOOL | Dtype::U8 => each!(u8),
        Dtype::I8 => each!(i8),
        Dtype::I16 => each!(i16),
        Dtype::U16 => each!(u16),
        Dtype::I32 => each!(i32),
        Dtype::U32 => each!(u32),
        Dtype::I64 => each!(i64),
        Dtype::U64 => each!(u64),
        _ => return None,
    })
}

/// What the format allows; no published checkpoint comes near.
const LONGEST_HEADER: usize = 100_000_000;

/// Tensors by name, names as listed, metadata.
type Header = (BTreeMap<String, TensorInfo>, Vec<String>, HashMap<String, String>);

/// Tensors and metadata of a safetensors file: the length of the header (u64), the header (JSON), the data.
///
/// The library's own check of the header names no tensor, lets a name pass that is listed twice, and adds up the
/// tensors' sizes without a check for overflow.
fn read_header(path: &Path, content: &[u8]) -> Result<Header, TensorError> {
    #[derive(serde::Deserialize)]
    struct Entry {
        dtype: Dtype,
        shape: Vec<usize>,
        data_offsets: [usize; 2],
    }
    let truncated = |detail: String| TensorError::Truncated { path: path.into(), detail };
    let malformed = |detail: String| TensorError::Malformed { path: path.into(), detail };

    let Some((length, rest)) = content.split_first_chunk::<8>() else {
        return Err(truncated(format!("{} bytes, expected at least 8", content.len())));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length)).ok_or_else(|| {
        truncated(format!("the header should have {length} bytes, and {} are left", rest.len()))
    })?;
    if header.len() > LONGEST_HEADER {
        return Err(malformed(format!("{length} bytes long, expected at most {LONGEST_HEADER}")));
    }
    let data = &rest[header.len()..];
    let text = std::str::from_utf8(header).map_err(|error| malformed(format!("not UTF-8: {error}")))?;
    let json = parse_json(text).map_err(|error| malformed(format!("not JSON: {error}")))?;
    let serde_json::Value::Object(mut json) = json else { return Err(malformed("not a JSON object".into())) };
    let metadata = json.shift_remove("__metadata__").map_or(Ok(HashMap::new()), |metadata| {
        serde_json::from_value(metadata)
            .map_err(|error| malformed(format!("`__metadata__`: {error}, expected text for text")))
    })?;

    let mut entries = Vec::new();
    for (name, entry) in json {
        let entry: Entry =
            serde_json::from_value(entry).map_err(|error| malformed(format!("tensor `{name}`: {error}")))?;
        entries.push((name, entry));
    }
    let listed = entries.iter().map(|(name, _)| name.clone()).collect();
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let start = 8 + header.len();
    let (mut end_before, mut tensors) = (0, BTreeMap::new());
    for (name, Entry { dtype, shape, data_offsets: [begin, end] }) in entries {
        let place =
            format!("tensor `{name}` ({dtype:?}, shape {shape:?}) at bytes {begin}..{end} of the data");
        if begin > end {
            return Err(malformed(format!("{place}: it ends before it begins")));
        }
        if end > data.len() {
            return Err(truncated(format!("{place}: there are only {}", data.len())));
        }
        if begin != end_before {
            let what = if begin < end_before { "overlaps the tensor before it" } else { "leaves a gap" };
            return Err(malformed(format!("{place}: {what}, expected to begin at {end_before}")));
        }
        // A dimension of 0 must not hide an overflow of the others: arrays refuse such shapes.
        let nonzero = shape.iter().filter(|&&length| length > 0);
        let bits = nonzero.copied().try_fold(dtype.bitsize(), usize::checked_mul);
        let size = match bits {
            Some(bits) if bits > isize::MAX as usize => None,
            Some(_) if shape.contains(&0) => Some(0),
            bits => bits.filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8),
        };
        match size {
            Some(size) if size == end - begin => {}
            Some(size) => return Err(malformed(format!("{place}: type and shape take {size} bytes"))),
            None => return Err(malformed(format!("{place}: no such number of whole bytes can be"))),
        }
        end_before = end;
        tensors.insert(name, TensorInfo { dtype, shape, bytes: start + begin..start + end });
    }
    if end_before != data.len() {
        return Err(malformed(format!(
            "{} bytes behind the last tensor belong to none",
            data.len() - end_before
        )));
    }
    Ok((tensors, listed, metadata))
}

/// Little-endian floats of any of the four types, rounded to `T`; `None` for another type.
fn decode<T: Scalar>(bytes: &[u8], dtype: Dtype) -> Option<Vec<T>> {
    fn each<const N: usize, T: Scalar>(bytes: &[u8], convert: impl Fn([u8; N]) -> f64) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|b| T::of(convert(*b))).collect()
    }
    Some(match dtype {
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        Dtype::F32 => each(bytes, |b| f32::from_le_bytes(b).into()),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).into()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).into()),
        _ => return None,
    })
}

/// The floating-point types that weights are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// IEEE double.
    F64,
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl FloatType {
    /// The type of a stored tensor, where it is one of the four.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F64 => Some(FloatType::F64),
            Dtype::F32 => Some(FloatType::F32),
            Dtype::BF16 => Some(FloatType::Bf16),
            Dtype::F16 => Some(FloatType::F16),
            _ => None,
        }
    }

    /// The tag in a safetensors header.
    pub fn dtype(self) -> Dtype {
        match self {
            FloatType::F64 => Dtype::F64,
            FloatType::F32 => Dtype::F32,
            FloatType::Bf16 => Dtype::BF16,
            FloatType::F16 => Dtype::F16,
        }
    }

    /// The value of `torch_dtype` in a config.json.
    pub fn torch_name(self) -> &'static str {
        match self {
            FloatType::F64 => "float64",
            FloatType::F32 => "float32",
            FloatType::Bf16 => "bfloat16",
            FloatType::F16 => "float16",
        }
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            FloatType::F64 => 8,
            FloatType::F32 => 4,
            FloatType::Bf16 | FloatType::F16 => 2,
        }
    }

    /// Half the distance from 1 to the next number.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            FloatType::F64 => f64::EPSILON / 2.0,
            FloatType::F32 => f64::from(f32::EPSILON) / 2.0,
            FloatType::Bf16 => f64::from(bf16::EPSILON) / 2.0,
            FloatType::F16 => f64::from(f16::EPSILON) / 2.0,
        }
    }

    /// `x` rounded to this type (nearest, ties to even).
    pub fn round<T: Scalar>(self, x: T) -> T {
        match self {
            FloatType::F64 => x,
            FloatType::F32 => T::of((x.widen() as f32).into()),
            FloatType::Bf16 => T::of(bf16::from_f64(x.widen()).into()),
            FloatType::F16 => T::of(f16::from_f64(x.widen()).into()),
        }
    }

    /// The bytes of a matrix, row-major, little-endian, rounded to this type.
    pub fn encode<T: Scalar>(self, values: ArrayView2<T>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(values.len() * self.size());
        for x in values.iter().map(|x| x.widen()) {
            match self {
                FloatType::F64 => bytes.extend(x.to_le_bytes()),
                FloatType::F32 => bytes.extend((x as f32).to_le_bytes()),
                FloatType::Bf16 => bytes.extend(bf16::from_f64(x).to_le_bytes()),
                FloatType::F16 => bytes.extend(f16::from_f64(x).to_le_bytes()),
            }
        }
        bytes
    }
}

/// Writes one safetensors file whose tensors come in any order.
pub struct TensorWriter {
    path: PathBuf,
    file: File,
    data_start: u64,
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
        let mut header = serde_json::Map::new();
        if !metadata.is_empty() {
            let sorted: BTreeMap<_, _> = metadata.iter().collect();
            header.insert("__metadata__".into(), serde_json::json!(sorted));
        }
        let tensors: Vec<_> = tensors.into_iter().collect();
        let mut by_length: Vec<_> = tensors.iter().collect();
        by_length.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.bitsize()));
        let (mut end, mut places) = (0, HashMap::<String, Range<u64>>::new());
        for (name, dtype, shape) in by_length {
            let bytes = (shape.iter().product::<usize>() * dtype.bitsize()).div_ceil(8) as u64;
            places.insert((*name).into(), end..end + bytes);
            end += bytes;
        }
        for (name, dtype, shape) in tensors {
            let place = &places[name];
            let entry = serde_json::json!({
                "dtype": dtype, "shape": shape, "data_offsets": [place.start, place.end]
            });
            header.insert(name.into(), entry);
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' '); // the data begin aligned
        let data_start = 8 + header.len() as u64;

        let create = || -> io::Result<File> {
            let mut file = File::create(path)?;
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            reserve(&file, data_start + end)?;
            Ok(file)
        };
        let file = create().map_err(TensorError::io(path))?;
        Ok(TensorWriter { path: path.to_path_buf(), file, data_start, places })
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
        let data_start = written.in_file_order().first().map_or(0, |(_, info)| info.bytes.start) as u64;
        let place =
            |info: &TensorInfo| info.bytes.start as u64 - data_start..info.bytes.end as u64 - data_start;
        let places = written.tensors.iter().map(|(name, info)| (name.clone(), place(info))).collect();
        let file = File::options().write(true).open(path).map_err(TensorError::io(path))?;
        Ok(TensorWriter { path: path.to_path_buf(), file, data_start, places })
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
        self.file.write_all_at(bytes, self.data_start + place.start).map_err(TensorError::io(&self.path))
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
fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = length.try_into().map_err(|_| io::ErrorKind::FileTooLarge)?;
    // SAFETY: the descriptor is open for as long as the file is borrowed.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Rounds a weight to the type it will be stored in.
///
/// # Errors
/// [`TensorError::Overflow`] when a finite value becomes infinite.
pub fn round_for_storage<T: Scalar>(
    path: &Path,
    name: &str,
    weight: &mut Array2<T>,
    to: FloatType,
) -> Result<(), TensorError> {
    for (index, x) in weight.indexed_iter_mut() {
        let rounded = to.round(*x);
        if !rounded.is_finite() && x.is_finite() {
            return Err(TensorError::Overflow {
                path: path.to_path_buf(),
                name: name.into(),
                index: vec![index.0, index.1],
                value: x.widen(),
                dtype: to.dtype(),
            });
        }
        *x = rounded;
    }
    Ok(())
}
