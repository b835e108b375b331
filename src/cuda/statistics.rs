//! Statistics of the calibration data on the device; see [`reference::statistics`](crate::reference::statistics).

use ndarray::ArrayView2;

use super::blas::{Rows, gemm};
use super::device::{Buffer, Device, DeviceError};
use super::{STATISTICS, launch, number};
use crate::reference::statistics::running_mean;

/// Running means over the calibration sequences, in the original column order.
pub struct Statistics<D: Device> {
    /// Input channels.
    pub k: usize,
    /// Sequences seen.
    pub sequences: usize,
    /// H = X^ X^T (k x k).
    pub hessian: Buffer<f32, D>,
    /// What dX = X~ - X^ leaves, where it is asked for.
    pub drift: Option<Drift<D>>,
}

/// The statistics of dX.
pub struct Drift<D: Device> {
    /// dX X^T (k x k).
    pub dxxt: Buffer<f32, D>,
    /// diag(dX dX^T) (k).
    pub dxdxt: Buffer<f32, D>,
}

impl<D: Device> Statistics<D> {
    /// No sequences yet, for k input channels.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &D, k: usize, with_drift: bool) -> Result<Self, DeviceError> {
        let drift = match with_drift {
            true => Some(Drift { dxxt: Buffer::zeros(device, k * k)?, dxdxt: Buffer::zeros(device, k)? }),
            false => None,
        };
        Ok(Statistics { k, sequences: 0, hessian: Buffer::zeros(device, k * k)?, drift })
    }

    /// Takes one sequence in, dense and sparse input (tokens x k).
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// When the shapes differ from each other or from k.
    pub fn update(
        &mut self,
        device: &D,
        dense: ArrayView2<f32>,
        sparse: ArrayView2<f32>,
    ) -> Result<(), DeviceError> {
        let (tokens, k) = sparse.dim();
        assert_eq!((dense.dim(), k), (sparse.dim(), self.k), "inputs of another shape");
        let (keep, add) = running_mean(self.sequences);
        let (keep, add) = (keep as f32, add as f32);
        let upload = |x: ArrayView2<f32>| match x.as_slice() {
            Some(x) => Buffer::from_host(device, x),
            None => Buffer::from_host(device, &x.iter().copied().collect::<Vec<_>>()),
        };
        let rows = |x: &_| Rows::new(device, x, 0, k);
        let sparse = upload(sparse)?;
        gemm(device, (k, k, tokens), add, rows(&sparse).t(), rows(&sparse), keep, rows(&self.hessian))?;
        if let Some(drift) = &self.drift {
            let dense = upload(dense)?;
            let dx = Buffer::new(device, tokens * k)?;
            let arguments = vec![
                dense.argument(device),
                sparse.argument(device),
                dx.argument(device),
                number(tokens).into(),
                number(k).into(),
            ];
            launch(device, &STATISTICS, "difference", tokens * k, 1, arguments)?;
            gemm(device, (k, k, tokens), add, rows(&dx).t(), rows(&sparse), keep, rows(&drift.dxxt))?;
            let arguments = vec![
                dx.argument(device),
                drift.dxdxt.argument(device),
                number(tokens).into(),
                number(k).into(),
                keep.into(),
                add.into(),
            ];
            launch(device, &STATISTICS, "column_squares", k, 1, arguments)?;
        }
        self.sequences += 1;
        Ok(())
    }
}
