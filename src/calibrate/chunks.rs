//! The tokens of a text of any length, in the memory of a few of its chunks.
//!
//! Chunks overlap. A chunk ends, and the next begins, at a place in the overlap around which both have the same tokens. How a
//! tokenizer splits a place depends on its neighbourhood alone (in BPE, a sequence of tokens is the encoding of its text if and
//! only if every two neighbours are the encoding of theirs), so the joined tokens are those of the whole text. Where the
//! overlap has no such place, the two chunks are merged.

use std::ops::{ControlFlow, Range};

use rayon::prelude::*;

use super::text::{TextFile, WindowsError};
use crate::model::tokenizer::{Token, Tokenizer};

/// How a text is cut.
#[derive(Clone, Copy)]
pub(super) struct Chunking {
    /// Bytes from the beginning of a chunk to the beginning of the next, approximately.
    pub length: usize,
    /// Bytes that two neighbours share, approximately.
    pub overlap: usize,
    /// Tokens on either side of a place that must be equal in both chunks.
    pub agreement: usize,
}

impl Default for Chunking {
    /// The tokenizers library needs some 75 bytes for each byte of a text that it encodes.
    fn default() -> Self {
        Chunking { length: 1 << 17, overlap: 1 << 12, agreement: 16 }
    }
}

/// Chunks that are encoded in parallel.
const AT_A_TIME: usize = 8;

/// A part of the text, and which of its tokens are kept.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// Bytes of the text.
    bytes: Range<usize>,
    /// The kept ones among the tokens of these bytes.
    kept: Range<usize>,
    /// The number of the first kept one among all tokens.
    first: usize,
}

impl Chunk {
    /// The numbers of its kept tokens among all tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.first..self.first + self.kept.len()
    }
}

/// Receives the kept tokens, chunk by chunk.
type Sink<'a> = dyn FnMut(Chunk, &[Token]) -> Result<ControlFlow<()>, String> + 'a;

/// Encodes a text, without special tokens around it; its first token has the number `first`.
pub(super) fn encode(
    file: &TextFile,
    tokenizer: &Tokenizer,
    chunking: Chunking,
    first: usize,
    sink: &mut Sink,
) -> Result<(), WindowsError> {
    let Chunking { length, overlap, .. } = chunking;
    let mut joiner = Joiner { tokenizer, chunking, first, open: None, sink };
    let (mut text, mut start, mut broken_off) = (String::new(), 0, false);
    file.read(&mut |piece| {
        text.push_str(piece);
        if text.len() <= AT_A_TIME * length + overlap {
            return Ok(ControlFlow::Continue(()));
        }
        let mut chunks = Vec::new();
        let mut next = 0;
        while text.len() > next + length + overlap {
            let end = text.floor_char_boundary(next + length);
            chunks.push(next..text.floor_char_boundary(end + overlap));
            next = end;
        }
        let flow = joiner.take(&text, start, &chunks)?;
        text.drain(..next);
        start += next;
        broken_off = flow.is_break();
        Ok(flow)
    })?;
    if broken_off {
        return Ok(());
    }
    let rest = 0..text.len();
    let last = joiner.take(&text, start, std::slice::from_ref(&rest)).and_then(|flow| match flow {
        ControlFlow::Continue(()) => joiner.finish(),
        ControlFlow::Break(()) => Ok(()),
    });
    last.map_err(|detail| file.unusable(detail))
}

/// Encodes some of the chunks again, in order.
pub(super) fn encode_again(
    file: &TextFile,
    tokenizer: &Tokenizer,
    chunks: &[Chunk],
    mut sink: impl FnMut(&Chunk, &[Token]),
) -> Result<(), WindowsError> {
    let mut chunks = chunks.iter().peekable();
    let (mut text, mut start) = (String::new(), 0);
    let changed = || "changed while it was read".to_string();
    file.read(&mut |piece| {
        text.push_str(piece);
        while let Some(chunk) = chunks.next_if(|chunk| chunk.bytes.end <= start + text.len()) {
            let bytes = text.get(chunk.bytes.start - start..chunk.bytes.end - start).ok_or_else(changed)?;
            let tokens = tokenizer.encode_with_places(bytes)?;
            sink(chunk, tokens.get(chunk.kept.clone()).ok_or_else(changed)?);
        }
        let Some(next) = chunks.peek() else { return Ok(ControlFlow::Break(())) };
        let done = text.len().min(next.bytes.start.saturating_sub(start));
        if !text.is_char_boundary(done) {
            return Err(changed());
        }
        text.drain(..done);
        start += done;
        Ok(ControlFlow::Continue(()))
    })?;
    if chunks.peek().is_some() { Err(file.unusable(changed())) } else { Ok(()) }
}

