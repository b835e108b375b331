//! `tokenizer.json`, through the `tokenizers` library.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde_json::Value;
use tokenizers::Model;

use super::{Checkpoint, CheckpointError};
use crate::files::parse_json;

/// A model's tokenizer.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    directory: PathBuf,
    /// What a user should know of how it is read, a sentence each.
    pub warnings: Vec<String>,
    /// What stands for what the vocabulary does not have.
    unknown: Option<u32>,
}

/// A token in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The first byte of its text.
    pub start: usize,
    /// The byte after its text.
    pub end: usize,
}

impl Tokenizer {
    /// Its file in a model directory.
    pub const FILE: &str = "tokenizer.json";

    /// Reads `tokenizer.json` of a model directory, and the tokens that `tokenizer_config.json` adds to it. What stands around
    /// a text is up to the former, as in transformers 5; [`warnings`](Self::warnings) say where the latter says otherwise.
    ///
    /// # Errors
    /// [`CheckpointError`] when it is not there or not understood.
    pub fn read(directory: &Path) -> Result<Self, CheckpointError> {
        let path = directory.join(Self::FILE);
        if !path.is_file() {
            return Err(CheckpointError::Unusable {
                path,
                detail:
                    "missing; give tokens instead of a text (--tokens, --prompt-tokens), or convert the tokenizer \
                         (transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
                        .into(),
            });
        }
        let malformed = |error: String| CheckpointError::Malformed {
            path: path.clone(),
            detail: format!("not a tokenizer that is understood: {error}"),
        };
        let text = std::fs::read_to_string(&path).map_err(|error| malformed(error.to_string()))?;
        let json = parse_json(&text).map_err(|error| malformed(format!("not JSON: {error}")))?;
        let mut tokenizer = guarded(|| text.parse::<tokenizers::Tokenizer>()).map_err(malformed)?;
        // A file may ask for both, but what is cut or padded is decided here.
        tokenizer.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
        tokenizer.with_padding(None);
        let warnings = add_from_config(directory, &mut tokenizer)?;
        let by_name = json["model"]["unk_token"].as_str().and_then(|token| tokenizer.token_to_id(token));
        let by_number = json["model"]["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let unknown = by_name.or(by_number);
        Ok(Tokenizer { tokenizer, directory: directory.into(), warnings, unknown })
    }

    /// Reads the tokenizer of a checkpoint, which must be of that model: its vocabulary fits the embedding. (Tokens added
    /// to it may lie beyond, as padding often does; only to use one is an error.)
    ///
    /// # Errors
    /// As [`read`](Self::read), and when the vocabulary is larger than the embedding.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let tokenizer = Self::read(&checkpoint.directory)?;
        let (rows, largest) = (checkpoint.config.vocab_size, tokenizer.tokenizer.get_model().get_vocab());
        match largest.into_values().max() {
            Some(largest) if largest as usize >= rows => Err(CheckpointError::Malformed {
                path: checkpoint.directory.join(Self::FILE),
                detail: format!(
                    "knows tokens up to {largest}, but `{}` has {rows} rows; it is another model's",
                    checkpoint.embedding_tensor()
                ),
            }),
            _ => Ok(tokenizer),
        }
    }

    /// Token ids of a text, with the special tokens that the tokenizer puts around it.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.ids(text, true)
    }

    /// Token ids of a text and nothing around it. Special tokens that are written in the text become their ids.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, String> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, around: bool) -> Result<Vec<u32>, String> {
        let encoding = guarded(|| self.tokenizer.encode_fast(text, around))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text without special tokens around it, each with its bytes in the text.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode_with_places(&self, text: &str) -> Result<Vec<Token>, String> {
        let encoding = guarded(|| self.tokenizer.encode(text, false))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, end))| Token { id, start, end }).collect())
    }

    /// The special tokens that the tokenizer adds before and after a text.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn around(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        let encoding = guarded(|| self.tokenizer.encode(text, true))?;
        let (ids, special) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let before = special.iter().take_while(|&&special| special == 1).count();
        let behind = special[before..].iter().rev().take_while(|&&special| special == 1).count();
        Ok((ids[..before].to_vec(), ids[ids.len() - behind..].to_vec()))
    }

    /// The text of tokens, without special ones; bytes that are no character, or not all of one, are U+FFFD. Tokens that are
    /// not in the vocabulary have no text.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, String> {
        guarded(|| self.tokenizer.decode(tokens, true))
    }

    /// The characters of a text, other than blanks, that the tokens do not tell: they are left out, or have the token for
    /// whatever is unknown.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn unknown(&self, text: &str) -> Result<Vec<char>, String> {
        let encoding = guarded(|| self.tokenizer.encode(text, false))?;
        let known = encoding.get_ids().iter().zip(encoding.get_offsets());
        let known: Vec<_> =
            known.filter(|(id, _)| Some(**id) != self.unknown).map(|(_, &(start, end))| start..end).collect();
        let unknown = text.char_indices().filter(|(place, character)| {
            !character.is_whitespace() && !known.iter().any(|token| token.contains(place))
        });
        Ok(unknown.map(|(_, character)| character).collect())
    }

    /// What stands before the first token of a text that is to be predicted from nothing: the beginning-of-sequence
    /// token, or the end-of-sequence token of a tokenizer without one; as `tokenizer_config.json` or
    /// `special_tokens_map.json` names them.
    ///
    /// # Errors
    /// [`CheckpointError`] when neither is named, or a file is damaged.
    pub fn prefix_token(&self) -> Result<u32, CheckpointError> {
        let files = ["tokenizer_config.json", "special_tokens_map.json"];
        for key in ["bos_token", "eos_token"] {
            for file in files {
                let path = self.directory.join(file);
                if !path.is_file() {
                    continue;
                }
                let malformed = |detail: String| CheckpointError::Malformed { path: path.clone(), detail };
                let text = std::fs::read_to_string(&path).map_err(|error| malformed(error.to_string()))?;
                let json: Value =
                    serde_json::from_str(&text).map_err(|error| malformed(format!("not JSON: {error}")))?;
                // Either the token's text or an object that describes it.
                let Some(token) = json[key].as_str().or_else(|| json[key]["content"].as_str()) else {
                    continue;
                };
                return self.tokenizer.token_to_id(token).ok_or_else(|| {
                    malformed(format!("`{key}` is {token:?}, which tokenizer.json does not know"))
                });
            }
        }
        Err(CheckpointError::Unusable {
            path: self.directory.join(files[0]),
            detail: "names neither `bos_token` nor `eos_token`, and an empty context needs one before it"
                .into(),
        })
    }
}

