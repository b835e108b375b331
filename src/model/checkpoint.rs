//! A model directory: safetensors, one file or sharded, memory-mapped, one decoder layer in memory at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

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

/// An open model directory. Every tensor that the config asks for exists and has the right shape.
pub struct Checkpoint {
    /// The directory.
    pub directory: PathBuf,
    /// Shapes and constants.
    pub config: ModelConfig,
    /// Changes the decoder layers' weights at random as they are read.
    pub jitter: Option<Jitter>,
    /// Warnings about how the directory is read, a sentence each.
    pub warnings: Vec<String>,
    shards: Vec<TensorFile>,
    /// Whether an index places the tensors in shards.
    sharded: bool,
    /// The shard of each tensor; of a compressed weight, the shard of its values.
    place: BTreeMap<String, usize>,
    /// The weights that are compressed.
    compressed: BTreeMap<String, Compressed>,
}

impl Checkpoint {
    /// The file that places tensors in shards.
    pub const INDEX: &str = "model.safetensors.index.json";

    /// Opens a Hugging Face directory: `config.json`, and `model.safetensors` or, where there is none, the shards that
    /// `model.safetensors.index.json` names. Checks that every tensor of the architecture is there, of the right
    /// shape and of a floating-point type. Other tensors are not read; [`warnings`](Self::warnings) names them.
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
        let Shards { shards, mut place, sharded, warnings } = Shards::open(directory)?;
        let compressed = sparse_bitmask::find(&shards, &mut place)?;
        let directory = directory.into();
        let jitter = None;
        let mut checkpoint =
            Checkpoint { directory, config, jitter, warnings, shards, sharded, place, compressed };
        checkpoint.untie_what_differs()?;
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    /// A file in which embedding and lm_head differ is not tied, whatever its config says.
    fn untie_what_differs(&mut self) -> Result<(), CheckpointError> {
        let embedding = self.name(EMBEDDING);
        let both = self.place.contains_key(&embedding) && self.place.contains_key(LM_HEAD);
        if self.config.tie_word_embeddings && both {
            let (a, b) = (self.tensor_data(&embedding)?, self.tensor_data(LM_HEAD)?);
            let equal = match a.info.dtype == b.info.dtype {
                true => a.bytes == b.bytes,
                false => a.flat::<f64>()? == b.flat::<f64>()?,
            };
            if !equal {
                self.config.tie_word_embeddings = false;
                self.warnings.push(format!(
                    "`tie_word_embeddings` of config.json is true, but `{embedding}` and `{LM_HEAD}` differ: each is used as \
                     it is, as transformers 5 does"
                ));
            }
            self.drop_pages();
        }
        Ok(())
    }

    /// The weight files, in the order of their names.
    pub fn shards(&self) -> &[TensorFile] {
        &self.shards
    }

    /// Where a weight file lies in the directory.
    pub fn file_name(&self, shard: usize) -> &Path {
        let path = self.shards[shard].path();
        path.strip_prefix(&self.directory).unwrap_or(path)
    }

    /// Whether an index places the tensors.
    pub fn is_sharded(&self) -> bool {
        self.sharded
    }

    fn shard(&self, name: &str) -> Result<&TensorFile, TensorError> {
        let missing = || {
            // The file that should say where it is.
            let path = match &self.shards[..] {
                [single] if !self.sharded => single.path().into(),
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

    /// The type, shape and bytes of a tensor as stored.
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
        self.name(&layer_tensor(layer, module, part))
    }

    fn of_decoder(&self, module: &str, part: &str) -> String {
        self.name(&format!("{module}.{part}"))
    }

    /// The full name of a decoder tensor: with the first prefix of its architecture under which the file has it.
    fn name(&self, tensor: &str) -> String {
        let prefixes = self.config.architecture.prefixes;
        let mut names = prefixes.iter().map(|prefix| format!("{prefix}{tensor}"));
        names.find(|name| self.place.contains_key(name)).unwrap_or_else(|| format!("{}{tensor}", prefixes[0]))
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
            query_key_norms: match architecture.query_key_norms {
                Some([query, key]) => Some([norm(query)?, norm(key)?]),
                None => None,
            },
            linears: Vec::new(),
            biases: architecture.linears.iter().map(bias).collect::<Result<_, _>>()?,
            window: self.config.window(layer),
            architecture,
        })
    }

