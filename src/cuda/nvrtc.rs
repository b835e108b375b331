//! From a kernel file to code for a device, with NVIDIA's run-time compiler. Works without a GPU.

use std::ffi::{CString, c_char};

use super::kernel_files::{COMMON, KernelFile};
use super::libraries::{Handle, Nvrtc, Status};
use crate::device_error::DeviceError;

/// No fma contraction: products and sums round where the reference rounds. The assembler's report is in the log.
const OPTIONS: [&str; 3] = ["-fmad=false", "--std=c++17", "--ptxas-options=-v"];

/// What to compile for: a compute capability as 10 major + minor, such as 90.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Machine code for that version; only then the assembler runs.
    Cubin(i32),
    /// PTX, which the driver compiles for that version or a later one.
    Ptx(i32),
}

impl Target {
    /// The compiler's name of it: `sm_90`, `compute_90`.
    pub fn name(self) -> String {
        match self {
            Target::Cubin(version) => format!("sm_{version}"),
            Target::Ptx(version) => format!("compute_{version}"),
        }
    }

    pub(super) fn extension(self) -> &'static str {
        match self {
            Target::Cubin(_) => "cubin",
            Target::Ptx(_) => "ptx",
        }
    }
}

/// A compiled kernel file.
pub struct Compiled {
    /// Machine code, or PTX with a final 0.
    pub code: Vec<u8>,
    /// What compiler and assembler say: per kernel registers, shared memory, stack, spills.
    pub log: String,
}

/// The compiler.
#[derive(Clone, Copy)]
pub struct Compiler {
    library: &'static Nvrtc,
    version: (i32, i32),
}

/// A program in the compiler's memory.
struct Program {
    library: &'static Nvrtc,
    program: Handle,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created once, in `compile`.
        unsafe { (self.library.nvrtcDestroyProgram)(&mut self.program) };
    }
}

fn check(status: Status) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("status {status} of NVRTC")) }
}

impl Program {
    /// Of a result: its size, and then its bytes.
    fn get(
        &self,
        size: unsafe extern "C" fn(Handle, *mut usize) -> Status,
        get: unsafe extern "C" fn(Handle, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: a live program; writes one integer, and then as many bytes as it said.
        unsafe {
            check(size(self.program, &mut bytes))?;
            let mut result = vec![0u8; bytes];
            check(get(self.program, result.as_mut_ptr().cast()))?;
            Ok(result)
        }
    }
}

impl Compiler {
    /// # Errors
    /// [`DeviceError::Unavailable`]: there is no libnvrtc, or it cannot be used.
    pub fn load() -> Result<Self, DeviceError> {
        let library = Nvrtc::load()?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        check(unsafe { (library.nvrtcVersion)(&mut major, &mut minor) }).map_err(|error| {
            DeviceError::Unavailable(format!("libnvrtc does not say its version: {error}"))
        })?;
        Ok(Compiler { library, version: (major, minor) })
    }

    /// The CUDA version it belongs to.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// The compute capabilities it compiles for, such as 90; none where it does not say.
    pub fn architectures(&self) -> Vec<i32> {
        let mut count = 0;
        // SAFETY: writes one integer, then as many as it said.
        unsafe {
            if (self.library.nvrtcGetNumSupportedArchs)(&mut count) != 0 {
                return Vec::new();
            }
            let mut known = vec![0; count.max(0) as usize];
            match (self.library.nvrtcGetSupportedArchs)(known.as_mut_ptr()) {
                0 => known,
                _ => Vec::new(),
            }
        }
    }

    /// What is compiled, and how: equal keys give equal code.
    pub fn key(&self, file: &KernelFile, target: Target) -> String {
        format!("{} {OPTIONS:?} {:?}\n{COMMON}\n{}", target.name(), self.version, file.source)
    }

    /// Compiles a kernel file.
    ///
    /// # Errors
    /// [`DeviceError::Compile`] with the log.
    pub fn compile(&self, file: &KernelFile, target: Target) -> Result<Compiled, DeviceError> {
        self.try_compile(file, target).map_err(|log| DeviceError::Compile { file: file.name.into(), log })
    }

    fn try_compile(&self, file: &KernelFile, target: Target) -> Result<Compiled, String> {
        let library = self.library;
        let text = format!("{COMMON}\n#line 1 \"{}\"\n{}", file.name, file.source);
        let text = CString::new(text).expect("a source without NUL");
        let name = CString::new(file.name).expect("a name without NUL");
        let (none, mut program) = (std::ptr::null(), std::ptr::null_mut());
        // SAFETY: texts that end with 0, which are copied; no headers; writes a handle.
        check(unsafe {
            (library.nvrtcCreateProgram)(&mut program, text.as_ptr(), name.as_ptr(), 0, none, none)
        })?;
        let program = Program { library, program };
        let options: Vec<CString> = [format!("-arch={}", target.name())]
            .into_iter()
            .chain(OPTIONS.map(String::from))
            .map(|option| CString::new(option).expect("an option without NUL"))
            .collect();
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: a live program and texts that end with 0.
        let compiled = check(unsafe {
            (library.nvrtcCompileProgram)(program.program, pointers.len() as i32, pointers.as_ptr())
        });
        let log = program.get(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog);
        let log = log.map(|log| String::from_utf8_lossy(&log).trim_end_matches('\0').to_string());
        if let Err(error) = compiled {
            return Err(match log {
                Ok(log) if !log.is_empty() => log,
                _ => error,
            });
        }
        let code = match target {
            Target::Cubin(_) => program.get(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN)?,
            Target::Ptx(_) => program.get(library.nvrtcGetPTXSize, library.nvrtcGetPTX)?,
        };
        Ok(Compiled { code, log: log? })
    }
}
