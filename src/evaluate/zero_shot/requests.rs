//! From strings to tokens: where a request is split, and which of its tokens the model gets.

use super::tasks::Choice;
use super::text::is_white_space;
use crate::model::ModelConfig;
use crate::model::tokenizer::Tokenizer;

/// A request in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The given tokens, at least one.
    pub context: Vec<u32>,
    /// The scored tokens: at least one, and no more than the model's context.
    pub continuation: Vec<u32>,
}

impl Request {
    /// Encodes a choice as lm-evaluation-harness does: white space at the end of the context belongs to the
    /// continuation, both are encoded as one text without special tokens around it, and split after as many tokens
    /// as the context has alone. Only an empty context gets a token of its own.
    ///
    /// # Errors
    /// Why the choice cannot be scored: a continuation without tokens or longer than the model's context, a
    /// token outside the vocabulary, no prefix token.
    pub fn encode(choice: &Choice, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Self, String> {
        let (context, continuation) = if choice.context.is_empty() {
            let prefix = tokenizer.prefix_token().map_err(|error| error.to_string())?;
            (vec![prefix], tokenizer.encode_plain(&choice.continuation)?)
        } else {
            let whole = tokenizer.encode_plain(&format!("{}{}", choice.context, choice.continuation))?;
            let context = tokenizer.encode_plain(choice.context.trim_end_matches(is_white_space))?;
            let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
            (context, continuation)
        };
        let (longest, vocabulary) = (config.max_position_embeddings, config.vocab_size);
        if context.is_empty() || continuation.is_empty() {
            return Err(format!("context or choice {:?} has no tokens", choice.continuation));
        }
        if continuation.len() > longest {
            return Err(format!(
                "a choice has {} tokens, more than the model's context of {longest}",
                continuation.len()
            ));
        }
        if let Some(token) = context.iter().chain(&continuation).find(|&&t| t as usize >= vocabulary) {
            return Err(format!("token {token} is outside the model's vocabulary of {vocabulary}"));
        }
        Ok(Request { context, continuation })
    }

    /// The number of tokens without the last one, which is only predicted.
    fn seen(&self) -> usize {
        self.context.len() + self.continuation.len() - 1
    }

    /// Whether the beginning is cut off for a model with a context of `longest` tokens.
    pub fn is_cut(&self, longest: usize) -> bool {
        self.seen() > longest
    }

    /// The model's input: all tokens but the last, and of these the last `longest`.
    pub fn input(&self, longest: usize) -> Vec<u32> {
        let seen = self.seen();
        let tokens = self.context.iter().chain(&self.continuation).copied();
        tokens.take(seen).skip(seen.saturating_sub(longest)).collect()
    }
}
