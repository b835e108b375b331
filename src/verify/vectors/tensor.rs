//! The tensors of a case, and of what was computed for it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use clap::ValueEnum;
use ndarray::{Array2, ArrayView2};

use crate::linalg::Scalar;
use crate::tensor_error::TensorError;
use crate::tensors::{Dtype, FloatType, TensorFile, TensorWriter};

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Numbers of this type: as stored, or as coarse as a port's arithmetic.
    Reals(FloatType),
    /// A mask: 1 = pruned.
    Flags,
    /// Codes, or a permutation.
    Integers,
}

/// A tensor of any shape.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values: the last dimension as columns.
    pub values: Array2<f64>,
    /// What they are.
    pub contents: Contents,
}

/// Tensors by name.
pub type CaseTensors = BTreeMap<String, CaseTensor>;

impl CaseTensor {
    /// Numbers (rows x columns).
    pub fn matrix<T: Scalar>(values: ArrayView2<T>) -> Self {
        let contents = Contents::Reals(FloatType::of_scalar::<T>());
        CaseTensor { shape: values.shape().to_vec(), values: values.mapv(T::widen), contents }
    }

    /// A row of numbers.
    pub fn vector<T: Scalar>(values: impl IntoIterator<Item = T>) -> Self {
        let values: Vec<f64> = values.into_iter().map(T::widen).collect();
        CaseTensor {
            shape: vec![values.len()],
            values: row(values),
            contents: Contents::Reals(FloatType::of_scalar::<T>()),
        }
    }

    /// A mask (rows x columns).
    pub fn flags(mask: ArrayView2<bool>) -> Self {
        let values = mask.mapv(|pruned| f64::from(u8::from(pruned)));
        CaseTensor { shape: mask.shape().to_vec(), values, contents: Contents::Flags }
    }

    /// A row of flags.
    pub fn flag_vector(flags: &[bool]) -> Self {
        let values = flags.iter().map(|&flag| f64::from(u8::from(flag))).collect();
        CaseTensor { shape: vec![flags.len()], values: row(values), contents: Contents::Flags }
    }

    /// A permutation.
    pub fn positions(order: &[usize]) -> Self {
        let values = order.iter().map(|&column| column as f64).collect();
        CaseTensor { shape: vec![order.len()], values: row(values), contents: Contents::Integers }
    }

    /// Codes (rows x columns).
    pub fn codes(codes: ArrayView2<i32>) -> Self {
        let values = codes.mapv(f64::from);
        CaseTensor { shape: codes.shape().to_vec(), values, contents: Contents::Integers }
    }

    /// The same values in another shape of as many.
    pub(super) fn reshaped(mut self, shape: &[usize]) -> Self {
        self.shape = shape.to_vec();
        self
    }

    fn dtype(&self) -> Dtype {
        match self.contents {
            Contents::Reals(float) => float.dtype(),
            Contents::Flags => Dtype::U8,
            Contents::Integers => Dtype::I64,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self.contents {
            Contents::Reals(float) => float.encode(self.values.view()),
            Contents::Flags => self.values.iter().map(|&x| x as u8).collect(),
            Contents::Integers => self.values.iter().flat_map(|&x| (x as i64).to_le_bytes()).collect(),
        }
    }
}

fn row(values: Vec<f64>) -> Array2<f64> {
    Array2::from_shape_vec((1, values.len()), values).expect("one row")
}

/// Every tensor of a file.
///
/// # Errors
/// [`TensorError`]: no such file, not a safetensors file, or an element type that is not read.
pub fn read_case_tensors(path: &Path) -> Result<CaseTensors, TensorError> {
    let file = TensorFile::open(path)?;
    let mut tensors = CaseTensors::new();
    for name in file.names() {
        let info = file.info(name)?;
        let (values, float) = file.values(name)?;
        let contents = match (float, info.dtype) {
            (Some(float), _) => Contents::Reals(float),
            (None, Dtype::U8 | Dtype::BOOL) => Contents::Flags,
            (None, _) => Contents::Integers,
        };
        // A vector is one row, of no values too.
        let values = if info.shape.len() < 2 { row(values.into_iter().collect()) } else { values };
        tensors.insert(name.to_string(), CaseTensor { shape: info.shape.clone(), values, contents });
    }
    Ok(tensors)
}

/// Every tensor of a port's result file.
///
/// The entry `arithmetic` of the file's metadata (`f64`, `f32`, `bf16` or `f16`) names the type to which the port rounds its
/// inputs, where that is coarser than the type in which a tensor is stored: numbers then count as numbers of that type.
///
/// # Errors
/// As [`read_case_tensors`], and another `arithmetic`.
pub fn read_results(path: &Path) -> Result<CaseTensors, TensorError> {
    let mut tensors = read_case_tensors(path)?;
    let Some(stated) = TensorFile::open(path)?.metadata.remove("arithmetic") else { return Ok(tensors) };
    let arithmetic = FloatType::from_str(&stated, false).map_err(|_| TensorError::Malformed {
        path: path.to_path_buf(),
        detail: format!("metadata `arithmetic` is `{stated}`: give f64, f32, bf16 or f16"),
    })?;
    for tensor in tensors.values_mut() {
        if let Contents::Reals(stored) = &mut tensor.contents
            && arithmetic.unit_roundoff() > stored.unit_roundoff()
        {
            *stored = arithmetic;
        }
    }
    Ok(tensors)
}

/// Writes tensors to a safetensors file.
///
/// # Errors
/// [`TensorError::Io`].
pub fn write_case_tensors(path: &Path, tensors: &CaseTensors) -> Result<(), TensorError> {
    let headers =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.dtype(), tensor.shape.as_slice()));
    let temporary = path.with_extension("safetensors.partial");
    let writer = TensorWriter::create(&temporary, headers, &HashMap::new())?;
    for (name, tensor) in tensors {
        writer.write(name, &tensor.bytes())?;
    }
    writer.sync()?;
    std::fs::rename(&temporary, path).map_err(TensorError::io(path))
}
