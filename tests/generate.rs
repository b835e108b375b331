//! `duogpt generate`: what a decoder computes is what the full forward pass computes, and what the command promises.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{duogpt, fixture, read_json};
use duogpt::backend::Cpu;
use duogpt::calibrate::PruneJob;
use duogpt::calibrate::streams::{Activations, Stream, Thresholds};
use duogpt::calibrate::thresholds::{Allocation, ThresholdJob};
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::logits;
use duogpt::generate::{Decoder, Fast, FormatKind, Products, Reference};
use duogpt::linalg::Scalar;
use duogpt::model::Checkpoint;
use duogpt::model::forward::{Forward, Group};
use duogpt::progress::Silent;
use duogpt::reference::{Method, Sparsity};
use duogpt::tensors::{TensorFile, TensorWriter};
use ndarray::{Array1, Array2, Ix2, s};
use serde_json::Value;
use tempfile::TempDir;

const FORMATS: [FormatKind; 3] = [FormatKind::Dense, FormatKind::Index, FormatKind::Bitmap];

/// A model with half of its weights gone, by magnitude.
struct Pruned {
    directory: TempDir,
}

impl Pruned {
    fn of(model: &str) -> Self {
        let pruned = Pruned { directory: tempfile::tempdir().unwrap() };
        let dense = Checkpoint::open(&fixture(model)).unwrap();
        let method = Method::Magnitude(Sparsity::Unstructured(0.5));
        PruneJob::new(&dense, method, &pruned.path()).run::<f32, _>(&Cpu, &Silent).unwrap();
        pruned
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("model")
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.path()).unwrap()
    }
}

/// Any tokens.
fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * i * 31 + i * 7 + 3) % vocabulary) as u32).collect()
}

fn windows(tokens: &[u32]) -> Windows {
    let tokens = Array2::from_shape_vec((1, tokens.len()), tokens.to_vec()).unwrap();
    Windows { tokens, source: "test".into() }
}

/// The logits (tokens x vocabulary) of the full forward pass.
fn whole<T: Scalar>(model: &Checkpoint, rule: Activations, tokens: &[u32]) -> Array2<T> {
    logits::<T, _>(model, &windows(tokens), rule, &Cpu).unwrap().remove(0)
}

/// The logits behind a prompt and behind each of the tokens that follow it one by one.
fn decoded<T: Scalar, P: Products<T>>(
    model: &Checkpoint,
    products: P,
    format: Option<FormatKind>,
    rule: Activations,
    tokens: &[u32],
    prompt: usize,
) -> Vec<Array1<T>> {
    let decoder = Decoder::load(model, products, format, rule, tokens.len(), &Silent).unwrap();
    let mut sequence = decoder.sequence();
    let mut logits = vec![decoder.feed(&mut sequence, &tokens[..prompt]).unwrap()];
    for &token in &tokens[prompt..] {
        logits.push(decoder.feed(&mut sequence, &[token]).unwrap());
    }
    assert_eq!((logits.len(), sequence.len()), (tokens.len() - prompt + 1, tokens.len()));
    logits
}

/// max |a - b|, of everything from the prompt's last token on; and max |b|.
fn largest_difference<T: Scalar>(decoded: &[Array1<T>], whole: &Array2<f64>) -> (f64, f64) {
    let whole = whole.slice(s![whole.nrows() - decoded.len().., ..]);
    let decoded = decoded.iter().flatten();
    let difference = decoded.zip(whole).map(|(a, b)| (a.widen() - b).abs()).fold(0.0, f64::max);
    (difference, whole.iter().fold(0.0, |m, x| m.max(x.abs())))
}

fn thresholds(model: &Checkpoint) -> Thresholds {
    let windows = windows(&tokens(64, model.config.vocab_size));
    let job = ThresholdJob {
        checkpoint: model,
        windows: &windows,
        activation_sparsity: 0.5,
        allocation: Allocation::Uniform,
        step: 0.05,
    };
    job.run::<f64, _>(&Cpu, &Silent).unwrap().thresholds(0)
}

