//! GGUF files, as llama.cpp writes them: metadata, and tensors whose values may be stored in blocks with a scale.
//!
//! No crate is used: the existing ones do not decode the values, and allocate what a damaged header asks for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;

use super::CheckpointError;
use crate::tensors::TensorError;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Metadata {
    /// An integer of any width, signed or not.
    Integer(i128),
    /// A float of 32 or 64 bits.
    Float(f64),
    /// A boolean.
    Flag(bool),
    /// A UTF-8 string.
    Text(String),
    /// Values of one type, none of them an array.
    Array(Vec<Metadata>),
}

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// One by one.
    F32,
    /// One by one.
    F16,
    /// One by one.
    Bf16,
    /// 32 values: scale d (f16), 32 signed bytes q; d q.
    Q8_0,
    /// 32 values: d (f16), 16 bytes with q in 4 bits, the low ones first; d (q - 8).
    Q4_0,
    /// 32 values: d and m (f16), then as Q4_0; d q + m.
    Q4_1,
}

impl Encoding {
    const ALL: [(u32, Encoding); 6] = [
        (0, Encoding::F32),
        (1, Encoding::F16),
        (30, Encoding::Bf16),
        (8, Encoding::Q8_0),
        (2, Encoding::Q4_0),
        (3, Encoding::Q4_1),
    ];

    /// Values and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Encoding::F32 => (1, 4),
            Encoding::F16 | Encoding::Bf16 => (1, 2),
            Encoding::Q8_0 => (32, 34),
            Encoding::Q4_0 => (32, 18),
            Encoding::Q4_1 => (32, 20),
        }
    }

    /// The values of whole blocks, in the arithmetic of the format: f32, each operation rounded.
    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let half = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let (values, size) = self.block();
        let mut decoded = Vec::with_capacity(bytes.len() / size * values);
        for block in bytes.chunks_exact(size) {
            let nibbles = |quants: &[u8]| -> [f32; 32] {
                std::array::from_fn(|i| f32::from(if i < 16 { quants[i] & 15 } else { quants[i - 16] >> 4 }))
            };
            match self {
                Encoding::F32 => decoded.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
                Encoding::F16 => decoded.push(half(block, 0)),
                Encoding::Bf16 => decoded.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
                Encoding::Q8_0 => {
                    let scale = half(block, 0);
                    decoded.extend(block[2..].iter().map(|&q| scale * f32::from(q as i8)));
                }
                Encoding::Q4_0 => {
                    let scale = half(block, 0);
                    decoded.extend(nibbles(&block[2..]).map(|q| scale * (q - 8.0)));
                }
                Encoding::Q4_1 => {
                    let (scale, least) = (half(block, 0), half(block, 2));
                    decoded.extend(nibbles(&block[4..]).map(|q| scale * q + least));
                }
            }
        }
        decoded
    }
}

/// A tensor's place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Rows first. (The file lists the innermost dimension first.)
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub encoding: Encoding,
    start: usize,
    end: usize,
}

/// An open file. Every tensor lies within it.
pub struct GgufFile {
    /// The file.
    pub path: PathBuf,
    /// By key.
    pub metadata: BTreeMap<String, Metadata>,
    /// By name.
    pub tensors: BTreeMap<String, GgufTensor>,
    map: Mmap,
}

impl GgufFile {
    /// Reads the header of a file of version 2 or 3.
    ///
    /// # Errors
    /// [`CheckpointError`]: not a GGUF file, a damaged one, or one with a tensor of an unsupported type.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(TensorError::io(path))?;
        // SAFETY: the file is only read; if another process changes it, values change, but no memory is out of bounds.
        let map = unsafe { Mmap::map(&file) }.map_err(TensorError::io(path))?;
        let malformed = |detail: String| CheckpointError::Malformed { path: path.into(), detail };
        let mut cursor = Cursor { bytes: &map, at: 0 };
        let (metadata, tensors) = cursor.header().map_err(|detail| match detail {
            Refusal::Damaged(detail) => malformed(format!("{detail}; fetch the file again")),
            Refusal::Unknown(detail) => CheckpointError::Unsupported { path: path.into(), detail },
        })?;
        Ok(GgufFile { path: path.into(), metadata, tensors, map })
    }

    /// A tensor's values, row by row, as f32.
    pub fn values(&self, tensor: &GgufTensor) -> Vec<f32> {
        tensor.encoding.decode(&self.map[tensor.start..tensor.end])
    }
}

