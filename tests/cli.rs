//! Bad input: a clear message that names the file and what was expected, exit code 2, nothing written. And what the
//! command line promises of good input.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{duogpt, fixture, read_json};
use duogpt::calibrate::windows::{Cut, Windows};
use duogpt::model::Checkpoint;
use duogpt::model::tokenizer::Tokenizer;
use duogpt::tensors::{Dtype, TensorFile, TensorWriter};
use tempfile::TempDir;

/// A scratch directory with a copy of nano-llama in `model/`.
struct Scratch {
    directory: TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self::of("nano-llama")
    }

    fn of(model: &str) -> Self {
        let scratch = Scratch { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(scratch.path("model")).unwrap();
        for entry in fs::read_dir(fixture(model)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, scratch.path("model").join(from.file_name().unwrap())).unwrap();
        }
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().into()
    }

    /// Runs `prune` on `model/` into `pruned/`, calibrated on the model's token file, with more flags.
    fn prune(&self, flags: &[&str]) -> std::process::Output {
        let (model, output) = (self.text("model"), self.text("pruned"));
        let mut arguments = vec!["prune", "--model", &model, "--output", &output];
        arguments.extend(flags);
        duogpt(&arguments)
    }

    fn calibration(&self) -> String {
        self.text("model/tokens-calibration.safetensors")
    }

    /// Pruning must be refused with exit code 2 and a message that holds all of `expected`, and leave nothing.
    fn refuses(&self, flags: &[&str], expected: &[&str]) {
        let before = self.listing();
        let outcome = self.prune(flags);
        let message = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(2), "{message}");
        for part in expected {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        assert!(!message.contains("panicked"), "{message}");
        assert_eq!(self.listing(), before, "something was written");
    }

    fn refuses_model(&self, expected: &[&str]) {
        self.refuses(&["--tokens", &self.calibration(), "--block-size", "32"], expected);
    }

    fn listing(&self) -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> =
            fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    }

    fn edit_config(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let path = self.path("model/config.json");
        let mut json = read_json(&path);
        edit(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }

    /// Rewrites the weights: `change` may alter a tensor's bytes and shape, or drop it.
    fn edit_weights(&self, change: impl Fn(&str, &mut Vec<u8>, &mut Vec<usize>) -> bool) {
        let path = self.path("model/model.safetensors");
        let source = TensorFile::open(&fixture("nano-llama/model.safetensors")).unwrap();
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, info) in source.in_file_order() {
            let (mut bytes, mut shape) = (source.bytes(name).unwrap().to_vec(), info.shape.clone());
            if change(name, &mut bytes, &mut shape) {
                tensors.push((name.into(), info.dtype, shape, bytes));
            }
        }
        let headers = tensors.iter().map(|(name, dtype, shape, _)| (name.as_str(), *dtype, shape.as_slice()));
        let writer = TensorWriter::create(&path, headers, &HashMap::new()).unwrap();
        for (name, _, _, bytes) in &tensors {
            writer.write(name, bytes).unwrap();
        }
        writer.sync().unwrap();
    }
}

const UP: &str = "model.layers.1.mlp.up_proj.weight";

#[test]
fn a_missing_model_text_or_token_file() {
    let scratch = Scratch::of("tiny-llama");
    scratch.refuses(
        &["--tokens", &scratch.text("nowhere.safetensors")],
        &["nowhere.safetensors", "No such file"],
    );
    scratch.refuses(&["--text", &scratch.text("nowhere.txt")], &["nowhere.txt", "No such file"]);
    fs::remove_file(scratch.path("model/tokenizer.json")).unwrap();
    scratch.refuses(&["--text", &scratch.text("nowhere.txt")], &["tokenizer.json", "missing", "--tokens"]);
    fs::remove_file(scratch.path("model/model.safetensors")).unwrap();
    scratch.refuses_model(&["model.safetensors", "converted to safetensors"]);
    fs::remove_file(scratch.path("model/config.json")).unwrap();
    scratch.refuses_model(&["config.json", "Hugging Face model directory"]);
    fs::remove_dir_all(scratch.path("model")).unwrap();
    scratch.refuses_model(&["model", "no such directory"]);
}

