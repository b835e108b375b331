//! The real device: CUDA's driver, cuBLAS and cuSOLVER, loaded at run time. One binary serves machines with and without a GPU.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard};

use super::device::{Argument, Device, Launch, Operand};
use super::kernel_files::KernelFile;
use super::libraries::{Cublas, Cusolver, Driver, blas, driver};
use super::machine_code;
use super::nvrtc::{Compiler, Target};
use super::owned::{
    Context, Fault, Library, Mark, Memory, Module, Staging, Stream, check_blas, check_solver,
};
use crate::device_error::DeviceError;

/// A CUDA device.
pub struct Gpu {
    // In this order they are dropped.
    solver: Library,
    blas: Library,
    modules: Mutex<HashMap<&'static str, Module>>,
    staging: Mutex<Staging>,
    stream: Arc<Stream>,
    cublas: &'static Cublas,
    cusolver: &'static Cusolver,
    compiler: Compiler,
    target: Target,
    name: String,
}

impl Gpu {
    /// Device number `ordinal`.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] says what is missing and what to do.
    pub fn new(ordinal: usize) -> Result<Self, DeviceError> {
        let driver = Driver::load()?;
        let compiler = Compiler::load()?;
        let (cublas, cusolver) = (Cublas::load()?, Cusolver::load()?);
        let unavailable = Fault::unavailable;
        let mut version = 0;
        // SAFETY: writes one integer.
        driver.check(unsafe { (driver.cuDriverGetVersion)(&mut version) }).map_err(unavailable)?;
        machine_code::check_versions(version, compiler.version())?;
        let mut device = 0;
        // SAFETY: writes one integer.
        driver
            .check(unsafe { (driver.cuInit)(0) })
            .and_then(|()| driver.check(unsafe { (driver.cuDeviceGet)(&mut device, ordinal as i32) }))
            .map_err(unavailable)?;
        let context = Context::new(driver, device).map_err(unavailable)?;
        let capability = context
            .attribute(driver::COMPUTE_CAPABILITY_MAJOR)
            .and_then(|major| Ok((major, context.attribute(driver::COMPUTE_CAPABILITY_MINOR)?)))
            .map_err(unavailable)?;
        let target = machine_code::target(capability, &compiler.architectures(), compiler.version())?;
        let name = format!(
            "{} (sm_{}{}), driver for CUDA {}, NVRTC {}.{}",
            context.name().map_err(unavailable)?,
            capability.0,
            capability.1,
            machine_code::cuda_version(version),
            compiler.version().0,
            compiler.version().1
        );
        let stream = Arc::new(Stream::new(context).map_err(unavailable)?);
        let staging = Mutex::new(Staging::new(&stream).map_err(unavailable)?);
        let blas = Library::new(
            &stream,
            check_blas,
            cublas.cublasCreate_v2,
            cublas.cublasSetStream_v2,
            cublas.cublasDestroy_v2,
        )
        .map_err(unavailable)?;
        let solver = Library::new(
            &stream,
            check_solver,
            cusolver.cusolverDnCreate,
            cusolver.cusolverDnSetStream,
            cusolver.cusolverDnDestroy,
        )
        .map_err(unavailable)?;
        Ok(Gpu {
            solver,
            blas,
            modules: Mutex::default(),
            staging,
            stream,
            cublas,
            cusolver,
            compiler,
            target,
            name,
        })
    }