/// Decides where one chunk ends and the next begins.
struct Joiner<'a, 'b> {
    tokenizer: &'a Tokenizer,
    chunking: Chunking,
    /// The number of the text's first token.
    first: usize,
    /// The chunk whose end is not known yet.
    open: Option<Open>,
    sink: &'a mut Sink<'b>,
}

struct Open {
    text: String,
    /// The byte at which it begins in the whole text.
    start: usize,
    /// `None` while it grows.
    tokens: Option<Vec<Token>>,
    /// The length to grow to.
    wanted: usize,
    /// The first kept token, and its number among all tokens of the text.
    kept: usize,
    first: usize,
}

impl Joiner<'_, '_> {
    fn take(&mut self, text: &str, start: usize, chunks: &[Range<usize>]) -> Result<ControlFlow<()>, String> {
        let encode = |bytes: &Range<usize>| self.tokenizer.encode_with_places(&text[bytes.clone()]);
        let tokens: Vec<_> = chunks.par_iter().map(encode).collect();
        for (bytes, tokens) in chunks.iter().zip(tokens) {
            if self.join(&text[bytes.clone()], start + bytes.start, tokens?)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn join(&mut self, text: &str, start: usize, tokens: Vec<Token>) -> Result<ControlFlow<()>, String> {
        let new = |text: &str, tokens, kept, first| {
            Some(Open { text: text.into(), start, tokens: Some(tokens), wanted: 0, kept, first })
        };
        let Some(left) = &mut self.open else {
            self.open = new(text, tokens, 0, self.first);
            return Ok(ControlFlow::Continue(()));
        };
        let shift = start - left.start;
        let overlap = left.text.len() - shift;
        if let Some(of_left) = &left.tokens {
            if let Some((end, kept)) = self.chunking.meeting(of_left, &tokens, shift, overlap) {
                let chunk = left.chunk(end);
                let first = chunk.tokens().end;
                let flow = (self.sink)(chunk, &of_left[left.kept..end])?;
                self.open = new(text, tokens, kept, first);
                return Ok(flow);
            }
            // Twice as long each time, so that the work stays in proportion to the text.
            left.wanted = 2 * left.text.len();
        }
        left.text.push_str(&text[overlap..]);
        let grown = left.text.len() >= left.wanted;
        left.tokens = grown.then(|| self.tokenizer.encode_with_places(&left.text)).transpose()?;
        Ok(ControlFlow::Continue(()))
    }

    /// Passes on the last chunk.
    fn finish(&mut self) -> Result<(), String> {
        let Some(mut last) = self.open.take() else { return Ok(()) };
        let tokens = match last.tokens.take() {
            Some(tokens) => tokens,
            None => self.tokenizer.encode_with_places(&last.text)?,
        };
        (self.sink)(last.chunk(tokens.len()), &tokens[last.kept..]).map(drop)
    }
}

impl Open {
    fn chunk(&self, end: usize) -> Chunk {
        Chunk { bytes: self.start..self.start + self.text.len(), kept: self.kept..end, first: self.first }
    }
}

impl Chunking {
    /// The token of the left chunk at which it ends, and the token of the right chunk at which that begins: both at one place in
    /// the middle of the overlap, with equal tokens around it. The right text begins at byte `shift` of the left one.
    fn meeting(
        self,
        left: &[Token],
        right: &[Token],
        shift: usize,
        overlap: usize,
    ) -> Option<(usize, usize)> {
        let shifted = |token: &Token| Token { start: token.start + shift, end: token.end + shift, ..*token };
        let from = left.partition_point(|token| token.start < shift + overlap / 4);
        let to = left.partition_point(|token| token.start < shift + overlap * 3 / 4);
        (from.max(self.agreement)..to).find_map(|i| {
            let j = right.partition_point(|token| token.start + shift < left[i].start);
            let of_left = left.get(i - self.agreement..i + self.agreement)?;
            let of_right = right.get(j.checked_sub(self.agreement)?..j + self.agreement)?;
            // Several tokens can be parts of one character: the place is the beginning of a character.
            let begins = left[i - 1].start < left[i].start;
            (begins && of_left.iter().copied().eq(of_right.iter().map(shifted))).then_some((i, j))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use serde_json::{Value, json};

    use super::*;

    /// Words, blanks, numbers, scripts of more than one byte, special tokens, and stretches in which no place is like another.
    fn text(random: &mut ChaCha8Rng, length: usize) -> String {
        let parts = [
            "the ",
            "of",
            " and",
            "  ",
            "\n\n",
            "\t",
            "12345",
            "3.14 ",
            "'s ",
            "antidisestablishmentarianism",
            "\u{e9}t\u{e9} ",
            "\u{6f22}\u{5b57}",
            "\u{1f600}\u{1f601}",
            "e\u{301}",
            "<s>",
            "</s>",
            "<|endoftext|>",
            "\u{2581}",
            "-",
            "; ",
            "\r\n",
            "I'll ",
        ];
        let mut text = String::new();
        while text.len() < length {
            match random.random_range(0..40u32) {
                0 => (0..random.random_range(0..700u32)).for_each(|_| text.push('a')),
                1 => (0..random.random_range(0..200u32)).for_each(|_| text.push_str("ab ")),
                _ => text.push_str(parts[random.random_range(0..parts.len() as u64) as usize]),
            }
        }
        text
    }

    #[test]
    fn chunks_together_have_the_tokens_of_the_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text.txt");
        let mut several = 0;
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama/tokenizer.json");
        let model: Value = serde_json::from_slice(&std::fs::read(model).unwrap()).unwrap();
        let words = |regex| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let llama3 = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\s+(?!\S)|\s+"}, "behavior": "Isolated", "invert": false},
            words(false),
        ]});
        // The fixture's tokenizer; the whole text as one word with a blank before it; numbers in groups of three digits.
        for (pre, normalizer) in [
            (words(true), json!(null)),
            (words(false), json!({"type": "Prepend", "prepend": " "})),
            (llama3, json!({"type": "NFC"})),
        ] {
            let mut model = model.clone();
            (model["pre_tokenizer"], model["normalizer"]) = (pre, normalizer);
            std::fs::write(directory.path().join(Tokenizer::FILE), model.to_string()).unwrap();
            let tokenizer = Tokenizer::read(directory.path()).unwrap();
            for seed in 0..8 {
                let text = text(&mut ChaCha8Rng::seed_from_u64(seed), 20_000);
                std::fs::write(&path, &text).unwrap();
                let file = TextFile::open(&path).unwrap();
                let chunking = Chunking { length: 500 + 37 * seed as usize, overlap: 200, agreement: 8 };
                let (mut found, mut chunks) = (Vec::new(), Vec::new());
                encode(&file, &tokenizer, chunking, 7, &mut |chunk, tokens| {
                    assert_eq!(chunk.tokens(), 7 + found.len()..7 + found.len() + tokens.len());
                    found.extend(tokens.iter().map(|token| token.id));
                    chunks.push(chunk);
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
                assert_eq!(
                    found,
                    tokenizer.encode_plain(&text).unwrap(),
                    "{} seed {seed}",
                    model["pre_tokenizer"]
                );
                several += chunks.len();
                chunks.retain(|chunk| chunk.first % 3 == 0);
                encode_again(&file, &tokenizer, &chunks, |chunk, tokens| {
                    assert!(
                        tokens
                            .iter()
                            .map(|token| token.id)
                            .eq(found[chunk.first - 7..][..tokens.len()].iter().copied())
                    );
                    several += 1;
                })
                .unwrap();
            }
        }
        assert!(several > 1000, "{several} chunks: nothing was joined");
    }
}
