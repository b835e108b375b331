//! A file of text or of JSON documents, read in buffers: memory does not grow with its length.

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::Value;

use crate::model::CheckpointError;
use crate::tensors::TensorError;

/// Why token windows cannot be made of a file.
#[derive(Debug, thiserror::Error)]
pub enum WindowsError {
    /// The token file.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] CheckpointError),
    /// The text or token file has unusable content.
    #[error("{}: {detail}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it holds, what was expected, and what to do.
        detail: String,
    },
}

/// Receives the text of [`TextFile::read`] in order; `Err` says what is wrong with the file.
type Sink<'a> = dyn FnMut(&str) -> Result<ControlFlow<()>, String> + 'a;

const BYTE_ORDER_MARK: char = '\u{feff}';

/// A text: the whole of a file, or the field `text` of the JSON documents in it, joined by blank lines.
pub(super) struct TextFile {
    path: PathBuf,
    layout: Layout,
    /// The content, if it can be read only once, as from a pipe.
    held: Option<Vec<u8>>,
}

/// How documents lie in a file.
#[derive(Clone, Copy)]
enum Layout {
    Plain,
    JsonLines,
    JsonArray,
}

impl TextFile {
    /// Opens a file and determines its layout.
    ///
    /// # Errors
    /// [`WindowsError`]: unreadable, or not UTF-8.
    pub fn open(path: &Path) -> Result<Self, WindowsError> {
        let mut file = File::open(path).map_err(TensorError::io(path))?;
        let regular = file.metadata().map_err(TensorError::io(path))?.is_file();
        let mut held = None;
        if !regular {
            let mut content = Vec::new();
            file.read_to_end(&mut content).map_err(TensorError::io(path))?;
            held = Some(content);
        }
        let mut text = TextFile { path: path.into(), layout: Layout::Plain, held };
        text.layout = text.find_layout()?;
        Ok(text)
    }

