//! Fresh cases from the reference in f64, so that nobody tunes a port to the published ones.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, Axis, Zip, s};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;

use super::bounds::{PREFIX, bound};
use super::budgets::{Budgets, recorded_order};
use super::case::{
    ActivationSparsity, Case, CaseDocument, CaseError, CaseSettings, CaseSparsity, CaseStage, CaseTolerance,
    ColumnsIn, LayerShape, OrderKind, SCHEMA_VERSION, SliceBy, TensorEntry, TensorRole, ToleranceClass,
    schema_dtype,
};
use super::compute::{Followed, VectorError, compute};
use super::judge::judge;
use super::stages::STAGES;
use super::tensor::{CaseTensor, CaseTensors, Contents, write_case_tensors};
use crate::backend::Cpu;
use crate::files::write_atomically;
use crate::reference::activation::prune_activations;
use crate::tensor_error::TensorError;
use crate::verify::kind::Kind;
use crate::verify::report::CaseFlag;

/// What a new case is to hold.
#[derive(Clone, Debug)]
pub struct NewCase {
    /// Its name.
    pub id: String,
    /// What it computes.
    pub algorithm: Kind,
    /// Of the inputs.
    pub seed: u64,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
    /// Calibration sequences; of TEAL and activation pruning, prompts.
    pub sequences: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// The settings.
    pub settings: CaseSettings,
    /// Whether H is to be exactly singular: channels 0 and 1 are equal, and alone in their tokens.
    pub singular: bool,
    /// The command that makes it.
    pub command: String,
}

impl NewCase {
    /// Makes the case.
    ///
    /// # Errors
    /// [`VectorError`]: settings that are missing or make no sense, or results that depend on the order of summation.
    pub fn make(&self) -> Result<Case, VectorError> {
        let mut case = Case {
            folder: format!("{}/{}", self.algorithm.name(), self.id).into(),
            document: self.document(),
            tensors: self.inputs()?,
        };
        if self.singular {
            self.check_singular().map_err(|detail| unfit(&case, detail))?;
        }
        let mut computed = compute::<f64, _>(&case, &Cpu, &Followed::default())?.tensors;
        computed.retain(|name, _| self.is_shown(name));
        case.tensors.append(&mut computed);
        let bounded = ["stats.hessian", "stats.dxxt", "trace.q_matrix", "trace.p_matrix", "trace.score"];
        for name in bounded {
            let bound = case.tensors.get(name).and_then(|expected| bound(&case, name, expected, 0.0));
            if let Some(bound) = bound {
                case.tensors.insert(format!("{PREFIX}{name}"), CaseTensor::matrix(bound.sums.view()));
            }
        }
        self.describe(&mut case);
        check_well_posed(&case, self.singular)?;
        Ok(case)
    }

    /// What makes H exactly singular in every arithmetic and order of summation.
    fn check_singular(&self) -> Result<(), String> {
        let exact =
            self.settings.damping == Some(0.0) && self.sequences <= 2 && self.k >= 2 && self.tokens >= 2;
        let loop_without_residual = matches!(self.algorithm, Kind::SparseGpt | Kind::Gptq);
        match exact && loop_without_residual {
            true => Ok(()),
            false => Err(
                "a singular H needs sparsegpt or gptq, --damping 0, one or two --sequences of two tokens or \
                          more, and two channels: the means of more sequences are rounded"
                    .into(),
            ),
        }
    }

    fn is_shown(&self, name: &str) -> bool {
        let settings = &self.settings;
        match name {
            "trace.perm" => settings.column_order.is_some_and(|order| order != OrderKind::Natural),
            "trace.score" => settings.weight_sparsity.is_some(),
            "trace.mask" => settings.weight_sparsity.is_some() || self.algorithm == Kind::Activation,
            "stats.dxdxt" | "trace.coef_a" | "trace.coef_b" | "trace.coef_2c" | "trace.q_matrix" => {
                self.algorithm == Kind::DuoGpt
            }
            _ => true,
        }
    }

