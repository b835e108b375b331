//! What is taken from CUDA: each a value whose `Drop` gives it back. A failure there is ignored: after an error from which the
//! device cannot recover every call fails, and the end of the process releases what is left.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;

use super::libraries::{
    Address, Driver, Handle, SOLVER_ALLOC_FAILED, Status, blas, driver, explain_blas, explain_solver,
};
use crate::device_error::DeviceError;

/// Why a call failed.
pub(super) struct Fault {
    pub detail: String,
    /// For want of device memory: giving back freed memory of the pool may help.
    pub no_room: bool,
}

impl Fault {
    pub fn failed(self, what: &str) -> DeviceError {
        let advice =
            if self.no_room { "; end other programs on the device, or take a larger one" } else { "" };
        DeviceError::Failed { what: what.into(), detail: format!("{}{advice}", self.detail) }
    }

    pub fn unavailable(self) -> DeviceError {
        let advice = match self.no_room {
            true => "end other programs on the device, or use --backend cpu",
            false => "`nvidia-smi` says whether there is a device",
        };
        DeviceError::Unavailable(format!("{}; {advice}", self.detail))
    }
}

impl Driver {
    pub(super) fn check(&self, status: Status) -> Result<(), Fault> {
        match status {
            0 => Ok(()),
            _ => Err(Fault { detail: self.explain(status), no_room: status == driver::OUT_OF_MEMORY }),
        }
    }
}

pub(super) fn check_blas(status: Status) -> Result<(), Fault> {
    match status {
        0 => Ok(()),
        _ => Err(Fault { detail: explain_blas(status), no_room: status == blas::ALLOC_FAILED }),
    }
}

pub(super) fn check_solver(status: Status) -> Result<(), Fault> {
    match status {
        0 => Ok(()),
        _ => Err(Fault { detail: explain_solver(status), no_room: status == SOLVER_ALLOC_FAILED }),
    }
}

/// The device's primary context.
pub(super) struct Context {
    driver: &'static Driver,
    device: i32,
    context: Handle,
    /// Bytes of the device.
    pub total: usize,
    /// Of `cuMemAllocAsync`; not to be destroyed.
    pub pool: Handle,
}

