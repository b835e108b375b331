//! `duogpt thresholds`, its file, and `eval --thresholds`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use approx::{assert_abs_diff_eq, assert_abs_diff_ne};
use common::{duogpt, fixture, read_json};
use duogpt::backend::Cpu;
use duogpt::calibrate::streams::{Activations, Stream, Thresholds};
use duogpt::calibrate::thresholds::{Allocation, ThresholdFile, ThresholdJob};
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::{logits, perplexity};
use duogpt::model::Checkpoint;
use duogpt::model::forward::{Forward, Group};
use duogpt::progress::Silent;
use ndarray::s;
use serde_json::Value;

struct Nano {
    model: Checkpoint,
    windows: Windows,
}

impl Nano {
    fn new() -> Self {
        let model = Checkpoint::open(&fixture("nano-llama")).unwrap();
        let tokens = fixture("nano-llama/tokens-calibration.safetensors");
        let windows = Windows::from_tokens(&tokens, &model.config, None, Some(4)).unwrap();
        Nano { model, windows }
    }

    fn find(&self, activation_sparsity: f64, allocation: Allocation) -> ThresholdFile {
        let (checkpoint, windows) = (&self.model, &self.windows);
        let job = ThresholdJob { checkpoint, windows, activation_sparsity, allocation, step: 0.05 };
        job.run::<f64, _>(&Cpu, &Silent).unwrap()
    }

    /// Hands the states of every group to `see`, in a run with this rule.
    fn run(
        &self,
        windows: &Windows,
        rule: Activations,
        mut see: impl FnMut(usize, Group, &Stream<f64, Cpu>),
    ) {
        let forward = Forward::<f64>::new(&self.model.config, windows.length());
        let embedding = self.model.embedding::<f64>().unwrap();
        let mut stream = Stream::new(&forward, &Cpu, &embedding, windows, rule);
        for number in 0..self.model.config.num_hidden_layers {
            let layer = self.model.layer::<f64>(number).unwrap();
            stream.enter(&layer);
            for group in Group::ALL {
                see(number, group, &stream);
                stream.group(&layer, group);
            }
        }
    }
}

/// How many entries of the streams' input a threshold prunes.
fn count(stream: &Stream<f64, Cpu>, threshold: f64) -> f64 {
    stream.states.iter().flat_map(|state| &state.input).filter(|x| x.abs() <= threshold).count() as f64
}

#[test]
fn uniform_thresholds_meet_the_sparsity_within_a_bin_of_the_histogram() {
    let nano = Nano::new();
    for sparsity in [0.0, 0.3, 0.5, 0.9] {
        let file = nano.find(sparsity, Allocation::Uniform);
        let thresholds = file.thresholds(0);
        nano.run(&nano.windows, Activations::default(), |number, group, stream| {
            let all: usize = stream.states.iter().map(|state| state.input.len()).sum();
            for &linear in group.linears(&nano.model.config) {
                let projection = &file.layers[number].projections[linear.index];
                let t = projection.threshold;
                // A bin is at most 2^-7 of its magnitude wide.
                let bin = count(stream, t * (1.0 + 1.0 / 128.0)) - count(stream, t * (1.0 - 1.0 / 128.0));
                let off = count(stream, t) - (all as f64 * sparsity).floor();
                assert!(
                    off.abs() <= bin.max(1.0),
                    "layer {number}, {linear}, {sparsity}: {off} of a bin of {bin}"
                );
                assert_eq!(projection.target, sparsity);
            }
        });
        let rule = Activations { thresholds: Some(&thresholds), ..Activations::default() };
        nano.run(&nano.windows, rule, |number, group, stream| {
            let all: usize = stream.states.iter().map(|state| state.input.len()).sum();
            for &linear in group.linears(&nano.model.config) {
                let projection = &file.layers[number].projections[linear.index];
                assert_eq!(projection.realised, count(stream, projection.threshold) / all as f64);
            }
        });
    }
}

