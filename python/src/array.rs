//! Arrays across the border. What comes in is read in place, whatever its strides; what goes out is handed over.

use duogpt::linalg::Scalar;
use duogpt::tensors::FloatType;
use duogpt::verify::vectors::CaseTensor;
use duogpt::verify::vectors::tensor::Contents;
use numpy::ndarray::{Array2, ArrayD, ArrayView2, ArrayViewD, Dimension, IxDyn};
use numpy::{
    Element, IntoPyArray, PyArrayDescrMethods, PyReadonlyArray, PyReadonlyArrayDyn, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::error::refused;

/// The number types of the reference as numpy has them.
pub trait Number: Scalar + Element {}
impl Number for f32 {}
impl Number for f64 {}

/// The same thing in single or in double precision.
pub enum Typed<S, D> {
    F32(S),
    F64(D),
}

/// Evaluates an expression in the one type that all its arguments have.
macro_rules! in_one_type {
    (($($value:expr),+), |$($name:ident),+| $body:expr) => {
        match ($($value,)+) {
            ($($crate::array::Typed::F32($name),)+) => $body,
            ($($crate::array::Typed::F64($name),)+) => $body,
            #[allow(unreachable_patterns)] // of a single argument
            _ => Err($crate::array::mixture()),
        }
    };
}
pub(crate) use in_one_type;

/// That float32 and float64 do not go together.
pub fn mixture() -> PyErr {
    PyTypeError::new_err("some arguments are float32 and some float64: give all of them in one type")
}

/// A numpy array of `value`: an array, a tensor of PyTorch (without its gradient, on the host), or what has `__array__` or
/// `__dlpack__`. Nothing is copied but what lies on another device, or is a list.
pub fn as_array<'py>(what: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    if let Ok(array) = value.cast::<PyUntypedArray>() {
        return Ok(array.clone());
    }
    let converted = || {
        let value = match value.hasattr("detach")? {
            true => value.call_method0("detach")?.call_method0("cpu")?,
            false => value.clone(),
        };
        let by_dlpack = !value.hasattr("__array__")? && value.hasattr("__dlpack__")?;
        let convert = if by_dlpack { "from_dlpack" } else { "asarray" };
        let array = value.py().import("numpy")?.call_method1(convert, (value,))?;
        Ok(array.cast_into::<PyUntypedArray>()?)
    };
    converted().map_err(|error: PyErr| PyTypeError::new_err(format!("{what}: {error}")))
}

/// Numbers of one of the two types, of any shape.
pub type Reals<'py> = Typed<PyReadonlyArrayDyn<'py, f32>, PyReadonlyArrayDyn<'py, f64>>;

/// Reads numbers in place.
///
/// # Errors
/// `TypeError` for another type of elements.
pub fn reals<'py>(what: &str, value: &Bound<'py, PyAny>) -> PyResult<Reals<'py>> {
    let other_type = |dtype: &Bound<PyAny>| {
        PyTypeError::new_err(format!("{what} has type {dtype}: convert it to float32 or float64"))
    };
    if let Some(dtype) = bfloat16(value) {
        return Err(other_type(&dtype));
    }
    let array = as_array(what, value)?;
    if let Ok(array) = array.extract() {
        return Ok(Typed::F32(array));
    }
    array.extract().map(Typed::F64).map_err(|_| other_type(&array.dtype()))
}

/// The type of `value` if it is bfloat16, which numpy does not have.
fn bfloat16<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    value.getattr("dtype").ok().filter(|dtype| dtype.to_string().ends_with("bfloat16"))
}

/// Rows and columns of an array.
///
/// # Errors
/// `DuogptError` for another number of dimensions.
pub fn matrix<'a, T: Number>(what: &str, array: &'a PyReadonlyArrayDyn<T>) -> PyResult<ArrayView2<'a, T>> {
    let found = array.shape().to_vec();
    let view: ArrayViewD<T> = array.as_array();
    view.into_dimensionality()
        .map_err(|_| refused(format!("the shape of {what} is {found:?}, expected rows and columns")))
}

/// A mask (n x k).
pub fn mask<'py>(value: &Bound<'py, PyAny>) -> PyResult<PyReadonlyArray<'py, bool, numpy::Ix2>> {
    let array = as_array("mask", value)?;
    array.extract().map_err(|_| {
        let (dtype, shape) = (array.dtype(), array.shape());
        PyTypeError::new_err(format!(
            "mask has type {dtype} and shape {shape:?}: bool in rows and columns is needed"
        ))
    })
}

/// An array of Python's, without a copy.
pub fn give<T: Element, D: Dimension>(py: Python, array: numpy::ndarray::Array<T, D>) -> Py<PyAny> {
    array.into_pyarray(py).into_any().unbind()
}

/// A tensor of the test vectors as an array: masks are bool, codes and permutations int64, half precision float32.
pub fn of_case_tensor(py: Python, tensor: &CaseTensor) -> Py<PyAny> {
    fn shaped<A: Element>(py: Python, tensor: &CaseTensor, convert: impl FnMut(&f64) -> A) -> Py<PyAny> {
        let values: Vec<A> = tensor.values.iter().map(convert).collect();
        let shape = IxDyn(&tensor.shape);
        give(
            py,
            ArrayD::from_shape_vec(shape, values).expect("a tensor has as many values as its shape says"),
        )
    }
    match tensor.contents {
        Contents::Reals(FloatType::F64) => shaped(py, tensor, |x| *x),
        Contents::Reals(_) => shaped(py, tensor, |x| *x as f32),
        Contents::Flags => shaped(py, tensor, |x| *x != 0.0),
        Contents::Integers => shaped(py, tensor, |x| *x as i64),
    }
}

/// A copy of an array as a tensor of the test vectors. A number is a vector of one.
///
/// # Errors
/// `TypeError` for what is not an array of numbers.
pub fn to_case_tensor(name: &str, value: &Bound<PyAny>) -> PyResult<CaseTensor> {
    let is_bfloat16 = bfloat16(value).is_some();
    let array = match is_bfloat16 && value.hasattr("float")? {
        true => as_array(name, &value.call_method0("float")?)?, // of PyTorch: exact
        false => as_array(name, value)?,
    };
    let dtype = array.dtype();
    let contents = match (dtype.kind(), dtype.itemsize()) {
        _ if is_bfloat16 => Contents::Reals(FloatType::Bf16),
        (b'f', 8) => Contents::Reals(FloatType::F64),
        (b'f', 4) => Contents::Reals(FloatType::F32),
        (b'f', 2) => Contents::Reals(FloatType::F16),
        (b'b', _) | (b'u', 1) => Contents::Flags,
        (b'i' | b'u', _) => Contents::Integers,
        _ => {
            let said = format!("{name} has type {dtype}: numbers, integers or bool are needed");
            return Err(PyTypeError::new_err(said));
        }
    };
    let numpy = array.py().import("numpy")?;
    let wide = array.call_method1("astype", (numpy.getattr("float64")?,))?;
    let wide: PyReadonlyArrayDyn<f64> = numpy.call_method1("atleast_1d", (wide,))?.extract()?;
    let shape = wide.shape().to_vec();
    let columns = *shape.last().unwrap_or(&0);
    let rows = shape[..shape.len() - 1].iter().product();
    let values: Vec<f64> = wide.as_array().iter().copied().collect();
    let values = Array2::from_shape_vec((rows, columns), values).expect("rows times columns values");
    Ok(CaseTensor { shape, values, contents })
}