    /// The layout follows from the file's name or, failing that, from its beginning: an object with a field `text` on the first
    /// line, or an array of such objects. (The published shards of C4 have names such as `c4-train.00000-of-01024.json`.)
    fn find_layout(&self) -> Result<Layout, WindowsError> {
        let extension = self.path.extension().map(|extension| extension.to_ascii_lowercase());
        let named = |name: &str| extension.as_ref().is_some_and(|extension| extension == name);
        if named("jsonl") || named("ndjson") {
            return Ok(Layout::JsonLines);
        }
        // The first line if it is an object's, otherwise enough to see an array by.
        let mut start = String::new();
        self.pieces(true, &mut |piece| {
            start.push_str(if start.is_empty() { piece.trim_start() } else { piece });
            let more = match start.chars().next() {
                None => true,
                Some('{') => !start.contains('\n'),
                Some('[') => start[1..].trim_start().is_empty(),
                Some(_) => false,
            };
            Ok(if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        let first = start.lines().next().and_then(|line| serde_json::from_str::<Value>(line).ok());
        let array = || start.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(['{', ']']));
        Ok(if named("json") {
            if start.starts_with('[') { Layout::JsonArray } else { Layout::JsonLines }
        } else if first.is_some_and(|line| line.get("text").is_some()) {
            Layout::JsonLines
        } else if array() && self.array(&mut |_| Ok(ControlFlow::Continue(()))).is_ok() {
            Layout::JsonArray
        } else {
            Layout::Plain
        })
    }

    /// Passes on the text from its beginning, in order and without gaps, until the sink breaks.
    ///
    /// # Errors
    /// [`WindowsError`]: unreadable, not UTF-8, malformed JSON, a document without text; and errors of the sink.
    pub fn read(&self, sink: &mut Sink) -> Result<(), WindowsError> {
        match self.layout {
            Layout::Plain => self.pieces(false, sink),
            Layout::JsonLines => self.lines(sink),
            Layout::JsonArray => self.array(sink),
        }
    }

    /// The error of a file with unusable content.
    pub fn unusable(&self, detail: String) -> WindowsError {
        WindowsError::Unusable { path: self.path.clone(), detail }
    }

    /// The file from its beginning, or after its byte order mark if that is to be skipped.
    fn utf8(&self, skip_mark: bool) -> Result<Utf8<'_>, WindowsError> {
        let mut source: Box<dyn Read> = match &self.held {
            Some(content) => Box::new(&content[..]),
            None => Box::new(File::open(&self.path).map_err(TensorError::io(&self.path))?),
        };
        let mut start = Vec::new();
        (&mut source).take(3).read_to_end(&mut start).map_err(TensorError::io(&self.path))?;
        let offset =
            if skip_mark && start == BYTE_ORDER_MARK.to_string().as_bytes() { start.len() } else { 0 };
        Ok(Utf8 { source, buffer: start.split_off(offset), offset, given: 0, taken: 0 })
    }

    /// An error of [`Utf8`].
    fn failed(&self, error: io::Error) -> WindowsError {
        match error.kind() {
            io::ErrorKind::InvalidData => self.unusable(error.to_string()),
            _ => TensorError::io(&self.path)(error).into(),
        }
    }

    /// The whole of the file.
    fn pieces(&self, skip_mark: bool, sink: &mut Sink) -> Result<(), WindowsError> {
        let mut source = self.utf8(skip_mark)?;
        while let Some(piece) = source.piece().map_err(|error| self.failed(error))? {
            if sink(piece).map_err(|detail| self.unusable(detail))?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The documents of JSON lines.
    fn lines(&self, sink: &mut Sink) -> Result<(), WindowsError> {
        let (mut line, mut number, mut documents) = (String::new(), 0, Documents::new(sink));
        let mut take = |line: &str| {
            number += 1;
            if line.trim().is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
            let place = format!("line {number}");
            let json = serde_json::from_str(line).map_err(|error| {
                format!("{place} is not JSON: {error}; expected an object with a field `text` per line")
            })?;
            documents.give(&place, &json)
        };
        let mut broken_off = false;
        self.pieces(true, &mut |piece| {
            let mut rest = piece;
            while let Some((end, behind)) = rest.split_once('\n') {
                line.push_str(end);
                broken_off = take(&line)?.is_break();
                if broken_off {
                    return Ok(ControlFlow::Break(()));
                }
                line.clear();
                rest = behind;
            }
            line.push_str(rest);
            Ok(ControlFlow::Continue(()))
        })?;
        match broken_off {
            true => Ok(()),
            false => take(&line).map(drop).map_err(|detail| self.unusable(detail)),
        }
    }

    /// The documents of a JSON array.
    fn array(&self, sink: &mut Sink) -> Result<(), WindowsError> {
        let source = self.utf8(true)?;
        let mut entries = Entries { documents: Documents::new(sink), outcome: Ok(ControlFlow::Continue(())) };
        let mut json = serde_json::Deserializer::from_reader(io::BufReader::new(source));
        let read = json.deserialize_seq(&mut entries).and_then(|()| json.end());
        match (entries.outcome, read) {
            (Err(detail), _) => Err(self.unusable(detail)),
            (Ok(ControlFlow::Break(())), _) | (_, Ok(())) => Ok(()),
            (_, Err(error)) if error.is_io() => Err(self.failed(error.into())),
            (_, Err(error)) => {
                Err(self.unusable(format!("not a JSON array: {error}; expected objects with a field `text`")))
            }
        }
    }
}

/// Documents on their way to a sink, with a blank line between two.
struct Documents<'a, 'b> {
    sink: &'a mut Sink<'b>,
    any: bool,
}

impl<'a, 'b> Documents<'a, 'b> {
    fn new(sink: &'a mut Sink<'b>) -> Self {
        Documents { sink, any: false }
    }

    fn give(&mut self, place: &str, json: &Value) -> Result<ControlFlow<()>, String> {
        let text = json.get("text").and_then(Value::as_str);
        let text = text.ok_or_else(|| format!("{place} has no field `text`"))?;
        if self.any && (self.sink)("\n\n")?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.any = true;
        (self.sink)(text)
    }
}

/// The entries of a JSON array, one in memory at a time.
struct Entries<'a, 'b> {
    documents: Documents<'a, 'b>,
    outcome: Result<ControlFlow<()>, String>,
}

impl<'de> Visitor<'de> for &mut Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(json) = items.next_element::<Value>()? {
            self.outcome = self.documents.give(&format!("entry {number} of the array"), &json);
            if !matches!(self.outcome, Ok(ControlFlow::Continue(()))) {
                return Err(A::Error::custom("broken off")); // the outcome says why
            }
            number += 1;
        }
        Ok(())
    }
}

/// Bytes that are checked to be UTF-8, in pieces of whole characters.
struct Utf8<'a> {
    source: Box<dyn Read + 'a>,
    buffer: Vec<u8>,
    /// Where the buffer stands in the file.
    offset: usize,
    /// The bytes of the last piece, which the buffer begins with.
    given: usize,
    /// Those of them that [`Read`] has handed on.
    taken: usize,
}

impl Utf8<'_> {
    const PIECE: usize = 1 << 16;

    /// The next piece, which is not empty; `None` at the end. What is not UTF-8 is [`io::ErrorKind::InvalidData`].
    fn piece(&mut self) -> io::Result<Option<&str>> {
        self.buffer.drain(..self.given);
        self.offset += self.given;
        (self.given, self.taken) = (0, 0);
        let added = (&mut self.source).take(Self::PIECE as u64).read_to_end(&mut self.buffer)?;
        self.given = match std::str::from_utf8(&self.buffer) {
            Ok(text) => text.len(),
            // Half a character, whose other half comes with the next piece.
            Err(error) if error.error_len().is_none() && added == Self::PIECE => error.valid_up_to(),
            Err(error) => return Err(self.not_text(error.valid_up_to())),
        };
        Ok(std::str::from_utf8(&self.buffer[..self.given]).ok().filter(|piece| !piece.is_empty()))
    }

    fn not_text(&self, place: usize) -> io::Error {
        let packed = [(&[0x1f, 0x8b][..], "gzip"), (b"PAR1", "Parquet"), (b"\x28\xb5\x2f\xfd", "Zstandard")];
        let packed = packed.iter().find(|(magic, _)| self.offset == 0 && self.buffer.starts_with(magic));
        let detail = match packed {
            Some((_, kind)) => format!("is a {kind} file; give its text, or JSON lines with a field `text`"),
            None => format!("not UTF-8 text (byte {})", self.offset + place),
        };
        io::Error::new(io::ErrorKind::InvalidData, detail)
    }
}

impl Read for Utf8<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.given && self.piece()?.is_none() {
            return Ok(0);
        }
        let count = (&self.buffer[self.taken..self.given]).read(to)?;
        self.taken += count;
        Ok(count)
    }
}