    /// The norm whose weight and bias have these names.
    fn norm<T: Scalar>(&self, name: impl Fn(&str) -> String) -> Result<Norm<T>, TensorError> {
        let bias = match self.config.norm {
            NormKind::Rms { .. } => None,
            NormKind::Layer { .. } => Some(self.vector(&name("bias"))?),
        };
        Ok(Norm { weight: self.vector(&name("weight"))?, bias })
    }

    /// The name of the tensor with a row for each token. Where the embedding serves as lm_head, the file may hold it under
    /// the latter's name.
    pub fn embedding_tensor(&self) -> String {
        let name = self.name(EMBEDDING);
        let under_the_other = self.config.tie_word_embeddings
            && !self.place.contains_key(&name)
            && self.place.contains_key(LM_HEAD);
        if under_the_other { LM_HEAD.into() } else { name }
    }

    /// Everything before the first layer.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`].
    pub fn embedding<T: Scalar>(&self) -> Result<Embedding<T>, TensorError> {
        Ok(Embedding { tokens: self.matrix(&self.embedding_tensor())?, ..self.embedding_frame()? })
    }

    /// The same, but with an embedding of no rows.
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

    /// The embedding's rows of the given tokens (tokens x embedding size); the other rows are not read.
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

    /// Everything after the last layer. lm_head is the embedding where the two are tied.
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

    /// Everything between the last layer and lm_head.
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

    /// Whether the embedding's width differs from that of the residual stream.
    fn projects(&self) -> bool {
        self.config.embedding_size != self.config.hidden_size
    }

    /// Gives mapped pages back to the system. Called after each layer, so that the resident set does not grow with
    /// the model.
    pub fn drop_pages(&self) {
        self.shards.iter().for_each(TensorFile::drop_pages);
    }

    /// Checks the tensors that the config asks for, and notes the others.
    fn check_tensors(&mut self) -> Result<(), CheckpointError> {
        let mut used = BTreeSet::new();
        self.each_tensor(|name, shape, fields| {
            self.check(&name, shape, fields)?;
            used.insert(name);
            Ok(())
        })?;
        let config = &self.config;
        let beyond = self.tensor(config.num_hidden_layers, config.architecture.linears[0]);
        if self.place.contains_key(&beyond) {
            return Err(CheckpointError::Malformed {
                path: self.directory.join("config.json"),
                detail: format!(
                    "`num_hidden_layers` is {}, but tensor `{beyond}` exists",
                    config.num_hidden_layers
                ),
            });
        }
        let is_part = |name: &str| {
            sparse_bitmask::weight_of(name).is_some_and(|weight| self.compressed.contains_key(&weight))
        };
        let tied = |name: &str| name == LM_HEAD && config.tie_word_embeddings;
        // Old files keep the rotary frequencies, which follow from the config.
        let computed = |name: &str| name.ends_with("rotary_emb.inv_freq");
        let unused: Vec<&str> = (self.place.keys().map(String::as_str))
            .filter(|name| !used.contains(*name) && !is_part(name) && !tied(name) && !computed(name))
            .collect();
        if !unused.is_empty() {
            let shown = 3.min(unused.len());
            let more = unused.len() - shown;
            self.warnings.push(format!(
                "{} in the weights that config.json does not ask for, and that nothing reads: `{}`{}",
                if unused.len() == 1 { "there is a tensor" } else { "there are tensors" },
                unused[..shown].join("`, `"),
                if more > 0 { format!(" and {more} more") } else { String::new() },
            ));
        }
        Ok(())
    }

