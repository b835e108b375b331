//! Streaming text: a token becomes text as soon as its characters are certain.

use crate::model::tokenizer::Tokenizer;

/// The replacement character: shown for bytes that do not form a character (yet).
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Tokens of the prompt to decode along: enough to contain a whole character and the blank before a word.
const LOOK_BACK: usize = 8;

/// Turns tokens into text one by one.
///
/// A character may be spread over several tokens, and a token's text may depend on the one before (the first word of a
/// text has no blank before it). So the text of a token is the difference of two decoded texts, with it and without it. A token that
/// ends inside a character waits for the next one.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    /// Tokens before it are past; those from it up to `shown` were handed out, and are the next tokens' surroundings.
    context: usize,
    shown: usize,
}

impl<'a> TextStream<'a> {
    /// Continues after the text of a prompt.
    pub fn after(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(LOOK_BACK)..].to_vec();
        let shown = tokens.len();
        TextStream { tokenizer, tokens, context: 0, shown }
    }

    /// The text that this token completes; empty if it ends inside a character.
    ///
    /// # Errors
    /// The error of the tokenizer.
    pub fn push(&mut self, token: u32) -> Result<String, String> {
        self.tokens.push(token);
        let (text, certain) = self.waiting()?;
        if !certain {
            return Ok(String::new());
        }
        self.context = self.shown;
        self.shown = self.tokens.len();
        Ok(text)
    }

    /// The text of the waiting tokens; bytes that do not form a character show as U+FFFD.
    ///
    /// # Errors
    /// The error of the tokenizer.
    pub fn finish(self) -> Result<String, String> {
        Ok(self.waiting()?.0)
    }

    /// The text that was not handed out, and whether it ends with a whole character.
    fn waiting(&self) -> Result<(String, bool), String> {
        let before = self.tokenizer.decode(&self.tokens[self.context..self.shown])?;
        let all = self.tokenizer.decode(&self.tokens[self.context..])?;
        let known = all.chars().zip(before.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8());
        Ok((all[known.sum()..].into(), !all.ends_with(REPLACEMENT)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tiny() -> Tokenizer {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
        Tokenizer::read(&model).unwrap()
    }

    fn chunks(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> (Vec<String>, String) {
        let mut stream = TextStream::after(tokenizer, prompt);
        let chunks = tokens.iter().map(|&token| stream.push(token).unwrap()).collect();
        (chunks, stream.finish().unwrap())
    }

    #[test]
    fn a_character_in_several_tokens_comes_whole() {
        let tokenizer = tiny();
        // The vocabulary has no token for these, only for their bytes.
        let tokens = tokenizer.encode("a\u{20ac}b\u{1f600}").unwrap();
        assert_eq!(tokens.len(), 1 + 3 + 1 + 4);
        let (chunks, rest) = chunks(&tokenizer, &[], &tokens);
        assert_eq!(chunks, ["a", "", "", "\u{20ac}", "b", "", "", "", "\u{1f600}"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn a_prompt_that_ends_inside_a_character_is_continued() {
        let tokenizer = tiny();
        let tokens = tokenizer.encode("a\u{20ac}b").unwrap();
        for cut in 2..4 {
            let (chunks, rest) = chunks(&tokenizer, &tokens[..cut], &tokens[cut..]);
            assert_eq!(chunks.concat() + &rest, "\u{20ac}b", "{cut}");
        }
    }

    #[test]
    fn bytes_that_become_no_character_are_shown_when_that_is_certain() {
        let tokenizer = tiny();
        let tokens = tokenizer.encode("\u{20ac}").unwrap();
        let letter = tokenizer.encode("b").unwrap()[0];
        let (middle, rest) = chunks(&tokenizer, &[], &[tokens[0], letter, tokens[0], tokens[1]]);
        assert_eq!((middle.concat().as_str(), rest.as_str()), ("\u{fffd}b", "\u{fffd}"));
    }

    /// As in LLaMA-2: a word's token begins with its blank, which the first word of a text does not show.
    #[test]
    fn a_word_keeps_the_blank_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"},
            "post_processor": null,
            "decoder": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"},
            "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "\u{2581}good": 1, "\u{2581}day": 2}},
        });
        std::fs::write(directory.path().join("tokenizer.json"), json.to_string()).unwrap();
        let tokenizer = Tokenizer::read(directory.path()).unwrap();
        assert_eq!(tokenizer.decode(&[1, 2]).unwrap(), "good day");
        let (chunks, rest) = chunks(&tokenizer, &[1], &[2, 1, 2]);
        assert_eq!((chunks.concat().as_str(), rest.as_str()), (" day good day", ""));
    }
}
