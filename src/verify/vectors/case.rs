//! A case: what was run, what each tensor means, and in which order to compare. `fixtures/vectors/v1/SCHEMA.md` is the
//! definition.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::tensor::{CaseTensor, CaseTensors, Contents, read_case_tensors};
use crate::files::parse_json;
use crate::tensor_error::TensorError;
use crate::tensors::FloatType;
use crate::verify::kind::Kind;
use crate::verify::report::CaseFlag;

/// The version of the schema that is read and written.
pub const SCHEMA_VERSION: u64 = 1;

/// Why a case cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// Its tensors, or a tensor in them.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// `case.json` says what is not understood, or what its tensors contradict.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// Rows and columns of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerShape {
    /// Output channels; none where there is no weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Input channels.
    pub k: usize,
}

/// A fraction, or N pruned of every M.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CaseSparsity {
    /// A fraction of zeros.
    Fraction(f64),
    /// N zeros among every M columns.
    Groups {
        /// Zeros per group.
        n: usize,
        /// Columns per group.
        m: usize,
        /// `"pruned"`: what n counts.
        counts: CountsPruned,
    },
}

/// What `n` of an N:M sparsity counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CountsPruned {
    /// The zeros.
    Pruned,
}

/// One sparsity, or several that are tried on the same input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ActivationSparsity {
    /// One.
    One(f64),
    /// Several.
    Several(Vec<f64>),
}

/// The settings of a run, by the names of the schema.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // fixtures/vectors/v1/SCHEMA.md has a line for each
pub struct CaseSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_sparsity: Option<CaseSparsity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub static_groups: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mse: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<GridKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column_order: Option<OrderKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_run: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hessian_factor: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_sparsity: Option<ActivationSparsity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_member: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_narrow_group: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_fallback: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preserve_mask: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<WandaVariant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bins: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_prefill: Option<bool>,
}

/// Which codes a grid has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum GridKind {
    /// GPTQ's.
    Offset,
    /// GPTAQ's.
    Signed,
}

/// The order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // as `reference::ColumnOrder`
pub enum OrderKind {
    Natural,
    Hessian,
    HessianDrift,
    Interleaved,
}

/// Variants of Wanda.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum WandaVariant {
    /// Each row by its share of the scores.
    Cumulative,
}

/// What a tensor is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // fixtures/vectors/v1/SCHEMA.md
pub struct TensorEntry {
    pub shape: Vec<usize>,
    pub dtype: String,
    pub meaning: String,
    pub order: ColumnsIn,
    pub role: TensorRole,
}

/// The order in which a tensor's columns are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnsIn {
    /// That of the weight.
    Original,
    /// That of the loop.
    Processing,
}

/// The part that a tensor plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRole {
    /// What a port reads.
    Input,
    /// What it gathers from the activations.
    Statistics,
    /// What it computes on the way.
    Trace,
    /// Its result, which it must show.
    Output,
    /// The sums of magnitudes behind another tensor: `bnd.<name>` bounds the rounding errors of `<name>`.
    Bound,
}

/// A step of the computation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseStage {
    /// Its name.
    pub name: String,
    /// The tensors that show it.
    pub tensors: Vec<String>,
    /// How they are compared.
    pub by: SliceBy,
}

/// How the tensors of a stage are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SliceBy {
    /// At once.
    Whole,
    /// Slice after slice of their columns.
    Columns,
    /// Block after block, which their first dimension counts.
    Block,
}

/// How far a result may be off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseTolerance {
    /// `exact-mask`: integers must be equal; `relative`: there are none.
    pub class: ToleranceClass,
    /// For reals, relative to the largest entry of the row.
    pub value: f64,
    /// Why so much.
    pub why: String,
    /// The smallest (kept - pruned) / kept over all comparisons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_margin: Option<f64>,
}

/// What a tolerance covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToleranceClass {
    /// Masks and codes are equal, reals within the value.
    ExactMask,
    /// Reals alone.
    Relative,
}

/// Another outcome that counts as right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// Its name: its tensors are `accept.<id>.<name>`.
    pub id: String,
    /// Why it is right too.
    pub reason: String,
    /// Where its numbers come from.
    pub origin: String,
    /// The tensors that differ.
    pub tensors: Vec<String>,
}

