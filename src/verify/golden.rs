//! Golden files: outputs of the original Python code, one layer at a time, and the check of every stage against them.
//!
//! What a file holds is told by its tensors and metadata, never by its name:
//!
//! | kind | told by | checked |
//! |---|---|---|
//! | DuoGPT | metadata `algorithm = DuoGPT` | activation pruning, statistics, order, factor, Q, D, a, b, 2c, score, mask, weight |
//! | GPTAQ | `<run>.scale` | statistics, then scale, zero, codes and weight of every run |
//! | Wanda | `stats.scaler_row` | statistics, then mask and weight of every run |
//! | SparseGPT | `stats.hessian` | statistics, then mask and weight of every run |
//! | activation pruning | `<case>.input` | every `<case>.s<percent>` |
//!
//! # Tolerances
//! In f64 every stage must agree to 1e-9 of the largest golden entry, and masks must be identical. In f32 the budget
//! is the a-priori rounding error of the stage, with u = 2^-24, m summed terms and k columns:
//!
//! * sums: (m + 8) u sum |x| |y|, the standard bound on an inner product of rounded inputs;
//! * behind the factor: (m + 3 k) u cond(S) of the largest entry. S is the golden damped Hessian scaled to a unit
//!   diagonal: Cholesky does not feel the scaling, and the factor of a matrix perturbed by a relative epsilon moves
//!   by epsilon cond(S) to first order (cond in the 1-norm).
//!
//! * a grid's scale: 4 u (two rounded inputs, a factor, a difference and a quotient, none of which cancels); a point of
//!   it: 2 u more.
//!
//! Any other backend than the reference is held to what the reference measurably errs in f32, stage by stage: its values to
//! 2 error(CPU f32) + 4 eps. A decision of it may differ only if the two scores (or keys of the order) that it
//! compares lie closer than twice the error measured over all of that backend's own: each may be off by that much.
//!
//! No comparison of values survives a flipped mask bit. So values are compared under the golden order and mask, and
//! the decisions apart: an f32 flip passes only if the score lies within the score budget of the cut. A weight
//! rounded to another code is such a flip too. It passes only if the value that was rounded lies within the budget
//! behind the factor of the middle between the two points.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, Ix1};
use serde::Serialize;

use super::compare::{Processing, compare, compare_decisions};
use super::inspect::{Inspect, Prepared};
use super::report::{FileReport, Outcome, Stage};
use crate::backend::Cpu;
use crate::linalg::{Scalar, matmul};
use crate::reference::baseline::gptaq::{GridConfig, GridRange, Quantised, Symmetry, quantise};
use crate::reference::baseline::wanda::wanda;
use crate::reference::factor::{damp, dead_channels, factor, revive_dead_channels};
use crate::reference::mask::lowest;
use crate::reference::order::inverse;
use crate::reference::score::{Coefficients, coefficients};
use crate::reference::{
    Alpha, ChannelNorms, ColumnOrder, PruneConfig, PruneError, Pruned, Replay, Sparsity, Statistics, prune,
};
use crate::tensors::{FloatType, TensorError, TensorFile};

/// What an f64 implementation may differ by, relative to the largest golden entry of the stage.
const F64_BUDGET: f64 = 1e-9;

/// Why a golden file could not be checked at all.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file, or a tensor in it.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The metadata or names say something that is not understood.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The reference refused the input.
    #[error("{}: {source}", path.display())]
    Prune {
        /// The file.
        path: PathBuf,
        /// What the reference said.
        source: PruneError,
    },
}

/// The kinds of golden files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One DuoGPT layer with its traces.
    DuoGpt,
    /// Runs of SparseGPT on one layer.
    SparseGpt,
    /// Runs of Wanda on one layer.
    Wanda,
    /// Runs of GPTAQ on one layer.
    Gptaq,
    /// Activation pruning alone.
    ActivationPruning,
}

/// Checks one golden file with the reference in the arithmetic `T`.
///
/// # Errors
/// [`GoldenError`] when the file cannot be read or is not understood. A stage that differs is not an error: it is in
/// the report.
pub fn verify_file<T: Scalar>(path: &Path) -> Result<FileReport, GoldenError> {
    verify_file_on::<T, _>(path, &Cpu)
}

/// Checks one golden file with a backend.
///
/// # Errors
/// As [`verify_file`], and what the backend could not do.
pub fn verify_file_on<T: Scalar, B: Inspect<T>>(path: &Path, backend: &B) -> Result<FileReport, GoldenError> {
    let file = TensorFile::open(path)?;
    // What the reference errs in this arithmetic.
    let single = if B::REFERENCE { Vec::new() } else { verify_file::<T>(path)?.stages };
    let golden = Golden { file: &file, backend, single };
    let kind = golden.kind();
    let stages = match kind {
        Some(Kind::DuoGpt) => golden.duogpt::<T>()?,
        Some(Kind::SparseGpt) => golden.sparsegpt::<T>()?,
        Some(Kind::Wanda) if B::unsupported(Kind::Wanda).is_some() => Vec::new(),
        Some(Kind::Wanda) => golden.wanda::<T>()?,
        Some(Kind::ActivationPruning) => golden.activation_pruning::<T>()?,
        Some(Kind::Gptaq) => golden.gptaq::<T>()?,
        None => Vec::new(),
    };
    let not_compared = match kind.map(B::unsupported) {
        Some(reason) => reason.map(String::from).into_iter().collect(),
        None => vec!["not a golden file: neither its metadata nor its tensors name a known kind".into()],
    };
    Ok(FileReport {
        path: path.to_path_buf(),
        sha256: file.sha256(),
        expected: None,
        kind,
        stages,
        not_compared,
    })
}

