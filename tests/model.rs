//! The forward pass against transformers and against the float64 model.

mod common;

use common::fixture;
use duogpt::backend::Cpu;
use duogpt::calibrate::streams::Activations;
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::logits;
use duogpt::linalg::Scalar;
use duogpt::model::Checkpoint;
use duogpt::model::cache::KeyValues;
use duogpt::model::config::{SlidingLayers, SlidingWindow};
use duogpt::model::forward::{Embedding, Forward, Group, Layer, Layout, State, apply};
use duogpt::tensors::TensorFile;
use ndarray::{Array1, Array2, Axis, s};

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

#[test]
fn architectures_equal_transformers() {
    for model in common::ARCHITECTURE_MODELS {
        let directory = format!("architectures/{model}");
        for difference in [
            largest_difference::<f32>(&directory, "logits", 0.0),
            largest_difference::<f64>(&directory, "logits", 0.0),
        ] {
            assert!(difference <= 1e-4, "{model}: {difference:e}");
        }
    }
}

/// A model in memory, for sequences of any layout.
struct Whole {
    checkpoint: Checkpoint,
    forward: Forward<f64>,
    embedding: Embedding<f64>,
    layers: Vec<Layer<f64>>,
}

impl Whole {
    /// The model with this sliding window from layer 1 on, in place of its own.
    fn new(model: &str, window: Option<usize>) -> Self {
        let mut checkpoint = Checkpoint::open(&fixture(model)).unwrap();
        checkpoint.config.sliding_window =
            window.map(|tokens| SlidingWindow { tokens, layers: SlidingLayers::From(1) });
        let embedding = checkpoint.embedding().unwrap();
        let layers = (0..checkpoint.config.num_hidden_layers).map(|i| checkpoint.layer(i).unwrap()).collect();
        let forward = Forward::new(&checkpoint.config, 512);
        Whole { checkpoint, forward, embedding, layers }
    }

    fn through(&self, layer: &Layer<f64>, state: &mut State<f64>) {
        self.forward.enter(layer, state);
        for group in Group::ALL {
            let outputs = apply(layer.group(group), state.input.view());
            self.forward.advance(layer, group, outputs, state);
        }
    }

    /// Hidden states behind the last layer.
    fn hidden(&self, tokens: &Array1<u32>, layout: Layout) -> Array2<f64> {
        let mut state = State::embed_branches(&self.embedding, tokens.view(), layout);
        self.layers.iter().for_each(|layer| self.through(layer, &mut state));
        state.hidden
    }

    /// The same of one sequence, token by token with what is kept of those before.
    fn one_by_one(&self, tokens: &Array1<u32>) -> Array2<f64> {
        let room = || KeyValues::new(&self.checkpoint.config, tokens.len());
        let mut kept: Vec<_> = self.layers.iter().map(|_| Some(room())).collect();
        let mut rows = Array2::zeros((tokens.len(), self.checkpoint.config.hidden_size));
        for place in 0..tokens.len() {
            let token = tokens.slice(s![place..=place]);
            let mut state = State::embed_branches(&self.embedding, token, Layout::after(place, 1));
            for (layer, kept) in self.layers.iter().zip(&mut kept) {
                state.kept = kept.take();
                self.through(layer, &mut state);
                *kept = state.kept.take();
            }
            rows.row_mut(place).assign(&state.hidden.row(0));
        }
        rows
    }
}

/// Windows and positions count along a token's own sequence, however it is cut: into strips, branches, or single tokens.
#[test]
fn a_sequence_is_the_same_as_a_whole_in_branches_and_token_by_token() {
    let vocabulary = |i: u32| i * 7 % 96;
    for (model, windows, trunk, branches) in [
        // Longer than strips of the attention; windows within the branch, into the trunk, over several strips.
        ("nano-llama", &[None, Some(1), Some(5), Some(140), Some(250), Some(1000)][..], 150, [140, 33]),
        ("architectures/opt", &[None, Some(4)], 20, [30, 44]),
        ("architectures/opt-post-norm", &[None], 20, [30, 44]),
    ] {
        let mut distinct = Vec::new();
        for &window in windows {
            let model = Whole::new(model, window);
            let tokens: Array1<u32> =
                (0..trunk + branches[0] + branches[1]).map(|i| vocabulary(i as u32)).collect();
            let together = model.hidden(&tokens, Layout::new(trunk, branches));
            let mut start = trunk;
            for length in branches {
                let rows: Vec<usize> = (0..trunk).chain(start..start + length).collect();
                start += length;
                let (own, branch) = (tokens.select(Axis(0), &rows), together.select(Axis(0), &rows));
                let alone = model.hidden(&own, Layout::new(own.len(), []));
                let largest = alone.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                for (found, how) in [(branch, "in branches"), (model.one_by_one(&own), "token by token")] {
                    let error = (&found - &alone).iter().fold(0.0, |m: f64, e| m.max(e.abs()));
                    // The same sums in another order: the class of the f64 model tests.
                    assert!(error <= 1e-11 * largest, "window {window:?}, {how}: {error:e} of {largest}");
                }
            }
            distinct.push(together.row(trunk + branches[0] - 1).to_vec());
        }
        distinct.dedup();
        assert_eq!(distinct.len(), windows.len(), "{model}: a window has no effect");
    }
}