/// `case.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // fixtures/vectors/v1/SCHEMA.md has a line for each
pub struct CaseDocument {
    pub schema_version: u64,
    pub id: String,
    pub algorithm: Kind,
    pub dialect: String,
    pub source: BTreeMap<String, Value>,
    pub seed: i64,
    pub settings: CaseSettings,
    pub shape: LayerShape,
    pub tensors: BTreeMap<String, TensorEntry>,
    pub stages: Vec<CaseStage>,
    pub slices: Vec<[usize; 3]>,
    pub flags: Vec<CaseFlag>,
    pub tolerance: CaseTolerance,
    pub accept: Vec<Alternative>,
}

/// A case with its tensors.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its folder.
    pub folder: PathBuf,
    /// What its `case.json` says.
    pub document: CaseDocument,
    /// Inputs and expected results.
    pub tensors: CaseTensors,
}

/// `case.json` of a result that must be rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // fixtures/vectors/v1/SCHEMA.md
pub struct NegativeDocument {
    pub schema_version: u64,
    pub id: String,
    pub of: String,
    pub defect: String,
    pub first_bad_stage: String,
    pub first_bad_place: String,
    pub origin: String,
    pub tensors: BTreeMap<String, ShapeAndType>,
}

/// What a tensor of a wrong result looks like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // fixtures/vectors/v1/SCHEMA.md
pub struct ShapeAndType {
    pub shape: Vec<usize>,
    pub dtype: String,
}

/// A result that must be rejected.
#[derive(Clone, Debug)]
pub struct NegativeCase {
    /// Its folder.
    pub folder: PathBuf,
    /// What its `case.json` says.
    pub document: NegativeDocument,
    /// The results.
    pub tensors: CaseTensors,
}

fn malformed(path: &Path, detail: impl Into<String>) -> CaseError {
    CaseError::Malformed { path: path.to_path_buf(), detail: detail.into() }
}

/// Reads a `case.json` of a version that is understood.
fn read_document<D: for<'de> Deserialize<'de>>(path: &Path) -> Result<D, CaseError> {
    let text = std::fs::read_to_string(path).map_err(TensorError::io(path))?;
    let value = parse_json(&text).map_err(|error| malformed(path, format!("not JSON: {error}")))?;
    match value.get("schema_version").and_then(Value::as_u64) {
        Some(SCHEMA_VERSION) => {}
        Some(other) => {
            return Err(malformed(
                path,
                format!("schema_version {other}; this program reads {SCHEMA_VERSION}"),
            ));
        }
        None => return Err(malformed(path, "field `schema_version` is missing or not a positive integer")),
    }
    serde_json::from_value(value).map_err(|error| malformed(path, error.to_string()))
}

/// The type names of the schema.
pub(super) fn schema_dtype(contents: Contents) -> &'static str {
    match contents {
        Contents::Reals(FloatType::F64) => "F64",
        Contents::Reals(FloatType::F32) => "F32",
        Contents::Reals(FloatType::F16) => "F16",
        Contents::Reals(FloatType::Bf16) => "BF16",
        Contents::Flags => "U8",
        Contents::Integers => "I64",
    }
}

impl Case {
    /// Reads the case in `folder`, and holds its tensors to what its `case.json` says of them.
    ///
    /// # Errors
    /// [`CaseError`] that names the file and what is wrong with it.
    pub fn load(folder: &Path) -> Result<Self, CaseError> {
        let path = folder.join("case.json");
        let document: CaseDocument = read_document(&path)?;
        let tensors = read_case_tensors(&folder.join("tensors.safetensors"))?;
        let case = Case { folder: folder.to_path_buf(), document, tensors };
        case.check().map_err(|detail| malformed(&path, detail))?;
        Ok(case)
    }

