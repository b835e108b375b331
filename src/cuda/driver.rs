//! The real device: CUDA's driver, cuBLAS and cuSOLVER, loaded at run time. One binary serves machines with and without.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cudarc::cublas::{CudaBlas, result as blas, sys as blas_sys};
use cudarc::cusolver::safe::DnHandle;
use cudarc::cusolver::sys as solver_sys;
use cudarc::driver::{
    CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DriverError, LaunchConfig,
    PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;
use sha2::{Digest, Sha256};

use super::device::{Argument, Device, DeviceError, Launch, Operand};
use super::{KernelFile, nvrtc};
use crate::files::write_atomically;

/// The oldest driver that the libraries of CUDA 12 work with.
const OLDEST_DRIVER: i32 = 12000;

/// A CUDA device.
pub struct Gpu {
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    solver: DnHandle,
    /// Such as `sm_90`.
    architecture: String,
    name: String,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
}

fn failed(what: &str) -> impl Fn(DriverError) -> DeviceError + '_ {
    move |error| DeviceError::Failed { what: what.into(), detail: error.to_string() }
}

impl Gpu {
    /// Device number `ordinal`.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] says what is missing and what to do.
    pub fn new(ordinal: usize) -> Result<Self, DeviceError> {
        libraries()?;
        let unavailable = |error: DriverError| {
            DeviceError::Unavailable(format!("{error}; `nvidia-smi` says whether there is a device"))
        };
        let mut driver = 0;
        // SAFETY: writes one integer; the library is there.
        unsafe { sys::cuDriverGetVersion(&mut driver) }.result().map_err(unavailable)?;
        if driver < OLDEST_DRIVER {
            return Err(DeviceError::Unavailable(format!(
                "the driver is for CUDA {}.{}, install one for CUDA 12 or newer",
                driver / 1000,
                driver % 1000 / 10
            )));
        }
        let context = CudaContext::new(ordinal).map_err(unavailable)?;
        let (major, minor) = context.compute_capability().map_err(unavailable)?;
        let name = context.name().map_err(unavailable)?;
        let stream = context.default_stream();
        let library = |error: &dyn std::fmt::Display| DeviceError::Unavailable(error.to_string());
        let blas = CudaBlas::new(stream.clone()).map_err(|error| library(&error))?;
        let solver = DnHandle::new(stream.clone()).map_err(|error| library(&error))?;
        let name =
            format!("{name} (sm_{major}{minor}), driver for CUDA {}.{}", driver / 1000, driver % 1000 / 10);
        Ok(Gpu {
            stream,
            blas,
            solver,
            architecture: format!("sm_{major}{minor}"),
            name,
            modules: Mutex::default(),
        })
    }

    /// The one stream that all work is on: for timing events, and for libraries of the caller's own.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Every thread that calls CUDA needs the context.
    fn bind(&self) -> Result<(), DeviceError> {
        self.stream.context().bind_to_thread().map_err(failed("binding the device to a thread"))
    }

    /// Compiled at first use, then kept on disk for the next process.
    fn module(&self, file: &'static KernelFile) -> Result<Arc<CudaModule>, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(module) = modules.get(file.name) {
            return Ok(module.clone());
        }
        let kept = cache_directory().map(|directory| {
            let key = Sha256::digest(nvrtc::key(file, &self.architecture));
            let key: String = key.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            directory.join(format!("{}-{key}.cubin", file.name))
        });
        let cubin = match kept.as_ref().and_then(|path| fs::read(path).ok()) {
            Some(cubin) => cubin,
            None => {
                let cubin = nvrtc::compile(file, &self.architecture)?.cubin;
                // A cache that cannot be written costs seconds at the next start, and nothing else.
                if let Some(path) = &kept
                    && path.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok())
                {
                    let _ = write_atomically(path, &cubin);
                }
                cubin
            }
        };
        let module = self.stream.context().load_module(Ptx::from_binary(cubin)).map_err(failed(file.name))?;
        modules.insert(file.name, module.clone());
        Ok(module)
    }
}

/// Asks for every library: cudarc panics where one is missing.
fn libraries() -> Result<(), DeviceError> {
    // SAFETY: loads libraries of NVIDIA and drops them again.
    let present = unsafe {
        [
            ("libcuda", sys::is_culib_present(), "install NVIDIA's driver"),
            ("libnvrtc", nvrtc::is_present(), TOOLKIT),
            ("libcublas", blas_sys::is_culib_present(), TOOLKIT),
            ("libcusolver", solver_sys::is_culib_present(), TOOLKIT),
        ]
    };
    match present.into_iter().find(|(_, present, _)| !present) {
        Some((library, _, advice)) => {
            Err(DeviceError::Unavailable(format!("{library} was not found; {advice}, or use --backend cpu")))
        }
        None => Ok(()),
    }
}

const TOOLKIT: &str = "install the CUDA toolkit 12 or newer and put its libraries on LD_LIBRARY_PATH";

fn cache_directory() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    cache.map(|cache| cache.join("duogpt/kernels"))
}

fn transpose(operand: Operand) -> blas_sys::cublasOperation_t {
    match operand.transposed {
        true => blas_sys::cublasOperation_t::CUBLAS_OP_T,
        false => blas_sys::cublasOperation_t::CUBLAS_OP_N,
    }
}

/// A dimension as the libraries take it.
fn int(x: usize) -> i32 {
    i32::try_from(x).expect("a dimension on a device fits 31 bits")
}