#[test]
fn token_by_token_in_f64_the_logits_are_those_of_the_full_pass() {
    let pruned = Pruned::of("nano-llama");
    let model = pruned.open();
    let tokens = tokens(24, model.config.vocab_size);
    let teal = thresholds(&model);
    let with_prefix = Thresholds { dense_tokens: 5, ..teal.clone() };
    let of = |thresholds| Activations { thresholds: Some(thresholds), ..Activations::default() };
    let largest = |sparsity| Activations { sparsity, ..Activations::default() };
    let dense: Array2<f64> = whole(&model, largest(0.0), &tokens);
    for rule in [largest(0.0), largest(0.5), largest(0.7), of(&teal), of(&with_prefix)] {
        let expected = whole(&model, rule, &tokens);
        for format in FORMATS {
            for prompt in [1, 2, 9] {
                let found: Vec<Array1<f64>> = decoded(&model, Reference, Some(format), rule, &tokens, prompt);
                let (difference, size) = largest_difference(&found, &expected);
                // The same sums in another order, as in tests/model.rs.
                assert!(difference <= 1e-11 * size, "{rule:?} {format:?} {prompt}: {difference:e}");
            }
        }
        // The rule does something.
        let (difference, size) = largest_difference(&[expected.row(23).to_owned()], &dense);
        assert_eq!(difference > 1e-3 * size, rule.sparsity > 0.0 || rule.thresholds.is_some(), "{rule:?}");
    }
}

/// Longer than a chunk of the prompt, so that a chunk sees the one before in the cache.
#[test]
fn a_long_prompt_gives_the_logits_of_the_full_pass() {
    let model = Checkpoint::open(&fixture("tiny-llama")).unwrap();
    let tokens = tokens(300, model.config.vocab_size);
    let rule = Activations { sparsity: 0.4, ..Activations::default() };
    let expected = whole::<f64>(&model, rule, &tokens);
    let found: Vec<Array1<f64>> = decoded(&model, Reference, None, rule, &tokens, 298);
    let (difference, size) = largest_difference(&found, &expected);
    assert!(difference <= 1e-11 * size, "{difference:e}");
}

