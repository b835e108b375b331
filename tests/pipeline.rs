//! The whole pipeline, exactly: every run of nano-llama, a model without ties, in float64 from the command line.

mod common;

use approx::abs_diff_eq;
use common::{duogpt, fixture, read_json};
use duogpt::tensors::TensorFile;
use serde_json::Value;

/// Pruned weights within 1e-9 relative, masks identical, perplexities within 1e-9.
fn repeats(run: &str) {
    let nano = fixture("nano-llama");
    let published = &read_json(&nano.join("upstream.json"))["runs"][run];
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("pruned");
    let (model, output) = (nano.to_str().unwrap(), output.to_str().unwrap());
    let calibration = format!("{model}/tokens-calibration.safetensors");
    let evaluation = format!("{model}/tokens-evaluation.safetensors");

    let mut arguments: Vec<String> = [
        "prune",
        "--model",
        model,
        "--output",
        output,
        "--tokens",
        &calibration,
        "--precision",
        "f64",
        "--dtype",
        "f64",
    ]
    .map(String::from)
    .to_vec();
    arguments.extend(["--method".into(), published["method"].as_str().unwrap().into()]);
    for (key, value) in published["config"].as_object().unwrap() {
        // alpha of SparseGPT is 0 and has no effect.
        let value = value.as_str().map_or_else(|| value.to_string(), String::from);
        arguments.extend([format!("--{}", key.replace('_', "-")), value]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = duogpt(&arguments);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));

    let golden = TensorFile::open(&nano.join(format!("pruned-{run}.safetensors"))).unwrap();
    let pruned = TensorFile::open(&std::path::Path::new(output).join("model.safetensors")).unwrap();
    assert_eq!(golden.names().count(), 21);
    for name in golden.names() {
        let (golden, found) = (golden.matrix::<f64>(name).unwrap(), pruned.matrix::<f64>(name).unwrap());
        let largest = golden.iter().fold(0.0f64, |m, w| m.max(w.abs()));
        for (index, &g) in golden.indexed_iter() {
            let f = found[index];
            assert_eq!(g == 0.0, f == 0.0, "{run}: {name} {index:?}: mask");
            assert!(abs_diff_eq!(f, g, epsilon = 1e-9 * largest), "{run}: {name} {index:?}: {f:e} for {g:e}");
            assert!(f != 0.0 || f.is_sign_positive(), "{run}: {name} {index:?}: a pruned weight is +0");
        }
    }

    let sparsity = published["config"]["activation_sparsity"].to_string();
    for (sparsity, key) in
        [("0", "perplexity_dense_activations"), (&sparsity, "perplexity_sparse_activations")]
    {
        let outcome = duogpt(&[
            "eval",
            "perplexity",
            "--model",
            output,
            "--tokens",
            &evaluation,
            "--precision",
            "f64",
            "--json",
            "--activation-sparsity",
            sparsity,
        ]);
        let found: Value = serde_json::from_slice(&outcome.stdout).unwrap();
        let (found, golden) = (found["perplexity"].as_f64().unwrap(), published[key].as_f64().unwrap());
        assert!(abs_diff_eq!(found / golden, 1.0, epsilon = 1e-9), "{run}: {key} {found} for {golden}");
    }
}

macro_rules! runs {
    ($($run:ident)*) => {
        $(#[test] fn $run() { repeats(stringify!($run)); })*

        #[test]
        fn every_published_run_is_repeated() {
            let published = read_json(&fixture("nano-llama/upstream.json"));
            let mut names: Vec<&str> = published["runs"].as_object().unwrap().keys().map(String::as_str).collect();
            let mut repeated = vec![$(stringify!($run)),*];
            names.sort_unstable();
            repeated.sort_unstable();
            assert_eq!(names, repeated);
        }
    };
}
runs!(duogpt_upstream duogpt_paper duogpt_natural duogpt_2_4 duogpt_60_40 sparsegpt wanda magnitude);