#[test]
fn no_calibration_data() {
    Scratch::new().refuses(&[], &["duogpt needs calibration data"]);
    Scratch::new().refuses(&["--method", "wanda"], &["wanda needs calibration data"]);
}

#[test]
fn a_truncated_weight_file() {
    let scratch = Scratch::new();
    let path = scratch.path("model/model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 5, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        scratch.refuses_model(&["model.safetensors", "truncated"]);
    }
}

#[test]
fn a_missing_tensor() {
    let scratch = Scratch::new();
    scratch.edit_weights(|name, _, _| name != UP);
    scratch.refuses_model(&[UP, "missing", "model"]);
}

#[test]
fn a_tensor_of_the_wrong_shape() {
    let scratch = Scratch::new();
    scratch.edit_weights(|name, _, shape| {
        if name == UP {
            shape.reverse();
        }
        true
    });
    scratch.refuses_model(&["model.safetensors", UP, "[64, 176]", "expected [176, 64]"]);
}

#[test]
fn an_architecture_that_is_not_supported() {
    let scratch = Scratch::new();
    scratch.edit_config(|json| json["model_type"] = "mamba".into());
    scratch.refuses_model(&["config.json", "`model_type` \"mamba\"", "supported: llama, mistral"]);
    scratch.edit_config(|json| {
        json["model_type"] = "llama".into();
        json["rope_scaling"] = serde_json::json!({"rope_type": "yarn", "factor": 2.0});
    });
    scratch.refuses_model(&["config.json", "yarn", "supported: \"llama3\""]);
}

#[test]
fn a_config_that_makes_no_sense() {
    for (key, value, expected) in [
        ("hidden_size", serde_json::json!(0), "`hidden_size` is 0"),
        ("hidden_size", serde_json::json!(-64), "`hidden_size` is -64"),
        ("vocab_size", serde_json::json!("many"), "`vocab_size` is \"many\""),
        ("intermediate_size", serde_json::json!(1e300), "`intermediate_size` is 1e+300"),
        ("num_key_value_heads", serde_json::json!(3), "no multiple of `num_key_value_heads` 3"),
        ("num_hidden_layers", serde_json::Value::Null, "`num_hidden_layers` is null"),
        ("num_hidden_layers", serde_json::json!(2), "`num_hidden_layers` is 2, but tensor"),
        ("num_hidden_layers", serde_json::json!(4), "model.layers.3."),
    ] {
        let scratch = Scratch::new();
        scratch.edit_config(|json| json[key] = value);
        scratch.refuses_model(&[expected]);
    }
    let scratch = Scratch::new();
    fs::write(scratch.path("model/config.json"), "{").unwrap();
    scratch.refuses_model(&["config.json", "not JSON"]);
}