/// The scores and the mask that a DuoGPT file recorded; `None` for any other file.
pub(super) fn recorded_cuts(file: &TensorFile) -> Result<Option<Cuts>, GoldenError> {
    let golden = Golden { file, backend: &Cpu, single: Vec::new() };
    if golden.kind() != Some(Kind::DuoGpt) || file.get("trace.score").is_none() {
        return Ok(None);
    }
    let score = file.matrix::<f64>("trace.score")?;
    let mask = golden.mask_of("trace.mask", score.dim())?;
    let order = golden.recorded_order(score.ncols())?.unwrap_or_else(|| (0..score.ncols()).collect());
    let position = inverse(&order);
    let in_original_order = |order: &[usize]| (score.select(Axis(1), order), mask.select(Axis(1), order));
    let (score, mask) = in_original_order(&position);
    Ok(Some(Cuts::new(score, mask, order, Region::of(&golden.config()?))))
}

struct Golden<'a, B> {
    file: &'a TensorFile,
    backend: &'a B,
    /// The stages of the reference in the same arithmetic; none where the backend is the reference.
    single: Vec<Stage>,
}

/// A matrix of one column, so that vectors are compared like matrices.
fn column<A: Clone>(v: &Array1<A>) -> Array2<A> {
    v.clone().insert_axis(Axis(1))
}

/// A golden value in the arithmetic under test.
fn cast<T: Scalar, D: ndarray::Dimension>(a: &ndarray::Array<f64, D>) -> ndarray::Array<T, D> {
    a.mapv(T::of)
}

fn is_f64<T: Scalar>() -> bool {
    T::UNIT_ROUNDOFF == f64::UNIT_ROUNDOFF
}

/// The statistics of a file's input.
struct Gathered<T, S> {
    /// How they compare.
    stages: Vec<Stage>,
    /// Where the backend has them.
    on_backend: S,
    /// A copy.
    statistics: Statistics<T>,
    budgets: Budgets,
}

/// Budgets of one layer, relative to the largest golden entry of each stage.
struct Budgets {
    hessian: f64,
    dxxt: f64,
    dxdxt: f64,
    /// Roundings on the way to one entry of the Hessian.
    terms: f64,
}