// SAFETY: CUDA's handles may be used by every thread whose current context is theirs.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn new(driver: &'static Driver, device: i32) -> Result<Self, Fault> {
        let mut context = std::ptr::null_mut();
        // SAFETY: writes a handle.
        driver.check(unsafe { (driver.cuDevicePrimaryCtxRetain)(&mut context, device) })?;
        let mut made = Context { driver, device, context, total: 0, pool: std::ptr::null_mut() };
        made.bind()?;
        if made.attribute(driver::MEMORY_POOLS_SUPPORTED)? == 0 {
            return Err(Fault {
                detail: "the device has no memory pools (cuMemAllocAsync)".into(),
                no_room: false,
            });
        }
        // SAFETY: writes a handle.
        driver.check(unsafe { (driver.cuDeviceGetDefaultMemPool)(&mut made.pool, device) })?;
        // Freed memory stays with the process: otherwise every wait for the device returns it, and the next allocation maps it anew.
        let mut most = u64::MAX;
        let most = std::ptr::from_mut(&mut most).cast();
        // SAFETY: the pool is the device's own; the attribute has 64 bits.
        driver
            .check(unsafe { (driver.cuMemPoolSetAttribute)(made.pool, driver::RELEASE_THRESHOLD, most) })?;
        made.total = made.free_and_total()?.1;
        Ok(made)
    }

    /// Every thread that calls CUDA needs the context.
    pub fn bind(&self) -> Result<(), Fault> {
        // SAFETY: the context lives as long as `self`.
        self.driver.check(unsafe { (self.driver.cuCtxSetCurrent)(self.context) })
    }

    pub fn attribute(&self, attribute: i32) -> Result<i32, Fault> {
        let mut value = 0;
        // SAFETY: writes one integer.
        self.driver
            .check(unsafe { (self.driver.cuDeviceGetAttribute)(&mut value, attribute, self.device) })?;
        Ok(value)
    }

    pub fn name(&self) -> Result<String, Fault> {
        let mut name = [0; 256];
        // SAFETY: writes at most so many characters, the last of them 0.
        self.driver.check(unsafe { (self.driver.cuDeviceGetName)(name.as_mut_ptr(), 256, self.device) })?;
        // SAFETY: ends with 0.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    pub fn free_and_total(&self) -> Result<(usize, usize), Fault> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        self.driver.check(unsafe { (self.driver.cuMemGetInfo_v2)(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, in `new`.
        unsafe { (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// The stream of all work. Memory holds it, and so the context, until it is freed.
pub(super) struct Stream {
    pub context: Context,
    pub stream: Handle,
}

// SAFETY: as `Context`.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Not the default stream: memory that another thread drops is freed on this one, whatever context is current there.
    pub fn new(context: Context) -> Result<Self, Fault> {
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes a handle.
        context
            .driver
            .check(unsafe { (context.driver.cuStreamCreate)(&mut stream, driver::NON_BLOCKING) })?;
        Ok(Stream { context, stream })
    }

    pub fn driver(&self) -> &'static Driver {
        self.context.driver
    }

    pub fn synchronize(&self) -> Result<(), Fault> {
        // SAFETY: a live stream.
        self.driver().check(unsafe { (self.driver().cuStreamSynchronize)(self.stream) })
    }

    /// A call that may need device memory: where there is none, freed memory is given back and the call repeated.
    pub fn with_room<T>(&self, mut call: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        self.context.bind()?;
        call().or_else(|fault| {
            if !fault.no_room {
                return Err(fault);
            }
            self.synchronize()?;
            // SAFETY: the pool is the device's own.
            self.driver().check(unsafe { (self.driver().cuMemPoolTrimTo)(self.context.pool, 0) })?;
            call()
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created once, in `new`; its memory is freed, or the device is lost.
        let _ = self.context.bind();
        unsafe { (self.driver().cuStreamDestroy_v2)(self.stream) };
    }
}

/// Device memory.
pub struct Memory {
    pub(super) stream: Arc<Stream>,
    pub(super) address: Address,
    pub(super) bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.stream.context.bind();
        // SAFETY: allocated once, on this stream; what uses it was given to the stream before.
        unsafe { (self.stream.driver().cuMemFreeAsync)(self.address, self.stream.stream) };
    }
}

/// A place in the stream, and the time when the device passed it.
pub struct Mark {
    stream: Arc<Stream>,
    event: Handle,
}

// SAFETY: as `Context`.
unsafe impl Send for Mark {}

impl Mark {
    pub(super) fn new(stream: &Arc<Stream>, flags: u32) -> Result<Self, Fault> {
        let mut event = std::ptr::null_mut();
        // SAFETY: writes a handle.
        stream.driver().check(unsafe { (stream.driver().cuEventCreate)(&mut event, flags) })?;
        Ok(Mark { stream: stream.clone(), event })
    }

    pub(super) fn record(&self) -> Result<(), Fault> {
        let driver = self.stream.driver();
        // SAFETY: live handles.
        driver.check(unsafe { (driver.cuEventRecord)(self.event, self.stream.stream) })
    }

    /// Waits until the device has passed it; at once if it was never recorded.
    fn wait(&self) -> Result<(), Fault> {
        let driver = self.stream.driver();
        // SAFETY: a live handle.
        driver.check(unsafe { (driver.cuEventSynchronize)(self.event) })
    }

    /// Seconds on the device from this place to a later one; waits for it.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn seconds_until(&self, end: &Mark) -> Result<f64, DeviceError> {
        let driver = self.stream.driver();
        let mut milliseconds = 0.0;
        self.stream
            .context
            .bind()
            .and_then(|()| end.wait())
            // SAFETY: live handles, both passed. (The newer cuEventElapsedTime_v2 is missing before CUDA 12.8.)
            .and_then(|()| {
                driver.check(unsafe { (driver.cuEventElapsedTime)(&mut milliseconds, self.event, end.event) })
            })
            .map_err(|fault| fault.failed("reading a time"))?;
        Ok(1e-3 * f64::from(milliseconds))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = self.stream.context.bind();
        // SAFETY: created once, in `new`.
        unsafe { (self.stream.driver().cuEventDestroy_v2)(self.event) };
    }
}

/// Bytes of each buffer of [`Staging`].
const STAGE_BYTES: usize = 16 << 20;

/// Page-locked host memory through which uploads go, in two buffers: one is filled while the device reads the other. The caller's
/// memory has been read when an upload returns, also where the device could read it directly and later.
pub(super) struct Staging {
    stages: [Stage; 2],
    next: usize,
}

impl Staging {
    pub fn new(stream: &Arc<Stream>) -> Result<Self, Fault> {
        Ok(Staging { stages: [Stage::new(stream)?, Stage::new(stream)?], next: 0 })
    }

    /// Copies to the device. It is the caller's to check that there is room.
    pub fn upload(&mut self, from: &[u8], to: Address) -> Result<(), Fault> {
        let mut address = to;
        for part in from.chunks(STAGE_BYTES) {
            self.stages[self.next].upload(part, address)?;
            self.next = 1 - self.next;
            address += part.len() as u64;
        }
        Ok(())
    }
}

struct Stage {
    host: *mut c_void,
    /// After the copy that reads the buffer.
    read: Mark,
}

// SAFETY: the buffer belongs to its `Stage` alone.
unsafe impl Send for Stage {}

impl Stage {
    pub fn new(stream: &Arc<Stream>) -> Result<Self, Fault> {
        let read = Mark::new(stream, driver::DISABLE_TIMING)?;
        let driver = stream.driver();
        let mut host = std::ptr::null_mut();
        // SAFETY: writes an address of host memory.
        driver.check(unsafe { (driver.cuMemHostAlloc)(&mut host, STAGE_BYTES, 0) })?;
        Ok(Stage { host, read })
    }

    /// Copies at most [`STAGE_BYTES`] to the device.
    pub fn upload(&self, from: &[u8], to: Address) -> Result<(), Fault> {
        let driver = self.read.stream.driver();
        self.read.wait()?;
        // SAFETY: the buffer has room, and the device has read what was in it; `to` has room as the caller has checked.
        let status = unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.host.cast(), from.len());
            (driver.cuMemcpyHtoDAsync_v2)(to, self.host, from.len(), self.read.stream.stream)
        };
        driver.check(status)?;
        self.read.record()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.read.stream.context.bind();
        // SAFETY: allocated once, in `new`; freeing waits for the device.
        unsafe { (self.read.stream.driver().cuMemFreeHost)(self.host) };
    }
}

