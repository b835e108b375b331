//! The real device: CUDA's driver, cuBLAS and cuSOLVER, loaded at run time. One binary serves machines with and without a GPU.

use std::collections::HashMap;
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
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

use super::device::{Argument, Device, Launch, Operand};
use super::kernel_files::KernelFile;
use super::nvrtc;
use crate::device_error::DeviceError;
use crate::files::write_atomically;

/// A CUDA device.
pub struct Gpu {
    stream: Arc<CudaStream>,
    blas: ManuallyDrop<CudaBlas>,
    solver: ManuallyDrop<DnHandle>,
    /// The device may read an upload's source after the call has returned.
    reads_host_memory: bool,
    /// The CUDA version of the driver, as 1000 major + 10 minor.
    driver: i32,
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
        let compiler = nvrtc::version();
        check_versions(driver, compiler)?;
        let context = CudaContext::new(ordinal).map_err(unavailable)?;
        let (major, minor) = context.compute_capability().map_err(unavailable)?;
        let architecture = architecture((major, minor), &nvrtc::architectures(), compiler)?;
        let name = context.name().map_err(unavailable)?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS;
        let reads_host_memory = context.attribute(attribute).map_err(unavailable)? != 0;
        // SAFETY: all work is on one stream, whose order is the only one there is.
        unsafe { context.disable_event_tracking() };
        // Not the default stream: memory that another thread drops is freed on this one, whatever context is current there.
        let stream = context.new_stream().map_err(unavailable)?;
        keep_freed_memory(&context).map_err(unavailable)?;
        let library = |error: &dyn std::fmt::Display| {
            DeviceError::Unavailable(format!(
                "{error}; end other programs on the device, or use --backend cpu"
            ))
        };
        let blas = CudaBlas::new(stream.clone()).map_err(|error| library(&error))?;
        let solver = DnHandle::new(stream.clone()).map_err(|error| library(&error))?;
        let name = format!(
            "{name} (sm_{major}{minor}), driver for CUDA {}, NVRTC {}.{}",
            cuda_version(driver),
            compiler.0,
            compiler.1
        );
        Ok(Gpu {
            stream,
            blas: ManuallyDrop::new(blas),
            solver: ManuallyDrop::new(solver),
            reads_host_memory,
            driver,
            architecture,
            name,
            modules: Mutex::default(),
        })
    }

    /// The CUDA version of the driver, as 1000 major + 10 minor.
    pub fn driver(&self) -> i32 {
        self.driver
    }

    /// Bytes that are free on the device, and bytes that this process has allocated and not freed.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn memory(&self) -> Result<(usize, u64), DeviceError> {
        let what = "asking for the device's memory";
        self.stream.synchronize().map_err(failed(what))?;
        let free = self.stream.context().mem_get_info().map_err(failed(what))?.0;
        let mut used = 0u64;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        if let Some(pool) = memory_pool(self.stream.context()).map_err(failed(what))? {
            // SAFETY: the pool is the device's own; the attribute is 64 bits.
            unsafe { sys::cuMemPoolGetAttribute(pool, attribute, std::ptr::from_mut(&mut used).cast()) }
                .result()
                .map_err(failed(what))?;
        }
        Ok((free, used))
    }

    /// The stream of all work: for timing events, and for further libraries of the caller.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Every thread that calls CUDA needs the context.
    fn bind(&self) -> Result<(), DeviceError> {
        self.stream.context().bind_to_thread().map_err(failed("binding the device to a thread"))
    }

    /// The module of a kernel file, compiled at first use and kept on disk for the next process.
    fn module(&self, file: &'static KernelFile) -> Result<Arc<CudaModule>, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(module) = modules.get(file.name) {
            return Ok(module.clone());
        }
        let kept = cache_directory().map(|directory| {
            let key = Sha256::digest(nvrtc::key(file, &self.architecture));
            let key = base16ct::lower::encode_string(&key[..16]);
            directory.join(format!("{}-{key}.cubin", file.name))
        });
        let cubin = match kept.as_ref().and_then(|path| read_kept(path)) {
            Some(cubin) => cubin,
            None => {
                let cubin = nvrtc::compile(file, &self.architecture)?.cubin;
                if let Some(path) = &kept {
                    keep(path, &cubin);
                }
                cubin
            }
        };
        let module = self.stream.context().load_module(Ptx::from_binary(cubin)).map_err(failed(file.name))?;
        modules.insert(file.name, module.clone());
        Ok(module)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // After a failed launch the libraries fail too, and their wrappers panic: then the handles stay as they are.
        if self.bind().is_ok() && self.stream.synchronize().is_ok() {
            // SAFETY: dropped once, here.
            unsafe {
                ManuallyDrop::drop(&mut self.blas);
                ManuallyDrop::drop(&mut self.solver);
            }
        }
    }
}

fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The driver must be for CUDA 12 or newer, and not for an older major version than the libraries, whose machine code it
/// would refuse to load.
fn check_versions(driver: i32, (major, minor): (i32, i32)) -> Result<(), DeviceError> {
    let needed = major.max(12);
    if driver / 1000 >= needed {
        return Ok(());
    }
    Err(DeviceError::Unavailable(format!(
        "the driver is for CUDA {}, and libnvrtc is of CUDA {major}.{minor}: install a driver for CUDA {needed} or newer{}, \
         or use --backend cpu",
        cuda_version(driver),
        if driver / 1000 >= 12 { ", put older libraries on LD_LIBRARY_PATH" } else { "" }
    )))
}

/// The architecture to compile for: machine code runs on every later minor version of its major one.
fn architecture(
    (major, minor): (i32, i32),
    known: &[i32],
    compiler: (i32, i32),
) -> Result<String, DeviceError> {
    if major < 8 {
        return Err(DeviceError::Unavailable(format!(
            "the device has compute capability {major}.{minor}, and 8.0 or newer is required; use --backend cpu"
        )));
    }
    let runs = |&&known: &&i32| known / 10 == major && known % 10 <= minor;
    match known.iter().filter(runs).max() {
        Some(known) => Ok(format!("sm_{known}")),
        None => Err(DeviceError::Unavailable(format!(
            "libnvrtc of CUDA {}.{} does not compile for compute capability {major}.{minor}; {TOOLKIT}, of a newer version, \
             or use --backend cpu",
            compiler.0, compiler.1
        ))),
    }
}

/// The memory pool of `cuMemAllocAsync`; `None` if the device has none.
fn memory_pool(context: &Arc<CudaContext>) -> Result<Option<sys::CUmemoryPool>, DriverError> {
    if !context.has_async_alloc() {
        return Ok(None);
    }
    context.bind_to_thread()?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: writes a handle that is not to be destroyed.
    unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()) }.result()?;
    Ok(Some(pool))
}

/// Freed memory stays with the process: otherwise every wait for the device returns it, and the next allocation maps it anew.
fn keep_freed_memory(context: &Arc<CudaContext>) -> Result<(), DriverError> {
    let Some(pool) = memory_pool(context)? else { return Ok(()) };
    let mut most = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the pool is the device's own; the attribute is 64 bits.
    unsafe { sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut most).cast()) }.result()
}

/// Bytes of a digest in front of kept machine code: the driver is told no length, and would read beyond the end of a damaged
/// file.
const DIGEST: usize = 32;

/// Machine code that [`keep`] wrote; `None` if there is none or it is damaged.
fn read_kept(path: &Path) -> Option<Vec<u8>> {
    let mut content = fs::read(path).ok()?;
    let (digest, cubin) = content.split_at_checked(DIGEST)?;
    let whole = Sha256::digest(cubin).as_slice() == digest;
    whole.then(|| content.split_off(DIGEST))
}

/// Keeps machine code for the next process. If the cache cannot be written, the next start takes seconds longer.
fn keep(path: &Path, cubin: &[u8]) {
    if path.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok()) {
        let _ = write_atomically(path, &[Sha256::digest(cubin).as_slice(), cubin].concat());
    }
}

