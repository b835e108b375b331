//! From the statistics to L^T, D and the score's factor, on the device; see
//! [`reference::factor`](mod@crate::reference::factor) and [`reference::score`](mod@crate::reference::score).

use std::ops::Range;

use super::blas::{Rows, cholesky, gemm, solve_right};
use super::device::{Argument, Buffer, Device};
use super::kernel_files::FACTOR;
use super::launch::{launch, number};
use super::statistics::{ResidualStatistics, Statistics};
use crate::backend::BackendError;
use crate::device_error::DeviceError;
use crate::reference::prune::checked_order;
use crate::reference::{Dialect, FactorError, PruneConfig, PruneError};

/// What Algorithm 1 needs besides the weights, in processing order.
pub struct Prepared<D: Device> {
    /// The settings that it was prepared with, and that the loop follows.
    pub config: PruneConfig,
    /// Position to original column (k).
    pub order: Vec<usize>,
    /// Dead channels, by original column (k).
    pub dead: Vec<bool>,
    /// L^T (k x k, upper), row-major.
    pub lt: Buffer<f32, D>,
    /// D = U L^T (k x k, strictly upper); `None` makes the loop SparseGPT's.
    pub d: Option<Buffer<f32, D>>,
    /// The factor of W^2 in the score (k).
    pub scale: Buffer<f32, D>,
}

/// Dead channels, order, damping, factor and correction, as [`prepare`](crate::reference::prune::prepare) does.
/// The order is found on the host, by the reference: it needs the two diagonals only.
///
/// # Errors
/// As the reference, and [`BackendError::Device`].
pub fn prepare<D: Device>(
    device: &D,
    statistics: &Statistics<D>,
    config: &PruneConfig,
    order: Option<&[usize]>,
) -> Result<Prepared<D>, BackendError> {
    let k = statistics.k;
    config.check(k)?;
    if config.dialect != Dialect::default() {
        return Err(BackendError::Unsupported { what: "follow a tool's dialect" });
    }
    let matrix = statistics.hessian(device)?;
    if let Some((row, column)) = not_finite(device, &matrix, (k, k))? {
        return Err(FactorError::NotFinite { what: "Hessian", row, column }.into());
    }
    let residual = statistics.residual(device)?;
    let scale = config.hessian_scale as f32;
    let mut hessian = diagonal(device, &matrix, k)?;
    let dead: Vec<bool> = hessian.iter().map(|&h| h == 0.0).collect();
    for (h, &dead) in hessian.iter_mut().zip(&dead) {
        *h = if dead { 1.0 } else { *h * scale };
    }
    let order = match order {
        Some(order) => checked_order(order, k)?,
        None => {
            let dxxt = residual.as_ref().map(|residual| diagonal(device, &residual.dxxt, k)).transpose()?;
            let dxxt: Option<Vec<f32>> = dxxt.map(|d| d.into_iter().map(|d| d * scale).collect());
            config.column_order.permutation(&hessian, dxxt.as_deref(), config.block_size)?
        }
    };

    let mean = order.iter().map(|&column| f64::from(hessian[column])).sum::<f64>() / k as f64;
    let shift = (config.damping * mean) as f32;
    let damped: Vec<f32> = order.iter().map(|&column| hessian[column] + shift).collect();
    let reversed: Vec<usize> = order.iter().rev().copied().collect();
    let in_order = permute_both(device, &matrix, &reversed, scale)?;
    drop(matrix);
    let lt = factor(device, in_order, &damped).map_err(|error| match error {
        BackendError::Prune(PruneError::Factor(error)) => error.in_original_order(&order).into(),
        error => error,
    })?;

    let alpha = config.alpha.score as f32;
    let (d, scale) = correct(device, residual, &order, scale, &lt, alpha)?;
    if let Some((_, position)) = not_finite(device, &scale, (1, k))? {
        return Err(PruneError::NotFinite { what: "score", row: 0, column: order[position] }.into());
    }
    Ok(Prepared { config: *config, order, dead, lt, d, scale })
}

