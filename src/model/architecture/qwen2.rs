//! Qwen2: LLaMA with biases on queries, keys and values, and on request a sliding window in the upper layers.

use super::Architecture;
use super::llama::{LLAMA, like_llama};
use crate::model::config::{AttentionDefaults, Fields, SlidingLayers, SlidingWindow};
use crate::model::forward::Role;
use crate::model::{CheckpointError, ModelConfig};

/// Qwen2 and Qwen2.5.
pub static QWEN2: Architecture =
    Architecture { class: "Qwen2ForCausalLM", model_type: "qwen2", read, ..LLAMA };

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let defaults = AttentionDefaults { key_value_heads: Some(32), head_dim: None, context: 32_768 };
    Ok(ModelConfig {
        biased: vec![Role::Q, Role::K, Role::V],
        sliding_window: sliding_window(fields)?,
        ..like_llama(architecture, fields, &defaults)?
    })
}

/// Files state a `sliding_window` whether or not `use_sliding_window` turns it on.
pub(super) fn sliding_window(fields: &Fields) -> Result<Option<SlidingWindow>, CheckpointError> {
    let tokens = fields.sliding_window()?;
    let first = fields.count_or("max_window_layers", 28)?;
    let on = fields.flag("use_sliding_window", false)?;
    fields.windows(tokens.filter(|_| on), SlidingLayers::From(first))
}
