//! Token windows: what is calibrated on, and what is measured on.

use std::path::{Path, PathBuf};

use ndarray::{Array2, Ix2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::model::tokenizer::Tokenizer;
use crate::model::{CheckpointError, ModelConfig};
use crate::tensors::{TensorError, TensorFile};

/// Why there are no windows.
#[derive(Debug, thiserror::Error)]
pub enum WindowsError {
    /// The token file.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] CheckpointError),
    /// The text or token file does not hold what is asked of it.
    #[error("{}: {detail}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it holds, what was expected, and what to do.
        detail: String,
    },
}

/// Sequences of equal length.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Token ids (sequences x length).
    pub tokens: Array2<u32>,
    /// Where they come from, for reports.
    pub source: String,
}

/// How to cut a text.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// `samples` windows at uniformly random starts, from ChaCha8 with this seed.
    Random {
        /// Number of windows.
        samples: usize,
        /// Seed.
        seed: u64,
    },
    /// Side by side from the beginning, the tail dropped; at most `limit` windows.
    Consecutive {
        /// Most windows to take.
        limit: Option<usize>,
    },
}

impl Windows {
    /// Reads a text (or JSON documents with a field `text`, one a line or in an array, joined by blank lines), encodes it once with the
    /// tokenizer's special tokens, and cuts it into windows of `length` tokens.
    ///
    /// # Errors
    /// [`WindowsError`]: unreadable, empty, not UTF-8, too short, malformed JSONL, tokens outside the vocabulary.
    pub fn from_text(
        path: &Path,
        tokenizer: &Tokenizer,
        config: &ModelConfig,
        length: usize,
        cut: Cut,
    ) -> Result<Self, WindowsError> {
        let unusable = |detail: String| WindowsError::Unusable { path: path.into(), detail };
        check_length(length, config).map_err(unusable)?;
        let bytes = std::fs::read(path).map_err(TensorError::io(path))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let packed =
                [(&[0x1f, 0x8b][..], "gzip"), (b"PAR1", "Parquet"), (b"\x28\xb5\x2f\xfd", "Zstandard")];
            let packed = packed.iter().find(|(magic, _)| error.as_bytes().starts_with(magic));
            unusable(match packed {
                Some((_, kind)) => {
                    format!("is a {kind} file; give its text, or JSON lines with a field `text`")
                }
                None => format!("not UTF-8 text (byte {})", error.utf8_error().valid_up_to()),
            })
        })?;
        let text = match Layout::of(path, &text) {
            Layout::Plain => text,
            Layout::JsonLines => join_lines(&text).map_err(unusable)?,
            Layout::JsonArray => join_array(&text).map_err(unusable)?,
        };
        if text.trim().is_empty() {
            return Err(unusable("the text is empty".into()));
        }
        let tokens = tokenizer.encode(&text).map_err(unusable)?;
        check_vocabulary(tokens.iter().map(|&t| i64::from(t)), config).map_err(unusable)?;
        if tokens.len() < length {
            return Err(unusable(format!(
                "the text has {} tokens, fewer than one window of {length}; give a longer text or a smaller --sequence-length",
                tokens.len()
            )));
        }
        let starts: Vec<usize> = match cut {
            Cut::Random { samples, seed } => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                // u64, not usize: the same starts on every machine.
                let last = (tokens.len() - length) as u64;
                (0..samples).map(|_| random.random_range(0..=last) as usize).collect()
            }
            Cut::Consecutive { limit } => {
                let all = tokens.len() / length;
                (0..limit.unwrap_or(all).min(all)).map(|i| i * length).collect()
            }
        };
        let source = match cut {
            Cut::Random { seed, .. } => format!("{}, random starts, ChaCha8 seed {seed}", file_name(path)),
            Cut::Consecutive { .. } => format!("{}, consecutive windows", file_name(path)),
        };
        let cut = Array2::from_shape_fn((starts.len(), length), |(i, j)| tokens[starts[i] + j]);
        nonempty(cut).map(|tokens| Windows { tokens, source }).map_err(unusable)
    }

    /// Reads a token file: safetensors with a tensor `tokens` (sequences x length, I64). `limit` takes the first
    /// rows; `length`, where given, must be that of the file.
    ///
    /// # Errors
    /// [`WindowsError`]: unreadable, fewer rows than asked for, another length, tokens outside the vocabulary.
    pub fn from_tokens(
        path: &Path,
        config: &ModelConfig,
        length: Option<usize>,
        limit: Option<usize>,
    ) -> Result<Self, WindowsError> {
        let unusable = |detail: String| WindowsError::Unusable { path: path.into(), detail };
        let tokens = TensorFile::open(path)?.integers::<Ix2>("tokens")?;
        let (rows, columns) = tokens.dim();
        if let Some(length) = length.filter(|&length| length != columns) {
            return Err(unusable(format!(
                "holds windows of {columns} tokens, but --sequence-length is {length}"
            )));
        }
        check_length(columns, config).map_err(unusable)?;
        let wanted = limit.unwrap_or(rows);
        if wanted > rows {
            return Err(unusable(format!("holds {rows} windows, fewer than the {wanted} asked for")));
        }
        check_vocabulary(tokens.iter().copied(), config).map_err(unusable)?;
        let tokens = tokens.slice(ndarray::s![..wanted, ..]).mapv(|token| token as u32);
        let source = format!("{}, first {wanted} windows", file_name(path));
        nonempty(tokens).map(|tokens| Windows { tokens, source }).map_err(unusable)
    }

    /// SHA-256 of length and tokens, in hexadecimal: the data, wherever they come from.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update((self.length() as u64).to_le_bytes());
        self.tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        base16ct::lower::encode_string(&hash.finalize())
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.tokens.nrows()
    }

    /// Never true of windows that were read.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens per window.
    pub fn length(&self) -> usize {
        self.tokens.ncols()
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn nonempty(tokens: Array2<u32>) -> Result<Array2<u32>, String> {
    if tokens.is_empty() { Err("no windows are asked for".into()) } else { Ok(tokens) }
}

fn check_length(length: usize, config: &ModelConfig) -> Result<(), String> {
    let longest = config.max_position_embeddings;
    match length {
        0 | 1 => Err(format!("windows of {length} tokens predict nothing; use at least 2")),
        _ if length > longest => Err(format!(
            "windows of {length} tokens exceed the model's context of {longest}; use a smaller --sequence-length"
        )),
        _ => Ok(()),
    }
}

/// Refuses tokens that have no row in the embedding.
pub(crate) fn check_vocabulary(
    tokens: impl Iterator<Item = i64>,
    config: &ModelConfig,
) -> Result<(), String> {
    let size = config.vocab_size as i64;
    match tokens.into_iter().find(|token| !(0..size).contains(token)) {
        Some(token) => Err(format!(
            "token {token} is outside the model's vocabulary of {size}; is this another model's?"
        )),
        None => Ok(()),
    }
}

/// How documents lie in a file.
enum Layout {
    Plain,
    JsonLines,
    JsonArray,
}

impl Layout {
    /// By the file's name; where that says nothing, JSON is what begins as such: an object with a field `text` on the first
    /// line, or an array of them. (The published shards of C4 have names such as `c4-train.00000-of-01024.json`.)
    fn of(path: &Path, text: &str) -> Self {
        let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
        let named = |name: &str| extension.as_ref().is_some_and(|extension| extension == name);
        let start = text.trim_start_matches('\u{feff}').trim_start();
        let array = || start.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(['{', ']']));
        let first =
            || start.lines().next().and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        if named("jsonl") || named("ndjson") {
            Layout::JsonLines
        } else if named("json") {
            if start.starts_with('[') { Layout::JsonArray } else { Layout::JsonLines }
        } else if first().is_some_and(|line| line.get("text").is_some()) {
            Layout::JsonLines
        } else if array() && join_array(text).is_ok() {
            Layout::JsonArray
        } else {
            Layout::Plain
        }
    }
}

/// The documents of JSON lines.
fn join_lines(text: &str) -> Result<String, String> {
    let text = text.trim_start_matches('\u{feff}');
    let mut documents = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("line {}", number + 1);
        let json = serde_json::from_str(line).map_err(|error| {
            format!("{place} is not JSON: {error}; expected an object with a field `text` per line")
        })?;
        documents.push(document(&place, &json)?);
    }
    Ok(documents.join("\n\n"))
}

/// The documents of a JSON array.
fn join_array(text: &str) -> Result<String, String> {
    let text = text.trim_start_matches('\u{feff}');
    let entries: Vec<serde_json::Value> = serde_json::from_str(text)
        .map_err(|error| format!("not a JSON array: {error}; expected objects with a field `text`"))?;
    let documents =
        entries.iter().enumerate().map(|(i, json)| document(&format!("entry {i} of the array"), json));
    Ok(documents.collect::<Result<Vec<_>, _>>()?.join("\n\n"))
}

fn document(place: &str, json: &serde_json::Value) -> Result<String, String> {
    let text = json.get("text").and_then(|text| text.as_str());
    text.map(String::from).ok_or_else(|| format!("{place} has no field `text`"))
}