/// A handle of cuBLAS or cuSOLVER, which work on the stream.
pub(super) struct Library {
    pub handle: Handle,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    stream: Arc<Stream>,
}

// SAFETY: the handles may be used by every thread, one at a time; the trait's calls are given to one stream in order.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    pub fn new(
        stream: &Arc<Stream>,
        check: fn(Status) -> Result<(), Fault>,
        create: unsafe extern "C" fn(*mut Handle) -> Status,
        set_stream: unsafe extern "C" fn(Handle, Handle) -> Status,
        destroy: unsafe extern "C" fn(Handle) -> Status,
    ) -> Result<Self, Fault> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a handle.
        stream.with_room(|| check(unsafe { create(&raw mut handle) }))?;
        let library = Library { handle, destroy, stream: stream.clone() };
        // SAFETY: live handles.
        check(unsafe { set_stream(library.handle, stream.stream) })?;
        Ok(library)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _ = self.stream.context.bind();
        // SAFETY: created once, in `new`.
        unsafe { (self.destroy)(self.handle) };
    }
}

/// The machine code of a kernel file, and the kernels that have been launched.
pub(super) struct Module {
    module: Handle,
    kernels: HashMap<String, Handle>,
    stream: Arc<Stream>,
}

// SAFETY: as `Context`.
unsafe impl Send for Module {}

impl Module {
    pub fn new(stream: &Arc<Stream>, code: &[u8]) -> Result<Self, Fault> {
        let driver = stream.driver();
        let mut module = std::ptr::null_mut();
        // SAFETY: the code is whole: the compiler's own, or kept with its digest.
        stream.with_room(|| {
            driver.check(unsafe { (driver.cuModuleLoadData)(&raw mut module, code.as_ptr().cast()) })
        })?;
        Ok(Module { module, kernels: HashMap::new(), stream: stream.clone() })
    }

    pub fn kernel(&mut self, name: &str) -> Result<Handle, Fault> {
        if let Some(kernel) = self.kernels.get(name) {
            return Ok(*kernel);
        }
        let driver = self.stream.driver();
        let symbol = CString::new(name).expect("a name without NUL");
        let mut kernel = std::ptr::null_mut();
        // SAFETY: a live module; writes a handle, which lives as long as the module.
        driver.check(unsafe { (driver.cuModuleGetFunction)(&mut kernel, self.module, symbol.as_ptr()) })?;
        let mut shared = 0;
        // SAFETY: writes one integer.
        driver
            .check(unsafe { (driver.cuFuncGetAttribute)(&mut shared, driver::SHARED_SIZE_BYTES, kernel) })?;
        if shared > 0 {
            // Room for as many blocks as threads and registers allow: these kernels stream what is not in shared memory.
            let carveout = driver::PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: a live kernel.
            driver.check(unsafe { (driver.cuFuncSetAttribute)(kernel, carveout, 100) })?;
        }
        self.kernels.insert(name.into(), kernel);
        Ok(kernel)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.stream.context.bind();
        // SAFETY: loaded once, in `new`.
        unsafe { (self.stream.driver().cuModuleUnload)(self.module) };
    }
}
