//! The `sparse-bitmask` layout of the compressed-tensors package: a weight (n x k) on disk without its zeros.
//!
//! In place of `<module>.weight` there are four tensors:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `<module>.shape` | I64 | 2 | n, k |
//! | `<module>.compressed` | the weight's | stored values | row by row |
//! | `<module>.bitmask` | U8 | n x ceil(k / 8) | column j is bit j mod 8 of byte j / 8; the bits after column k are 0 |
//! | `<module>.row_offsets` | I64 | n | how many values come before each row |
//!
//! and an entry in `config.json` ([`entry`]). At 50 % in bf16 that is 1/2 + 1/16 of the dense bytes.
//!
//! The package stores what differs from zero, so it loses the sign of -0. We store all but +0, bit by bit; the package
//! decompresses either.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::tensors::{Dtype, FloatType, TensorData, TensorError, TensorFile, TensorInfo};

/// How the decoder layers' weights are stored on disk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum StorageFormat {
    /// Every weight.
    #[default]
    Dense,
    /// Without zeros, as the compressed-tensors package stores them.
    SparseBitmask,
}

/// The key in `config.json`.
pub const ENTRY: &str = "quantization_config";

/// The same key in the package's first versions.
pub const OLDER_ENTRY: &str = "compression_config";

/// The value in `config.json`, as the package's version 0.12 writes it. `sparsity` is the fraction of zeros of all weights.
pub fn entry(sparsity: f64) -> Value {
    json!({
        "quant_method": "compressed-tensors",
        "version": "0.12.2",
        "sparsity_config": {
            "format": "sparse-bitmask",
            "global_sparsity": sparsity,
            "ignore": ["lm_head"],
            "registry_requires_subclass": false,
            "sparsity_structure": "unstructured",
            "targets": ["Linear"],
        },
        "transform_config": {},
    })
}

