//! The configuration of a model: `config.json` of a Hugging Face directory.

use std::path::Path;

use serde_json::Value;

use super::architecture::{self, Architecture};
use super::forward::{Linear, Role};
use super::{CheckpointError, sparse_bitmask};
use crate::files::parse_json;

/// The shapes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture: names of tensors and linears.
    pub architecture: &'static Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the embedding and of lm_head's input. Where it differs from `hidden_size`, projections convert between the two.
    pub embedding_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` consecutive query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// How positions are encoded.
    pub positions: Positions,
    /// Which layers attend to a window of the last tokens only.
    pub sliding_window: Option<SlidingWindow>,
    /// The nonlinearity of the MLP.
    pub activation: Activation,
    /// The kind of the norms.
    pub norm: NormKind,
    /// Where the norms are applied.
    pub norm_place: NormPlace,
    /// Whether there is a norm before lm_head.
    pub final_norm: bool,
    /// The linears that have a bias.
    pub biased: Vec<Role>,
    /// Whether lm_head is the embedding.
    pub tie_word_embeddings: bool,
}

/// How positions are encoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Rotary embedding: queries and keys are rotated by angles proportional to the position.
    Rotary {
        /// Base of the frequencies.
        theta: f64,
        /// LLaMA-3's scaling of the low frequencies.
        scaling: Option<Llama3Scaling>,
    },
    /// A learned vector for each position is added to the embedding.
    Learned {
        /// Rows of the table before the row of position 0.
        offset: usize,
    },
}

/// `rope_scaling` of type `llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// The factor by which low frequencies are divided.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided by the full factor.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` stay unchanged.
    pub high_freq_factor: f64,
    /// Context length before the scaling.
    pub original_max_position_embeddings: f64,
}

/// Sliding-window attention.
#[derive(Clone, Debug, PartialEq)]
pub struct SlidingWindow {
    /// Tokens that a token attends to, itself included.
    pub tokens: usize,
    /// The layers that have the window.
    pub layers: SlidingLayers,
}

/// The layers with a sliding window. (No list is allocated: the number of layers is unchecked input.)
#[derive(Clone, Debug, PartialEq)]
pub enum SlidingLayers {
    /// This layer and all after it.
    From(usize),
    /// One entry per layer.
    Listed(Vec<bool>),
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + exp(-x))
    Silu,
    /// max(x, 0)
    Relu,
}

/// What a norm computes of a token x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// x / sqrt(mean(x^2) + eps) * weight
    Rms {
        /// Epsilon.
        eps: f64,
    },
    /// (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, with the variance divided by the width.
    Layer {
        /// Epsilon.
        eps: f64,
    },
}

/// Where the norms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// Before attention and before the MLP; the residual stream itself is never normalised.
    Before,
    /// After attention and after the MLP, on the residual stream.
    Behind,
}

