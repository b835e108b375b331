//! A GPU with a clock, and the rates that bound what runs on it.

use std::sync::OnceLock;

use cudarc::cublas::{CudaBlas, result as blas, sys as blas_sys};
use cudarc::driver::{DevicePtr, DevicePtrMut, DriverError, sys};
use duogpt::cuda::Gpu;
use half::bf16;

use crate::suite::{Clock, Rates, text, values};

impl Clock for Gpu {
    fn seconds(&self, work: &mut dyn FnMut() -> Result<(), String>) -> Result<f64, String> {
        // The default events do not time.
        let event = || self.stream().record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(text);
        let begin = event()?;
        work()?;
        let end = event()?;
        Ok(1e-3 * f64::from(begin.elapsed_ms(&end).map_err(text)?))
    }

    fn cache_bytes(&self) -> usize {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        self.stream().context().attribute(attribute).map_or(0, |bytes| bytes as usize)
    }

    fn library_product(&self, (n, k): (usize, usize), w: u64, x: u64, y: u64) -> Result<(), String> {
        static BLAS: OnceLock<CudaBlas> = OnceLock::new(); // there is one device
        if BLAS.get().is_none() {
            let _ = BLAS.set(CudaBlas::new(self.stream().clone()).map_err(text)?);
        }
        let blas = BLAS.get().ok_or("no cuBLAS")?;
        gemm(
            blas,
            (n, 1, k),
            (w, n.next_multiple_of(8)),
            (x, k),
            y,
            (false, blas_sys::cudaDataType::CUDA_R_16BF),
        )
    }
}

/// C (m x n) <- A (m x k, or its transpose) B (k x n), column-major, operands by address and leading dimension, sums in f32.
fn gemm(
    blas: &CudaBlas,
    (m, n, k): (usize, usize, usize),
    (a, leading_a): (u64, usize),
    (b, leading_b): (u64, usize),
    c: u64,
    (transposed, kind): (bool, blas_sys::cudaDataType),
) -> Result<(), String> {
    let (one, zero) = (1.0f32, 0.0f32);
    let a_as = match transposed {
        true => blas_sys::cublasOperation_t::CUBLAS_OP_T,
        false => blas_sys::cublasOperation_t::CUBLAS_OP_N,
    };
    // SAFETY: the callers' operands are live and of these shapes; f32 accumulation takes f32 scalars.
    unsafe {
        blas::gemm_ex(
            *blas.handle(),
            a_as,
            blas_sys::cublasOperation_t::CUBLAS_OP_N,
            m as i32,
            n as i32,
            k as i32,
            std::ptr::from_ref(&one).cast(),
            a as *const _,
            kind,
            leading_a as i32,
            b as *const _,
            kind,
            leading_b as i32,
            std::ptr::from_ref(&zero).cast(),
            c as *mut _,
            blas_sys::cudaDataType::CUDA_R_32F,
            m as i32,
            blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(text)
}

/// The median of a few runs, after one to warm up.
fn median(gpu: &Gpu, mut work: impl FnMut() -> Result<(), String>) -> Result<f64, String> {
    work()?;
    let samples = (0..9).map(|_| gpu.seconds(&mut work)).collect::<Result<Vec<f64>, _>>()?;
    Ok(crate::suite::Timing::of(samples).seconds)
}

/// Measures the rates of this device.
pub fn rates(gpu: &Gpu) -> Result<Rates, String> {
    const BYTES: usize = 1 << 30;
    const SIDE: usize = 8192;
    let stream = gpu.stream();
    let driver = |error: DriverError| text(error);
    let copy = {
        let from = stream.alloc_zeros::<u8>(BYTES).map_err(driver)?;
        let mut to = stream.alloc_zeros::<u8>(BYTES).map_err(driver)?;
        median(gpu, || stream.memcpy_dtod(&from, &mut to).map_err(driver))?
    };

    let numbers = values(1, SIDE, SIDE);
    let numbers = numbers.as_slice().expect("row-major");
    let halves: Vec<u16> = numbers.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    let blas = CudaBlas::new(stream.clone()).map_err(text)?;
    let singles = stream.clone_htod(numbers).map_err(driver)?;
    let halves = stream.clone_htod(&halves).map_err(driver)?;
    let mut product = stream.alloc_zeros::<f32>(SIDE * SIDE).map_err(driver)?;
    let mut multiply = |a: u64, kind: blas_sys::cudaDataType| {
        let (c, _guard) = product.device_ptr_mut(stream);
        gemm(&blas, (SIDE, SIDE, SIDE), (a, SIDE), (a, SIDE), c, (true, kind))
    };
    let of_bf16 = halves.device_ptr(stream).0;
    let of_f32 = singles.device_ptr(stream).0;
    let bf16 = median(gpu, || multiply(of_bf16, blas_sys::cudaDataType::CUDA_R_16BF))?;
    let f32 = median(gpu, || multiply(of_f32, blas_sys::cudaDataType::CUDA_R_32F))?;
    let operations = 2.0 * (SIDE as f64).powi(3);
    Ok(Rates {
        copy_bytes_per_second: 2.0 * BYTES as f64 / copy,
        bf16_operations_per_second: operations / bf16,
        f32_operations_per_second: operations / f32,
    })
}