impl<B> Golden<'_, B> {
    fn malformed(&self, detail: impl Into<String>) -> GoldenError {
        GoldenError::Malformed { path: self.file.path().to_path_buf(), detail: detail.into() }
    }

    fn refused(&self, source: impl Into<PruneError>) -> GoldenError {
        GoldenError::Prune { path: self.file.path().to_path_buf(), source: source.into() }
    }

    fn kind(&self) -> Option<Kind> {
        let any = |suffix: &str| self.file.names().any(|name| name.ends_with(suffix));
        if self.file.metadata.get("algorithm").is_some_and(|a| a == "DuoGPT") {
            Some(Kind::DuoGpt)
        } else if any(".scale") && any(".zero") {
            Some(Kind::Gptaq)
        } else if any("stats.scaler_row") {
            Some(Kind::Wanda)
        } else if any("stats.hessian") && any(".mask") {
            Some(Kind::SparseGpt)
        } else if any(".input") {
            Some(Kind::ActivationPruning)
        } else {
            None
        }
    }

    fn metadata<V: std::str::FromStr>(&self, key: &str) -> Result<V, GoldenError> {
        let text = self
            .file
            .metadata
            .get(key)
            .ok_or_else(|| self.malformed(format!("metadata `{key}` is missing")))?;
        // Python spells booleans with a capital.
        let text = match text.as_str() {
            "True" => "true",
            "False" => "false",
            other => other,
        };
        text.parse().map_err(|_| self.malformed(format!("metadata `{key}` = `{text}` is not understood")))
    }

    /// The original's settings.
    fn config(&self) -> Result<PruneConfig, GoldenError> {
        let weight_sparsity = match self.metadata("prunen")? {
            0 => Sparsity::Unstructured(self.metadata("sparsity")?),
            n => Sparsity::NofM { n, m: self.metadata("prunem")? },
        };
        let column_order = if !self.metadata("act_order")? {
            ColumnOrder::Natural
        } else if self.metadata("block_act")? {
            ColumnOrder::Interleaved { run: self.metadata("act_blocksize")? }
        } else if self.metadata("dxxt_permutation")? {
            ColumnOrder::HessianDrift
        } else {
            ColumnOrder::Hessian
        };
        Ok(PruneConfig {
            block_size: self.metadata("blocksize")?,
            damping: self.metadata("percdamp")?,
            alpha: Alpha::both(self.metadata("scale_alpha")?),
            column_order,
            ..PruneConfig::upstream(weight_sparsity)
        })
    }

    /// X~ and X^ (X^ = X~ where only one is recorded), sequences x tokens x k.
    fn inputs(&self) -> Result<(Array3<f64>, Array3<f64>), GoldenError> {
        let dense = self.file.cube::<f64>("input.dense_activations")?;
        let sparse = match self.file.get("input.sparse_activations") {
            Some(_) => self.file.cube::<f64>("input.sparse_activations")?,
            None => dense.clone(),
        };
        if dense.dim() != sparse.dim() {
            return Err(self.malformed("dense and sparse activations differ in shape"));
        }
        Ok((dense, sparse))
    }

    /// What a stage of values may be off by: the reference by `bound`, any other backend by what the reference errs.
    fn allowed<T: Scalar>(&self, name: &str, bound: f64) -> f64 {
        match self.single.iter().find(|stage| stage.name == name) {
            Some(Stage { outcome: Outcome::Values(single), .. }) => {
                2.0 * single.error + 8.0 * T::UNIT_ROUNDOFF // eps = 2 u
            }
            _ => bound,
        }
    }

    /// How far from each other two compared numbers may be whose order differs: the reference by `bound`, any other backend
    /// by twice the error of the stages that say how far off they are.
    fn margin<'s>(&self, bound: f64, measured: impl IntoIterator<Item = &'s Stage>) -> f64 {
        if self.single.is_empty() {
            return bound;
        }
        let error = |stage: &Stage| match &stage.outcome {
            Outcome::Values(values) => values.error,
            _ => 0.0,
        };
        2.0 * measured.into_iter().map(error).sum::<f64>()
    }

    /// Compares values in the arithmetic under test.
    fn values_stage<T: Scalar>(
        &self,
        name: &str,
        found: ArrayView2<T>,
        expected: ArrayView2<f64>,
        bound: f64,
        processing: Processing,
    ) -> Stage {
        values_stage(name, found, expected, self.allowed::<T>(name, bound), processing)
    }

    /// The running statistics, compared; then as computed. `scale` is the factor that the recorded ones carry.
    fn statistics<T: Scalar>(&self, scale: f64) -> Result<Gathered<T, B::Statistics>, GoldenError>
    where
        B: Inspect<T>,
    {
        let (dense, sparse) = self.inputs()?;
        let (_, tokens, k) = dense.dim();
        let with_drift = self.file.get("stats.dxxt").is_some();
        let mut gathered = self.backend.statistics(k, with_drift);
        for (dense, sparse) in dense.outer_iter().zip(sparse.outer_iter()) {
            let (dense, sparse) = (cast(&dense.to_owned()), cast(&sparse.to_owned()));
            self.backend.update(&mut gathered, dense.view(), sparse.view());
        }
        let statistics = self.backend.read_statistics(&gathered).map_err(|e| self.refused(e))?;
        let budgets = self.budgets::<T>(&dense, &sparse, tokens)?;

        let mut stages = Vec::new();
        let mut stage = |name: &str, found: Array2<T>, expected: Array2<f64>, budget: f64| {
            stages.push(self.values_stage(name, found.view(), expected.view(), budget, Processing::Rows));
        };
        let hessian = self.square("stats.hessian", k)?;
        stage("statistics: H", &statistics.hessian * T::of(scale), hessian, budgets.hessian);
        if let Some(drift) = &statistics.drift {
            let dxxt = self.square("stats.dxxt", k)?;
            stage("statistics: dX X^T", &drift.dxxt * T::of(scale), dxxt, budgets.dxxt);
            if self.file.get("stats.dxdxt").is_some() {
                let dxdxt = self.vector("stats.dxdxt", k)?;
                stage("statistics: diag dX dX^T", column(&drift.dxdxt), column(&dxdxt), budgets.dxdxt);
            }
        }
        Ok(Gathered { stages, on_backend: gathered, statistics, budgets })
    }

    /// See the module's text.
    fn budgets<T: Scalar>(
        &self,
        dense: &Array3<f64>,
        sparse: &Array3<f64>,
        tokens: usize,
    ) -> Result<Budgets, GoldenError> {
        if is_f64::<T>() {
            return Ok(Budgets { hessian: F64_BUDGET, dxxt: F64_BUDGET, dxdxt: F64_BUDGET, terms: 0.0 });
        }
        let (sequences, _, k) = dense.dim();
        let u = T::UNIT_ROUNDOFF;
        let terms = (tokens + 3 * sequences + 8) as f64;
        let flat = |x: &Array3<f64>| x.to_shape((sequences * tokens, k)).expect("contiguous").mapv(f64::abs);
        let (dense, sparse) = (flat(dense), flat(sparse));
        // dX is exact where the two agree, and otherwise off by at most 2 u (|x~| + |x^|) to first order.
        let mut dx = &dense + &sparse;
        ndarray::Zip::from(&mut dx).and(&dense).and(&sparse).for_each(|dx, x, y| {
            if x == y {
                *dx = 0.0
            }
        });
        let mean = 1.0 / sequences as f64;
        let largest = |a: &Array2<f64>| a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let sums = |a: &Array2<f64>, b: &Array2<f64>| terms * u * mean * largest(&matmul(a.t(), b.view()));
        let relative = |bound: f64, name: &str| -> Result<f64, GoldenError> {
            let golden = match self.file.get(name) {
                Some(info) if info.shape.len() == 1 => column(&self.file.vector(name)?),
                Some(_) => self.file.matrix(name)?,
                None => return Ok(bound),
            };
            let scale = largest(&golden);
            // All zero means that X~ = X^ exactly: then dX is zero in any arithmetic.
            Ok(if scale == 0.0 { 0.0 } else { bound / scale })
        };
        Ok(Budgets {
            hessian: relative(sums(&sparse, &sparse), "stats.hessian")?,
            dxxt: relative(sums(&dx, &sparse), "stats.dxxt")?,
            dxdxt: relative(sums(&dx, &dx), "stats.dxdxt")?,
            terms,
        })
    }

    /// The budget of all that comes behind the factor; see the module's text.
    fn factored_budget<T: Scalar>(
        &self,
        budgets: &Budgets,
        damping: f64,
        k: usize,
    ) -> Result<f64, GoldenError> {
        if is_f64::<T>() {
            return Ok(F64_BUDGET);
        }
        let mut hessian = self.square("stats.hessian", k)?;
        let dead = dead_channels(&hessian);
        revive_dead_channels(&mut hessian, &dead);
        damp(&mut hessian, damping);
        let scale = hessian.diag().mapv(|h| 1.0 / h.sqrt());
        let scaled = &hessian * &scale * &scale.insert_axis(Axis(1));
        let l = factor(scaled.clone()).map_err(|e| self.refused(e))?;
        let condition = norm1(&scaled) * norm1(&matmul(l.view(), l.t()));
        Ok((budgets.terms + 3.0 * k as f64) * T::UNIT_ROUNDOFF * condition)
    }

    fn square(&self, name: &str, k: usize) -> Result<Array2<f64>, GoldenError> {
        self.matrix_of(name, (k, k))
    }

    fn matrix_of(&self, name: &str, shape: (usize, usize)) -> Result<Array2<f64>, GoldenError> {
        let matrix = self.file.matrix::<f64>(name)?;
        self.expect_shape(name, matrix.shape(), &[shape.0, shape.1])?;
        Ok(matrix)
    }

    fn vector(&self, name: &str, k: usize) -> Result<Array1<f64>, GoldenError> {
        let vector = self.file.vector::<f64>(name)?;
        self.expect_shape(name, vector.shape(), &[k])?;
        Ok(vector)
    }

    fn mask_of(&self, name: &str, shape: (usize, usize)) -> Result<Array2<bool>, GoldenError> {
        let mask = self.file.flags(name)?;
        self.expect_shape(name, mask.shape(), &[shape.0, shape.1])?;
        Ok(mask)
    }

    fn expect_shape(&self, name: &str, found: &[usize], expected: &[usize]) -> Result<(), TensorError> {
        if found == expected {
            return Ok(());
        }
        Err(TensorError::ShapeMismatch {
            path: self.file.path().to_path_buf(),
            name: name.into(),
            expected: format!("{expected:?}"),
            found: found.to_vec(),
        })
    }

    fn duogpt<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let config = self.config()?;
        let (dense, sparse) = self.inputs()?;
        let weight = self.file.matrix::<f64>("input.weight")?;
        let (n, k) = weight.dim();
        self.expect_shape("input.dense_activations", &dense.shape()[2..], &[k])?;
        config.check(k).map_err(|e| self.refused(e))?;

        let mut stages = vec![self.activation_stage::<T>(&dense, &sparse)?];
        let gathered = self.statistics::<T>(1.0)?;
        let Gathered { on_backend, statistics, budgets, .. } = &gathered;
        let factored = self.factored_budget::<T>(budgets, config.damping, k)?;
        let prepare = |order: Option<&[usize]>| {
            let replay = Replay { order, mask: None };
            self.backend.prepare(on_backend, &config, replay).map_err(|e| self.refused(e))
        };
        let mut prepared = prepare(None)?;
        let mut on_host =
            self.backend.read_prepared(on_backend, &prepared, &config).map_err(|e| self.refused(e))?;
        let drift = ["statistics: H", "statistics: dX X^T"];
        let keys = gathered.stages.iter().filter(|stage| drift.contains(&stage.name.as_str()));
        let key_budget = self.margin(budgets.hessian + budgets.dxxt, keys);
        let (order_stage, order) = self.order_stage(&config, statistics, &on_host.order, key_budget)?;
        if order != on_host.order {
            prepared = prepare(Some(&order))?;
            on_host =
                self.backend.read_prepared(on_backend, &prepared, &config).map_err(|e| self.refused(e))?;
        }
        stages.extend(gathered.stages.iter().cloned());
        stages.extend(order_stage);
        let traced = self.file.get("trace.score").is_some();
        if traced {
            stages.extend(self.factor_stages(&config, statistics, &on_host, budgets.dxdxt, factored)?);
        }

        // Values under the golden order and mask.
        let position = inverse(&order);
        let natural: Vec<usize> = (0..k).collect();
        let golden_mask = match traced {
            true => Some(self.mask_of("trace.mask", (n, k))?.select(Axis(1), &position)),
            false => None,
        };
        let weight = cast::<T, _>(&weight);
        let run = |mask: Option<ArrayView2<bool>>| {
            let replay = Replay { order: None, mask };
            self.backend.prune(&prepared, weight.view(), &config, replay).map_err(|e| self.refused(e))
        };
        let mut pruned = run(None)?;
        if let Some(golden_mask) = &golden_mask {
            let mut decided = pruned.mask.clone();
            if decided != *golden_mask {
                // One flip changes every later score: decide again on the golden path.
                pruned = run(Some(golden_mask.view()))?;
                decided = decide(pruned.score.view(), &config).select(Axis(1), &position);
            }
            let score = self.matrix_of("trace.score", (n, k))?;
            let columns = Processing::Columns(&natural);
            let compared = self.values_stage("score", pruned.score.view(), score.view(), factored, columns);
            let margin = self.margin(factored, [&compared]);
            stages.push(compared);
            let score = score.select(Axis(1), &position);
            let cuts = Cuts::new(score, golden_mask.clone(), order.clone(), Region::of(&config));
            stages.push(mask_stage::<T>("mask", &decided, &cuts, margin));
        }
        let output = self.matrix_of("output.weight", (n, k))?;
        // Without traces the mask of the output stands in for the one that was not recorded.
        let mut name = "weight";
        if golden_mask.is_none() && !is_f64::<T>() {
            name = "weight (mask of the golden output)";
            pruned = run(Some(output.mapv(|w| w == 0.0).view()))?;
        }
        let columns = Processing::Columns(&order);
        stages.push(self.values_stage(name, pruned.weight.view(), output.view(), factored, columns));
        Ok(stages)
    }

    /// X^ is the pruned X~, unless the streams differ beyond that; then pruning X^ again must not change it.
    fn activation_stage<T: Scalar>(
        &self,
        dense: &Array3<f64>,
        sparse: &Array3<f64>,
    ) -> Result<Stage, GoldenError>
    where
        B: Inspect<T>,
    {
        let p: f64 = self.metadata("a_sparsity")?;
        crate::reference::activation::check_fraction("metadata `a_sparsity`", p)
            .map_err(|e| self.refused(e))?;
        let drifted = dense.iter().zip(sparse).any(|(&x, &pruned)| pruned != 0.0 && pruned != x);
        let source = if drifted { sparse } else { dense };
        let mut stage = self.pruned_stage::<T>("activation pruning", source, sparse, p)?;
        stage.note = drifted.then(|| "X^ is no pruned X~ here: checked that pruning keeps it".to_string());
        Ok(stage)
    }

    /// Prunes `input` and compares with `golden`, a row per token.
    fn pruned_stage<T: Scalar>(
        &self,
        name: &str,
        input: &Array3<f64>,
        golden: &Array3<f64>,
        p: f64,
    ) -> Result<Stage, GoldenError>
    where
        B: Inspect<T>,
    {
        let (sequences, tokens, k) = input.dim();
        let flat = |x: &Array3<f64>| x.to_shape((sequences * tokens, k)).expect("contiguous").to_owned();
        let found: Array2<T> =
            self.backend.pruned_activations(cast(&flat(input)), p).map_err(|e| self.refused(e))?;
        // Entries are kept or zeroed, never computed: only the rounding of the input itself may show, with any backend.
        let budget = if is_f64::<T>() { 0.0 } else { T::UNIT_ROUNDOFF };
        Ok(values_stage(name, found.view(), flat(golden).view(), budget, Processing::Rows))
    }

    /// The order, and the golden one to go on with: dead channels tie, and the original's sort is not stable.
    fn order_stage<T: Scalar>(
        &self,
        config: &PruneConfig,
        statistics: &Statistics<T>,
        ours: &[usize],
        key_budget: f64,
    ) -> Result<(Option<Stage>, Vec<usize>), GoldenError> {
        let k = statistics.channels();
        let dead = dead_channels(&statistics.hessian);
        let Some(golden) = self.recorded_order(k)? else { return Ok((None, ours.to_vec())) };
        let key = |column: usize| {
            let h = if dead[column] { 1.0 } else { statistics.hessian[(column, column)].widen() };
            match (&config.column_order, &statistics.drift) {
                (ColumnOrder::HessianDrift, Some(drift)) => h + drift.dxxt[(column, column)].widen().abs(),
                _ => h,
            }
        };
        // Equal keys may stand in either order.
        let largest = (0..k).map(key).fold(f64::MIN_POSITIVE, f64::max);
        let budget = if is_f64::<T>() { 0.0 } else { key_budget };
        let margin = |_, i: usize| Some((key(ours[i]) - key(golden[i])).abs() / largest);
        let as_row = |order: &[usize]| Array2::from_shape_fn((1, k), |(_, i)| order[i] as f64);
        let natural: Vec<usize> = (0..k).collect();
        let outcome =
            compare_decisions(as_row(ours).view(), as_row(&golden).view(), &natural, Some(budget), margin);
        let stage = Stage::decisions("permutation", outcome);
        Ok((Some(stage), golden))
    }

    /// `trace.perm`, where it was recorded.
    fn recorded_order(&self, k: usize) -> Result<Option<Vec<usize>>, GoldenError> {
        if self.file.get("trace.perm").is_none() {
            return Ok(None);
        }
        let order = self.file.integers::<Ix1>("trace.perm")?;
        self.expect_shape("trace.perm", order.shape(), &[k])?;
        let mut seen = vec![false; k];
        let mut fresh = |&c: &usize| c < k && !std::mem::replace(&mut seen[c], true);
        let order: Option<Vec<usize>> =
            order.iter().map(|&c| usize::try_from(c).ok().filter(&mut fresh)).collect();
        let order =
            order.ok_or_else(|| self.malformed("`trace.perm` is not a permutation of the columns"))?;
        Ok(Some(order))
    }

    /// L^T, Q, alpha D, a, b, 2c, and the factor of the score that a backend makes of them.
    fn factor_stages<T: Scalar>(
        &self,
        config: &PruneConfig,
        statistics: &Statistics<T>,
        prepared: &Prepared<T>,
        dxdxt_budget: f64,
        factored: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let Prepared { order, lt, q, d, scale } = prepared;
        let k = order.len();
        let (Some(drift), Some(q), Some(d)) = (&statistics.drift, q, d) else {
            return Err(self.malformed("tensor `stats.dxxt` is missing"));
        };
        let a = drift.dxdxt.select(Axis(0), order) * T::of(config.hessian_scale);
        let Coefficients { a, b, c } = coefficients(a.view(), q.view(), lt.t());
        let golden_lt = self.square("trace.hinv_chol", k)?;
        let golden = |name| self.vector(name, k);
        let (golden_a, golden_b, golden_2c) =
            (golden("trace.coef_a")?, golden("trace.coef_b")?, golden("trace.coef_2c")?);
        let golden_scale = golden_lt.diag().mapv(|l| 1.0 / (l * l))
            + (&golden_a - &golden_b + &golden_2c) * config.alpha.score;

        let stage = |name: &str, found: &Array2<T>, expected: &Array2<f64>, budget| {
            self.values_stage(name, found.view(), expected.view(), budget, Processing::Rows)
        };
        Ok(vec![
            stage("factor: L^T", lt, &golden_lt, factored),
            stage("Q", q, &self.square("trace.q_matrix", k)?, factored),
            stage("alpha D", &(d * T::of(config.alpha.update)), &self.square("trace.p_matrix", k)?, factored),
            stage("a", &column(&a), &column(&golden_a), dxdxt_budget),
            stage("b", &column(&b), &column(&golden_b), factored),
            stage("2c", &column(&(c * T::of(2.0))), &column(&golden_2c), factored),
            stage("factor of the score", &column(scale), &column(&golden_scale), factored),
        ])
    }

    /// The runs of a baseline file: the names before `suffix`.
    fn runs(&self, suffix: &str) -> BTreeSet<String> {
        let ends = |name: &str| name.strip_suffix(suffix).map(str::to_string);
        self.file.names().filter_map(ends).collect()
    }

    fn sparsegpt<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let Gathered { mut stages, on_backend, budgets, .. } = self.statistics::<T>(2.0)?;
        let weight = self.file.matrix::<f64>("input.weight")?;
        let exact = Golden { file: self.file, backend: &Cpu, single: Vec::new() };
        let exact = exact.statistics::<f64>(2.0)?.statistics;
        for run in self.runs(".mask") {
            let (sparsity, damping) = self.settings(&run)?;
            let config = PruneConfig { block_size: 32, damping, ..PruneConfig::sparsegpt(sparsity) };
            let prepared =
                self.backend.prepare(&on_backend, &config, Replay::default()).map_err(|e| self.refused(e))?;
            let on_path = |mask: Option<ArrayView2<bool>>| {
                let replay = Replay { order: None, mask };
                self.backend.prune(&prepared, cast::<T, _>(&weight).view(), &config, replay)
            };
            let pruned = on_path(None).map_err(|e| self.refused(e))?;
            let replay = |mask: ArrayView2<bool>| {
                let pruned = on_path(Some(mask))?;
                let decided = decide(pruned.score.view(), &config);
                Ok((pruned, decided))
            };
            let factored = self.factored_budget::<T>(&budgets, damping, weight.ncols())?;
            // The original's scores are not recorded: those of the reference in f64, on the golden path.
            let mask = self.mask_of(&format!("{run}.mask"), weight.dim())?;
            let on_golden_path = Replay { order: None, mask: Some(mask.view()) };
            let score = prune::prepare(&exact, &config, Replay::default())
                .and_then(|prepared| prepared.prune(weight.view(), &config, on_golden_path))
                .map_err(|e| self.refused(e))?
                .score;
            let region = Region::of(&config);
            stages.extend(self.baseline_stages(&run, pruned, replay, Some(&score), region, factored)?);
        }
        Ok(stages)
    }

    fn wanda<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError> {
        let (dense, _) = self.inputs()?;
        let (sequences, tokens, k) = dense.dim();
        let mut norms = ChannelNorms::<T>::new(k);
        for x in dense.outer_iter() {
            norms.update(cast(&x.to_owned()).view());
        }
        // A sum of squares has no cancellation: its error is relative.
        let budget =
            if is_f64::<T>() { F64_BUDGET } else { (tokens + 3 * sequences + 8) as f64 * T::UNIT_ROUNDOFF };
        let golden = column(&self.vector("stats.scaler_row", k)?);
        let norms_found = column(&norms.square_norms);
        let mut stages = vec![values_stage(
            "statistics: norms",
            norms_found.view(),
            golden.view(),
            budget,
            Processing::Rows,
        )];
        let weight = self.file.matrix::<f64>("input.weight")?;
        for run in self.runs(".mask") {
            let (sparsity, _) = self.settings(&run)?;
            let pruned =
                wanda(cast::<T, _>(&weight).view(), &norms, sparsity).map_err(|e| self.refused(e))?;
            let decided = pruned.mask.clone(); // no score depends on a mask
            let replay = |mask: ArrayView2<bool>| {
                let mut replayed = Pruned {
                    weight: cast(&weight),
                    mask: mask.to_owned(),
                    score: cast::<T, _>(&weight).mapv(T::abs) * &norms.square_norms.mapv(T::sqrt),
                };
                replayed.weight.zip_mut_with(&mask, |w, &m| {
                    if m {
                        *w = T::zero()
                    }
                });
                Ok((replayed, decided.clone()))
            };
            let region = match sparsity {
                Sparsity::Unstructured(_) => Region { per_row: true, width: k },
                Sparsity::NofM { m, .. } => Region { per_row: true, width: m },
            };
            stages.extend(self.baseline_stages(&run, pruned, replay, None, region, budget)?);
        }
        Ok(stages)
    }

    /// A backend that does not quantise is held to the statistics alone.
    fn gptaq<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let Gathered { mut stages, statistics, budgets, .. } = self.statistics::<T>(2.0)?;
        if B::unsupported(Kind::Gptaq).is_some() {
            return Ok(stages);
        }
        let weight = self.file.matrix::<f64>("input.weight")?;
        self.expect_shape("input.weight", &weight.shape()[1..], &[statistics.channels()])?;
        for run in self.runs(".scale") {
            let (grids, config) = self.grid_settings(&run)?;
            let factored = self.factored_budget::<T>(&budgets, config.damping, weight.ncols())?;
            let prepared =
                prune::prepare(&statistics, &config, Replay::default()).map_err(|e| self.refused(e))?;
            let weight = cast::<T, _>(&weight);
            let quantise = |codes: Option<ArrayView2<i32>>| {
                quantise(&prepared, weight.view(), &config, &grids, Replay::default(), codes)
                    .map_err(|e| self.refused(e))
            };
            stages.extend(self.quantised_stages(&run, quantise, &prepared.order, factored)?);
        }
        Ok(stages)
    }

    fn quantised_stages<T: Scalar>(
        &self,
        run: &str,
        quantise: impl Fn(Option<ArrayView2<i32>>) -> Result<Quantised<T>, GoldenError>,
        order: &[usize],
        factored: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let mut quantised = quantise(None)?;
        let (n, k) = quantised.target.dim();
        let weight = self.matrix_of(&format!("{run}.weight"), (n, k))?;
        let scale = self.matrix_of(&format!("{run}.scale"), quantised.scale.dim())?;
        let zero = self.matrix_of(&format!("{run}.zero"), quantised.zero.dim())?;
        // One grid per row; the code is not recorded, but the point is.
        let codes = Array2::from_shape_fn((n, k), |(row, column)| {
            (weight[(row, column)] / scale[(row, 0)] + zero[(row, 0)]).round() as i32
        });
        if quantised.codes != codes {
            quantised = quantise(Some(codes.view()))?;
        }
        let (scale_budget, point_budget) = match is_f64::<T>() {
            true => (F64_BUDGET, F64_BUDGET),
            false => (4.0 * T::UNIT_ROUNDOFF, 6.0 * T::UNIT_ROUNDOFF),
        };
        let stage = |name: &str, found: &Array2<T>, expected: &Array2<f64>, budget: f64| {
            let processing = if found.ncols() == k { Processing::Columns(order) } else { Processing::Rows };
            values_stage(format!("{run}: {name}"), found.view(), expected.view(), budget, processing)
        };
        Ok(vec![
            stage("scale", &quantised.scale, &scale, scale_budget),
            stage("zero", &quantised.zero, &zero, 0.0),
            code_stage(&format!("{run}: codes"), &quantised, &codes, &weight, order, factored),
            stage("weight", &quantised.pruned.weight, &weight, point_budget),
        ])
    }

    /// `sym4`, `asym4_mse`, `sym3_act_order`, `sym4_alpha0_gptq`: symmetry and bits, then what differs from the
    /// published settings.
    fn grid_settings(&self, run: &str) -> Result<(GridConfig, PruneConfig), GoldenError> {
        let unknown = || {
            self.malformed(format!("run `{run}` says no settings (sym<bits> or asym<bits>, then options)"))
        };
        let (grid, mut options) = run.split_at(run.find('_').unwrap_or(run.len()));
        let (symmetry, bits) = match grid.strip_prefix("asym") {
            Some(bits) => (Symmetry::Asymmetric, bits),
            None => (Symmetry::Symmetric, grid.strip_prefix("sym").ok_or_else(unknown)?),
        };
        let bits = bits.parse().map_err(|_| unknown())?;
        let mut grids = GridConfig { bits, symmetry, range: GridRange::Full, group_size: None };
        let mut config = PruneConfig { block_size: 32, ..PruneConfig::gptaq() };
        while !options.is_empty() {
            options = if let Some(rest) = options.strip_prefix("_mse") {
                grids.range = GridRange::LeastError;
                rest
            } else if let Some(rest) = options.strip_prefix("_act_order") {
                config.column_order = ColumnOrder::Hessian;
                rest
            } else if let Some(rest) = options.strip_prefix("_alpha0") {
                config.alpha.update = 0.0;
                rest
            } else {
                // Only says once more that alpha = 0 is GPTQ.
                options.strip_prefix("_gptq").ok_or_else(unknown)?
            };
        }
        Ok((grids, config))
    }

    fn baseline_stages<T: Scalar>(
        &self,
        run: &str,
        mut pruned: Pruned<T>,
        replay: impl Fn(ArrayView2<bool>) -> Result<(Pruned<T>, Array2<bool>), PruneError>,
        exact_score: Option<&Array2<f64>>,
        region: Region,
        budget: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let shape = pruned.weight.dim();
        let natural: Vec<usize> = (0..shape.1).collect();
        let golden_mask = self.mask_of(&format!("{run}.mask"), shape)?;
        let mut decided = pruned.mask.clone();
        if decided != golden_mask {
            (pruned, decided) = replay(golden_mask.view()).map_err(|e| self.refused(e))?;
        }
        let columns = Processing::Columns(&natural);
        let compared = exact_score.filter(|_| !is_f64::<T>()).map(|exact| {
            let name = format!("{run}: score (f64 reference)");
            self.values_stage(&name, pruned.score.view(), exact.view(), budget, columns)
        });
        let margin = self.margin(budget, &compared);
        // Margins are our own, under the golden mask.
        let score = pruned.score.mapv(|s| s.widen());
        let cuts = Cuts::new(score, golden_mask, natural.clone(), region);
        let mask = mask_stage::<T>(format!("{run}: mask"), &decided, &cuts, margin);
        let golden = self.matrix_of(&format!("{run}.weight"), shape)?;
        let name = format!("{run}: weight");
        let weight = self.values_stage(&name, pruned.weight.view(), golden.view(), budget, columns);
        Ok(compared.into_iter().chain([mask, weight]).collect())
    }

    /// `unstructured50`, `unstructured70_damp10` (damping 0.10), `nm24`.
    fn settings(&self, run: &str) -> Result<(Sparsity, f64), GoldenError> {
        let unknown =
            || self.malformed(format!("run `{run}` says no settings (unstructured<percent> or nm<N><M>)"));
        let percent = |text: &str| text.parse::<f64>().map(|p| p / 100.0).map_err(|_| unknown());
        let (pattern, damping) = match run.split_once("_damp") {
            Some((pattern, damping)) => (pattern, percent(damping)?),
            None => (run, 0.01),
        };
        let sparsity = if let Some(p) = pattern.strip_prefix("unstructured") {
            Sparsity::Unstructured(percent(p)?)
        } else {
            let digits: Vec<usize> = pattern
                .strip_prefix("nm")
                .map(|text| text.chars().filter_map(|c| c.to_digit(10)).map(|d| d as usize).collect())
                .unwrap_or_default();
            match digits[..] {
                [n, m] => Sparsity::NofM { n, m },
                _ => return Err(unknown()),
            }
        };
        Ok((sparsity, damping))
    }

    fn activation_pruning<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let mut stages = Vec::new();
        for name in self.file.names() {
            let Some((case, percent)) = name.split_once(".s") else { continue };
            let p: f64 = percent
                .parse()
                .map_err(|_| self.malformed(format!("tensor `{name}` names no percentage")))?;
            crate::reference::activation::check_fraction("the percentage of a tensor's name", p / 100.0)
                .map_err(|e| self.refused(e))?;
            let input = self.file.cube::<f64>(&format!("{case}.input"))?;
            let golden = self.file.cube::<f64>(name)?;
            self.expect_shape(name, golden.shape(), input.shape())?;
            stages.push(self.pruned_stage::<T>(name, &input, &golden, p / 100.0)?);
        }
        Ok(stages)
    }
}