#[test]
fn nan_in_the_weights() {
    let scratch = Scratch::new();
    scratch.edit_weights(|name, bytes, _| {
        if name == UP {
            // Row 2, column 3 of a 176 x 64 matrix of f32.
            bytes[4 * (2 * 64 + 3)..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        true
    });
    scratch.refuses_model(&["model.safetensors", UP, "not finite", "[2, 3]"]);
}

#[test]
fn settings_out_of_range() {
    let scratch = Scratch::new();
    let tokens = scratch.calibration();
    for sparsity in ["1", "1.5", "-0.1", "NaN", "4:4", "half"] {
        scratch
            .refuses(&["--tokens", &tokens, "--weight-sparsity", sparsity], &["--weight-sparsity", sparsity]);
    }
    for sparsity in ["1", "-0.1", "inf"] {
        let flag = format!("--activation-sparsity={sparsity}");
        scratch.refuses(&["--tokens", &tokens, &flag], &["--activation-sparsity", sparsity]);
    }
    scratch.refuses(&["--tokens", &tokens, "--weight-sparsity", "2:3"], &["2:3", "divide"]);
    scratch.refuses(&["--tokens", &tokens, "--block-size", "0"], &["block size", "positive"]);
    scratch.refuses(&["--tokens", &tokens, "--damping=-1"], &["damping", "-1"]);
    scratch.refuses(
        &["--tokens", &tokens, "--column-order", "interleaved", "--interleave-run", "48"],
        &["runs of 48", "block size 128"],
    );
}

#[test]
fn quantisation_that_makes_no_sense() {
    let scratch = Scratch::new();
    let tokens = scratch.calibration();
    let refuses = |flags: &[&str], expected: &[&str]| {
        scratch.refuses(&[&["--tokens", tokens.as_str()], flags].concat(), expected);
    };
    refuses(&["--method", "gptaq"], &["gptaq", "--bits"]);
    refuses(&["--method", "wanda", "--bits", "4"], &["wanda has no column loop"]);
    refuses(&["--method", "magnitude", "--bits", "4"], &["magnitude has no column loop"]);
    let gptaq = ["--method", "gptaq", "--bits", "4"];
    refuses(&[&gptaq[..], &["--weight-sparsity", "0.3"]].concat(), &["--weight-sparsity", "--method duogpt"]);
    refuses(&[&gptaq[..], &["--profile", "paper"]].concat(), &["--profile"]);
    refuses(&["--bits", "1"], &["1 bits", "2 to 16"]);
    refuses(&["--bits", "17"], &["17 bits", "2 to 16"]);
    refuses(&["--bits", "4", "--group-size", "48"], &["grids of 48", "block size 128"]);
    refuses(&["--bits", "4", "--group-size", "0"], &["group size", "positive"]);
    for flag in [&["--mse"][..], &["--asymmetric"], &["--group-size", "32"]] {
        refuses(flag, &["--bits"]);
    }
    refuses(&["--report-gap", "0"], &["--report-gap"]);
    Scratch::new().refuses(&["--method", "magnitude", "--report-gap"], &["gap needs calibration data"]);
}

#[test]
fn texts_and_tokens_that_do_not_do() {
    let scratch = Scratch::of("tiny-llama");
    let with_text = |name: &str, content: &[u8], expected: &[&str]| {
        fs::write(scratch.path("model").join(name), content).unwrap();
        let text = scratch.text(&format!("model/{name}"));
        scratch.refuses(&["--text", &text, "--sequence-length", "64"], expected);
    };
    with_text("empty.txt", b"", &["empty.txt", "the text is empty"]);
    with_text("blank.txt", b" \n\n ", &["blank.txt", "the text is empty"]);
    with_text("short.txt", b"aaaa", &["short.txt", "fewer than one window of 64"]);
    with_text("binary.txt", &[0xff, 0xfe, 0x00], &["binary.txt", "not UTF-8"]);
    with_text("packed.json.gz", &[0x1f, 0x8b, 8, 0], &["packed.json.gz", "gzip"]);
    with_text("table.json", b"[{\"texts\": 1}]", &["table.json", "entry 0 of the array has no field `text`"]);
    with_text("settings.json", b"{\n\"a\": 1}", &["settings.json", "line 1 is not JSON", "per line"]);
    with_text("broken.jsonl", b"{\"text\": \"a\"}\n{\"text\": ", &["broken.jsonl", "line 2 is not JSON"]);
    with_text("other.jsonl", b"{\"texts\": \"a\"}\n", &["other.jsonl", "line 1 has no field `text`"]);
    let text = fixture("tiny-llama/sampled-calibration.txt");
    scratch.refuses(
        &["--text", text.to_str().unwrap(), "--sequence-length", "4096"],
        &["exceed the model's context of 512"],
    );

    let scratch = Scratch::new();
    let tokens = scratch.calibration();
    scratch.refuses(&["--tokens", &tokens, "--samples", "1000"], &["fewer than the 1000 asked for"]);
    scratch.refuses(&["--tokens", &tokens, "--samples", "0"], &["no windows are asked for"]);
    scratch.refuses(&["--tokens", &tokens, "--sequence-length", "7"], &["--sequence-length is 7"]);
    let weights = scratch.text("model/model.safetensors");
    scratch.refuses(&["--tokens", &weights], &["model.safetensors", "tensor `tokens` is missing"]);
}

#[test]
fn an_output_directory_that_exists_or_cannot_be() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("pruned")).unwrap();
    scratch.refuses_model(&["pruned", "exists already"]);
    fs::remove_dir(scratch.path("pruned")).unwrap();
    let output = scratch.text("nowhere/pruned");
    scratch.refuses(
        &["--tokens", &scratch.calibration(), "--output", &output],
        &["nowhere", "no such directory"],
    );
}