    /// Names and shapes of the tensors that the config asks for, with the config's fields that determine them.
    fn each_tensor(
        &self,
        mut visit: impl FnMut(String, &[usize], &str) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let (c, architecture) = (&self.config, self.config.architecture);
        let of_vocabulary = "`vocab_size`, `hidden_size` or `word_embed_proj_dim`";
        visit(self.embedding_tensor(), &[c.vocab_size, c.embedding_size], of_vocabulary)?;
        if let Positions::Learned { offset } = c.positions {
            let rows = c.max_position_embeddings + offset;
            let fields = format!("`max_position_embeddings` + {offset}, `hidden_size`");
            visit(self.of_decoder(POSITIONS, "weight"), &[rows, c.hidden_size], &fields)?;
        }
        if self.projects() {
            let (narrow, wide) = (c.embedding_size, c.hidden_size);
            let fields = "`word_embed_proj_dim` is not `hidden_size`";
            visit(self.of_decoder(PROJECT_IN, "weight"), &[wide, narrow], fields)?;
            visit(self.of_decoder(PROJECT_OUT, "weight"), &[narrow, wide], fields)?;
        }
        let parts: &[&str] = match c.norm {
            NormKind::Rms { .. } => &["weight"],
            NormKind::Layer { .. } => &["weight", "bias"],
        };
        if c.final_norm {
            for part in parts {
                let fields = "`hidden_size`; OPT has no such norm where `do_layer_norm_before` is false or \
                              `_remove_final_layer_norm` is true";
                visit(self.of_decoder(architecture.final_norm, part), &[c.hidden_size], fields)?;
            }
        }
        if !c.tie_word_embeddings {
            let fields = format!("{of_vocabulary}; `tie_word_embeddings` is not true");
            visit(LM_HEAD.into(), &[c.vocab_size, c.embedding_size], &fields)?;
        }
        for layer in 0..c.num_hidden_layers {
            let norms = [
                (&[architecture.attention_norm, architecture.mlp_norm][..], c.hidden_size, "`hidden_size`"),
                (
                    architecture.query_key_norms.as_slice().as_flattened(),
                    c.head_dim,
                    "`head_dim`; `model_type`",
                ),
            ];
            let of_layer = |fields: &str| format!("{fields}; layer {layer} of `num_hidden_layers`");
            for (names, width, field) in norms {
                for (norm, part) in names.iter().flat_map(|norm| parts.iter().map(move |part| (norm, part))) {
                    visit(self.of_layer(layer, norm, part), &[width], &of_layer(field))?;
                }
            }
            for &linear in architecture.linears {
                let (rows, columns) = linear.shape(c);
                let (of_rows, of_columns) = linear.fields();
                let fields = of_layer(&format!("{of_rows}, {of_columns}"));
                visit(self.tensor(layer, linear), &[rows, columns], &fields)?;
                if c.biased.contains(&linear.role) {
                    let asked = "`attention_bias`, `mlp_bias`, `enable_bias` or `model_type` asks for biases";
                    let fields = of_layer(&format!("{of_rows}; {asked}"));
                    visit(self.of_layer(layer, linear.module, "bias"), &[rows], &fields)?;
                }
            }
        }
        Ok(())
    }

    fn check(&self, name: &str, expected: &[usize], fields: &str) -> Result<(), CheckpointError> {
        if !self.place.contains_key(name) {
            return Err(CheckpointError::Malformed {
                path: match &self.shards[..] {
                    [single] if !self.sharded => single.path().into(),
                    _ => self.directory.join(Self::INDEX),
                },
                detail: format!("tensor `{name}` is missing, which config.json asks for ({fields})"),
            });
        }
        let info = self.info(name)?;
        let path = self.shard(name)?.path().to_path_buf();
        if info.shape != expected {
            let expected = format!("{expected:?} (from config.json: {fields})");
            let found = info.shape.clone();
            return Err(TensorError::ShapeMismatch { path, name: name.into(), expected, found }.into());
        }
        if FloatType::of(info.dtype).is_none() {
            let expected = "F64, F32, F16 or BF16";
            return Err(TensorError::Dtype { path, name: name.into(), expected, found: info.dtype }.into());
        }
        Ok(())
    }
}

