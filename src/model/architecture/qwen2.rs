//! Qwen2: LLaMA with biases on queries, keys and values, and on request a sliding window in the upper layers.

use super::llama::like_llama;
use super::{Architecture, GATED};
use crate::model::config::{Fields, SlidingLayers, SlidingWindow};
use crate::model::forward::Role;
use crate::model::{CheckpointError, ModelConfig};

/// Qwen2 and Qwen2.5.
pub static QWEN2: Architecture = Architecture {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    prefixes: &["model."],
    linears: &GATED,
    attention_norm: "input_layernorm",
    mlp_norm: "post_attention_layernorm",
    final_norm: "norm",
    read,
};

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let config = like_llama(architecture, fields, 32_768)?;
    Ok(ModelConfig {
        biased: vec![Role::Q, Role::K, Role::V],
        sliding_window: sliding_window(fields, config.num_hidden_layers)?,
        ..config
    })
}

/// Files state a `sliding_window` whether or not `use_sliding_window` turns it on.
fn sliding_window(fields: &Fields, layers: usize) -> Result<Option<SlidingWindow>, CheckpointError> {
    let tokens = fields.sliding_window()?;
    let first = fields.optional_count("max_window_layers", 0)?.unwrap_or(28);
    let listed = layer_types(fields, layers)?;
    let on = fields.flag("use_sliding_window", false)?;
    match tokens.filter(|_| on) {
        Some(tokens) => {
            let layers = listed.map_or(SlidingLayers::From(first), SlidingLayers::Listed);
            Ok(Some(SlidingWindow { tokens, layers }))
        }
        None if listed.is_some_and(|slides| slides.contains(&true)) => Err(fields.malformed(
            "`layer_types` has \"sliding_attention\", which needs `sliding_window` and `use_sliding_window`"
                .into(),
        )),
        None => Ok(None),
    }
}

/// Newer files list the layers, which then counts: whether each has a window.
fn layer_types(fields: &Fields, layers: usize) -> Result<Option<Vec<bool>>, CheckpointError> {
    let Some(value) = fields.get("layer_types") else { return Ok(None) };
    let wrong = || {
        fields.malformed(format!(
            "`layer_types` must list \"full_attention\" or \"sliding_attention\" for each of the {layers} layers"
        ))
    };
    let listed = value.as_array().filter(|listed| listed.len() == layers).ok_or_else(wrong)?;
    let slides = listed.iter().map(|kind| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        _ => Err(wrong()),
    });
    slides.collect::<Result<_, _>>().map(Some)
}
