//! Algorithm 1 on the device, and the [`Backend`] around it.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::device::{Buffer, Device};
use super::factor::{self, Prepared, permute_columns, permute_mask};
use super::mask::mask;
use super::panel::{Factors, Groups, PanelLayer, PanelVersion, lazy_update, panel};
use super::score::{BlockColumns, score};
use super::statistics::Statistics;
use crate::backend::{Backend, BackendError};
use crate::device_error::DeviceError;
use crate::reference::order::inverse;
use crate::reference::prune::{Pruned, check_finite};
use crate::reference::{DeadChannels, PruneConfig, PruneError, Sparsity, activation};

/// Statistics and pruning on a device, in f32. The forward pass of the model, and activation pruning as a part of it, run
/// on the CPU.
pub struct Cuda<D> {
    /// The device that computes.
    pub device: D,
}

/// Statistics on the device, or the error that ended the gathering, which [`Backend::prepare`] returns.
pub struct DeviceStatistics<D: Device>(Result<Statistics<D>, DeviceError>);

impl<D: Device> DeviceStatistics<D> {
    /// The statistics.
    ///
    /// # Errors
    /// The error that ended the gathering.
    pub fn get(&self) -> Result<&Statistics<D>, DeviceError> {
        self.0.as_ref().map_err(Clone::clone)
    }
}

impl<D: Device> Backend<f32> for Cuda<D> {
    type Statistics = DeviceStatistics<D>;
    type Prepared = Prepared<D>;

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn prune_activations(&self, x: ArrayViewMut2<f32>, sparsity: f64) {
        activation::prune_activations(x, sparsity);
    }

    fn statistics(&self, k: usize, with_residual: bool) -> DeviceStatistics<D> {
        DeviceStatistics(Statistics::new(&self.device, k, with_residual))
    }

    fn update(&self, statistics: &mut DeviceStatistics<D>, dense: ArrayView2<f32>, sparse: ArrayView2<f32>) {
        if let Ok(gathered) = &mut statistics.0
            && let Err(error) = gathered.update(&self.device, dense, sparse)
        {
            statistics.0 = Err(error);
        }
    }

    fn prepare(
        &self,
        statistics: &DeviceStatistics<D>,
        config: &PruneConfig,
        order: Option<&[usize]>,
    ) -> Result<Prepared<D>, BackendError> {
        factor::prepare(&self.device, statistics.get()?, config, order)
    }

    fn prune(
        &self,
        prepared: &Prepared<D>,
        weight: ArrayView2<f32>,
        mask: Option<ArrayView2<bool>>,
    ) -> Result<Pruned<f32>, BackendError> {
        prune(&self.device, prepared, weight, mask)
    }
}

/// Prunes one linear (n x k), as [`reference::Prepared::prune`](crate::reference::Prepared::prune) does.
fn prune<D: Device>(
    device: &D,
    prepared: &Prepared<D>,
    weight: ArrayView2<f32>,
    forced_mask: Option<ArrayView2<bool>>,
) -> Result<Pruned<f32>, BackendError> {
    let (n, k) = weight.dim();
    let channels = prepared.order.len();
    if k != channels {
        return Err(PruneError::Shape { what: "weight", expected: (n, channels), found: (n, k) }.into());
    }
    if let Some(mask) = forced_mask.filter(|mask| mask.dim() != (n, k)) {
        return Err(PruneError::Shape { what: "mask", expected: (n, k), found: mask.dim() }.into());
    }
    check_finite("weight", weight)?;

    let forced = match forced_mask {
        Some(mask) => Some(Buffer::from_host(device, &row_major(mask.mapv(u8::from).view()))?),
        None => None,
    };
    let pruned = prune_on_device(device, prepared, Buffer::from_host(device, &row_major(weight))?, forced)?;
    let weight = to_matrix(pruned.weight.to_host(device)?, (n, k));
    check_finite("pruned weight", weight.view())?;
    let mask = to_matrix(pruned.mask.to_host(device)?, (n, k));
    let score = to_matrix(pruned.score.to_host(device)?, (n, k));
    Ok(Pruned { weight, mask: mask.mapv(|m| m != 0), score })
}

/// [`Pruned`], before it leaves the device.
pub struct PrunedOnDevice<D: Device> {
    /// The new weight (n x k), original column order.
    pub weight: Buffer<f32, D>,
    /// 1 = pruned (n x k), original column order.
    pub mask: Buffer<u8, D>,
    /// S as it was compared (n x k), processing order.
    pub score: Buffer<f32, D>,
}

/// Algorithm 1 on a weight that is on the device already (n x k, finite), optionally with a given mask
/// (1 = pruned). An overflow shows only in the new weight.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// If the weight does not consist of whole rows of k, or the mask has another length.
pub fn prune_on_device<D: Device>(
    device: &D,
    prepared: &Prepared<D>,
    weight: Buffer<f32, D>,
    forced_mask: Option<Buffer<u8, D>>,
) -> Result<PrunedOnDevice<D>, DeviceError> {
    let (order, config) = (&prepared.order, &prepared.config);
    let k = order.len();
    let n = weight.len() / k.max(1);
    assert_eq!(weight.len(), n * k, "a weight of another width");
    let zeroed: Vec<bool> = order
        .iter()
        .map(|&column| config.dead_channels == DeadChannels::Zero && prepared.dead[column])
        .collect();
    let w = permute_columns(device, &weight, order, &zeroed)?;
    drop(weight);
    let forced = forced_mask.is_some();
    let decided = match forced_mask {
        Some(mask) => {
            assert_eq!(mask.len(), n * k, "a mask of another shape");
            permute_mask(device, &mask, order)?
        }
        None => Buffer::new(device, n * k)?, // every block writes its part
    };
    let s = Buffer::new(device, n * k)?;
    let layer = PanelLayer { w: &w, mask: &decided, s: &s };
    let factors = Factors {
        lt: &prepared.lt,
        d: prepared.d.as_ref(),
        alpha: config.alpha.update as f32,
        scale: &prepared.scale,
    };

    for first in (0..k).step_by(config.block_size) {
        let block = BlockColumns { n, k, first, width: config.block_size.min(k - first) };
        let groups = match config.weight_sparsity {
            Sparsity::Unstructured(p) => {
                score(device, block, &w, &prepared.scale, &s)?;
                if !forced {
                    mask(device, block, &s, config.threshold, p, &decided)?;
                }
                None
            }
            Sparsity::NofM { n, m } => Some(Groups { n, m, forced }),
        };
        let panel = panel(device, block, &layer, &factors, groups, PanelVersion::WarpPerRow)?;
        lazy_update(device, block, &layer, &panel, &factors, config.lazy_update)?;
    }

    let back = inverse(order);
    Ok(PrunedOnDevice {
        weight: permute_columns(device, &w, &back, &vec![false; k])?,
        mask: permute_mask(device, &decided, &back)?,
        score: s,
    })
}

/// The values in the layout of a device.
pub(crate) fn row_major<T: Copy>(a: ArrayView2<T>) -> Vec<T> {
    a.iter().copied().collect()
}

/// A matrix from the values of a device.
pub(crate) fn to_matrix<T>(values: Vec<T>, shape: (usize, usize)) -> Array2<T> {
    Array2::from_shape_vec(shape, values).expect("one value per entry")
}