    /// `<algorithm>/<id>`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.document.algorithm.name(), self.document.id)
    }

    /// A tensor that the case has.
    ///
    /// # Errors
    /// [`TensorError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&CaseTensor, TensorError> {
        self.tensors.get(name).ok_or_else(|| TensorError::MissingTensor {
            path: self.folder.join("tensors.safetensors"),
            name: name.into(),
        })
    }

    /// The rows of each sequence in the activations, of which there are `rows`.
    ///
    /// # Errors
    /// `input.calls` counts another number of tokens.
    pub(super) fn sequences(&self, rows: usize) -> Result<Vec<Range<usize>>, String> {
        let calls = self.tensor("input.calls").map_err(|error| error.to_string())?;
        sequence_rows(calls.values.view(), rows).map_err(|why| format!("`input.calls` {why}"))
    }

    /// Every contradiction inside the case, the first one named.
    pub(super) fn check(&self) -> Result<(), String> {
        let document = &self.document;
        for (name, entry) in &document.tensors {
            let Some(tensor) = self.tensors.get(name) else {
                return Err(format!("tensor `{name}` is missing in tensors.safetensors"));
            };
            if tensor.shape != entry.shape {
                let (found, said) = (&tensor.shape, &entry.shape);
                return Err(format!(
                    "tensor `{name}` has shape {found:?} in tensors.safetensors, {said:?} here"
                ));
            }
            let found = schema_dtype(tensor.contents);
            if found != entry.dtype {
                let said = &entry.dtype;
                return Err(format!("tensor `{name}` has type {found} in tensors.safetensors, {said} here"));
            }
            if tensor.values.iter().any(|x| !x.is_finite()) && entry.role != TensorRole::Input {
                return Err(format!(
                    "tensor `{name}` is expected to be NaN or infinite, which nothing equals"
                ));
            }
        }
        for alternative in &document.accept {
            for name in &alternative.tensors {
                let full = format!("accept.{}.{name}", alternative.id);
                let base =
                    self.tensors.get(name).ok_or(format!("`accept` names an unknown tensor `{name}`"))?;
                let tensor = self
                    .tensors
                    .get(&full)
                    .ok_or(format!("tensor `{full}` is missing in tensors.safetensors"))?;
                if tensor.shape != base.shape {
                    return Err(format!("tensor `{full}` has another shape than `{name}`"));
                }
            }
        }
        for name in self.tensors.keys() {
            let alternative = document.accept.iter().any(|a| name.starts_with(&format!("accept.{}.", a.id)));
            if !document.tensors.contains_key(name) && !alternative {
                return Err(format!("tensor `{name}` of tensors.safetensors is not described"));
            }
        }
        self.check_shapes()?;
        if self.tensors.contains_key("input.calls") {
            for name in ["input.activations", "input.dense_activations", "input.sparse_activations"] {
                if let Some(activations) = self.tensors.get(name) {
                    self.sequences(activations.values.nrows())?;
                }
            }
        }
        if let Some(order) = self.tensors.get("trace.perm") {
            let mut columns: Vec<f64> = order.values.iter().copied().collect();
            columns.sort_unstable_by(f64::total_cmp);
            if !columns.iter().copied().eq((0..document.shape.k).map(|column| column as f64)) {
                return Err("`trace.perm` is not a permutation of the columns".into());
            }
        }
        let mut outputs = 0;
        for stage in &document.stages {
            for name in &stage.tensors {
                let entry = document
                    .tensors
                    .get(name)
                    .ok_or(format!("stage `{}` names an unknown tensor `{name}`", stage.name))?;
                outputs += usize::from(entry.role == TensorRole::Output);
                let columns = entry.shape.last().copied().unwrap_or(0);
                let blocks = document.slices.last().map_or(0, |slice| slice[2] + 1);
                let sliced = document.slices.iter().all(|slice| slice[0] <= slice[1] && slice[1] <= columns);
                let fits = match stage.by {
                    SliceBy::Whole => true,
                    SliceBy::Columns => sliced && !document.slices.is_empty(),
                    SliceBy::Block => entry.shape.len() > 1 && entry.shape[0] == blocks,
                };
                if !fits {
                    return Err(format!("`slices` do not fit tensor `{name}` of stage `{}`", stage.name));
                }
            }
        }
        if outputs == 0 {
            return Err("no stage shows an output: nothing would be required of a port".into());
        }
        if !(0.0..1.0).contains(&document.tolerance.value) {
            return Err(format!(
                "tolerance {} is not in [0, 1): at 1 zeros would pass for any result",
                document.tolerance.value
            ));
        }
        Ok(())
    }
}