#[test]
fn weights_that_do_not_fit_the_output_type() {
    let scratch = Scratch::new();
    scratch.edit_weights(|name, bytes, _| {
        if name == "lm_head.weight" {
            bytes[..4].copy_from_slice(&1e6f32.to_le_bytes());
        }
        true
    });
    let tokens = scratch.calibration();
    scratch.refuses(
        &["--tokens", &tokens, "--block-size", "32", "--dtype", "f16"],
        &["lm_head.weight", "1e6", "F16", "--dtype"],
    );
}

/// Exit code and files of a run that should do.
fn prunes(scratch: &Scratch, flags: &[&str]) -> Vec<u8> {
    let tokens = scratch.calibration();
    let mut all = vec!["--tokens", tokens.as_str(), "--block-size", "32"];
    all.extend(flags);
    let outcome = scratch.prune(&all);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    outcome.stdout
}

#[test]
fn a_run_repeats_bit_for_bit_on_any_number_of_threads() {
    let run = |threads: &str| {
        let scratch = Scratch::new();
        let (model, output, tokens) = (scratch.text("model"), scratch.text("pruned"), scratch.calibration());
        let outcome = std::process::Command::new(env!("CARGO_BIN_EXE_duogpt"))
            .args([
                "prune",
                "--model",
                &model,
                "--output",
                &output,
                "--tokens",
                &tokens,
                "--block-size",
                "32",
            ])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(outcome.status.success());
        fs::read(scratch.path("pruned/model.safetensors")).unwrap()
    };
    let first = run("2");
    assert!(first == run("2"));
    assert!(first == run("1"));
    assert!(first == run("3"));
}

#[test]
fn the_output_keeps_names_types_and_files_and_reports_what_was_done() {
    let scratch = Scratch::of("llama3");
    let stdout = {
        let tokens = scratch.text("model/golden-logits.safetensors");
        let outcome =
            scratch.prune(&["--tokens", &tokens, "--block-size", "16", "--weight-sparsity", "2:4", "--json"]);
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        outcome.stdout
    };
    let (source, pruned) = (
        Checkpoint::open(&scratch.path("model")).unwrap(),
        Checkpoint::open(&scratch.path("pruned")).unwrap(),
    );
    assert_eq!(source.config, pruned.config);
    assert_eq!(source.shards().len(), 2);
    for (source, pruned) in source.shards().iter().zip(pruned.shards()) {
        assert_eq!(source.path().file_name(), pruned.path().file_name());
        assert_eq!(source.names().collect::<Vec<_>>(), pruned.names().collect::<Vec<_>>());
        for name in source.names() {
            assert_eq!(source.info(name).unwrap().dtype, pruned.info(name).unwrap().dtype, "{name}");
            if !name.contains("_proj") {
                assert_eq!(source.bytes(name).unwrap(), pruned.bytes(name).unwrap(), "{name}");
            }
        }
    }
    let index = read_json(&scratch.path("pruned/model.safetensors.index.json"));
    assert_eq!(
        index["weight_map"],
        read_json(&scratch.path("model/model.safetensors.index.json"))["weight_map"]
    );

    let report = read_json(&scratch.path("pruned/prune-report.json"));
    assert_eq!(report, serde_json::from_slice::<serde_json::Value>(&stdout).unwrap());
    let linears = report["linears"].as_array().unwrap();
    assert_eq!(linears.len(), 2 * 7);
    for linear in linears {
        assert_eq!(linear["zeros"].as_u64().unwrap() * 2, linear["weights"].as_u64().unwrap(), "{linear}");
        let error = linear["relative_output_error"].as_f64().unwrap();
        assert!(error > 0.0, "{linear}");
    }
    assert_eq!(report["config"]["weight_sparsity"], "2:4");
    assert_eq!(report["totals"]["sparsity"], 0.5);
}