fn norm1(a: &Array2<f64>) -> f64 {
    a.columns().into_iter().map(|c| c.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max)
}

/// Compares values in the arithmetic under test.
fn values_stage<T: Scalar>(
    name: impl Into<String>,
    found: ArrayView2<T>,
    expected: ArrayView2<f64>,
    budget: f64,
    processing: Processing,
) -> Stage {
    let precision = if is_f64::<T>() { FloatType::F64 } else { FloatType::F32 };
    Stage::values(name, compare(found, expected, precision, budget, processing))
}

/// The mask that these scores ask for, block by block (group by group for N:M); both in processing order.
fn decide<T: Scalar>(score: ArrayView2<T>, config: &PruneConfig) -> Array2<bool> {
    let mut mask = Array2::from_elem(score.dim(), false);
    match config.weight_sparsity {
        Sparsity::Unstructured(p) => {
            for (score, mut mask) in (score.axis_chunks_iter(Axis(1), config.block_size))
                .zip(mask.axis_chunks_iter_mut(Axis(1), config.block_size))
            {
                mask.assign(&config.threshold.select(score, p));
            }
        }
        Sparsity::NofM { n, m } => {
            for (score, mut mask) in score.exact_chunks((1, m)).into_iter().zip(mask.exact_chunks_mut((1, m)))
            {
                mask.row_mut(0).assign(&lowest(&score.row(0).to_vec(), n));
            }
        }
    }
    mask
}

