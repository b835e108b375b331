//! The architectures that are supported: one file each, which describes it, and a row of [`SUPPORTED`].
//!
//! They are decoders of one kind: attention, then an MLP, each added to a residual stream. Their differences are data,
//! so that the forward pass ([`forward`](super::forward)) is written once: the names of tensors are here, everything else is
//! in [`ModelConfig`], which an architecture's `read` fills from `config.json`.

pub mod llama;
pub mod mistral;
pub mod opt;
pub mod qwen2;
pub mod qwen3;

use super::config::Fields;
use super::forward::{Group, Linear, Role};
use super::{CheckpointError, ModelConfig};

// ANCHOR: supported
/// Every architecture.
pub static SUPPORTED: [&Architecture; 5] =
    [&llama::LLAMA, &mistral::MISTRAL, &qwen2::QWEN2, &qwen3::QWEN3, &opt::OPT];
// ANCHOR_END: supported

// ANCHOR: architecture
/// How an architecture names itself and its tensors, and how its `config.json` is read.
pub struct Architecture {
    /// Its name in `architectures` of `config.json`.
    pub class: &'static str,
    /// Its `model_type` in `config.json`, by which it is recognised.
    pub model_type: &'static str,
    /// Possible prefixes of the decoder's tensor names, the usual one first. (Some checkpoints were saved from the model
    /// without its head.) Each tensor may have another prefix.
    pub prefixes: &'static [&'static str],
    /// The linears of a decoder layer, in the order of the forward pass.
    pub linears: &'static [Linear],
    /// The name of the attention block's norm within a layer.
    pub attention_norm: &'static str,
    /// The name of the MLP's norm within a layer.
    pub mlp_norm: &'static str,
    /// The names of the norms of queries and keys within a layer, which act on each head separately; if there are any.
    pub query_key_norms: Option<[&'static str; 2]>,
    /// The name of the norm before lm_head.
    pub final_norm: &'static str,
    pub(super) read: fn(&'static Architecture, &Fields) -> Result<ModelConfig, CheckpointError>,
}
// ANCHOR_END: architecture

// ANCHOR: gated
/// The seven linears of LLaMA and its descendants.
const GATED: [Linear; 7] = Linear::table([
    (Role::Q, "self_attn.q_proj"),
    (Role::K, "self_attn.k_proj"),
    (Role::V, "self_attn.v_proj"),
    (Role::O, "self_attn.o_proj"),
    (Role::Gate, "mlp.gate_proj"),
    (Role::Up, "mlp.up_proj"),
    (Role::Down, "mlp.down_proj"),
]);
// ANCHOR_END: gated

impl Architecture {
    /// The linears of a group.
    pub fn group(&'static self, group: Group) -> &'static [Linear] {
        let mut groups = self.linears.chunk_by(|a, b| a.group() == b.group());
        groups
            .find(|linears| linears[0].group() == group)
            .expect("an architecture has linears of every group")
    }
}

/// The name of a layer's tensor, without the decoder's prefix: `module` is a module of the layer, such as
/// `self_attn.q_proj`, and `part` is `weight` or `bias`.
pub fn layer_tensor(layer: usize, module: &str, part: &str) -> String {
    format!("layers.{layer}.{module}.{part}")
}

/// The index, within its layer, of the linear whose weight has this name in any architecture.
pub fn index_of_weight(name: &str) -> Option<usize> {
    let module = name.strip_suffix(".weight")?;
    let mut linears = SUPPORTED.into_iter().flat_map(|architecture| architecture.linears);
    linears.find(|linear| module.ends_with(&format!(".{}", linear.module))).map(|linear| linear.index)
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.class == other.class
    }
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_all_groups_once_and_in_order() {
        for architecture in SUPPORTED {
            let groups: Vec<&[Linear]> =
                Group::ALL.into_iter().map(|group| architecture.group(group)).collect();
            assert_eq!(groups.concat(), architecture.linears, "{architecture:?}");
            let numbers = architecture.linears.iter().map(|linear| linear.index);
            assert!(numbers.eq(0..architecture.linears.len()), "{architecture:?}");
        }
    }

    #[test]
    fn a_weight_is_found_by_the_end_of_its_name() {
        for (name, index) in [
            ("model.layers.3.self_attn.q_proj.weight", Some(0)),
            ("model.layers.3.mlp.down_proj.weight", Some(6)),
            ("decoder.layers.11.self_attn.out_proj.weight", Some(3)),
            ("model.decoder.layers.11.fc2.weight", Some(5)),
            ("model.decoder.layers.11.fc2.bias", None),
            ("model.decoder.layers.11.final_layer_norm.weight", None),
            ("output.weight", None),
        ] {
            assert_eq!(index_of_weight(name), index, "{name}");
        }
    }
}