    /// Bytes that are free on the device, and bytes that this process has allocated and not freed.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn memory(&self) -> Result<(usize, u64), DeviceError> {
        let ask = || {
            self.stream.context.bind()?;
            self.stream.synchronize()?;
            let free = self.stream.context.free_and_total()?.0;
            let mut used = 0u64;
            let (driver, to) = (self.stream.driver(), std::ptr::from_mut(&mut used).cast());
            // SAFETY: the pool is the device's own; the attribute has 64 bits.
            driver.check(unsafe {
                (driver.cuMemPoolGetAttribute)(self.stream.context.pool, driver::USED_MEM_CURRENT, to)
            })?;
            Ok((free, used))
        };
        ask().map_err(|fault: Fault| fault.failed("asking for the device's memory"))
    }

    /// Bytes of the L2 cache; 0 if the device does not say.
    pub fn cache_bytes(&self) -> usize {
        self.stream.context.attribute(driver::L2_CACHE_SIZE).map_or(0, |bytes| bytes as usize)
    }

    /// Marks the place after all work that was given to the device so far.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn mark(&self) -> Result<Mark, DeviceError> {
        let mark = || {
            self.stream.context.bind()?;
            let mark = Mark::new(&self.stream, 0)?;
            mark.record()?;
            Ok(mark)
        };
        mark().map_err(|fault: Fault| fault.failed("marking a place in the stream"))
    }

    /// Copies all bytes of `from` to the beginning of `to`, which must have room, on the device.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    ///
    /// # Panics
    /// If `to` is too small.
    pub fn copy(&self, from: &Memory, to: &mut Memory) -> Result<(), DeviceError> {
        assert!(from.bytes <= to.bytes, "a copy of {} bytes to {}", from.bytes, to.bytes);
        let driver = self.stream.driver();
        self.stream
            .context
            .bind()
            // SAFETY: both are live, and differ.
            .and_then(|()| {
                driver.check(unsafe {
                    (driver.cuMemcpyDtoDAsync_v2)(to.address, from.address, from.bytes, self.stream.stream)
                })
            })
            .map_err(|fault| fault.failed("copy on the device"))
    }

    /// C (m x n, f32) <- A (m x inner) B (inner x n), column-major, for A and B in bf16 or f32, with sums in f32.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn product(
        &self,
        (m, n, inner): (usize, usize, usize),
        a: Operand,
        b: Operand,
        c: Operand,
        bf16: bool,
    ) -> Result<(), DeviceError> {
        let kind = if bf16 { blas::R_16BF } else { blas::R_32F };
        let (one, zero) = (1.0f32, 0.0f32);
        let [one, zero] = [&one, &zero].map(|scalar| std::ptr::from_ref(scalar).cast());
        self.stream
            // SAFETY: the callers' operands are live and of these shapes; f32 sums take f32 scalars.
            .with_room(|| {
                check_blas(unsafe {
                    (self.cublas.cublasGemmEx)(
                        self.blas.handle,
                        transpose(a),
                        transpose(b),
                        int(m),
                        int(n),
                        int(inner),
                        one,
                        a.address,
                        kind,
                        int(a.leading),
                        b.address,
                        kind,
                        int(b.leading),
                        zero,
                        c.address,
                        blas::R_32F,
                        int(c.leading),
                        blas::COMPUTE_32F,
                        blas::GEMM_DEFAULT,
                    )
                })
            })
            .map_err(|fault| fault.failed("cublasGemmEx"))
    }

    /// The modules, with that of a kernel file among them: compiled at first use and kept on disk for the next process.
    fn modules(
        &self,
        file: &'static KernelFile,
    ) -> Result<MutexGuard<'_, HashMap<&'static str, Module>>, DeviceError> {
        let mut modules = self.modules.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if modules.contains_key(file.name) {
            return Ok(modules);
        }
        let kept = machine_code::place(file, self.compiler, self.target);
        // The driver may refuse what another version has written: then it is compiled anew.
        let known = kept.as_ref().and_then(|path| machine_code::read_kept(path));
        let module = match known.and_then(|code| Module::new(&self.stream, &code).ok()) {
            Some(module) => module,
            None => {
                let code = self.compiler.compile(file, self.target)?.code;
                let module = Module::new(&self.stream, &code).map_err(|fault| fault.failed(file.name))?;
                if let Some(path) = &kept {
                    machine_code::keep(path, &code);
                }
                module
            }
        };
        modules.insert(file.name, module);
        Ok(modules)
    }
}

fn transpose(operand: Operand) -> i32 {
    if operand.transposed { blas::OP_T } else { blas::OP_N }
}

/// A dimension as the libraries take it.
fn int(x: usize) -> i32 {
    i32::try_from(x).expect("a dimension on a device fits 31 bits")
}

impl Device for Gpu {
    type Memory = Memory;

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn alloc(&self, bytes: usize) -> Result<Memory, DeviceError> {
        let (stream, driver) = (&self.stream, self.stream.driver());
        let mut address = 0;
        // SAFETY: writes an address.
        let allocated = stream.with_room(|| {
            let status = unsafe { (driver.cuMemAllocAsync)(&raw mut address, bytes, stream.stream) };
            driver.check(status).map_err(|fault| Fault {
                // More than any device has is a wrong value to the driver.
                no_room: fault.no_room || (status == driver::INVALID_VALUE && bytes > stream.context.total),
                ..fault
            })
        });
        match allocated {
            Ok(()) => Ok(Memory { stream: stream.clone(), address, bytes }),
            Err(fault) if fault.no_room => {
                let free = stream.context.free_and_total().map_or(0, |(free, _)| free);
                let advice = format!(
                    "{} MiB are free; end other programs on it, take a larger device, or use --backend cpu",
                    free >> 20
                );
                Err(DeviceError::OutOfMemory { bytes, advice })
            }
            Err(fault) => Err(fault.failed("allocation")),
        }
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address
    }

    fn upload(&self, from: &[u8], to: &mut Memory) -> Result<(), DeviceError> {
        assert!(from.len() <= to.bytes, "a copy of {} bytes to {}", from.len(), to.bytes);
        let mut staging = self.staging.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let uploaded = self.stream.context.bind().and_then(|()| staging.upload(from, to.address));
        uploaded.map_err(|fault| fault.failed("copy to the device"))
    }

