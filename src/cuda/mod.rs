//! The CUDA side of calibration, pruning and the decoding product: the host side of every kernel in `kernels/`, under the names of
//! [`reference`](mod@crate::reference), and the [`Backend`](crate::backend::Backend) made of them.
//!
//! Everything above [`device`] runs unchanged on the emulator of the tests, which checks each access of each kernel on a
//! machine without a GPU.

pub mod activation;
pub mod blas;
pub mod device;
pub mod driver;
pub mod factor;
pub mod kernel_files;
mod launch;
mod libraries;
mod machine_code;
pub mod mask;
pub mod nvrtc;
mod owned;
pub mod panel;
pub mod products;
pub mod prune;
pub mod score;
pub mod select;
pub mod spmspv;
pub mod statistics;

pub use crate::device_error::DeviceError;
pub use device::Device;
pub use driver::Gpu;
pub use kernel_files::{COMMON, KERNEL_FILES, KernelFile};
pub use products::DeviceProducts;
pub use prune::Cuda;
