//! A GGUF file as a Hugging Face directory: names, rows and tokenizer as transformers 4.49 reads them.
//!
//! llama.cpp rotates neighbouring entries of a head, transformers the two halves, so the rows of q and k are reordered for the
//! latter. The file holds the tokenizer's vocabulary, its merges (or scores, which determine the merges) and the kinds of its
//! tokens; the rest of `tokenizer.json` is the same for all files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use ndarray::Array2;
use serde_json::{Value, json};

use super::directory::{check_target, partial_name};
use crate::model::gguf::{GgufFile, GgufTensor, Metadata};
use crate::model::{Checkpoint, CheckpointError};
use crate::progress::Observer;
use crate::tensors::{FloatType, TensorError, TensorWriter, round_for_storage};

/// Writes the model of a GGUF file as the directory `target`, its values in `dtype`.
///
/// # Errors
/// [`CheckpointError`]: the model is not a LLaMA, a field or tensor is missing, `target` exists, a value does not fit `dtype`,
/// or the disk refuses. The unfinished directory is removed.
pub fn import(
    file: &GgufFile,
    target: &Path,
    dtype: FloatType,
    observer: &dyn Observer,
) -> Result<(), CheckpointError> {
    check_target(target)?;
    let model = Model { file };
    let config = model.config(dtype)?;
    let tokenizer = model.tokenizer()?;
    let tensors = model.tensors(&config)?;
    let partial = partial_name(target);
    fs::create_dir(&partial).map_err(|error| CheckpointError::Unusable {
        path: partial.clone(),
        detail: format!("cannot be created ({error}); choose another --output, or remove what is in the way"),
    })?;
    let written = (|| {
        let files = [
            ("config.json", &config),
            ("tokenizer.json", &tokenizer.0),
            ("tokenizer_config.json", &tokenizer.1),
        ];
        for (name, content) in files {
            let path = partial.join(name);
            fs::write(&path, format!("{content:#}\n")).map_err(TensorError::io(&path))?;
        }
        let path = partial.join("model.safetensors");
        let headers =
            tensors.iter().map(|(name, _, tensor)| (name.as_str(), dtype.dtype(), tensor.shape.as_slice()));
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let writer = TensorWriter::create(&path, headers, &metadata)?;
        observer.begin(tensors.len() as u64);
        for (name, heads, tensor) in &tensors {
            let mut values = rows(file, tensor, *heads);
            round_for_storage(&path, name, &mut values, dtype)?;
            writer.write(name, &dtype.encode(values.view()))?;
            observer.advance();
        }
        writer.sync()?;
        Checkpoint::open(&partial)
            .map_err(|error| model.malformed(format!("does not hold a whole model: {error}")))?;
        fs::rename(&partial, target).map_err(TensorError::io(target))?;
        Ok(())
    })();
    if written.is_err() {
        // Nothing half-written is left; a failure here has nobody to go to.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// A tensor's values (rows x columns; a vector is one row). If its rows belong to `heads` heads, the rows at
/// even places of each head come first: they are the first entries of the pairs that are rotated together.
fn rows(file: &GgufFile, tensor: &GgufTensor, heads: Option<usize>) -> Array2<f32> {
    let columns = tensor.shape.last().copied().unwrap_or(0);
    let values = file.values(tensor);
    let rows = values.len().checked_div(columns).unwrap_or(0);
    let matrix = Array2::from_shape_vec((rows, columns), values).expect("as many values as the shape has");
    let Some(heads) = heads else { return matrix };
    let width = rows / heads;
    let source = |row: usize| {
        let (head, place) = (row / width, row % width);
        let (half, pair) = (place / (width / 2), place % (width / 2));
        head * width + 2 * pair + half
    };
    let order: Vec<usize> = (0..rows).map(source).collect();
    matrix.select(ndarray::Axis(0), &order)
}

/// The name in a Hugging Face checkpoint, the heads whose rows are reordered, and the tensor.
type Named<'a> = (String, Option<usize>, &'a GgufTensor);

struct Model<'a> {
    file: &'a GgufFile,
}

impl<'a> Model<'a> {
    fn malformed(&self, detail: String) -> CheckpointError {
        CheckpointError::Malformed { path: self.file.path.clone(), detail }
    }

