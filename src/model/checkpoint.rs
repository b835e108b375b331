//! A model directory: safetensors, one file or sharded, memory-mapped, one decoder layer in memory at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};

use super::architecture::layer_tensor;
use super::config::{NormKind, Positions};
use super::forward::{Embedding, Head, Layer, Linear, Norm};
use super::sparse_bitmask::{self, Compressed, StorageFormat};
use super::{CheckpointError, Jitter, ModelConfig};
use crate::files::parse_json;
use crate::linalg::Scalar;
use crate::tensors::{FloatType, TensorData, TensorError, TensorFile, TensorInfo};

const LM_HEAD: &str = "lm_head.weight";

/// An open model directory whose tensors are all there and all of the right shape.
pub struct Checkpoint {
    /// The directory.
    pub directory: PathBuf,
    /// Shapes and constants.
    pub config: ModelConfig,
    /// Disturbs the decoder layers' linears as they are read.
    pub jitter: Option<Jitter>,
    shards: Vec<TensorFile>,
    /// Tensor to shard; a compressed weight to that of its values.
    place: BTreeMap<String, usize>,
    /// The weights that are compressed.
    compressed: BTreeMap<String, Compressed>,
    /// What the names of the decoder's tensors begin with.
    prefix: &'static str,
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
        let config = ModelConfig::read(&directory.join("config.json"))?;
        let (shards, mut place) = open_shards(directory)?;
        let compressed = sparse_bitmask::find(&shards, &mut place)?;
        let prefixes = config.architecture.prefixes;
        let there = |prefix: &&&str| place.contains_key(&embedding_name(prefix));
        let prefix = prefixes.iter().find(there).unwrap_or(&prefixes[0]);
        let directory = directory.into();
        let checkpoint = Checkpoint { directory, config, jitter: None, shards, place, compressed, prefix };
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

    /// The name of the tensor that holds a linear's weight.
    pub fn tensor(&self, layer: usize, linear: Linear) -> String {
        self.of_layer(layer, linear.module, "weight")
    }

    /// The names of the weights of all layers' linears.
    pub fn linear_tensors(&self) -> impl Iterator<Item = String> {
        let of_layer =
            move |layer| self.config.linears().iter().map(move |&linear| self.tensor(layer, linear));
        (0..self.config.num_hidden_layers).flat_map(of_layer)
    }

    fn of_layer(&self, layer: usize, module: &str, part: &str) -> String {
        format!("{}{}", self.prefix, layer_tensor(layer, module, part))
    }

    fn of_decoder(&self, module: &str, part: &str) -> String {
        format!("{}{module}.{part}", self.prefix)
    }

    /// One linear's weight (out x in).
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn linear<T: Scalar>(&self, layer: usize, linear: Linear) -> Result<Array2<T>, TensorError> {
        let mut weight = self.matrix(&self.tensor(layer, linear))?;
        if let Some(jitter) = self.jitter {
            jitter.apply((layer * self.config.linears().len() + linear.index) as u32, &mut weight);
        }
        Ok(weight)
    }

