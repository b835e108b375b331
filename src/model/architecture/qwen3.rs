//! Qwen3: Qwen2 without biases, and with an RMSNorm over every head of queries and keys before the rotary embedding.

use super::Architecture;
use super::llama::{LLAMA, like_llama};
use super::qwen2::sliding_window;
use crate::model::config::{AttentionDefaults, Fields};
use crate::model::forward::Role;
use crate::model::{CheckpointError, ModelConfig};

/// Qwen3, its dense models.
pub static QWEN3: Architecture = Architecture {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    query_key_norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    read,
    ..LLAMA
};

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let defaults = AttentionDefaults { key_value_heads: Some(32), head_dim: Some(128), context: 32_768 };
    let mut config = like_llama(architecture, fields, &defaults)?;
    if fields.flag("attention_bias", false)? {
        config.biased.extend([Role::Q, Role::K, Role::V, Role::O]);
    }
    config.sliding_window = sliding_window(fields)?;
    Ok(config)
}
