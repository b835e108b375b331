//! LLaMA 1 to 3, and what is built like it: rotary positions, RMSNorm, a gated MLP, no biases unless the file says so.

use super::{Architecture, GATED};
use crate::model::config::{Activation, Fields, NormKind, NormPlace};
use crate::model::forward::Role;
use crate::model::{CheckpointError, ModelConfig};

/// LLaMA.
pub static LLAMA: Architecture = Architecture {
    class: "LlamaForCausalLM",
    model_type: "llama",
    prefixes: &["model."],
    linears: &GATED,
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    final_norm: "norm",
    read,
};

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let mut config = like_llama(architecture, fields, 2048)?;
    if fields.flag("attention_bias", false)? {
        config.biased.extend([Role::Q, Role::K, Role::V, Role::O]);
    }
    if fields.flag("mlp_bias", false)? {
        config.biased.extend([Role::Gate, Role::Up, Role::Down]);
    }
    Ok(config)
}

/// What LLaMA and its descendants have in common; `context` is the default of `max_position_embeddings`.
pub(super) fn like_llama(
    architecture: &'static Architecture,
    fields: &Fields,
    context: usize,
) -> Result<ModelConfig, CheckpointError> {
    let hidden_size = fields.size("hidden_size")?;
    let num_attention_heads = fields.size("num_attention_heads")?;
    let num_key_value_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
    let head_dim = match fields.optional_size("head_dim")? {
        Some(given) => given,
        None => fields.head_dim(hidden_size, num_attention_heads)?,
    };
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        return Err(fields.malformed(format!(
            "`num_attention_heads` {num_attention_heads} is no multiple of `num_key_value_heads` {num_key_value_heads}"
        )));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(fields.malformed(format!("`head_dim` {head_dim} is odd: rotary embeddings need pairs")));
    }
    Ok(ModelConfig {
        architecture,
        hidden_size,
        embedding_size: hidden_size,
        intermediate_size: fields.size("intermediate_size")?,
        num_hidden_layers: fields.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        vocab_size: fields.size("vocab_size")?,
        max_position_embeddings: fields.optional_size("max_position_embeddings")?.unwrap_or(context),
        positions: fields.rotary()?,
        sliding_window: None,
        activation: fields.activation("hidden_act", Activation::Silu)?,
        norm: NormKind::Rms { eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) },
        norm_place: NormPlace::Before,
        final_norm: true,
        biased: Vec::new(),
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
    })
}
