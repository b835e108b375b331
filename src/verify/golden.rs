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
//! No comparison of values survives a flipped mask bit. So values are compared under the golden order and mask, and
//! the decisions apart: an f32 flip passes only if the score lies within the score budget of the cut. A weight
//! rounded to another code is such a flip too. It passes only if the value that was rounded lies within the budget
//! behind the factor of the middle between the two points.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, Ix1, s};
use serde::Serialize;

use super::compare::{Comparison, Place, Processing, compare};
use crate::linalg::{Scalar, matmul};
use crate::reference::activation::prune_activations;
use crate::reference::baseline::gptaq::{GridConfig, GridRange, Quantised, Symmetry, quantise};
use crate::reference::baseline::{sparsegpt::sparsegpt, wanda::wanda};
use crate::reference::factor::{damp, dead_channels, factor, revive_dead_channels};
use crate::reference::order::inverse;
use crate::reference::prune::{Ordered, damped_factor, in_processing_order, prepare};
use crate::reference::score::{Coefficients, coefficients, residual_projection, update_matrix};
use crate::reference::{
    Alpha, ChannelNorms, ColumnOrder, Drift, PruneConfig, PruneError, Pruned, Replay, Sparsity, Statistics,
};
use crate::tensors::{TensorError, TensorFile};

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

/// The outcome of one stage.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Largest error relative to the largest golden entry (absolute if that is zero); for decisions the number that
    /// differ.
    pub error: f64,
    /// What was allowed.
    pub budget: f64,
    /// Whether the stage holds.
    pub passed: bool,
    /// The first difference beyond the budget in processing order, else the largest one.
    pub place: Option<Place>,
    /// What there is to say besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Stage {
    fn values(name: impl Into<String>, outcome: Comparison) -> Self {
        let passed = outcome.passed();
        let place = outcome.first.or(outcome.worst.filter(|_| outcome.error > 0.0));
        Stage { name: name.into(), error: outcome.error, budget: outcome.budget, passed, place, note: None }
    }
}

/// The outcome of one file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// What it holds; `None` where it is no golden file.
    pub kind: Option<Kind>,
    /// Stage by stage.
    pub stages: Vec<Stage>,
    /// What was not checked, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl FileReport {
    /// Whether every stage holds.
    pub fn passed(&self) -> bool {
        self.stages.iter().all(|stage| stage.passed)
    }
}

/// Checks one golden file with the reference in the arithmetic `T`.
///
/// # Errors
/// [`GoldenError`] when the file cannot be read or is not understood. A stage that differs is not an error: it is in
/// the report.
pub fn verify_file<T: Scalar>(path: &Path) -> Result<FileReport, GoldenError> {
    let golden = Golden { file: TensorFile::open(path)? };
    let kind = golden.kind();
    let mut skipped = None;
    let stages = match kind {
        Some(Kind::DuoGpt) => golden.duogpt::<T>()?,
        Some(Kind::SparseGpt) => golden.sparsegpt::<T>()?,
        Some(Kind::Wanda) => golden.wanda::<T>()?,
        Some(Kind::ActivationPruning) => golden.activation_pruning::<T>()?,
        Some(Kind::Gptaq) => golden.gptaq::<T>()?,
        None => {
            skipped =
                Some("not a golden file: neither its metadata nor its tensors name a known kind".into());
            Vec::new()
        }
    };
    Ok(FileReport { path: path.to_path_buf(), kind, stages, skipped })
}

struct Golden {
    file: TensorFile,
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

/// Budgets of one layer, relative to the largest golden entry of each stage.
struct Budgets {
    hessian: f64,
    dxxt: f64,
    dxdxt: f64,
    /// Roundings on the way to one entry of the Hessian.
    terms: f64,
}

impl Golden {
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