    /// One decoder layer.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn layer<T: Scalar>(&self, layer: usize) -> Result<Layer<T>, TensorError> {
        let linears = self.config.linears().iter().map(|&linear| self.linear(layer, linear));
        Ok(Layer { linears: linears.collect::<Result<_, _>>()?, ..self.frame(layer)? })
    }

    /// One decoder layer without its linears.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn frame<T: Scalar>(&self, layer: usize) -> Result<Layer<T>, TensorError> {
        let architecture = self.config.architecture;
        let norm = |module| self.norm(|part| self.of_layer(layer, module, part));
        let bias = |linear: &Linear| {
            let biased = self.config.biased.contains(&linear.role);
            biased.then(|| self.vector(&self.of_layer(layer, linear.module, "bias"))).transpose()
        };
        Ok(Layer {
            attention_norm: norm(architecture.attention_norm)?,
            mlp_norm: norm(architecture.mlp_norm)?,
            linears: Vec::new(),
            biases: architecture.linears.iter().map(bias).collect::<Result<_, _>>()?,
            window: self.config.window(layer),
            architecture,
        })
    }

    /// The norm whose parts have these names.
    fn norm<T: Scalar>(&self, name: impl Fn(&str) -> String) -> Result<Norm<T>, TensorError> {
        let bias = match self.config.norm {
            NormKind::Rms { .. } => None,
            NormKind::Layer { .. } => Some(self.vector(&name("bias"))?),
        };
        Ok(Norm { weight: self.vector(&name("weight"))?, bias })
    }

    /// The name of the tensor with a row for each token.
    pub fn embedding_tensor(&self) -> String {
        embedding_name(self.prefix)
    }

    /// What stands before the first layer.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn embedding<T: Scalar>(&self) -> Result<Embedding<T>, TensorError> {
        Ok(Embedding { tokens: self.matrix(&self.embedding_tensor())?, ..self.embedding_frame()? })
    }

    /// The same without a row for any token.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn embedding_frame<T: Scalar>(&self) -> Result<Embedding<T>, TensorError> {
        let positions = match self.config.positions {
            Positions::Rotary { .. } => None,
            Positions::Learned { offset } => {
                let table = self.matrix(&self.of_decoder(POSITIONS, "weight"))?;
                Some(table.slice_move(ndarray::s![offset.., ..]))
            }
        };
        let project = self.projects().then(|| self.matrix(&self.of_decoder(PROJECT_IN, "weight")));
        Ok(Embedding {
            tokens: Array2::zeros((0, self.config.embedding_size)),
            project: project.transpose()?,
            positions,
        })
    }

    /// The rows of some tokens (tokens x embedding size); the others stay on the disk.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    ///
    /// # Panics
    /// When a token lies outside the vocabulary.
    pub fn embedding_rows<T: Scalar>(&self, tokens: &[u32]) -> Result<Array2<T>, TensorError> {
        let name = self.embedding_tensor();
        self.tensor_data(&name)?.rows(tokens.iter().map(|&token| token as usize))
    }

    /// What stands behind the last layer. lm_head is the embedding where the two are tied.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn head<T: Scalar>(&self) -> Result<Head<T>, TensorError> {
        Ok(Head { weight: self.matrix(&self.lm_head_tensor())?, ..self.head_frame()? })
    }

    /// The tensor that holds lm_head.
    pub fn lm_head_tensor(&self) -> String {
        if self.config.tie_word_embeddings { self.embedding_tensor() } else { LM_HEAD.into() }
    }

    /// What stands between the last layer and lm_head, without the latter.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn head_frame<T: Scalar>(&self) -> Result<Head<T>, TensorError> {
        let config = &self.config;
        let norm = || self.norm(|part| self.of_decoder(config.architecture.final_norm, part));
        let project = self.projects().then(|| self.matrix(&self.of_decoder(PROJECT_OUT, "weight")));
        Ok(Head {
            norm: config.final_norm.then(norm).transpose()?,
            project: project.transpose()?,
            weight: Array2::zeros((0, config.embedding_size)),
        })
    }

    /// Whether the embedding has another width than the residual stream.
    fn projects(&self) -> bool {
        self.config.embedding_size != self.config.hidden_size
    }

    /// Gives mapped pages back to the system. Called after each layer, so that the resident set does not grow with
    /// the model.
    pub fn drop_pages(&self) {
        self.shards.iter().for_each(TensorFile::drop_pages);
    }

    fn check_tensors(&self) -> Result<(), CheckpointError> {
        let (c, architecture) = (&self.config, self.config.architecture);
        self.check(&self.embedding_tensor(), &[c.vocab_size, c.embedding_size])?;
        if let Positions::Learned { offset } = c.positions {
            let rows = c.max_position_embeddings + offset;
            self.check(&self.of_decoder(POSITIONS, "weight"), &[rows, c.hidden_size])?;
        }
        if self.projects() {
            self.check(&self.of_decoder(PROJECT_IN, "weight"), &[c.hidden_size, c.embedding_size])?;
            self.check(&self.of_decoder(PROJECT_OUT, "weight"), &[c.embedding_size, c.hidden_size])?;
        }
        if c.final_norm {
            self.check_norm(|part| self.of_decoder(architecture.final_norm, part))?;
        }
        if !c.tie_word_embeddings {
            self.check(LM_HEAD, &[c.vocab_size, c.embedding_size])?;
        }
        for layer in 0..c.num_hidden_layers {
            self.check_norm(|part| self.of_layer(layer, architecture.attention_norm, part))?;
            self.check_norm(|part| self.of_layer(layer, architecture.mlp_norm, part))?;
            for &linear in architecture.linears {
                let (rows, columns) = linear.shape(c);
                self.check(&self.tensor(layer, linear), &[rows, columns])?;
                if c.biased.contains(&linear.role) {
                    self.check(&self.of_layer(layer, linear.module, "bias"), &[rows])?;
                }
            }
        }
        let beyond = self.tensor(c.num_hidden_layers, architecture.linears[0]);
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

    fn check_norm(&self, name: impl Fn(&str) -> String) -> Result<(), TensorError> {
        self.check(&name("weight"), &[self.config.hidden_size])?;
        match self.config.norm {
            NormKind::Rms { .. } => Ok(()),
            NormKind::Layer { .. } => self.check(&name("bias"), &[self.config.hidden_size]),
        }
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

fn embedding_name(prefix: &str) -> String {
    format!("{prefix}embed_tokens.weight")
}

/// Of the decoder, where an architecture has them.
const POSITIONS: &str = "embed_positions";
const PROJECT_IN: &str = "project_in";
const PROJECT_OUT: &str = "project_out";

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
