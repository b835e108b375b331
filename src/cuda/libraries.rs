//! The functions of CUDA's libraries that this crate calls, found at run time: one binary serves machines with and without a GPU.
//!
//! A status is a number and not an `enum`, because a newer library may return one that no list contains. The signatures are those
//! of NVIDIA's headers `cuda.h`, `nvrtc.h`, `cublas_v2.h`, `cublas_api.h` and `cusolverDn.h`. Each field has the name of its
//! function, with the version that the header's macro selects.

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::device_error::DeviceError;

/// What a function returns: 0, or the number of an error.
pub type Status = i32;
/// A context, stream, module, ...: an address that only its library understands.
pub type Handle = *mut c_void;
/// The address of device memory.
pub type Address = u64;

pub(super) const TOOLKIT: &str =
    "install the CUDA toolkit 12 or newer and put its libraries on LD_LIBRARY_PATH";

/// A struct of function pointers, and `load`, which opens the library once for the life of the process.
macro_rules! library {
    ($(#[$doc:meta])* $name:ident, $library:literal, $files:expr, $advice:expr; $($function:ident($($argument:ty),*);)+) => {
        $(#[$doc])*
        #[allow(non_snake_case, reason = "the names of the C functions")]
        pub struct $name {
            $(pub(super) $function: unsafe extern "C" fn($($argument),*) -> Status,)+
        }

        impl $name {
            /// # Errors
            /// [`DeviceError::Unavailable`]: the library is not there, or too old.
            pub fn load() -> Result<&'static Self, DeviceError> {
                static LOADED: OnceLock<Result<$name, String>> = OnceLock::new();
                let loaded = LOADED.get_or_init(|| {
                    let advice = $advice;
                    let library = open($library, &$files, advice)?;
                    Ok($name {
                        $($function: {
                            let symbol = concat!(stringify!($function), "\0").as_bytes();
                            // SAFETY: the type is that of the header.
                            *unsafe { library.get(symbol) }.map_err(|_| {
                                format!("{} has no {}, it is too old; {advice}, or use --backend cpu",
                                    $library, stringify!($function))
                            })?
                        },)+
                    })
                });
                loaded.as_ref().map_err(|text| DeviceError::Unavailable(text.clone()))
            }
        }
    };
}

/// Opens the first file of a library that there is, for the life of the process.
fn open(library: &str, files: &[&str], advice: &str) -> Result<&'static Library, String> {
    let mut why = String::new();
    for file in files {
        // SAFETY: NVIDIA's libraries may be initialised at any time, by any thread.
        match unsafe { Library::new(*file) } {
            Ok(found) => return Ok(Box::leak(Box::new(found))),
            // A file that is there and cannot be loaded has another reason than the last name tried.
            Err(error) => {
                let error = error.to_string();
                if !error.contains("No such file") {
                    why = format!(" ({error})");
                }
            }
        }
    }
    Err(format!("{library} was not found{why}; {advice}, or use --backend cpu"))
}

