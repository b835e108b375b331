//! What calibration asks of a device: one driver, and one test body, runs on the CPU and on CUDA.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::device_error::DeviceError;
use crate::linalg::Scalar;
use crate::reference::baseline::gptaq::{self, GridConfig, Quantised};
use crate::reference::{
    ConfigError, FactorError, Prepared, PruneConfig, PruneError, Pruned, Statistics, activation, prune,
};

/// Why a backend did not prune.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BackendError {
    /// The algorithm refuses its settings or inputs.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The backend lacks a step of the algorithm.
    #[error("this backend cannot {what}; use the CPU's")]
    Unsupported {
        /// What was asked of it.
        what: &'static str,
    },
}

impl From<ConfigError> for BackendError {
    fn from(error: ConfigError) -> Self {
        PruneError::from(error).into()
    }
}

impl From<FactorError> for BackendError {
    fn from(error: FactorError) -> Self {
        PruneError::from(error).into()
    }
}

/// The steps of calibration and pruning that run on a device. Each computes what the function of the same name in
/// [`reference`](mod@crate::reference) computes.
pub trait Backend<T: Scalar>: Sync {
    /// Running statistics of one input, in the memory of the device.
    type Statistics: Send;
    /// What the linears with one input share, with its configuration.
    type Prepared;

    /// For reports: the device and what computes on it.
    fn describe(&self) -> String;

    /// Prunes every token (row) of `x` (tokens x k).
    fn prune_activations(&self, x: ArrayViewMut2<T>, sparsity: f64);

    /// Empty statistics for k input channels; `with_residual` asks for dX X^T and diag(dX dX^T) besides H.
    fn statistics(&self, k: usize, with_residual: bool) -> Self::Statistics;

    /// Takes in one sequence, dense and sparse input (tokens x k).
    fn update(&self, statistics: &mut Self::Statistics, dense: ArrayView2<T>, sparse: ArrayView2<T>);

    /// The part of Algorithm 1 that does not depend on W; `order` replays a processing order.
    ///
    /// # Errors
    /// As [`prune::prepare`], or the device's.
    fn prepare(
        &self,
        statistics: &Self::Statistics,
        config: &PruneConfig,
        order: Option<&[usize]>,
    ) -> Result<Self::Prepared, BackendError>;

    /// Algorithm 1 on one linear (n x k); `mask` replays decisions.
    ///
    /// # Errors
    /// As [`Prepared::prune`], or the device's.
    fn prune(
        &self,
        prepared: &Self::Prepared,
        weight: ArrayView2<T>,
        mask: Option<ArrayView2<bool>>,
    ) -> Result<Pruned<T>, BackendError>;

    /// The same, with the kept weights rounded to `grids` in the loop.
    ///
    /// # Errors
    /// As [`gptaq::quantise`]; [`BackendError::Unsupported`] unless a backend implements it.
    fn quantise(
        &self,
        _prepared: &Self::Prepared,
        _weight: ArrayView2<T>,
        _grids: &GridConfig,
    ) -> Result<Quantised<T>, BackendError> {
        Err(BackendError::Unsupported { what: "quantise" })
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

    fn statistics(&self, k: usize, with_residual: bool) -> Statistics<T> {
        if with_residual { Statistics::with_residual(k) } else { Statistics::hessian_only(k) }
    }

    fn update(&self, statistics: &mut Statistics<T>, dense: ArrayView2<T>, sparse: ArrayView2<T>) {
        statistics.update(dense, sparse);
    }

    fn prepare(
        &self,
        statistics: &Statistics<T>,
        config: &PruneConfig,
        order: Option<&[usize]>,
    ) -> Result<Prepared<T>, BackendError> {
        Ok(prune::prepare(statistics, config, order)?)
    }

    fn prune(
        &self,
        prepared: &Prepared<T>,
        weight: ArrayView2<T>,
        mask: Option<ArrayView2<bool>>,
    ) -> Result<Pruned<T>, BackendError> {
        Ok(prepared.prune(weight, mask)?)
    }

    fn quantise(
        &self,
        prepared: &Prepared<T>,
        weight: ArrayView2<T>,
        grids: &GridConfig,
    ) -> Result<Quantised<T>, BackendError> {
        Ok(gptaq::quantise(prepared, weight, grids, None, None)?)
    }
}
