//! Mask selection in one block of columns; see [`reference::mask`](crate::reference::mask).

use super::device::{Buffer, Device, Launch};
use super::kernel_files::MASK;
use super::launch::{THREADS, launch, number};
use super::score::BlockColumns;
use crate::device_error::DeviceError;
use crate::reference::Threshold;

/// Sets the mask of one block to 1 where the weight is pruned, as [`Threshold::select`] does, and to 0 elsewhere.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// When shapes do not fit.
pub fn mask<D: Device>(
    device: &D,
    block: BlockColumns,
    s: &Buffer<f32, D>,
    threshold: Threshold,
    p: f64,
    mask: &Buffer<u8, D>,
) -> Result<(), DeviceError> {
    let Some(rank) = rank(block, threshold, p) else { return clear(device, block, mask) };
    let selection = Buffer::from_host(device, &[0, rank])?;
    let histogram = Buffer::<u32, D>::zeros(device, 256)?;
    let found = selection.argument(device);
    for shift in [24, 16, 8, 0u32] {
        let mut arguments = vec![block.of(device, s), found, histogram.argument(device)];
        arguments.extend(block.dimensions());
        arguments.push(shift.into());
        // Each block counts many scores before it adds its counts to the others'.
        launch(device, &MASK, "mask_histogram", block.numel().div_ceil(16), 1, arguments)?;
        let arguments = vec![histogram.argument(device), found];
        device.launch(&Launch { file: &MASK, kernel: "mask_digit", grid: (1, 1), block: 32, arguments })?;
    }
    match threshold {
        Threshold::Inclusive => {
            let mut arguments = vec![block.of(device, s), found, block.of(device, mask)];
            arguments.extend(block.dimensions());
            launch(device, &MASK, "mask_inclusive", block.numel(), 1, arguments)
        }
        Threshold::Exact => {
            let ties = Buffer::<u32, D>::new(device, block.n)?;
            let mut arguments = vec![block.of(device, s), found, ties.argument(device)];
            arguments.extend(block.dimensions());
            launch(device, &MASK, "mask_count_ties", block.n, 32, arguments)?;
            let arguments = vec![ties.argument(device), number(block.n).into()];
            launch(device, &MASK, "mask_scan", 1, THREADS, arguments)?;
            let mut arguments =
                vec![block.of(device, s), found, ties.argument(device), block.of(device, mask)];
            arguments.extend(block.dimensions());
            launch(device, &MASK, "mask_exact", block.n, 32, arguments)
        }
    }
}

/// Version 1: slow and simple, to check the fast one.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// As [`mask`].
pub fn mask_counting<D: Device>(
    device: &D,
    block: BlockColumns,
    s: &Buffer<f32, D>,
    threshold: Threshold,
    p: f64,
    mask: &Buffer<u8, D>,
) -> Result<(), DeviceError> {
    let Some(rank) = rank(block, threshold, p) else { return clear(device, block, mask) };
    let mut arguments = vec![block.of(device, s), block.of(device, mask)];
    arguments.extend(block.dimensions());
    arguments.push(rank.into());
    arguments.push(u32::from(threshold == Threshold::Exact).into());
    launch(device, &MASK, "mask_counting", block.numel(), 1, arguments)
}

/// The rank of the highest score that is pruned; `None` if none is.
fn rank(block: BlockColumns, threshold: Threshold, p: f64) -> Option<u32> {
    let index = (block.numel() as f64 * p).floor() as usize;
    match threshold {
        _ if block.numel() == 0 => None,
        Threshold::Inclusive => Some(number(index)),
        Threshold::Exact => index.checked_sub(1).map(number),
    }
}

fn clear<D: Device>(device: &D, block: BlockColumns, mask: &Buffer<u8, D>) -> Result<(), DeviceError> {
    let mut arguments = vec![block.of(device, mask)];
    arguments.extend(block.dimensions());
    launch(device, &MASK, "mask_clear", block.numel(), 1, arguments)
}