/// Upper limit of every size in a config. No published model comes near it; a larger value means a damaged file and is
/// refused before memory is allocated.
const LARGEST: u64 = 1 << 24;

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError`]: the file is missing or not JSON, a value is missing or out of range, the architecture is unknown.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(|error| CheckpointError::Unusable {
            path: path.into(),
            detail: format!("cannot be read ({error}); expected a Hugging Face model directory"),
        })?;
        let malformed = |detail: String| CheckpointError::Malformed { path: path.into(), detail };
        let json = parse_json(&text).map_err(|error| malformed(format!("not JSON: {error}")))?;
        if !json.is_object() {
            return Err(malformed("not a JSON object".into()));
        }
        let fields = Fields { path, json: &json };
        let architecture = fields.architecture()?;
        (architecture.read)(architecture, &fields)
    }

    /// Width of all query heads together: rows of q_proj, columns of o_proj.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The linears of a decoder layer, in the order of the forward pass.
    pub fn linears(&self) -> &'static [Linear] {
        self.architecture.linears
    }

    /// Tokens that a token attends to in this layer, itself included; `None` for all tokens before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let SlidingWindow { tokens, layers } = self.sliding_window.as_ref()?;
        let slides = match layers {
            SlidingLayers::From(first) => layer >= *first,
            SlidingLayers::Listed(each) => each[layer],
        };
        slides.then_some(*tokens)
    }
}

/// The values of a `config.json`, each checked as it is read.
///
/// They are read as the configuration classes of transformers 5 read them: a missing field has the class's default; null
/// is refused, except in fields whose class accepts null as "none" (`nullable`).
pub(super) struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

/// Defaults of the configuration class.
pub(super) struct AttentionDefaults {
    /// Default of `num_key_value_heads`; without one it equals the number of query heads.
    pub key_value_heads: Option<usize>,
    /// Default of `head_dim`; without one it is `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`.
    pub context: usize,
}

impl Fields<'_> {
    pub fn malformed(&self, detail: String) -> CheckpointError {
        CheckpointError::Malformed { path: self.path.into(), detail }
    }

    pub fn unsupported(&self, detail: String) -> CheckpointError {
        CheckpointError::Unsupported { path: self.path.into(), detail }
    }

    /// A value that is present and not null: for fields whose class accepts null as "none".
    pub fn nullable(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// A whole number of at least 1.
    pub fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        match self.json.get(key) {
            None => Err(self.malformed(format!(
                "`{key}` is missing, which a model of `model_type` {} must give",
                self.json["model_type"]
            ))),
            Some(value) => self.count_of(key, value, 1),
        }
    }

    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        self.json.get(key).map_or(Ok(default), |value| self.count_of(key, value, 1))
    }

    pub fn nullable_size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        self.nullable(key).map(|value| self.count_of(key, value, 1)).transpose()
    }

    /// A whole number of at least 0.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        self.json.get(key).map_or(Ok(default), |value| self.count_of(key, value, 0))
    }

    fn count_of(&self, key: &str, value: &Value, least: u64) -> Result<usize, CheckpointError> {
        match value.as_u64().filter(|size| (least..=LARGEST).contains(size)) {
            Some(size) => Ok(size as usize),
            None => Err(self
                .malformed(format!("`{key}` is {value}, expected a whole number from {least} to {LARGEST}"))),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        match self.json.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.malformed(format!("`{key}` is {value}, expected true or false"))),
        }
    }

    /// The epsilon of a norm.
    pub fn epsilon(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        match self.json.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().filter(|x| *x >= 0.0 && x.is_finite()).ok_or_else(|| {
                self.malformed(format!("`{key}` is {value}, expected a number that is not negative"))
            }),
        }
    }

    fn positive(&self, key: &str, value: &Value) -> Result<f64, CheckpointError> {
        match value.as_f64() {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            _ => Err(self.malformed(format!("`{key}` is {value}, expected a positive number"))),
        }
    }

    /// The row of the table that `model_type` names. (`architectures` is not used: it names the class that was saved,
    /// which can be the model without its head, or an older class.)
    fn architecture(&self) -> Result<&'static Architecture, CheckpointError> {
        let supported = || architecture::SUPPORTED.map(|a| a.model_type).join(", ");
        if let Some(entry) = self.nullable(sparse_bitmask::ENTRY) {
            sparse_bitmask::check_entry(entry).map_err(|detail| self.unsupported(detail))?;
        }
        if self.nullable("per_layer_config").is_some_and(|each| each != &serde_json::json!({})) {
            return Err(self.unsupported(
                "`per_layer_config` gives layers shapes of their own; models whose layers are alike are supported"
                    .into(),
            ));
        }
        let named = self.nullable("model_type").ok_or_else(|| {
            self.malformed(format!(
                "`model_type` is missing, which names the architecture; expected one of {}",
                supported()
            ))
        })?;
        let is_named = |a: &&Architecture| named.as_str() == Some(a.model_type);
        architecture::SUPPORTED.into_iter().find(is_named).ok_or_else(|| {
            self.unsupported(format!("`model_type` {named} is not supported; supported: {}", supported()))
        })
    }

    /// The nonlinearity that `key` names.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation, CheckpointError> {
        match self.json.get(key) {
            None => Ok(default),
            Some(name) => match name.as_str() {
                Some("silu" | "swish") => Ok(Activation::Silu),
                Some("relu") => Ok(Activation::Relu),
                _ => Err(self.unsupported(format!(
                    "`{key}` {name} is not supported; supported: \"silu\" (or \"swish\"), \"relu\""
                ))),
            },
        }
    }

    /// Query heads, key-value heads, and the width of a head.
    pub fn heads(
        &self,
        hidden_size: usize,
        defaults: &AttentionDefaults,
    ) -> Result<(usize, usize, usize), CheckpointError> {
        let heads = self.size("num_attention_heads")?;
        let key_value_heads = match (self.json.get("num_key_value_heads"), defaults.key_value_heads) {
            (None, Some(default)) => default,
            _ => self.nullable_size("num_key_value_heads")?.unwrap_or(heads),
        };
        if !heads.is_multiple_of(key_value_heads) {
            return Err(self.malformed(format!(
                "`num_attention_heads` {heads} is no multiple of `num_key_value_heads` {key_value_heads}{}",
                match self.json.get("num_key_value_heads") {
                    None => format!(", the default of `model_type` {}", self.json["model_type"]),
                    Some(_) => String::new(),
                }
            )));
        }
        let head_dim = match defaults.head_dim {
            Some(default) => self.size_or("head_dim", default)?,
            None => match self.nullable_size("head_dim")? {
                Some(given) => given,
                None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
                None => {
                    return Err(self.malformed(format!(
                        "`hidden_size` {hidden_size} is no multiple of `num_attention_heads` {heads}, and `head_dim` is not given"
                    )));
                }
            },
        };
        if !head_dim.is_multiple_of(2) {
            return Err(
                self.malformed(format!(
                    "`head_dim` {head_dim} (where it is not given, `hidden_size` / `num_attention_heads`) is odd: rotary embeddings need pairs"
                ))
            );
        }
        Ok((heads, key_value_heads, head_dim))
    }

    /// `sliding_window`: null means none; a missing field has the class's default.
    pub fn sliding_window(&self) -> Result<Option<usize>, CheckpointError> {
        match self.json.get("sliding_window") {
            None => Ok(Some(4096)),
            Some(_) => self.nullable_size("sliding_window"),
        }
    }

    /// A window of `tokens` in the layers that `layer_types` lists, or in `unlisted` if there is no list.
    pub fn windows(
        &self,
        tokens: Option<usize>,
        unlisted: SlidingLayers,
    ) -> Result<Option<SlidingWindow>, CheckpointError> {
        let listed = self.layer_types()?;
        match tokens {
            Some(tokens) => {
                let layers = listed.map_or(unlisted, SlidingLayers::Listed);
                Ok(Some(SlidingWindow { tokens, layers }))
            }
            None if listed.is_some_and(|slides| slides.contains(&true)) => Err(self.malformed(
                "`layer_types` has \"sliding_attention\", but there is no window (`sliding_window`, `use_sliding_window`)"
                    .into(),
            )),
            None => Ok(None),
        }
    }

    /// `layer_types`, which newer files have: whether each layer has a window.
    fn layer_types(&self) -> Result<Option<Vec<bool>>, CheckpointError> {
        let Some(value) = self.nullable("layer_types") else { return Ok(None) };
        let layers = self.size("num_hidden_layers")?;
        let wrong = || {
            self.malformed(format!(
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

    /// Rotary embeddings. `rope_scaling` (transformers 4), unless it is empty, overrides `rope_parameters` (5); a `rope_theta`
    /// inside overrides the one at the top level.
    pub fn rotary(&self, context: usize) -> Result<Positions, CheckpointError> {
        let none = serde_json::Map::new();
        let object = |key: &'static str| match self.nullable(key) {
            None => Ok(None),
            Some(Value::Object(rope)) => Ok(Some((key, rope)).filter(|(_, rope)| !rope.is_empty())),
            Some(other) => Err(self.malformed(format!("`{key}` is {other}, expected an object"))),
        };
        let (scaling, parameters) = (object("rope_scaling")?, object("rope_parameters")?);
        let (key, rope) = scaling.or(parameters).unwrap_or(("rope_parameters", &none));
        let theta = match (rope.get("rope_theta"), self.json.get("rope_theta")) {
            (Some(theta), _) => self.positive(&format!("{key}.rope_theta"), theta)?,
            (None, Some(theta)) => self.positive("rope_theta", theta)?,
            (None, None) => 10_000.0,
        };
        for (name, part) in [
            (format!("{key}.partial_rotary_factor"), rope.get("partial_rotary_factor")),
            ("partial_rotary_factor".into(), self.nullable("partial_rotary_factor")),
        ] {
            if let Some(part) = part.filter(|part| part.as_f64() != Some(1.0)) {
                return Err(self.unsupported(format!(
                    "`{name}` is {part}; heads whose every entry is turned are supported (1.0, or no such field)"
                )));
            }
        }
        let scaling = self.scaling(key, rope, context)?;
        Ok(Positions::Rotary { theta, scaling })
    }

    fn scaling(
        &self,
        key: &str,
        rope: &serde_json::Map<String, Value>,
        context: usize,
    ) -> Result<Option<Llama3Scaling>, CheckpointError> {
        if let Some((layers, _)) = rope.iter().find(|(_, value)| value.is_object()) {
            return Err(self.unsupported(format!(
                "`{key}.{layers}`: rotary embeddings that differ from layer to layer are not supported"
            )));
        }
        match rope.get("rope_type").or_else(|| rope.get("type")) {
            None => return Ok(None),
            Some(kind) => match kind.as_str() {
                Some("default") => return Ok(None),
                Some("llama3") => {}
                _ => {
                    return Err(self.unsupported(format!(
                        "`{key}.rope_type` {kind} is not supported; supported: \"llama3\", \"default\""
                    )));
                }
            },
        }
        let number = |name: &str, value: Option<&Value>| {
            let name = format!("{key}.{name}");
            let value = value.ok_or_else(|| self.malformed(format!("`{name}` is missing")))?;
            self.positive(&name, value)
        };
        let need = |name: &str| number(name, rope.get(name));
        // Beside the rest, it counts before the one that is there; in neither place, it is the context.
        let original = match self.json.get("original_max_position_embeddings") {
            Some(original) => self.positive("original_max_position_embeddings", original)?,
            None if !rope.contains_key("original_max_position_embeddings") => context as f64,
            None => need("original_max_position_embeddings")?,
        };
        let scaling = Llama3Scaling {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_position_embeddings: original,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            return Err(self.malformed(format!("`{key}.high_freq_factor` must exceed `low_freq_factor`")));
        }
        Ok(Some(scaling))
    }
}