#[test]
fn another_type_is_written_everywhere_and_said_in_the_config() {
    for (dtype, name) in [("bf16", "bfloat16"), ("f16", "float16"), ("f64", "float64")] {
        let scratch = Scratch::new();
        prunes(&scratch, &["--dtype", dtype]);
        let pruned = Checkpoint::open(&scratch.path("pruned")).unwrap();
        assert!(
            pruned.shards()[0]
                .in_file_order()
                .iter()
                .all(|(_, info)| format!("{:?}", info.dtype).to_lowercase() == dtype)
        );
        assert_eq!(read_json(&scratch.path("pruned/config.json"))["torch_dtype"], name);
    }
}

#[test]
fn magnitude_needs_no_data() {
    let scratch = Scratch::new();
    let outcome = scratch.prune(&["--method", "magnitude"]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let report = read_json(&scratch.path("pruned/prune-report.json"));
    assert!(report["calibration"].is_null() && report["linears"][0]["relative_output_error"].is_null());
}

#[test]
fn rounding_the_activations_changes_the_result_and_is_reported() {
    let weights = |flags: &[&str]| {
        let scratch = Scratch::new();
        prunes(&scratch, flags);
        let report = read_json(&scratch.path("pruned/prune-report.json"));
        (fs::read(scratch.path("pruned/model.safetensors")).unwrap(), report["activation_dtype"].clone())
    };
    let (plain, none) = weights(&[]);
    let (rounded, bf16) = weights(&["--activation-dtype", "bf16"]);
    let (same, _) = weights(&["--activation-dtype", "f32"]); // the arithmetic is f32 already
    assert!(plain != rounded && plain == same);
    assert_eq!((none, bf16), (serde_json::Value::Null, "bf16".into()));
}

#[test]
fn a_text_is_cut_at_seeded_random_starts() {
    let model = Checkpoint::open(&fixture("tiny-llama")).unwrap();
    let tokenizer = Tokenizer::read(&fixture("tiny-llama")).unwrap();
    let text = fixture("tiny-llama/sampled-calibration.txt");
    let windows = |cut| Windows::from_text(&text, &tokenizer, &model.config, 64, cut).unwrap().tokens;
    let all = tokenizer.encode(&fs::read_to_string(&text).unwrap()).unwrap();
    let random = windows(Cut::Random { samples: 8, seed: 0 });
    assert_eq!(random, windows(Cut::Random { samples: 8, seed: 0 }));
    assert_ne!(random, windows(Cut::Random { samples: 8, seed: 1 }));
    for window in random.outer_iter() {
        let window = window.to_vec();
        assert!(all.windows(64).any(|piece| piece == window));
    }
    let consecutive = windows(Cut::Consecutive { limit: None });
    assert_eq!(consecutive.nrows(), all.len() / 64);
    assert_eq!(consecutive.iter().copied().collect::<Vec<_>>(), all[..all.len() / 64 * 64]);

    // The same documents as JSONL, joined by blank lines.
    let directory = tempfile::tempdir().unwrap();
    let (one, jsonl) = (directory.path().join("a.txt"), directory.path().join("a.jsonl"));
    fs::write(&one, "first document about a river\n\nsecond document about a hill").unwrap();
    fs::write(
        &jsonl,
        "{\"text\": \"first document about a river\"}\n\n{\"text\": \"second document about a hill\"}\n",
    )
    .unwrap();
    let cut = |path: &Path| {
        Windows::from_text(path, &tokenizer, &model.config, 8, Cut::Consecutive { limit: None })
            .unwrap()
            .tokens
    };
    let expected = cut(&one);
    assert_eq!(expected, cut(&jsonl));
    // Whatever the file is called: the published shards of C4 are `c4-train.00000-of-01024.json`.
    let lines = fs::read_to_string(&jsonl).unwrap();
    let array =
        format!("[{}]", lines.split_whitespace().collect::<Vec<_>>().join(" ").replace("} {", "},\n {"));
    for name in ["c4-train.00000-of-01024.json", "a.JSONL", "a.Json", "corpus.txt", "corpus"] {
        let file = directory.path().join(name);
        for content in [&lines, &array] {
            if name == "a.JSONL" && content == &array {
                continue; // an array on one line is no line of the kind
            }
            fs::write(&file, content).unwrap();
            assert_eq!(cut(&file), expected, "{name}: {content}");
        }
    }
    // What is no document stays a text.
    let text = directory.path().join("b.txt");
    for content in
        ["{a set} of words, and more of them, and more of them", "[1] a note, and more of it, and more"]
    {
        fs::write(&text, content).unwrap();
        assert_eq!(cut(&text).row(0).to_vec(), tokenizer.encode(content).unwrap()[..8]);
    }
}

#[test]
fn verify_reports_stages_and_fails_with_exit_code_1() {
    let vectors = fixture("vectors/v1");
    let outcome = duogpt(&["verify", "--fixtures", vectors.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success(), "{text}");
    assert!(text.contains("122 files") && text.contains("36 wrong results to reject, 0 failed"), "{text}");
    assert!(text.contains("PASS  sparsegpt/basic  9 stages, at most ") && !text.contains("FAIL"), "{text}");

    let scratch = tempfile::tempdir().unwrap();
    let case = fs::read_to_string(vectors.join("duogpt/basic/case.json")).unwrap();
    let changed = case.replace("\"damping\": 0.01", "\"damping\": 0.09");
    assert_ne!(changed, case);
    fs::write(scratch.path().join("case.json"), changed).unwrap();
    let tensors = "tensors.safetensors";
    fs::copy(vectors.join("duogpt/basic").join(tensors), scratch.path().join(tensors)).unwrap();
    let outcome = duogpt(&["verify", "--vectors", scratch.path().to_str().unwrap()]);
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert_eq!(outcome.status.code(), Some(1), "{text}");
    for expected in [
        "FAIL  duogpt/basic\n  first failing stage: damping, trace.damping: 1 of 1 entries differ",
        "usual causes: ",
        "the case: basic: ",
        "FAIL  factor: trace.hinv_chol",
        "first beyond the budget (in processing order) at row",
    ] {
        assert!(text.contains(expected), "no `{expected}` in {text}");
    }

    let empty = tempfile::tempdir().unwrap();
    let outcome = duogpt(&["verify", "--vectors", empty.path().to_str().unwrap()]);
    assert_eq!(outcome.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("no cases"));
}

#[test]
fn inspect_lists_shapes_types_and_sparsity() {
    let scratch = Scratch::new();
    prunes(&scratch, &["--method", "wanda"]);
    let outcome = duogpt(&["inspect", &scratch.text("pruned")]);
    let text = String::from_utf8_lossy(&outcome.stdout);
    let line = text.lines().find(|line| line.starts_with(UP)).unwrap();
    assert!(line.contains("F32") && line.contains("176 x 64") && line.contains("sparsity 0.5000"), "{line}");
    assert!(text.lines().any(|line| line.starts_with("model.norm.weight")), "{text}");
}

#[test]
fn without_a_terminal_every_finished_step_has_a_line_on_stderr() {
    let scratch = Scratch::new();
    let (model, tokens) = (scratch.text("model"), scratch.calibration());
    let (pruned, compressed) = (scratch.text("pruned"), scratch.text("compressed"));
    let thresholds = scratch.text("thresholds.json");
    let (tiny, data) = (fixture("tiny-llama"), fixture("zero_shot/data"));
    let (tiny, data) = (tiny.to_str().unwrap(), data.to_str().unwrap());
    let on_tokens = |command: &[&'static str], more: &[&'static str]| -> Vec<String> {
        let arguments = [command, &["--model", &model, "--tokens", &tokens, "--json"], more].concat();
        arguments.into_iter().map(String::from).collect()
    };
    let with_output = |mut arguments: Vec<String>, output: &str| {
        arguments.extend(["--output".into(), output.into()]);
        arguments
    };
    let strings = |arguments: &[&str]| arguments.iter().map(|argument| argument.to_string()).collect();
    let layers = |what: &str, percents: [u32; 3]| -> Vec<String> {
        let line = |(layer, percent)| format!("{what}layer {layer} of 3 ({percent} %");
        (1..).zip(percents).map(line).collect()
    };
    let convert = ["convert", "--model", &model, "--output", &compressed, "--format", "sparse-bitmask"];
    let zero_shot = [
        "eval",
        "zero-shot",
        "--model",
        tiny,
        "--data",
        data,
        "--tasks",
        "piqa,arc_easy",
        "--limit",
        "2",
        "--json",
    ];
    let runs: [(Vec<String>, Vec<String>); 5] = [
        // Every layer is as much work as another.
        (
            with_output(on_tokens(&["prune"], &["--block-size", "32"]), &pruned),
            layers("duogpt: finished ", [33, 66, 100]),
        ),
        // The head is a fourth part.
        (on_tokens(&["eval", "perplexity"], &[]), layers("perplexity: finished ", [25, 50, 75])),
        (
            with_output(on_tokens(&["thresholds"], &[]), &thresholds),
            [
                layers("thresholds: finished the thresholds of ", [16, 33, 50]),
                layers("thresholds: finished applying them to ", [66, 83, 100]),
            ]
            .concat(),
        ),
        (strings(&convert), vec!["convert: finished model.safetensors (100 %".into()]),
        (strings(&zero_shot), vec!["zero-shot: finished batch 1 of 1 (100 %".into()]),
    ];
    for (arguments, expected) in runs {
        let outcome = duogpt(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let stderr = String::from_utf8_lossy(&outcome.stderr);
        assert!(outcome.status.success(), "{arguments:?}: {stderr}");
        let lines: Vec<(&str, &str)> = stderr.lines().map(|line| line.split_once(", ").unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line.0).collect::<Vec<_>>(), expected, "{arguments:?}");
        for (_, times) in lines {
            assert!(times.contains(" elapsed, ") && times.ends_with(" left)"), "{stderr}");
        }
        if arguments.iter().any(|argument| argument == "--json") {
            serde_json::from_slice::<serde_json::Value>(&outcome.stdout).unwrap();
        }
    }
}

#[test]
fn the_demo_without_its_model_says_where_it_looked() {
    let empty = tempfile::tempdir().unwrap();
    let fixtures = empty.path().to_str().unwrap();
    let outcome = duogpt(&["demo", "--fixtures", fixtures, "--output", fixtures]);
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2));
    assert!(message.contains(fixtures) && message.contains("--fixtures DIR"), "{message}");
}

