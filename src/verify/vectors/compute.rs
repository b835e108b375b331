//! Every tensor of a case, computed from its inputs.

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2, Axis, Zip, concatenate, s};

use super::case::{ActivationSparsity, Case, CaseError, WandaVariant};
use super::settings::needed;
use super::tensor::{CaseTensor, CaseTensors};
use crate::backend::BackendError;
use crate::linalg::Scalar;
use crate::reference::activation::token_threshold;
use crate::reference::baseline::gptaq::{GridConfig, Quantised};
use crate::reference::baseline::magnitude::magnitude;
use crate::reference::baseline::teal::{LinearHistogram, dense_tokens};
use crate::reference::baseline::wanda::{wanda, wanda_by_share};
use crate::reference::mask::select;
use crate::reference::prune::{damp_as_configured, in_processing_order};
use crate::reference::score::coefficients;
use crate::reference::teal::prune_below;
use crate::reference::{
    ChannelNorms, ConfigError, FactorError, LoopTrace, PruneConfig, PruneError, Pruned, Sparsity,
};
use crate::tensor_error::TensorError;
use crate::verify::inspect::{Inspect, Trace};
use crate::verify::kind::Kind;

/// Why a case could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// The case itself.
    #[error(transparent)]
    Case(#[from] CaseError),
    /// A tensor of it.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The algorithm, or the device, refused it.
    #[error("{case}: {source}")]
    Refused {
        /// The case.
        case: String,
        /// What was said.
        source: BackendError,
    },
}

/// Decisions of another run, to go on with instead of one's own: no later value can be compared after one that differs.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    /// Position to original column (k).
    pub order: Option<Vec<usize>>,
    /// `true` = pruned (n x k), original column order.
    pub mask: Option<Array2<bool>>,
    /// Codes (n x k), original column order.
    pub codes: Option<Array2<i32>>,
}

/// What a case's inputs give.
#[derive(Clone, Debug, Default)]
pub struct Computed {
    /// By the names of the schema.
    pub tensors: CaseTensors,
    /// What would have been decided, where other decisions were followed: `trace.perm`, `trace.mask`, `trace.codes`.
    pub decided: CaseTensors,
    /// W_j at its turn, before it was rounded (n x k), processing order.
    pub target: Option<Array2<f64>>,
    /// Why nothing follows: what the backend cannot do, or that H has no factor.
    pub stopped: Option<String>,
}

impl Computed {
    fn put(&mut self, name: &str, tensor: CaseTensor) {
        self.tensors.insert(name.into(), tensor);
    }
}

/// Computes what `case` describes with a backend, in the arithmetic `T`.
///
/// # Errors
/// [`VectorError`]. A Hessian without a factor is none: it is the result `output.error`.
pub fn compute<T: Scalar, B: Inspect<T>>(
    case: &Case,
    backend: &B,
    followed: &Followed,
) -> Result<Computed, VectorError> {
    Computation { case, backend, followed }.run()
}