#[test]
fn the_greedy_allocation_meets_the_target_and_is_never_worse_than_the_uniform_one() {
    let nano = Nano::new();
    for sparsity in [0.25, 0.5] {
        let (greedy, uniform) =
            (nano.find(sparsity, Allocation::Greedy), nano.find(sparsity, Allocation::Uniform));
        assert_eq!((greedy.step, uniform.step), (Some(0.05), None));
        let mut better = 0;
        for (greedy, uniform) in greedy.layers.iter().zip(&uniform.layers) {
            let size = |p: &duogpt::calibrate::thresholds::Projection| (p.shape.0 * p.shape.1) as f64;
            let weights: f64 = greedy.projections.iter().map(size).sum();
            let met: f64 = greedy.projections.iter().map(|p| p.target * size(p)).sum::<f64>() / weights;
            // Each of at most ten steps rounds twice, and the sum seven times, numbers below 1.
            assert_abs_diff_eq!(met, sparsity, epsilon = 30.0 * f64::EPSILON);
            let (error, of_uniform) = (greedy.error.unwrap(), greedy.uniform_error.unwrap());
            assert!(0.0 < error && error <= of_uniform, "{error} {of_uniform}");
            better += usize::from(error < of_uniform);
            assert!(uniform.error.is_none());
            if error == of_uniform {
                assert_eq!(greedy.projections[0].threshold, uniform.projections[0].threshold);
            }
        }
        assert!(better > 0);
    }
    let (checkpoint, windows) = (&nano.model, &nano.windows);
    for step in [0.0, -1.0, f64::NAN, 0.9] {
        let job = ThresholdJob {
            checkpoint,
            windows,
            activation_sparsity: 0.95,
            allocation: Allocation::Greedy,
            step,
        };
        assert!(job.run::<f64, _>(&Cpu, &Silent).unwrap_err().to_string().contains("step"), "{step}");
    }
}

/// Of a window of two tokens only the first one's input counts: its logits predict the second. So thresholds between
/// the first token's smallest kept and largest pruned entry are exact top-k.
#[test]
fn thresholds_between_kept_and_pruned_entries_are_top_k() {
    let nano = Nano::new();
    let windows =
        Windows { tokens: nano.windows.tokens.slice(s![..1, ..2]).to_owned(), source: "two tokens".into() };
    let top_k = Activations { sparsity: 0.5, ..Activations::default() };
    let mut layers = vec![vec![0.0; 7]; 3];
    nano.run(&windows, top_k, |number, group, stream| {
        let kept = stream.states[0].input.row(0).into_iter().map(|x| x.abs()).filter(|x| *x > 0.0);
        let smallest = kept.fold(f64::INFINITY, f64::min);
        group.linears(&nano.model.config).iter().for_each(|linear| {
            layers[number][linear.index] = smallest * (1.0 - f64::EPSILON);
        });
    });
    let measure = |rule: Activations| {
        perplexity::<f64, _>(&nano.model, &windows, rule, &Cpu, &Silent).unwrap().perplexity
    };
    let thresholds = Thresholds { layers, dense_tokens: 0 };
    let by_thresholds = measure(Activations { thresholds: Some(&thresholds), ..Activations::default() });
    assert_eq!(by_thresholds, measure(top_k));
    assert_ne!(by_thresholds, measure(Activations::default()));
    let all = Thresholds { dense_tokens: 1, ..thresholds };
    let dense_first = measure(Activations { thresholds: Some(&all), ..Activations::default() });
    assert_eq!(dense_first, measure(Activations::default()));
}

#[test]
fn a_dense_prefix_is_dense_and_the_rest_is_not() {
    let nano = Nano::new();
    let file = nano.find(0.5, Allocation::Uniform);
    let of = |thresholds: Option<&Thresholds>| {
        let rule = Activations { thresholds, ..Activations::default() };
        logits::<f64, _>(&nano.model, &nano.windows, rule, &Cpu).unwrap()
    };
    let half = nano.windows.length() / 2;
    let (dense, mixed) = (of(None), of(Some(&file.thresholds(half))));
    for (dense, mixed) in dense.iter().zip(&mixed) {
        // The products have the same rows; only their number may change how BLAS cuts them.
        assert_abs_diff_eq!(dense.slice(s![..half, ..]), mixed.slice(s![..half, ..]), epsilon = 1e-9);
        assert_abs_diff_ne!(dense.row(half), mixed.row(half), epsilon = 1e-3);
    }
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn find(&self, model: &str, output: &str, flags: &[&str]) -> std::process::Output {
        let tokens = match model {
            "nano-llama" => "nano-llama/tokens-calibration.safetensors",
            _ => "tiny-llama/tokens-sampled-calibration.safetensors",
        };
        let (model, tokens, output) = (fixture(model), fixture(tokens), self.path(output));
        let mut arguments = vec!["thresholds", "--model", model.to_str().unwrap()];
        if !flags.contains(&"--samples") {
            arguments.extend(["--samples", "4"]);
        }
        arguments.extend(["--tokens", tokens.to_str().unwrap(), "--output", output.to_str().unwrap()]);
        arguments.extend(flags);
        duogpt(&arguments)
    }

    fn eval(&self, model: &str, flags: &[&str]) -> std::process::Output {
        let tokens = match model {
            "nano-llama" => "nano-llama/tokens-evaluation.safetensors",
            _ => "tiny-llama/tokens-sampled-evaluation.safetensors",
        };
        let (model, tokens) = (fixture(model), fixture(tokens));
        let mut arguments =
            vec!["eval", "perplexity", "--model", model.to_str().unwrap(), "--limit", "4", "--json"];
        arguments.extend(["--tokens", tokens.to_str().unwrap()]);
        arguments.extend(flags);
        duogpt(&arguments)
    }
}

