//! Backends whose intermediate results can be read, so that they can be held against expected ones.

use ndarray::{Array1, Array2, ArrayView2};

use super::kind::Kind;
use crate::backend::{Backend, BackendError, Cpu};
use crate::cuda::activation::activation;
use crate::cuda::device::Buffer;
use crate::cuda::factor::projection;
use crate::cuda::prune::{row_major, to_matrix};
use crate::cuda::{Cuda, Device};
use crate::linalg::Scalar;
use crate::reference::activation::prune_activations;
use crate::reference::baseline::gptaq::{GridConfig, Quantised, quantise_traced};
use crate::reference::prune::in_processing_order;
use crate::reference::score::residual_projection;
use crate::reference::{LoopTrace, Prepared, Pruned, Statistics};

/// What [`Backend::prepare`] made, on the host, in processing order.
#[derive(Clone, Debug)]
pub struct Trace<T> {
    /// Position to original column (k).
    pub order: Vec<usize>,
    /// L^T (k x k).
    pub lt: Array2<T>,
    /// Q = dX X^T L (k x k), where dX was gathered.
    pub q: Option<Array2<T>>,
    /// D (k x k), where dX was gathered.
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
    /// [`BackendError::Device`].
    fn pruned_activations(&self, x: Array2<T>, sparsity: f64) -> Result<Array2<T>, BackendError>;

    /// A copy of the statistics.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn read_statistics(&self, statistics: &Self::Statistics) -> Result<Statistics<T>, BackendError>;

    /// [`Backend::prune`], and what the loop leaves behind besides its result, where the backend can say so.
    ///
    /// # Errors
    /// As [`Backend::prune`].
    fn prune_traced(
        &self,
        prepared: &Self::Prepared,
        weight: ArrayView2<T>,
        mask: Option<ArrayView2<bool>>,
    ) -> Result<(Pruned<T>, Option<LoopTrace<T>>), BackendError> {
        Ok((self.prune(prepared, weight, mask)?, None))
    }

    /// [`Backend::quantise`] under the decisions of another run, and what the loop leaves behind.
    ///
    /// # Errors
    /// As [`Backend::quantise`].
    fn quantise_traced(
        &self,
        _prepared: &Self::Prepared,
        _weight: ArrayView2<T>,
        _grids: &GridConfig,
        _mask: Option<ArrayView2<bool>>,
        _codes: Option<ArrayView2<i32>>,
    ) -> Result<(Quantised<T>, LoopTrace<T>), BackendError> {
        Err(BackendError::Unsupported { what: "quantise" })
    }

    /// A copy of what was prepared from these statistics; Q is formed anew, as `prepare` forms it.
    ///
    /// # Errors
    /// [`BackendError::Device`].
    fn trace(
        &self,
        statistics: &Self::Statistics,
        prepared: &Self::Prepared,
    ) -> Result<Trace<T>, BackendError>;
}

impl<T: Scalar> Inspect<T> for Cpu {
    const REFERENCE: bool = true;

    fn unsupported(_: Kind) -> Option<&'static str> {
        None
    }

    fn pruned_activations(&self, mut x: Array2<T>, sparsity: f64) -> Result<Array2<T>, BackendError> {
        prune_activations(x.view_mut(), sparsity);
        Ok(x)
    }

    fn read_statistics(&self, statistics: &Statistics<T>) -> Result<Statistics<T>, BackendError> {
        Ok(statistics.clone())
    }

    fn prune_traced(
        &self,
        prepared: &Prepared<T>,
        weight: ArrayView2<T>,
        mask: Option<ArrayView2<bool>>,
    ) -> Result<(Pruned<T>, Option<LoopTrace<T>>), BackendError> {
        let (pruned, trace) = prepared.prune_traced(weight, mask)?;
        Ok((pruned, Some(trace)))
    }

    fn quantise_traced(
        &self,
        prepared: &Prepared<T>,
        weight: ArrayView2<T>,
        grids: &GridConfig,
        mask: Option<ArrayView2<bool>>,
        codes: Option<ArrayView2<i32>>,
    ) -> Result<(Quantised<T>, LoopTrace<T>), BackendError> {
        Ok(quantise_traced(prepared, weight, grids, mask, codes)?)
    }

    fn trace(&self, statistics: &Statistics<T>, prepared: &Self::Prepared) -> Result<Trace<T>, BackendError> {
        let order = prepared.order.clone();
        let residual = in_processing_order(statistics, &prepared.config, Some(&order))?.residual;
        Ok(Trace {
            order,
            lt: prepared.lt.clone(),
            q: residual.map(|residual| residual_projection(residual.dxxt.view(), prepared.lt.t())),
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
            Kind::Gptq => Some("CUDA does not round weights to grids"),
            Kind::Magnitude => Some("magnitude needs no product, and the CPU prunes with any backend"),
            Kind::Teal => Some("the CPU counts TEAL's histogram with any backend"),
            Kind::DuoGpt | Kind::SparseGpt | Kind::Activation => None,
        }
    }

    fn pruned_activations(&self, x: Array2<f32>, sparsity: f64) -> Result<Array2<f32>, BackendError> {
        let on_device = Buffer::from_host(&self.device, &row_major(x.view()))?;
        let kept = activation(&self.device, &on_device, x.dim(), sparsity)?;
        Ok(to_matrix(kept.x.to_host(&self.device)?, x.dim()))
    }

    fn read_statistics(&self, statistics: &Self::Statistics) -> Result<Statistics<f32>, BackendError> {
        Ok(statistics.get()?.to_host(&self.device)?)
    }

    fn trace(
        &self,
        statistics: &Self::Statistics,
        prepared: &Self::Prepared,
    ) -> Result<Trace<f32>, BackendError> {
        let k = prepared.order.len();
        let square = |a: &Buffer<f32, D>| a.to_host(&self.device).map(|a| to_matrix(a, (k, k)));
        let scale = prepared.config.hessian_scale as f32;
        let q = match statistics.get()?.residual(&self.device)? {
            Some(residual) => {
                Some(square(&projection(&self.device, &residual, &prepared.order, scale, &prepared.lt)?.q)?)
            }
            None => None,
        };
        Ok(Trace {
            order: prepared.order.clone(),
            lt: square(&prepared.lt)?,
            q,
            d: prepared.d.as_ref().map(square).transpose()?,
            scale: prepared.scale.to_host(&self.device)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Gpu;

    #[test]
    fn what_cuda_leaves_to_the_cpu_is_said_with_the_reason() {
        let reason = |kind| <Cuda<Gpu> as Inspect<f32>>::unsupported(kind);
        assert!(reason(Kind::Wanda).is_some_and(|reason| reason.starts_with("Wanda")));
        assert!(reason(Kind::Gptaq).is_some_and(|reason| reason.contains("grids")));
        for kind in [Kind::DuoGpt, Kind::SparseGpt, Kind::Activation] {
            assert_eq!(reason(kind), None);
        }
        assert_eq!(<Cpu as Inspect<f32>>::unsupported(Kind::Wanda), None);
    }
}
