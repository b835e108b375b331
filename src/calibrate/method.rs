//! The statistics that each [`Method`] gathers from calibration data, and how it then prunes the linears of a group.

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::backend::{Backend, BackendError};
use crate::linalg::Scalar;
use crate::reference::baseline::gptaq::GridConfig;
use crate::reference::baseline::{magnitude::magnitude, wanda::wanda};
use crate::reference::{
    ChannelNorms, FactorError, Method, NarrowGroups, PruneConfig, PruneError, Pruned, Sparsity,
};

/// The statistics that a [`Method`] gathers from the input of a group of linears.
pub enum MethodStatistics<T: Scalar, B: Backend<T>> {
    /// Magnitude: none.
    Magnitude(Sparsity),
    /// Wanda: channel norms.
    Wanda(Sparsity, ChannelNorms<T>),
    /// SparseGPT: H. DuoGPT and GPTAQ: H and the statistics of dX.
    SecondOrder(PruneConfig, B::Statistics),
}

/// A [`Method`] that has seen all calibration data and prunes the linears of one group.
pub enum MethodPruner<T: Scalar, B: Backend<T>> {
    /// Magnitude.
    Magnitude(Sparsity),
    /// Wanda.
    Wanda(Sparsity, ChannelNorms<T>),
    /// SparseGPT, DuoGPT and GPTAQ, with the damping that was used in the end.
    SecondOrder {
        /// lambda / mean(diag H).
        damping: f64,
        /// The part of Algorithm 1 that the linears share.
        prepared: B::Prepared,
    },
}

/// A Hessian that needed more damping than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DampingRetry {
    /// The column whose pivot failed last.
    pub column: usize,
    /// The damping with which the factorisation succeeded.
    pub damping: f64,
}

impl<T: Scalar, B: Backend<T>> MethodStatistics<T, B> {
    /// Statistics of no sequences yet, for k input channels.
    pub fn new(backend: &B, method: &Method, k: usize) -> Self {
        match *method {
            Method::Magnitude(sparsity) => MethodStatistics::Magnitude(sparsity),
            Method::Wanda(sparsity) => MethodStatistics::Wanda(sparsity, ChannelNorms::new(k)),
            Method::SparseGpt(config) => MethodStatistics::SecondOrder(config, backend.statistics(k, false)),
            Method::DuoGpt(config) | Method::Gptaq(config) => {
                MethodStatistics::SecondOrder(config, backend.statistics(k, true))
            }
        }
    }

    /// Adds one sequence: its dense and sparse input (tokens x k).
    pub fn update(&mut self, backend: &B, dense: ArrayView2<T>, sparse: ArrayView2<T>) {
        match self {
            MethodStatistics::Magnitude(_) => {}
            MethodStatistics::Wanda(_, norms) => norms.update(sparse),
            MethodStatistics::SecondOrder(_, statistics) => backend.update(statistics, dense, sparse),
        }
    }

    /// Computes what does not depend on the weights. With `retry`, a Hessian that is not positive definite is damped
    /// ten times as much, up to 1, until it is; the second result then holds the damping.
    ///
    /// # Errors
    /// As [`Backend::prepare`].
    pub fn prepare(
        self,
        backend: &B,
        retry: bool,
    ) -> Result<(MethodPruner<T, B>, Option<DampingRetry>), BackendError> {
        let (mut config, statistics) = match self {
            MethodStatistics::Magnitude(sparsity) => return Ok((MethodPruner::Magnitude(sparsity), None)),
            MethodStatistics::Wanda(sparsity, norms) => {
                return Ok((MethodPruner::Wanda(sparsity, norms), None));
            }
            MethodStatistics::SecondOrder(config, statistics) => (config, statistics),
        };
        let mut retried = None;
        loop {
            match backend.prepare(&statistics, &config, None) {
                Ok(prepared) => {
                    return Ok((MethodPruner::SecondOrder { damping: config.damping, prepared }, retried));
                }
                Err(BackendError::Prune(PruneError::Factor(FactorError::NotPositiveDefinite {
                    column,
                    ..
                }))) if retry && config.damping < 1.0 => {
                    config.damping = (10.0 * config.damping).clamp(1e-3, 1.0);
                    retried = Some(DampingRetry { column, damping: config.damping });
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl<T: Scalar, B: Backend<T>> MethodPruner<T, B> {
    /// Prunes one linear (n x k) of the group. With `grids`, a method with a column loop also rounds the kept weights
    /// to them; the second result then holds the distance of neighbouring grid points at each weight (n x k).
    ///
    /// # Errors
    /// As [`Backend::prune`] and [`Backend::quantise`].
    pub fn prune(
        &self,
        backend: &B,
        weight: ArrayView2<T>,
        grids: Option<&GridConfig>,
    ) -> Result<(Pruned<T>, Option<Array2<T>>), BackendError> {
        let pruned = match (self, grids) {
            (MethodPruner::SecondOrder { prepared, .. }, Some(grids)) => {
                let quantised = backend.quantise(prepared, weight, grids)?;
                let steps = quantised.steps();
                return Ok((quantised.pruned, Some(steps)));
            }
            (MethodPruner::SecondOrder { prepared, .. }, None) => backend.prune(prepared, weight, None)?,
            (MethodPruner::Magnitude(sparsity), _) => magnitude(weight, *sparsity, NarrowGroups::Refuse)?,
            (MethodPruner::Wanda(sparsity, norms), _) => {
                wanda(weight, norms, *sparsity, NarrowGroups::Refuse)?
            }
        };
        Ok((pruned, None))
    }

    /// The damping of Algorithm 1; `None` of a method without a Hessian.
    pub fn damping(&self) -> Option<f64> {
        match self {
            MethodPruner::SecondOrder { damping, .. } => Some(*damping),
            MethodPruner::Magnitude(_) | MethodPruner::Wanda(..) => None,
        }
    }
}
