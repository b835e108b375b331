//! A CUDA device without a GPU: kernels compiled by the C++ compiler, run by `runtime.cpp`, every access checked; cuBLAS
//! and cuSOLVER replaced by the CPU library. See README.md in this directory.

use std::alloc::Layout;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use duogpt::cuda::DeviceError;
use duogpt::cuda::device::{Argument, Device, Launch, Operand};
use duogpt::cuda::{COMMON, KernelFile};
use duogpt::linalg::{Scalar, gemm, invert_lower};
use libloading::{Library, Symbol};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, ShapeBuilder};

/// Bytes around every allocation that belong to nobody.
const MARGIN: usize = 256;

type Regions = Mutex<BTreeMap<u64, usize>>;

/// The device. Every launch draws its order of threads and blocks from the next seed.
pub struct Emulator {
    seed: AtomicU64,
    regions: Arc<Regions>,
    /// Edits of kernel sources, for the tests of the tests: file name, from, to.
    edits: Vec<(&'static str, String, String)>,
}

/// Memory of the emulated device, filled with ones: NaN as a float, out of every range as an index.
pub struct Memory {
    begin: *mut u8,
    layout: Layout,
    regions: Arc<Regions>,
}

// SAFETY: plain memory, whose users are ordered by `Emulator`'s lock.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn address(&self) -> u64 {
        self.begin as u64 + MARGIN as u64
    }

    fn bytes(&self) -> usize {
        self.layout.size() - 2 * MARGIN
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.regions.lock().unwrap().remove(&self.address());
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.begin, self.layout) };
    }
}

impl Emulator {
    /// A device whose first launch has this seed.
    pub fn new(seed: u64) -> Self {
        Emulator { seed: AtomicU64::new(seed), regions: Arc::default(), edits: Vec::new() }
    }

    /// A device whose kernels have one place of their source changed.
    #[allow(dead_code, reason = "for the tests of the checks alone")]
    ///
    /// # Panics
    /// When the text is not there exactly once.
    pub fn with_fault(seed: u64, file: &'static str, from: &str, to: &str) -> Self {
        Self::with_faults(seed, &[(file, from, to)])
    }

    /// The same with several places changed.
    ///
    /// # Panics
    /// As [`with_fault`](Self::with_fault).
    pub fn with_faults(seed: u64, faults: &[(&'static str, &str, &str)]) -> Self {
        let edit = |&(file, from, to): &(&'static str, &str, &str)| {
            let mut sources = duogpt::cuda::KERNEL_FILES.iter().map(|f| (f.name, f.source));
            let source = match file {
                "common.cuh" => COMMON,
                _ => sources.find(|(name, _)| *name == file).expect("a kernel file").1,
            };
            assert_eq!(source.matches(from).count(), 1, "`{from}` is not in {file} exactly once");
            (file, from.into(), to.into())
        };
        Emulator { edits: faults.iter().map(edit).collect(), ..Self::new(seed) }
    }

    /// Another device with the same faults.
    #[allow(dead_code, reason = "for the tests of the checks alone")]
    pub fn like(other: &Emulator) -> Self {
        Emulator { edits: other.edits.clone(), ..Self::new(other.seed.load(Ordering::Relaxed)) }
    }

    /// Device memory in use: allocations, bytes.
    pub fn in_use(&self) -> (usize, usize) {
        let regions = self.regions.lock().unwrap();
        (regions.len(), regions.values().sum())
    }

    /// A source with its faults.
    fn source(&self, name: &str, source: &str) -> String {
        let mut source = source.to_string();
        for (_, from, to) in self.edits.iter().filter(|(file, ..)| *file == name) {
            source = source.replacen(from, to, 1);
        }
        source
    }

    /// The matrix (rows x columns) that an operand names, as strides in elements; checked to lie in one allocation.
    fn strided(
        &self,
        operand: Operand,
        shape: (usize, usize),
    ) -> Result<(*mut f32, (usize, usize)), DeviceError> {
        let refused = |detail: String| DeviceError::Failed { what: "library call".into(), detail };
        let (rows, columns) = if operand.transposed { (shape.1, shape.0) } else { shape };
        if operand.leading < rows.max(1) {
            return Err(refused(format!("leading dimension {} of {rows} rows", operand.leading)));
        }
        let elements = if rows == 0 || columns == 0 { 0 } else { (columns - 1) * operand.leading + rows };
        let (begin, end) = (operand.address, operand.address + 4 * elements as u64);
        let regions = self.regions.lock().unwrap();
        let holds = regions.range(..=begin).next_back().is_some_and(|(at, bytes)| end <= at + *bytes as u64);
        if !holds {
            return Err(refused(format!("a {rows} x {columns} operand leaves its allocation")));
        }
        let strides = if operand.transposed { (operand.leading, 1) } else { (1, operand.leading) };
        Ok((operand.address as *mut f32, strides))
    }

    fn view(&self, operand: Operand, shape: (usize, usize)) -> Result<Array2<f32>, DeviceError> {
        let (at, strides) = self.strided(operand, shape)?;
        // SAFETY: inside a live allocation, as just checked; copied before anything is written.
        Ok(unsafe { ArrayView2::from_shape_ptr(shape.strides(strides), at) }.to_owned())
    }

    fn view_mut(
        &self,
        operand: Operand,
        shape: (usize, usize),
    ) -> Result<ArrayViewMut2<'_, f32>, DeviceError> {
        let (at, strides) = self.strided(operand, shape)?;
        // SAFETY: as in `view`; operands of one call do not overlap what it writes.
        Ok(unsafe { ArrayViewMut2::from_shape_ptr(shape.strides(strides), at) })
    }
}

impl Device for Emulator {
    type Memory = Memory;

