//! LLaMA 1 to 3, and what is built like it: rotary positions, RMSNorm, a gated MLP, no biases unless the file says so.

use super::{Architecture, GATED};
use crate::model::config::{Activation, AttentionDefaults, Fields, NormKind, NormPlace, SlidingLayers};
use crate::model::forward::Role;
use crate::model::{CheckpointError, ModelConfig};

/// LLaMA. Its descendants take over its names.
pub const LLAMA: Architecture = Architecture {
    class: "LlamaForCausalLM",
    model_type: "llama",
    prefixes: &["model.", ""],
    linears: &GATED,
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    query_key_norms: None,
    final_norm: "norm",
    read,
};

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let defaults = AttentionDefaults { key_value_heads: None, head_dim: None, context: 2048 };
    let mut config = like_llama(architecture, fields, &defaults)?;
    config.sliding_window = fields.windows(None, SlidingLayers::From(0))?;
    if fields.flag("attention_bias", false)? {
        config.biased.extend([Role::Q, Role::K, Role::V, Role::O]);
    }
    if fields.flag("mlp_bias", false)? {
        config.biased.extend([Role::Gate, Role::Up, Role::Down]);
    }
    Ok(config)
}

/// What LLaMA and its descendants have in common.
pub(super) fn like_llama(
    architecture: &'static Architecture,
    fields: &Fields,
    defaults: &AttentionDefaults,
) -> Result<ModelConfig, CheckpointError> {
    let hidden_size = fields.size("hidden_size")?;
    let (num_attention_heads, num_key_value_heads, head_dim) = fields.heads(hidden_size, defaults)?;
    let max_position_embeddings = fields.size_or("max_position_embeddings", defaults.context)?;
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
        max_position_embeddings,
        positions: fields.rotary(max_position_embeddings)?,
        sliding_window: None,
        activation: fields.activation("hidden_act", Activation::Silu)?,
        norm: NormKind::Rms { eps: fields.epsilon("rms_norm_eps", 1e-6)? },
        norm_place: NormPlace::Before,
        final_norm: true,
        biased: Vec::new(),
        tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
    })
}
