//! `config.json` of a Hugging Face LLaMA.

use std::path::Path;

use serde_json::Value;

use super::{CheckpointError, sparse_bitmask};
use crate::files::parse_json;

/// The shapes and constants of a LLaMA.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
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
    /// Epsilon of the RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// LLaMA-3's stretching of the low rotary frequencies.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Whether the embedding serves as lm_head.
    pub tie_word_embeddings: bool,
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

/// No published LLaMA comes near; a larger value is a damaged file, refused before memory is allocated for it.
const LARGEST: u64 = 1 << 24;

impl LlamaConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`CheckpointError`]: not there, not JSON, a value missing or out of range, another architecture.
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
        Fields { path, json: &json }.llama()
    }

    /// Width of all query heads together: rows of q_proj, columns of o_proj.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

struct Fields<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Fields<'_> {
    fn malformed(&self, detail: String) -> CheckpointError {
        CheckpointError::Malformed { path: self.path.into(), detail }
    }

    fn unsupported(&self, detail: String) -> CheckpointError {
        CheckpointError::Unsupported { path: self.path.into(), detail }
    }

    /// A value, where it is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.optional_size(key)?.ok_or_else(|| self.malformed(format!("`{key}` is missing")))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=LARGEST) => Ok(Some(size as usize)),
            _ => {
                Err(self
                    .malformed(format!("`{key}` is {value}, expected a whole number from 1 to {LARGEST}")))
            }
        }
    }

    fn flag(&self, key: &str) -> Result<bool, CheckpointError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.malformed(format!("`{key}` is {value}, expected true or false"))),
        }
    }

    fn positive(&self, of: &Value, key: &str) -> Result<Option<f64>, CheckpointError> {
        match of.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
                _ => Err(self.malformed(format!("`{key}` is {value}, expected a positive number"))),
            },
        }
    }

    fn llama(&self) -> Result<LlamaConfig, CheckpointError> {
        self.check_architecture()?;
        let hidden_size = self.size("hidden_size")?;
        let num_attention_heads = self.size("num_attention_heads")?;
        let num_key_value_heads = self.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads);
        let head_dim = match self.optional_size("head_dim")? {
            Some(given) => given,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                return Err(self.malformed(format!(
                    "`hidden_size` {hidden_size} is no multiple of `num_attention_heads` {num_attention_heads}, and \
                     `head_dim` is not given"
                )));
            }
        };
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(self.malformed(format!(
                "`num_attention_heads` {num_attention_heads} is no multiple of `num_key_value_heads` {num_key_value_heads}"
            )));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(self.malformed(format!("`head_dim` {head_dim} is odd: rotary embeddings need pairs")));
        }
        // Newer configurations keep the base beside the scaling.
        let rope = self.get("rope_parameters").or_else(|| self.get("rope_scaling"));
        let theta = match rope.map(|rope| self.positive(rope, "rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => self.positive(self.json, "rope_theta")?.unwrap_or(10_000.0),
        };
        Ok(LlamaConfig {
            hidden_size,
            intermediate_size: self.size("intermediate_size")?,
            num_hidden_layers: self.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: self.size("vocab_size")?,
            max_position_embeddings: self.optional_size("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: self.positive(self.json, "rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: theta,
            rope_scaling: rope.map(|rope| self.scaling(rope)).transpose()?.flatten(),
            tie_word_embeddings: self.flag("tie_word_embeddings")?,
        })
    }

    fn check_architecture(&self) -> Result<(), CheckpointError> {
        const SUPPORTED: &str = "LlamaForCausalLM";
        let named = self.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        let of_type = self.get("model_type").and_then(Value::as_str);
        match (named, of_type) {
            (Some(SUPPORTED), _) | (None, Some("llama")) => {}
            (Some(other), _) | (None, Some(other)) => {
                return Err(self.unsupported(format!(
                    "architecture `{other}` is not supported; supported: {SUPPORTED}"
                )));
            }
            (None, None) => {
                return Err(self.malformed("names no architecture (`architectures` or `model_type`)".into()));
            }
        }
        if let Some(act) = self.get("hidden_act").filter(|act| act.as_str() != Some("silu")) {
            return Err(self.unsupported(format!("`hidden_act` {act} is not supported; supported: \"silu\"")));
        }
        for bias in ["attention_bias", "mlp_bias"] {
            if self.flag(bias)? {
                return Err(self.unsupported(format!("`{bias}` is true; LLaMA without biases is supported")));
            }
        }
        if let Some(entry) = self.get(sparse_bitmask::ENTRY) {
            sparse_bitmask::check_entry(entry).map_err(|detail| self.unsupported(detail))?;
        }
        Ok(())
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
            self.positive(rope, key)?
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
