//! The trait of a device: implemented by CUDA, and by the emulator of the tests.

use std::marker::PhantomData;

use super::kernel_files::KernelFile;
use crate::device_error::DeviceError;

/// A number that lives on the device with the same bytes as on the host.
///
/// # Safety
/// Every pattern of bits must be a value, and that of zeros the default.
pub unsafe trait Plain: Copy + Default + Send + Sync + 'static {}
// SAFETY: integers and floats.
unsafe impl Plain for u8 {}
unsafe impl Plain for u16 {}
unsafe impl Plain for u32 {}
unsafe impl Plain for u64 {}
unsafe impl Plain for f32 {}
// SAFETY: wrappers of 16 bits.
unsafe impl Plain for half::bf16 {}
// SAFETY: as above.
unsafe impl Plain for half::f16 {}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// The address of device memory.
    Address(u64),
    /// `unsigned`
    U32(u32),
    /// `float`
    F32(f32),
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Argument::U32(value)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Argument::F32(value)
    }
}

/// One kernel over a grid of blocks.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// A file of `kernels/`.
    pub file: &'static KernelFile,
    /// A `__global__` function in it.
    pub kernel: &'a str,
    /// Blocks in x and y.
    pub grid: (u32, u32),
    /// Threads per block.
    pub block: u32,
    /// In the order of the kernel's parameters.
    pub arguments: Vec<Argument>,
}

/// A matrix operand of a library call: column-major, column i begins at `address + i * leading` elements.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Of the first element.
    pub address: u64,
    /// Elements from one column to the next.
    pub leading: usize,
    /// Takes the transpose.
    pub transposed: bool,
}

/// A device. All calls happen in order, as on one stream. Matrices of [`gemm`](Device::gemm), [`potrf`](Device::potrf) and
/// [`trsm`](Device::trsm) are column-major, as in cuBLAS and cuSOLVER; [`blas`](super::blas) takes row-major ones.
///
/// The addresses that `launch` and the library calls are given must point into live memory of this device; the
/// wrappers in this module check shapes before they call.
pub trait Device: Send + Sync {
    /// Device memory; freed when dropped.
    type Memory: Send + Sync;

    /// Name and versions, for reports.
    fn describe(&self) -> String;

    /// Uninitialised memory.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn alloc(&self, bytes: usize) -> Result<Self::Memory, DeviceError>;

    /// The address of its first byte.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Host to device, from the beginning of `to`.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn upload(&self, from: &[u8], to: &mut Self::Memory) -> Result<(), DeviceError>;

    /// Sets every byte to zero, on the device.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn zero(&self, memory: &mut Self::Memory) -> Result<(), DeviceError>;

    /// Device to host, from the beginning of `from`; waits for all before it.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also for an earlier launch that failed since.
    fn download(&self, from: &Self::Memory, to: &mut [u8]) -> Result<(), DeviceError>;

    /// Launches a kernel.
    ///
    /// # Errors
    /// [`DeviceError::Compile`], [`DeviceError::Failed`].
    fn launch(&self, launch: &Launch) -> Result<(), DeviceError>;

    /// C (m x n) <- alpha A (m x inner) B (inner x n) + beta C, in full f32 (no TF32). With beta = 0, C is not read.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn gemm(
        &self,
        shape: (usize, usize, usize),
        alpha: f32,
        a: Operand,
        b: Operand,
        beta: f32,
        c: Operand,
    ) -> Result<(), DeviceError>;

    /// The Cholesky factor of the upper triangle of A (k x k), A = R^T R, in place; the lower triangle is neither read
    /// nor written. The result is LAPACK's info: 0, or the number of the first pivot that is not positive, from 1.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn potrf(&self, k: usize, a: Operand) -> Result<usize, DeviceError>;

    /// B <- R^-1 B for the upper triangle R (k x k) of A and B (k x n).
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    fn trsm(&self, k: usize, n: usize, a: Operand, b: Operand) -> Result<(), DeviceError>;
}

/// `len` numbers on a device.
pub struct Buffer<T, D: Device> {
    memory: D::Memory,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain, D: Device> Buffer<T, D> {
    /// Uninitialised numbers.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new(device: &D, len: usize) -> Result<Self, DeviceError> {
        // An allocation of zero bytes is an error on a device.
        let memory = device.alloc(len.max(1) * size_of::<T>())?;
        Ok(Buffer { memory, len, of: PhantomData })
    }

    /// A copy of numbers on the host.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn from_host(device: &D, host: &[T]) -> Result<Self, DeviceError> {
        let mut buffer = Self::new(device, host.len())?;
        // SAFETY: any value of `T: Plain` is its bytes.
        let bytes = unsafe { std::slice::from_raw_parts(host.as_ptr().cast(), size_of_val(host)) };
        device.upload(bytes, &mut buffer.memory)?;
        Ok(buffer)
    }

    /// `len` times zero.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn zeros(device: &D, len: usize) -> Result<Self, DeviceError> {
        let mut buffer = Self::new(device, len)?;
        buffer.clear(device)?;
        Ok(buffer)
    }

    /// Sets all numbers to zero.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn clear(&mut self, device: &D) -> Result<(), DeviceError> {
        device.zero(&mut self.memory)
    }

    /// A copy on the host.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn to_host(&self, device: &D) -> Result<Vec<T>, DeviceError> {
        let mut host = vec![T::default(); self.len];
        // SAFETY: any bytes are a value of `T: Plain`.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(host.as_mut_ptr().cast(), self.len * size_of::<T>()) };
        device.download(&self.memory, bytes)?;
        Ok(host)
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of number `index`.
    ///
    /// # Panics
    /// If it lies beyond the end.
    pub fn address(&self, device: &D, index: usize) -> u64 {
        assert!(index <= self.len, "element {index} of a buffer of {}", self.len);
        device.address(&self.memory) + (index * size_of::<T>()) as u64
    }

    /// The address of the first number, as a kernel's argument.
    pub fn argument(&self, device: &D) -> Argument {
        Argument::Address(self.address(device, 0))
    }
}
