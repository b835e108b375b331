//! The device's library calls on row-major matrices: read as column-major, a row-major matrix is its transpose.

use super::device::{Buffer, Device, Operand};
use crate::device_error::DeviceError;

/// A row-major matrix, or the transpose of one: row i begins at `address + i * stride` elements.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Of the first element.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Takes the transpose.
    pub transposed: bool,
}

impl Rows {
    /// The part of a matrix of `stride` columns that begins at element `first`.
    pub fn new<D: Device>(device: &D, buffer: &Buffer<f32, D>, first: usize, stride: usize) -> Self {
        Rows { address: buffer.address(device, first), stride, transposed: false }
    }

    /// Its transpose.
    pub fn t(self) -> Self {
        Rows { transposed: !self.transposed, ..self }
    }

    fn operand(self) -> Operand {
        Operand { address: self.address, leading: self.stride, transposed: self.transposed }
    }
}

/// C (m x n) <- alpha A (m x inner) B (inner x n) + beta C, as C^T = B^T A^T. `shape` is (m, n, inner).
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn gemm<D: Device>(
    device: &D,
    (m, n, inner): (usize, usize, usize),
    alpha: f32,
    a: Rows,
    b: Rows,
    beta: f32,
    c: Rows,
) -> Result<(), DeviceError> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    device.gemm((n, m, inner), alpha, b.operand(), a.operand(), beta, c.operand())
}

/// Replaces a symmetric matrix (k x k) by its lower Cholesky factor M; entries right of the diagonal stay.
/// `Err` in the inner result: the first column, from 0, whose pivot is not positive.
///
/// A = R^T R with the column-major upper triangle R: read row-major, R is M.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn cholesky<D: Device>(device: &D, k: usize, a: Rows) -> Result<Result<(), usize>, DeviceError> {
    let info = device.potrf(k, a.operand())?;
    Ok(if info == 0 { Ok(()) } else { Err(info - 1) })
}

/// B <- B M^-1 for lower triangular M (k x k) and B (n x k). Entries right of M's diagonal are not read.
///
/// B M^-1 = (R^-1 B^T)^T with R = M^T, and the library solves for the transpose.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn solve_right<D: Device>(device: &D, k: usize, n: usize, m: Rows, b: Rows) -> Result<(), DeviceError> {
    device.trsm(k, n, m.operand(), b.operand())
}
