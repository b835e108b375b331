//! The active inputs of one token, as a list that stays on the device; see
//! [`reference::spmspv::Selected`](crate::reference::spmspv::Selected).

use super::activation::{ActivationType, threshold_index};
use super::device::{Argument, Buffer, Device, Launch};
use super::kernel_files::SELECT;
use super::launch::number;
use crate::device_error::DeviceError;
use crate::generate::Keep;
use crate::reference::spmspv;

/// RMSNorm before the selection: x / sqrt(mean(x^2) + eps) g.
pub struct RmsNorm<'a, T, D: Device> {
    /// g (k).
    pub weight: &'a Buffer<T, D>,
    /// Added to the mean square.
    pub eps: f32,
}

/// The selection of one token, with its buffers; reused from token to token.
pub struct Selected<T, D: Device> {
    /// x after the norm (k), if there is one.
    pub normed: Buffer<T, D>,
    /// The selected columns, ascending (the first entries of k).
    pub columns: Buffer<u32, D>,
    /// Their activations (the first entries of k).
    pub x: Buffer<f32, D>,
    /// Number of selected columns (1).
    pub count: Buffer<u32, D>,
}

impl<T: ActivationType, D: Device> Selected<T, D> {
    /// An empty selection with room for k activations.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn new(device: &D, k: usize) -> Result<Self, DeviceError> {
        Ok(Selected {
            normed: Buffer::new(device, k)?,
            columns: Buffer::new(device, k)?,
            x: Buffer::new(device, k)?,
            count: Buffer::zeros(device, 1)?,
        })
    }

    /// A selection of k activations that was made on the host.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// When it has more than k.
    pub fn from_host(device: &D, k: usize, selected: &spmspv::Selected) -> Result<Self, DeviceError> {
        assert!(selected.len() <= k, "a selection of {} of {k} activations", selected.len());
        let (mut columns, mut x) = (selected.indices().to_vec(), selected.values().to_vec());
        columns.resize(k, 0);
        x.resize(k, 0.0);
        Ok(Selected {
            normed: Buffer::new(device, 0)?,
            columns: Buffer::from_host(device, &columns)?,
            x: Buffer::from_host(device, &x)?,
            count: Buffer::from_host(device, &[number(selected.len())])?,
        })
    }

    /// Selects the entries of `x` (k) to keep, after the norm if there is one.
    ///
    /// # Errors
    /// [`DeviceError`].
    ///
    /// # Panics
    /// When lengths differ, or the sparsity is outside \[0, 1).
    pub fn select(
        &self,
        device: &D,
        x: &Buffer<T, D>,
        norm: Option<RmsNorm<T, D>>,
        keep: Keep,
    ) -> Result<(), DeviceError> {
        let k = self.columns.len();
        assert_eq!(x.len(), k, "activations of another length");
        if k == 0 {
            return Ok(());
        }
        let (weight, selected_from, eps) = match &norm {
            Some(RmsNorm { weight, eps }) => {
                assert_eq!(weight.len(), k, "a norm of another length");
                (weight.argument(device), self.normed.argument(device), *eps)
            }
            None => (Argument::Address(0), x.argument(device), 0.0),
        };
        let (top, index, threshold) = match keep {
            Keep::ALL => (0u32, 0, -1.0), // NaN too
            Keep::Largest(sparsity) => (1, threshold_index(x, (1, k), sparsity), 0.0),
            Keep::Above(threshold) => (0, 0, floor(threshold)),
        };
        let arguments = vec![
            x.argument(device),
            weight,
            selected_from,
            self.columns.argument(device),
            self.x.argument(device),
            self.count.argument(device),
            number(k).into(),
            eps.into(),
            top.into(),
            index.into(),
            threshold.into(),
        ];
        let kernel = format!("select_{}", T::SUFFIX);
        device.launch(&Launch { file: &SELECT, kernel: &kernel, grid: (1, 1), block: 1024, arguments })
    }
}

/// The largest f32 that is not above t: |x| <= t has the same answer with it for every f32 x.
fn floor(t: f64) -> f32 {
    let nearest = t as f32;
    if f64::from(nearest) > t { nearest.next_down() } else { nearest }
}

#[cfg(test)]
mod tests {
    use super::floor;

    #[test]
    fn no_activation_lies_between_a_threshold_and_its_floor() {
        let above_one = f64::from(1.0f32.next_up());
        for (t, expected) in [
            (0.0, 0.0),
            (1.0, 1.0),
            (above_one - 1e-12, 1.0),
            (above_one, 1.0f32.next_up()),
            (1e300, f32::MAX),
            (f64::INFINITY, f32::INFINITY),
        ] {
            assert_eq!(floor(t), expected, "{t}");
        }
    }
}
