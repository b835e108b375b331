//! What the CPU and the GPU both can do, so that one driver, and one test body, runs on either.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::linalg::Scalar;
use crate::reference::baseline::gptaq::{self, GridConfig, Quantised};
use crate::reference::baseline::{magnitude::magnitude, wanda::wanda};
use crate::reference::{
    ChannelNorms, FactorError, Method, Prepared, PruneConfig, PruneError, Pruned, Replay, Sparsity,
    Statistics, activation, prune,
};

/// The steps of calibration and pruning that are worth a device. Each has the meaning of the function of the same
/// name in [`reference`](mod@crate::reference).
pub trait Backend<T: Scalar>: Sync {
    /// Running H and drift statistics, wherever they live.
    type Statistics: Send;
    /// What the linears of one group share.
    type Prepared;

    /// For reports: the device and what computes on it.
    fn describe(&self) -> String;

    /// Prunes every token (row) of `x` (tokens x k).
    fn prune_activations(&self, x: ArrayViewMut2<T>, sparsity: f64);

    /// Empty statistics for k input channels.
    fn statistics(&self, k: usize, with_drift: bool) -> Self::Statistics;

    /// Takes in one sequence, dense and sparse input (tokens x k).
    fn update(&self, statistics: &mut Self::Statistics, dense: ArrayView2<T>, sparse: ArrayView2<T>);

    /// What of Algorithm 1 does not depend on W.
    ///
    /// # Errors
    /// As [`prune::prepare`].
    fn prepare(
        &self,
        statistics: &Self::Statistics,
        config: &PruneConfig,
        replay: Replay,
    ) -> Result<Self::Prepared, PruneError>;

    /// Algorithm 1 on one linear (n x k).
    ///
    /// # Errors
    /// As [`prune::prune`].
    fn prune(
        &self,
        prepared: &Self::Prepared,
        weight: ArrayView2<T>,
        config: &PruneConfig,
        replay: Replay,
    ) -> Result<Pruned<T>, PruneError>;

    /// The same, the kept weights rounded to `grids` in the loop.
    ///
    /// # Errors
    /// As [`gptaq::quantise`]; by default, that the backend cannot.
    fn quantise(
        &self,
        _prepared: &Self::Prepared,
        _weight: ArrayView2<T>,
        _config: &PruneConfig,
        _grids: &GridConfig,
    ) -> Result<Quantised<T>, PruneError> {
        Err(PruneError::Unsupported { what: "quantise" })
    }
}

/// The reference itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

impl<T: Scalar> Backend<T> for Cpu {
    type Statistics = Statistics<T>;
    type Prepared = Prepared<T>;

    fn describe(&self) -> String {
        format!("CPU reference, {} threads", rayon::current_num_threads())
    }

    fn prune_activations(&self, x: ArrayViewMut2<T>, sparsity: f64) {
        activation::prune_activations(x, sparsity);
    }

    fn statistics(&self, k: usize, with_drift: bool) -> Statistics<T> {
        Statistics::new(k, with_drift)
    }

    fn update(&self, statistics: &mut Statistics<T>, dense: ArrayView2<T>, sparse: ArrayView2<T>) {
        statistics.update(dense, sparse);
    }

    fn prepare(
        &self,
        statistics: &Statistics<T>,
        config: &PruneConfig,
        replay: Replay,
    ) -> Result<Prepared<T>, PruneError> {
        prune::prepare(statistics, config, replay)
    }

    fn prune(
        &self,
        prepared: &Prepared<T>,
        weight: ArrayView2<T>,
        config: &PruneConfig,
        replay: Replay,
    ) -> Result<Pruned<T>, PruneError> {
        prepared.prune(weight, config, replay)
    }

    fn quantise(
        &self,
        prepared: &Prepared<T>,
        weight: ArrayView2<T>,
        config: &PruneConfig,
        grids: &GridConfig,
    ) -> Result<Quantised<T>, PruneError> {
        gptaq::quantise(prepared, weight, config, grids, Replay::default(), None)
    }
}

/// What a [`Method`] gathers about the input of a group of linears.
pub enum Gathered<T: Scalar, B: Backend<T>> {
    /// Magnitude: nothing.
    Nothing(Sparsity),
    /// Wanda: channel norms.
    Norms(Sparsity, ChannelNorms<T>),
    /// SparseGPT: H. DuoGPT and GPTAQ: H and the drift.
    Hessian(PruneConfig, B::Statistics),
}

