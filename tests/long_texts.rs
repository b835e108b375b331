//! Texts that are larger than the memory used for them.

mod common;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use common::{fixture, read_json};
use duogpt::calibrate::windows::{Cut, Windows};
use duogpt::model::ModelConfig;
use duogpt::model::tokenizer::Tokenizer;
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Writes documents of `bytes` bytes in all, as JSON lines; returns their texts.
fn write_documents(path: &Path, bytes: usize, mut each: impl FnMut(String)) {
    let source = fs::read_to_string(fixture("tiny-llama/sampled-calibration.txt")).unwrap();
    let mut file = BufWriter::new(File::create(path).unwrap());
    let (mut written, mut number) = (0, 0);
    while written < bytes {
        let start = source.floor_char_boundary(number * 7919 % source.len());
        let end = source.floor_char_boundary(start + 3000);
        let text = format!("Document {number}. {}", &source[start..end]);
        let line = json!({ "text": text }).to_string();
        writeln!(file, "{line}").unwrap();
        (written, number) = (written + line.len(), number + 1);
        each(text);
    }
}

/// A text of many chunks, between special tokens.
#[test]
fn the_windows_are_those_of_the_text_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut json = read_json(&fixture("tiny-llama/tokenizer.json"));
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                           "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    });
    fs::write(directory.path().join(Tokenizer::FILE), json.to_string()).unwrap();
    let tokenizer = Tokenizer::read(directory.path()).unwrap();
    let config = ModelConfig::read(&fixture("tiny-llama/config.json")).unwrap();
    let path = directory.path().join("corpus.jsonl");
    let mut documents = Vec::new();
    write_documents(&path, 1_500_000, |text| documents.push(text));
    let tokens = tokenizer.encode(&documents.join("\n\n")).unwrap();
    assert_eq!((tokens[0], tokens[tokens.len() - 1]), (0, 1));

    let length = 64;
    let found = |cut| Windows::from_text(&path, &tokenizer, &config, length, cut).unwrap().tokens;
    let at = |starts: &[usize]| Array2::from_shape_fn((starts.len(), length), |(i, j)| tokens[starts[i] + j]);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let last = (tokens.len() - length) as u64;
    let starts: Vec<usize> = (0..200).map(|_| random.random_range(0..=last) as usize).collect();
    assert_eq!(found(Cut::Random { samples: 200, seed: 5 }), at(&starts));
    let all: Vec<usize> = (0..tokens.len() / length).map(|i| i * length).collect();
    assert_eq!(found(Cut::Consecutive { limit: None }), at(&all));
    assert_eq!(found(Cut::Consecutive { limit: Some(3) }), at(&all[..3]));

    // One window with the special tokens at both ends.
    let short = directory.path().join("short.txt");
    fs::write(&short, "The first law").unwrap();
    let tokens = tokenizer.encode("The first law").unwrap();
    for cut in [Cut::Random { samples: 1, seed: 0 }, Cut::Consecutive { limit: None }] {
        let found = Windows::from_text(&short, &tokenizer, &config, tokens.len(), cut).unwrap().tokens;
        assert_eq!(found.row(0).to_vec(), tokens);
    }
}

/// The peak resident set of a process, in bytes. (`Child::wait` does not report it.)
#[expect(clippy::zombie_processes, reason = "wait4 waits for the process")]
fn peak_memory(command: &mut Command) -> u64 {
    let child = command.stdout(Stdio::null()).spawn().unwrap();
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: waits for a child of this process that nobody else waits for; both places are valid.
    let waited = unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, child.id() as libc::pid_t);
    assert!(ExitStatus::from_raw(status).success());
    // SAFETY: filled by the call.
    unsafe { usage.assume_init() }.ru_maxrss as u64 * 1024
}

#[test]
fn a_long_corpus_needs_no_more_memory_than_a_short_one() {
    let directory = tempfile::tempdir().unwrap();
    let peak = |bytes| {
        let corpus = directory.path().join(format!("corpus-{bytes}.jsonl"));
        write_documents(&corpus, bytes, drop);
        let output = directory.path().join(format!("pruned-{bytes}"));
        peak_memory(
            Command::new(env!("CARGO_BIN_EXE_duogpt"))
                .args([
                    "prune",
                    "--method",
                    "wanda",
                    "--weight-sparsity",
                    "0.5",
                    "--samples",
                    "2",
                    "--sequence-length",
                    "64",
                    "--model",
                ])
                .args([&fixture("tiny-llama"), Path::new("--text"), &corpus])
                .args([Path::new("--output"), &output])
                .env("RAYON_NUM_THREADS", "2"),
        )
    };
    let (short, long) = (peak(2_000_000), peak(24_000_000));
    assert!(long < short + 40_000_000, "{long} bytes of memory for 24 MB of text, {short} for 2 MB");
}