/// Checks that an entry of `config.json` declares this layout, or dense weights, and nothing else.
///
/// # Errors
/// What else it declares.
pub fn check_entry(entry: &Value) -> Result<(), String> {
    let method = entry.get("quant_method").and_then(Value::as_str);
    let format = entry.get("sparsity_config").and_then(|config| config.get("format")).and_then(Value::as_str);
    let empty = |value: &Value| {
        value.is_null()
            || value.as_object().is_some_and(serde_json::Map::is_empty)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    let besides = entry.as_object().into_iter().flatten().find(|(key, value)| match key.as_str() {
        "quant_method" | "version" | "sparsity_config" => false,
        // Of the quantisation, of which there is none unless `config_groups` says what is quantised.
        "quantization_status" | "ignore" => false,
        "format" => value.as_str() != Some("dense") && !empty(value),
        _ => !empty(value),
    });
    match (method, format, besides) {
        (Some("compressed-tensors"), Some("sparse-bitmask" | "dense"), None) => Ok(()),
        (Some("compressed-tensors"), Some(format), None) => Err(format!(
            "weights are stored as `{format}` (`{ENTRY}.sparsity_config.format`); supported: dense, sparse-bitmask"
        )),
        (Some("compressed-tensors"), Some(_), Some((key, value))) if key != "config_groups" => Err(format!(
            "`{ENTRY}.{key}` is {value}, and what that asks for is not known here; expected a `sparsity_config` alone"
        )),
        _ => Err(format!("the checkpoint is quantised (`{ENTRY}`); give one with f32, f16 or bf16 weights")),
    }
}

const PARTS: [&str; 4] = ["shape", "compressed", "bitmask", "row_offsets"];

/// The name of a part.
fn part(weight: &str, part: &str) -> String {
    format!("{}.{part}", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// The weight that a tensor of this name may be a part of. (The package's first versions put the part behind the weight's
/// whole name: `<module>.weight.bitmask`.)
pub(super) fn weight_of(name: &str) -> Option<String> {
    let (stem, part) = name.rsplit_once('.')?;
    let weight = || if stem.ends_with(".weight") { stem.into() } else { format!("{stem}.weight") };
    PARTS.contains(&part).then(weight)
}

/// A weight of a checkpoint whose parts are all there, of the right types and of shapes that fit each other.
pub(super) struct Compressed {
    weight: String,
    /// That of the dense weight; the place is that of the values.
    info: TensorInfo,
    /// [`PARTS`]: shard and name.
    parts: [(usize, String); 4],
}

/// Finds the compressed weights by their values, and adds them to `place`, from tensor to shard.
pub(super) fn find(
    shards: &[TensorFile],
    place: &mut BTreeMap<String, usize>,
) -> Result<BTreeMap<String, Compressed>, TensorError> {
    let mut all = BTreeMap::new();
    let suffix = format!(".{}", PARTS[1]);
    let modules: Vec<(String, usize)> = place
        .iter()
        .filter(|(name, _)| name.ends_with(&suffix))
        .map(|(name, &at)| (name.clone(), at))
        .collect();
    for (name, shard) in modules {
        let Some(weight) = weight_of(&name) else { continue };
        if let Some(&other) = place.get(&weight) {
            return Err(TensorError::Malformed {
                path: shards[other].path().into(),
                detail: format!("`{weight}` is there, and compressed as `{name}` too; remove one of the two"),
            });
        }
        let stem = name.strip_suffix(&suffix).unwrap_or(&name);
        let mut parts = PARTS.map(|part| (shard, format!("{stem}.{part}")));
        for (at, name) in &mut parts {
            let missing =
                || TensorError::MissingTensor { path: shards[shard].path().into(), name: name.clone() };
            *at = *place.get(name).ok_or_else(missing)?;
        }
        let compressed = Compressed::check(shards, parts, &weight)?;
        place.insert(weight.clone(), shard);
        all.insert(weight, compressed);
    }
    Ok(all)
}

impl Compressed {
    fn check(shards: &[TensorFile], parts: [(usize, String); 4], weight: &str) -> Result<Self, TensorError> {
        let open = |number: usize| {
            let (shard, name) = &parts[number];
            shards[*shard].tensor(name)
        };
        let (shape, values, bitmask, offsets) = (open(0)?, open(1)?, open(2)?, open(3)?);
        expect(&shape, Dtype::I64, "I64", &[2], "a matrix's rows and columns")?;
        let (words, _) = shape.bytes.as_chunks::<8>();
        let mut size = [0; 2];
        for (dimension, (size, word)) in size.iter_mut().zip(words).enumerate() {
            let length = i64::from_le_bytes(*word);
            let damaged =
                || shape.damaged(8 * dimension, format!("a weight of {length} rows or columns cannot be"));
            *size = usize::try_from(length).map_err(|_| damaged())?;
        }
        let [n, k] = size;
        expect(&bitmask, Dtype::U8, "U8", &[n, k.div_ceil(8)], "a bit per weight")?;
        expect(&offsets, Dtype::I64, "I64", &[n], "a number per row")?;
        let dtype = values.info.dtype;
        if FloatType::of(dtype).is_none() {
            return Err(values.wrong_dtype("F64, F32, F16 or BF16"));
        }
        let weights = n.checked_mul(k).filter(|weights| *weights <= isize::MAX as usize / 8);
        match weights {
            Some(weights) if values.info.shape.len() == 1 && values.info.shape[0] <= weights => {}
            _ => {
                return Err(TensorError::ShapeMismatch {
                    path: values.path.into(),
                    name: values.name.clone(),
                    expected: format!("at most as many values as the {n} x {k} weights of `{weight}`"),
                    found: values.info.shape.clone(),
                });
            }
        }
        let info = TensorInfo { dtype, shape: vec![n, k], bytes: values.info.bytes.clone() };
        Ok(Compressed { weight: weight.into(), info, parts })
    }

    /// Type and shape of the dense weight.
    pub(super) fn info(&self) -> &TensorInfo {
        &self.info
    }

    /// Bytes of all parts.
    pub(super) fn bytes(&self, shards: &[TensorFile]) -> usize {
        let of_part =
            |(shard, name): &(usize, String)| shards[*shard].get(name).map_or(0, |info| info.bytes.len());
        self.parts.iter().map(of_part).sum()
    }

    /// The dense weight. Bitmask, offsets and number of values are checked against each other before a value is read.
    ///
    /// # Errors
    /// [`TensorError::Damaged`].
    pub(super) fn decompress<'a>(&self, shards: &'a [TensorFile]) -> Result<TensorData<'a>, TensorError> {
        let open = |number: usize| {
            let (shard, name) = &self.parts[number];
            shards[*shard].tensor(name)
        };
        let (values, bitmask, offsets) = (open(1)?, open(2)?, open(3)?);
        let (k, size) = (self.info.shape[1], self.info.dtype.bitsize() / 8);
        let row_bytes = k.div_ceil(8);
        let rows = |row: usize| &bitmask.bytes[row * row_bytes..][..row_bytes];

        let stored = values.info.shape[0];
        let (starts, _) = offsets.bytes.as_chunks::<8>();
        let mut before = 0usize;
        for (row, start) in starts.iter().enumerate() {
            let start = i64::from_le_bytes(*start);
            if usize::try_from(start) != Ok(before) {
                let detail = format!(
                    "row {row} begins at value {start} of {stored}, but the bitmask has {before} bits set before it"
                );
                return Err(offsets.damaged(8 * row, detail));
            }
            let bits = rows(row);
            if let Some(last) = bits.last().filter(|_| !k.is_multiple_of(8))
                && last >> (k % 8) != 0
            {
                let detail = format!("row {row} has a bit set after its last column {}", k - 1);
                return Err(bitmask.damaged(row * row_bytes + row_bytes - 1, detail));
            }
            before += bits.iter().map(|byte| byte.count_ones() as usize).sum::<usize>();
        }
        if before != stored {
            let detail = format!("there are {stored} values, but the bitmask has {before} bits set");
            return Err(values.damaged(stored.min(before) * size, detail));
        }

        let mut dense = vec![0; starts.len() * k * size];
        let row_of = |(row, dense): (usize, &mut [u8])| {
            let start = i64::from_le_bytes(starts[row]) as usize * size;
            let mut values = values.bytes[start..].chunks_exact(size);
            for (byte, dense) in rows(row).iter().zip(dense.chunks_mut(8 * size)) {
                let mut left = *byte;
                while left != 0 {
                    let column = left.trailing_zeros() as usize;
                    let value = values.next().expect("as many values as bits were counted");
                    dense[column * size..][..size].copy_from_slice(value);
                    left &= left - 1;
                }
            }
        };
        if k > 0 {
            dense.par_chunks_mut(k * size).enumerate().for_each(row_of);
        }
        Ok(TensorData {
            path: values.path,
            name: self.weight.clone(),
            info: self.info.clone(),
            bytes: Cow::Owned(dense),
        })
    }
}

/// Refuses a part of another type or shape.
fn expect(
    tensor: &TensorData,
    dtype: Dtype,
    name: &'static str,
    shape: &[usize],
    meaning: &str,
) -> Result<(), TensorError> {
    if tensor.info.dtype != dtype {
        return Err(tensor.wrong_dtype(name));
    }
    if tensor.info.shape != shape {
        return Err(TensorError::ShapeMismatch {
            path: tensor.path.into(),
            name: tensor.name.clone(),
            expected: format!("{shape:?} ({meaning})"),
            found: tensor.info.shape.clone(),
        });
    }
    Ok(())
}

/// Whether a value is stored: all but +0.
fn is_stored(value: &[u8]) -> bool {
    value.iter().any(|&byte| byte != 0)
}

/// How many values of a dense weight are stored, each `size` bytes long.
pub fn stored_values(dense: &[u8], size: usize) -> usize {
    dense.par_chunks(size << 16).map(|part| part.chunks_exact(size).filter(|v| is_stored(v)).count()).sum()
}

/// Name, type and shape of the parts of a weight, by the number of its stored values; in the order of [`compress`].
pub fn parts(weight: &str, info: &TensorInfo, stored: usize) -> [(String, Dtype, Vec<usize>); 4] {
    let [n, k] = info.shape[..] else { unreachable!("only matrices are compressed") };
    let types = [Dtype::I64, info.dtype, Dtype::U8, Dtype::I64];
    let shapes = [vec![2], vec![stored], vec![n, k.div_ceil(8)], vec![n]];
    let mut named = PARTS.into_iter().zip(types).zip(shapes);
    std::array::from_fn(|_| {
        let ((name, dtype), shape) = named.next().expect("four of each");
        (part(weight, name), dtype, shape)
    })
}

/// The bytes of the parts of a dense weight (n x k, values of `size` bytes).
pub fn compress(dense: &[u8], (n, k): (usize, usize), size: usize) -> [Vec<u8>; 4] {
    let shape = [n, k].iter().flat_map(|&length| (length as i64).to_le_bytes()).collect();
    let (mut values, mut bitmask, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..n {
        offsets.extend(((values.len() / size) as i64).to_le_bytes());
        for eight in dense[row * k * size..][..k * size].chunks(8 * size) {
            let mut byte = 0;
            for (bit, value) in eight.chunks_exact(size).enumerate().filter(|(_, value)| is_stored(value)) {
                byte |= 1 << bit;
                values.extend(value);
            }
            bitmask.push(byte);
        }
    }
    [shape, values, bitmask, offsets]
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tensors::TensorWriter;

    /// Bytes of an n x k weight of which every `nth` value may be zero.
    fn weights() -> impl Strategy<Value = (usize, usize, Dtype, Vec<u8>)> {
        let types = prop::sample::select(vec![Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64]);
        let values = |(n, k, dtype): (usize, usize, Dtype)| {
            let size = dtype.bitsize() / 8;
            let value = prop_oneof![
                Just(vec![0; size]),
                Just([vec![0; size - 1], vec![0x80]].concat()), // -0
                prop::collection::vec(any::<u8>(), size),
            ];
            let bytes = prop::collection::vec(value, n * k).prop_map(|values| values.concat());
            (Just(n), Just(k), Just(dtype), bytes)
        };
        (0usize..20, 0usize..40, types).prop_flat_map(values)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Every bit pattern, every shape.
        #[test]
        fn what_is_compressed_comes_back((n, k, dtype, dense) in weights()) {
            let size = dtype.bitsize() / 8;
            let info = TensorInfo { dtype, shape: vec![n, k], bytes: 0..0 };
            let stored = stored_values(&dense, size);
            prop_assert_eq!(stored, dense.chunks_exact(size).filter(|value| value.iter().any(|b| *b != 0)).count());
            let entries = parts("m.weight", &info, stored);
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            let headers = entries.iter().map(|(name, dtype, shape)| (name.as_str(), *dtype, shape.as_slice()));
            let writer = TensorWriter::create(&path, headers, &HashMap::new()).unwrap();
            for ((name, _, _), bytes) in entries.iter().zip(compress(&dense, (n, k), size)) {
                writer.write(name, &bytes).unwrap();
            }
            let file = TensorFile::open(&path).unwrap();
            let mut place = file.names().map(|name| (name.to_string(), 0)).collect();
            let shards = [file];
            let all = find(&shards, &mut place).unwrap();
            prop_assert_eq!(place.get("m.weight"), Some(&0));
            let back = all["m.weight"].decompress(&shards).unwrap();
            prop_assert_eq!((&back.info.shape, back.info.dtype), (&info.shape, dtype));
            prop_assert_eq!(&*back.bytes, &dense[..]);
            prop_assert_eq!(all["m.weight"].bytes(&shards), stored * size + n * k.div_ceil(8) + 8 * n + 16);
        }
    }
}
