//! Every supported architecture through the whole suite, from the command line and without a tokenizer. (`model.rs` holds
//! their logits to transformers'.)

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use approx::abs_diff_eq;
use common::{ARCHITECTURE_MODELS, content, duogpt, eval_perplexity, fixture, read_json};
use duogpt::backend::Cpu;
use duogpt::calibrate::PruneJob;
use duogpt::calibrate::streams::Activations;
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::logits;
use duogpt::linalg::matmul;
use duogpt::model::Checkpoint;
use duogpt::model::architecture::SUPPORTED;
use duogpt::model::forward::{Forward, Group, State};
use duogpt::progress::{Observer, Silent};
use duogpt::reference::{Method, PruneConfig, Sparsity};
use duogpt::tensors::TensorFile;
use ndarray::Array2;
use serde_json::Value;
use tempfile::TempDir;

const SINGLE: &str = "model.safetensors";

/// A fixture and room for what is made of it.
struct Place {
    model: PathBuf,
    checkpoint: Checkpoint,
    room: TempDir,
}

impl Place {
    fn new(model: &str) -> Self {
        let model = fixture("architectures").join(model);
        let checkpoint = Checkpoint::open(&model).unwrap();
        Place { model, checkpoint, room: tempfile::tempdir().unwrap() }
    }

