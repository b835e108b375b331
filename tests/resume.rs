//! A run that is killed continues where it was, and ends as if it had not been; and a Hessian that is not positive
//! definite is damped, or refused.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{content, duogpt, fixture, read_json};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn arguments(output: &Path, more: &[&str]) -> Vec<String> {
    let model = fixture("nano-llama");
    let tokens = model.join("tokens-calibration.safetensors");
    let mut arguments: Vec<String> =
        ["prune", "--block-size", "32", "--dtype", "f64", "--model"].map(String::from).to_vec();
    arguments.push(model.to_str().unwrap().into());
    arguments.extend(["--tokens".into(), tokens.to_str().unwrap().into()]);
    arguments.extend(["--output".into(), output.to_str().unwrap().into()]);
    arguments.extend(more.iter().map(|flag| flag.to_string()));
    arguments
}

fn run(output: &Path, more: &[&str]) -> std::process::Output {
    let arguments = arguments(output, more);
    duogpt(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn killed_at_random_moments_and_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    let flags = ["--bits", "4", "--report-gap", "8"]; // what they add to the report must survive too
    let start = Instant::now();
    assert!(run(&whole, &flags).status.success());
    let duration = start.elapsed();
    let expected = content(&whole);

    let seed = 20;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut interrupted = 0;
    for round in 0..20 {
        let output = directory.path().join(format!("round{round}"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_duogpt"))
            .args(arguments(&output, &flags))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(duration.mul_f64(random.random_range(0.0..1.0)) + Duration::from_millis(1));
        child.kill().unwrap(); // SIGKILL: nothing is cleaned up
        child.wait().unwrap();
        if output.exists() {
            continue; // it was faster
        }
        interrupted += 1;
        let outcome = run(&output, &[&flags[..], &["--resume"]].concat());
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        assert!(content(&output) == expected, "round {round}, seed {seed}: the result differs");
        assert!(!directory.path().join(format!("round{round}.partial")).exists());
    }
    assert!(interrupted > 0, "no run was interrupted");
}

/// Starts a run of three layers and waits until its first is finished.
fn started(output: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_duogpt"))
        .args(arguments(output, &["--precision", "f64"]))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let journal = output.with_extension("partial").join("resume.json");
    while !journal.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn an_interrupted_run_is_not_overwritten_and_not_continued_by_another() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("pruned");
    let mut child = started(&output);
    child.kill().unwrap();
    child.wait().unwrap();
    let journal = directory.path().join("pruned.partial/resume.json");
    assert!(journal.exists(), "the run ended before it could be interrupted");

    let refused = |flags: &[&str], expected: &str| {
        let outcome = run(&output, flags);
        let message = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(2), "{message}");
        assert!(message.contains(expected) && message.contains("pruned.partial"), "{message}");
        assert!(journal.exists(), "the interrupted run was removed");
    };
    refused(&["--precision", "f64"], "--resume");
    refused(&["--precision", "f64", "--resume", "--damping", "0.5"], "other settings");
    refused(&["--precision", "f64", "--resume", "--bits", "4"], "other settings");
    refused(&["--precision", "f64", "--resume", "--report-gap"], "other settings");
    refused(&["--resume"], "other settings");
    assert!(run(&output, &["--resume", "--precision", "f64"]).status.success());
}

#[test]
fn a_run_whose_name_is_taken_meanwhile_keeps_its_layers() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("pruned");
    let child = started(&output);
    fs::create_dir(&output).expect("the run ended before its name could be taken");
    let outcome = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2), "{message}");
    assert!(message.contains("pruned.partial") && message.contains("--resume"), "{message}");
    fs::remove_dir(&output).expect("nothing was put into it");
    assert!(run(&output, &["--resume", "--precision", "f64"]).status.success());
    assert!(!output.join("resume.json").exists() && !directory.path().join("pruned.partial").exists());
}

#[test]
fn a_hessian_that_is_not_positive_definite_is_damped_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("pruned");
    // One sequence has fewer tokens than down_proj has channels: without damping its Hessian is singular.
    let flags = ["--samples", "1", "--damping", "0"];
    let outcome = run(&output, &[&flags[..], &["--damping-retry", "false"]].concat());
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2), "{message}");
    assert!(message.contains("model.layers.0."), "{message}");
    assert!(
        message.contains("not positive definite at column") && message.contains("larger damping"),
        "{message}"
    );
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "something was written");

    let outcome = run(&output, &flags);
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "{message}");
    assert!(message.contains("warning: model.layers.0.") && message.contains("damped with"), "{message}");
    let report = read_json(&output.join("prune-report.json"));
    let retried =
        report["linears"].as_array().unwrap().iter().filter(|l| !l["damping_retry"].is_null()).count();
    assert!(retried > 0);
}