library! {
    /// CUDA's driver.
    Driver, "libcuda", ["libcuda.so.1", "libcuda.so"], "install NVIDIA's driver for CUDA 12 or newer";
    cuInit(u32);
    cuDriverGetVersion(*mut i32);
    cuDeviceGet(*mut i32, i32);
    cuDeviceGetName(*mut c_char, i32, i32);
    cuDeviceGetAttribute(*mut i32, i32, i32);
    cuDevicePrimaryCtxRetain(*mut Handle, i32);
    cuDevicePrimaryCtxRelease_v2(i32);
    cuCtxSetCurrent(Handle);
    cuStreamCreate(*mut Handle, u32);
    cuStreamDestroy_v2(Handle);
    cuStreamSynchronize(Handle);
    cuEventCreate(*mut Handle, u32);
    cuEventDestroy_v2(Handle);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuEventElapsedTime(*mut f32, Handle, Handle);
    cuMemAllocAsync(*mut Address, usize, Handle);
    cuMemFreeAsync(Address, Handle);
    cuMemHostAlloc(*mut *mut c_void, usize, u32);
    cuMemFreeHost(*mut c_void);
    cuMemcpyHtoDAsync_v2(Address, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2(*mut c_void, Address, usize, Handle);
    cuMemcpyDtoDAsync_v2(Address, Address, usize, Handle);
    cuMemsetD8Async(Address, u8, usize, Handle);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuDeviceGetDefaultMemPool(*mut Handle, i32);
    cuMemPoolSetAttribute(Handle, i32, *mut c_void);
    cuMemPoolGetAttribute(Handle, i32, *mut c_void);
    cuMemPoolTrimTo(Handle, usize);
    cuModuleLoadData(*mut Handle, *const c_void);
    cuModuleUnload(Handle);
    cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    cuFuncGetAttribute(*mut i32, i32, Handle);
    cuFuncSetAttribute(Handle, i32, i32);
    cuLaunchKernel(Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut *mut c_void, *mut *mut c_void);
    cuGetErrorName(Status, *mut *const c_char);
    cuGetErrorString(Status, *mut *const c_char);
}

library! {
    /// The run-time compiler.
    Nvrtc, "libnvrtc", ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"], TOOLKIT;
    nvrtcVersion(*mut i32, *mut i32);
    nvrtcGetNumSupportedArchs(*mut i32);
    nvrtcGetSupportedArchs(*mut i32);
    nvrtcCreateProgram(*mut Handle, *const c_char, *const c_char, i32, *const *const c_char, *const *const c_char);
    nvrtcDestroyProgram(*mut Handle);
    nvrtcCompileProgram(Handle, i32, *const *const c_char);
    nvrtcGetProgramLogSize(Handle, *mut usize);
    nvrtcGetProgramLog(Handle, *mut c_char);
    nvrtcGetCUBINSize(Handle, *mut usize);
    nvrtcGetCUBIN(Handle, *mut c_char);
    nvrtcGetPTXSize(Handle, *mut usize);
    nvrtcGetPTX(Handle, *mut c_char);
}

library! {
    /// cuBLAS: matrices are column-major.
    Cublas, "libcublas", ["libcublas.so", "libcublas.so.13", "libcublas.so.12"], TOOLKIT;
    cublasCreate_v2(*mut Handle);
    cublasDestroy_v2(Handle);
    cublasSetStream_v2(Handle, Handle);
    cublasSgemm_v2(
        Handle, i32, i32, i32, i32, i32, *const f32, Address, i32, Address, i32, *const f32, Address, i32
    );
    cublasGemmEx(
        Handle, i32, i32, i32, i32, i32, *const c_void, Address, i32, i32, Address, i32, i32, *const c_void, Address, i32, i32,
        i32, i32
    );
    cublasStrsm_v2(Handle, i32, i32, i32, i32, i32, i32, *const f32, Address, i32, Address, i32);
}

library! {
    /// cuSOLVER's dense part: matrices are column-major.
    Cusolver, "libcusolver", ["libcusolver.so", "libcusolver.so.12", "libcusolver.so.11"], TOOLKIT;
    cusolverDnCreate(*mut Handle);
    cusolverDnDestroy(Handle);
    cusolverDnSetStream(Handle, Handle);
    cusolverDnSpotrf_bufferSize(Handle, i32, i32, Address, i32, *mut i32);
    cusolverDnSpotrf(Handle, i32, i32, Address, i32, Address, i32, Address);
}

/// Numbers of `cuda.h`.
pub(super) mod driver {
    pub const INVALID_VALUE: i32 = 1;
    pub const OUT_OF_MEMORY: i32 = 2;

    // CUdevice_attribute
    pub const L2_CACHE_SIZE: i32 = 38;
    pub const COMPUTE_CAPABILITY_MAJOR: i32 = 75;
    pub const COMPUTE_CAPABILITY_MINOR: i32 = 76;
    pub const MEMORY_POOLS_SUPPORTED: i32 = 115;
    // CUmemPool_attribute
    pub const RELEASE_THRESHOLD: i32 = 4;
    pub const USED_MEM_CURRENT: i32 = 7;
    // CUfunction_attribute
    pub const SHARED_SIZE_BYTES: i32 = 1;
    pub const PREFERRED_SHARED_MEMORY_CARVEOUT: i32 = 9;
    // CUstream_flags: does not wait for the default stream
    pub const NON_BLOCKING: u32 = 1;
    // CUevent_flags
    pub const DISABLE_TIMING: u32 = 2;
}

/// Numbers of `cublas_api.h`, which cuSOLVER uses too, and of `library_types.h`.
pub(super) mod blas {
    pub const ALLOC_FAILED: i32 = 3;

    pub const OP_N: i32 = 0;
    pub const OP_T: i32 = 1;
    pub const FILL_MODE_UPPER: i32 = 1;
    pub const SIDE_LEFT: i32 = 0;
    pub const DIAG_NON_UNIT: i32 = 0;
    pub const R_32F: i32 = 0;
    pub const R_16BF: i32 = 14;
    pub const COMPUTE_32F: i32 = 68;
    pub const GEMM_DEFAULT: i32 = -1;
}

/// `cusolverStatus_t` of an allocation that failed.
pub(super) const SOLVER_ALLOC_FAILED: i32 = 2;

impl Driver {
    /// What a status of the driver means.
    pub(super) fn explain(&self, status: Status) -> String {
        let text = |function: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text = std::ptr::null();
            // SAFETY: gives a text that is never freed, or a status and no text.
            unsafe {
                let known = function(status, &mut text) == 0 && !text.is_null();
                known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        match (text(self.cuGetErrorName), text(self.cuGetErrorString)) {
            (Some(name), Some(string)) => format!("{name}, {string}"),
            (Some(text), None) | (None, Some(text)) => text,
            (None, None) => format!("status {status}, which this driver does not explain"),
        }
    }
}

/// What a status of cuBLAS means.
pub(super) fn explain_blas(status: Status) -> String {
    let name = match status {
        1 => "NOT_INITIALIZED",
        blas::ALLOC_FAILED => "ALLOC_FAILED",
        7 => "INVALID_VALUE",
        8 => "ARCH_MISMATCH",
        11 => "MAPPING_ERROR",
        13 => "EXECUTION_FAILED",
        14 => "INTERNAL_ERROR",
        15 => "NOT_SUPPORTED",
        _ => return format!("status {status} of cuBLAS"),
    };
    format!("CUBLAS_STATUS_{name}")
}

/// What a status of cuSOLVER means.
pub(super) fn explain_solver(status: Status) -> String {
    let name = match status {
        1 => "NOT_INITIALIZED",
        SOLVER_ALLOC_FAILED => "ALLOC_FAILED",
        3 => "INVALID_VALUE",
        4 => "ARCH_MISMATCH",
        5 => "MAPPING_ERROR",
        6 => "EXECUTION_FAILED",
        7 => "INTERNAL_ERROR",
        _ => return format!("status {status} of cuSOLVER"),
    };
    format!("CUSOLVER_STATUS_{name}")
}
