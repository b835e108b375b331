//! Generating text with a pruned model, a token at a time, from weights that stay compressed in memory and pruned
//! activations.
//!
//! The forward pass is the one of calibration and evaluation ([`Forward`](crate::model::forward::Forward)) with a cache of
//! keys and values, and the same rule for the activations; only the products differ ([`Products`]). A prompt is
//! processed in chunks of tokens, for which each weight is decompressed and multiplied as a dense matrix. Then every token is
//! y = W (x * mask) from the compressed weights.

pub mod bandwidth;
pub mod decoder;
pub mod error;
pub mod products;
pub mod sample;
pub mod stats;
pub mod text;
pub mod weight;

pub use decoder::{Decoder, Sequence};
pub use error::GenerateError;
pub use products::{Fast, Keep, Products, Reference};
pub use sample::Sampler;
pub use text::TextStream;
pub use weight::FormatKind;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::files::parse_json;
use crate::linalg::Scalar;
use crate::model::CheckpointError;
use crate::tensors::TensorError;
use decoder::Traffic;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// The model produced an end-of-sequence token.
    EndOfSequence,
    /// The requested number of tokens was generated.
    MaxTokens,
    /// The model's context is full.
    Context,
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The tokens after the prompt; an end-of-sequence token is included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub stopped: Stopped,
    /// Time of the prompt.
    pub prompt_time: Duration,
    /// Time of the passes after it, one token each.
    pub decoding_time: Duration,
    /// The bytes that these passes read.
    pub traffic: Traffic,
}

/// Continues a prompt by up to `max_tokens` tokens, or up to one of `ends`, or until `context` tokens are full; calls `each` with
/// every token as soon as it is known.
///
/// # Errors
/// [`GenerateError`].
///
/// # Panics
/// When the prompt is empty, has a token outside the vocabulary, or exceeds the decoder's capacity.
pub fn generate<T: Scalar, P: Products<T>>(
    decoder: &Decoder<T, P>,
    prompt: &[u32],
    max_tokens: usize,
    ends: &[u32],
    sampler: &mut Sampler,
    mut each: impl FnMut(u32) -> io::Result<()>,
) -> Result<Generation, GenerateError> {
    let mut sequence = decoder.sequence();
    let start = Instant::now();
    let mut logits = decoder.feed(&mut sequence, prompt)?;
    let prompt_time = start.elapsed();
    sequence.traffic.clear();
    let mut decoding_time = Duration::ZERO;
    let mut tokens = Vec::new();
    let stopped = loop {
        if tokens.len() == max_tokens {
            break Stopped::MaxTokens;
        }
        let position = sequence.len();
        let token = sampler.next(logits.view()).ok_or(GenerateError::NotFinite { position })?;
        tokens.push(token);
        each(token)?;
        if ends.contains(&token) {
            break Stopped::EndOfSequence;
        }
        if tokens.len() < max_tokens && position == decoder.capacity() {
            break Stopped::Context;
        }
        if tokens.len() < max_tokens {
            let start = Instant::now();
            logits = decoder.feed(&mut sequence, &[token])?;
            decoding_time += start.elapsed();
        }
    };
    Ok(Generation { tokens, stopped, prompt_time, decoding_time, traffic: sequence.traffic })
}

/// The settings of a model directory's `generation_config.json`, as `name value`, that would make transformers write another
/// text than [`generate`], which goes by its arguments alone.
///
/// # Errors
/// [`CheckpointError`] when the file is damaged.
pub fn settings_passed_over(directory: &Path) -> Result<Vec<String>, CheckpointError> {
    let path = directory.join("generation_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let json = read_json(&path)?;
    // With these values, or null, they change nothing.
    let neutral = serde_json::json!({
        "do_sample": false, "num_beams": 1, "repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_length": 0,
        "min_new_tokens": 0, "bad_words_ids": [], "force_words_ids": [], "suppress_tokens": [],
        "begin_suppress_tokens": [], "sequence_bias": {}, "penalty_alpha": 0, "forced_bos_token_id": null,
        "forced_eos_token_id": null, "exponential_decay_length_penalty": null,
    });
    let changes = |(name, neutral): (&String, &serde_json::Value)| {
        let value = json.get(name).filter(|value| !value.is_null())?;
        let nothing =
            value == neutral || value.as_f64().is_some_and(|number| neutral.as_f64() == Some(number));
        (!nothing).then(|| format!("`{name}` {value}"))
    };
    Ok(neutral.as_object().into_iter().flatten().filter_map(changes).collect())
}

/// The tokens that end a text: `eos_token_id` of `generation_config.json`, or of `config.json`; a number or a list.
///
/// # Errors
/// [`CheckpointError`] when a file is damaged.
pub fn ends_of_sequence(directory: &Path) -> Result<Vec<u32>, CheckpointError> {
    for file in ["generation_config.json", "config.json"] {
        let path = directory.join(file);
        if !path.is_file() {
            continue;
        }
        let malformed = |detail: String| CheckpointError::Malformed { path: path.clone(), detail };
        let json = read_json(&path)?;
        let value = &json["eos_token_id"];
        if value.is_null() {
            continue;
        }
        let one_or_more = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let token = |value: &serde_json::Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
        return one_or_more.iter().map(token).collect::<Option<_>>().ok_or_else(|| {
            malformed(format!("`eos_token_id` is {value}, expected a token id or a list of them"))
        });
    }
    Ok(Vec::new())
}

fn read_json(path: &Path) -> Result<serde_json::Value, CheckpointError> {
    let text = std::fs::read_to_string(path).map_err(TensorError::io(path))?;
    parse_json(&text).map_err(|error| CheckpointError::Malformed {
        path: path.into(),
        detail: format!("not JSON: {error}"),
    })
}
