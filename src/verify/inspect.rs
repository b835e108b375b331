//! Backends whose intermediate results can be read, so that they can be held against golden ones.

use ndarray::{Array1, Array2};

use super::golden::Kind;
use crate::backend::{Backend, Cpu};
use crate::cuda::activation::activation;
use crate::cuda::device::Buffer;
use crate::cuda::factor::projection;
use crate::cuda::prune::{row_major, to_matrix};
use crate::cuda::{Cuda, Device};
use crate::linalg::Scalar;
use crate::reference::activation::prune_activations;
use crate::reference::prune::in_processing_order;
use crate::reference::score::residual_projection;
use crate::reference::{PruneConfig, PruneError, Statistics};

/// What [`Backend::prepare`] made, on the host, in processing order.
#[derive(Clone, Debug)]
pub struct Prepared<T> {
    /// Position to original column (k).
    pub order: Vec<usize>,
    /// L^T (k x k).
    pub lt: Array2<T>,
    /// Q = dX X^T L (k x k), where there is a drift.
    pub q: Option<Array2<T>>,
    /// D (k x k), where there is a drift.
    pub d: Option<Array2<T>>,
    /// The factor of W^2 in the score (k).
    pub scale: Array1<T>,
}

/// A backend that lets its intermediate results be read.
pub trait Inspect<T: Scalar>: Backend<T> {
    /// The reference itself. It is held to a-priori bounds of rounding, and any other backend to what the reference
    /// measurably errs.
    const REFERENCE: bool;

    /// Why the runs of such files cannot be repeated, if so.
    fn unsupported(kind: Kind) -> Option<&'static str>;

    /// Every token (row) of `x` (tokens x k) pruned by this backend itself. (In the model's forward pass,
    /// [`Backend::prune_activations`] prunes where the activations are.)
    ///
    /// # Errors
    /// [`PruneError::Device`].
    fn pruned_activations(&self, x: Array2<T>, sparsity: f64) -> Result<Array2<T>, PruneError>;

    /// A copy of the statistics.
    ///
    /// # Errors
    /// [`PruneError::Device`].
    fn read_statistics(&self, statistics: &Self::Statistics) -> Result<Statistics<T>, PruneError>;

    /// A copy of what was prepared from these statistics; Q is formed anew, as `prepare` forms it.
    ///
    /// # Errors
    /// [`PruneError::Device`].
    fn read_prepared(
        &self,
        statistics: &Self::Statistics,
        prepared: &Self::Prepared,
        config: &PruneConfig,
    ) -> Result<Prepared<T>, PruneError>;
}

impl<T: Scalar> Inspect<T> for Cpu {
    const REFERENCE: bool = true;

    fn unsupported(_: Kind) -> Option<&'static str> {
        None
    }

    fn pruned_activations(&self, mut x: Array2<T>, sparsity: f64) -> Result<Array2<T>, PruneError> {
        prune_activations(x.view_mut(), sparsity);
        Ok(x)
    }

    fn read_statistics(&self, statistics: &Statistics<T>) -> Result<Statistics<T>, PruneError> {
        Ok(statistics.clone())
    }

    fn read_prepared(
        &self,
        statistics: &Statistics<T>,
        prepared: &Self::Prepared,
        config: &PruneConfig,
    ) -> Result<Prepared<T>, PruneError> {
        let order = prepared.order.clone();
        let drift = in_processing_order(statistics, &prepared.dead, config, Some(&order))?.drift;
        Ok(Prepared {
            order,
            lt: prepared.lt.clone(),
            q: drift.map(|drift| residual_projection(drift.dxxt.view(), prepared.lt.t())),
            d: prepared.correction.as_ref().map(|correction| correction.d.clone()),
            scale: prepared.score_scale.clone(),
        })
    }
}

impl<D: Device> Inspect<f32> for Cuda<D> {
    const REFERENCE: bool = false;

    fn unsupported(kind: Kind) -> Option<&'static str> {
        match kind {
            Kind::Wanda => {
                Some("Wanda needs no more than sums of squares, which the CPU forms with any backend")
            }
            Kind::Gptaq => Some("CUDA does not round weights to grids"),
            Kind::DuoGpt | Kind::SparseGpt | Kind::ActivationPruning => None,
        }
    }

    fn pruned_activations(&self, x: Array2<f32>, sparsity: f64) -> Result<Array2<f32>, PruneError> {
        let on_device = Buffer::from_host(&self.device, &row_major(x.view()))?;
        let kept = activation(&self.device, &on_device, x.dim(), sparsity)?;
        Ok(to_matrix(kept.x.to_host(&self.device)?, x.dim()))
    }

    fn read_statistics(&self, statistics: &Self::Statistics) -> Result<Statistics<f32>, PruneError> {
        Ok(statistics.get()?.to_host(&self.device)?)
    }

    fn read_prepared(
        &self,
        statistics: &Self::Statistics,
        prepared: &Self::Prepared,
        config: &PruneConfig,
    ) -> Result<Prepared<f32>, PruneError> {
        let k = prepared.order.len();
        let square = |a: &Buffer<f32, D>| a.to_host(&self.device).map(|a| to_matrix(a, (k, k)));
        let scale = config.hessian_scale as f32;
        let q = match statistics.get()?.drift(&self.device)? {
            Some(drift) => {
                Some(square(&projection(&self.device, &drift, &prepared.order, scale, &prepared.lt)?.q)?)
            }
            None => None,
        };
        Ok(Prepared {
            order: prepared.order.clone(),
            lt: square(&prepared.lt)?,
            q,
            d: prepared.d.as_ref().map(square).transpose()?,
            scale: prepared.scale.to_host(&self.device)?.into(),
        })
    }
}