    fn zero(&self, memory: &mut Memory) -> Result<(), DeviceError> {
        let driver = self.stream.driver();
        self.stream
            .context
            .bind()
            // SAFETY: live memory of so many bytes.
            .and_then(|()| {
                driver.check(unsafe {
                    (driver.cuMemsetD8Async)(memory.address, 0, memory.bytes, self.stream.stream)
                })
            })
            .map_err(|fault| fault.failed("setting memory to zero"))
    }

    fn download(&self, from: &Memory, to: &mut [u8]) -> Result<(), DeviceError> {
        assert!(to.len() <= from.bytes, "a copy of {} bytes from {}", to.len(), from.bytes);
        let driver = self.stream.driver();
        // SAFETY: live memory of at least so many bytes; the stream is waited for before `to` is used.
        let copied = self.stream.context.bind().and_then(|()| {
            driver.check(unsafe {
                (driver.cuMemcpyDtoHAsync_v2)(
                    to.as_mut_ptr().cast(),
                    from.address,
                    to.len(),
                    self.stream.stream,
                )
            })
        });
        copied.map_err(|fault| fault.failed("copy from the device"))?;
        self.stream.synchronize().map_err(|fault| fault.failed("what was started before a copy"))
    }

    fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        let what = format!("{}::{}", launch.file.name, launch.kernel);
        self.stream.context.bind().map_err(|fault| fault.failed(&what))?;
        let mut modules = self.modules(launch.file)?;
        let module = modules.get_mut(launch.file.name).expect("loaded above");
        let driver = self.stream.driver();
        let mut pointers: Vec<*mut c_void> = (launch.arguments.iter())
            .map(|argument| match argument {
                Argument::Address(address) => std::ptr::from_ref(address).cast_mut().cast(),
                Argument::U32(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::F32(value) => std::ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let launched = module.kernel(launch.kernel).and_then(|kernel| {
            // SAFETY: the wrappers of this module give each kernel its arguments, which the driver copies; the emulator checks
            // the same calls.
            driver.check(unsafe {
                (driver.cuLaunchKernel)(
                    kernel,
                    launch.grid.0,
                    launch.grid.1,
                    1,
                    launch.block,
                    1,
                    1,
                    0,
                    self.stream.stream,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            })
        });
        launched.map_err(|fault| fault.failed(&what))
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
        self.stream
            // SAFETY: operands lie in live allocations, as `Device` demands. The default math mode keeps f32 inputs whole.
            .with_room(|| {
                check_blas(unsafe {
                    (self.cublas.cublasSgemm_v2)(
                        self.blas.handle,
                        transpose(a),
                        transpose(b),
                        int(m),
                        int(n),
                        int(inner),
                        &alpha,
                        a.address,
                        int(a.leading),
                        b.address,
                        int(b.leading),
                        &beta,
                        c.address,
                        int(c.leading),
                    )
                })
            })
            .map_err(|fault| fault.failed("cublasSgemm"))
    }

    fn potrf(&self, k: usize, a: Operand) -> Result<usize, DeviceError> {
        let what = "cusolverDnSpotrf";
        let (upper, handle) = (blas::FILL_MODE_UPPER, self.solver.handle);
        let mut work_size = 0;
        // SAFETY: the matrix lies in a live allocation, as `Device` demands.
        self.stream
            .with_room(|| {
                check_solver(unsafe {
                    (self.cusolver.cusolverDnSpotrf_bufferSize)(
                        handle,
                        upper,
                        int(k),
                        a.address,
                        int(a.leading),
                        &raw mut work_size,
                    )
                })
            })
            .map_err(|fault| fault.failed(what))?;
        let work = self.alloc(4 * work_size.max(1) as usize)?;
        let info = self.alloc(4)?;
        // SAFETY: as above, and the work space has the size asked for.
        self.stream
            .with_room(|| {
                check_solver(unsafe {
                    (self.cusolver.cusolverDnSpotrf)(
                        handle,
                        upper,
                        int(k),
                        a.address,
                        int(a.leading),
                        work.address,
                        work_size,
                        info.address,
                    )
                })
            })
            .map_err(|fault| fault.failed(what))?;
        let mut bytes = [0; 4];
        self.download(&info, &mut bytes)?;
        let info = i32::from_ne_bytes(bytes);
        usize::try_from(info).map_err(|_| DeviceError::Failed {
            what: what.into(),
            detail: format!("parameter {} is wrong", -info),
        })
    }

    fn trsm(&self, k: usize, n: usize, a: Operand, b: Operand) -> Result<(), DeviceError> {
        self.stream
            // SAFETY: operands lie in live allocations, as `Device` demands.
            .with_room(|| {
                check_blas(unsafe {
                    (self.cublas.cublasStrsm_v2)(
                        self.blas.handle,
                        blas::SIDE_LEFT,
                        blas::FILL_MODE_UPPER,
                        blas::OP_N,
                        blas::DIAG_NON_UNIT,
                        int(k),
                        int(n),
                        &1.0,
                        a.address,
                        int(a.leading),
                        b.address,
                        int(b.leading),
                    )
                })
            })
            .map_err(|fault| fault.failed("cublasStrsm"))
    }
}
