//! `tokenizer.json`, through the `tokenizers` library.

use std::path::Path;

use super::CheckpointError;

/// A model's tokenizer.
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Reads `tokenizer.json` of a model directory.
    ///
    /// # Errors
    /// [`CheckpointError`] when it is not there or not understood.
    pub fn read(directory: &Path) -> Result<Self, CheckpointError> {
        let path = directory.join("tokenizer.json");
        if !path.is_file() {
            return Err(CheckpointError::Unusable {
                path,
                detail:
                    "missing; give token windows with --tokens instead of a text, or convert the tokenizer \
                         (transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
                        .into(),
            });
        }
        match tokenizers::Tokenizer::from_file(&path) {
            Ok(tokenizer) => Ok(Tokenizer(tokenizer)),
            Err(error) => Err(CheckpointError::Malformed {
                path,
                detail: format!("not a tokenizer that is understood: {error}"),
            }),
        }
    }

    /// Token ids of a text, with the tokenizer's special tokens.
    ///
    /// # Errors
    /// What the tokenizer says.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.0.encode_fast(text, true).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }
}
