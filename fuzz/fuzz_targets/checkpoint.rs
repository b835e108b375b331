//! A model directory, its weights dense or without their zeros: refused with a message, or one that can be read whole and
//! pruned.

#![no_main]

use duogpt::backend::Cpu;
use duogpt::calibrate::windows::Windows;
use duogpt::calibrate::PruneJob;
use duogpt::progress::Silent;
use duogpt::llama::Checkpoint;
use duogpt::reference::{Method, PruneConfig, Sparsity};
use duogpt_fuzz::Directory;
use libfuzzer_sys::fuzz_target;
use ndarray::Array2;

const FILES: [&str; 5] = [
    "config.json",
    Checkpoint::INDEX,
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

fuzz_target!(|data: &[u8]| {
    let directory = Directory::unpack(data, &FILES);
    let checkpoint = match Checkpoint::open(directory.path()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let directory = directory.path().to_str().expect("a plain name");
            assert!(error.to_string().contains(directory), "{error} names no file");
            return;
        }
    };
    // What was accepted has its tensors in the file, so reading it costs no more than the file is long.
    let length: usize = checkpoint.shards().iter().map(|shard| shard.identity().0).sum();
    assert!(checkpoint.config.vocab_size * checkpoint.config.embedding_size <= length);
    let tokens = checkpoint.config.max_position_embeddings.min(4);
    let windows = Windows { tokens: Array2::zeros((1, tokens)), source: "zeros".into() };
    let config = PruneConfig { block_size: 4, ..PruneConfig::paper(Sparsity::Unstructured(0.5)) };
    let output = directory.file("pruned");
    let job = PruneJob {
        windows: Some(&windows),
        activation_sparsity: 0.5,
        ..PruneJob::new(&checkpoint, Method::DuoGpt(config), &output)
    };
    // Weights that are not finite, or overflow on the way, are refused here.
    let outcome = job.run::<f32, _>(&Cpu, &Silent);
    assert_eq!(outcome.is_ok(), output.is_dir());
    assert!(!directory.file("pruned.partial").exists(), "something half-written is left");
});
