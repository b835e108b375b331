//! The whole host side on a CUDA driver without a device: the program itself, its libraries replaced. See tests/fake_cuda.

mod common;
#[path = "fake_cuda/failures.rs"]
mod failures;
#[path = "fake_cuda/faults.rs"]
mod faults;
#[path = "fake_cuda/stand_in.rs"]
mod stand_in;

use std::path::Path;

use common::{duogpt, fixture, read_json};
use duogpt::tensors::TensorFile;
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;

fn main() {
    let trial = |name: &str, check: fn()| {
        Trial::test(name, move || {
            check();
            Ok(())
        })
    };
    let mut trials = vec![
        trial("a_case_is_verified", a_case_is_verified),
        trial("a_text_is_continued_as_on_the_cpu", a_text_is_continued_as_on_the_cpu),
        trial("failures::each_call_fails_in_turn", failures::each_call_fails_in_turn),
        trial("failures::a_second_try_mends", failures::a_second_try_mends),
        trial("failures::an_unknown_status_is_an_error", failures::an_unknown_status_is_an_error),
        trial("a_type_is_chosen_for_the_inputs", a_type_is_chosen_for_the_inputs),
        trial("faults::each_planted_fault_is_found", faults::each_planted_fault_is_found),
        trial("faults::stale_machine_code_is_found", faults::stale_machine_code_is_found),
        trial("failures::a_broken_device_is_left_alone", failures::a_broken_device_is_left_alone),
    ];
    let published = read_json(&fixture("nano-llama/upstream.json"));
    for run in published["runs"].as_object().unwrap().keys() {
        let run = run.clone();
        trials.push(Trial::test(format!("pruned::{run}"), move || {
            repeats(&run);
            Ok(())
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// The arguments of a run of nano-llama's `upstream.json`.
fn arguments(run: &Value, output: &Path, backend: &str) -> Vec<String> {
    let nano = fixture("nano-llama");
    let text = |path: &Path| path.to_str().unwrap().to_string();
    let mut arguments = vec!["prune".into()];
    for (key, value) in [
        ("model", text(&nano)),
        ("output", text(output)),
        ("tokens", text(&nano.join("tokens-calibration.safetensors"))),
        ("backend", backend.into()),
        ("method", run["method"].as_str().unwrap().into()),
    ] {
        arguments.extend([format!("--{key}"), value]);
    }
    for (key, value) in run["config"].as_object().unwrap() {
        let value = value.as_str().map_or_else(|| value.to_string(), String::from);
        arguments.extend([format!("--{}", key.replace('_', "-")), value]);
    }
    arguments
}

/// The linears of a layer in the order in which they are pruned.
const ORDER: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Error and flipped decisions of pruned weights against the golden ones, by linear, in the order of pruning.
fn errors(golden: &TensorFile, output: &Path) -> Vec<(String, f64, usize)> {
    let found = TensorFile::open(&output.join("model.safetensors")).unwrap();
    let mut names: Vec<&str> = golden.names().collect();
    names.sort_by_key(|name| {
        let part = |i| name.split('.').nth(i).unwrap();
        (part(2).parse::<usize>().unwrap(), ORDER.iter().position(|linear| *linear == part(4)))
    });
    names
        .into_iter()
        .map(|name| {
            let (golden, found) = (golden.matrix::<f64>(name).unwrap(), found.matrix::<f32>(name).unwrap());
            let largest = golden.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            let mut flips = 0;
            let mut error = 0.0f64;
            for (&golden, &found) in golden.iter().zip(&found) {
                flips += usize::from((golden == 0.0) != (found == 0.0));
                let difference = (f64::from(found) - golden).abs() / largest;
                error = if difference.is_nan() { f64::INFINITY } else { error.max(difference) };
            }
            (name.to_string(), error, flips)
        })
        .collect()
}

/// Decisions of a run that arithmetic in f32 may turn: what the CPU turns in the most sensitive of the eight runs, of 138,240.
const FLIPS: usize = 10;

/// A run on the stand-ins is as close to the original in float64 as one of the CPU in f32: within twice, plus 4 eps. Behind a flipped
/// decision values differ, and are not compared: the CPU's budget is then that of its other linears.
fn repeats(run: &str) {
    let published = &read_json(&fixture("nano-llama/upstream.json"))["runs"][run];
    let golden = TensorFile::open(&fixture(&format!("nano-llama/pruned-{run}.safetensors"))).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let of = |backend: &str| {
        let output = directory.path().join(backend);
        let arguments = arguments(published, &output, backend);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if backend == "cuda" {
            stand_in::duogpt(&arguments, &[]).well();
        } else {
            let outcome = duogpt(&arguments);
            assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        }
        errors(&golden, &output)
    };
    let (on_cpu, on_cuda) = (of("cpu"), of("cuda"));
    assert_eq!(on_cuda.len(), 21);
    let unflipped = on_cpu.iter().filter(|(.., flips)| *flips == 0).map(|(_, error, _)| *error);
    let largest = unflipped.fold(0.0, f64::max);
    let mut flipped = 0;
    for ((name, single, cpu_flips), (_, found, flips)) in on_cpu.iter().zip(&on_cuda) {
        flipped += flips;
        let single = if *cpu_flips == 0 { *single } else { largest };
        let budget = 2.0 * single + 4.0 * f64::from(f32::EPSILON);
        assert!(flipped > 0 || *found <= budget, "{run}: {name}: error {found:.2e} of {budget:.2e}");
    }
    assert!(flipped <= FLIPS, "{run}: {flipped} decisions differ");
}

/// Every stage of a golden case, within its budget.
fn a_case_is_verified() {
    let case = fixture("vectors/v1/duogpt/one-block");
    let arguments = ["verify", "--backend", "cuda", "--vectors", case.to_str().unwrap()];
    // Also on a device that reads the host's memory late.
    for settings in [&[][..], &[("FAKE_CUDA_PAGEABLE", "1")]] {
        let ran = stand_in::duogpt(&arguments, settings).well();
        let text = String::from_utf8_lossy(&ran.output.stdout);
        assert!(text.contains("12 stages, 0 failed"), "{text}");
        assert!(ran.calls("cuLaunchKernel") > 0);
    }
}

/// Inputs of a model in f16 are multiplied as f16, unless f32 is asked for; no zeros are uploaded.
fn a_type_is_chosen_for_the_inputs() {
    let model = fixture("architectures/mistral");
    let tokens = model.join("tokens.safetensors");
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("pruned");
    let [model, tokens, output] = [&model, &tokens, &output].map(|path| path.to_str().unwrap());
    let run = |flags: &[&str], products: &str, said: bool| {
        let _ = std::fs::remove_dir_all(output);
        let arguments =
            ["prune", "--backend", "cuda", "--model", model, "--tokens", tokens, "--output", output];
        let ran = stand_in::duogpt(&[&arguments[..], flags].concat(), &[("FAKE_CUDA_DRY", "1")]).well();
        assert_eq!(ran.errors().contains("is rounded to float16, the type of the weights"), said);
        let launches = ran.bill["launches"].as_array().unwrap();
        let launched =
            |kernel: &str| launches.iter().any(|launch| launch["what"].as_str().unwrap().starts_with(kernel));
        assert!(launched(&format!("hessian_{products} ")), "{launches:?}");
        assert!(launched(&format!("drift_{products} ")), "{launches:?}");
        assert_eq!(ran.bill["bytes"]["up_zeros"], 0, "{}", ran.bill["bytes"]);
    };
    run(&[], "f16", true);
    run(&["--activation-dtype", "bf16"], "bf16", false);
    run(&["--activation-dtype", "f32"], "f32", false);
}

fn a_text_is_continued_as_on_the_cpu() {
    let nano = fixture("nano-llama");
    let arguments = |backend| {
        let model = nano.to_str().unwrap();
        ["generate", "--backend", backend, "--model", model, "--prompt-tokens", "1,2,3", "--max-tokens", "4"]
    };
    let ran = stand_in::duogpt(&arguments("cuda"), &[]).well();
    let on_cpu = duogpt(&arguments("cpu"));
    assert!(on_cpu.status.success());
    let [found, expected] = [&ran.output, &on_cpu].map(|output| String::from_utf8_lossy(&output.stdout));
    assert_eq!(found, expected);
    assert!(ran.calls("cuLaunchKernel") > 0);
}