/// Which scores one cut runs through: `width` columns (in processing order) of all rows, or of one.
#[derive(Clone, Copy)]
pub(super) struct Region {
    per_row: bool,
    width: usize,
}

impl Region {
    fn of(config: &PruneConfig) -> Self {
        match config.weight_sparsity {
            Sparsity::Unstructured(_) => Region { per_row: false, width: config.block_size },
            Sparsity::NofM { m, .. } => Region { per_row: true, width: m },
        }
    }
}

/// A mask, and the scores that it cuts.
pub(super) struct Cuts {
    /// n x k, original column order.
    score: Array2<f64>,
    /// n x k, original column order.
    mask: Array2<bool>,
    /// Position to original column (k).
    pub(super) order: Vec<usize>,
    region: Region,
    /// The largest score that is pruned in each region: a row per row of scores, or one for all.
    cuts: Array2<f64>,
    /// The largest magnitude of a score.
    largest: f64,
}

impl Cuts {
    /// `score` (n x k, original order) must be on the path of `mask`, so that one flip does not cause the next.
    fn new(score: Array2<f64>, mask: Array2<bool>, order: Vec<usize>, region: Region) -> Self {
        let (n, k) = score.dim();
        let rows = if region.per_row { n } else { 1 };
        let mut cuts = Array2::from_elem((rows, k.div_ceil(region.width)), f64::NEG_INFINITY);
        for (position, &column) in order.iter().enumerate() {
            for row in (0..n).filter(|&row| mask[(row, column)]) {
                let cut = &mut cuts[(row % rows, position / region.width)];
                *cut = cut.max(score[(row, column)]);
            }
        }
        let largest = score.iter().fold(f64::MIN_POSITIVE, |m, s| m.max(s.abs()));
        Cuts { score, mask, order, region, cuts, largest }
    }

