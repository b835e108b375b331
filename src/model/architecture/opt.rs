//! OPT: learned positions, LayerNorm, a plain MLP with ReLU, biases everywhere. OPT-350M is a kind of its own: its norms
//! stand behind the blocks, and its embedding is narrower than the residual stream.

use super::Architecture;
use crate::model::config::{Activation, Fields, NormKind, NormPlace, Positions};
use crate::model::forward::{Linear, Role};
use crate::model::{CheckpointError, ModelConfig};

/// OPT.
pub static OPT: Architecture = Architecture {
    class: "OPTForCausalLM",
    model_type: "opt",
    // Some published checkpoints were saved from the model without its head.
    prefixes: &["model.decoder.", "decoder."],
    linears: &Linear::table([
        (Role::Q, "self_attn.q_proj"),
        (Role::K, "self_attn.k_proj"),
        (Role::V, "self_attn.v_proj"),
        (Role::O, "self_attn.out_proj"),
        (Role::Up, "fc1"),
        (Role::Down, "fc2"),
    ]),
    attention_norm: "self_attn_layer_norm",
    mlp_norm: "final_layer_norm", // of a layer; the decoder has one of the same name
    query_key_norms: None,
    final_norm: "final_layer_norm",
    read,
};

fn read(architecture: &'static Architecture, fields: &Fields) -> Result<ModelConfig, CheckpointError> {
    let hidden_size = fields.size("hidden_size")?;
    let num_attention_heads = fields.size("num_attention_heads")?;
    if !hidden_size.is_multiple_of(num_attention_heads) {
        return Err(fields.malformed(format!(
            "`hidden_size` {hidden_size} is no multiple of `num_attention_heads` {num_attention_heads}"
        )));
    }
    if !fields.flag("layer_norm_elementwise_affine", true)? {
        return Err(fields.unsupported(
            "`layer_norm_elementwise_affine` is false; OPT whose norms have weight and bias is supported"
                .into(),
        ));
    }
    let norm_before = fields.flag("do_layer_norm_before", true)?;
    let every = architecture.linears.iter().map(|linear| linear.role);
    Ok(ModelConfig {
        architecture,
        hidden_size,
        embedding_size: fields.nullable_size("word_embed_proj_dim")?.unwrap_or(hidden_size),
        intermediate_size: fields.size("ffn_dim")?,
        num_hidden_layers: fields.size("num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: num_attention_heads,
        head_dim: hidden_size / num_attention_heads,
        vocab_size: fields.size("vocab_size")?,
        max_position_embeddings: fields.size_or("max_position_embeddings", 2048)?,
        // The first two rows of the table are for padding.
        positions: Positions::Learned { offset: 2 },
        sliding_window: None,
        activation: fields.activation("activation_function", Activation::Relu)?,
        norm: NormKind::Layer { eps: 1e-5 },
        norm_place: if norm_before { NormPlace::Before } else { NormPlace::Behind },
        final_norm: norm_before && !fields.flag("_remove_final_layer_norm", false)?,
        biased: if fields.flag("enable_bias", true)? { every.collect() } else { Vec::new() },
        tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
    })
}