    fn tokens(&self) -> PathBuf {
        self.model.join("tokens.safetensors")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    /// `duogpt <command>` on the model and its tokens; returns where the output is.
    fn run(&self, command: &str, output: &str, flags: &[&str]) -> PathBuf {
        let path = self.path(output);
        let [model, tokens, to] =
            [&self.model, &self.tokens(), &path].map(|path| path.to_str().unwrap().to_string());
        let arguments = [command, "--model", &model, "--tokens", &tokens, "--output", &to];
        let outcome = duogpt(&[&arguments, flags].concat());
        assert!(outcome.status.success(), "{model} {flags:?}: {}", String::from_utf8_lossy(&outcome.stderr));
        path
    }

    fn perplexity(&self, of: &Path, flags: &[&str]) -> f64 {
        eval_perplexity(of, &self.tokens(), "6", flags)["perplexity"].as_f64().unwrap()
    }

    fn linears(&self) -> Vec<String> {
        self.checkpoint.linear_tensors().collect()
    }
}

#[test]
fn every_row_of_the_table_is_tried() {
    let tried: BTreeSet<&str> = ARCHITECTURE_MODELS
        .iter()
        .map(|model| Place::new(model).checkpoint.config.architecture.class)
        .collect();
    assert_eq!(tried, SUPPORTED.iter().map(|architecture| architecture.class).collect());
}

#[test]
fn perplexity_is_that_of_the_logits_of_transformers() {
    for model in ARCHITECTURE_MODELS {
        let place = Place::new(model);
        let path = place.model.join("golden-logits.safetensors");
        let golden = TensorFile::open(&path).unwrap();
        let (tokens, logits) =
            (golden.integers::<ndarray::Ix2>("tokens").unwrap(), golden.cube::<f64>("logits").unwrap());
        let mut sum = 0.0;
        for (tokens, logits) in tokens.rows().into_iter().zip(logits.outer_iter()) {
            for (logits, &next) in logits.rows().into_iter().zip(tokens.iter().skip(1)) {
                sum += logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[next as usize];
            }
        }
        let expected = sum / (tokens.len() - tokens.nrows()) as f64;
        let found = eval_perplexity(&place.model, &path, "2", &[])["mean_nll"].as_f64().unwrap();
        // Each logit is off by at most 1e-4, and so is the logarithm of the sum.
        assert!(abs_diff_eq!(found, expected, epsilon = 2e-4), "{model}: {found} for {expected}");
    }
}

#[test]
fn every_method_prunes_the_linears_and_nothing_else() {
    for model in ARCHITECTURE_MODELS {
        let place = Place::new(model);
        let source = TensorFile::open(&place.model.join(SINGLE)).unwrap();
        let dense = place.perplexity(&place.model, &[]);
        for method in ["duogpt", "sparsegpt", "wanda", "magnitude", "gptaq"] {
            let quantises = method == "gptaq";
            let own: &[&str] = if quantises { &["--bits", "3"] } else { &["--report-gap", "4"] };
            let output =
                place.run("prune", method, &[&["--method", method, "--block-size", "16"], own].concat());

            let report = read_json(&output.join("prune-report.json"));
            let reported = report["linears"].as_array().unwrap();
            let named: Vec<&str> = reported.iter().map(|linear| linear["tensor"].as_str().unwrap()).collect();
            assert_eq!(named, place.linears(), "{model} {method}");
            for linear in reported {
                let error = linear["relative_output_error"].as_f64().unwrap();
                assert!(error > 0.0 && error < 2.0, "{model} {method}: {linear}");
                assert_eq!(
                    linear["optimality"]["rows"].as_u64(),
                    (!quantises).then_some(4),
                    "{model} {method}: {linear}"
                );
            }

            let pruned = TensorFile::open(&output.join(SINGLE)).unwrap();
            assert!(source.names().eq(pruned.names()), "{model} {method}");
            for name in source.names() {
                let (before, after) = (source.bytes(name).unwrap(), pruned.bytes(name).unwrap());
                assert_eq!(before != after, named.contains(&name), "{model} {method}: {name}");
            }
            for name in &named {
                let weight = pruned.matrix::<f32>(name).unwrap();
                let zeros = weight.iter().filter(|w| **w == 0.0).count() as f64 / weight.len() as f64;
                // The inclusive threshold takes one more per block, and ties.
                assert!(quantises || (0.5..0.56).contains(&zeros), "{model} {method}: {name}: {zeros}");
            }
            let config = |directory: &Path| fs::read(directory.join("config.json")).unwrap();
            assert_eq!(config(&output), config(&place.model));

            // Random models predict nothing, so pruned ones are not worse; but they are others.
            let [all, half] = ["0", "0.5"].map(|p| place.perplexity(&output, &["--activation-sparsity", p]));
            assert!(
                all.is_finite() && half.is_finite() && all != dense && half != all,
                "{model} {method}: {all} {half}"
            );

            let outcome = duogpt(&["inspect", output.to_str().unwrap(), "--json"]);
            let lines: Value = serde_json::from_slice(&outcome.stdout).unwrap();
            let lines = lines.as_array().unwrap();
            assert_eq!(lines.len(), source.names().count());
            let counted = lines.iter().filter(|line| !line["sparsity"].is_null());
            assert!(counted.map(|line| line["tensor"].as_str().unwrap()).eq(named), "{model} {method}");
        }
    }
}

/// Token by token, from what is kept of those before, the model says what it says of the whole sequence.
#[test]
fn what_is_generated_is_what_the_logits_say() {
    let (prompt, more) = (40, 12);
    for model in ARCHITECTURE_MODELS {
        let place = Place::new(model);
        let config = &place.checkpoint.config;
        let windows = Windows::from_tokens(&place.tokens(), config, None, Some(1)).unwrap();
        let tokens: Vec<String> = windows.tokens.iter().take(prompt).map(ToString::to_string).collect();
        for sparsity in [0.0, 0.5] {
            let outcome = duogpt(&[
                "generate",
                "--model",
                place.model.to_str().unwrap(),
                "--prompt-tokens",
                &tokens.join(","),
                "--max-tokens",
                &more.to_string(),
                "--activation-sparsity",
                &sparsity.to_string(),
                "--precision",
                "f64",
                "--ignore-end",
                "--json",
            ]);
            assert!(outcome.status.success(), "{model}: {}", String::from_utf8_lossy(&outcome.stderr));
            let found: Value = serde_json::from_slice(&outcome.stdout).unwrap();
            let generated =
                found["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32);
            let all: Vec<u32> = windows.tokens.iter().copied().take(prompt).chain(generated).collect();
            assert_eq!(all.len(), prompt + more, "{model}: {found}");
            let whole = Windows {
                tokens: Array2::from_shape_vec((1, all.len()), all.clone()).unwrap(),
                source: "generated".into(),
            };
            let activations = Activations { sparsity, ..Activations::default() };
            let logits = logits::<f64, _>(&place.checkpoint, &whole, activations, &Cpu).unwrap();
            for place in prompt..all.len() {
                let said = logits[0].row(place - 1);
                let largest = said.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert_eq!(said[all[place] as usize], largest, "{model}, {sparsity}: token {place}");
            }
        }
    }
}

/// OPT and Qwen2 have tokenizers that are not called so.
#[test]
fn the_tokenizers_files_go_with_the_weights() {
    let place = Place::new("opt");
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    for file in ["config.json", SINGLE, "tokens.safetensors"] {
        fs::copy(place.model.join(file), source.join(file)).unwrap();
    }
    let kept = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];
    kept.iter().for_each(|file| fs::write(source.join(file), file).unwrap());
    let place = Place { model: source, ..place };
    let output = place.run("prune", "pruned", &["--method", "magnitude"]);
    for file in kept {
        assert_eq!(fs::read_to_string(output.join(file)).unwrap(), file);
    }
    assert!(!output.join("tokens.safetensors").exists());
}

/// ||(W' - W) X|| / ||W X||, whatever bias is added to both.
#[test]
fn biases_are_not_in_the_relative_output_error() {
    for model in ["qwen2", "opt", "llama-biased"] {
        let place = Place::new(model);
        let flags = ["--method", "magnitude", "--precision", "f64", "--dtype", "f64"];
        let output = place.run("prune", "pruned", &flags);
        let report = read_json(&output.join("prune-report.json"));
        let config = &place.checkpoint.config;
        let windows = Windows::from_tokens(&place.tokens(), config, None, None).unwrap();
        let forward = Forward::<f64>::new(config, windows.length());
        let embedding = place.checkpoint.embedding().unwrap();
        let [dense, pruned] =
            [&place.model, &output].map(|path| Checkpoint::open(path).unwrap().layer::<f64>(0).unwrap());
        for linear in Group::Qkv.linears(config) {
            let [mut error, mut norm] = [0.0; 2];
            for tokens in windows.tokens.outer_iter() {
                let mut state = State::embed(&embedding, tokens);
                forward.enter(&dense, &mut state);
                let square = |w: &Array2<f64>| matmul(state.input.view(), w.t()).mapv(|y| y * y).sum();
                norm += square(dense.linear(*linear));
                error += square(&(pruned.linear(*linear) - dense.linear(*linear)));
            }
            let (found, expected) = (
                report["linears"][linear.index]["relative_output_error"].as_f64().unwrap(),
                f64::sqrt(error / norm),
            );
            // Sums of some thousand products each, one of them of differences.
            let close = abs_diff_eq!(found / expected, 1.0, epsilon = 1e-11);
            assert!(close, "{model}, {linear}: {found} for {expected}");
        }
    }
}

#[test]
fn thresholds_are_found_and_used_and_belong_to_their_architecture() {
    for model in ARCHITECTURE_MODELS {
        let place = Place::new(model);
        let dense = place.perplexity(&place.model, &[]);
        for allocation in ["uniform", "greedy"] {
            let file = place.run("thresholds", allocation, &["--allocation", allocation, "--step", "0.1"]);
            let names: Vec<String> =
                place.checkpoint.config.linears().iter().map(ToString::to_string).collect();
            for layer in read_json(&file)["layers"].as_array().unwrap() {
                let projections = layer["projections"].as_array().unwrap();
                let named = projections.iter().map(|projection| projection["projection"].as_str().unwrap());
                assert!(named.eq(names.iter().map(String::as_str)), "{model}: {layer}");
            }
            let sparse = place.perplexity(&place.model, &["--thresholds", file.to_str().unwrap()]);
            assert!(sparse.is_finite() && sparse != dense, "{model}, {allocation}: {sparse}");
        }
    }
    let (opt, qwen2) = (Place::new("opt"), Place::new("qwen2"));
    let file = qwen2.run("thresholds", "file", &[]);
    let [model, tokens, file] =
        [&opt.model, &opt.tokens(), &file].map(|path| path.to_str().unwrap().to_string());
    let outcome =
        duogpt(&["eval", "perplexity", "--model", &model, "--tokens", &tokens, "--thresholds", &file]);
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2));
    assert!(message.contains(&file) && message.contains("has 7 projections, expected 6"), "{message}");
}

