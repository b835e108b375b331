//! The output-residual correction in closed form (Eq. 7): Q, U, a, b, c, D, and the score S.
//!
//! # Where it comes from
//! The residual of one row w is r = w dX. Split by column it is a sum of w_j dX_j, and only column p's own part
//! enters the step that processes column p. With the lower factor L, H^-1 = L L^T, the update that this part asks
//! for in the columns not yet processed is row p of D = U L^T, where U is the strictly upper part of
//! Q = dX X^T L; what it adds to the loss of pruning p is w_p^2 (a_p - b_p + 2 c_p).

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip, s};

use super::statistics::ResidualStatistics;
use crate::linalg::{Scalar, gemm, matmul};

/// What the residual adds to the SparseGPT loop, in processing order.
#[derive(Clone, Debug)]
pub struct Correction<T> {
    /// D = U L^T (k x k, strictly upper): row p updates the columns after p.
    pub d: Array2<T>,
    /// a, b, c of the score.
    pub coefficients: Coefficients<T>,
}

/// The residual's part of the score, one number per column.
#[derive(Clone, Debug)]
pub struct Coefficients<T> {
    /// a = diag(dX dX^T) (k).
    pub a: Array1<T>,
    /// b_p = sum_j U_pj^2 (k).
    pub b: Array1<T>,
    /// c = diag(Q) / diag(L) (k).
    pub c: Array1<T>,
}

/// Q = dX X^T L (k x k, full).
pub fn residual_projection<T: Scalar>(dxxt: ArrayView2<T>, l: ArrayView2<T>) -> Array2<T> {
    matmul(dxxt, l)
}

/// a, b, c from diag(dX dX^T), Q and L.
// ANCHOR: coefficients
pub fn coefficients<T: Scalar>(
    square_norms: ArrayView1<T>,
    q: ArrayView2<T>,
    l: ArrayView2<T>,
) -> Coefficients<T> {
    let strictly_upper = |p: usize| q.slice(s![p, p + 1..]);
    Coefficients {
        a: square_norms.to_owned(),
        b: (0..q.nrows()).map(|p| strictly_upper(p).iter().map(|&u| u * u).sum()).collect(),
        c: &q.diag() / &l.diag(),
    }
}
// ANCHOR_END: coefficients

/// D = U L^T (k x k, strictly upper), with U the strictly upper part of Q.
// ANCHOR: update_matrix
pub fn update_matrix<T: Scalar>(mut q: Array2<T>, l: ArrayView2<T>) -> Array2<T> {
    let k = q.nrows();
    for (p, mut row) in q.axis_iter_mut(Axis(0)).enumerate() {
        row.slice_mut(s![..=p]).fill(T::zero());
    }
    let u = q;
    let mut d = Array2::zeros((k, k));
    // U and L^T are both upper: rows from `first` on have nothing before column `first`.
    const STRIP: usize = 256;
    for first in (0..k).step_by(STRIP) {
        let rows = first..(first + STRIP).min(k);
        gemm(
            1.0,
            u.slice(s![rows.clone(), first..]),
            l.slice(s![first.., first..]).t(),
            0.0,
            d.slice_mut(s![rows, first..]),
        );
    }
    // U is strictly upper and L lower, so D's diagonal is zero by structure; BLAS leaves exact zeros there.
    d
}
// ANCHOR_END: update_matrix

// ANCHOR: correction
impl<T: Scalar> Correction<T> {
    /// D, a, b, c from the statistics of dX and L, all in processing order.
    pub fn new(residual: &ResidualStatistics<T>, l: ArrayView2<T>) -> Self {
        let q = residual_projection(residual.dxxt.view(), l);
        let coefficients = coefficients(residual.square_norms.view(), q.view(), l);
        Correction { d: update_matrix(q, l), coefficients }
    }
}
// ANCHOR_END: correction

/// The factor of W_ip^2 in the score (k):
///
/// ```text
/// 1 / L_pp^2 + alpha (a_p - b_p + 2 c_p)
/// ```
///
/// With no correction it is SparseGPT's 1 / L_pp^2. For alpha <= 1 it is not
/// negative in exact arithmetic (at alpha = 1 it is a least squared error); with rounding or a larger alpha it can be.
// ANCHOR: score_scale
pub fn score_scale<T: Scalar>(l: ArrayView2<T>, coefficients: Option<(&Coefficients<T>, f64)>) -> Array1<T> {
    let mut scale = l.diag().mapv(|l| T::one() / (l * l));
    if let Some((Coefficients { a, b, c }, alpha)) = coefficients {
        let (alpha, two) = (T::of(alpha), T::of(2.0));
        Zip::from(&mut scale).and(a).and(b).and(c).for_each(|s, &a, &b, &c| *s += alpha * (a - b + two * c));
    }
    scale
}
// ANCHOR_END: score_scale

/// S = W^2 * scale, column by column (Eq. 7): the loss that pruning each weight costs. `w` (n x B) holds the
/// current, already compensated weights of a block, `scale` (B) its part of [`score_scale`].
// ANCHOR: score
pub fn score<T: Scalar>(w: ArrayView2<T>, scale: ArrayView1<T>) -> Array2<T> {
    let mut score = w.mapv(|w| w * w);
    score *= &scale;
    score
}
// ANCHOR_END: score