/// Checks that every library can be loaded: cudarc panics on a missing one.
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
        let out_of_memory = |error: &DriverError| error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        // SAFETY: `Buffer` promises no content.
        let alloc = || unsafe { self.stream.alloc::<u8>(bytes) };
        let memory = alloc().or_else(|error| match memory_pool(self.stream.context())? {
            // Freed memory is fragmented; once it is given back it may be enough.
            Some(pool) if out_of_memory(&error) => {
                self.stream.synchronize()?;
                // SAFETY: the pool is the device's own.
                unsafe { sys::cuMemPoolTrimTo(pool, 0) }.result()?;
                alloc()
            }
            _ => Err(error),
        });
        memory.map_err(|error| match out_of_memory(&error) {
            true => {
                let free = self.stream.context().mem_get_info().map_or(0, |(free, _)| free);
                let advice = format!(
                    "{} MiB are free; end other programs on it, take a larger device, or use --backend cpu",
                    free >> 20
                );
                DeviceError::OutOfMemory { bytes, advice }
            }
            false => failed("allocation")(error),
        })
    }

    fn address(&self, memory: &CudaSlice<u8>) -> u64 {
        // All work is on one stream: there is nothing to wait for or to record.
        memory.device_ptr(&self.stream).0
    }

    fn upload(&self, from: &[u8], to: &mut CudaSlice<u8>) -> Result<(), DeviceError> {
        self.bind()?;
        self.stream.memcpy_htod(from, to).map_err(failed("copy to the device"))?;
        // Elsewhere the source has been read when the call returns.
        if self.reads_host_memory {
            self.stream.synchronize().map_err(failed("copy to the device"))
        } else {
            Ok(())
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_machine_code_is_compiled_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/kernel.cubin");
        let cubin: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        assert_eq!(read_kept(&path), None);
        keep(&path, &cubin);
        assert_eq!(read_kept(&path), Some(cubin.clone()));
        let whole = fs::read(&path).unwrap();
        for length in [0, 10, DIGEST, DIGEST + 1, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(read_kept(&path), None, "{length} of {} bytes", whole.len());
        }
        let mut changed = whole.clone();
        changed[500] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_eq!(read_kept(&path), None);
        keep(&path, &cubin);
        assert_eq!(read_kept(&path), Some(cubin));
    }

    #[test]
    fn versions_that_do_not_fit_are_refused_with_advice() {
        let refused = |driver, compiler| check_versions(driver, compiler).unwrap_err().to_string();
        assert_eq!(check_versions(12040, (12, 9)), Ok(()));
        assert_eq!(check_versions(13000, (12, 4)), Ok(()));
        assert_eq!(check_versions(13000, (13, 0)), Ok(()));
        let old = refused(11080, (12, 4));
        assert!(old.contains("for CUDA 11.8") && old.contains("install a driver for CUDA 12"), "{old}");
        let mixed = refused(12080, (13, 0));
        assert!(mixed.contains("for CUDA 13 or newer, put older libraries"), "{mixed}");
        assert!(mixed.contains("--backend cpu"), "{mixed}");
    }

    #[test]
    fn the_architecture_is_the_newest_that_runs_on_the_device() {
        let known = [75, 80, 86, 87, 89, 90, 100, 103, 120];
        let of = |capability| architecture(capability, &known, (13, 0));
        assert_eq!(of((8, 0)), Ok("sm_80".into()));
        assert_eq!(of((8, 8)), Ok("sm_87".into()));
        assert_eq!(of((9, 0)), Ok("sm_90".into()));
        assert_eq!(of((10, 1)), Ok("sm_100".into()));
        assert_eq!(of((12, 1)), Ok("sm_120".into()));
        let old = of((7, 5)).unwrap_err().to_string();
        assert!(old.contains("compute capability 7.5") && old.contains("8.0"), "{old}");
        let new = of((11, 0)).unwrap_err().to_string();
        assert!(new.contains("CUDA 13.0 does not compile for compute capability 11.0"), "{new}");
    }
}