/// Every tensor of SparseGPT, DuoGPT, GPTQ or GPTAQ on one linear (n x k), from the statistics of its input on.
///
/// `grids` are those that the kept weights are rounded to, if they are.
///
/// # Errors
/// [`BackendError`]. A Hessian without a factor is none: it is the result `output.error`.
pub fn layer_stages<T: Scalar, B: Inspect<T>>(
    backend: &B,
    statistics: &B::Statistics,
    weight: ArrayView2<T>,
    config: &PruneConfig,
    grids: Option<&GridConfig>,
    followed: &Followed,
) -> Result<Computed, BackendError> {
    config.check(weight.ncols())?;
    let mut computed = Computed::default();
    let read = backend.read_statistics(statistics)?;
    let scale = T::of(config.hessian_scale);
    computed.put("stats.hessian", CaseTensor::matrix((&read.hessian * scale).view()));
    if let Some(residual) = &read.residual {
        computed.put("stats.dxxt", CaseTensor::matrix((&residual.dxxt * scale).view()));
        computed.put("stats.dxdxt", CaseTensor::vector(&residual.square_norms * scale));
    }

    let order = followed.order.as_deref();
    if B::REFERENCE {
        let mut ordered = in_processing_order(&read, config, order)?;
        computed.put("trace.dead", CaseTensor::flag_vector(&ordered.dead));
        let damped = damp_as_configured(&mut ordered.hessian, config);
        computed.put("trace.damping", CaseTensor::vector([damped]));
    }
    let prepared = match backend.prepare(statistics, config, order) {
        Err(BackendError::Prune(PruneError::Factor(reason @ FactorError::NotPositiveDefinite { .. }))) => {
            computed.put("output.error", CaseTensor::flag_vector(&[true]));
            computed.stopped = Some(reason.to_string());
            return Ok(computed);
        }
        Err(reason @ BackendError::Unsupported { .. }) => {
            computed.stopped = Some(reason.to_string());
            return Ok(computed);
        }
        other => other?,
    };
    let trace = backend.trace(statistics, &prepared)?;
    computed.put("trace.perm", CaseTensor::positions(&trace.order));
    if order.is_some() {
        let found = in_processing_order(&read, config, None)?;
        computed.decided.insert("trace.perm".into(), CaseTensor::positions(&found.order));
    }
    let a = read.residual.as_ref().map(|r| r.square_norms.select(Axis(0), &trace.order) * scale);
    put_factor(&mut computed, &trace, a, config);

    let mask = followed.mask.as_ref().map(|mask| mask.view());
    let (pruned, quantised, loop_trace) = match grids {
        Some(_) if !B::REFERENCE => {
            let reason = BackendError::Unsupported { what: "round weights to grids" };
            computed.stopped = Some(reason.to_string());
            return Ok(computed);
        }
        None => {
            let (pruned, traced) = backend.prune_traced(&prepared, weight, mask)?;
            (pruned, None, traced)
        }
        Some(grids) => {
            let codes = followed.codes.as_ref().map(|codes| codes.view());
            let (quantised, traced) = backend.quantise_traced(&prepared, weight, grids, mask, codes)?;
            (quantised.pruned.clone(), Some(quantised), Some(traced))
        }
    };
    if let Some(quantised) = &quantised {
        put_grid(&mut computed, quantised, &trace.order);
    }
    put_loop(&mut computed, &pruned, loop_trace, &trace.order, config);
    Ok(computed)
}

/// The mask that these scores ask for, block by block (group by group for N:M); both in processing order.
fn decide<T: Scalar>(score: ArrayView2<T>, config: &PruneConfig) -> Array2<bool> {
    let mut mask = Array2::from_elem(score.dim(), false);
    for (score, mut mask) in (score.axis_chunks_iter(Axis(1), config.block_size))
        .zip(mask.axis_chunks_iter_mut(Axis(1), config.block_size))
    {
        mask.assign(&select(score, config.weight_sparsity, config.threshold));
    }
    mask
}

struct Computation<'a, B> {
    case: &'a Case,
    backend: &'a B,
    followed: &'a Followed,
}