#[test]
fn the_file_is_read_as_it_was_written() {
    let scratch = Scratch(tempfile::tempdir().unwrap());
    let flags = ["--allocation", "greedy", "--step", "0.1", "--json", "--precision", "f64"];
    let outcome = scratch.find("nano-llama", "thresholds.json", &flags);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let path = scratch.path("thresholds.json");
    assert_eq!(fs::read(&path).unwrap(), outcome.stdout);
    let model = Checkpoint::open(&fixture("nano-llama")).unwrap();
    let file = ThresholdFile::read(&path, &model.config).unwrap();
    assert_eq!(file.to_json().into_bytes(), outcome.stdout);
    assert_eq!((file.activation_sparsity, file.step), (0.5, Some(0.1)));
    assert_eq!((file.calibration.sequences, file.precision.as_str()), (4, "f64"));
    assert_eq!(file.model.sha256[0].0, "model.safetensors");
    assert_eq!(file.layers[2].projections[6].shape, model.config.linears()[6].shape(&model.config));
    let again = scratch.find("nano-llama", "thresholds.json", &[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"));
}

#[test]
fn a_file_that_does_not_fit_is_refused() {
    let scratch = Scratch(tempfile::tempdir().unwrap());
    assert!(scratch.find("nano-llama", "nano.json", &[]).status.success());
    let whole = read_json(&scratch.path("nano.json"));
    let refuses = |model: &str, name: &str, expected: &[&str]| {
        let outcome = scratch.eval(model, &["--thresholds", scratch.path(name).to_str().unwrap()]);
        let message = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(2), "{message}");
        for part in expected.iter().chain(&[name]) {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    };
    refuses("tiny-llama", "nano.json", &["3 layers", "the model has 6", "another model's"]);
    refuses("nano-llama", "nowhere.json", &["No such file"]);
    let damaged = |expected: &[&str], damage: &dyn Fn(&mut Value)| {
        let mut json = whole.clone();
        damage(&mut json);
        fs::write(scratch.path("damaged.json"), json.to_string()).unwrap();
        refuses("nano-llama", "damaged.json", expected);
    };
    damaged(&["layer 1, q_proj", "(64, 64)", "(128, 64)", "another model's"], &|json| {
        json["layers"][1]["projections"][0]["shape"][0] = 128.into();
    });
    damaged(&["layer 2, up_proj", "cannot be -1"], &|json| {
        json["layers"][2]["projections"][5]["threshold"] = (-1).into();
    });
    damaged(&["layer 0 has 6 projections"], &|json| {
        json["layers"][0]["projections"].as_array_mut().unwrap().pop();
    });
    damaged(&["found o_proj where q_proj is expected"], &|json| {
        json["layers"][0]["projections"].as_array_mut().unwrap().swap(0, 3);
    });
    damaged(&["duogpt-thresholds-9", "duogpt-thresholds-1"], &|json| {
        json["format"] = "duogpt-thresholds-9".into();
    });
    damaged(&["duogpt thresholds", "layers"], &|json| {
        json.as_object_mut().unwrap().remove("layers");
    });

    let path = scratch.path("nano.json");
    let path = path.to_str().unwrap();
    let both = scratch.eval("nano-llama", &["--thresholds", path, "--activation-sparsity", "0.5"]);
    assert_eq!(both.status.code(), Some(2));
    assert_eq!(scratch.eval("nano-llama", &["--dense-prefix", "0.5"]).status.code(), Some(2));
    for (flags, expected) in [
        (&["--activation-sparsity", "1"][..], "--activation-sparsity"),
        (&["--allocation", "greedy", "--step", "0"], "step of the allocation 0"),
        (&["--samples", "1000"], "fewer than the 1000"),
    ] {
        let outcome = scratch.find("nano-llama", "other.json", flags);
        let message = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(2), "{message}");
        assert!(message.contains(expected) && !scratch.path("other.json").exists(), "{message}");
    }
}

fn number(outcome: &std::process::Output) -> f64 {
    let json: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    json["perplexity"].as_f64().unwrap()
}

#[test]
fn on_a_real_model_thresholds_do_as_well_as_top_k() {
    let scratch = Scratch(tempfile::tempdir().unwrap());
    assert!(scratch.find("tiny-llama", "uniform.json", &[]).status.success());
    assert!(scratch.find("tiny-llama", "zero.json", &["--activation-sparsity", "0"]).status.success());
    let with = |name: &str, more: &[&str]| {
        let path = scratch.path(name);
        number(&scratch.eval("tiny-llama", &[&["--thresholds", path.to_str().unwrap()], more].concat()))
    };
    let dense = number(&scratch.eval("tiny-llama", &[]));
    let top_k = number(&scratch.eval("tiny-llama", &["--activation-sparsity", "0.5"]));
    let uniform = with("uniform.json", &[]);
    // Half the activations cost 14 %. With thresholds a percent more of them go than asked for, as the layers before
    // have made the inputs smaller.
    assert!(top_k > 1.1 * dense, "{dense} {top_k} {uniform}");
    assert_abs_diff_eq!(uniform / top_k, 1.0, epsilon = 0.02);
    let half = with("uniform.json", &["--dense-prefix", "0.5"]);
    assert!(dense < half && half < uniform, "{dense} {half} {uniform}");
    assert_eq!(with("zero.json", &[]), dense);
}

#[test]
fn zero_shot_takes_thresholds() {
    let scratch = Scratch(tempfile::tempdir().unwrap());
    assert!(scratch.find("tiny-llama", "half.json", &[]).status.success());
    assert!(scratch.find("tiny-llama", "zero.json", &["--activation-sparsity", "0"]).status.success());
    let (model, data) = (fixture("tiny-llama"), fixture("zero_shot/data"));
    let run = |flags: &[&str]| -> Value {
        let mut arguments =
            vec!["eval", "zero-shot", "--model", model.to_str().unwrap(), "--json", "--limit", "20"];
        arguments.extend(["--tasks", "piqa", "--data", data.to_str().unwrap()]);
        arguments.extend(flags);
        let outcome = duogpt(&arguments);
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        serde_json::from_slice(&outcome.stdout).unwrap()
    };
    let path = |name: &str| -> String { scratch.path(name).to_str().unwrap().into() };
    let (dense, zero) = (run(&[]), run(&["--thresholds", &path("zero.json")]));
    assert_eq!(dense["results"], zero["results"]);
    let half = run(&["--thresholds", &path("half.json")]);
    let arguments = half["config"]["model_args"].as_str().unwrap();
    assert!(arguments.ends_with(&format!("thresholds={}", path("half.json"))), "{arguments}");
    let other = fixture("nano-llama");
    let refused = duogpt(&[
        "eval",
        "zero-shot",
        "--model",
        model.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--tasks",
        "piqa",
        "--thresholds",
        other.join("config.json").to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no file of `duogpt thresholds`"));
}

#[test]
fn thresholds_need_data_and_a_place() {
    let directory = tempfile::tempdir().unwrap();
    let run = |output: &Path| {
        let model = fixture("nano-llama");
        let outcome =
            duogpt(&["thresholds", "--model", model.to_str().unwrap(), "--output", output.to_str().unwrap()]);
        assert_eq!(outcome.status.code(), Some(2));
        String::from_utf8_lossy(&outcome.stderr).into_owned()
    };
    assert!(run(&directory.path().join("t.json")).contains("need calibration data"));
    assert!(run(&directory.path().join("nowhere/t.json")).contains("no such directory"));
}