/// Adds the tokens that stand in `tokenizer_config.json` alone, in the order in which transformers does; returns what is to be
/// said of the file.
fn add_from_config(
    directory: &Path,
    tokenizer: &mut tokenizers::Tokenizer,
) -> Result<Vec<String>, CheckpointError> {
    let path = directory.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let malformed = |detail: String| CheckpointError::Malformed { path: path.clone(), detail };
    let text = std::fs::read_to_string(&path).map_err(|error| malformed(error.to_string()))?;
    let json = parse_json(&text).map_err(|error| malformed(format!("not JSON: {error}")))?;

    let mut listed: Vec<(u32, &Value)> = Vec::new();
    for (number, token) in json["added_tokens_decoder"].as_object().into_iter().flatten() {
        let number = number.parse().map_err(|_| {
            malformed(format!("`added_tokens_decoder` has the key {number:?}, expected a token id"))
        })?;
        listed.push((number, token));
    }
    listed.sort_by_key(|(number, _)| *number);
    for (number, token) in listed {
        let content = token["content"].as_str().ok_or_else(|| {
            malformed(format!("`added_tokens_decoder.{number}` has no `content`, expected the token's text"))
        })?;
        if add(tokenizer, content, token, false).map_err(malformed)?
            && tokenizer.token_to_id(content) != Some(number)
        {
            return Err(malformed(format!(
                "`added_tokens_decoder.{number}` is {content:?}, which tokenizer.json does not have, and whose id would be {}; \
                 add it to tokenizer.json",
                tokenizer.token_to_id(content).map_or("none".into(), |id| id.to_string())
            )));
        }
    }
    let named = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let more = ["additional_special_tokens", "extra_special_tokens"].map(|key| &json[key]);
    let lists = more.iter().filter_map(|list| list.as_array()).flatten();
    let maps = more.iter().filter_map(|list| list.as_object()).flat_map(|map| map.values());
    for token in named.map(|key| &json[key]).into_iter().chain(lists).chain(maps) {
        if let Some(content) = token.as_str().or_else(|| token["content"].as_str()) {
            add(tokenizer, content, token, true).map_err(malformed)?;
        }
    }

    let around = guarded(|| tokenizer.encode("", true)).map_err(malformed)?;
    let mut warnings = Vec::new();
    for (flag, token) in [("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")] {
        let Some(wanted) = json[flag].as_bool() else { continue };
        let text = json[token].as_str().or_else(|| json[token]["content"].as_str());
        let there = text
            .and_then(|text| tokenizer.token_to_id(text))
            .is_some_and(|id| around.get_ids().contains(&id));
        if wanted != there {
            warnings.push(format!(
                "`{flag}` of tokenizer_config.json is {wanted}, but tokenizer.json {} `{token}`: the latter counts, as in \
                 transformers 5 (4.49 goes by the flag)",
                if there { "adds" } else { "does not add" }
            ));
        }
    }
    Ok(warnings)
}

/// Adds a token, unless it is one of the added ones already; returns whether it did. `special` is what it is where nothing is
/// said of that.
fn add(
    tokenizer: &mut tokenizers::Tokenizer,
    content: &str,
    described: &Value,
    special: bool,
) -> Result<bool, String> {
    if tokenizer.get_added_tokens_decoder().values().any(|token| token.content == content) {
        return Ok(false);
    }
    let flag = |key: &str, default| described[key].as_bool().unwrap_or(default);
    let special = flag("special", special);
    let token = tokenizers::AddedToken::from(content, special)
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false))
        .normalized(flag("normalized", !special));
    let added = guarded(|| tokenizer.add_tokens([token]));
    added.map(|_| true).map_err(|error| format!("{content:?} cannot be added to tokenizer.json: {error}"))
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// The library panics on some files that are JSON but make no sense, when it reads them or when it encodes. That is an
/// error like others, and no word of a panic is printed.
fn guarded<R>(call: impl FnOnce() -> Result<R, tokenizers::Error>) -> Result<R, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                hook(panic);
            }
        }));
    });
    GUARDED.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    outcome
        .unwrap_or_else(|_| Err("the tokenizers library panicked".into()))
        .map_err(|error| error.to_string())
}