/// Why a header is refused.
enum Refusal {
    Damaged(String),
    Unknown(String),
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Header = (BTreeMap<String, Metadata>, BTreeMap<String, GgufTensor>);

impl Cursor<'_> {
    fn header(&mut self) -> Result<Header, Refusal> {
        if self.take(4)? != b"GGUF" {
            return Err(Refusal::Unknown("not a GGUF file (it does not begin with GGUF)".into()));
        }
        let version = self.u32()?;
        if ![2, 3].contains(&version) {
            return Err(Refusal::Unknown(format!("is GGUF of version {version}; supported: 2 and 3")));
        }
        let (tensors, keys) = (self.u64()?, self.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(&key, kind, true)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(Refusal::Damaged(format!("`{key}` is there twice")));
            }
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            let name = self.text()?;
            let dimensions = self.u32()?;
            if !(1..=4).contains(&dimensions) {
                return Err(Refusal::Damaged(format!("tensor `{name}` has {dimensions} dimensions")));
            }
            let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
            shape.reverse();
            infos.push((name, shape, self.u32()?, self.u64()?));
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Metadata::Integer(alignment @ 1..=0x1_0000)) => *alignment as usize,
            Some(other) => return Err(Refusal::Damaged(format!("`general.alignment` is {other:?}"))),
        };
        let data = self.at.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, shape, kind, offset) in infos {
            let found = Encoding::ALL.iter().find(|(number, _)| *number == kind);
            let &(_, encoding) = found.ok_or_else(|| {
                Refusal::Unknown(format!(
                    "tensor `{name}` is stored as type {kind}; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1; convert the file to \
                     one of these"
                ))
            })?;
            let tensor = place(&shape, encoding, data, offset)
                .filter(|tensor| tensor.end <= self.bytes.len())
                .ok_or_else(|| {
                    Refusal::Damaged(format!(
                        "tensor `{name}` of shape {shape:?} ({encoding:?}) at offset {offset} does not fit into the file's {} bytes",
                        self.bytes.len()
                    ))
                })?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(Refusal::Damaged(format!("tensor `{name}` is there twice")));
            }
        }
        Ok((metadata, tensors))
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Refusal> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or_else(|| {
            Refusal::Damaged(format!("is truncated: {count} bytes are missing at byte {}", self.at))
        })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, Refusal> {
        let length = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let at = self.at;
        let bytes = Cow::from(self.take(length)?);
        String::from_utf8(bytes.into_owned())
            .map_err(|_| Refusal::Damaged(format!("the text at byte {at} is not UTF-8")))
    }

    fn value(&mut self, key: &str, kind: u32, arrays: bool) -> Result<Metadata, Refusal> {
        Ok(match kind {
            0 => Metadata::Integer(self.array::<1>()?[0].into()),
            1 => Metadata::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Metadata::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Metadata::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Metadata::Integer(self.u32()?.into()),
            5 => Metadata::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => Metadata::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Metadata::Flag(self.array::<1>()? != [0]),
            8 => Metadata::Text(self.text()?),
            9 if arrays => {
                let (kind, length) = (self.u32()?, self.u64()?);
                // Pushed one by one: the length is a claim.
                let mut values = Vec::new();
                for _ in 0..length {
                    values.push(self.value(key, kind, false)?);
                }
                Metadata::Array(values)
            }
            10 => Metadata::Integer(self.u64()?.into()),
            11 => Metadata::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Metadata::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(Refusal::Damaged(format!("`{key}` has a value of type {kind}"))),
        })
    }
}

/// The place of a tensor; `None` if its size overflows.
fn place(shape: &[u64], encoding: Encoding, data: usize, offset: u64) -> Option<GgufTensor> {
    let (values, size) = encoding.block();
    let shape = shape.iter().map(|&length| usize::try_from(length).ok()).collect::<Option<Vec<_>>>()?;
    let count = shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length))?;
    let in_blocks = shape.last()?.is_multiple_of(values);
    let bytes = (count / values).checked_mul(size).filter(|_| in_blocks)?;
    let start = data.checked_add(usize::try_from(offset).ok()?)?;
    Some(GgufTensor { shape, encoding, start, end: start.checked_add(bytes)? })
}