/// LLaMA-3 (tied embeddings, rotary scaling, a head_dim of its own, three queries per key) and every other architecture:
/// sliding windows shorter than the sequence, biases, learned positions, norms behind the blocks. All in f16.
#[test]
fn every_architecture_gives_the_logits_of_its_full_pass() {
    let mut models: Vec<PathBuf> = fs::read_dir(fixture("architectures"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    assert!(models.len() >= 8, "{models:?}");
    models.push(fixture("llama3"));
    for directory in models {
        let model = Checkpoint::open(&directory).unwrap();
        let tokens = tokens(40, model.config.vocab_size);
        let rule = Activations { sparsity: 0.5, ..Activations::default() };
        let expected = whole::<f64>(&model, rule, &tokens);
        let found: Vec<Array1<f64>> = decoded(&model, Reference, None, rule, &tokens, 3);
        let (difference, size) = largest_difference(&found, &expected);
        assert!(difference <= 1e-11 * size, "{}: {difference:e}", directory.display());
    }
}

/// The inputs of all groups in the full pass.
fn inputs<T: Scalar>(model: &Checkpoint, rule: Activations, tokens: &[u32]) -> Vec<Array2<T>> {
    let windows = windows(tokens);
    let forward = Forward::<T>::new(&model.config, tokens.len());
    let embedding = model.embedding::<T>().unwrap();
    // Untreated inputs, but the treated ones go on.
    let mut stream = Stream::new(&forward, &Cpu, &embedding, &windows, rule);
    let mut inputs = Vec::new();
    for number in 0..model.config.num_hidden_layers {
        let layer = model.layer::<T>(number).unwrap();
        stream.enter(&layer);
        for group in Group::ALL {
            inputs.push(stream.states[0].input.clone());
            stream.group(&layer, group);
        }
    }
    inputs
}

/// In f32 the fast product errs no more than twice what the full pass in f32 does, both held to the full pass in f64.
#[test]
fn token_by_token_in_f32_the_logits_are_as_exact_as_those_of_the_full_pass() {
    let pruned = Pruned::of("nano-llama");
    let model = pruned.open();
    let tokens = tokens(24, model.config.vocab_size);
    for sparsity in [0.0, 0.5] {
        let rule = Activations { sparsity, ..Activations::default() };
        // Where rounding could decide which activation counts, no tolerance would hold. Here it cannot: the smallest that is
        // kept is farther from zero than any error, and is kept by all.
        let (exact, rounded) = (inputs::<f64>(&model, rule, &tokens), inputs::<f32>(&model, rule, &tokens));
        for (exact, rounded) in exact.iter().zip(&rounded) {
            let same = exact.iter().zip(rounded).all(|(a, b)| (*a == 0.0) == (*b == 0.0));
            assert!(same, "the full passes in f32 and f64 keep different activations; choose other tokens");
        }
        let expected = whole::<f64>(&model, rule, &tokens);
        let single = whole::<f32>(&model, rule, &tokens);
        let rows: Vec<Array1<f32>> = single.outer_iter().map(|row| row.to_owned()).collect();
        let (allowed, size) = largest_difference(&rows, &expected);
        for format in FORMATS {
            let found: Vec<Array1<f32>> = decoded(&model, Fast, Some(format), rule, &tokens, 1);
            let (difference, _) = largest_difference(&found, &expected);
            let bound = 2.0 * allowed + 4.0 * f64::from(f32::EPSILON) * size;
            assert!(difference <= bound, "{sparsity} {format:?}: {difference:e} of {bound:e}");
        }
    }
}

/// What the command says with `--json`.
fn generate(model: &Path, flags: &[&str]) -> Value {
    let outcome = duogpt(&[&["generate", "--model", model.to_str().unwrap(), "--json"], flags].concat());
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    serde_json::from_slice(&outcome.stdout).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Prompts, and the tokens that transformers puts behind them.
fn golden() -> Vec<(Vec<u32>, Vec<u32>)> {
    let file = TensorFile::open(&fixture("tiny-llama/golden-greedy.safetensors")).unwrap();
    let (prompts, greedy) =
        (file.integers::<Ix2>("prompt").unwrap(), file.integers::<Ix2>("greedy").unwrap());
    let row = |row: ndarray::ArrayView1<i64>| row.iter().map(|&id| id as u32).collect::<Vec<u32>>();
    let pairs = prompts.outer_iter().zip(greedy.outer_iter());
    pairs.map(|(prompt, all)| (row(prompt), row(all.slice(s![prompt.len()..,])))).collect()
}

#[test]
fn greedy_tokens_and_text_are_those_of_transformers() {
    let model = fixture("tiny-llama");
    let tokenizer = duogpt::model::tokenizer::Tokenizer::read(&model).unwrap();
    for (number, (prompt, expected)) in golden().into_iter().enumerate() {
        let format = ["dense", "index", "bitmap", "dense"][number];
        let max = expected.len().to_string();
        let flags = ["--prompt-tokens", &list(&prompt), "--max-tokens", &max, "--format", format];
        let found = generate(&model, &flags);
        assert_eq!(ids(&found["prompt_tokens"]), prompt);
        assert_eq!(ids(&found["tokens"]), expected);
        assert_eq!(found["stopped"], "max_tokens");
        // The text goes on where that of the prompt ends.
        let whole = tokenizer.decode(&[&prompt[..], &expected].concat()).unwrap();
        assert_eq!(tokenizer.decode(&prompt).unwrap() + found["text"].as_str().unwrap(), whole);
    }
}

#[test]
fn the_streamed_text_is_that_of_json_and_goes_to_stdout_alone() {
    let model = fixture("tiny-llama");
    let flags =
        ["generate", "--model", model.to_str().unwrap(), "--prompt", "The first of", "--max-tokens", "20"];
    let streamed = duogpt(&flags);
    let json: Value = serde_json::from_slice(&duogpt(&[&flags[..], &["--json"]].concat()).stdout).unwrap();
    assert_eq!(String::from_utf8(streamed.stdout).unwrap(), format!("{}\n", json["text"].as_str().unwrap()));
    assert!(streamed.stderr.is_empty(), "{}", String::from_utf8_lossy(&streamed.stderr));
    assert_eq!(ids(&json["tokens"]).len(), 20);
}

/// A copy of a fixture to change.
fn copy(model: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, directory.path().join(from.file_name().unwrap())).unwrap();
    }
    directory
}

/// A model that breaks down after some tokens has printed those before.
#[test]
fn text_appears_as_it_is_made() {
    let (prompt, expected) = golden().remove(0);
    let directory = copy("tiny-llama");
    let path = directory.path().join("model.safetensors");
    let source = TensorFile::open(&fixture("tiny-llama/model.safetensors")).unwrap();
    let headers = source.in_file_order();
    let writer = TensorWriter::create(
        &path,
        headers.iter().map(|(name, info)| (*name, info.dtype, info.shape.as_slice())),
        &source.metadata,
    )
    .unwrap();
    // Token 498 comes as the eleventh; then its row of the embedding is wanted, which is not finite.
    assert_eq!(expected.iter().position(|&token| token == 498), Some(10));
    for (name, _) in &headers {
        let mut bytes = source.bytes(name).unwrap().to_vec();
        if *name == "model.embed_tokens.weight" {
            bytes[2 * 256 * 498..][..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
        }
        writer.write(name, &bytes).unwrap();
    }
    drop(writer);
    let model = directory.path().to_str().unwrap();
    let outcome = duogpt(&["generate", "--model", model, "--prompt-tokens", &list(&prompt)]);
    assert_eq!(outcome.status.code(), Some(2));
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert!(message.contains("model.embed_tokens.weight") && message.contains("[498, 0]"), "{message}");
    let tokenizer = duogpt::model::tokenizer::Tokenizer::read(directory.path()).unwrap();
    let text = |tokens: &[u32]| tokenizer.decode(&[&prompt[..], tokens].concat()).unwrap();
    let shown = text(&expected[..11])[text(&[]).len()..].to_string();
    assert_eq!(String::from_utf8(outcome.stdout).unwrap(), shown);
}

#[test]
fn seeds_temperature_and_top_p() {
    let model = fixture("tiny-llama");
    let draw = |flags: &[&str]| {
        let fixed = ["--prompt", "The", "--max-tokens", "24", "--ignore-end"];
        ids(&generate(&model, &[&fixed[..], flags].concat())["tokens"])
    };
    let greedy = draw(&[]);
    let warm = draw(&["--temperature", "1", "--seed", "3"]);
    assert_eq!(warm, draw(&["--temperature", "1", "--seed", "3"]));
    assert_ne!(warm, draw(&["--temperature", "1", "--seed", "4"]));
    assert_ne!(warm, greedy);
    // One token reaches a small probability alone, and in the cold.
    assert_eq!(greedy, draw(&["--temperature", "1", "--top-p", "1e-6"]));
    assert_eq!(greedy, draw(&["--temperature", "1e-9"]));
}

#[test]
fn it_ends_where_the_model_says() {
    let (prompt, expected) = golden().remove(1);
    let directory = copy("tiny-llama");
    let prompt = list(&prompt);
    let run = |flags: &[&str]| {
        let fixed = ["--prompt-tokens", &prompt, "--max-tokens", "30"];
        generate(directory.path(), &[&fixed[..], flags].concat())
    };
    let config = directory.path().join("config.json");
    let mut json = read_json(&config);
    json["eos_token_id"] = 448.into(); // the fourth
    fs::write(&config, json.to_string()).unwrap();
    let found = run(&[]);
    assert_eq!(
        (ids(&found["tokens"]), &found["stopped"]),
        (expected[..4].to_vec(), &"end_of_sequence".into())
    );
    let found = run(&["--ignore-end"]);
    assert_eq!((ids(&found["tokens"]), &found["stopped"]), (expected[..30].to_vec(), &"max_tokens".into()));
    // generation_config.json counts before; any token of a list ends.
    fs::write(directory.path().join("generation_config.json"), r#"{"eos_token_id": [2000, 261]}"#).unwrap();
    let found = run(&[]);
    assert_eq!(
        (ids(&found["tokens"]), &found["stopped"]),
        (expected[..6].to_vec(), &"end_of_sequence".into())
    );
    fs::write(directory.path().join("generation_config.json"), r#"{"eos_token_id": "</s>"}"#).unwrap();
    refuses(
        directory.path(),
        &["--prompt", "A"],
        &["generation_config.json", "eos_token_id", "expected a token id"],
    );
}

#[test]
fn max_tokens_and_the_context_limit_what_is_made() {
    let model = fixture("nano-llama"); // context: 128, no tokenizer
    let run = |prompt: usize, max: &str| {
        let prompt = list(&tokens(prompt, 320));
        generate(&model, &["--prompt-tokens", &prompt, "--ignore-end", "--max-tokens", max])
    };
    for (prompt, max, made, stopped) in [
        (5, "0", 0, "max_tokens"),
        (5, "1", 1, "max_tokens"),
        (5, "7", 7, "max_tokens"),
        // What a full context predicts is known, but cannot be continued.
        (120, "50", 9, "context"),
        (128, "50", 1, "context"),
        (128, "1", 1, "max_tokens"),
        (3, "18446744073709551615", 126, "context"),
    ] {
        let found = run(prompt, max);
        assert_eq!(
            (ids(&found["tokens"]).len(), &found["stopped"]),
            (made, &stopped.into()),
            "{prompt} {max}"
        );
        assert_eq!(found["text"], Value::Null);
    }
    let plain = duogpt(&["generate", "--model", model.to_str().unwrap(), "--prompt-tokens", "3,41,141"]);
    let numbers = String::from_utf8(plain.stdout).unwrap();
    assert!(numbers.trim_end().split(',').all(|id| id.parse::<u32>().is_ok_and(|id| id < 320)), "{numbers}");
}

/// Refused with exit code 2 and a message that holds all of `expected`.
fn refuses(model: &Path, flags: &[&str], expected: &[&str]) {
    let outcome = duogpt(&[&["generate", "--model", model.to_str().unwrap()], flags].concat());
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2), "{flags:?}: {message}");
    for part in expected {
        assert!(message.contains(part), "{flags:?}: `{part}` is not in: {message}");
    }
    assert!(!message.contains("panicked") && outcome.stdout.is_empty(), "{flags:?}: {message}");
}

#[test]
fn prompts_that_cannot_be_continued() {
    let (tiny, nano) = (fixture("tiny-llama"), fixture("nano-llama"));
    let long = list(&tokens(129, 320));
    refuses(&nano, &["--prompt-tokens", &long], &["129 tokens", "context is 128", "shorten"]);
    let text = "word ".repeat(600);
    refuses(&tiny, &["--prompt", &text], &["tokens", "context is 512"]);
    refuses(&nano, &["--prompt-tokens", "3,320"], &["token 320", "vocabulary of 320"]);
    refuses(&nano, &["--prompt-tokens", "3,x"], &["invalid digit"]);
    refuses(&nano, &["--prompt-tokens", "3,-1"], &["invalid value '-1'"]);
    refuses(&nano, &["--prompt-tokens", ""], &["--prompt-tokens"]);
    refuses(&nano, &["--prompt", "A"], &["tokenizer.json", "missing", "--prompt-tokens"]);
    refuses(&nano, &[], &["--prompt"]);
    refuses(&nano, &["--prompt", "A", "--prompt-tokens", "1"], &["cannot be used with"]);
    refuses(&tiny, &["--prompt", "A", "--temperature", "-1"], &["is not a temperature"]);
    refuses(&tiny, &["--prompt", "A", "--temperature", "inf"], &["is not a temperature"]);
    refuses(&tiny, &["--prompt", "A", "--top-p", "0"], &["(0, 1]"]);
    refuses(&tiny, &["--prompt", "A", "--activation-sparsity", "1"], &["is not a fraction"]);
    refuses(&tiny, &["--prompt", "A", "--thresholds", "nowhere.json"], &["nowhere.json"]);
}

#[test]
fn cuda_is_refused_with_advice_where_it_cannot_be_used() {
    let model = fixture("nano-llama");
    refuses(
        &model,
        &["--prompt-tokens", "1", "--backend", "cuda", "--precision", "f64"],
        &["CUDA computes in f32", "--backend cpu"],
    );
    // No device, whatever the machine has.
    let run = |backend: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_duogpt"));
        command
            .args(["generate", "--prompt-tokens", "1,2", "--max-tokens", "3", "--json", "--model"])
            .arg(&model);
        command.args(["--backend", backend]).env("CUDA_VISIBLE_DEVICES", "").output().unwrap()
    };
    let refused = run("cuda");
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("CUDA cannot be used: "));
    let done = run("auto");
    assert!(String::from_utf8_lossy(&done.stderr).contains("using the CPU"));
    assert_eq!(done.stdout, run("cpu").stdout);
}

