//! Every kernel compiles to machine code for every architecture, without a stack frame or a spill, within the shared
//! memory there is, and with the registers that `benches/results/resources.json` records. NVRTC needs no GPU; without it these
//! tests are skipped by name, and where `CI` is set they fail. The width of the sources is checked everywhere.
//!
//! `DUOGPT_RECORD_RESOURCES=1 cargo test --release --test kernels_compile` rewrites the record.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use duogpt::cuda::nvrtc::{Compiler, Target};
use duogpt::cuda::{KERNEL_FILES, KernelFile};
use libtest_mimic::{Arguments, Failed, Trial};
use serde::{Deserialize, Serialize};

/// Architectures, and the bytes of shared memory a block can have there.
const ARCHITECTURES: [(i32, u32); 4] = [(80, 163 << 10), (90, 227 << 10), (100, 227 << 10), (120, 99 << 10)];

/// What one kernel takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Resources {
    registers: u32,
    shared: u32,
    stack: u32,
    spills: u32,
}

/// By architecture and kernel.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    compiler: String,
    resources: BTreeMap<String, BTreeMap<String, Resources>>,
}

static FOUND: Mutex<BTreeMap<String, BTreeMap<String, Resources>>> = Mutex::new(BTreeMap::new());

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/resources.json")
}

fn name(compiler: Compiler) -> String {
    let (major, minor) = compiler.version();
    format!("NVRTC {major}.{minor}")
}

/// The number in front of a phrase of the assembler's log.
fn number_before(line: &str, phrase: &str) -> u32 {
    let before = line.split(phrase).next().filter(|before| before.len() < line.len());
    before.and_then(|text| text.split_whitespace().last()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Reads what `-Xptxas -v` prints.
fn read(log: &str) -> BTreeMap<String, Resources> {
    let mut kernels: BTreeMap<String, Resources> = BTreeMap::new();
    let mut name = None;
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            name = rest.split('\'').next().map(String::from);
        }
        let Some(name) = &name else { continue };
        let kernel = kernels.entry(name.clone()).or_default();
        if line.contains("stack frame") {
            kernel.stack = number_before(line, " bytes stack frame");
            kernel.spills =
                number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        }
        if line.contains("Used ") {
            kernel.registers = number_before(line, " registers");
            kernel.shared = number_before(line, " bytes smem");
        }
    }
    kernels
}

fn check(
    compiler: Compiler,
    file: &'static KernelFile,
    architecture: i32,
    shared: u32,
) -> Result<(), Failed> {
    let target = Target::Cubin(architecture);
    let found = read(&compiler.compile(file, target)?.log);
    let mut expected = KernelFile::kernels_of(file.source);
    expected.sort_unstable();
    if found.keys().map(String::as_str).collect::<Vec<_>>() != expected {
        return Err(format!("the log names {:?}, the file {expected:?}", found.keys()).into());
    }
    for (kernel, resources) in &found {
        if resources.registers == 0 {
            return Err(format!("{kernel}: the log says nothing of its registers").into());
        }
        if resources.stack + resources.spills > 0 {
            return Err(format!("{kernel} has a stack frame or spills: {resources:?}").into());
        }
        if resources.shared > shared {
            return Err(
                format!("{kernel}: {} bytes of shared memory, there are {shared}", resources.shared).into()
            );
        }
    }
    FOUND.lock().unwrap().entry(target.name()).or_default().extend(found.clone());
    if recording() {
        return Ok(());
    }
    let record: Record = serde_json::from_str(&fs::read_to_string(path())?)?;
    if record.compiler != name(compiler) {
        println!("{} recorded, {} here: registers are not compared", record.compiler, name(compiler));
        return Ok(());
    }
    let recorded = record.resources.get(&target.name());
    for (kernel, resources) in &found {
        let recorded = recorded.and_then(|kernels| kernels.get(kernel));
        if recorded != Some(resources) {
            return Err(format!(
                "{kernel}: {resources:?}, recorded {recorded:?}. If this is meant: DUOGPT_RECORD_RESOURCES=1 cargo \
                 test --release --test kernels_compile"
            )
            .into());
        }
    }
    Ok(())
}

fn recording() -> bool {
    std::env::var_os("DUOGPT_RECORD_RESOURCES").is_some()
}

/// What fits beside a second file on a screen. A macro that lost its line continuations is much wider.
const COLUMNS: usize = 128;

