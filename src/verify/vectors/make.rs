//! Fresh cases from the reference in f64, so that nobody tunes a port to the published ones.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, Zip};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;

use super::case::{
    ActivationSparsity, Case, CaseDocument, CaseSettings, CaseSparsity, CaseStage, CaseTolerance, ColumnsIn,
    LayerShape, OrderKind, SCHEMA_VERSION, SliceBy, TensorEntry, TensorRole, ToleranceClass, schema_dtype,
};
use super::compute::{Followed, VectorError, compute};
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
    /// The command that makes it.
    pub command: String,
}

impl NewCase {
    /// Makes the case.
    ///
    /// # Errors
    /// [`VectorError`]: settings that are missing or make no sense.
    pub fn make(&self) -> Result<Case, VectorError> {
        let mut case = Case {
            folder: format!("{}/{}", self.algorithm.name(), self.id).into(),
            document: self.document(),
            tensors: self.inputs()?,
        };
        let mut computed = compute::<f64, _>(&case, &Cpu, &Followed::default())?.tensors;
        computed.retain(|name, _| self.is_shown(name));
        case.tensors.append(&mut computed);
        self.describe(&mut case);
        Ok(case)
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
        let x = x * &ndarray::Array1::from(strength);
        let mut inputs = CaseTensors::new();
        let mut put = |name: &str, tensor: CaseTensor| inputs.insert(name.to_string(), tensor);
        if !matches!(self.algorithm, Kind::Activation | Kind::Teal) {
            let weight = Array2::from_shape_simple_fn((self.n, k), &mut draw);
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
            dialect: "original".into(),
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
                _ => TensorRole::Output,
            };
            let in_loop =
                self.settings.block_size.is_some() && role == TensorRole::Trace && name != "trace.dead";
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
