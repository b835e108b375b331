//! Each call of a CUDA function fails in turn: the program ends with a clear error or goes on without harm, it never panics, and
//! it gives back all that it has taken.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::common::fixture;
use crate::stand_in::{self, Ran};

/// A prune and a decoding that call every function of CUDA this program has. The device computes nothing (what fails, fails all the
/// same), and kernels are compiled anew each time.
const RUNS: [fn(&Path) -> Vec<String>; 2] = [prune, generate];

/// Functions that only benches and tests call, or a device without machine code of its own.
const NOT_OF_THE_PROGRAM: [&str; 15] = [
    "cuCtxGetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGetCount",
    "cuDeviceTotalMem_v2",
    "cuEventElapsedTime",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuMemPoolGetAttribute",
    "cuMemPoolTrimTo",
    "cuMemcpyDtoDAsync_v2",
    "cuStreamWaitEvent",
    "cublasGemmEx",
    "cublasSetPointerMode_v2",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
];

fn prune(directory: &Path) -> Vec<String> {
    let model = fixture("architectures/mistral");
    let tokens = model.join("tokens.safetensors");
    let output = directory.join("pruned");
    let [model, tokens, output] = [&model, &tokens, &output].map(|path| path.to_str().unwrap().to_string());
    [
        "prune",
        "--backend",
        "cuda",
        "--model",
        &model,
        "--tokens",
        &tokens,
        "--output",
        &output,
        "--samples",
        "1",
    ]
    .map(String::from)
    .into()
}

fn generate(_: &Path) -> Vec<String> {
    let model = fixture("architectures/mistral");
    ["generate", "--backend", "cuda", "--model", model.to_str().unwrap(), "--prompt-tokens", "1,2"]
        .into_iter()
        .chain(["--max-tokens", "2", "--activation-sparsity", "0.5"])
        .map(String::from)
        .collect()
}

/// Runs without computing. Where the compiler is to fail, without kept machine code.
fn dry(arguments: fn(&Path) -> Vec<String>, fail: &str) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    let arguments = arguments(directory.path());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut settings = vec![("FAKE_CUDA_DRY", "1"), ("FAKE_CUDA_FAIL", fail)];
    let fresh = directory.path().join("cache");
    if fail.starts_with("nvrtc") {
        settings.push(("XDG_CACHE_HOME", fresh.to_str().unwrap()));
    }
    stand_in::duogpt(&arguments, &settings)
}

/// What is wrong with a run in which a call failed.
fn objection(ran: &Ran) -> Option<String> {
    let errors = ran.errors();
    let Some(code) = ran.output.status.code() else { return Some(format!("ended by a signal\n{errors}")) };
    if errors.contains("panicked") {
        return Some(format!("a panic\n{errors}"));
    }
    let said = |text: &str| errors.contains(text);
    let clear = said("error: ")
        && (said("on the device") || said("CUDA cannot be used") || said("the device has no room"));
    if code != 0 && !clear && !said("do not compile for this device") {
        return Some(format!("no clear error\n{errors}"));
    }
    let left = ran.left();
    if !left.is_empty() {
        return Some(format!("left behind: {left:?}"));
    }
    None
}

/// First, in the middle, last.
fn places(calls: u64) -> BTreeSet<u64> {
    [1, 2, calls.div_ceil(2), calls].into_iter().filter(|place| (1..=calls).contains(place)).collect()
}

pub fn each_call_fails_in_turn() {
    let mut called = BTreeSet::new();
    let mut objections = Vec::new();
    for run in RUNS {
        // As if the compiler failed at the very end: machine code is not kept.
        let healthy = dry(run, "nvrtc:1").well();
        let functions = healthy.bill["calls"].as_object().unwrap();
        for (name, calls) in functions {
            let fresh = called.insert(name.clone());
            for place in places(calls.as_u64().unwrap()) {
                // What both runs do at their beginning and end is tried once.
                if !fresh && place == 1 {
                    continue;
                }
                let ran = dry(run, &format!("{name}:{place}"));
                assert!(ran.errors().contains("failed on demand"), "{name}:{place} was not called");
                objections.extend(objection(&ran).map(|text| format!("{name}:{place}: {text}")));
            }
        }
    }
    assert!(objections.is_empty(), "{} runs:\n{}", objections.len(), objections.join("\n"));
    let library = stand_in::libraries().join("libfake_cuda.so");
    let symbols = Command::new("nm").args(["-D", "--defined-only"]).arg(library).output().unwrap();
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    let exported = symbols.lines().filter_map(|line| line.split(' ').nth(2));
    let untried: Vec<&str> = exported
        .filter(|name| name.starts_with("cu") || name.starts_with("nvrtc"))
        .filter(|name| !name.starts_with("cuGetError") && !called.contains(*name))
        .collect();
    assert_eq!(untried, NOT_OF_THE_PROGRAM);
}

/// After an error of queued work every call fails: the program says so and ends without a panic.
pub fn a_broken_device_is_left_alone() {
    for run in RUNS {
        for place in [1, 2, 10, 40] {
            let ran = dry(run, &format!("work:{place}"));
            let errors = ran.errors();
            assert!(
                errors.contains("failed on demand"),
                "operation {place} of the queue was not reached: {errors}"
            );
            assert_eq!(ran.output.status.code(), Some(2), "{errors}");
            assert!(!errors.contains("panicked"), "{errors}");
            assert!(errors.contains("on the device: "), "{errors}");
        }
    }
}

/// A run goes on after a failure that a second try mends: no room, once freed memory is given back; and kept machine code that the
/// driver refuses, which is compiled anew.
pub fn a_second_try_mends() {
    const NO_ROOM: [(&str, i32); 5] = [
        ("cuMemAllocAsync:5", 2),
        ("cuModuleLoadData:2", 2),
        ("cublasSgemm_v2:1", 3),
        ("cublasStrsm_v2:1", 3),
        ("cusolverDnSpotrf:1", 2),
    ];
    for (call, status) in NO_ROOM {
        let ran = dry(prune, &format!("{call}:{status}")).well();
        assert!(ran.errors().contains("failed on demand"), "{call} was not called");
        assert_eq!(ran.calls("cuMemPoolTrimTo"), 1, "{call}");
    }
    let refused = "cuModuleLoadData:1:200"; // CUDA_ERROR_INVALID_IMAGE
    assert_eq!(dry(prune, "none:1").well().calls("nvrtcCompileProgram"), 0);
    assert_eq!(dry(prune, refused).well().calls("nvrtcCompileProgram"), 1);
}

/// A status that no list knows is an error like others.
pub fn an_unknown_status_is_an_error() {
    for call in ["cuLaunchKernel:1", "cublasSgemm_v2:1", "cusolverDnSpotrf:1", "nvrtcCompileProgram:1"] {
        let ran = dry(prune, &format!("{call}:4242"));
        assert_eq!(objection(&ran), None);
        assert_ne!(ran.output.status.code(), Some(0), "{call}");
    }
}