/// Copies the directory in the making when the second layer is under way: what a killed run leaves.
struct Interrupted {
    from: PathBuf,
    to: PathBuf,
    once: Once,
}

impl Observer for Interrupted {
    fn result(&self, linear: &str) {
        if linear.contains(".layers.1.") {
            self.once.call_once(|| {
                fs::create_dir(&self.to).unwrap();
                for entry in fs::read_dir(&self.from).unwrap() {
                    let entry = entry.unwrap();
                    fs::copy(entry.path(), self.to.join(entry.file_name())).unwrap();
                }
            });
        }
    }
}

#[test]
fn an_interrupted_run_continues() {
    for model in ARCHITECTURE_MODELS {
        let place = Place::new(model);
        let windows = Windows::from_tokens(&place.tokens(), &place.checkpoint.config, None, None).unwrap();
        let (whole, resumed) = (place.path("whole"), place.path("resumed"));
        let config = PruneConfig { block_size: 16, ..PruneConfig::paper(Sparsity::Unstructured(0.5)) };
        let job = |output, resume| PruneJob {
            windows: Some(&windows),
            activation_sparsity: 0.5,
            resume,
            ..PruneJob::new(&place.checkpoint, Method::DuoGpt(config), output)
        };
        let [from, to] = ["whole.partial", "resumed.partial"].map(|name| place.path(name));
        job(&whole, false).run::<f32, _>(&Cpu, &Interrupted { from, to, once: Once::new() }).unwrap();
        job(&resumed, true).run::<f32, _>(&Cpu, &Silent).unwrap();
        assert!(content(&whole) == content(&resumed), "{model}");
    }
}