    fn describe(&self) -> String {
        "CUDA emulator".into()
    }

    fn alloc(&self, bytes: usize) -> Result<Memory, DeviceError> {
        let layout = Layout::from_size_align(bytes + 2 * MARGIN, 256).expect("a size that fits");
        // SAFETY: the size is not zero.
        let begin = unsafe { std::alloc::alloc(layout) };
        assert!(!begin.is_null(), "no memory");
        // SAFETY: just allocated.
        unsafe { begin.write_bytes(0xff, layout.size()) };
        let memory = Memory { begin, layout, regions: self.regions.clone() };
        self.regions.lock().unwrap().insert(memory.address(), bytes);
        Ok(memory)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address()
    }

    fn upload(&self, from: &[u8], to: &mut Memory) -> Result<(), DeviceError> {
        assert!(from.len() <= to.bytes(), "an upload of {} bytes into {}", from.len(), to.bytes());
        // SAFETY: checked above.
        unsafe { (to.address() as *mut u8).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn zero(&self, memory: &mut Memory) -> Result<(), DeviceError> {
        // SAFETY: the whole of a live allocation.
        unsafe { (memory.address() as *mut u8).write_bytes(0, memory.bytes()) };
        Ok(())
    }

    fn download(&self, from: &Memory, to: &mut [u8]) -> Result<(), DeviceError> {
        assert!(to.len() <= from.bytes(), "a download of {} bytes from {}", to.len(), from.bytes());
        // SAFETY: checked above.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from.address() as *const u8, to.len()) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        let KernelFile { name, source } = *launch.file;
        let library = compiled(name, &self.source("common.cuh", COMMON), &self.source(name, source))?;
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        let regions: Vec<(u64, usize)> = self.regions.lock().unwrap().iter().map(|(a, b)| (*a, *b)).collect();
        library.run(launch, &regions, seed).map_err(|report| DeviceError::Failed {
            what: format!("{}::{}", launch.file.name, launch.kernel),
            detail: format!("{report} (seed {seed})"),
        })
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
        let (a, b) = (self.view(a, (m, inner))?, self.view(b, (inner, n))?);
        let mut c = self.view_mut(c, (m, n))?;
        if beta == 0.0 {
            c.fill(0.0); // what is there may be anything
        }
        gemm(alpha.into(), a.view(), b.view(), beta.into(), c);
        Ok(())
    }

    fn potrf(&self, k: usize, a: Operand) -> Result<usize, DeviceError> {
        let upper = self.view(a, (k, k))?;
        let mut lower = Array2::from_shape_fn((k, k), |(i, j)| upper[(i.min(j), i.max(j))]);
        if let Err(column) = f32::cholesky_in_place(&mut lower) {
            return Ok(column + 1);
        }
        let mut a = self.view_mut(a, (k, k))?;
        for i in 0..k {
            for j in i..k {
                a[(i, j)] = lower[(j, i)];
            }
        }
        Ok(0)
    }

    fn trsm(&self, k: usize, n: usize, a: Operand, b: Operand) -> Result<(), DeviceError> {
        let upper = self.view(a, (k, k))?;
        let mut inverse = Array2::from_shape_fn((k, k), |(i, j)| if j <= i { upper[(j, i)] } else { 0.0 });
        invert_lower(inverse.view_mut());
        let right = self.view(b, (k, n))?;
        gemm(1.0, inverse.t(), right.view(), 0.0, self.view_mut(b, (k, n))?);
        Ok(())
    }
}

/// A kernel file as a shared library.
struct Compiled {
    library: Library,
    path: PathBuf,
    /// The runtime keeps one kernel's state at a time.
    lock: Mutex<()>,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Index3(u32, u32, u32);

#[repr(C)]
struct Region {
    begin: usize,
    bytes: usize,
    argument: c_int,
    written: bool,
}

/// `Launch` of runtime.cpp.
#[repr(C)]
struct RawLaunch {
    call: unsafe extern "C" fn(*const *const c_void),
    arguments: *const *const c_void,
    grid: Index3,
    block: Index3,
    regions: *mut Region,
    region_count: usize,
    most_blocks: u64,
    seed: u64,
    report: *mut c_char,
    report_bytes: usize,
    program_counter: usize,
}

/// A report is a few lines.
const REPORT_BYTES: usize = 4096;

impl Compiled {
    fn run(&self, launch: &Launch, regions: &[(u64, usize)], seed: u64) -> Result<(), String> {
        let _one_at_a_time = self.lock.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Every argument in 8 bytes; the kernel's own types say how many of them count.
        let values: Vec<u64> = launch
            .arguments
            .iter()
            .map(|argument| match *argument {
                Argument::Address(address) => address,
                Argument::U32(value) => value.into(),
                Argument::F32(value) => value.to_bits().into(),
            })
            .collect();
        let kinds: String = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Address(_) => 'p',
                Argument::U32(_) => 'u',
                Argument::F32(_) => 'f',
            })
            .collect();
        let arguments: Vec<*const c_void> =
            values.iter().map(|value| std::ptr::from_ref(value).cast()).collect();
        let mut regions: Vec<Region> = regions
            .iter()
            .map(|&(begin, bytes)| {
                let inside = |address| (begin..=begin + bytes as u64).contains(&address);
                let argument =
                    launch.arguments.iter().position(|a| matches!(a, Argument::Address(at) if inside(*at)));
                let argument = argument.map_or(-1, |a| a as c_int);
                Region { begin: begin as usize, bytes, argument, written: false }
            })
            .collect();
        let mut report = vec![0u8; REPORT_BYTES];
        // SAFETY: the symbols have these types in runtime.cpp and in the source that `compile` appends.
        unsafe {
            let symbol = |prefix: &str| CString::new(format!("{prefix}_{}", launch.kernel)).unwrap();
            let parameters: Symbol<unsafe extern "C" fn() -> *const c_char> = self
                .library
                .get(symbol("parameters").as_bytes_with_nul())
                .map_err(|_| format!("there is no kernel {}", launch.kernel))?;
            let parameters = CStr::from_ptr(parameters()).to_str().unwrap();
            if kinds != parameters {
                return Err(format!("arguments: of kinds {kinds}, and the kernel's are {parameters}"));
            }
            let call = *self.library.get(symbol("call").as_bytes_with_nul()).unwrap();
            let run: Symbol<unsafe extern "C" fn(*mut RawLaunch) -> c_int> =
                self.library.get(b"emulator_launch\0").unwrap();
            let mut raw = RawLaunch {
                call,
                arguments: arguments.as_ptr(),
                grid: Index3(launch.grid.0, launch.grid.1, 1),
                block: Index3(launch.block, 1, 1),
                regions: regions.as_mut_ptr(),
                region_count: regions.len(),
                most_blocks: 0,
                seed,
                report: report.as_mut_ptr().cast(),
                report_bytes: REPORT_BYTES,
                program_counter: 0,
            };
            if run(&mut raw) == 0 {
                return Ok(());
            }
            let text = CStr::from_bytes_until_nul(&report).unwrap().to_string_lossy().into_owned();
            Err(match raw.program_counter {
                0 => text,
                counter => format!("{text} at {}", line(&self.path, counter)),
            })
        }
    }
}

/// File and line of an address in a library.
fn line(library: &Path, counter: usize) -> String {
    let output =
        Command::new("addr2line").arg("-s").arg("-e").arg(library).arg(format!("{counter:#x}")).output();
    let text = output
        .map(|out| String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap_or("?").to_string());
    text.unwrap_or_else(|error| format!("an unknown line: addr2line: {error}"))
}

type Libraries = HashMap<String, Result<Arc<Compiled>, DeviceError>>;

/// The libraries loaded so far, by source.
static LIBRARIES: LazyLock<Mutex<Libraries>> = LazyLock::new(Mutex::default);

fn compiled(name: &str, common: &str, source: &str) -> Result<Arc<Compiled>, DeviceError> {
    let text = text(name, common, source);
    let mut libraries = LIBRARIES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    libraries.entry(text).or_insert_with_key(|text| compile(name, text).map(Arc::new)).clone()
}

/// What g++ compiles: prelude, common.cuh, a kernel file, and the callers of its kernels.
fn text(name: &str, common: &str, source: &str) -> String {
    let mut text = format!("{PRELUDE}\n#line 1 \"common.cuh\"\n{common}\n#line 1 \"{name}\"\n{source}\n");
    for kernel in KernelFile::kernels_of(source) {
        text +=
            &format!("extern \"C\" void call_{kernel}(void *const *a) {{ emulator_call({kernel}, a); }}\n");
        text += &format!(
            "extern \"C\" const char *parameters_{kernel}() {{ return emulator_parameters({kernel}); }}\n"
        );
    }
    text
}

/// Compiles a text, and the runtime once for all of them, into one library.
fn compile(name: &str, text: &str) -> Result<Compiled, DeviceError> {
    let runtime = kept((RUNTIME, FLAGS), |directory| {
        fs::write(directory.join("runtime.cpp"), RUNTIME).expect("a writable directory");
        run_compiler("runtime.cpp", directory, flags(1), &["-c", "-o", "runtime.o", "runtime.cpp"])
    })?;
    let library = kept((text, RUNTIME, FLAGS), |directory| {
        fs::write(directory.join("kernel.cpp"), text).expect("a writable directory");
        run_compiler(name, directory, flags(2), &["-c", "-o", "kernel.o", "kernel.cpp"])?;
        let runtime = runtime.join("runtime.o");
        let runtime = runtime.to_str().expect("a path that is text");
        let link = ["-shared", "-Wl,-Bsymbolic"].into_iter();
        run_compiler(name, directory, link, &["-o", "kernel.so", "kernel.o", runtime])
    })?;
    let path = library.join("kernel.so");
    // SAFETY: built from sources of this repository; it runs no code when it is loaded.
    let library = unsafe { Library::new(&path) }.expect("a library just linked");
    Ok(Compiled { library, path, lock: Mutex::new(()) })
}

/// The directory under target/tmp that `make` fills, or filled in an earlier run with the same key.
fn kept(key: impl Hash, make: impl FnOnce(&Path) -> Result<(), DeviceError>) -> Result<PathBuf, DeviceError> {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{:016x}", hasher.finish()));
    if !kept.exists() {
        let making = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a writable target directory");
        make(making.path())?;
        // Another process may have been faster; what it made is the same.
        if fs::rename(making.path(), &kept).is_ok() {
            let _ = making.keep();
        }
    }
    Ok(kept)
}

const PRELUDE: &str = include_str!("prelude.h");
const RUNTIME: &str = include_str!("runtime.cpp");
/// The compiler's flags: for all, for the runtime, for kernels. Loops of kernels stay loops: the compiler's own memset would not
/// be watched. Hardened headers in the runtime would take a jump between fibers for an error.
const FLAGS: &str = include_str!("flags.txt");

fn flags(line: usize) -> impl Iterator<Item = &'static str> {
    FLAGS.lines().nth(line).expect("three lines").split_whitespace()
}

fn run_compiler<'a>(
    name: &str,
    directory: &Path,
    others: impl Iterator<Item = &'a str>,
    arguments: &[&str],
) -> Result<(), DeviceError> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let output =
        Command::new(&compiler).current_dir(directory).args(flags(0)).args(others).args(arguments).output();
    let failed = |log| DeviceError::Compile { file: name.into(), log };
    let output =
        output.map_err(|error| failed(format!("{compiler} does not start ({error}); install g++")))?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(failed(log)) }
}
