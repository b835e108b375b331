//! `duogpt compare`: what was computed is not computed again, unless something that it depends on changed; repeats
//! repeat; and what cannot be compared is refused.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use approx::{abs_diff_ne, assert_abs_diff_eq};
use common::{eval_perplexity, fixture, read_json};
use duogpt::model::{Checkpoint, Jitter};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory with a copy of nano-llama in `model/`, where comparisons put their output.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Place { directory: tempfile::tempdir().unwrap() };
        copy(&fixture("nano-llama"), &place.path("model"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Inside this directory, on its model, calibrated and measured on 4 windows of the model's token files.
    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duogpt"));
        command.current_dir(self.directory.path());
        command.args(["compare", "--model", "model", "--block-size", "32", "--samples", "4"]);
        command.args(["--evaluation-samples", "4", "--calibration", "model/tokens-calibration.safetensors"]);
        command.args(["--evaluation", "model/tokens-evaluation.safetensors"]).args(flags);
        command
    }

    fn output(&self, flags: &[&str]) -> Output {
        self.command(flags).output().expect("the program starts")
    }

    /// The JSON of a comparison that must succeed.
    fn compare(&self, flags: &[&str]) -> Value {
        let outcome = self.output(&[flags, &["--json"]].concat());
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        serde_json::from_slice(&outcome.stdout).unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn rows(report: &Value) -> &Vec<Value> {
    report["points"][0]["rows"].as_array().unwrap()
}

fn values<'a>(row: &'a Value, quantity: &str) -> &'a Value {
    &row["quantities"][quantity]["values"]
}

/// Pruned, measured, from the cache.
fn steps(report: &Value) -> (u64, u64, u64) {
    let count = |key: &str| report["steps"][key].as_u64().unwrap();
    (count("pruned"), count("measured"), count("from_cache"))
}