    /// Uniform numbers, cubed so that a few are large, with channels of different strengths.
    fn inputs(&self) -> Result<CaseTensors, VectorError> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut draw = || random.random_range(-1.0f64..1.0);
        let (rows, k) = (self.sequences * self.tokens, self.k);
        let strength: Vec<f64> = (0..k).map(|_| (2.0 * draw()).exp()).collect();
        let x = Array2::from_shape_simple_fn((rows, k), || 3.0 * draw().powi(3) + draw() / 4.0);
        let mut x = x * &ndarray::Array1::from(strength);
        if self.singular {
            // H = F^2 in the 2 x 2 block of channels 0 and 1 and 0 beside it, F = 1 or 2: its root is exact.
            let ones = self.settings.hessian_factor.unwrap_or(1) as usize;
            for (row, mut token) in x.rows_mut().into_iter().enumerate() {
                let alone = row % self.tokens < ones;
                token.iter_mut().skip(2).filter(|_| alone).for_each(|x| *x = 0.0);
                token.iter_mut().take(2).for_each(|x| *x = f64::from(u8::from(alone)));
            }
        }
        let mut inputs = CaseTensors::new();
        let mut put = |name: &str, tensor: CaseTensor| inputs.insert(name.to_string(), tensor);
        if !matches!(self.algorithm, Kind::Activation | Kind::Teal) {
            let mut weight = Array2::from_shape_simple_fn((self.n, k), &mut draw);
            if self.settings.preserve_mask == Some(true) {
                weight.mapv_inplace(|w| if draw() < -0.4 { 0.0 } else { w });
            }
            put("input.weight", CaseTensor::matrix(weight.view()));
        }
        match self.algorithm {
            Kind::DuoGpt | Kind::Gptaq => {
                let mut sparse = x.clone();
                let p = match self.settings.activation_sparsity {
                    Some(ActivationSparsity::One(p)) if (0.0..1.0).contains(&p) => p,
                    _ => 0.0,
                };
                // Errors of the layers before, besides activation pruning.
                Zip::from(&mut sparse).for_each(|x| *x *= 1.0 + 0.02 * draw());
                prune_activations(sparse.view_mut(), p);
                put("input.dense_activations", CaseTensor::matrix(x.view()));
                put("input.sparse_activations", CaseTensor::matrix(sparse.view()));
            }
            Kind::Magnitude => {}
            Kind::Teal => {
                let probe = Array2::from_shape_simple_fn((self.tokens, k), || 2.0 * draw());
                let shape = [1, self.tokens, k];
                put("input.probe", CaseTensor::matrix(probe.view()).reshaped(&shape));
                put("input.activations", CaseTensor::matrix(x.view()));
            }
            _ => {
                put("input.activations", CaseTensor::matrix(x.view()));
            }
        }
        if matches!(self.algorithm, Kind::DuoGpt | Kind::SparseGpt | Kind::Gptq | Kind::Gptaq | Kind::Wanda) {
            let calls = Array2::from_shape_fn((self.sequences, 2), |(_, at)| [1, self.tokens as i32][at]);
            put("input.calls", CaseTensor::codes(calls.view()));
        }
        Ok(inputs)
    }

    fn document(&self) -> CaseDocument {
        let text = |text: &str| Value::String(text.into());
        CaseDocument {
            schema_version: SCHEMA_VERSION,
            id: self.id.clone(),
            algorithm: self.algorithm,
            dialect: match (self.settings.preserve_mask, self.settings.identity_fallback) {
                (Some(true), _) | (_, Some(true)) => "llm-compressor".into(),
                _ => "original".into(),
            },
            source: BTreeMap::from([
                ("program".into(), text("duogpt")),
                ("version".into(), text(env!("CARGO_PKG_VERSION"))),
                ("command".into(), text(&self.command)),
                ("arithmetic".into(), text("float64")),
                ("how".into(), text("the reference in f64 on synthetic inputs")),
            ]),
            seed: self.seed as i64,
            settings: self.settings.clone(),
            shape: LayerShape {
                n: (!matches!(self.algorithm, Kind::Activation | Kind::Teal)).then_some(self.n),
                k: self.k,
            },
            tensors: BTreeMap::new(),
            stages: Vec::new(),
            slices: Vec::new(),
            flags: vec![CaseFlag {
                id: "fresh".into(),
                reason: "made by the reference, not recorded from the original".into(),
            }],
            tolerance: CaseTolerance {
                class: ToleranceClass::Relative,
                value: 1e-9,
                why: "float64 on both sides; only the order of summation may differ".into(),
                mask_margin: None,
            },
            accept: Vec::new(),
        }
    }

    /// Entries, stages and slices of the tensors that there are.
    fn describe(&self, case: &mut Case) {
        let document = &mut case.document;
        for (name, tensor) in &case.tensors {
            let role = match name.split('.').next() {
                Some("input") => TensorRole::Input,
                Some("stats") => TensorRole::Statistics,
                Some("trace") => TensorRole::Trace,
                Some("bnd") => TensorRole::Bound,
                _ => TensorRole::Output,
            };
            let in_loop =
                self.settings.block_size.is_some() && name.contains("trace.") && name != "trace.dead";
            let entry = TensorEntry {
                shape: tensor.shape.clone(),
                dtype: schema_dtype(tensor.contents).into(),
                meaning: "as in SCHEMA.md".into(),
                order: if in_loop { ColumnsIn::Processing } else { ColumnsIn::Original },
                role,
            };
            if role != TensorRole::Input && tensor.contents != Contents::Reals(crate::tensors::FloatType::F64)
            {
                document.tolerance.class = ToleranceClass::ExactMask;
            }
            document.tensors.insert(name.clone(), entry);
        }
        if let Some(block) = self.settings.block_size.map(|block| block.max(1)) {
            let width = match self.settings.weight_sparsity {
                Some(CaseSparsity::Groups { m, .. }) => m.max(1),
                _ => block,
            };
            for start in (0..self.k).step_by(block) {
                let end = (start + block).min(self.k);
                let groups = (start..end).step_by(width);
                document.slices.extend(groups.map(|at| [at, (at + width).min(end), start / block]));
            }
        }
        for (name, by, tensors) in STAGES {
            let shown: Vec<String> = tensors
                .iter()
                .filter(|name| case.tensors.contains_key(**name))
                .map(|name| name.to_string())
                .collect();
            if !shown.is_empty() {
                let by = if document.slices.is_empty() { SliceBy::Whole } else { by };
                document.stages.push(CaseStage { name: name.into(), tensors: shown, by });
            }
        }
    }
}

