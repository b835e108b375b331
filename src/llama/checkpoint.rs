//! A model directory: safetensors, one file or sharded, memory-mapped, one decoder layer in memory at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};

use super::model::{Group, Layer, Linear};
use super::sparse_bitmask::{self, Compressed, StorageFormat};
use super::{CheckpointError, Jitter, LlamaConfig};
use crate::files::parse_json;
use crate::linalg::Scalar;
use crate::tensors::{FloatType, TensorData, TensorError, TensorFile, TensorInfo};

/// Names the tensors that are no decoder layer's.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const LM_HEAD: &str = "lm_head.weight";

/// An open model directory whose tensors are all there and all of the right shape.
pub struct Checkpoint {
    /// The directory.
    pub directory: PathBuf,
    /// Shapes and constants.
    pub config: LlamaConfig,
    /// Disturbs the decoder layers' linears as they are read.
    pub jitter: Option<Jitter>,
    shards: Vec<TensorFile>,
    /// Tensor to shard; a compressed weight to that of its values.
    place: BTreeMap<String, usize>,
    /// The weights that are compressed.
    compressed: BTreeMap<String, Compressed>,
}

impl Checkpoint {
    /// The file that places tensors in shards.
    pub const INDEX: &str = "model.safetensors.index.json";

    /// Opens a Hugging Face directory: `config.json`, and `model.safetensors` or the shards that
    /// `model.safetensors.index.json` names. Checks that every tensor of the architecture is there, of the right
    /// shape and of a floating-point type.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file and the tensor.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        if !directory.is_dir() {
            return Err(CheckpointError::Unusable {
                path: directory.into(),
                detail: "no such directory; expected a Hugging Face model directory".into(),
            });
        }
        let config = LlamaConfig::read(&directory.join("config.json"))?;
        let (shards, mut place) = open_shards(directory)?;
        let compressed = sparse_bitmask::find(&shards, &mut place)?;
        let checkpoint =
            Checkpoint { directory: directory.into(), config, jitter: None, shards, place, compressed };
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    /// The weight files, in the order of their names.
    pub fn shards(&self) -> &[TensorFile] {
        &self.shards
    }

    /// Whether an index places the tensors.
    pub fn is_sharded(&self) -> bool {
        self.directory.join(Self::INDEX).is_file()
    }

    fn shard(&self, name: &str) -> Result<&TensorFile, TensorError> {
        let missing = || {
            // The file that should say where it is.
            let path = match &self.shards[..] {
                [single] if !self.is_sharded() => single.path().into(),
                _ => self.directory.join(Self::INDEX),
            };
            TensorError::MissingTensor { path, name: name.into() }
        };
        self.place.get(name).map(|&shard| &self.shards[shard]).ok_or_else(missing)
    }

    /// Type and shape of a tensor.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo, TensorError> {
        match self.compressed.get(name) {
            Some(compressed) => Ok(compressed.info()),
            None => self.shard(name)?.info(name),
        }
    }

    /// One tensor, dense: a compressed weight is decompressed.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`], [`TensorError::Damaged`].
    pub fn tensor_data(&self, name: &str) -> Result<TensorData<'_>, TensorError> {
        match self.compressed.get(name) {
            Some(compressed) => compressed.decompress(&self.shards),
            None => self.shard(name)?.tensor(name),
        }
    }

    /// How a tensor is stored, and in how many bytes.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`].
    pub fn storage(&self, name: &str) -> Result<(StorageFormat, usize), TensorError> {
        match self.compressed.get(name) {
            Some(compressed) => Ok((StorageFormat::SparseBitmask, compressed.bytes(&self.shards))),
            None => Ok((StorageFormat::Dense, self.shard(name)?.bytes(name)?.len())),
        }
    }

    /// Names and infos of the tensors of a shard in the order of its header. A compressed weight stands where the first of its
    /// parts does, in the shard of its values.
    pub fn tensors_of(&self, shard: usize) -> Vec<(String, TensorInfo)> {
        let mut tensors: Vec<(String, TensorInfo)> = Vec::new();
        for (name, info) in self.shards[shard].in_header_order() {
            match sparse_bitmask::weight_of(name).filter(|weight| self.compressed.contains_key(weight)) {
                None => tensors.push((name.into(), info.clone())),
                Some(weight) if self.place[&weight] != shard => {}
                Some(weight) if tensors.iter().any(|(name, _)| *name == weight) => {}
                Some(weight) => {
                    let info = self.compressed[&weight].info().clone();
                    tensors.push((weight, info));
                }
            }
        }
        tensors
    }

    fn vector<T: Scalar>(&self, name: &str) -> Result<Array1<T>, TensorError> {
        self.tensor_data(name)?.vector()
    }

    fn matrix<T: Scalar>(&self, name: &str) -> Result<Array2<T>, TensorError> {
        self.tensor_data(name)?.matrix()
    }

    /// One linear's weight (out x in).
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn linear<T: Scalar>(&self, layer: usize, linear: Linear) -> Result<Array2<T>, TensorError> {
        let mut weight = self.matrix(&linear.tensor(layer))?;
        if let Some(jitter) = self.jitter {
            jitter.apply((layer * Linear::ALL.len() + linear as usize) as u32, &mut weight);
        }
        Ok(weight)
    }

    /// One decoder layer.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn layer<T: Scalar>(&self, layer: usize) -> Result<Layer<T>, TensorError> {
        let linears = Linear::ALL.map(|linear| self.linear(layer, linear));
        Ok(Layer {
            input_layernorm: self.vector(&input_layernorm(layer))?,
            post_attention_layernorm: self.vector(&post_attention_layernorm(layer))?,
            linears: linears.into_iter().collect::<Result<_, _>>()?,
        })
    }

    /// The embedding (vocabulary x hidden).
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn embedding<T: Scalar>(&self) -> Result<Array2<T>, TensorError> {
        self.matrix(EMBEDDING)
    }

    /// The weight of the norm before lm_head (hidden).
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn final_norm<T: Scalar>(&self) -> Result<Array1<T>, TensorError> {
        self.vector(FINAL_NORM)
    }

    /// lm_head (vocabulary x hidden); the embedding where the two are tied.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn lm_head<T: Scalar>(&self) -> Result<Array2<T>, TensorError> {
        self.matrix(if self.config.tie_word_embeddings { EMBEDDING } else { LM_HEAD })
    }

    /// Gives mapped pages back to the system. Called after each layer, so that the resident set does not grow with
    /// the model.
    pub fn drop_pages(&self) {
        self.shards.iter().for_each(TensorFile::drop_pages);
    }

    fn check_tensors(&self) -> Result<(), CheckpointError> {
        let c = &self.config;
        self.check(EMBEDDING, &[c.vocab_size, c.hidden_size])?;
        self.check(FINAL_NORM, &[c.hidden_size])?;
        if !c.tie_word_embeddings {
            self.check(LM_HEAD, &[c.vocab_size, c.hidden_size])?;
        }
        for layer in 0..c.num_hidden_layers {
            self.check(&input_layernorm(layer), &[c.hidden_size])?;
            self.check(&post_attention_layernorm(layer), &[c.hidden_size])?;
            for linear in Linear::ALL {
                let (rows, columns) = linear.shape(c);
                self.check(&linear.tensor(layer), &[rows, columns])?;
            }
        }
        let beyond = Linear::Q.tensor(c.num_hidden_layers);
        if self.place.contains_key(&beyond) {
            return Err(CheckpointError::Malformed {
                path: self.directory.join("config.json"),
                detail: format!(
                    "`num_hidden_layers` is {}, but tensor `{beyond}` exists",
                    c.num_hidden_layers
                ),
            });
        }
        Ok(())
    }

    fn check(&self, name: &str, expected: &[usize]) -> Result<(), TensorError> {
        let info = self.info(name)?;
        let path = self.shard(name)?.path().to_path_buf();
        if info.shape != expected {
            let expected = format!("{expected:?} (from config.json)");
            return Err(TensorError::ShapeMismatch {
                path,
                name: name.into(),
                expected,
                found: info.shape.clone(),
            });
        }
        if FloatType::of(info.dtype).is_none() {
            let expected = "F64, F32, F16 or BF16";
            return Err(TensorError::Dtype { path, name: name.into(), expected, found: info.dtype });
        }
        Ok(())
    }
}