#[test]
fn methods_are_compared() {
    for model in ["mistral", "qwen2-window", "opt-post-norm"] {
        let place = Place::new(model);
        let [model, tokens, to] = [&place.model, &place.tokens(), &place.path("comparison")]
            .map(|path| path.to_str().unwrap().to_string());
        let outcome = duogpt(&[
            "compare",
            "--model",
            &model,
            "--calibration",
            &tokens,
            "--evaluation",
            &tokens,
            "--output",
            &to,
            "--json",
            "--methods",
            "dense,magnitude,duogpt",
            "--block-size",
            "16",
            "--repeats",
            "2",
            "--samples",
            "6",
            "--evaluation-samples",
            "6",
        ]);
        assert!(outcome.status.success(), "{model}: {}", String::from_utf8_lossy(&outcome.stderr));
        let report: Value = serde_json::from_slice(&outcome.stdout).unwrap();
        let rows = report["points"][0]["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 3, "{report}");
        for row in &rows[1..] {
            for run in row["runs"].as_array().unwrap() {
                let reported = run["pruning"]["linears"].as_array().unwrap();
                let named = reported.iter().map(|linear| linear["tensor"].as_str().unwrap());
                assert!(named.eq(place.linears().iter().map(String::as_str)), "{row}");
            }
            assert_eq!(row["runs"].as_array().unwrap().len(), 2, "{row}");
        }
    }
}