fn unfit(case: &Case, detail: impl Into<String>) -> CaseError {
    CaseError::Malformed { path: case.folder.clone(), detail: detail.into() }
}

/// Refuses a case whose results depend on rounding: two right implementations would disagree about it.
///
/// H has a Cholesky factor whatever the rounding where the a-priori bound on the relative change of the factor,
/// (m + 3 k) u cond(S), stays below 1. And the sums over the tokens of each sequence in reverse must lead to the same
/// results, to the case's tolerance.
fn check_well_posed(case: &Case, singular: bool) -> Result<(), VectorError> {
    let Some(calls) = case.tensors.get("input.calls") else { return Ok(()) };
    if case.document.settings.block_size.is_some() && !singular {
        let order = recorded_order(case).unwrap_or_else(|| (0..case.document.shape.k).collect());
        if Budgets::new::<f64>(case, &order)?.factored.is_none_or(|bound| bound >= 1.0) {
            let detail = "whether H has a Cholesky factor depends on rounding, so two right implementations may part; \
                          give more --tokens, a larger --damping, or --singular for an H that has none";
            return Err(unfit(case, detail).into());
        }
    }
    let mut reversed = case.clone();
    for name in ["input.activations", "input.dense_activations", "input.sparse_activations"] {
        let Some(x) = reversed.tensors.get_mut(name) else { continue };
        let tokens = calls.values[(0, 1)] as usize; // the same in every call
        for mut sequence in x.values.axis_chunks_iter_mut(Axis(0), tokens) {
            let backwards = sequence.slice(s![..;-1, ..]).to_owned();
            sequence.assign(&backwards);
        }
    }
    let computed = compute::<f64, _>(&reversed, &Cpu, &Followed::default())?;
    match judge(case, &computed.tensors, None).failure {
        None => Ok(()),
        Some(failure) => {
            let detail = format!(
                "summed over the tokens in reverse, the results differ by more than the case's tolerance at {failure}; \
                 give another --seed, more --tokens or a larger --damping"
            );
            Err(unfit(case, detail).into())
        }
    }
}

/// Writes a case to `root/<algorithm>/<id>`.
///
/// # Errors
/// [`TensorError::Io`].
pub fn write_case(case: &Case, root: &Path) -> Result<(), TensorError> {
    let folder = root.join(case.name());
    std::fs::create_dir_all(&folder).map_err(TensorError::io(&folder))?;
    write_case_tensors(&folder.join("tensors.safetensors"), &case.tensors)?;
    let mut text = serde_json::to_string_pretty(&case.document).expect("a document is plain data");
    text.push('\n');
    write_atomically(&folder.join("case.json"), text.as_bytes())
}