    /// n and k.
    pub(super) fn shape(&self) -> (usize, usize) {
        self.score.dim()
    }

    /// How far the score of an element is from the cut through its region, relative to the largest score of all.
    pub(super) fn margin(&self, row: usize, position: usize) -> f64 {
        let cut = self.cuts[(row % self.cuts.nrows(), position / self.region.width)];
        (self.score[(row, self.order[position])] - cut).abs() / self.largest
    }
}

/// Holds `decided` (original order) to the mask of `cuts`.
fn mask_stage<T: Scalar>(
    name: impl Into<String>,
    decided: &Array2<bool>,
    cuts: &Cuts,
    score_budget: f64,
) -> Stage {
    let budget = (!is_f64::<T>()).then_some(score_budget);
    let margin = |row, position| Some(cuts.margin(row, position));
    Stage::decisions(name, compare_decisions(decided.view(), cuts.mask.view(), &cuts.order, budget, margin))
}

/// Holds the codes to the golden ones. The margin of a weight that was rounded to another code is its distance from
/// the middle between the two points, relative to the largest weight. Each was rounded on the golden path, so that one
/// flip does not cause the next.
fn code_stage<T: Scalar>(
    name: &str,
    quantised: &Quantised<T>,
    golden: &Array2<i32>,
    weight: &Array2<f64>,
    order: &[usize],
    budget: f64,
) -> Stage {
    let largest = weight.iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs()));
    let margin = |row, position: usize| {
        let at = (row, order[position]);
        let (scale, zero) = (quantised.scale[(row, 0)].widen(), quantised.zero[(row, 0)].widen());
        let middle = scale * (f64::from(quantised.codes[at]) / 2.0 + f64::from(golden[at]) / 2.0 - zero);
        Some((quantised.target[at].widen() - middle).abs() / largest)
    };
    let budget = (!is_f64::<T>()).then_some(budget);
    Stage::decisions(name, compare_decisions(quantised.codes.view(), golden.view(), order, budget, margin))
}