#[test]
fn weights_in_f64_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (model, wide) = (fixture("nano-llama"), directory.path().join("wide"));
    let flags = ["--method", "magnitude", "--dtype", "f64"];
    let paths = ["--model", model.to_str().unwrap(), "--output", wide.to_str().unwrap()];
    assert!(duogpt(&[&["prune"], &paths[..], &flags].concat()).status.success());
    refuses(&wide, &["--prompt-tokens", "1"], &["wide", "lm_head.weight", "F64", "--dtype f32"]);
}

#[cfg(unix)]
#[test]
fn a_prompt_that_is_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let outcome = Command::new(env!("CARGO_BIN_EXE_duogpt"))
        .args(["generate", "--model", fixture("tiny-llama").to_str().unwrap(), "--prompt"])
        .arg(std::ffi::OsStr::from_bytes(b"caf\xe9"))
        .output()
        .unwrap();
    assert_eq!(outcome.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("UTF-8"));
}

#[test]
fn an_empty_prompt_is_the_beginning_of_a_text() {
    let model = fixture("tiny-llama");
    let empty = generate(&model, &["--prompt", "", "--max-tokens", "5"]);
    assert_eq!(ids(&empty["prompt_tokens"]), [0]); // <s>
    assert_eq!(empty["tokens"], generate(&model, &["--prompt-tokens", "0", "--max-tokens", "5"])["tokens"]);
}