impl Device for Gpu {
    type Memory = CudaSlice<u8>;

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn alloc(&self, bytes: usize) -> Result<CudaSlice<u8>, DeviceError> {
        self.bind()?;
        // SAFETY: `Buffer` promises no content.
        unsafe { self.stream.alloc::<u8>(bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = self.stream.context().mem_get_info().map_or(0, |(free, _)| free);
                DeviceError::OutOfMemory {
                    bytes,
                    advice: format!(
                        "{free} are free; end other programs on it, take a larger device, or use --backend cpu"
                    ),
                }
            }
            _ => failed("allocation")(error),
        })
    }

    fn address(&self, memory: &CudaSlice<u8>) -> u64 {
        // All work is on one stream: there is nothing to wait for or to record.
        memory.device_ptr(&self.stream).0
    }

    fn upload(&self, from: &[u8], to: &mut CudaSlice<u8>) -> Result<(), DeviceError> {
        self.bind()?;
        self.stream.memcpy_htod(from, to).map_err(failed("copy to the device"))
    }

    fn download(&self, from: &CudaSlice<u8>, to: &mut [u8]) -> Result<(), DeviceError> {
        self.bind()?;
        self.stream.memcpy_dtoh(&from.slice(..to.len()), to).map_err(failed("copy from the device"))?;
        self.stream.synchronize().map_err(failed("what was started before a copy"))
    }

    fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        self.bind()?;
        let what = format!("{}::{}", launch.file.name, launch.kernel);
        let function = self.module(launch.file)?.load_function(launch.kernel).map_err(failed(&what))?;
        let mut builder = self.stream.launch_builder(&function);
        for argument in &launch.arguments {
            match argument {
                Argument::Address(address) => builder.arg(address),
                Argument::U32(value) => builder.arg(value),
                Argument::F32(value) => builder.arg(value),
            };
        }
        let shape = LaunchConfig {
            grid_dim: (launch.grid.0, launch.grid.1, 1),
            block_dim: (launch.block, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the wrappers of this module give each kernel its arguments; the emulator checks the same calls.
        unsafe { builder.launch(shape) }.map_err(failed(&what))?;
        Ok(())
    }

    fn gemm(
        &self,
        (m, n, inner): (usize, usize, usize),
        alpha: f32,
        a: Operand,
        b: Operand,
        beta: f32,
        c: Operand,
    ) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: operands lie in live allocations, as `Device` demands. The default math mode keeps f32 inputs whole.
        unsafe {
            blas::sgemm(
                *self.blas.handle(),
                transpose(a),
                transpose(b),
                int(m),
                int(n),
                int(inner),
                &alpha,
                a.address as *const f32,
                int(a.leading),
                b.address as *const f32,
                int(b.leading),
                &beta,
                c.address as *mut f32,
                int(c.leading),
            )
        }
        .map_err(|error| DeviceError::Failed { what: "cublasSgemm".into(), detail: error.to_string() })
    }

    fn potrf(&self, k: usize, a: Operand) -> Result<usize, DeviceError> {
        self.bind()?;
        let what = "cusolverDnSpotrf";
        let upper = solver_sys::cublasFillMode_t::CUBLAS_FILL_MODE_UPPER;
        let (matrix, leading) = (a.address as *mut f32, int(a.leading));
        let library = |error: cudarc::cusolver::result::CusolverError| DeviceError::Failed {
            what: what.into(),
            detail: error.to_string(),
        };
        let mut work_size = 0;
        // SAFETY: the matrix lies in a live allocation, as `Device` demands.
        unsafe {
            solver_sys::cusolverDnSpotrf_bufferSize(
                self.solver.cu(),
                upper,
                int(k),
                matrix,
                leading,
                &mut work_size,
            )
        }
        .result()
        .map_err(library)?;
        let mut work = self.alloc(4 * work_size.max(1) as usize)?;
        let mut info = self.alloc(4)?;
        {
            let (work, _work_guard) = work.device_ptr_mut(&self.stream);
            let (info, _info_guard) = info.device_ptr_mut(&self.stream);
            // SAFETY: as above, and the work space has the size asked for.
            unsafe {
                solver_sys::cusolverDnSpotrf(
                    self.solver.cu(),
                    upper,
                    int(k),
                    matrix,
                    leading,
                    work as *mut f32,
                    work_size,
                    info as *mut i32,
                )
            }
            .result()
            .map_err(library)?;
        }
        let mut bytes = [0; 4];
        self.download(&info, &mut bytes)?;
        let info = i32::from_ne_bytes(bytes);
        usize::try_from(info).map_err(|_| DeviceError::Failed {
            what: what.into(),
            detail: format!("parameter {} is wrong", -info),
        })
    }

    fn trsm(&self, k: usize, n: usize, a: Operand, b: Operand) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: operands lie in live allocations, as `Device` demands.
        unsafe {
            blas_sys::cublasStrsm_v2(
                *self.blas.handle(),
                blas_sys::cublasSideMode_t::CUBLAS_SIDE_LEFT,
                blas_sys::cublasFillMode_t::CUBLAS_FILL_MODE_UPPER,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                blas_sys::cublasDiagType_t::CUBLAS_DIAG_NON_UNIT,
                int(k),
                int(n),
                &1.0,
                a.address as *const f32,
                int(a.leading),
                b.address as *mut f32,
                int(b.leading),
            )
        }
        .result()
        .map_err(|error| DeviceError::Failed { what: "cublasStrsm".into(), detail: error.to_string() })
    }
}
