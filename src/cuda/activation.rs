//! Activation pruning on the device; see [`reference::activation`](crate::reference::activation).

use super::device::{Buffer, Device, Plain};
use super::kernel_files::ACTIVATION;
use super::launch::{THREADS, launch, number};
use crate::device_error::DeviceError;

/// A number type of the activation kernels.
pub trait ActivationType: Plain {
    /// The suffix of the kernels for this type.
    const SUFFIX: &'static str;
}

impl ActivationType for f32 {
    const SUFFIX: &'static str = "f32";
}

impl ActivationType for half::bf16 {
    const SUFFIX: &'static str = "bf16";
}

impl ActivationType for half::f16 {
    const SUFFIX: &'static str = "f16";
}

/// Pruned activations.
pub struct Kept<T, D: Device> {
    /// tokens x k.
    pub x: Buffer<T, D>,
    /// The kept columns of each token, ascending, from the front of its row (tokens x k).
    pub columns: Buffer<u32, D>,
    /// How many they are (tokens).
    pub count: Buffer<u32, D>,
}

/// Prunes every token of `x` (tokens x k, row-major), as
/// [`prune_activations`](crate::reference::activation::prune_activations) does.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// When the shape does not fit, or `sparsity` is outside \[0, 1).
pub fn activation<T: ActivationType, D: Device>(
    device: &D,
    x: &Buffer<T, D>,
    (tokens, k): (usize, usize),
    sparsity: f64,
) -> Result<Kept<T, D>, DeviceError> {
    let out = Buffer::new(device, tokens * k)?;
    let columns = Buffer::new(device, tokens * k)?;
    let count = Buffer::zeros(device, tokens)?;
    if k > 0 {
        let arguments = vec![
            x.argument(device),
            out.argument(device),
            columns.argument(device),
            count.argument(device),
            number(k).into(),
            threshold_index(x, (tokens, k), sparsity).into(),
        ];
        let kernel = format!("activation_{}", T::SUFFIX);
        launch(device, &ACTIVATION, &kernel, tokens, THREADS, arguments)?;
    }
    Ok(Kept { x: out, columns, count })
}

/// Version 1: slow and simple, to check the fast one.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// As [`activation`].
pub fn activation_counting<T: ActivationType, D: Device>(
    device: &D,
    x: &Buffer<T, D>,
    (tokens, k): (usize, usize),
    sparsity: f64,
) -> Result<Buffer<T, D>, DeviceError> {
    let out = Buffer::new(device, tokens * k)?;
    let index = threshold_index(x, (tokens, k), sparsity);
    let arguments = vec![x.argument(device), out.argument(device), number(k).into(), index.into()];
    let kernel = format!("activation_counting_{}", T::SUFFIX);
    launch(device, &ACTIVATION, &kernel, tokens, THREADS, arguments)?;
    Ok(out)
}

/// floor(k p_x).
pub(super) fn threshold_index<T: Plain, D: Device>(
    x: &Buffer<T, D>,
    (tokens, k): (usize, usize),
    sparsity: f64,
) -> u32 {
    assert_eq!(x.len(), tokens * k, "the shape does not fit the activations");
    assert!((0.0..1.0).contains(&sparsity), "activation sparsity {sparsity} is outside [0, 1)");
    number((k as f64 * sparsity).floor() as usize)
}