impl Case {
    /// The shapes that follow from n and k.
    fn check_shapes(&self) -> Result<(), String> {
        let LayerShape { n, k } = self.document.shape;
        for (name, tensor) in &self.tensors {
            let last = tensor.shape.last().copied().unwrap_or(0);
            let fits = match name.as_str() {
                "stats.hessian" | "stats.dxxt" | "trace.hinv_chol" | "trace.q_matrix" | "trace.p_matrix" => {
                    tensor.shape == [k, k]
                }
                "stats.dxdxt" | "stats.scaler_row" | "trace.perm" | "trace.dead" | "trace.coef_a"
                | "trace.coef_b" | "trace.coef_2c" => tensor.shape == [k],
                "input.weight" | "trace.score" | "trace.metric" | "trace.scale" | "trace.zero"
                | "trace.codes" | "trace.err" | "output.weight" => n.is_some_and(|n| tensor.shape == [n, k]),
                "trace.mask" => n.is_none_or(|n| tensor.shape == [n, k]),
                "input.calls" => tensor.shape.len() == 2 && last == 2,
                "input.activations"
                | "input.dense_activations"
                | "input.sparse_activations"
                | "input.probe" => last == k,
                _ => true,
            };
            if !fits {
                let found = &tensor.shape;
                return Err(format!(
                    "tensor `{name}` has shape {found:?}, which does not fit n = {n:?}, k = {k}"
                ));
            }
        }
        Ok(())
    }
}

impl NegativeCase {
    /// Reads the result in `folder`.
    ///
    /// # Errors
    /// As [`Case::load`].
    pub fn load(folder: &Path) -> Result<Self, CaseError> {
        let path = folder.join("case.json");
        let document: NegativeDocument = read_document(&path)?;
        let tensors = read_case_tensors(&folder.join("tensors.safetensors"))?;
        let described = |(name, tensor): (&String, &CaseTensor)| {
            let entry = document.tensors.get(name);
            entry.is_some_and(|e| e.shape == tensor.shape && e.dtype == schema_dtype(tensor.contents))
        };
        if tensors.len() != document.tensors.len() || !tensors.iter().all(described) {
            return Err(malformed(&path, "`tensors` contradicts tensors.safetensors"));
        }
        Ok(NegativeCase { folder: folder.to_path_buf(), document, tensors })
    }
}

/// The rows of each sequence among `rows` rows of activations. A row of `calls` counts the sequences of one call and the
/// tokens of each.
///
/// # Errors
/// How `calls` and `rows` contradict each other.
pub fn sequence_rows(calls: ArrayView2<f64>, rows: usize) -> Result<Vec<Range<usize>>, String> {
    let mut sequences: Vec<Range<usize>> = Vec::new();
    let end = |sequences: &[Range<usize>]| sequences.last().map_or(0, |rows| rows.end);
    for call in calls.rows() {
        let [count, tokens] = [0, 1].map(|at| call.get(at).map_or(0, |x| *x as usize));
        let first = end(&sequences);
        if tokens == 0 || count > (rows - first) / tokens {
            return Err(format!(
                "counts more tokens than the {rows} rows of the activations, or a call without tokens"
            ));
        }
        sequences.extend((0..count).map(|i| first + i * tokens..first + (i + 1) * tokens));
    }
    match end(&sequences) {
        counted if counted == rows => Ok(sequences),
        counted => Err(format!("counts {counted} tokens, the activations have {rows} rows")),
    }
}

/// The folders below `root` that hold a `case.json`, sorted: those of cases, and those of results to be rejected.
///
/// # Errors
/// [`TensorError::Io`] when a folder cannot be listed.
pub fn case_folders(root: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), TensorError> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), TensorError> {
        if folder.join("case.json").is_file() {
            found.push(folder.to_path_buf());
            return Ok(());
        }
        for entry in std::fs::read_dir(folder).map_err(TensorError::io(folder))? {
            let path = entry.map_err(TensorError::io(folder))?.path();
            if path.is_dir() {
                walk(&path, found)?;
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(root, &mut found)?;
    found.sort();
    let is_negative = |folder: &PathBuf| {
        folder.parent().and_then(Path::file_name).is_some_and(|parent| parent == "negative")
    };
    Ok(found.into_iter().partition(|folder| !is_negative(folder)))
}
