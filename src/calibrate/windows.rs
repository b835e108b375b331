//! Token windows: what is calibrated on, and what is measured on.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use ndarray::{Array2, Ix2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::chunks::{self, Chunking};
use super::text::TextFile;
pub use super::text::WindowsError;
use crate::model::ModelConfig;
use crate::model::tokenizer::Tokenizer;
use crate::tensors::TensorFile;

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
        let file = TextFile::open(path)?;
        let mut start = String::new();
        file.read(&mut |piece| {
            start.push_str(piece);
            Ok(if start.trim().is_empty() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if start.trim().is_empty() {
            return Err(unusable("the text is empty".into()));
        }
        let (before, behind) = tokenizer.around(&start).map_err(unusable)?;
        check_vocabulary(before.iter().chain(&behind).map(|&id| i64::from(id)), config).map_err(unusable)?;

        // The first pass counts all tokens; consecutive windows are complete after it.
        let most = match cut {
            Cut::Random { .. } => 0,
            Cut::Consecutive { limit } => {
                limit.map_or(usize::MAX, |limit| limit.max(1).saturating_mul(length))
            }
        };
        let (mut taken, mut chunks) = (before.clone(), Vec::new());
        let (mut count, mut broken_off) = (before.len(), false);
        chunks::encode(&file, tokenizer, Chunking::default(), before.len(), &mut |chunk, tokens| {
            check_vocabulary(tokens.iter().map(|token| token.id.into()), config)?;
            count += tokens.len();
            if let Cut::Random { .. } = cut {
                chunks.push(chunk);
                return Ok(ControlFlow::Continue(()));
            }
            taken.extend(tokens.iter().map(|token| token.id));
            broken_off = taken.len() >= most;
            Ok(if broken_off { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if !broken_off {
            count += behind.len();
            taken.extend(&behind);
        }
        if count < length {
            return Err(unusable(format!(
                "the text has {count} tokens, fewer than one window of {length}; give a longer text or a smaller --sequence-length",
            )));
        }
        let cut_out = match cut {
            Cut::Random { samples, seed } => {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                // u64, not usize: the same starts on every machine.
                let last = (count - length) as u64;
                let starts = (0..samples).map(|_| random.random_range(0..=last) as usize);
                let mut windows =
                    At { starts: starts.collect(), length, tokens: Array2::zeros((samples, length)) };
                chunks.retain(|chunk| windows.need(chunk.tokens()));
                windows.take(0, before.iter().copied());
                chunks::encode_again(&file, tokenizer, &chunks, |chunk, tokens| {
                    windows.take(chunk.tokens().start, tokens.iter().map(|token| token.id));
                })?;
                windows.take(count - behind.len(), behind.iter().copied());
                windows.tokens
            }
            Cut::Consecutive { limit } => {
                let all = taken.len() / length;
                let rows = limit.unwrap_or(all).min(all);
                Array2::from_shape_fn((rows, length), |(i, j)| taken[i * length + j])
            }
        };
        let source = match cut {
            Cut::Random { seed, .. } => format!("{}, random starts, ChaCha8 seed {seed}", file_name(path)),
            Cut::Consecutive { .. } => format!("{}, consecutive windows", file_name(path)),
        };
        nonempty(cut_out).map(|tokens| Windows { tokens, source }).map_err(unusable)
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

/// Windows at given starts of a token sequence that arrives in parts.
struct At {
    starts: Vec<usize>,
    length: usize,
    tokens: Array2<u32>,
}

impl At {
    /// Whether any of the tokens with these numbers is in a window.
    fn need(&self, numbers: Range<usize>) -> bool {
        self.starts.iter().any(|&start| start < numbers.end && numbers.start < start + self.length)
    }

    /// Copies the tokens from number `first` on into the windows that contain them.
    fn take(&mut self, first: usize, part: impl ExactSizeIterator<Item = u32> + Clone) {
        for (&start, mut window) in self.starts.iter().zip(self.tokens.rows_mut()) {
            let numbers = first.max(start)..(first + part.len()).min(start + self.length);
            for (number, token) in numbers.clone().zip(part.clone().skip(numbers.start - first)) {
                window[number - start] = token;
            }
        }
    }
}
