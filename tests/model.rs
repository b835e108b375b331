//! The forward pass against transformers and against the float64 model.

use std::path::{Path, PathBuf};

use duogpt::backend::Cpu;
use duogpt::calibrate::streams::Activations;
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::logits;
use duogpt::linalg::Scalar;
use duogpt::llama::Checkpoint;
use duogpt::tensors::TensorFile;
use ndarray::Axis;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// max |logit - golden| over the golden file's windows.
fn largest_difference<T: Scalar>(model: &str, tensor: &str, sparsity: f64) -> f64 {
    let directory = fixture(model);
    let checkpoint = Checkpoint::open(&directory).unwrap();
    let path = directory.join("golden-logits.safetensors");
    let windows = Windows::from_tokens(&path, &checkpoint.config, None, None).unwrap();
    let golden = TensorFile::open(&path).unwrap().cube::<f64>(tensor).unwrap();
    let activations = Activations { sparsity, ..Activations::default() };
    let found = logits::<T, _>(&checkpoint, &windows, activations, &Cpu).unwrap();
    assert_eq!(golden.len_of(Axis(0)), found.len());
    let differences = golden.outer_iter().zip(&found).map(|(golden, found)| {
        assert_eq!(golden.dim(), found.dim());
        golden.iter().zip(found).map(|(g, f)| (g - f.widen()).abs()).fold(0.0, f64::max)
    });
    differences.fold(0.0, f64::max)
}

#[test]
fn nano_llama_in_f64() {
    let difference = largest_difference::<f64>("nano-llama", "logits", 0.0);
    assert!(difference <= 1e-11, "{difference:e}");
}

#[test]
fn nano_llama_in_f64_with_sparse_activations() {
    let difference = largest_difference::<f64>("nano-llama", "logits_activation_sparsity_50", 0.5);
    assert!(difference <= 1e-11, "{difference:e}");
}

#[test]
fn tiny_llama_equals_transformers() {
    for difference in [
        largest_difference::<f32>("tiny-llama", "logits", 0.0),
        largest_difference::<f64>("tiny-llama", "logits", 0.0),
    ] {
        assert!(difference <= 1e-4, "{difference:e}");
    }
}

/// Rotary scaling of type llama3, tied embeddings, a head_dim of its own, grouped queries, f16, two shards.
#[test]
fn llama3_equals_transformers() {
    for difference in [
        largest_difference::<f32>("llama3", "logits", 0.0),
        largest_difference::<f64>("llama3", "logits", 0.0),
    ] {
        assert!(difference <= 1e-4, "{difference:e}");
    }
}

/// Every supported architecture and what its config.json can ask for; `fixtures/architectures/make.py` says which is which.
#[test]
fn architectures_equal_transformers() {
    let models = [
        "llama-biased",
        "mistral",
        "mistral-full",
        "qwen2",
        "qwen2-window",
        "opt",
        "opt-post-norm",
        "opt-plain",
    ];
    for model in models {
        let directory = format!("architectures/{model}");
        for difference in [
            largest_difference::<f32>(&directory, "logits", 0.0),
            largest_difference::<f64>(&directory, "logits", 0.0),
        ] {
            assert!(difference <= 1e-4, "{model}: {difference:e}");
        }
    }
}
