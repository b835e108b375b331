//! Zero-shot evaluation against lm-evaluation-harness 0.4.8: strings, tokens, log-likelihoods, predictions, metrics
//! and the layout of the report. And data that cannot be evaluated are refused with file and line.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use approx::{abs_diff_eq, assert_abs_diff_eq};
use common::{duogpt, fixture, read_json};
use duogpt::backend::Cpu;
use duogpt::calibrate::streams::Activations;
use duogpt::evaluate::zero_shot::metrics::Metric;
use duogpt::evaluate::zero_shot::requests::Request;
use duogpt::evaluate::zero_shot::tasks::{Task, TaskData};
use duogpt::evaluate::zero_shot::{TaskOutcome, evaluate};
use duogpt::linalg::Scalar;
use duogpt::model::Checkpoint;
use duogpt::model::tokenizer::Tokenizer;
use duogpt::progress::Silent;
use serde_json::{Value, json};

fn model() -> (Checkpoint, Tokenizer) {
    let directory = fixture("tiny-llama");
    (Checkpoint::open(&directory).unwrap(), Tokenizer::read(&directory).unwrap())
}

fn data(directory: &Path) -> Vec<TaskData> {
    Task::ALL.map(|task| task.read(directory, None).unwrap()).into()
}

fn expected(task: Task) -> Value {
    read_json(&fixture(&format!("zero_shot/expected/{task}.json")))
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn tokens(value: &Value) -> Vec<u32> {
    list(value).iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

#[test]
fn every_context_continuation_token_and_truncation_is_the_harness_s() {
    let (checkpoint, tokenizer) = model();
    let longest = checkpoint.config.max_position_embeddings;
    for data in data(&fixture("zero_shot/data")) {
        let expected = expected(data.task);
        let expected = list(&expected["documents"]);
        assert_eq!(data.documents.len(), expected.len());
        for (document, expected) in data.documents.iter().zip(expected) {
            let place = format!("{}: line {}", data.task, document.line);
            assert_eq!(json!(document.gold), expected["gold"], "{place}");
            assert_eq!(document.choices.len(), list(&expected["choices"]).len(), "{place}");
            for (choice, theirs) in document.choices.iter().zip(list(&expected["choices"])) {
                let context = &expected["contexts"][theirs["context"].as_u64().unwrap() as usize];
                assert_eq!(json!(choice.context), context["text"], "{place}");
                assert_eq!(json!(choice.continuation), theirs["continuation"], "{place}");
                if data.task.has_acc_norm() {
                    assert_eq!(json!(choice.characters), theirs["chars"], "{place}");
                }
                let request = Request::encode(choice, &tokenizer, &checkpoint.config).unwrap();
                assert_eq!(request.context, tokens(&context["tokens"]), "{place}");
                assert_eq!(request.continuation, tokens(&theirs["tokens"]), "{place}");
                let seen = request.context.len() + request.continuation.len() - 1;
                assert_eq!(json!(seen - request.input(longest).len()), theirs["dropped"], "{place}");
            }
        }
    }
}

fn outcomes<T: Scalar>(tasks: &[TaskData], sparsity: f64) -> Vec<TaskOutcome> {
    let (checkpoint, tokenizer) = model();
    let activations = Activations { sparsity, ..Activations::default() };
    evaluate::<T, _>(&checkpoint, &tokenizer, tasks, activations, &Cpu, &Silent).unwrap()
}

fn every_number_is_the_harness_s<T: Scalar>() {
    for outcome in outcomes::<T>(&data(&fixture("zero_shot/data")), 0.0) {
        let expected = expected(outcome.task);
        for (i, (document, theirs)) in outcome.documents.iter().zip(list(&expected["documents"])).enumerate()
        {
            let place = format!("{}: document {i}", outcome.task);
            for (found, theirs) in document.likelihoods.iter().zip(list(&theirs["choices"])) {
                let (found, greedy) = (found.log_likelihood, found.is_greedy);
                let theirs_log_likelihood = theirs["loglikelihood"].as_f64().unwrap();
                // The harness sums in float32: beside exact sums its own rounding shows, half a unit in the last place.
                let rounding =
                    if T::NAME == "f64" { f32::UNIT_ROUNDOFF * theirs_log_likelihood.abs() } else { 0.0 };
                assert!(
                    abs_diff_eq!(found, theirs_log_likelihood, epsilon = 1e-4 + rounding),
                    "{place}: {found}, the harness has {theirs_log_likelihood}"
                );
                assert_eq!(json!(greedy), theirs["is_greedy"], "{place}");
            }
            assert_eq!(json!(document.prediction), theirs["prediction"], "{place}");
            let norm = theirs.get("prediction_norm").cloned();
            assert_eq!(document.prediction_norm.map(|prediction| json!(prediction)), norm, "{place}");
        }
        let metric = |name: &str| {
            let value = |key: String| expected["results"].get(key).and_then(Value::as_f64);
            value(format!("{name},none"))
                .map(|mean| Metric { mean, standard_error: value(format!("{name}_stderr,none")) })
        };
        assert_eq!(Some(outcome.accuracy.acc), metric("acc"), "{}", outcome.task);
        assert_eq!(outcome.accuracy.acc_norm, metric("acc_norm"), "{}", outcome.task);
    }
}

#[test]
fn every_number_is_the_harness_s_in_f32() {
    every_number_is_the_harness_s::<f32>();
}

#[test]
fn every_number_is_the_harness_s_in_f64() {
    every_number_is_the_harness_s::<f64>();
}

/// Each choice as a document of its own shares nothing with another.
#[test]
fn shared_beginnings_change_nothing_with_sparse_activations_either() {
    let together = vec![Task::Winogrande.read(&fixture("zero_shot/data"), Some(12)).unwrap()];
    let mut alone = together.clone();
    alone[0].documents = together[0]
        .documents
        .iter()
        .flat_map(|document| {
            document.choices.iter().map(|choice| {
                let mut alone = document.clone();
                (alone.choices, alone.gold) = (vec![choice.clone()], 0);
                alone
            })
        })
        .collect();
    let likelihoods = |tasks: &[TaskData], sparsity| -> Vec<f64> {
        let documents = outcomes::<f64>(tasks, sparsity).remove(0).documents;
        documents.iter().flat_map(|d| &d.likelihoods).map(|likelihood| likelihood.log_likelihood).collect()
    };
    let dense = likelihoods(&together, 0.0);
    let sparse = likelihoods(&together, 0.5);
    assert!(dense.iter().zip(&sparse).all(|(dense, sparse)| dense != sparse));
    for (together, alone) in [(dense, likelihoods(&alone, 0.0)), (sparse, likelihoods(&alone, 0.5))] {
        // Only the shapes of the matrix products differ, and so the order of their sums.
        assert_abs_diff_eq!(together[..], alone[..], epsilon = 1e-10);
    }
}

/// Runs `duogpt eval zero-shot` on the small model inside a directory.
fn zero_shot(directory: &Path, flags: &[&str]) -> Output {
    let model = fixture("tiny-llama");
    let mut command = Command::new(env!("CARGO_BIN_EXE_duogpt"));
    command.current_dir(directory).args(["eval", "zero-shot", "--model"]).arg(model).args(flags);
    command.output().expect("the program starts")
}

#[test]
fn the_report_has_the_harness_s_layout() {
    let outcome = zero_shot(&fixture("zero_shot"), &["--data", "data", "--json"]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let found: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let expected = read_json(&fixture("zero_shot/expected/results.json"));
    let theirs_alone = [
        "config", // of the run: another program
        "transformers_version",
        "tokenizer_pad_token",
        "tokenizer_bos_token",
        "tokenizer_eos_token",
        "eot_token_id",
    ];
    for (key, expected) in expected.as_object().unwrap() {
        if !theirs_alone.contains(&key.as_str()) {
            assert_eq!(&found[key], expected, "{key}");
        }
    }
    for key in found.as_object().unwrap().keys() {
        assert!(expected.get(key).is_some(), "{key} is not in the layout");
    }
    assert!(found["config"]["model_args"].as_str().unwrap().contains("dtype=float32"));
}

#[test]
fn the_table_has_averages_where_all_their_tasks_are_there() {
    let five = "piqa,hellaswag,arc_easy,arc_challenge,winogrande";
    let table = |flags: &[&str]| {
        let outcome = zero_shot(&fixture("zero_shot"), &[&["--data", "data"], flags].concat());
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
        String::from_utf8(outcome.stdout).unwrap()
    };
    let text = table(&["--tasks", five]);
    // (22/47 + 17/47 + 8/44 + 15/44 + 22/46) / 5
    assert!(text.contains("average of five tasks  36.62"), "{text}");
    assert!(text.contains("winogrande") && !text.contains("seven"), "{text}");

    let text = table(&["--tasks", "piqa,boolq", "--limit", "1", "--precision", "f64"]);
    let piqa: Vec<&str> = text.lines().find(|line| line.starts_with("piqa")).unwrap().split(' ').collect();
    assert!(piqa.contains(&"1") && piqa.contains(&"-"), "one document has no standard error: {text}");
    assert!(!text.contains("average"), "{text}");
}

#[test]
fn a_limit_takes_the_first_documents_and_is_reported() {
    let flags =
        ["--data", "data", "--tasks", "boolq,piqa,piqa", "--limit", "1", "--num-fewshot", "0", "--json"];
    let outcome = zero_shot(&fixture("zero_shot"), &flags);
    let found: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(found["n-samples"]["piqa"], json!({"original": 47, "effective": 1}));
    assert_eq!(found["results"]["boolq"]["acc_stderr,none"], "N/A");
    let first = expected(Task::Piqa)["documents"][0]["acc"].clone();
    assert_eq!(found["results"]["piqa"]["acc,none"], first);
    assert_eq!(found["config"]["limit"], 1);
}

fn refused(outcome: &Output, expected: &[&str]) {
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2), "{message}");
    for part in expected {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked") && outcome.stdout.is_empty(), "{message}");
}

#[test]
fn a_bad_line_is_refused_with_file_and_line() {
    let endings = r#""endings": ["a", "b"]"#;
    let hellaswag = |rest: &str| format!(r#"{{"activity_label": "x", "ctx_a": "y", "ctx_b": "z", {rest}}}"#);
    let arc = |choices: &str, key: &str| {
        format!(r#"{{"question": "x", "choices": {choices}, "answerKey": {key}}}"#)
    };
    let two = r#"{"text": ["a", "b"], "label": ["A", "B"]}"#;
    let many = "one two three ".repeat(600);
    let (empty_choice, extra_label, no_label, no_choice) = (
        r#"{"text": ["a", ""], "label": ["A", "B"]}"#,
        r#"{"text": ["a"], "label": ["A", "B"]}"#,
        r#"{"text": ["a"]}"#,
        r#"{"text": [], "label": []}"#,
    );
    let cases = [
        ("piqa", "{\"goal\": ".into(), "not JSON"),
        ("piqa", "[1, 2]".into(), "not a JSON object"),
        ("piqa", r#"{"goal": "x", "sol1": "a", "label": 0}"#.into(), "`sol2` is missing"),
        ("piqa", r#"{"goal": null, "sol1": "a", "sol2": "b", "label": 0}"#.into(), "`goal` is null"),
        ("piqa", r#"{"goal": 7, "sol1": "a", "sol2": "b", "label": 0}"#.into(), "`goal` is 7"),
        ("piqa", r#"{"goal": "x", "sol1": "a", "sol2": "", "label": 0}"#.into(), "`sol2` is empty"),
        (
            "piqa",
            r#"{"goal": "x", "sol1": "a", "sol2": "b", "label": 2}"#.into(),
            "`label` is 2, expected 0 or 1",
        ),
        ("piqa", r#"{"goal": "x", "sol1": "a", "sol2": "b", "label": -1}"#.into(), "`label` is -1"),
        (
            "piqa",
            format!(r#"{{"goal": "x", "sol1": "{many}", "sol2": "b", "label": 0}}"#),
            "model's context of 512",
        ),
        ("boolq", r#"{"passage": "x", "question": "y", "label": true}"#.into(), "`label` is true"),
        ("hellaswag", hellaswag(r#""label": "0""#), "`endings` is missing"),
        ("hellaswag", hellaswag(r#""endings": ["a", 1], "label": "0""#), "expected a list of strings"),
        ("hellaswag", hellaswag(r#""endings": ["a", ""], "label": "0""#), "`endings[1]` is empty"),
        ("hellaswag", hellaswag(&format!(r#"{endings}, "label": "2""#)), "index of one of 2 endings"),
        ("hellaswag", hellaswag(&format!(r#"{endings}, "label": """#)), "`label` is \"\""),
        (
            "winogrande",
            r#"{"sentence": "x", "option1": "a", "option2": "b", "answer": "1"}"#.into(),
            "no blank",
        ),
        (
            "winogrande",
            r#"{"sentence": "_", "option1": "", "option2": "b", "answer": "1"}"#.into(),
            "`option1` is empty",
        ),
        (
            "winogrande",
            r#"{"sentence": "_", "option1": "a", "option2": "b", "answer": "3"}"#.into(),
            "`answer` is \"3\"",
        ),
        (
            "winogrande",
            r#"{"sentence": "_", "option1": "a", "option2": "b", "answer": 1}"#.into(),
            "`answer` is 1",
        ),
        (
            "winogrande",
            r#"{"sentence": " _", "option1": " ", "option2": "b", "answer": "1"}"#.into(),
            "white space",
        ),
        ("arc_easy", arc(two, "\"C\""), "`answerKey` is \"C\", expected one of [\"A\", \"B\"]"),
        ("arc_easy", arc(two, "\" A\""), "`answerKey` is \" A\""),
        ("arc_easy", arc(two, "1"), "`answerKey` is 1, expected a string"),
        ("arc_challenge", arc(empty_choice, "\"A\""), "`choices.text[1]` is empty"),
        ("arc_challenge", arc(extra_label, "\"A\""), "1 texts, but 2 labels"),
        ("arc_challenge", arc(no_label, "\"A\""), "`choices.label` is missing"),
        ("arc_challenge", arc(no_choice, "\"A\""), "no choices"),
        (
            "openbookqa",
            format!(r#"{{"question_stem": " ", "choices": {two}, "answerKey": "A"}}"#),
            "white space",
        ),
        ("openbookqa", format!(r#"{{"choices": {two}, "answerKey": "A"}}"#), "`question_stem` is missing"),
    ];
    for (task, line, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        let good = fs::read_to_string(fixture(&format!("zero_shot/data/{task}.jsonl"))).unwrap();
        let good = good.lines().next().unwrap();
        let file = directory.path().join(format!("{task}.jsonl"));
        fs::write(&file, format!("{good}\r\n\n{line}\n{good}\n")).unwrap();
        let outcome = zero_shot(directory.path(), &["--tasks", task, "--data", "."]);
        refused(&outcome, &[&format!("{task}.jsonl: line 3: "), expected]);
    }
}

/// As the harness cuts, which `every_context_continuation_token_and_truncation_is_the_harness_s` shows; but not in silence.
#[test]
fn a_context_that_is_cut_is_said() {
    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("tiny-llama").join(file), directory.path().join(file)).unwrap();
    }
    let data = fixture("zero_shot/data");
    let said = |context: usize| {
        let mut config = common::read_json(&directory.path().join("config.json"));
        config["max_position_embeddings"] = context.into();
        fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let (model, data) = (directory.path().to_str().unwrap(), data.to_str().unwrap());
        let flags =
            ["eval", "zero-shot", "--model", model, "--data", data, "--tasks", "arc_easy", "--limit", "4"];
        let outcome = duogpt(&flags);
        assert!(outcome.status.success());
        String::from_utf8(outcome.stderr).unwrap()
    };
    // The progress line appears only on a slow machine.
    assert!(!said(512).contains("context"), "nothing is cut");
    let warning = said(24);
    assert!(warning.contains("arc_easy.jsonl") && warning.contains("context of 24 tokens"), "{warning}");
}

#[test]
fn files_and_flags_that_do_not_do_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let here = |flags: &[&str]| zero_shot(directory.path(), &[&["--data", "."], flags].concat());
    refused(&here(&["--tasks", "piqa"]), &["piqa.jsonl", "the directory has none of the tasks"]);
    fs::write(directory.path().join("boolq.jsonl"), "").unwrap();
    refused(&here(&["--tasks", "piqa"]), &["piqa.jsonl", "the tasks that the directory has: boolq"]);
    fs::write(directory.path().join("piqa.jsonl"), "\n \n").unwrap();
    refused(&here(&["--tasks", "piqa"]), &["piqa.jsonl", "has no documents"]);
    fs::write(directory.path().join("piqa.jsonl"), b"\n{\"goal\": \"\xff\"}").unwrap();
    refused(&here(&["--tasks", "piqa"]), &["piqa.jsonl: line 2: not UTF-8"]);
    refused(&here(&["--tasks", "mmlu"]), &["mmlu", "winogrande"]);
    refused(&here(&["--num-fewshot", "5"]), &["--num-fewshot 5", "only 0 solved examples"]);
    refused(&here(&["--limit", "0"]), &["--limit"]);

    // A model without a tokenizer, and one without a token for an empty context.
    let data = fixture("zero_shot/data");
    let run = |model: &Path| {
        let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
        duogpt(&["eval", "zero-shot", "--model", model, "--data", data, "--tasks", "openbookqa"])
    };
    refused(&run(&fixture("nano-llama")), &["tokenizer.json", "missing"]);
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(fixture("tiny-llama").join(file), directory.path().join(file)).unwrap();
    }
    refused(&run(directory.path()), &["openbookqa.jsonl: line 31: ", "`bos_token` nor `eos_token`"]);
}
