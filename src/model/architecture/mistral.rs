//! Mistral: LLaMA whose tokens attend only to the last `sliding_window` tokens.

use super::Architecture;
use super::llama::{LLAMA, like_llama};
use crate::model::config::{AttentionDefaults, Fields, SlidingLayers};
use crate::model::{CheckpointError, ModelConfig};

// ANCHOR: architecture
/// Mistral.
pub static MISTRAL: Architecture =
    Architecture { class: "MistralForCausalLM", model_type: "mistral", read, ..LLAMA };

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let defaults = AttentionDefaults { key_value_heads: Some(8), head_dim: None, context: 131_072 };
    let sliding_window = fields.windows(fields.sliding_window()?, SlidingLayers::From(0))?;
    Ok(ModelConfig { sliding_window, ..like_llama(architecture, fields, &defaults)? })
}
// ANCHOR_END: architecture