/// Every byte has a token in the fixture's vocabulary; here one is taken out.
#[test]
fn characters_without_a_token_are_named() {
    let directory = copy("tiny-llama");
    let path = directory.path().join("tokenizer.json");
    let known = "caf\u{e9}";
    let mut json = read_json(&path);
    // U+00C3 stands for byte 0xC3, the first of the letter's two; U+00A9 for the second.
    for byte in ["\u{c3}", "\u{a9}"] {
        json["model"]["vocab"].as_object_mut().unwrap().remove(byte).unwrap();
        let merges = json["model"]["merges"].as_array_mut().unwrap();
        merges.retain(|pair| !pair.to_string().contains(byte));
    }
    fs::write(&path, json.to_string()).unwrap();
    let model = directory.path().to_str().unwrap();
    let outcome = duogpt(&["generate", "--model", model, "--prompt", known, "--max-tokens", "1"]);
    let message = String::from_utf8_lossy(&outcome.stderr);
    assert!(outcome.status.success(), "{message}");
    assert!(message.contains("does not see '\u{e9}'"), "{message}");
}

#[test]
fn statistics_are_those_of_the_weights_and_of_the_rule() {
    let pruned = Pruned::of("tiny-llama");
    let run = |flags: &[&str]| {
        let fixed = ["--prompt", "The first", "--max-tokens", "9", "--ignore-end", "--stats"];
        generate(&pruned.path(), &[&fixed[..], flags].concat())["stats"].take()
    };
    let number = |value: &Value| value.as_f64().unwrap();
    // Weights of the linears and lm_head, in bf16; all of their rows are multiples of 8.
    let head = 2.0 * 2048.0 * 256.0;
    let linears = 2.0 * 6.0 * f64::from(256 * 256 * 2 + 128 * 256 * 2 + 3 * 688 * 256);
    let dense = run(&["--format", "dense"]);
    assert_eq!(dense["decoding"]["tokens"], 8);
    let bytes = &dense["bytes_per_token"];
    assert_eq!(
        (number(&bytes["weights"]), number(&bytes["dense_weights"])),
        (head + linears, head + linears)
    );
    // Each of 8 tokens behind the prompt sees those before it and itself: keys and values of 6 layers x 128 x f32.
    let prompt = dense["prompt"]["tokens"].as_u64().unwrap() as f64;
    assert_eq!(number(&bytes["cache"]), (prompt + 4.5) * 2.0 * 6.0 * 128.0 * 4.0);
    assert_eq!(number(&bytes["total"]), number(&bytes["weights"]) + number(&bytes["cache"]));

    let dual = run(&["--format", "bitmap", "--activation-sparsity", "0.5"]);
    let list = dual["linears"].as_array().unwrap();
    assert_eq!(list.len(), 6 * 7);
    assert_eq!(list[41]["tensor"], "model.layers.5.mlp.down_proj.weight");
    for linear in list {
        // Magnitude pruning takes its threshold with it, and ties: bf16 has many.
        let sparsity = number(&linear["weight_sparsity"]);
        assert!((0.5..0.53).contains(&sparsity), "{linear}");
        // In f32 ties are rare: k - floor(k / 2) entries stay, hardly more.
        let activations = number(&linear["activation_sparsity"]);
        assert!((0.49..=0.5).contains(&activations), "{linear}");
        let (n, k) = (number(&linear["shape"][0]), number(&linear["shape"][1]));
        let expected = 2.0 * (1.0 - sparsity) + 44.0 / 256.0;
        // Filling up to whole tiles and segments comes on top.
        let bytes = number(&linear["bytes"]) / (n * k);
        assert!(bytes >= expected && bytes < 1.25 * expected, "{linear}: {bytes} for {expected}");
    }
    // A quarter of the values, a bit for every weight of half of the columns, and lm_head.
    let weights = number(&dual["bytes_per_token"]["weights"]) - head;
    assert!((0.24..0.34).contains(&(weights / linears)), "{}", weights / linears);
    let memory = &dual["memory"];
    assert!(number(&memory["weights"]) < head + 0.68 * linears, "{memory}");
    assert!(number(&memory["peak_resident"]) > number(&memory["weights"]));
    assert!(dual["products"].as_str().unwrap().starts_with("CPU, "));
    assert!(number(&dual["share_of_byte_limit"]) > 0.0 && number(&dual["memory_bandwidth"]) > 1e8);

    // The text form says the same.
    let model = pruned.path();
    let outcome = duogpt(&[
        "generate",
        "--model",
        model.to_str().unwrap(),
        "--prompt",
        "The first",
        "--max-tokens",
        "9",
        "--stats",
    ]);
    let text = String::from_utf8_lossy(&outcome.stderr);
    for part in
        ["tokens/s", "per token", "byte limit", "memory", "model.layers.5.mlp.down_proj.weight", "bitmap"]
    {
        assert!(text.contains(part), "`{part}` is not in {text}");
    }
}