/// L^T of a Hessian given in reversed processing order, its diagonal apart, in processing order.
fn factor<D: Device>(
    device: &D,
    hessian: Buffer<f32, D>,
    diagonal: &[f32],
) -> Result<Buffer<f32, D>, BackendError> {
    let k = diagonal.len();
    let reversed: Vec<f32> = diagonal.iter().rev().copied().collect();
    let reversed = Buffer::from_host(device, &reversed)?;
    let arguments = vec![hessian.argument(device), reversed.argument(device), number(k).into()];
    launch(device, &FACTOR, "set_diagonal", k, 1, arguments)?;
    let m = hessian;
    let rows = |a: &_| Rows::new(device, a, 0, k);
    if let Err(failed) = cholesky(device, k, rows(&m))? {
        let column = k - 1 - failed;
        let pivot = f64::from(diagonal[column]);
        return Err(FactorError::NotPositiveDefinite { column, pivot }.into());
    }
    let inverse = Buffer::new(device, k * k)?;
    let arguments = vec![inverse.argument(device), number(k).into()];
    launch(device, &FACTOR, "identity", k * k, 1, arguments)?;
    // Rows i of M^-1 are zero right of column i: k^3 / 3 operations instead of k^3.
    for rows_i in blocks(k) {
        let width = rows_i.end;
        solve_right(device, width, rows_i.len(), rows(&m), Rows::new(device, &inverse, rows_i.start * k, k))?;
    }
    let lt = m; // M is not needed any more
    let arguments = vec![inverse.argument(device), lt.argument(device), number(k).into()];
    launch(device, &FACTOR, "reverse_upper", k * k, 1, arguments)?;
    match not_finite(device, &lt, (k, k))? {
        // L holds it at the transposed place.
        Some((row, column)) => {
            Err(FactorError::NotFinite { what: "factor", row: column, column: row }.into())
        }
        None => Ok(lt),
    }
}

type Numbers<D> = Buffer<f32, D>;

/// D and the score's factor.
fn correct<D: Device>(
    device: &D,
    residual: Option<ResidualStatistics<D>>,
    order: &[usize],
    scale: f32,
    lt: &Buffer<f32, D>,
    alpha: f32,
) -> Result<(Option<Numbers<D>>, Numbers<D>), DeviceError> {
    let k = order.len();
    let score_scale = Buffer::new(device, k)?;
    let Some(residual) = residual else {
        let arguments = vec![lt.argument(device), score_scale.argument(device), number(k).into()];
        launch(device, &FACTOR, "plain_scale", k, 1, arguments)?;
        return Ok((None, score_scale));
    };
    let square_norms = residual.square_norms.to_host(device)?;
    let a: Vec<f32> = order.iter().map(|&column| square_norms[column] * scale).collect();
    let a = Buffer::from_host(device, &a)?;
    let Projection { dxxt, q } = projection(device, &residual, order, scale, lt)?;
    drop(residual);
    let arguments = vec![
        q.argument(device),
        lt.argument(device),
        a.argument(device),
        score_scale.argument(device),
        number(k).into(),
        alpha.into(),
    ];
    launch(device, &FACTOR, "strictly_upper", k, 32, arguments)?;
    let mut d = dxxt; // its memory
    d.clear(device)?;
    // Element i, j of a product of two upper triangles is a sum over i to j alone: k^3 / 3 operations instead of 2 k^3.
    let at = |a: &_, row: usize, column: usize| Rows::new(device, a, row * k + column, k);
    for rows_i in blocks(k) {
        for columns_j in blocks(k).filter(|columns| columns.start >= rows_i.start) {
            let (i, j) = (rows_i.start, columns_j.start);
            let shape = (rows_i.len(), columns_j.len(), columns_j.end - i);
            gemm(device, shape, 1.0, at(&q, i, i), at(lt, i, j), 0.0, at(&d, i, j))?;
        }
    }
    Ok((Some(d), score_scale))
}

/// dX X^T in processing order, and its product with L (each k x k).
pub(crate) struct Projection<D: Device> {
    /// scale * dX X^T, permuted.
    pub dxxt: Buffer<f32, D>,
    /// Q = dX X^T L.
    pub q: Buffer<f32, D>,
}

/// Q, as [`residual_projection`](crate::reference::score::residual_projection).
pub(crate) fn projection<D: Device>(
    device: &D,
    residual: &ResidualStatistics<D>,
    order: &[usize],
    scale: f32,
    lt: &Buffer<f32, D>,
) -> Result<Projection<D>, DeviceError> {
    let k = order.len();
    let dxxt = permute_both(device, &residual.dxxt, order, scale)?;
    let q = Buffer::new(device, k * k)?;
    // Column j of L is zero above row j: k^3 operations instead of 2 k^3.
    let at = |a: &_, row: usize, column: usize| Rows::new(device, a, row * k + column, k);
    for columns_j in blocks(k) {
        let (j, width) = (columns_j.start, columns_j.len());
        gemm(device, (k, width, k - j), 1.0, at(&dxxt, 0, j), at(lt, j, j).t(), 0.0, at(&q, 0, j))?;
    }
    Ok(Projection { dxxt, q })
}

