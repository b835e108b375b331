//! A GPU with a clock, and the rates that bound what runs on it.

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
        let side = SIDE as i32;
        let (one, zero) = (1.0f32, 0.0f32);
        // SAFETY: the operands are SIDE x SIDE and live; f32 accumulation takes f32 scalars.
        unsafe {
            blas::gemm_ex(
                *blas.handle(),
                blas_sys::cublasOperation_t::CUBLAS_OP_T,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                side,
                side,
                side,
                std::ptr::from_ref(&one).cast(),
                a as *const _,
                kind,
                side,
                a as *const _,
                kind,
                side,
                std::ptr::from_ref(&zero).cast(),
                c as *mut _,
                blas_sys::cudaDataType::CUDA_R_32F,
                side,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(text)
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