/// A [`Method`] ready to prune the linears of one group.
pub enum Ready<T: Scalar, B: Backend<T>> {
    /// Magnitude.
    Magnitude(Sparsity),
    /// Wanda.
    Wanda(Sparsity, ChannelNorms<T>),
    /// SparseGPT, DuoGPT and GPTAQ.
    SecondOrder(PruneConfig, B::Prepared),
}

impl<T: Scalar, B: Backend<T>> Gathered<T, B> {
    /// Nothing seen yet, for k input channels.
    pub fn new(backend: &B, method: &Method, k: usize) -> Self {
        match *method {
            Method::Magnitude(sparsity) => Gathered::Nothing(sparsity),
            Method::Wanda(sparsity) => Gathered::Norms(sparsity, ChannelNorms::new(k)),
            Method::SparseGpt(config) => Gathered::Hessian(config, backend.statistics(k, false)),
            Method::DuoGpt(config) | Method::Gptaq(config) => {
                Gathered::Hessian(config, backend.statistics(k, true))
            }
        }
    }

    /// Takes in one sequence, dense and sparse input (tokens x k).
    pub fn update(&mut self, backend: &B, dense: ArrayView2<T>, sparse: ArrayView2<T>) {
        match self {
            Gathered::Nothing(_) => {}
            Gathered::Norms(_, norms) => norms.update(sparse),
            Gathered::Hessian(_, statistics) => backend.update(statistics, dense, sparse),
        }
    }

    /// Does what does not depend on the weights. With `retry`, a Hessian that is not positive definite is damped ten
    /// times as much, up to 1, until it is; the second result says so.
    ///
    /// # Errors
    /// As [`prune::prepare`].
    pub fn prepare(
        self,
        backend: &B,
        retry: bool,
    ) -> Result<(Ready<T, B>, Option<DampingRetry>), PruneError> {
        let (mut config, statistics) = match self {
            Gathered::Nothing(sparsity) => return Ok((Ready::Magnitude(sparsity), None)),
            Gathered::Norms(sparsity, norms) => return Ok((Ready::Wanda(sparsity, norms), None)),
            Gathered::Hessian(config, statistics) => (config, statistics),
        };
        let mut retried = None;
        loop {
            match backend.prepare(&statistics, &config, Replay::default()) {
                Ok(prepared) => return Ok((Ready::SecondOrder(config, prepared), retried)),
                Err(PruneError::Factor(FactorError::NotPositiveDefinite { column, .. }))
                    if retry && config.damping < 1.0 =>
                {
                    config.damping = (10.0 * config.damping).clamp(1e-3, 1.0);
                    retried = Some(DampingRetry { column, damping: config.damping });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A Hessian that needed more damping than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DampingRetry {
    /// The column whose pivot failed last.
    pub column: usize,
    /// The damping that did.
    pub damping: f64,
}

impl<T: Scalar, B: Backend<T>> Ready<T, B> {
    /// Prunes one linear (n x k) of the group and, by a method with a column loop, rounds what is kept to `grids`; then
    /// the second result holds the distance of neighbouring points at each weight (n x k).
    ///
    /// # Errors
    /// As [`prune::prune`] and [`gptaq::quantise`].
    pub fn prune(
        &self,
        backend: &B,
        weight: ArrayView2<T>,
        grids: Option<&GridConfig>,
    ) -> Result<(Pruned<T>, Option<Array2<T>>), PruneError> {
        let plain = match (self, grids) {
            (Ready::SecondOrder(config, prepared), Some(grids)) => {
                let quantised = backend.quantise(prepared, weight, config, grids)?;
                let steps = quantised.steps();
                return Ok((quantised.pruned, Some(steps)));
            }
            (Ready::Magnitude(sparsity), _) => magnitude(weight, *sparsity),
            (Ready::Wanda(sparsity, norms), _) => wanda(weight, norms, *sparsity),
            (Ready::SecondOrder(config, prepared), None) => {
                backend.prune(prepared, weight, config, Replay::default())
            }
        };
        Ok((plain?, None))
    }

    /// The damping of Algorithm 1 that was used in the end; the default one for the methods without it.
    pub fn damping(&self) -> f64 {
        match self {
            Ready::SecondOrder(config, _) => config.damping,
            Ready::Magnitude(_) | Ready::Wanda(..) => PruneConfig::default().damping,
        }
    }
}
