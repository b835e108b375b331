//! What `config.json` of a Hugging Face directory says of a model.

use std::path::Path;

use serde_json::Value;

use super::architecture::{self, Architecture};
use super::forward::{Linear, Role};
use super::{CheckpointError, sparse_bitmask};
use crate::files::parse_json;

/// The shapes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The names of its parts.
    pub architecture: &'static Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the embedding and of lm_head's input; where it is not `hidden_size`, a projection stands between.
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
    /// How a token knows where it stands.
    pub positions: Positions,
    /// Which layers see only the last few tokens.
    pub sliding_window: Option<SlidingWindow>,
    /// Between the MLP's linears.
    pub activation: Activation,
    /// What the norms compute.
    pub norm: NormKind,
    /// Where they stand.
    pub norm_place: NormPlace,
    /// Whether one stands before lm_head.
    pub final_norm: bool,
    /// The linears with a bias.
    pub biased: Vec<Role>,
    /// Whether the embedding serves as lm_head.
    pub tie_word_embeddings: bool,
}

/// How a token knows where it stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Queries and keys are turned by angles that grow with the position.
    Rotary {
        /// Base of the frequencies.
        theta: f64,
        /// LLaMA-3's stretching of the low frequencies.
        scaling: Option<Llama3Scaling>,
    },
    /// A learned vector for each position is added to the embedding.
    Learned {
        /// Rows of the table before that of position 0.
        offset: usize,
    },
}

/// `rope_scaling` of type `llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// By how much low frequencies are slowed down.
    pub factor: f64,
    /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are slowed down fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_position_embeddings / high_freq_factor` stay.
    pub high_freq_factor: f64,
    /// Context length before the stretching.
    pub original_max_position_embeddings: f64,
}

/// Attention to the last tokens only.
#[derive(Clone, Debug, PartialEq)]
pub struct SlidingWindow {
    /// How many a token sees, itself included.
    pub tokens: usize,
    /// In which layers.
    pub layers: SlidingLayers,
}

/// The layers with a sliding window. (The number of layers is a claim of the file, so no list is made from it.)
#[derive(Clone, Debug, PartialEq)]
pub enum SlidingLayers {
    /// This one and all above it.
    From(usize),
    /// Each as it is listed.
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
    /// (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias, the variance being a mean too.
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
    /// Behind them, on the residual stream.
    Behind,
}

/// No published model comes near; a larger value is a damaged file, refused before memory is allocated for it.
const LARGEST: u64 = 1 << 24;

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError`]: not there, not JSON, a value missing or out of range, an unknown architecture.
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

    /// How many tokens one of this layer sees, itself included; `None` where it sees all before it.
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
pub(super) struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    pub fn malformed(&self, detail: String) -> CheckpointError {
        CheckpointError::Malformed { path: self.path.into(), detail }
    }

    pub fn unsupported(&self, detail: String) -> CheckpointError {
        CheckpointError::Unsupported { path: self.path.into(), detail }
    }

    /// A value, where it is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.optional_size(key)?.ok_or_else(|| self.malformed(format!("`{key}` is missing")))
    }

    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        self.optional_count(key, 1)
    }

    /// A whole number from `least` up.
    pub fn optional_count(&self, key: &str, least: u64) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().filter(|size| (least..=LARGEST).contains(size)) {
            Some(size) => Ok(Some(size as usize)),
            None => Err(self
                .malformed(format!("`{key}` is {value}, expected a whole number from {least} to {LARGEST}"))),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.malformed(format!("`{key}` is {value}, expected true or false"))),
        }
    }

    pub fn positive(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        self.positive_of(self.json, key)
    }

    fn positive_of(&self, of: &Value, key: &str) -> Result<Option<f64>, CheckpointError> {
        match of.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
                _ => Err(self.malformed(format!("`{key}` is {value}, expected a positive number"))),
            },
        }
    }

    /// The row of the table that the file names.
    fn architecture(&self) -> Result<&'static Architecture, CheckpointError> {
        let named = self.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        let of_type = self.get("model_type").and_then(Value::as_str);
        let found = |is: &dyn Fn(&Architecture) -> bool| architecture::SUPPORTED.into_iter().find(|a| is(a));
        let (name, found) = match (named, of_type) {
            (Some(class), _) => (class, found(&|a| a.class == class)),
            (None, Some(model_type)) => (model_type, found(&|a| a.model_type == model_type)),
            (None, None) => {
                return Err(self.malformed("names no architecture (`architectures` or `model_type`)".into()));
            }
        };
        if let Some(entry) = self.get(sparse_bitmask::ENTRY) {
            sparse_bitmask::check_entry(entry).map_err(|detail| self.unsupported(detail))?;
        }
        found.ok_or_else(|| {
            let supported = architecture::SUPPORTED.map(|a| a.class).join(", ");
            self.unsupported(format!("architecture `{name}` is not supported; supported: {supported}"))
        })
    }

    /// The nonlinearity that `key` names.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation, CheckpointError> {
        match self.get(key) {
            None => Ok(default),
            Some(name) => match name.as_str() {
                Some("silu") => Ok(Activation::Silu),
                Some("relu") => Ok(Activation::Relu),
                _ => Err(self
                    .unsupported(format!("`{key}` {name} is not supported; supported: \"silu\", \"relu\""))),
            },
        }
    }

    /// The width of a head that is not given by itself.
    pub fn head_dim(&self, hidden_size: usize, heads: usize) -> Result<usize, CheckpointError> {
        match hidden_size.is_multiple_of(heads) {
            true => Ok(hidden_size / heads),
            false => Err(self.malformed(format!(
                "`hidden_size` {hidden_size} is no multiple of `num_attention_heads` {heads}, and `head_dim` is not given"
            ))),
        }
    }

    /// `sliding_window`: null is none, but a file that does not speak of it has transformers' default.
    pub fn sliding_window(&self) -> Result<Option<usize>, CheckpointError> {
        match self.json.get("sliding_window") {
            None => Ok(Some(4096)),
            Some(_) => self.optional_size("sliding_window"),
        }
    }

    /// Rotary embeddings, as `rope_theta` and `rope_scaling` or `rope_parameters` describe them.
    pub fn rotary(&self) -> Result<Positions, CheckpointError> {
        // Newer configurations keep the base beside the scaling.
        let rope = self.get("rope_parameters").or_else(|| self.get("rope_scaling"));
        let theta = match rope.map(|rope| self.positive_of(rope, "rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => self.positive("rope_theta")?.unwrap_or(10_000.0),
        };
        let scaling = rope.map(|rope| self.scaling(rope)).transpose()?.flatten();
        Ok(Positions::Rotary { theta, scaling })
    }

    fn scaling(&self, rope: &Value) -> Result<Option<Llama3Scaling>, CheckpointError> {
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str);
        match kind {
            Some("default") => return Ok(None),
            Some("llama3") => {}
            other => {
                return Err(self.unsupported(format!(
                    "rotary scaling of type {} is not supported; supported: \"llama3\", \"default\"",
                    other.map_or("unknown".into(), |kind| format!("\"{kind}\""))
                )));
            }
        }
        let need = |key: &str| {
            self.positive_of(rope, key)?
                .ok_or_else(|| self.malformed(format!("`rope_scaling.{key}` is missing")))
        };
        let scaling = Llama3Scaling {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_position_embeddings: need("original_max_position_embeddings")?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            return Err(
                self.malformed("`rope_scaling.high_freq_factor` must exceed `low_freq_factor`".into())
            );
        }
        Ok(Some(scaling))
    }
}
