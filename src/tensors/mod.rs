//! safetensors files: reading one by memory map, and writing one tensor by tensor.
//!
//! The crate `safetensors` decides which files are valid. What is written here beside it: errors that name file and tensor
//! (`header`), values as arrays of any type ([`TensorData`]), and files written tensor by tensor ([`TensorWriter`]).

mod file;
mod float_type;
mod header;
mod writer;

pub use safetensors::tensor::Dtype;

pub use self::file::{TensorData, TensorFile};
pub use self::float_type::{FloatType, round_for_storage};
pub use self::header::TensorInfo;
pub use self::writer::{TensorWriter, reserve};
pub use crate::tensor_error::TensorError;
