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
pub mod mask;
pub mod nvrtc;
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
pub use products::DeviceProducts;
pub use prune::Cuda;

use device::{Argument, Launch};

/// A file of `kernels/`.
#[derive(Debug)]
pub struct KernelFile {
    /// Its name.
    pub name: &'static str,
    /// Its text, without [`COMMON`].
    pub source: &'static str,
}

/// What stands in front of every kernel file: `kernels/common.cuh`.
pub const COMMON: &str = include_str!("../../kernels/common.cuh");

macro_rules! kernel_files {
    ($($constant:ident = $name:literal),* $(,)?) => {
        $(pub(crate) static $constant: KernelFile =
            KernelFile { name: $name, source: include_str!(concat!("../../kernels/", $name)) };)*
        /// All kernel files.
        pub static KERNEL_FILES: &[&KernelFile] = &[$(&$constant),*];
    };
}
kernel_files! {
    ACTIVATION = "activation.cu",
    STATISTICS = "statistics.cu",
    FACTOR = "factor.cu",
    SCORE = "score.cu",
    MASK = "mask.cu",
    PANEL = "panel.cu",
    SELECT = "select.cu",
    SPMSPV = "spmspv.cu",
}

impl KernelFile {
    /// The `__global__` functions of a source, in its order.
    pub fn kernels_of(source: &str) -> Vec<&str> {
        fn name(rest: &str) -> &str {
            let rest = rest.trim_start();
            let rest = match rest.strip_prefix("__launch_bounds__(") {
                Some(bounds) => bounds.split_once(')').map_or("", |(_, rest)| rest).trim_start(),
                None => rest,
            };
            rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or("")
        }
        source.split("__global__ void").skip(1).map(name).collect()
    }
}

/// Threads per block of every kernel that does not say otherwise.
const THREADS: u32 = 256;

/// A dimension or count as kernels take it.
///
/// # Panics
/// When it does not fit 32 bits: no matrix of that size fits a device.
fn number(x: usize) -> u32 {
    u32::try_from(x).expect("a dimension on a device fits 32 bits")
}

/// Launches a kernel with enough blocks of [`THREADS`] threads for `count` times `threads_each` threads.
fn launch<D: Device>(
    device: &D,
    file: &'static KernelFile,
    kernel: &str,
    count: usize,
    threads_each: u32,
    arguments: Vec<Argument>,
) -> Result<(), DeviceError> {
    if count == 0 {
        return Ok(());
    }
    let grid = (number(count.div_ceil((THREADS / threads_each) as usize)), 1);
    device.launch(&Launch { file, kernel, grid, block: THREADS, arguments })
}