/// Lines of the sources that are wider than [`COLUMNS`].
fn no_line_is_too_wide() -> Result<(), Failed> {
    let mut files = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "cu" && extension != "cuh") {
            continue;
        }
        files += 1;
        let source = fs::read_to_string(&path)?;
        if let Some((line, text)) = (1..).zip(source.lines()).find(|(_, text)| text.chars().count() > COLUMNS)
        {
            let columns = text.chars().count();
            return Err(format!("{}:{line}: {columns} columns, at most {COLUMNS}", path.display()).into());
        }
    }
    // Every file of kernels, and common.cuh.
    match files == KERNEL_FILES.len() + 1 {
        true => Ok(()),
        false => Err(format!("{files} sources").into()),
    }
}

/// A kernel that spills, and one with an error: the checks can fail.
fn planted(compiler: Compiler) -> Result<(), Failed> {
    static SPILLS: KernelFile = KernelFile {
        name: "spills.cu",
        source: "extern \"C\" __global__ void spills(float *x) { float a[64] = {}; \
                 for (u32 j = 0; j < 99; j++) a[(u32)x[j] & 63] += x[j]; \
                 for (u32 j = 0; j < 99; j++) x[j] = a[(u32)x[j] & 63]; }",
    };
    static WRONG: KernelFile =
        KernelFile { name: "wrong.cu", source: "extern \"C\" __global__ void wrong(int x) { y; }" };
    let compile = |file| compiler.compile(file, Target::Cubin(90));
    let stack = read(&compile(&SPILLS)?.log)["spills"].stack;
    let error = compile(&WRONG).err().map(|error| error.to_string()).unwrap_or_default();
    if stack >= 256 && error.contains("wrong.cu(1)") {
        Ok(())
    } else {
        Err(format!("stack {stack}, {error}").into())
    }
}

/// A device that no machine code fits is given PTX, a text that its driver compiles.
fn ptx_is_a_text(compiler: Compiler) -> Result<(), Failed> {
    for file in KERNEL_FILES {
        let code = compiler.compile(file, Target::Ptx(80))?.code;
        let text = String::from_utf8(code)?;
        let kernels = KernelFile::kernels_of(file.source);
        let named = |kernel: &&str| text.contains(&format!(".entry {kernel}("));
        if !text.ends_with('\0') || !text.contains(".target sm_80") || !kernels.iter().all(named) {
            return Err(format!("{}: not the kernels {kernels:?} as PTX", file.name).into());
        }
    }
    Ok(())
}

fn the_architectures_are_known(compiler: Compiler) -> Result<(), Failed> {
    let known = compiler.architectures();
    match ARCHITECTURES.iter().find(|(architecture, _)| !known.contains(architecture)) {
        None => Ok(()),
        Some((missing, _)) => Err(format!("{missing} is not among {known:?}").into()),
    }
}

fn main() {
    let compiler = Compiler::load();
    // In CI a missing compiler is a failure, not a skip.
    let skip = compiler.is_err() && std::env::var_os("CI").is_none();
    let trial = |name: String, check: Box<dyn Fn(Compiler) -> Result<(), Failed> + Send>| {
        let compiler = compiler.clone();
        Trial::test(name, move || {
            let advice = "pip download nvidia-cuda-nvrtc, unpack it, set LD_LIBRARY_PATH";
            check(compiler.map_err(|error| format!("{error}: {advice}"))?)
        })
        .with_ignored_flag(skip)
    };
    let mut trials = vec![
        Trial::test("no_line_is_too_wide", no_line_is_too_wide),
        trial("planted_spills_and_errors_are_found".into(), Box::new(planted)),
        trial("the_compiler_knows_the_architectures".into(), Box::new(the_architectures_are_known)),
        trial("ptx_is_a_text".into(), Box::new(ptx_is_a_text)),
    ];
    for (architecture, shared) in ARCHITECTURES {
        for file in KERNEL_FILES {
            let name = format!("{}::{}", file.name, Target::Cubin(architecture).name());
            trials.push(trial(name, Box::new(move |compiler| check(compiler, file, architecture, shared))));
        }
    }
    let outcome = libtest_mimic::run(&Arguments::from_args(), trials);
    if let (true, Ok(compiler), false) = (recording(), compiler, outcome.has_failed()) {
        let record =
            Record { compiler: name(compiler), resources: std::mem::take(&mut *FOUND.lock().unwrap()) };
        fs::write(path(), serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
    }
    outcome.exit();
}