/// Rows and columns of a block of a triangular matrix: of what is zero, the part in the diagonal's blocks is computed.
const TRIANGLE_BLOCK: usize = 1024;

fn blocks(k: usize) -> impl Iterator<Item = Range<usize>> {
    (0..k).step_by(TRIANGLE_BLOCK).map(move |start| start..k.min(start + TRIANGLE_BLOCK))
}

/// scale * a[order, order] (k x k).
fn permute_both<D: Device>(
    device: &D,
    a: &Buffer<f32, D>,
    order: &[usize],
    scale: f32,
) -> Result<Buffer<f32, D>, DeviceError> {
    let k = order.len();
    let order = upload_order(device, order)?;
    let out = Buffer::new(device, k * k)?;
    let arguments = vec![
        a.argument(device),
        order.argument(device),
        out.argument(device),
        number(k).into(),
        scale.into(),
    ];
    launch(device, &FACTOR, "permute_both", k * k, 1, arguments)?;
    Ok(out)
}

/// An order as kernels take it.
pub(crate) fn upload_order<D: Device>(device: &D, order: &[usize]) -> Result<Buffer<u32, D>, DeviceError> {
    let order: Vec<u32> = order.iter().map(|&column| number(column)).collect();
    Buffer::from_host(device, &order)
}

/// The columns of `w` (n x k) in another order; those flagged in `zero`, by their new place, are zeroed.
pub(crate) fn permute_columns<D: Device>(
    device: &D,
    w: &Buffer<f32, D>,
    order: &[usize],
    zero: &[bool],
) -> Result<Buffer<f32, D>, DeviceError> {
    let k = order.len();
    let out = Buffer::new(device, w.len())?;
    let order = upload_order(device, order)?;
    let zero: Vec<u8> = zero.iter().map(|&zero| zero.into()).collect();
    let zero = Buffer::from_host(device, &zero)?;
    let arguments = vec![
        w.argument(device),
        order.argument(device),
        zero.argument(device),
        out.argument(device),
        number(w.len() / k.max(1)).into(),
        number(k).into(),
    ];
    launch(device, &FACTOR, "permute_columns_f32", w.len(), 1, arguments)?;
    Ok(out)
}

/// The columns of a mask (n x k) in another order.
pub(crate) fn permute_mask<D: Device>(
    device: &D,
    mask: &Buffer<u8, D>,
    order: &[usize],
) -> Result<Buffer<u8, D>, DeviceError> {
    let k = order.len();
    let out = Buffer::new(device, mask.len())?;
    let order = upload_order(device, order)?;
    let arguments = vec![
        mask.argument(device),
        order.argument(device),
        out.argument(device),
        number(mask.len() / k.max(1)).into(),
        number(k).into(),
    ];
    launch(device, &FACTOR, "permute_columns_u8", mask.len(), 1, arguments)?;
    Ok(out)
}

fn diagonal<D: Device>(device: &D, a: &Buffer<f32, D>, k: usize) -> Result<Vec<f32>, DeviceError> {
    let out = Buffer::new(device, k)?;
    let arguments = vec![a.argument(device), out.argument(device), number(k).into()];
    launch(device, &FACTOR, "get_diagonal", k, 1, arguments)?;
    out.to_host(device)
}

/// Row and column of the first value that is not finite.
fn not_finite<D: Device>(
    device: &D,
    a: &Buffer<f32, D>,
    (rows, columns): (usize, usize),
) -> Result<Option<(usize, usize)>, DeviceError> {
    let first = Buffer::from_host(device, &[u64::MAX])?;
    let arguments: Vec<Argument> =
        vec![a.argument(device), first.argument(device), number(rows).into(), number(columns).into()];
    launch(device, &FACTOR, "find_not_finite", rows * columns, 1, arguments)?;
    let first = first.to_host(device)?[0];
    Ok((first != u64::MAX).then(|| (first as usize / columns, first as usize % columns)))
}
