//! Mistral: LLaMA whose tokens see only the last `sliding_window` tokens.

use super::llama::like_llama;
use super::{Architecture, GATED};
use crate::model::config::{Fields, SlidingLayers, SlidingWindow};
use crate::model::{CheckpointError, ModelConfig};

// ANCHOR: architecture
/// Mistral.
pub static MISTRAL: Architecture = Architecture {
    class: "MistralForCausalLM",
    model_type: "mistral",
    prefixes: &["model."],
    linears: &GATED,
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    final_norm: "norm",
    read,
};

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let sliding_window =
        fields.sliding_window()?.map(|tokens| SlidingWindow { tokens, layers: SlidingLayers::From(0) });
    Ok(ModelConfig { sliding_window, ..like_llama(architecture, fields, 131_072)? })
}
// ANCHOR_END: architecture