#[cfg(test)]
mod tests {
    use super::super::compare::Place;
    use super::*;
    use ndarray::array;

    #[test]
    fn a_code_may_flip_only_in_f32_and_only_near_the_middle_of_two_points() {
        fn stage<T: Scalar>(target: f64, code: i32) -> Stage {
            let weight = array![[1.0, 2.0]]; // scale 0.5, zero at 1: codes 3 and 5
            let of = |a: &Array2<f64>| cast::<T, _>(a);
            let quantised = Quantised {
                pruned: Pruned { weight: of(&weight), mask: array![[false, false]], score: of(&weight) },
                codes: array![[3, code]],
                scale: of(&array![[0.5]]),
                zero: of(&array![[1.0]]),
                grid: vec![0, 0],
                target: of(&array![[1.1, target]]),
            };
            code_stage("codes", &quantised, &array![[3, 5]], &weight, &[1, 0], 1e-3)
        }
        // The middle between the codes 5 and 4 is 1.75, and the largest weight is 2.
        let near = stage::<f32>(1.751, 4);
        assert!(near.passed && near.differing() == 1);
        assert_eq!(near.place(), Some(Place { row: 0, column: 1, expected: 5.0, found: 4.0 }));
        assert!(!stage::<f32>(1.753, 4).passed);
        assert!(!stage::<f32>(1.75, 3).passed); // two steps
        assert!(!stage::<f64>(1.751, 4).passed);
        assert!(stage::<f64>(2.0, 5).passed && stage::<f64>(2.0, 5).differing() == 0);
    }
}