#[test]
fn cuda_is_refused_with_advice_where_it_cannot_be_used() {
    let scratch = Scratch::new();
    let calibration = scratch.calibration();
    let flags = |more: &[&'static str]| {
        let mut flags = vec!["--tokens", calibration.as_str(), "--backend", "cuda"];
        flags.extend(more);
        flags.into_iter().map(String::from).collect::<Vec<_>>()
    };
    for (more, expected) in [(["--precision", "f64"], "f32"), (["--bits", "4"], "--bits")] {
        let flags = flags(&more);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        scratch.refuses(&flags, &[expected, "--backend cpu"]);
    }
    // No device, whatever the machine has.
    let (model, output) = (scratch.text("model"), scratch.text("pruned"));
    let run = |backend: &str| {
        let arguments =
            ["prune", "--model", &model, "--output", &output, "--tokens", &calibration, "--backend"];
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_duogpt"));
        command.args(arguments).arg(backend).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    let refused = run("cuda");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("CUDA cannot be used: "));
    assert!(!Path::new(&output).exists());
    falls_back_in_one_line(&run("auto"));
}

fn falls_back_in_one_line(done: &std::process::Output) {
    assert!(done.status.success());
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert_eq!(stderr.lines().filter(|line| line.ends_with("using the CPU")).count(), 1, "{stderr}");
}

#[test]
fn verify_takes_a_backend_and_says_where_it_cannot() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors/v1/duogpt/basic");
    let run = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_duogpt"));
        command.args(["verify", "--json", "--fixtures"]).arg(&golden).args(flags);
        command.env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    for (flags, expected) in [
        (vec!["--backend", "cuda"], "CUDA cannot be used: "),
        (vec!["--backend", "cuda", "--precision", "f64"], "CUDA computes in f32"),
    ] {
        let refused = run(&flags);
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0));
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(message.contains(expected) && message.contains("--backend cpu"), "{message}");
    }
    let done = run(&["--backend", "auto"]);
    falls_back_in_one_line(&done);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(report["environment"]["backend"].as_str().unwrap().starts_with("CPU reference"), "{report}");
    let f64_stage = &report["files"][0]["stages"][1];
    assert_eq!(f64_stage["outcome"]["ulps"]["precision"], "f64", "{f64_stage}");
}
