//! Algorithm 1's loop over one block of columns, and the lazy update of the columns to its right; see
//! [`reference::prune`](mod@crate::reference::prune).

use super::blas::{Rows, gemm};
use super::device::{Argument, Buffer, Device};
use super::kernel_files::PANEL;
use super::launch::{launch, number};
use super::score::BlockColumns;
use crate::device_error::DeviceError;
use crate::reference::LazyUpdate;

/// The operands of the loop besides the weights; k x k matrices row-major, k the width of the layer.
pub struct Factors<'a, D: Device> {
    /// L^T (k x k, upper).
    pub lt: &'a Buffer<f32, D>,
    /// D (k x k, strictly upper); `None` where there is no correction.
    pub d: Option<&'a Buffer<f32, D>>,
    /// alpha on D.
    pub alpha: f32,
    /// The factor of W^2 in the score (k).
    pub scale: &'a Buffer<f32, D>,
}

/// The layer that the loop changes: n x k, row-major, in processing order.
pub struct PanelLayer<'a, D: Device> {
    /// The weights.
    pub w: &'a Buffer<f32, D>,
    /// 1 = pruned.
    pub mask: &'a Buffer<u8, D>,
    /// The scores as compared.
    pub s: &'a Buffer<f32, D>,
}

/// N:M inside the block.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// Zeros per group.
    pub n: usize,
    /// Columns per group.
    pub m: usize,
    /// Takes the mask as it is; scores are still computed.
    pub forced: bool,
}

/// Which version of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelVersion {
    /// A thread per row.
    Any,
    /// A warp per row, where the block has at most 256 columns.
    WarpPerRow,
}

/// The results of the loop that the lazy update needs (each n x width).
pub struct Panel<D: Device> {
    /// E: what each pruning leaves to compensate.
    pub e: Buffer<f32, D>,
    /// W_j at its turn, before pruning.
    pub before: Buffer<f32, D>,
}

/// The column loop on one block.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// When shapes do not fit.
pub fn panel<D: Device>(
    device: &D,
    block: BlockColumns,
    layer: &PanelLayer<D>,
    factors: &Factors<D>,
    groups: Option<Groups>,
    version: PanelVersion,
) -> Result<Panel<D>, DeviceError> {
    let BlockColumns { n, k, first, width } = block;
    let (square, alpha) = square(factors, k);
    let panel = Panel { e: Buffer::new(device, n * width)?, before: Buffer::new(device, n * width)? };
    let diagonal = first * k + first;
    let mut arguments = vec![
        block.of(device, layer.w),
        block.of(device, layer.mask),
        block.of(device, layer.s),
        panel.e.argument(device),
        panel.before.argument(device),
        Argument::Address(factors.lt.address(device, diagonal)),
        Argument::Address(square.address(device, diagonal)),
        Argument::Address(factors.scale.address(device, first)),
    ];
    arguments.extend(block.dimensions());
    arguments.push(alpha.into());
    arguments.extend(match groups {
        Some(Groups { n, m, forced }) => [number(n).into(), number(m).into(), u32::from(forced).into()],
        None => [Argument::U32(0); 3],
    });
    let (kernel, threads_each) = match (version, width) {
        (PanelVersion::WarpPerRow, ..=32) => ("panel_32", 32),
        (PanelVersion::WarpPerRow, ..=64) => ("panel_64", 32),
        (PanelVersion::WarpPerRow, ..=128) => ("panel_128", 32),
        (PanelVersion::WarpPerRow, ..=256) => ("panel_256", 32),
        _ => ("panel_any", 1),
    };
    launch(device, &PANEL, kernel, n, threads_each, arguments)?;
    Ok(panel)
}

/// alpha D, or 0 times a matrix of its shape.
fn square<'a, D: Device>(factors: &Factors<'a, D>, k: usize) -> (&'a Buffer<f32, D>, f32) {
    let (square, alpha) = factors.d.map_or((factors.lt, 0.0), |d| (d, factors.alpha));
    assert_eq!(
        (factors.lt.len(), square.len(), factors.scale.len()),
        (k * k, k * k, k),
        "factors of another width"
    );
    (square, alpha)
}

/// W_rest += -E L^T + alpha W_block D for the columns right of the block.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// When shapes do not fit.
pub fn lazy_update<D: Device>(
    device: &D,
    block: BlockColumns,
    layer: &PanelLayer<D>,
    panel: &Panel<D>,
    factors: &Factors<D>,
    which: LazyUpdate,
) -> Result<(), DeviceError> {
    let BlockColumns { n, k, first, width } = block;
    let end = first + width;
    let shape = (n, k - end, width);
    let right = |square| Rows::new(device, square, first * k + end, k);
    if end == k {
        return Ok(());
    }
    let rest = Rows::new(device, layer.w, end, k);
    gemm(device, shape, -1.0, Rows::new(device, &panel.e, 0, width), right(factors.lt), 1.0, rest)?;
    let Some(d) = factors.d else { return Ok(()) };
    let carried = match which {
        LazyUpdate::Pruned => Rows::new(device, layer.w, first, k),
        LazyUpdate::Compensated => Rows::new(device, &panel.before, 0, width),
    };
    gemm(device, shape, factors.alpha, carried, right(d), 1.0, rest)
}