    fn unsupported(&self, detail: String) -> CheckpointError {
        CheckpointError::Unsupported { path: self.file.path.clone(), detail }
    }

    fn get(&self, key: &str) -> Option<&'a Metadata> {
        self.file.metadata.get(key)
    }

    fn wrong(&self, key: &str, expected: &str) -> CheckpointError {
        match self.get(key) {
            None => self.malformed(format!("`{key}` is missing; expected {expected}")),
            Some(_) => self.malformed(format!("`{key}` is no {expected}")),
        }
    }

    fn count(&self, key: &str) -> Result<usize, CheckpointError> {
        match self.get(key) {
            Some(Metadata::Integer(count @ 1..=0xff_ffff)) => Ok(*count as usize),
            _ => Err(self.wrong(key, "whole number from 1 to 16777215")),
        }
    }

    fn count_or(&self, key: &str, default: usize) -> Result<usize, CheckpointError> {
        if self.get(key).is_some() { self.count(key) } else { Ok(default) }
    }

    fn float_or(&self, key: &str, default: f64) -> Result<f64, CheckpointError> {
        match self.get(key) {
            None => Ok(default),
            Some(Metadata::Float(x)) if x.is_finite() => Ok(*x),
            Some(_) => Err(self.wrong(key, "number")),
        }
    }

    fn text(&self, key: &str) -> Result<&'a str, CheckpointError> {
        match self.get(key) {
            Some(Metadata::Text(text)) => Ok(text),
            _ => Err(self.wrong(key, "text")),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>, CheckpointError> {
        let Some(Metadata::Array(values)) = self.get(key) else {
            return Err(self.wrong(key, "list of texts"));
        };
        let text = |value: &'a Metadata| match value {
            Metadata::Text(text) => Ok(text.as_str()),
            _ => Err(self.wrong(key, "list of texts")),
        };
        values.iter().map(text).collect()
    }

    /// A token's number.
    fn token(&self, name: &str) -> Option<i128> {
        match self.get(&format!("tokenizer.ggml.{name}_token_id")) {
            Some(Metadata::Integer(token)) => Some(*token),
            _ => None,
        }
    }

    fn config(&self, dtype: FloatType) -> Result<Value, CheckpointError> {
        let architecture = self.text("general.architecture")?;
        if architecture != "llama" {
            return Err(self
                .unsupported(format!("`general.architecture` is \"{architecture}\"; supported: \"llama\"")));
        }
        if let Some(kind) =
            self.get("llama.rope.scaling.type").filter(|kind| **kind != Metadata::Text("none".into()))
        {
            return Err(self.unsupported(format!(
                "`llama.rope.scaling.type` is {kind:?}; rotary scaling is not read from GGUF"
            )));
        }
        if self.count_or("llama.expert_count", 0).is_ok_and(|experts| experts > 0) {
            return Err(self.unsupported("`llama.expert_count`: models of experts are not supported".into()));
        }
        let (hidden, heads) =
            (self.count("llama.embedding_length")?, self.count("llama.attention.head_count")?);
        let head_dim = self.count_or("llama.rope.dimension_count", hidden / heads)?;
        if self.count_or("llama.attention.key_length", head_dim)? != head_dim {
            return Err(self.unsupported(
                "`llama.attention.key_length` is not `llama.rope.dimension_count`: heads whose every entry is turned are supported"
                    .into(),
            ));
        }
        let vocabulary = match self.get("llama.vocab_size") {
            Some(_) => self.count("llama.vocab_size")?,
            None => self.texts("tokenizer.ggml.tokens")?.len(),
        };
        Ok(json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": self.count("llama.feed_forward_length")?,
            "num_hidden_layers": self.count("llama.block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count_or("llama.attention.head_count_kv", heads)?,
            "head_dim": head_dim,
            "vocab_size": vocabulary,
            "max_position_embeddings": self.count_or("llama.context_length", 2048)?,
            "rms_norm_eps": self.float_or("llama.attention.layer_norm_rms_epsilon", 1e-6)?,
            "rope_theta": self.float_or("llama.rope.freq_base", 10_000.0)?,
            "tie_word_embeddings": !self.file.tensors.contains_key("output.weight"),
            "bos_token_id": self.token("bos").map(|token| token as i64),
            "eos_token_id": self.token("eos").map(|token| token as i64),
            "pad_token_id": self.token("padding").map(|token| token as i64),
            "hidden_act": "silu",
            "torch_dtype": dtype.torch_name(),
        }))
    }

    /// The tensors under their Hugging Face names, sorted by their GGUF names.
    fn tensors(&self, config: &Value) -> Result<Vec<Named<'a>>, CheckpointError> {
        let size = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
        let (heads, key_value_heads) = (size("num_attention_heads"), size("num_key_value_heads"));
        let named = self.file.tensors.iter().map(|(name, tensor)| {
            let (found, of_heads) = renamed(name, heads, key_value_heads).ok_or_else(|| {
                self.unsupported(format!("tensor `{name}` has no place in a LLaMA as it is supported here"))
            })?;
            let dimensions = if name.ends_with("norm.weight") { 1 } else { 2 };
            if tensor.shape.len() != dimensions {
                return Err(self.malformed(format!(
                    "tensor `{name}` has shape {:?}, expected {dimensions} dimensions",
                    tensor.shape
                )));
            }
            if of_heads.is_some_and(|heads| !tensor.shape[0].is_multiple_of(2 * heads)) {
                return Err(self.malformed(format!(
                    "tensor `{name}` has {} rows, which {} heads of even width cannot have",
                    tensor.shape[0],
                    of_heads.unwrap_or(0)
                )));
            }
            Ok((found, of_heads, tensor))
        });
        named.collect()
    }

    /// tokenizer.json and tokenizer_config.json.
    fn tokenizer(&self) -> Result<(Value, Value), CheckpointError> {
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let kind = self.text("tokenizer.ggml.model")?;
        let byte_level = match kind {
            "gpt2" => true,
            "llama" => false,
            _ => {
                return Err(self.unsupported(format!(
                    "`tokenizer.ggml.model` is \"{kind}\"; supported: \"gpt2\", \"llama\""
                )));
            }
        };
        let merges = match self.get("tokenizer.ggml.merges") {
            Some(_) => {
                let pair = |merge: &&str| merge.split_once(' ').map(|(a, b)| json!([a, b]));
                let merges =
                    self.texts("tokenizer.ggml.merges")?.iter().map(pair).collect::<Option<Vec<_>>>();
                merges.ok_or_else(|| {
                    self.malformed("`tokenizer.ggml.merges` has an entry that is no pair".into())
                })?
            }
            None => merges_of_scores(&tokens, &self.scores(tokens.len())?),
        };
        let named = |name: &str| {
            let number = self.token(name)?;
            usize::try_from(number).ok().and_then(|number| tokens.get(number)).copied()
        };
        let special: Vec<usize> = match self.get("tokenizer.ggml.token_type") {
            // 3 is what llama.cpp calls a control token.
            Some(Metadata::Array(kinds)) => {
                let is_special =
                    |(number, kind): (usize, &Metadata)| (*kind == Metadata::Integer(3)).then_some(number);
                kinds.iter().take(tokens.len()).enumerate().filter_map(is_special).collect()
            }
            _ => ["unknown", "bos", "eos"]
                .iter()
                .filter_map(|name| self.token(name))
                .map(|number| number as usize)
                .collect(),
        };
        let added = special.iter().filter(|number| **number < tokens.len()).map(|&number| {
            json!({"id": number, "content": tokens[number], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        });
        let spaces = match self.get("tokenizer.ggml.add_space_prefix") {
            None => true,
            Some(Metadata::Flag(flag)) => *flag,
            Some(_) => return Err(self.wrong("tokenizer.ggml.add_space_prefix", "flag")),
        };
        let byte_level_part =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let mut normalizers = Vec::new();
        if !byte_level {
            if spaces {
                normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
            }
            normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
        }
        let mut decoders = vec![
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        ];
        if byte_level {
            decoders.push(byte_level_part.clone());
        }
        if spaces {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let beginning = named("bos").map(|bos| {
            let (id, one) = (self.token("bos").map(|token| token as i64), |sequence: u8| {
                json!([{"SpecialToken": {"id": bos, "type_id": sequence}}, {"Sequence": {"id": if sequence == 0 { "A" } else { "B" }, "type_id": sequence}}])
            });
            let pair: Vec<Value> = [one(0), one(1)].iter().flat_map(|part| part.as_array().cloned().unwrap_or_default()).collect();
            json!({"type": "TemplateProcessing", "single": one(0), "pair": pair,
                "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}})
        });
        let vocabulary: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(number, token)| (token.to_string(), number.into())).collect();
        let tokenizer = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": if byte_level { byte_level_part } else { Value::Null },
            "post_processor": beginning,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "dropout": null, "unk_token": named("unknown"), "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocabulary, "merges": merges},
        });
        let mut config =
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
        for (key, name) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            if let Some(token) = named(name) {
                config[key] = token.into();
            }
        }
        if let Some(Metadata::Text(template)) = self.get("tokenizer.chat_template") {
            config["chat_template"] = template.as_str().into();
        }
        Ok((tokenizer, config))
    }

    fn scores(&self, count: usize) -> Result<Vec<f64>, CheckpointError> {
        let key = "tokenizer.ggml.scores";
        let expected = format!("list of {count} numbers (there are no `tokenizer.ggml.merges`)");
        let Some(Metadata::Array(values)) = self.get(key) else { return Err(self.wrong(key, &expected)) };
        let number = |value: &Metadata| match value {
            Metadata::Float(score) => Some(*score),
            _ => None,
        };
        let scores = values.iter().map(number).collect::<Option<Vec<_>>>();
        scores.filter(|scores| scores.len() == count).ok_or_else(|| self.wrong(key, &expected))
    }
}

