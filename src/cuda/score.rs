//! The score of one block of columns; see [`reference::score`](mod@crate::reference::score).

use super::device::{Argument, Buffer, Device};
use super::kernel_files::SCORE;
use super::launch::{launch, number};
use crate::device_error::DeviceError;

/// Columns `first .. first + width` of a row-major n x k matrix.
#[derive(Clone, Copy, Debug)]
pub struct BlockColumns {
    /// Rows.
    pub n: usize,
    /// Columns of the whole matrix.
    pub k: usize,
    /// The block's first column.
    pub first: usize,
    /// Its columns.
    pub width: usize,
}

impl BlockColumns {
    /// Number of entries of the block.
    pub fn numel(self) -> usize {
        self.n * self.width
    }

    /// The address of the block's first entry.
    ///
    /// # Panics
    /// When the block does not lie inside the matrix.
    pub fn of<T: super::device::Plain, D: Device>(self, device: &D, matrix: &Buffer<T, D>) -> Argument {
        assert_eq!(matrix.len(), self.n * self.k, "a matrix of another shape");
        assert!(self.first + self.width <= self.k, "columns outside the matrix");
        Argument::Address(matrix.address(device, self.first))
    }

    /// n, width and the stride, as kernels take them.
    pub(crate) fn dimensions(self) -> [Argument; 3] {
        [number(self.n).into(), number(self.width).into(), number(self.k).into()]
    }
}

/// S = W^2 * scale on one block. `scale` is of all k columns.
///
/// # Errors
/// [`DeviceError`].
///
/// # Panics
/// When shapes do not fit.
pub fn score<D: Device>(
    device: &D,
    block: BlockColumns,
    w: &Buffer<f32, D>,
    scale: &Buffer<f32, D>,
    s: &Buffer<f32, D>,
) -> Result<(), DeviceError> {
    assert_eq!(scale.len(), block.k, "a scale of another width");
    let scale = Argument::Address(scale.address(device, block.first));
    let mut arguments = vec![block.of(device, w), scale, block.of(device, s)];
    arguments.extend(block.dimensions());
    launch(device, &SCORE, "score", block.numel(), 1, arguments)
}