impl<B> Computation<'_, B> {
    fn refused(&self, source: impl Into<BackendError>) -> VectorError {
        VectorError::Refused { case: self.case.name(), source: source.into() }
    }

    fn malformed(&self, detail: impl Into<String>) -> VectorError {
        let path = self.case.folder.join("case.json");
        CaseError::Malformed { path, detail: detail.into() }.into()
    }

    /// An input of the case in the arithmetic under test.
    fn input<T: Scalar>(&self, name: &str) -> Result<Array2<T>, VectorError> {
        Ok(self.case.tensor(name)?.values.mapv(T::of))
    }

    /// The rows of each sequence, in order.
    fn sequences(&self, rows: usize) -> Result<Vec<Range<usize>>, VectorError> {
        self.case.sequences(rows).map_err(|detail| self.malformed(detail))
    }

    fn expect_columns(&self, name: &str, columns: usize) -> Result<(), VectorError> {
        let k = self.case.document.shape.k;
        if columns == k {
            return Ok(());
        }
        Err(self.malformed(format!("`{name}` has {columns} columns, `shape` says k = {k}")))
    }

    fn run<T: Scalar>(&self) -> Result<Computed, VectorError>
    where
        B: Inspect<T>,
    {
        match self.case.document.algorithm {
            Kind::DuoGpt | Kind::SparseGpt | Kind::Gptq | Kind::Gptaq => self.layer::<T>(),
            Kind::Wanda => self.wanda::<T>(),
            Kind::Magnitude => self.magnitude::<T>(),
            Kind::Activation => self.activation::<T>(),
            Kind::Teal => self.teal::<T>(),
        }
    }

    /// SparseGPT, DuoGPT, GPTQ, GPTAQ.
    fn layer<T: Scalar>(&self) -> Result<Computed, VectorError>
    where
        B: Inspect<T>,
    {
        let kind = self.case.document.algorithm;
        let settings = &self.case.document.settings;
        let config = settings.prune_config(kind).map_err(|e| self.malformed(e))?;
        let grids = settings.grid_config().map_err(|e| self.malformed(e))?;
        if kind != Kind::DuoGpt && kind != Kind::SparseGpt && grids.is_none() {
            return Err(self.malformed("setting `bits` is missing"));
        }
        let weight: Array2<T> = self.input("input.weight")?;
        let k = weight.ncols();
        self.expect_columns("input.weight", k)?;
        let with_residual = matches!(kind, Kind::DuoGpt | Kind::Gptaq);
        let statistics = self.statistics::<T>(k, with_residual)?;
        layer_stages(self.backend, &statistics, weight.view(), &config, grids.as_ref(), self.followed)
            .map_err(|e| self.refused(e))
    }

    /// The running statistics, sequence by sequence.
    fn statistics<T: Scalar>(&self, k: usize, with_residual: bool) -> Result<B::Statistics, VectorError>
    where
        B: Inspect<T>,
    {
        let name = |which| if with_residual { which } else { "input.activations" };
        let (dense, sparse) = (name("input.dense_activations"), name("input.sparse_activations"));
        let (dense, sparse): (Array2<T>, Array2<T>) = (self.input(dense)?, self.input(sparse)?);
        self.expect_columns("the activations", sparse.ncols())?;
        if dense.dim() != sparse.dim() {
            return Err(self.malformed("dense and sparse activations differ in shape"));
        }
        let mut statistics = self.backend.statistics(k, with_residual);
        for rows in self.sequences(sparse.nrows())? {
            let tokens = s![rows, ..];
            self.backend.update(&mut statistics, dense.slice(tokens), sparse.slice(tokens));
        }
        Ok(statistics)
    }

    fn wanda<T: Scalar>(&self) -> Result<Computed, VectorError> {
        let settings = &self.case.document.settings;
        let weight: Array2<T> = self.input("input.weight")?;
        let x: Array2<T> = self.input("input.activations")?;
        self.expect_columns("input.weight", weight.ncols())?;
        self.expect_columns("input.activations", x.ncols())?;
        let mut norms = ChannelNorms::new(x.ncols());
        for rows in self.sequences(x.nrows())? {
            norms.update(x.slice(s![rows, ..]));
        }
        let sparsity = settings.sparsity().map_err(|e| self.malformed(e))?;
        let mut computed = Computed::default();
        let pruned = match (settings.variant, sparsity) {
            (Some(WandaVariant::Cumulative), Sparsity::Unstructured(p)) => {
                let (pruned, trials) =
                    wanda_by_share(weight.view(), &norms, p).map_err(|e| self.refused(e))?;
                computed.put("trace.alphas", CaseTensor::vector(trials.iter().map(|t| t.alpha)));
                computed.put("trace.sparsities", CaseTensor::vector(trials.iter().map(|t| t.sparsity)));
                pruned
            }
            _ => wanda(weight.view(), &norms, sparsity, settings.narrow_groups())
                .map_err(|e| self.refused(e))?,
        };
        computed.put("stats.scaler_row", CaseTensor::vector(norms.square_norms.iter().copied()));
        put_masked(&mut computed, &pruned);
        Ok(computed)
    }

    fn magnitude<T: Scalar>(&self) -> Result<Computed, VectorError> {
        let settings = &self.case.document.settings;
        let weight: Array2<T> = self.input("input.weight")?;
        let sparsity = settings.sparsity().map_err(|e| self.malformed(e))?;
        let pruned =
            magnitude(weight.view(), sparsity, settings.narrow_groups()).map_err(|e| self.refused(e))?;
        let mut computed = Computed::default();
        if let Sparsity::Unstructured(_) = sparsity {
            // The largest pruned magnitude.
            let largest = Zip::from(&pruned.score)
                .and(&pruned.mask)
                .fold(T::zero(), |most, &score, &mask| if mask { most.max(score) } else { most });
            computed.put("trace.threshold", CaseTensor::vector([largest]));
        }
        put_masked(&mut computed, &pruned);
        Ok(computed)
    }

    fn activation<T: Scalar>(&self) -> Result<Computed, VectorError>
    where
        B: Inspect<T>,
    {
        let p = match needed(&self.case.document.settings.activation_sparsity, "activation_sparsity") {
            Ok(ActivationSparsity::One(p)) if (0.0..1.0).contains(&p) => p,
            Ok(ActivationSparsity::One(value)) => {
                return Err(self.refused(ConfigError::Fraction { what: "activation sparsity", value }));
            }
            Ok(ActivationSparsity::Several(_)) => {
                return Err(self.malformed("setting `activation_sparsity` must be one number"));
            }
            Err(error) => return Err(self.malformed(error)),
        };
        let input = self.case.tensor("input.activations")?;
        let x: Array2<T> = input.values.mapv(T::of);
        let mut computed = Computed::default();
        if B::REFERENCE {
            let thresholds: Array1<T> =
                x.rows().into_iter().map(|token| token_threshold(token, p).unwrap_or(T::zero())).collect();
            let mut mask = Array2::from_elem(x.raw_dim(), false);
            for ((mut mask, token), &threshold) in mask.rows_mut().into_iter().zip(x.rows()).zip(&thresholds)
            {
                Zip::from(&mut mask).and(token).for_each(|pruned, x| *pruned = x.abs() < threshold);
            }
            computed.put("trace.threshold", CaseTensor::vector(thresholds));
            computed.put("trace.mask", CaseTensor::flags(mask.view()).reshaped(&input.shape));
        }
        let kept = self.backend.pruned_activations(x, p).map_err(|e| self.refused(e))?;
        computed.put("output.activations", CaseTensor::matrix(kept.view()).reshaped(&input.shape));
        Ok(computed)
    }

    fn teal<T: Scalar>(&self) -> Result<Computed, VectorError> {
        let settings = &self.case.document.settings;
        let needed_bins = needed(&settings.bins, "bins").map_err(|e| self.malformed(e))?;
        let outliers =
            needed(&settings.outlier_threshold, "outlier_threshold").map_err(|e| self.malformed(e))?;
        let prompts = needed(&settings.apply_prefill, "apply_prefill").map_err(|e| self.malformed(e))?;
        let sparsities = match needed(&settings.activation_sparsity, "activation_sparsity") {
            Ok(ActivationSparsity::One(p)) => vec![p],
            Ok(ActivationSparsity::Several(all)) => all,
            Err(error) => return Err(self.malformed(error)),
        };
        let x: Array2<T> = self.input("input.activations")?;
        let probe = self.case.tensor("input.probe")?;
        let [.., tokens, _] = probe.shape[..] else {
            return Err(self.malformed("`input.probe` needs tokens and channels"));
        };
        let histogram = LinearHistogram::new(x.view(), needed_bins, outliers).map_err(|e| self.refused(e))?;
        let (mut thresholds, mut outputs) = (Vec::new(), Vec::new());
        for &sparsity in &sparsities {
            let threshold = histogram.threshold(sparsity).map_err(|e| self.refused(e))?;
            let mut y: Array2<T> = probe.values.mapv(T::of);
            for prompt in y.axis_chunks_iter_mut(Axis(0), tokens.max(1)) {
                prune_below(prompt, threshold, dense_tokens(tokens, prompts));
            }
            thresholds.push(threshold);
            outputs.push(y);
        }
        let mut computed = Computed::default();
        computed.put("trace.centers", CaseTensor::vector(histogram.centers));
        computed.put("trace.counts", CaseTensor::vector(histogram.counts));
        computed.put("trace.thresholds", CaseTensor::vector(thresholds));
        let views: Vec<_> = outputs.iter().map(|y| y.view()).collect();
        if let Ok(all) = concatenate(Axis(0), &views) {
            let shape = [&[sparsities.len()], &probe.shape[..]].concat();
            computed.put("output.activations", CaseTensor::matrix(all.view()).reshaped(&shape));
        }
        Ok(computed)
    }
}