/// The name in a Hugging Face checkpoint, and the heads whose rows are reordered.
fn renamed(name: &str, heads: usize, key_value_heads: usize) -> Option<(String, Option<usize>)> {
    let plain = |name: &str| Some((name.to_string(), None));
    match name {
        "token_embd.weight" => return plain("model.embed_tokens.weight"),
        "output_norm.weight" => return plain("model.norm.weight"),
        "output.weight" => return plain("lm_head.weight"),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let (module, heads) = match part.strip_suffix(".weight")? {
        "attn_norm" => ("input_layernorm", None),
        "attn_q" => ("self_attn.q_proj", Some(heads)),
        "attn_k" => ("self_attn.k_proj", Some(key_value_heads)),
        "attn_v" => ("self_attn.v_proj", None),
        "attn_output" => ("self_attn.o_proj", None),
        "ffn_norm" => ("post_attention_layernorm", None),
        "ffn_gate" => ("mlp.gate_proj", None),
        "ffn_up" => ("mlp.up_proj", None),
        "ffn_down" => ("mlp.down_proj", None),
        _ => return None,
    };
    Some((format!("model.layers.{layer}.{module}.weight"), heads))
}

/// The merges of a vocabulary with scores: every way to make a token of two others; the token with the best score first, and of
/// one token's ways those of the best parts.
fn merges_of_scores(tokens: &[&str], scores: &[f64]) -> Vec<Value> {
    // Of a token that is there twice, the later counts.
    let score: BTreeMap<&str, f64> = tokens.iter().copied().zip(scores.iter().copied()).collect();
    let mut first = BTreeMap::new();
    for (place, token) in tokens.iter().enumerate() {
        first.entry(*token).or_insert(place);
    }
    let mut in_order: Vec<(&str, usize)> = first.into_iter().collect();
    in_order.sort_by_key(|(_, place)| *place);
    let mut merges: Vec<(&str, &str, f64)> = Vec::new();
    for (token, _) in in_order {
        let splits = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut of_token: Vec<(&str, &str)> =
            splits.filter(|(a, b)| score.contains_key(a) && score.contains_key(b)).collect();
        of_token.sort_by(|a, b| {
            let key = |pair: &(&str, &str)| (score[pair.0], score[pair.1]);
            let ((a0, a1), (b0, b1)) = (key(a), key(b));
            b0.total_cmp(&a0).then(b1.total_cmp(&a1))
        });
        merges.extend(of_token.into_iter().map(|(a, b)| (a, b, score[token])));
    }
    merges.sort_by(|a, b| b.2.total_cmp(&a.2));
    merges.into_iter().map(|(a, b, _)| json!([a, b])).collect()
}
