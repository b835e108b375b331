//! The header of a safetensors file. The crate `safetensors` decides what is valid ([`Metadata`]); each function here says
//! what it checks besides.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, SafeTensorError, TensorInfo as Entry};
use serde_json::Value;

use crate::files::parse_json;
use crate::tensor_error::TensorError;

/// Where a tensor lies in its file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub(crate) bytes: Range<usize>,
}

/// The key that is no tensor.
pub(super) const METADATA: &str = "__metadata__";

/// Bytes before the header: its length, a u64.
pub(super) const LENGTH: usize = 8;

/// What the format allows, as the crate has it for itself; no published checkpoint comes near.
const LONGEST_HEADER: usize = 100_000_000;

pub(super) struct Header {
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Names in the order of the header.
    pub listed: Vec<String>,
    pub metadata: HashMap<String, String>,
}

/// Reads the header of a file with this content: its length, itself in JSON, the data.
///
/// Adds errors with the numbers, and the order of the names.
pub(super) fn read(path: &Path, content: &[u8]) -> Result<Header, TensorError> {
    let truncated = |detail| TensorError::Truncated { path: path.into(), detail };
    let malformed = |detail| TensorError::Malformed { path: path.into(), detail };

    let (length, rest) = content
        .split_first_chunk::<LENGTH>()
        .ok_or_else(|| truncated(format!("{} bytes, expected at least {LENGTH}", content.len())))?;
    let length = u64::from_le_bytes(*length);
    let split = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let (header, data) = split.ok_or_else(|| {
        truncated(format!("the header should have {length} bytes, and {} are left", rest.len()))
    })?;
    if header.len() > LONGEST_HEADER {
        return Err(malformed(format!("{length} bytes long, expected at most {LONGEST_HEADER}")));
    }
    let (metadata, mut entries) = parse(header).map_err(malformed)?;
    let listed = entries.iter().map(|(name, _)| name.clone()).collect();
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    validate(&entries, data.len()).map_err(|refusal| explain(path, &entries, data.len(), &refusal))?;

    let start = LENGTH + header.len();
    let place = |(begin, end)| start + begin..start + end;
    let info = |entry: Entry| TensorInfo {
        dtype: entry.dtype,
        shape: entry.shape,
        bytes: place(entry.data_offsets),
    };
    let tensors = entries.into_iter().map(|(name, entry)| (name, info(entry))).collect();
    Ok(Header { tensors, listed, metadata })
}

/// `__metadata__`, and the tensors in the order of the header.
type Parts = (HashMap<String, String>, Vec<(String, Entry)>);

/// Parses a header. Adds that no key may be there twice (the crate keeps the last), and the name of an entry that cannot be
/// read.
fn parse(header: &[u8]) -> Result<Parts, String> {
    let text = std::str::from_utf8(header).map_err(|error| format!("not UTF-8: {error}"))?;
    let json = parse_json(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(mut json) = json else { return Err("not a JSON object".into()) };
    let metadata = json.shift_remove(METADATA).map_or(Ok(HashMap::new()), |metadata| {
        serde_json::from_value(metadata)
            .map_err(|error| format!("`{METADATA}`: {error}, expected text for text"))
    })?;
    let entry = |(name, entry)| match serde_json::from_value(entry) {
        Ok(entry) => Ok((name, entry)),
        Err(error) => Err(format!("tensor `{name}`: {error}")),
    };
    Ok((metadata, json.into_iter().map(entry).collect::<Result<_, _>>()?))
}

/// Whether the crate takes these tensors, by their place, for `length` bytes of data. Adds that no dimension of 0 may hide an
/// overflow of the others, whose shapes arrays refuse. (`SafeTensors::read_metadata` asks the same of the length, but may
/// itself overflow: it adds that of the header to the last offset.)
fn validate(entries: &[(String, Entry)], length: usize) -> Result<(), SafeTensorError> {
    let layout = Metadata::new(None, entries.to_vec())?;
    let fits = |entry: &Entry| {
        let mut nonzero = entry.shape.iter().filter(|&&length| length > 0);
        let bits = nonzero.try_fold(entry.dtype.bitsize(), |bits, &length| bits.checked_mul(length));
        bits.is_some_and(|bits| bits <= isize::MAX as usize)
    };
    if !entries.iter().all(|(_, entry)| fits(entry)) {
        return Err(SafeTensorError::ValidationOverflow);
    }
    if layout.data_len() != length {
        return Err(SafeTensorError::MetadataIncompleteBuffer);
    }
    Ok(())
}

/// What [`validate`] refused. Adds the first tensor at fault, with what is there and what was expected.
fn explain(
    path: &Path,
    entries: &[(String, Entry)],
    length: usize,
    refusal: &SafeTensorError,
) -> TensorError {
    let truncated = |detail| TensorError::Truncated { path: path.into(), detail };
    let malformed = |detail| TensorError::Malformed { path: path.into(), detail };
    let mut expected = 0;
    for (name, entry) in entries {
        let Entry { dtype, shape, data_offsets: (begin, end) } = entry;
        let (begin, end) = (*begin, *end);
        let place =
            format!("tensor `{name}` ({dtype:?}, shape {shape:?}) at bytes {begin}..{end} of the data");
        if begin > end {
            return malformed(format!("{place}: it ends before it begins"));
        }
        if end > length {
            return truncated(format!("{place}: there are only {length}"));
        }
        if begin != expected {
            let what = if begin < expected { "overlaps the tensor before it" } else { "leaves a gap" };
            return malformed(format!("{place}: {what}, expected to begin at {expected}"));
        }
        let alone = Entry { data_offsets: (0, end - begin), ..entry.clone() };
        match validate(&[(name.clone(), alone)], end - begin) {
            Ok(()) => expected = end,
            Err(SafeTensorError::TensorInvalidInfo) => {
                let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                return malformed(format!("{place}: type and shape take {size} bytes"));
            }
            Err(_) => return malformed(format!("{place}: no such number of whole bytes can be")),
        }
    }
    match length - expected {
        0 => malformed(refusal.to_string()),
        left => malformed(format!("{left} bytes after the last tensor belong to none")),
    }
}