/// Of the decoder.
const EMBEDDING: &str = "embed_tokens.weight";
/// Of the decoder, where an architecture has them.
const POSITIONS: &str = "embed_positions";
const PROJECT_IN: &str = "project_in";
const PROJECT_OUT: &str = "project_out";

/// The weight files of a directory.
struct Shards {
    shards: Vec<TensorFile>,
    place: BTreeMap<String, usize>,
    sharded: bool,
    warnings: Vec<String>,
}

impl Shards {
    fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let index = directory.join(Checkpoint::INDEX);
        let single = directory.join("model.safetensors");
        if single.is_file() {
            let shard = TensorFile::open(&single)?;
            let place = shard.names().map(|name| (name.to_string(), 0)).collect();
            let beside = format!(
                "model.safetensors is read, and not the shards that {} beside it names",
                Checkpoint::INDEX
            );
            let warnings = if index.is_file() { vec![beside] } else { Vec::new() };
            return Ok(Shards { shards: vec![shard], place, sharded: false, warnings });
        }
        if !index.is_file() {
            return Err(CheckpointError::Unusable {
                path: directory.into(),
                detail: "has neither model.safetensors nor model.safetensors.index.json; other weight formats must be \
                         converted to safetensors first"
                    .into(),
            });
        }
        let (mut shards, mut place) = (Vec::new(), BTreeMap::<String, usize>::new());
        // What is in a shard is there, whatever the index says of it.
        for file in named_files(&index)? {
            let path = directory.join(&file);
            if !path.is_file() {
                return Err(CheckpointError::Unusable {
                    path,
                    detail: format!("missing; {} names it", index.display()),
                });
            }
            let shard = TensorFile::open(&path)?;
            for name in shard.names() {
                if let Some(other) = place.insert(name.to_string(), shards.len()) {
                    let other: &TensorFile = &shards[other];
                    let detail = format!(
                        "tensor `{name}` is also in {}; remove one of the two",
                        other.path().display()
                    );
                    return Err(CheckpointError::Malformed { path, detail });
                }
            }
            shards.push(shard);
        }
        Ok(Shards { shards, place, sharded: true, warnings: Vec::new() })
    }
}

/// The files that an index names, in the order of their names.
fn named_files(index: &Path) -> Result<BTreeSet<PathBuf>, CheckpointError> {
    let malformed = |detail: String| CheckpointError::Malformed { path: index.into(), detail };
    let text = std::fs::read_to_string(index).map_err(TensorError::io(index))?;
    let json = parse_json(&text).map_err(|error| malformed(format!("not JSON: {error}")))?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .ok_or_else(|| malformed("has no `weight_map`".into()))?;
    let file_of = |(name, file): (&String, &serde_json::Value)| {
        let file = file.as_str().ok_or_else(|| malformed(format!("`weight_map.{name}` names no file")))?;
        // Beside the index or in a folder there (`./` says no more); anything else would read or write elsewhere.
        let parts = Path::new(file).components().filter(|part| *part != Component::CurDir);
        let inside = parts.clone().all(|part| matches!(part, Component::Normal(_)));
        let place: PathBuf = parts.collect();
        match place.file_name() {
            Some(_) if inside => Ok(place),
            _ => Err(malformed(format!(
                "`weight_map.{name}` names `{file}`, which is outside this directory; expected a relative \
                 path without `..`"
            ))),
        }
    };
    map.iter().map(file_of).collect()
}