fn input_layernorm(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

fn post_attention_layernorm(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

impl Linear {
    /// The tensor that holds this linear's weight.
    pub fn tensor(self, layer: usize) -> String {
        let block = match self.group() {
            Group::Qkv | Group::O => "self_attn",
            Group::GateUp | Group::Down => "mlp",
        };
        format!("model.layers.{layer}.{block}.{self}.weight")
    }
}

type Shards = (Vec<TensorFile>, BTreeMap<String, usize>);

fn open_shards(directory: &Path) -> Result<Shards, CheckpointError> {
    let index = directory.join(Checkpoint::INDEX);
    let single = directory.join("model.safetensors");
    if !index.is_file() {
        if !single.is_file() {
            return Err(CheckpointError::Unusable {
                path: directory.into(),
                detail: "has neither model.safetensors nor model.safetensors.index.json; other weight formats must be \
                         converted to safetensors first"
                    .into(),
            });
        }
        let shard = TensorFile::open(&single)?;
        let place = shard.names().map(|name| (name.to_string(), 0)).collect();
        return Ok((vec![shard], place));
    }

    let malformed = |detail: String| CheckpointError::Malformed { path: index.clone(), detail };
    let text = std::fs::read_to_string(&index).map_err(TensorError::io(&index))?;
    let json = parse_json(&text).map_err(|error| malformed(format!("not JSON: {error}")))?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| malformed("has no `weight_map`".into()))?;
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, file) in map {
        let file = file.as_str().ok_or_else(|| malformed(format!("`weight_map.{name}` names no file")))?;
        // A shard lies beside its index; anything else would read or write elsewhere.
        if Path::new(file).file_name().is_none_or(|base| base != file) {
            return Err(malformed(format!(
                "`weight_map.{name}` names `{file}`, which is no plain file name"
            )));
        }
        files.entry(file.into()).or_default().push(name.clone());
    }
    let (mut shards, mut place) = (Vec::new(), BTreeMap::<String, usize>::new());
    for (file, names) in files {
        let path = directory.join(&file);
        if !path.is_file() {
            return Err(CheckpointError::Unusable {
                path,
                detail: format!("missing; {} names it", index.display()),
            });
        }
        let shard = TensorFile::open(&path)?;
        for name in &names {
            shard.info(name)?; // where the index says it is
        }
        for name in shard.names() {
            if let Some(other) = place.insert(name.to_string(), shards.len()) {
                let other: &TensorFile = &shards[other];
                let detail =
                    format!("tensor `{name}` is also in {}; remove one of the two", other.path().display());
                return Err(CheckpointError::Malformed { path, detail });
            }
        }
        shards.push(shard);
    }
    Ok((shards, place))
}