#[test]
fn thresholds_of_the_command_work_in_generate() {
    let model = fixture("tiny-llama");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("thresholds.json");
    let (name, tokens) =
        (model.to_str().unwrap(), fixture("tiny-llama/tokens-sampled-calibration.safetensors"));
    let outcome = duogpt(&[
        "thresholds",
        "--model",
        name,
        "--tokens",
        tokens.to_str().unwrap(),
        "--samples",
        "4",
        "--output",
        file.to_str().unwrap(),
    ]);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let fixed = ["--prompt", "The first of the", "--max-tokens", "40", "--ignore-end", "--stats"];
    let found = generate(&model, &[&fixed[..], &["--thresholds", file.to_str().unwrap()]].concat());
    let linears = found["stats"]["linears"].as_array().unwrap();
    let mean = linears.iter().map(|linear| linear["activation_sparsity"].as_f64().unwrap()).sum::<f64>()
        / linears.len() as f64;
    // Single tokens may be sparser or denser than the half that was asked for.
    assert!((0.35..0.65).contains(&mean), "{mean}");
    let sparsities: Vec<f64> = linears.iter().map(|l| l["activation_sparsity"].as_f64().unwrap()).collect();
    assert!(sparsities.iter().any(|s| *s != sparsities[0]));
    assert_ne!(found["tokens"], generate(&model, &fixed)["tokens"]);
}

/// What would make transformers write another text is named, and nothing else.
#[test]
fn settings_that_are_passed_over_are_named() {
    let pruned = Pruned::of("tiny-llama");
    let said = |settings: Value| {
        fs::write(pruned.path().join("generation_config.json"), settings.to_string()).unwrap();
        let model = pruned.path();
        let outcome = duogpt(&[
            "generate",
            "--model",
            model.to_str().unwrap(),
            "--prompt-tokens",
            "1,2",
            "--max-tokens",
            "1",
        ]);
        assert!(outcome.status.success());
        String::from_utf8(outcome.stderr).unwrap()
    };
    let settings = serde_json::json!({
        "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "do_sample": true, "bad_words_ids": [[7]], "num_beams": 4,
    });
    let warning = said(settings.clone());
    for (name, value) in settings.as_object().unwrap() {
        assert!(warning.contains(&format!("`{name}` {value}")), "{warning}");
    }
    let nothing = serde_json::json!({
        "repetition_penalty": 1.0, "do_sample": false, "num_beams": 1, "bad_words_ids": null, "min_length": 0,
        "temperature": 0.7, "top_p": 0.9, "eos_token_id": 1, "max_length": 20,
    });
    assert_eq!(said(nothing), "");
}
