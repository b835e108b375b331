//! From a kernel file to machine code, with NVIDIA's run-time compiler. Works without a GPU.

use std::ffi::{CStr, CString};

use cudarc::nvrtc::{result, sys};

use super::kernel_files::{COMMON, KernelFile};
use crate::device_error::DeviceError;

/// No fma contraction: products and sums round where the reference rounds. The assembler's report is in the log.
const OPTIONS: [&str; 3] = ["-fmad=false", "--std=c++17", "--ptxas-options=-v"];

/// A compiled kernel file.
pub struct Compiled {
    /// Machine code.
    pub cubin: Vec<u8>,
    /// What compiler and assembler say: per kernel registers, shared memory, stack, spills.
    pub log: String,
}

/// Whether libnvrtc can be loaded. The functions below panic without it.
pub fn is_present() -> bool {
    // SAFETY: loads a library of NVIDIA and drops it again.
    unsafe { sys::is_culib_present() }
}

/// The compiler's version.
///
/// # Panics
/// Without libnvrtc: ask [`is_present`] first.
pub fn version() -> (i32, i32) {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers; it cannot fail with valid pointers.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    (major, minor)
}

/// The architectures it compiles for, such as 90.
///
/// # Panics
/// Without libnvrtc: ask [`is_present`] first.
pub fn architectures() -> Vec<i32> {
    let mut count = 0;
    // SAFETY: writes one integer, then as many as it said.
    unsafe {
        if sys::nvrtcGetNumSupportedArchs(&mut count).result().is_err() {
            return Vec::new();
        }
        let mut known = vec![0; count.max(0) as usize];
        match sys::nvrtcGetSupportedArchs(known.as_mut_ptr()).result() {
            Ok(()) => known,
            Err(_) => Vec::new(),
        }
    }
}

/// What is compiled, and how: equal keys give equal machine code.
pub fn key(file: &KernelFile, architecture: &str) -> String {
    format!("{architecture} {OPTIONS:?} {:?}\n{COMMON}\n{}", version(), file.source)
}

/// Compiles a kernel file for a real architecture such as `sm_90`: only then the assembler runs.
///
/// # Errors
/// [`DeviceError::Compile`] with the log.
///
/// # Panics
/// Without libnvrtc: ask [`is_present`] first.
pub fn compile(file: &KernelFile, architecture: &str) -> Result<Compiled, DeviceError> {
    let text = format!("{COMMON}\n#line 1 \"{}\"\n{}", file.name, file.source);
    let text = CString::new(text).expect("a source without NUL");
    let name = CString::new(file.name).expect("a name without NUL");
    let failed = |log: String| DeviceError::Compile { file: file.name.into(), log };
    let program = result::create_program(&text, Some(&name)).map_err(|error| failed(error.to_string()))?;
    let mut options = vec![format!("-arch={architecture}")];
    options.extend(OPTIONS.map(String::from));
    // SAFETY: the program was just created, and is destroyed once, below; the buffers have the sizes asked for.
    let outcome = unsafe {
        let compiled = result::compile_program(program, &options);
        let log = result::get_program_log(program)
            .map(|log| CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned());
        match (compiled, log) {
            (Ok(()), Ok(log)) => {
                let mut size = 0;
                let mut outcome = sys::nvrtcGetCUBINSize(program, &mut size).result();
                let mut cubin = vec![0u8; size];
                outcome =
                    outcome.and_then(|()| sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result());
                outcome.map(|()| Compiled { cubin, log }).map_err(|error| failed(error.to_string()))
            }
            (Err(error), log) => Err(failed(log.unwrap_or_else(|_| error.to_string()))),
            (_, Err(error)) => Err(failed(error.to_string())),
        }
    };
    // SAFETY: as above.
    let _ = unsafe { result::destroy_program(program) };
    outcome
}
