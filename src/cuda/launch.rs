//! Launches with one thread, or a few, for each element.

use super::device::{Argument, Device, Launch};
use super::kernel_files::KernelFile;
use crate::device_error::DeviceError;

/// Threads per block, unless a kernel sets another number.
pub(super) const THREADS: u32 = 256;

/// A dimension or count as kernels take it.
///
/// # Panics
/// When it does not fit 32 bits: no matrix of that size fits a device.
pub(super) fn number(x: usize) -> u32 {
    u32::try_from(x).expect("a dimension on a device fits 32 bits")
}

/// Launches a kernel with enough blocks of [`THREADS`] threads for `count` times `threads_each` threads.
pub(super) fn launch<D: Device>(
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
