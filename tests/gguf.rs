//! GGUF files become directories that are read as transformers 4.49 reads the files: the same likelihood, the same tokens.
//! `fixtures/gguf` is described in its `make.py`.

mod common;

use std::fs;
use std::path::Path;

use common::{duogpt, fixture, read_json};
use duogpt::backend::Cpu;
use duogpt::calibrate::streams::Activations;
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::perplexity;
use duogpt::model::Checkpoint;
use duogpt::model::gguf::GgufFile;
use duogpt::model::tokenizer::Tokenizer;
use duogpt::progress::Silent;
use duogpt::tensors::FloatType;
use ndarray::Array2;

const FILES: [&str; 2] = ["blocks.gguf", "plain.gguf"];

fn convert(file: &Path, output: &Path, flags: &[&str]) -> Result<String, String> {
    let arguments = ["convert", "--model", file.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let outcome = duogpt(&[&arguments, flags].concat());
    match outcome.status.success() {
        true => Ok(String::from_utf8(outcome.stdout).unwrap()),
        false => Err(String::from_utf8(outcome.stderr).unwrap()),
    }
}

/// Blocks hold numbers that f32 holds, so nothing is lost on the way.
#[test]
fn the_likelihood_is_that_of_transformers() {
    let expected = read_json(&fixture("gguf/expected.json"));
    for name in FILES {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("model");
        convert(&fixture("gguf").join(name), &output, &[]).unwrap();
        let checkpoint = Checkpoint::open(&output).unwrap();
        assert!(checkpoint.warnings.is_empty(), "{:?}", checkpoint.warnings);
        let tokens: Vec<u32> = serde_json::from_value(expected[name]["tokens"].clone()).unwrap();
        let tokens = Array2::from_shape_vec((1, tokens.len()), tokens).unwrap();
        let windows = Windows { tokens, source: String::new() };
        let found =
            perplexity::<f64, _>(&checkpoint, &windows, Activations::default(), &Cpu, &Silent).unwrap();
        let expected = expected[name]["nll"].as_f64().unwrap();
        assert!((found.mean_nll - expected).abs() <= 1e-6, "{name}: {} and {expected}", found.mean_nll);
    }
}

#[test]
fn texts_have_the_tokens_of_transformers() {
    let expected = read_json(&fixture("gguf/expected.json"));
    for name in FILES {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("model");
        convert(&fixture("gguf").join(name), &output, &["--dtype", "f32"]).unwrap();
        let tokenizer = Tokenizer::of(&Checkpoint::open(&output).unwrap()).unwrap();
        assert_eq!(tokenizer.prefix_token().unwrap(), 1);
        for (text, tokens) in expected[name]["texts"].as_object().unwrap() {
            let tokens: Vec<u32> = serde_json::from_value(tokens.clone()).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), tokens, "{name}: {text:?}");
            assert_eq!(
                tokenizer.decode(&tokens).unwrap(),
                expected[name]["decoded"][text],
                "{name}: {text:?}"
            );
        }
    }
}

/// Another type holds each value rounded to it.
#[test]
fn a_type_rounds_every_value() {
    for (flag, dtype) in [("bf16", FloatType::Bf16), ("f16", FloatType::F16)] {
        let directory = tempfile::tempdir().unwrap();
        let (exact, rounded) = (directory.path().join("exact"), directory.path().join("rounded"));
        let file = fixture("gguf/blocks.gguf");
        convert(&file, &exact, &[]).unwrap();
        convert(&file, &rounded, &["--dtype", flag]).unwrap();
        let (exact, rounded) = (Checkpoint::open(&exact).unwrap(), Checkpoint::open(&rounded).unwrap());
        for name in exact.linear_tensors() {
            let (exact, rounded) = (exact.tensor_data(&name).unwrap(), rounded.tensor_data(&name).unwrap());
            assert_eq!(rounded.info.dtype, dtype.dtype());
            let exact = exact.matrix::<f64>().unwrap().mapv(|x| dtype.round(x));
            assert_eq!(rounded.matrix::<f64>().unwrap(), exact, "{name}");
        }
    }
}

/// A user with a GGUF file and nothing else can prune.
#[test]
fn what_comes_out_can_be_pruned_and_run() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_string();
    convert(&fixture("gguf/blocks.gguf"), Path::new(&at("model")), &["--dtype", "bf16"]).unwrap();
    let succeeds = |arguments: &[&str]| {
        let outcome = duogpt(arguments);
        assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    };
    succeeds(&["prune", "--method", "magnitude", "--model", &at("model"), "--output", &at("pruned")]);
    succeeds(&["generate", "--model", &at("pruned"), "--prompt", "a band", "--max-tokens", "4"]);
}

/// Where the file is cut, whatever stood there: refused, and nothing is left.
#[test]
fn a_file_that_is_cut_is_refused() {
    let whole = fs::read(fixture("gguf/blocks.gguf")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cut.gguf");
    let header = 9000; // metadata, names and shapes end before it
    for length in (0..header).step_by(37).chain([whole.len() / 2, whole.len() - 33]) {
        fs::write(&file, &whole[..length]).unwrap();
        let message = GgufFile::open(&file).err().map(|error| error.to_string()).expect("it is not whole");
        assert!(message.contains("cut.gguf"), "{length}: {message}");
    }
}

/// Bytes of the header that are something else are refused, or read as another model; nothing panics.
#[test]
fn no_byte_of_the_header_makes_it_panic() {
    let whole = fs::read(fixture("gguf/blocks.gguf")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("damaged.gguf");
    for at in (0..9000).step_by(11) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs::write(&file, &damaged).unwrap();
        if let Ok(file) = GgufFile::open(&file) {
            let output = directory.path().join("model");
            if duogpt::calibrate::import::import(&file, &output, FloatType::F32, &Silent).is_ok() {
                fs::remove_dir_all(&output).unwrap();
            }
            let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "byte {at}: {left:?}");
        }
    }
}

/// Replaces a text of the header by one of the same length.
fn edited(from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(fixture("gguf/blocks.gguf")).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty(), "{from}");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

#[test]
fn what_is_not_supported_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |bytes: &[u8], flags: &[&str], expected: &[&str]| {
        let file = directory.path().join("other.gguf");
        fs::write(&file, bytes).unwrap();
        let message = convert(&file, &directory.path().join("model"), flags).unwrap_err();
        for part in expected {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "something is left");
    };
    let whole = fs::read(fixture("gguf/blocks.gguf")).unwrap();
    refused(b"PK\x03\x04", &[], &["other.gguf", "not a GGUF file"]);
    let mut version = whole.clone();
    version[4] = 1;
    refused(&version, &[], &["version 1", "supported: 2 and 3"]);
    refused(&edited("llama.block_count", "llama.block_kount"), &[], &["`llama.block_count` is missing"]);
    refused(
        &edited("blk.1.ffn_down", "blk.1.ffn_dawn"),
        &[],
        &["tensor `blk.1.ffn_dawn.weight` has no place"],
    );
    refused(&edited("blk.1.", "blk.2."), &[], &["does not hold a whole model", "model.layers.1."]);
    refused(&edited("gpt2", "bert"), &[], &["`tokenizer.ggml.model` is \"bert\"", "supported"]);
    refused(&whole, &["--format", "sparse-bitmask"], &["dense directory"]);
    let model = fixture("nano-llama");
    let message = convert(&model, &directory.path().join("model"), &["--dtype", "f32"]).unwrap_err();
    assert!(message.contains("--dtype is for a GGUF file"), "{message}");
    assert!(convert(&model, &directory.path().join("model"), &[]).unwrap_err().contains("give --format"));
}