/// L^T, and Q, alpha D, a, b, 2c where dX was gathered.
fn put_factor<T: Scalar>(
    computed: &mut Computed,
    trace: &Trace<T>,
    a: Option<Array1<T>>,
    config: &PruneConfig,
) {
    computed.put("trace.hinv_chol", CaseTensor::matrix(trace.lt.view()));
    if let (Some(q), Some(d), Some(a)) = (&trace.q, &trace.d, a) {
        let found = coefficients(a.view(), q.view(), trace.lt.t());
        computed.put("trace.q_matrix", CaseTensor::matrix(q.view()));
        computed.put("trace.p_matrix", CaseTensor::matrix((d * T::of(config.alpha.update)).view()));
        computed.put("trace.coef_a", CaseTensor::vector(found.a));
        computed.put("trace.coef_b", CaseTensor::vector(found.b));
        computed.put("trace.coef_2c", CaseTensor::vector(found.c * T::of(2.0)));
    }
}

/// The grid and the code of every weight, in processing order.
fn put_grid<T: Scalar>(computed: &mut Computed, quantised: &Quantised<T>, order: &[usize]) {
    let shape = quantised.codes.raw_dim();
    let of_grid =
        |grids: &Array2<T>| Array2::from_shape_fn(shape, |(row, at)| grids[(row, quantised.grid[order[at]])]);
    computed.put("trace.scale", CaseTensor::matrix(of_grid(&quantised.scale).view()));
    computed.put("trace.zero", CaseTensor::matrix(of_grid(&quantised.zero).view()));
    let codes = quantised.codes.select(Axis(1), order);
    computed.put("trace.codes", CaseTensor::codes(codes.view()));
    computed.target = Some(quantised.target.select(Axis(1), order).mapv(T::widen));
}

