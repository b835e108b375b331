//! A safetensors file to read from.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use base16ct::lower::encode_string;
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use ndarray::{Array, Array1, Array2, Dimension, IntoDimension, Ix1, Ix2, Ix3};
use safetensors::tensor::Dtype;
use sha2::{Digest, Sha256};

use super::float_type::FloatType;
use super::header::{self, Header, TensorInfo};
use crate::linalg::Scalar;
use crate::tensor_error::TensorError;

/// One safetensors file, memory-mapped. Beyond the crate's `SafeTensors`: owns its map, and reads values as arrays.
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
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
        let Header { tensors, listed, metadata } = header::read(path, &map)?;
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
        encode_string(&Sha256::digest(&self.map))
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