    /// The running statistics, compared; then as computed. `scale` is the factor that the recorded ones carry.
    fn statistics<T: Scalar>(&self, scale: f64) -> Result<(Vec<Stage>, Statistics<T>, Budgets), GoldenError> {
        let (dense, sparse) = self.inputs()?;
        let (_, tokens, k) = dense.dim();
        let with_drift = self.file.get("stats.dxxt").is_some();
        let mut statistics = Statistics::<T>::new(k, with_drift);
        for (dense, sparse) in dense.outer_iter().zip(sparse.outer_iter()) {
            statistics.update(cast(&dense.to_owned()).view(), cast(&sparse.to_owned()).view());
        }
        let budgets = self.budgets::<T>(&dense, &sparse, tokens)?;

        let mut stages = Vec::new();
        let mut stage = |name: &str, found: Array2<T>, expected: Array2<f64>, budget: f64| {
            stages
                .push(Stage::values(name, compare(found.view(), expected.view(), budget, Processing::Rows)));
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
        Ok((stages, statistics, budgets))
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

    fn duogpt<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError> {
        let config = self.config()?;
        let (dense, sparse) = self.inputs()?;
        let weight = self.file.matrix::<f64>("input.weight")?;
        let (n, k) = weight.dim();
        self.expect_shape("input.dense_activations", &dense.shape()[2..], &[k])?;
        config.check(k).map_err(|e| self.refused(e))?;

        let mut stages = vec![self.activation_stage::<T>(&dense, &sparse)?];
        let (statistics_stages, statistics, budgets) = self.statistics::<T>(1.0)?;
        stages.extend(statistics_stages);

        let factored = self.factored_budget::<T>(&budgets, config.damping, k)?;
        let (order_stage, order) = self.order_stage(&config, &statistics, budgets.hessian + budgets.dxxt)?;
        stages.extend(order_stage);
        let traced = self.file.get("trace.score").is_some();
        if traced {
            stages.extend(self.factor_stages(&config, &statistics, &order, budgets.dxdxt, factored)?);
        }

        // Values under the golden order and mask.
        let position = inverse(&order);
        let natural: Vec<usize> = (0..k).collect();
        let golden_mask = match traced {
            true => Some(self.mask_of("trace.mask", (n, k))?.select(Axis(1), &position)),
            false => None,
        };
        let weight = cast::<T, _>(&weight);
        let replay = Replay { order: Some(&order), mask: None };
        let prepared = prepare(&statistics, &config, replay).map_err(|e| self.refused(e))?;
        let run = |mask: Option<ArrayView2<bool>>| {
            prepared.prune(weight.view(), &config, Replay { order: None, mask }).map_err(|e| self.refused(e))
        };
        let mut pruned = run(None)?;
        if let Some(golden_mask) = &golden_mask {
            let decided = pruned.mask.clone();
            if decided != *golden_mask {
                pruned = run(Some(golden_mask.view()))?;
            }
            let score = self.matrix_of("trace.score", (n, k))?;
            let compared =
                compare(pruned.score.view(), score.view(), factored, Processing::Columns(&natural));
            stages.push(Stage::values("score", compared));
            let score = score.select(Axis(1), &position);
            stages.push(mask_stage::<T>("mask", &decided, golden_mask, &score, &order, &config, factored));
        }
        let output = self.matrix_of("output.weight", (n, k))?;
        // Without traces the mask of the output stands in for the one that was not recorded.
        let mut name = "weight";
        if golden_mask.is_none() && !is_f64::<T>() {
            name = "weight (mask of the golden output)";
            pruned = run(Some(output.mapv(|w| w == 0.0).view()))?;
        }
        let compared = compare(pruned.weight.view(), output.view(), factored, Processing::Columns(&order));
        stages.push(Stage::values(name, compared));
        Ok(stages)
    }

    /// X^ is the pruned X~, unless the streams differ beyond that; then pruning X^ again must not change it.
    fn activation_stage<T: Scalar>(
        &self,
        dense: &Array3<f64>,
        sparse: &Array3<f64>,
    ) -> Result<Stage, GoldenError> {
        let p: f64 = self.metadata("a_sparsity")?;
        crate::reference::activation::check_fraction("metadata `a_sparsity`", p)
            .map_err(|e| self.refused(e))?;
        let drifted = dense.iter().zip(sparse).any(|(&x, &pruned)| pruned != 0.0 && pruned != x);
        let source = if drifted { sparse } else { dense };
        let mut stage = activation_stage::<T>("activation pruning", source, sparse, p);
        stage.note = drifted.then(|| "X^ is no pruned X~ here: checked that pruning keeps it".to_string());
        Ok(stage)
    }

    /// The order, and the golden one to go on with: dead channels tie, and the original's sort is not stable.
    fn order_stage<T: Scalar>(
        &self,
        config: &PruneConfig,
        statistics: &Statistics<T>,
        key_budget: f64,
    ) -> Result<(Option<Stage>, Vec<usize>), GoldenError> {
        let k = statistics.channels();
        let dead = dead_channels(&statistics.hessian);
        let ours = in_processing_order(statistics, &dead, config, None).map_err(|e| self.refused(e))?.order;
        if self.file.get("trace.perm").is_none() {
            return Ok((None, ours));
        }
        let golden = self.file.integers::<Ix1>("trace.perm")?;
        self.expect_shape("trace.perm", golden.shape(), &[k])?;
        let golden: Option<Vec<usize>> =
            golden.iter().map(|&c| usize::try_from(c).ok().filter(|&c| c < k)).collect();
        let golden = golden.ok_or_else(|| self.malformed("`trace.perm` names columns that do not exist"))?;

        let key = |column: usize| {
            let h = if dead[column] { 1.0 } else { statistics.hessian[(column, column)].widen() };
            match (&config.column_order, &statistics.drift) {
                (ColumnOrder::HessianDrift, Some(drift)) => h + drift.dxxt[(column, column)].widen().abs(),
                _ => h,
            }
        };
        let largest = (0..k).map(key).fold(0.0, f64::max);
        let tolerance = if is_f64::<T>() { 0.0 } else { key_budget * largest };
        let wrong = |i: &usize| (key(ours[*i]) - key(golden[*i])).abs() > tolerance;
        let differing = (0..k).filter(wrong).count();
        let first = (0..k).find(wrong);
        let tied = (0..k).filter(|&i| ours[i] != golden[i]).count() - differing;
        let stage = Stage {
            name: "permutation".into(),
            error: differing as f64,
            budget: 0.0,
            passed: differing == 0,
            place: first.map(|i| Place {
                row: 0,
                column: i,
                expected: golden[i] as f64,
                found: ours[i] as f64,
            }),
            note: (tied > 0).then(|| format!("{tied} columns with equal keys stand in another order")),
        };
        Ok((Some(stage), golden))
    }

    /// L^T, Q, alpha D, a, b, 2c.
    fn factor_stages<T: Scalar>(
        &self,
        config: &PruneConfig,
        statistics: &Statistics<T>,
        order: &[usize],
        dxdxt_budget: f64,
        factored: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let k = order.len();
        let dead = dead_channels(&statistics.hessian);
        let Ordered { hessian, drift, .. } =
            in_processing_order(statistics, &dead, config, Some(order)).map_err(|e| self.refused(e))?;
        let l = damped_factor(hessian, config.damping).map_err(|e| self.refused(e))?;
        let Some(Drift { dxxt, dxdxt }) = drift else {
            return Err(self.malformed("tensor `stats.dxxt` is missing"));
        };
        let q = residual_projection(dxxt.view(), l.view());
        let Coefficients { a, b, c } = coefficients(dxdxt.view(), q.view(), l.view());
        let alpha = T::of(config.alpha.update);
        let d = update_matrix(q.clone(), l.view()) * alpha;

        let stage = |name: &str, found: &Array2<T>, expected: &Array2<f64>, budget| {
            Stage::values(name, compare(found.view(), expected.view(), budget, Processing::Rows))
        };
        Ok(vec![
            stage("factor: L^T", &l.t().to_owned(), &self.square("trace.hinv_chol", k)?, factored),
            stage("Q", &q, &self.square("trace.q_matrix", k)?, factored),
            stage("alpha D", &d, &self.square("trace.p_matrix", k)?, factored),
            stage("a", &column(&a), &column(&self.vector("trace.coef_a", k)?), dxdxt_budget),
            stage("b", &column(&b), &column(&self.vector("trace.coef_b", k)?), factored),
            stage("2c", &column(&(c * T::of(2.0))), &column(&self.vector("trace.coef_2c", k)?), factored),
        ])
    }

    /// The runs of a baseline file: the names before `suffix`.
    fn runs(&self, suffix: &str) -> BTreeSet<String> {
        let ends = |name: &str| name.strip_suffix(suffix).map(str::to_string);
        self.file.names().filter_map(ends).collect()
    }

    fn sparsegpt<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError> {
        let (mut stages, statistics, budgets) = self.statistics::<T>(2.0)?;
        let weight = self.file.matrix::<f64>("input.weight")?;
        for run in self.runs(".mask") {
            let (sparsity, damping) = self.settings(&run)?;
            let config = PruneConfig { block_size: 32, damping, ..PruneConfig::sparsegpt(sparsity) };
            let pruned =
                sparsegpt(cast::<T, _>(&weight).view(), &statistics, &config).map_err(|e| self.refused(e))?;
            let replay = |mask: ArrayView2<bool>| {
                prepare(&statistics, &config, Replay::default()).and_then(|p| {
                    p.prune(cast::<T, _>(&weight).view(), &config, Replay { order: None, mask: Some(mask) })
                })
            };
            let factored = self.factored_budget::<T>(&budgets, damping, weight.ncols())?;
            stages.extend(self.baseline_stages(&run, pruned, replay, &config, factored)?);
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
        let compared = compare(column(&norms.square_norms).view(), golden.view(), budget, Processing::Rows);
        let mut stages = vec![Stage::values("statistics: norms", compared)];
        let weight = self.file.matrix::<f64>("input.weight")?;
        for run in self.runs(".mask") {
            let (sparsity, _) = self.settings(&run)?;
            let pruned =
                wanda(cast::<T, _>(&weight).view(), &norms, sparsity).map_err(|e| self.refused(e))?;
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
                Ok(replayed)
            };
            let config = PruneConfig::sparsegpt(sparsity);
            stages.extend(self.baseline_stages(&run, pruned, replay, &config, budget)?);
        }
        Ok(stages)
    }

    fn gptaq<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError> {
        let (mut stages, statistics, budgets) = self.statistics::<T>(2.0)?;
        let weight = self.file.matrix::<f64>("input.weight")?;
        self.expect_shape("input.weight", &weight.shape()[1..], &[statistics.channels()])?;
        for run in self.runs(".scale") {
            let (grids, config) = self.grid_settings(&run)?;
            let factored = self.factored_budget::<T>(&budgets, config.damping, weight.ncols())?;
            let prepared = prepare(&statistics, &config, Replay::default()).map_err(|e| self.refused(e))?;
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
            Stage::values(
                format!("{run}: {name}"),
                compare(found.view(), expected.view(), budget, processing),
            )
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
        replay: impl Fn(ArrayView2<bool>) -> Result<Pruned<T>, PruneError>,
        config: &PruneConfig,
        budget: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let shape = pruned.weight.dim();
        let natural: Vec<usize> = (0..shape.1).collect();
        let golden_mask = self.mask_of(&format!("{run}.mask"), shape)?;
        let decided = pruned.mask.clone();
        if decided != golden_mask {
            pruned = replay(golden_mask.view()).map_err(|e| self.refused(e))?;
        }
        // The original's scores are not recorded: margins are ours, under the golden mask.
        let score = pruned.score.mapv(|s| s.widen());
        let mask = mask_stage::<T>(
            &format!("{run}: mask"),
            &decided,
            &golden_mask,
            &score,
            &natural,
            config,
            budget,
        );
        let golden = self.matrix_of(&format!("{run}.weight"), shape)?;
        let compared = compare(pruned.weight.view(), golden.view(), budget, Processing::Columns(&natural));
        Ok(vec![mask, Stage::values(format!("{run}: weight"), compared)])
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

    fn activation_pruning<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError> {
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
            stages.push(activation_stage::<T>(name, &input, &golden, p / 100.0));
        }
        Ok(stages)
    }
}

fn norm1(a: &Array2<f64>) -> f64 {
    a.columns().into_iter().map(|c| c.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max)
}

/// Prunes `input` and compares with `golden`, a row per token.
fn activation_stage<T: Scalar>(name: &str, input: &Array3<f64>, golden: &Array3<f64>, p: f64) -> Stage {
    let (sequences, tokens, k) = input.dim();
    let flat = |x: &Array3<f64>| x.to_shape((sequences * tokens, k)).expect("contiguous").to_owned();
    let mut found: Array2<T> = cast(&flat(input));
    prune_activations(found.view_mut(), p);
    // Entries are kept or zeroed, never computed: only the rounding of the input itself may show.
    let budget = if is_f64::<T>() { 0.0 } else { T::UNIT_ROUNDOFF };
    Stage::values(name, compare(found.view(), flat(golden).view(), budget, Processing::Rows))
}

/// Counts the flips of `decided` against `golden` (original order) and weighs each by its distance from the cut.
///
/// `score` (original order) is on the golden path, so that one flip does not cause the next.
fn mask_stage<T: Scalar>(
    name: &str,
    decided: &Array2<bool>,
    golden: &Array2<bool>,
    score: &Array2<f64>,
    order: &[usize],
    config: &PruneConfig,
    score_budget: f64,
) -> Stage {
    let (n, k) = golden.dim();
    let largest = score.iter().fold(0.0f64, |m, s| m.max(s.abs()));
    let mut flips = 0;
    let mut first = None;
    let mut widest = 0.0f64;
    for (position, &column) in order.iter().enumerate() {
        for row in 0..n {
            if decided[(row, column)] == golden[(row, column)] {
                continue;
            }
            flips += 1;
            let cut = cut(score, golden, order, config.weight_sparsity, config.block_size, (row, position));
            let margin = (score[(row, column)] - cut).abs();
            widest = widest.max(margin);
            let as_number = |flag| f64::from(u8::from(flag));
            first.get_or_insert(Place {
                row,
                column,
                expected: as_number(golden[(row, column)]),
                found: as_number(decided[(row, column)]),
            });
        }
    }
    let relative = if largest == 0.0 { widest } else { widest / largest };
    let passed = flips == 0 || (!is_f64::<T>() && relative <= score_budget);
    let note = (flips > 0).then(|| {
        format!(
            "{flips} of {} decisions differ, at most {relative:.1e} of the largest score from the cut",
            n * k
        )
    });
    Stage { name: name.into(), error: flips as f64, budget: 0.0, passed, place: first, note }
}

/// Counts the weights that were rounded to another code than the golden one, and weighs each by the distance from
/// the middle between the two points. Each was rounded on the golden path, so that one flip does not cause the next.
fn code_stage<T: Scalar>(
    name: &str,
    quantised: &Quantised<T>,
    golden: &Array2<i32>,
    weight: &Array2<f64>,
    order: &[usize],
    budget: f64,
) -> Stage {
    let largest = weight.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    let mut flips = 0;
    let mut first = None;
    let mut widest = 0.0f64;
    for &column in order {
        for row in 0..golden.nrows() {
            let (found, expected) = (quantised.codes[(row, column)], golden[(row, column)]);
            if found == expected {
                continue;
            }
            flips += 1;
            first.get_or_insert(Place {
                row,
                column,
                expected: f64::from(expected),
                found: f64::from(found),
            });
            let (scale, zero) = (quantised.scale[(row, 0)].widen(), quantised.zero[(row, 0)].widen());
            let middle = scale * (f64::from(found) / 2.0 + f64::from(expected) / 2.0 - zero);
            widest = widest.max((quantised.target[(row, column)].widen() - middle).abs() / largest);
        }
    }
    let note = (flips > 0).then(|| {
        format!(
            "{flips} of {} weights rounded to another code, at most {widest:.1e} of the largest weight from the middle \
             between the two points",
            golden.len()
        )
    });
    let passed = flips == 0 || (!is_f64::<T>() && widest <= budget);
    Stage { name: name.into(), error: f64::from(flips), budget: 0.0, passed, place: first, note }
}

/// The score at which the golden mask cuts the block (or row, or group) that holds an element: the largest pruned one.
fn cut(
    score: &Array2<f64>,
    golden: &Array2<bool>,
    order: &[usize],
    sparsity: Sparsity,
    block_size: usize,
    (row, position): (usize, usize),
) -> f64 {
    let (rows, width) = match sparsity {
        Sparsity::Unstructured(_) => (0..score.nrows(), block_size),
        Sparsity::NofM { m, .. } => (row..row + 1, m),
    };
    let start = position / width * width;
    let columns = &order[start..(start + width).min(order.len())];
    let rows = s![rows, ..];
    let (score, golden) = (score.slice(rows), golden.slice(rows));
    let in_block = |a: &(usize, usize)| golden[*a];
    (0..score.nrows())
        .flat_map(|i| columns.iter().map(move |&j| (i, j)))
        .filter(in_block)
        .map(|at| score[at])
        .fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_code_may_flip_only_in_f32_and_only_near_the_middle_of_two_points() {
        fn stage<T: Scalar>(target: f64, code: i32) -> Stage {
            let weight = array![[1.0, 2.0]]; // scale 0.5: codes 2 and 4
            let of = |a: &Array2<f64>| cast::<T, _>(a);
            let quantised = Quantised {
                pruned: Pruned { weight: of(&weight), mask: array![[false, false]], score: of(&weight) },
                codes: array![[2, code]],
                scale: of(&array![[0.5]]),
                zero: of(&array![[0.0]]),
                target: of(&array![[1.1, target]]),
            };
            code_stage("codes", &quantised, &array![[2, 4]], &weight, &[1, 0], 1e-3)
        }
        // The middle between the codes 4 and 3 is 1.75, and the largest weight is 2.
        let near = stage::<f32>(1.751, 3);
        assert!(near.passed && near.error == 1.0 && near.note.is_some());
        assert_eq!(near.place, Some(Place { row: 0, column: 1, expected: 4.0, found: 3.0 }));
        assert!(!stage::<f32>(1.753, 3).passed);
        assert!(!stage::<f32>(1.75, 2).passed); // two steps
        assert!(!stage::<f64>(1.751, 3).passed);
        assert!(stage::<f64>(2.0, 4).passed && stage::<f64>(2.0, 4).note.is_none());
    }
}