fn cache(place: &Place) -> BTreeSet<PathBuf> {
    let Ok(entries) = fs::read_dir(place.path("comparison/cache")) else { return BTreeSet::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

const TWO: [&str; 2] = ["--methods", "dense,wanda"];

#[test]
fn a_second_run_computes_nothing_and_says_the_same() {
    let place = Place::new();
    let first = place.compare(&TWO);
    // Two models at activation sparsities 0 and 0.5; wanda's pruning is a result too.
    assert_eq!(steps(&first), (1, 4, 0));
    assert_eq!(cache(&place).len(), 5);
    let second = place.compare(&TWO);
    assert_eq!(steps(&second), (0, 0, 5));
    assert_eq!(first["points"], second["points"]); // times too: they are those of the run that was
    assert_eq!(read_json(&place.path("comparison/comparison.json")), second);
    assert!(!place.path("comparison/models").exists(), "pruned models were left");

    // The cache may lie elsewhere.
    let moved = ["--cache", "comparison/cache", "--output", "elsewhere"];
    assert_eq!(steps(&place.compare(&[&TWO[..], &moved].concat())), (0, 0, 5));
    assert!(place.path("elsewhere/comparison.svg").exists());

    // Another method needs only itself; wanda, calibrated on dense activations, is one model at every sparsity of these.
    let third = place.compare(&["--methods", "dense,wanda,magnitude"]);
    assert_eq!(steps(&third), (1, 2, 5));
    let fourth = place.compare(&["--methods", "dense,wanda", "--activation-sparsity", "0.5,0.25"]);
    assert_eq!(steps(&fourth), (1, 2, 5));
}

#[test]
fn without_a_terminal_every_finished_step_has_a_line_on_stderr() {
    let place = Place::new();
    let finished = || -> Vec<String> {
        let outcome = place.output(&[&TWO[..], &["--json"]].concat());
        let stderr = String::from_utf8(outcome.stderr).unwrap();
        let step = |line: &str| {
            let step = line.strip_prefix("comparing: finished ").expect("a line of progress");
            let (step, progress) = step.split_once(" (").unwrap();
            assert!(progress.contains(" elapsed, ") && progress.ends_with(" left)"), "{line}");
            step.to_string()
        };
        assert!(stderr.lines().last().is_none_or(|last| last.contains("(100 %, ")), "{stderr}");
        serde_json::from_slice::<Value>(&outcome.stdout).expect("stdout holds JSON alone");
        stderr.lines().map(step).collect()
    };
    let steps = [
        "perplexity of dense at activation sparsity 0",
        "perplexity of dense at activation sparsity 0.5",
        "pruning wanda-0.5-0-0",
        "perplexity of wanda-0.5-0-0 at activation sparsity 0",
        "perplexity of wanda-0.5-0-0 at activation sparsity 0.5",
    ];
    assert_eq!(finished(), steps);
    // What is known already is no step.
    assert!(finished().is_empty());
}

#[test]
fn a_result_is_computed_again_when_what_it_depends_on_changes() {
    let place = Place::new();
    let flags = ["--methods", "dense,duogpt"];
    let with = |more: &[&str]| steps(&place.compare(&[&flags, more].concat()));
    assert_eq!(with(&[]), (1, 4, 0));
    assert_eq!(with(&["--damping", "0.05"]), (1, 2, 2)); // dense weights have no settings
    assert_eq!(with(&["--weight-sparsity", "2:4"]), (1, 2, 2));
    assert_eq!(with(&["--evaluation-samples", "3"]), (1, 4, 1)); // the pruning is known, its weights are gone
    assert_eq!(with(&["--samples", "3"]), (1, 2, 2));
    assert_eq!(with(&["--precision", "f64"]), (1, 4, 0));
    assert_eq!(with(&["--seed", "7"]), (0, 0, 5)); // without a text or repeats nothing is random

    // The same model elsewhere, with other times, is the same model.
    fs::rename(place.path("model"), place.path("old")).unwrap();
    copy(&place.path("old"), &place.path("model"));
    assert_eq!(with(&[]), (0, 0, 5));
    // One weight's last bit is another model, whatever the name, size and time of its file.
    let path = place.path("model/model.safetensors");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 4; // little-endian f32: its low byte
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    assert_eq!(with(&[]), (1, 4, 0));
}

#[test]
fn a_damaged_result_is_named_and_computed_again() {
    let place = Place::new();
    let first = place.compare(&["--methods", "dense"]);
    let damaged = cache(&place).into_iter().next().unwrap();
    let text = fs::read_to_string(&damaged).unwrap();
    let perplexity = text.lines().find(|line| line.contains("\"mean_nll\"")).unwrap();
    for text in [text[..100].to_string(), text.replace(perplexity, "\"mean_nll\": 1.0,")] {
        fs::write(&damaged, text).unwrap();
        let outcome = place.output(&["--methods", "dense", "--json"]);
        let message = String::from_utf8_lossy(&outcome.stderr);
        let name = damaged.file_name().unwrap().to_str().unwrap();
        assert!(message.contains("warning") && message.contains(name), "{message}");
        let again: Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert_eq!(steps(&again), (0, 1, 1));
        assert_eq!(first["points"], again["points"]);
    }
}

#[test]
fn an_interrupted_comparison_continues() {
    let whole = Place::new();
    let flags = ["--methods", "dense,sparsegpt,duogpt", "--repeats", "3"];
    let expected = whole.compare(&flags);
    let results = cache(&whole).len() as u64;
    assert_eq!(steps(&expected), (6, 2 + 6 * 2, 0));
    assert_eq!(results, 6 + 2 + 6 * 2);

    let place = Place::new();
    let mut rounds = 0;
    for done in [1, 4, 9] {
        let mut child = place.command(&flags).stdout(Stdio::null()).spawn().unwrap();
        while cache(&place).len() < done && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap(); // SIGKILL: nothing is cleaned up
        child.wait().unwrap();
        rounds += u32::from(cache(&place).len() < results as usize);
    }
    assert!(rounds > 0, "no run was interrupted");
    let continued = place.compare(&flags);
    let (_, measured, from_cache) = steps(&continued);
    assert!(from_cache >= 9 && measured < 14, "{:?}", steps(&continued));
    let numbers =
        |report: &Value| -> Vec<Value> { rows(report).iter().map(|row| row["quantities"].clone()).collect() };
    assert_eq!(numbers(&expected), numbers(&continued));
    assert!(!place.path("comparison/models").exists(), "pruned models were left");
}

#[test]
fn the_jitter_is_seeded_and_every_repeat_has_another() {
    let perplexities = |flags: &[&str]| {
        let report = Place::new().compare(&[&["--methods", "dense,magnitude,duogpt"], flags].concat());
        let of = |row: &Value| values(row, "perplexity").as_array().unwrap().clone();
        rows(&report).iter().map(of).collect::<Vec<_>>()
    };
    let twice = ["--repeats", "2", "--jitter", "1e-4"];
    let first = perplexities(&twice);
    assert_eq!(first, perplexities(&twice));
    assert_eq!(first[0].len(), 1, "dense weights are measured as they are");
    for method in &first[1..] {
        assert_eq!(method.len(), 2);
        assert_ne!(method[0], method[1]);
    }
    let other_seed = perplexities(&[&twice[..], &["--seed", "1"]].concat());
    assert_eq!(first[0], other_seed[0]);
    for (method, other) in first[1..].iter().zip(&other_seed[1..]) {
        assert!(method.iter().all(|value| !other.contains(value)));
    }
    // A third repeat changes nothing about the first two.
    let thrice = perplexities(&["--repeats", "3", "--jitter", "1e-4"]);
    for (two, three) in first[1..].iter().zip(&thrice[1..]) {
        assert_eq!(two[..], three[..2]);
    }
}

#[test]
fn the_jitter_moves_every_linear_a_little_and_nothing_else() {
    let directory = fixture("nano-llama");
    let dense = Checkpoint::open(&directory).unwrap();
    let mut jittered = Checkpoint::open(&directory).unwrap();
    jittered.jitter = Some(Jitter { relative: 1e-3, seed: 0, repeat: 0 });
    let mut seen = Vec::new();
    for layer in 0..dense.config.num_hidden_layers {
        for &linear in dense.config.linears() {
            let (w, v) =
                (dense.linear::<f64>(layer, linear).unwrap(), jittered.linear::<f64>(layer, linear).unwrap());
            let u = (&v / &w - 1.0) / 1e-3;
            assert!(u.iter().all(|u| u.abs() <= 1.0 + 1e-9));
            // Uniform in [-1, 1): mean 0 and variance 1/3, whose estimates have variances 1/(3 n) and 4/(45 n).
            let (n, mean) = (u.len() as f64, u.mean().unwrap());
            let variance = u.mapv(|u| u * u).mean().unwrap();
            assert_abs_diff_eq!(mean, 0.0, epsilon = 6.0 / (3.0 * n).sqrt());
            assert_abs_diff_eq!(variance, 1.0 / 3.0, epsilon = 6.0 * (4.0 / (45.0 * n)).sqrt());
            assert_eq!(v, jittered.linear::<f64>(layer, linear).unwrap(), "read again it is another");
            seen.push(u[[0, 0]]);
        }
    }
    let distinct = |i: usize| seen[..i].iter().all(|&other| abs_diff_ne!(other, seen[i], epsilon = 1e-9));
    assert!((0..seen.len()).all(distinct), "two linears have the same stream");
    assert_eq!(dense.embedding::<f64>().unwrap(), jittered.embedding::<f64>().unwrap());
}

#[test]
fn gaps_are_to_the_dense_weights_and_standings_among_the_others() {
    let report = Place::new().compare(&["--weight-sparsity", "0.5", "--activation-sparsity", "0,0.5"]);
    assert_eq!(report["points"].as_array().unwrap().len(), 2);
    for point in report["points"].as_array().unwrap() {
        let rows = point["rows"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
        assert_eq!(names, ["dense", "magnitude", "wanda", "sparsegpt", "duogpt"]);
        let dense = &rows[0]["quantities"]["perplexity"];
        assert_eq!((&dense["gap_to_dense"], &dense["standing"]), (&json!(0.0), &Value::Null));
        for row in &rows[1..] {
            let perplexity = &row["quantities"]["perplexity"];
            let mean = |of: &Value| of["mean"].as_f64().unwrap();
            assert_eq!(perplexity["gap_to_dense"], mean(perplexity) - mean(dense));
            assert_eq!(perplexity["standing"], "unknown", "one repeat names no winner");
            assert_eq!(
                row["settings"]["config"].get("weight_sparsity").unwrap_or(&row["settings"]["config"]),
                0.5
            );
            let linears = row["runs"][0]["pruning"]["linears"].as_array().unwrap();
            assert_eq!(linears.len(), 3 * 7);
        }
        if point["activation_sparsity"] == 0.0 {
            for row in rows {
                assert_eq!(values(row, "perplexity"), values(row, "perplexity_dense_activations"));
            }
        }
    }
    // What `eval perplexity` says of the dense model.
    let model = fixture("nano-llama");
    let tokens = model.join("tokens-evaluation.safetensors");
    let alone = eval_perplexity(&model, &tokens, "4", &["--activation-sparsity", "0.5"]);
    assert_eq!(report["points"][1]["rows"][0]["runs"][0]["perplexity"], alone);
}

#[test]
fn the_optimality_gap_of_every_layer_is_reported_where_it_is_asked_for() {
    let place = Place::new();
    let flags = ["--methods", "dense,magnitude,duogpt"];
    let no_layers = json!([]);
    for row in rows(&place.compare(&flags)) {
        assert_eq!(row["optimality_gap"], no_layers);
    }
    let report = place.compare(&[&flags[..], &["--report-gap", "4"]].concat());
    assert_eq!(rows(&report)[0]["optimality_gap"], no_layers, "dense weights are not pruned");
    let mut means = Vec::new();
    for row in &rows(&report)[1..] {
        let linears = row["runs"][0]["pruning"]["linears"].as_array().unwrap();
        let layers = row["optimality_gap"].as_array().unwrap();
        assert_eq!(layers.len(), 3);
        for (layer, of_layer) in layers.iter().zip(linears.chunks(7)) {
            let gaps = of_layer.iter().map(|linear| linear["optimality"]["gap"].as_f64().unwrap());
            let mean = gaps.sum::<f64>() / 7.0;
            assert_eq!(layer["mean"], mean);
            means.push(mean);
        }
    }
    let (magnitude, duogpt) = means.split_at(3);
    assert!(
        duogpt.iter().zip(magnitude).all(|(d, m)| 1.0 <= *d && d < m),
        "an update is better than none: {means:?}"
    );
    let plot = fs::read_to_string(place.path("comparison/comparison.svg")).unwrap();
    assert!(plot.contains("optimality gap at 50 %"));
}

#[test]
fn the_table_marks_what_the_noise_allows() {
    let place = Place::new();
    // Four windows of nano-llama: whatever comes out, marks and verdict must say what the JSON says.
    let flags = ["--methods", "dense,magnitude,sparsegpt,duogpt", "--repeats", "3"];
    let report = place.compare(&flags);
    let outcome = place.output(&flags);
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert!(outcome.status.success() && text.contains("standard errors of the difference"), "{text}");
    let mut ambiguous = Vec::new();
    for row in rows(&report) {
        let name = row["method"].as_str().unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        let perplexity = &row["quantities"]["perplexity"];
        let mark = match perplexity["standing"].as_str() {
            Some("best") => "*",
            Some("ambiguous") => {
                ambiguous.push(name);
                "~"
            }
            _ => " ",
        };
        let deviation = perplexity["standard_deviation"].as_f64().map(|s| format!(" ± {s:.2}"));
        let cell =
            format!("{:.2}{}{mark} ", perplexity["mean"].as_f64().unwrap(), deviation.unwrap_or_default());
        assert!(line.contains(&cell), "`{cell}` is not in: {line}");
    }
    let verdict = text.lines().find(|line| line.starts_with("perplexity, sparse activations: ")).unwrap();
    match ambiguous[..] {
        [] => assert!(verdict.ends_with(" is best"), "{verdict}"),
        _ => assert!(verdict.ends_with(&format!("AMBIGUOUS between {}", ambiguous.join(", "))), "{verdict}"),
    }
}

#[test]
fn the_plot_is_xml_and_has_every_method() {
    let place = Place::new();
    place.compare(&["--repeats", "2", "--weight-sparsity", "0.5,2:4"]);
    let text = fs::read_to_string(place.path("comparison/comparison.svg")).unwrap();
    let svg = roxmltree::Document::parse(&text).unwrap();
    assert_eq!(svg.root_element().tag_name().name(), "svg");
    let texts: BTreeSet<&str> = svg.descendants().filter_map(|node| node.text()).map(str::trim).collect();
    for label in ["dense weights", "magnitude", "wanda", "sparsegpt", "duogpt", "50 % / 50 %", "2:4 / 50 %"] {
        assert!(texts.contains(label), "{label} is not in {texts:?}");
    }
}

#[test]
fn kept_models_are_the_ones_that_were_measured_and_stay() {
    let place = Place::new();
    let source = fs::read(place.path("model/model.safetensors")).unwrap();
    let flags = ["--methods", "duogpt", "--repeats", "2"];
    place.compare(&flags);
    // Measured already, but not kept.
    let report = place.compare(&[&flags[..], &["--keep"]].concat());
    assert_eq!(steps(&report), (2, 0, 6));
    for run in rows(&report)[0]["runs"].as_array().unwrap() {
        let model = place.path("comparison/models").join(run["name"].as_str().unwrap());
        Checkpoint::open(&model).unwrap();
        let tokens = place.path("model/tokens-evaluation.safetensors");
        let alone = eval_perplexity(&model, &tokens, "4", &["--activation-sparsity", "0.5"]);
        assert_eq!(run["perplexity"], alone);
    }
    // Other windows need no pruning now, and the models outlive it.
    assert_eq!(steps(&place.compare(&[&flags[..], &["--evaluation-samples", "2"]].concat())), (0, 4, 2));
    assert_eq!(fs::read_dir(place.path("comparison/models")).unwrap().count(), 2);
    assert!(source == fs::read(place.path("model/model.safetensors")).unwrap(), "the source was changed");
}

#[test]
fn tasks_are_measured_as_eval_zero_shot_measures_them() {
    let directory = tempfile::tempdir().unwrap();
    let (model, data) = (fixture("tiny-llama"), fixture("zero_shot/data"));
    let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
    let compare = |tasks: &str| -> Value {
        let output = directory.path().to_str().unwrap();
        let outcome = common::duogpt(&[
            "compare",
            "--model",
            model,
            "--data",
            data,
            "--tasks",
            tasks,
            "--limit",
            "3",
            "--methods",
            "dense,magnitude",
            "--output",
            output,
            "--json",
        ]);
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        serde_json::from_slice(&outcome.stdout).unwrap()
    };
    let two = compare("piqa,winogrande");
    assert_eq!(steps(&two), (1, 4, 0));
    assert_eq!(two["documents"], json!({"piqa": 3, "winogrande": 3}));
    assert!(rows(&two)[0]["quantities"].get("five_tasks").is_none());
    let five = compare("piqa,hellaswag,arc_easy,arc_challenge,winogrande");
    assert_eq!(steps(&five), (1, 6, 5)); // the two are known
    let outcome = common::duogpt(&[
        "eval",
        "zero-shot",
        "--model",
        model,
        "--data",
        data,
        "--limit",
        "3",
        "--activation-sparsity",
        "0.5",
        "--tasks",
        "piqa,hellaswag,arc_easy,arc_challenge,winogrande",
        "--json",
    ]);
    let alone: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let mut sum = 0.0;
    for task in ["piqa", "hellaswag", "arc_easy", "arc_challenge", "winogrande"] {
        let expected = &alone["results"][task];
        let found = &rows(&five)[0]["runs"][0]["tasks"][task];
        assert_eq!(found["acc"]["mean"], expected["acc,none"], "{task}");
        assert_eq!(found["acc"]["standard_error"], expected["acc_stderr,none"], "{task}");
        let headline = expected.get("acc_norm,none").unwrap_or(&expected["acc,none"]);
        assert_eq!(values(&rows(&five)[0], task), &json!([headline]), "{task}");
        sum += headline.as_f64().unwrap();
    }
    let average = rows(&five)[0]["quantities"]["five_tasks"]["mean"].as_f64().unwrap();
    assert_abs_diff_eq!(average, sum / 5.0, epsilon = 1e-15);
    assert_eq!(rows(&five)[0]["quantities"]["five_tasks"]["gap_to_dense"], 0.0);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = Place::new();
    let refuses = |arguments: &[&str], expected: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duogpt"));
        let outcome =
            command.current_dir(place.directory.path()).arg("compare").args(arguments).output().unwrap();
        let message = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.status.code(), Some(2), "{message}");
        for part in expected {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
        assert!(!message.contains("panicked"), "{message}");
        assert!(!place.path("comparison/models").exists(), "something was pruned");
    };
    let (model, tokens) = (["--model", "model"], "model/tokens-evaluation.safetensors");
    let with = |more: &[&str], expected: &[&str]| refuses(&[&model, more].concat(), expected);
    with(&["--methods", "dense,obs"], &["obs", "sparsegpt"]);
    with(&["--methods", "dense"], &["nothing to measure"]);
    let measured =
        |more: &[&str], expected: &[&str]| with(&[&["--evaluation", tokens], more].concat(), expected);
    measured(
        &["--methods", "dense", "--weight-sparsity", "0.5"],
        &["--weight-sparsity", "dense weights are not pruned"],
    );
    measured(&["--methods", "wanda"], &["wanda needs calibration data"]);
    measured(&["--methods", "magnitude", "--weight-sparsity", "1.5"], &["--weight-sparsity", "1.5"]);
    measured(&["--methods", "magnitude", "--activation-sparsity", "1"], &["--activation-sparsity", "`1`"]);
    measured(&["--calibration", tokens, "--weight-sparsity", "2:3"], &["2:3", "divide"]);
    measured(&["--methods", "magnitude", "--repeats", "0"], &["--repeats"]);
    measured(&["--methods", "magnitude", "--repeats", "2", "--jitter", "1e-9"], &["jitter of 1e-9", "f32"]);
    measured(&["--methods", "magnitude", "--repeats", "2", "--jitter", "NaN"], &["jitter of NaN"]);
    measured(&["--methods", "magnitude", "--tasks", "piqa"], &["--data"]);
    with(&["--evaluation", "nowhere.safetensors"], &["nowhere.safetensors", "No such file"]);

    let data = fixture("zero_shot/data");
    let data = data.to_str().unwrap();
    measured(&["--methods", "magnitude", "--data", data, "--tasks", "mmlu"], &["mmlu", "piqa"]);
    measured(&["--methods", "magnitude", "--data", data], &["tokenizer.json", "missing"]);
    fs::create_dir(place.path("tasks")).unwrap();
    fs::write(place.path("tasks/piqa.jsonl"), "\n{\"goal\": 1}\n").unwrap();
    measured(
        &["--methods", "magnitude", "--data", "tasks", "--tasks", "piqa"],
        &["piqa.jsonl: line 2: ", "`goal` is 1"],
    );
    measured(
        &["--methods", "magnitude", "--data", "tasks", "--tasks", "boolq"],
        &["boolq.jsonl", "no such file"],
    );
}