/// Score, mask, E, the weights after each block, and the result.
fn put_loop<T: Scalar>(
    computed: &mut Computed,
    pruned: &Pruned<T>,
    loop_trace: Option<LoopTrace<T>>,
    order: &[usize],
    config: &PruneConfig,
) {
    let mask = pruned.mask.select(Axis(1), order);
    computed.put("trace.score", CaseTensor::matrix(pruned.score.view()));
    computed.put("trace.mask", CaseTensor::flags(mask.view()));
    let decided = match loop_trace {
        Some(trace) => {
            computed.put("trace.err", CaseTensor::matrix(trace.errors.view()));
            let views: Vec<_> = trace.block_weights.iter().map(|w| w.view()).collect();
            if let Ok(all) = concatenate(Axis(0), &views) {
                let shape = [views.len(), mask.nrows(), mask.ncols()];
                computed.put("trace.block_weight", CaseTensor::matrix(all.view()).reshaped(&shape));
            }
            trace.decided
        }
        None => decide(pruned.score.view(), config),
    };
    computed.decided.insert("trace.mask".into(), CaseTensor::flags(decided.view()));
    computed.put("output.weight", CaseTensor::matrix(pruned.weight.view()));
}

/// Score, mask and result of a method without a loop.
fn put_masked<T: Scalar>(computed: &mut Computed, pruned: &Pruned<T>) {
    computed.put("trace.metric", CaseTensor::matrix(pruned.score.view()));
    computed.put("trace.mask", CaseTensor::flags(pruned.mask.view()));
    computed.put("output.weight", CaseTensor::matrix(pruned.weight.view()));
}
