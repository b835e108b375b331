//! Algorithm 1 on the device, and the [`Backend`] around it.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::device::{Buffer, Device, DeviceError};
use super::factor::{self, Prepared, permute_columns, permute_mask};
use super::mask::mask;
use super::panel::{Factors, Groups, Layer, Version, lazy_update, panel};
use super::score::{Columns, score};
use super::statistics::Statistics;
use crate::backend::Backend;
use crate::reference::order::inverse;
use crate::reference::prune::{Pruned, check_finite};
use crate::reference::{DeadChannels, PruneConfig, PruneError, Replay, Sparsity, activation};

/// Statistics and pruning on a device, in f32. The model's forward pass stays on the CPU, and activation pruning, which
/// belongs to it, with it.
pub struct Cuda<D> {
    /// What computes.
    pub device: D,
}

/// Statistics on the device, or why they could not be gathered: [`Backend::prepare`] says so.
pub struct Gathered<D: Device>(Result<Statistics<D>, DeviceError>);

impl<D: Device> Backend<f32> for Cuda<D> {
    type Statistics = Gathered<D>;
    type Prepared = Prepared<D>;

    fn describe(&self) -> String {
        self.device.describe()
    }

    fn prune_activations(&self, x: ArrayViewMut2<f32>, sparsity: f64) {
        activation::prune_activations(x, sparsity);
    }

    fn statistics(&self, k: usize, with_drift: bool) -> Gathered<D> {
        Gathered(Statistics::new(&self.device, k, with_drift))
    }

    fn update(&self, statistics: &mut Gathered<D>, dense: ArrayView2<f32>, sparse: ArrayView2<f32>) {
        if let Ok(gathered) = &mut statistics.0
            && let Err(error) = gathered.update(&self.device, dense, sparse)
        {
            statistics.0 = Err(error);
        }
    }

    fn prepare(
        &self,
        statistics: &Gathered<D>,
        config: &PruneConfig,
        replay: Replay,
    ) -> Result<Prepared<D>, PruneError> {
        let statistics = statistics.0.as_ref().map_err(Clone::clone)?;
        factor::prepare(&self.device, statistics, config, replay)
    }

    fn prune(
        &self,
        prepared: &Prepared<D>,
        weight: ArrayView2<f32>,
        config: &PruneConfig,
        replay: Replay,
    ) -> Result<Pruned<f32>, PruneError> {
        prune(&self.device, prepared, weight, config, replay)
    }
}

/// Prunes one linear (n x k), as [`reference::Prepared::prune`](crate::reference::Prepared::prune) does.
fn prune<D: Device>(
    device: &D,
    prepared: &Prepared<D>,
    weight: ArrayView2<f32>,
    config: &PruneConfig,
    replay: Replay,
) -> Result<Pruned<f32>, PruneError> {
    let (n, k) = weight.dim();
    let order = &prepared.order;
    if k != order.len() {
        return Err(PruneError::Shape { what: "weight", expected: (n, order.len()), found: (n, k) });
    }
    if let Some(mask) = replay.mask.filter(|mask| mask.dim() != (n, k)) {
        return Err(PruneError::Shape { what: "mask", expected: (n, k), found: mask.dim() });
    }
    check_finite("weight", weight)?;

    let zeroed: Vec<bool> = order
        .iter()
        .map(|&column| config.dead_channels == DeadChannels::Zero && prepared.dead[column])
        .collect();
    let original = Buffer::from_host(device, &row_major(weight))?;
    let w = permute_columns(device, &original, order, &zeroed)?;
    drop(original);
    let forced = replay.mask.is_some();
    let decided = match replay.mask {
        Some(mask) => {
            let mask = Buffer::from_host(device, &row_major(mask.mapv(u8::from).view()))?;
            permute_mask(device, &mask, order)?
        }
        None => Buffer::zeros(device, n * k)?,
    };
    let s = Buffer::zeros(device, n * k)?;
    let layer = Layer { w: &w, mask: &decided, s: &s };
    let factors = Factors {
        lt: &prepared.lt,
        d: prepared.d.as_ref(),
        alpha: config.alpha.update as f32,
        scale: &prepared.scale,
    };

    for first in (0..k).step_by(config.block_size) {
        let block = Columns { n, k, first, width: config.block_size.min(k - first) };
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
        let panel = panel(device, block, &layer, &factors, groups, Version::WarpPerRow)?;
        lazy_update(device, block, &layer, &panel, &factors, config.lazy_update)?;
    }

    let back = inverse(order);
    let weight = to_matrix(permute_columns(device, &w, &back, &vec![false; k])?.to_host(device)?, (n, k));
    check_finite("pruned weight", weight.view())?;
    let mask = to_matrix(permute_mask(device, &decided, &back)?.to_host(device)?, (n, k));
    Ok(Pruned { weight, mask: mask.mapv(|m| m != 0), score: to_matrix(s.to_host(device)?, (n, k)) })
}

fn row_major<T: Copy>(a: ArrayView2<T>) -> Vec<T> {
    a.iter().copied().collect()
}

fn to_matrix<T>(values: Vec<T>, shape: (usize, usize)) -> Array2<T> {
    Array2::from_shape_vec(shape, values).expect("one value per entry")
}
