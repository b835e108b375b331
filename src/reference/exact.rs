//! What Algorithm 1 approximates: Eq. 3 taken literally, and the best weights that a mask allows. For small sizes:
//! nothing here is shared between rows or built for speed.
//!
//! # Removing one weight (Eq. 3)
//! One row w minimises ||(w + dw) X^ - w X~||^2 = ||dw X - r||^2 with r = w dX (X is X^ from here on), and its weight p
//! is removed: dw_p = -w_p. With a multiplier for the constraint, and H = X X^T,
//!
//! ```text
//! d/d(dw) [ ||dw X - r||^2 + 2 lambda (dw_p + w_p) ] = 0    gives   dw = r X^T H^-1 - lambda H^-1_{p,:}
//! dw_p = -w_p                                               gives   lambda = (w_p + g_p) / [H^-1]_pp,  g = r X^T H^-1
//! ```
//!
//! The two terms with g, taken together by the elimination identity
//!
//! ```text
//! H_-p^-1 = H^-1 - H^-1_{:,p} H^-1_{p,:} / [H^-1]_pp      (the inverse of H without row and column p)
//! ```
//!
//! make dw into Eq. 3, and put back into the loss it gives L_p:
//!
//! ```text
//! dw  = -(w_p / [H^-1]_pp) H^-1_{p,:}  +  r X^T H_-p^-1
//! L_p = w_p^2 / [H^-1]_pp  +  r r^T  -  r X^T H_-p^-1 X r^T  +  2 (w_p / [H^-1]_pp) r X^T H^-1_{:,p}
//!     = (w_p + g_p)^2 / [H^-1]_pp  +  r r^T  -  r X^T H^-1 X r^T
//! ```
//!
//! In the last form, with the square completed, only the first term depends on p. Without r all this is OBC's and
//! SparseGPT's (Eq. 1).
//!
//! # Removing the next one
//! The target stays w X~, so (w + dw) X - w X~ = -(r - dw X): the residual becomes r <- r - dw X. L_p always is the
//! whole output error after the removal, and not what it adds. The removed column takes no further part: H^-1 <- H_-p^-1,
//! whose row and column p are zero.
//!
//! After one exact step r X^T is zero in every column that is left (there dw is the free minimum). So g = 0 from then on,
//! and all later steps are OBC's. Together: **the exact greedy removal is OBC started at the least-squares
//! optimum w + r X^T H^-1**. All columns correct the residual once, at the cost of one solve per row.
//!
//! # What Algorithm 1 makes of it (Eq. 4 to 6)
//! All rows take the columns in one order, and every column, kept or removed, is eliminated at its turn. The residual
//! of all rows is split by column, R = sum_j W_{:,j} dX_{j,:}, and step p deals with W_{:,p} dX_{p,:} alone, with the
//! columns after p: that is Eq. 3 with r = w_p dX_p and H_-(<p), the Hessian without the columns before p
//! ([`correction_by_elimination`]). What the split neglects:
//!
//! * in the update: column p itself and the columns before it could correct the part of column p too, but they are finished (D is
//!   strictly upper). The parts before p leave nothing to correct: they were minimised over the columns after p;
//! * in the score: the parts of the later columns, and all products of two parts, since r r^T is not a sum over parts;
//! * the target: part p is w_p dX_p with w_p as compensated so far, not the original weight.
//!
//! # Damping
//! H + lambda I is the Hessian of k more tokens, sqrt(lambda) in one channel each, the same in both streams
//! ([`damped_inputs`]): dX is zero there, and the error gains lambda ||w' - w||^2. So everything here stays exact with
//! damping, on these longer inputs; and [`Objective`] carries the same term.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut1, Axis, concatenate, s};
use rayon::prelude::*;

use super::PruneError;
use super::config::check_not_negative;
use super::factor::{FactorError, damp, dead_channels, factor};
use super::mask::zero_pruned;
use super::prune::check_finite;
use super::score::{Coefficients, Correction};
use super::statistics::{ResidualStatistics, Statistics, add_square_norms, running_mean};
use crate::linalg::{Scalar, gemm, matmul};

/// One row of W on its way through the exact removal.
#[derive(Clone, Debug)]
pub struct ExactRow<T> {
    /// w as it stands (k).
    w: Array1<T>,
    /// X^ (k x m).
    x: Array2<T>,
    /// The residual r: what w X^ still lacks of the original output (m).
    r: Array1<T>,
    /// H^-1 without the removed columns, whose rows and columns are zero (k x k).
    h_inv: Array2<T>,
}

impl<T: Scalar> ExactRow<T> {
    /// The row `w` (k) before any removal, on the inputs X~^T and X^^T, both tokens x k.
    ///
    /// # Errors
    /// [`PruneError`]: shapes that do not fit, values that are not finite, X^ X^T not positive definite (then see
    /// [`damped_inputs`]).
    pub fn new(w: ArrayView1<T>, dense: ArrayView2<T>, sparse: ArrayView2<T>) -> Result<Self, PruneError> {
        expect_shape("row of weights", (1, w.len()), (1, sparse.ncols()))?;
        expect_shape("dense input", dense.dim(), sparse.dim())?;
        check_finite("row of weights", w.insert_axis(Axis(0)))?;
        check_finite("dense input", dense)?;
        check_finite("sparse input", sparse)?;
        let x = sparse.t().as_standard_layout().into_owned();
        let r = (&dense - &sparse).dot(&w);
        let h_inv = invert(matmul(x.view(), x.t()))?;
        Ok(ExactRow { w: w.to_owned(), x, r, h_inv })
    }

    /// The weights as they stand (k).
    pub fn weights(&self) -> ArrayView1<'_, T> {
        self.w.view()
    }

    /// ||dw X - r||^2 for a change dw (k) of the row.
    // ANCHOR: loss_of
    pub fn loss_of(&self, dw: ArrayView1<T>) -> T {
        (dw.dot(&self.x) - &self.r).mapv(|e| e * e).sum()
    }
    // ANCHOR_END: loss_of

    /// L_p of Eq. 3: the output error after column p is removed in the best way.
    ///
    /// # Panics
    /// When there is no column p. For a removed column the result is not a number, here and below.
    // ANCHOR: loss
    pub fn loss(&self, p: usize) -> T {
        let (w, h_pp, xr) = (self.w[p], self.h_inv[(p, p)], self.xr());
        w * w / h_pp + self.r.dot(&self.r) - self.theorem_1(p)
            + T::of(2.0) * (w / h_pp) * xr.dot(&self.h_inv.column(p))
    }
    // ANCHOR_END: loss

    /// The same with the square completed: (w_p + g_p)^2 / \[H^-1\]_pp + r r^T - r X^T H^-1 X r^T.
    ///
    /// # Panics
    /// When there is no column p.
    pub fn loss_with_completed_square(&self, p: usize) -> T {
        let xr = self.xr();
        let g = xr.dot(&self.h_inv);
        let moved = self.w[p] + g[p];
        moved * moved / self.h_inv[(p, p)] + self.r.dot(&self.r) - g.dot(&xr)
    }

    /// SparseGPT's change of the row that removes column p (Eq. 1): blind to r.
    ///
    /// # Panics
    /// When there is no column p.
    // ANCHOR: sparsegpt_step
    pub fn sparsegpt_step(&self, p: usize) -> Array1<T> {
        let mut dw = &self.h_inv.row(p) * (-self.w[p] / self.h_inv[(p, p)]);
        dw[p] = -self.w[p]; // the constraint, without the rounding of x / y * y
        dw
    }
    // ANCHOR_END: sparsegpt_step

    /// DuoGPT's change of the row that removes column p (Eq. 3).
    ///
    /// # Panics
    /// When there is no column p.
    // ANCHOR: duogpt_step
    pub fn duogpt_step(&self, p: usize) -> Array1<T> {
        self.sparsegpt_step(p) + self.xr().dot(&eliminate(self.h_inv.view(), p))
    }
    // ANCHOR_END: duogpt_step

    /// r X^T H_-p^-1 X r^T: what Theorem 1 says that DuoGPT's step gains over SparseGPT's. Never negative, as H_-p^-1
    /// is positive semi-definite.
    ///
    /// # Panics
    /// When there is no column p.
    pub fn theorem_1(&self, p: usize) -> T {
        let xr = self.xr();
        xr.dot(&eliminate(self.h_inv.view(), p)).dot(&xr)
    }

    /// Removes column p: the step of Eq. 3, then the residual and the inverse of what is left.
    ///
    /// # Panics
    /// When there is no column p.
    pub fn remove(&mut self, p: usize) {
        let dw = self.duogpt_step(p);
        self.r = &self.r - &dw.dot(&self.x);
        self.w += &dw;
        self.h_inv = eliminate(self.h_inv.view(), p);
    }

    /// r X^T (k).
    fn xr(&self) -> Array1<T> {
        self.x.dot(&self.r)
    }
}

/// A row after the greedy removal.
#[derive(Clone, Debug, PartialEq)]
pub struct GreedyRow<T> {
    /// What is left of it (k); a removed weight is +0.
    pub weight: Array1<T>,
    /// The removed columns, the first removed first.
    pub removed: Vec<usize>,
    /// L_p of each removal: the row's output error after it.
    pub loss: Vec<T>,
}

/// Removes `count` weights (all, if there are fewer) of the row `w` (k), always the one with the smallest L_p; of equal
/// losses the first column. Inputs as in [`ExactRow::new`].
///
/// # Errors
/// As [`ExactRow::new`].
pub fn greedy_row<T: Scalar>(
    w: ArrayView1<T>,
    dense: ArrayView2<T>,
    sparse: ArrayView2<T>,
    count: usize,
) -> Result<GreedyRow<T>, PruneError> {
    let mut row = ExactRow::new(w, dense, sparse)?;
    let mut left: Vec<usize> = (0..w.len()).collect();
    let (mut removed, mut losses) = (Vec::new(), Vec::new());
    while removed.len() < count {
        let cheapest =
            left.iter().map(|&p| row.loss(p)).enumerate().min_by(|(_, a), (_, b)| a.total_order(b));
        let Some((at, loss)) = cheapest else { break };
        let p = left.remove(at);
        row.remove(p);
        removed.push(p);
        losses.push(loss);
    }
    Ok(GreedyRow { weight: row.w, removed, loss: losses })
}

/// H_-p^-1 from H^-1 (k x k): the inverse of H without row and column p, which become zero.
///
/// # Panics
/// When there is no column p.
// ANCHOR: eliminate
pub fn eliminate<T: Scalar>(h_inv: ArrayView2<T>, p: usize) -> Array2<T> {
    let mut rest = h_inv.to_owned();
    let row = h_inv.row(p);
    for (i, mut to) in rest.axis_iter_mut(Axis(0)).enumerate() {
        to.scaled_add(-h_inv[(i, p)] / h_inv[(p, p)], &row);
    }
    rest.row_mut(p).fill(T::zero());
    rest.column_mut(p).fill(T::zero());
    rest
}
// ANCHOR_END: eliminate

/// The inputs (tokens x k) with the k further tokens that damping amounts to: sqrt(lambda) in one channel each, in
/// both streams, lambda = damping * mean(diag X^ X^^T).
pub fn damped_inputs<T: Scalar>(
    dense: ArrayView2<T>,
    sparse: ArrayView2<T>,
    damping: f64,
) -> (Array2<T>, Array2<T>) {
    let k = sparse.ncols();
    let trace: f64 = sparse.iter().map(|x| x.widen().powi(2)).sum();
    let tokens = Array2::from_diag_elem(k, T::of((damping * trace / k.max(1) as f64).sqrt()));
    let longer = |x| concatenate(Axis(0), &[x, tokens.view()]).expect("both have k columns");
    (longer(dense), longer(sparse))
}

/// D, a, b, c of [`Correction`] without L, by removing one column after the other from H^-1 (Eq. 4 to 6), for a damped
/// Hessian and the statistics of dX in processing order:
///
/// ```text
/// step p, on H_-(<p):   c_p = dX_p X^T H_-(<p)^-1_{:,p} / [H_-(<p)^-1]_pp
/// then, on H_-(<=p):    D_{p,:} = dX_p X^T H_-(<=p)^-1        b_p = D_{p,:} X dX_p^T
/// ```
///
/// # Errors
/// [`FactorError`] when the Hessian has no inverse.
// ANCHOR: correction_by_elimination
pub fn correction_by_elimination<T: Scalar>(
    hessian: Array2<T>,
    residual: &ResidualStatistics<T>,
) -> Result<Correction<T>, FactorError> {
    let k = hessian.nrows();
    let mut h_inv = invert(hessian)?;
    let mut d = Array2::zeros((k, k));
    let (mut b, mut c) = (Array1::zeros(k), Array1::zeros(k));
    for p in 0..k {
        let part = residual.dxxt.row(p);
        c[p] = part.dot(&h_inv.column(p)) / h_inv[(p, p)];
        h_inv = eliminate(h_inv.view(), p);
        d.row_mut(p).assign(&part.dot(&h_inv));
        b[p] = d.row(p).dot(&part);
    }
    Ok(Correction { d, coefficients: Coefficients { a: residual.square_norms.clone(), b, c } })
}
// ANCHOR_END: correction_by_elimination

/// The residual r = w dX of each row w of one linear, reduced to the two products that E needs. Means over sequences,
/// like the statistics. The cost is proportional to the number of rows.
#[derive(Clone, Debug)]
pub struct Residual<T> {
    /// Sequences seen.
    pub sequences: usize,
    /// r X^T of each row (n x k).
    pub products: Array2<T>,
    /// r r^T of each row (n).
    pub norms: Array1<T>,
}

impl<T: Scalar> Residual<T> {
    /// No sequences yet, for n rows and k input channels; also the residual of dX = 0.
    pub fn new(n: usize, k: usize) -> Self {
        Residual { sequences: 0, products: Array2::zeros((n, k)), norms: Array1::zeros(n) }
    }

    /// Takes in one sequence: `weight` (n x k) are the original rows, `dx` and `sparse` dX^T and X^^T (tokens x k).
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn update(&mut self, weight: ArrayView2<T>, dx: ArrayView2<T>, sparse: ArrayView2<T>) {
        let (keep, add) = running_mean(self.sequences);
        let r = matmul(dx, weight.t()); // tokens x n
        gemm(add, r.t(), sparse, keep, self.products.view_mut());
        add_square_norms(&mut self.norms, keep, add, r.view());
        self.sequences += 1;
    }

    /// From the statistics of the input: r X^T = w dX X^T. They do not determine r r^T (`norms`, see
    /// [`residual_norms`]); with zeros E is right up to a constant.
    ///
    /// # Errors
    /// [`PruneError`]: shapes that do not fit, statistics that are not finite.
    pub fn of(
        weight: ArrayView2<T>,
        statistics: &Statistics<T>,
        norms: Array1<T>,
    ) -> Result<Self, PruneError> {
        let (n, k) = weight.dim();
        expect_shape("weight", (n, k), (n, statistics.channels()))?;
        expect_shape("residual norms", (norms.len(), 1), (n, 1))?;
        let products = match &statistics.residual {
            Some(residual) => {
                check_finite("statistic dX X^T", residual.dxxt.view())?;
                matmul(weight, residual.dxxt.view())
            }
            None => Array2::zeros((n, k)),
        };
        Ok(Residual { sequences: statistics.sequences, products, norms })
    }
}

/// The objective that pruning a linear layer minimises. For row w of W and w' = w + dw of W'
///
/// ```text
/// E = ||w' X^ - w X~||^2 + lambda ||dw||^2  =  dw (H + lambda I) dw^T - 2 r X^T dw^T + r r^T,     r = w dX
/// ```
///
/// with lambda = damping * mean(diag H), the damping of Algorithm 1 ([see above](self)). Damping 0 gives the output
/// error alone. All terms are means over sequences, like the statistics.
#[derive(Clone, Debug)]
pub struct Objective<T> {
    /// H + lambda I (k x k); zero in the rows and columns of dead channels.
    hessian: Array2<T>,
    /// Channels with H_pp = 0: their weights have no effect, so E leaves them out.
    dead: Vec<bool>,
}

/// Bytes that the factors of [`Objective::optimal_weights`] may take together; one row's are always allowed.
const FACTOR_BYTES: usize = 1 << 29;

impl<T: Scalar> Objective<T> {
    /// The objective of the linears whose common input has this Hessian (k x k).
    ///
    /// # Errors
    /// [`PruneError`]: a damping that is negative or not a number, a Hessian that is not finite.
    pub fn new(mut hessian: Array2<T>, damping: f64) -> Result<Self, PruneError> {
        check_not_negative("damping", damping)?;
        check_finite("Hessian", hessian.view())?;
        let dead = dead_channels(&hessian);
        damp(&mut hessian, damping);
        for (h, _) in hessian.diag_mut().iter_mut().zip(&dead).filter(|(_, dead)| **dead) {
            *h = T::zero();
        }
        Ok(Objective { hessian, dead })
    }

    /// E of each row (n) of `changed` against the original `weight` (both n x k).
    ///
    /// # Errors
    /// [`PruneError::Shape`].
    pub fn error(
        &self,
        weight: ArrayView2<T>,
        changed: ArrayView2<T>,
        residual: &Residual<T>,
    ) -> Result<Array1<T>, PruneError> {
        self.check_shapes(weight, residual)?;
        expect_shape("changed weight", changed.dim(), weight.dim())?;
        let dw = &changed - &weight;
        let mut product = matmul(dw.view(), self.hessian.view());
        product.scaled_add(T::of(-2.0), &residual.products);
        Ok((dw * product).sum_axis(Axis(1)) + &residual.norms)
    }

    /// The size of the terms of E, w (H + lambda I) w^T + r r^T of each row (n): the rounding error of E is a few times
    /// k u times this.
    ///
    /// # Errors
    /// [`PruneError::Shape`].
    pub fn magnitude(&self, weight: ArrayView2<T>, residual: &Residual<T>) -> Result<Array1<T>, PruneError> {
        self.check_shapes(weight, residual)?;
        Ok((&weight * &matmul(weight, self.hessian.view())).sum_axis(Axis(1)) + &residual.norms)
    }

    /// The weights (n x k) with zeros where `mask` is `true` that make E smallest.
    ///
    /// With K the kept columns of a row, w'_K (H + lambda I)_KK = (w (H + lambda I) + r X^T)_K: one Cholesky
    /// factorisation for each row, of as many rows at a time as fit in 512 MiB. Kept weights of dead channels stay as
    /// they are.
    ///
    /// # Errors
    /// [`PruneError`]: shapes that do not fit, weights that are not finite, kept columns whose Hessian is not positive
    /// definite (its column in the original order).
    pub fn optimal_weights(
        &self,
        weight: ArrayView2<T>,
        mask: ArrayView2<bool>,
        residual: &Residual<T>,
    ) -> Result<Array2<T>, PruneError> {
        let k = self.dead.len();
        let at_once = (FACTOR_BYTES / (k * k * size_of::<T>()).max(1)).max(1);
        self.optimal_weights_in_chunks(weight, mask, residual, at_once)
    }

    fn optimal_weights_in_chunks(
        &self,
        weight: ArrayView2<T>,
        mask: ArrayView2<bool>,
        residual: &Residual<T>,
        at_once: usize,
    ) -> Result<Array2<T>, PruneError> {
        self.check_shapes(weight, residual)?;
        expect_shape("mask", mask.dim(), weight.dim())?;
        check_finite("weight", weight)?;
        let k = self.dead.len();
        let target = matmul(weight, self.hessian.view()) + &residual.products;
        let mut optimal = zero_pruned(weight, mask);
        let solve_row = |row: usize, mut w: ArrayViewMut1<T>| {
            let kept: Vec<usize> = (0..k).filter(|&p| !mask[(row, p)] && !self.dead[p]).collect();
            let mut factored =
                Array2::from_shape_fn((kept.len(), kept.len()), |(i, j)| self.hessian[(kept[i], kept[j])]);
            T::cholesky_in_place(&mut factored).map_err(|at| FactorError::NotPositiveDefinite {
                column: kept[at],
                pivot: self.hessian[(kept[at], kept[at])].widen(),
            })?;
            let solution = solve(factored.view(), target.row(row).select(Axis(0), &kept));
            for (&p, &value) in kept.iter().zip(&solution) {
                w[p] = value;
            }
            Ok(())
        };
        for (i, mut rows) in optimal.axis_chunks_iter_mut(Axis(0), at_once).enumerate() {
            let rows = rows.axis_iter_mut(Axis(0)).into_par_iter().enumerate();
            // Solve all rows first, so that of several errors the first row's is always reported.
            let solved: Vec<_> = rows.map(|(row, w)| solve_row(i * at_once + row, w)).collect();
            solved.into_iter().collect::<Result<(), FactorError>>()?;
        }
        check_finite("optimal weight", optimal.view())?;
        Ok(optimal)
    }

    fn check_shapes(&self, weight: ArrayView2<T>, residual: &Residual<T>) -> Result<(), PruneError> {
        let (n, k) = (weight.nrows(), self.dead.len());
        expect_shape("weight", weight.dim(), (n, k))?;
        expect_shape("residual", residual.products.dim(), (n, k))?;
        expect_shape("residual norms", (residual.norms.len(), 1), (n, 1))
    }
}

/// [`Objective::optimal_weights`] of one linear from the statistics of its input.
///
/// # Errors
/// As [`Objective::new`], [`Residual::of`] and [`Objective::optimal_weights`].
pub fn optimal_weights<T: Scalar>(
    weight: ArrayView2<T>,
    statistics: &Statistics<T>,
    mask: ArrayView2<bool>,
    damping: f64,
) -> Result<Array2<T>, PruneError> {
    let objective = Objective::new(statistics.hessian.clone(), damping)?;
    let residual = Residual::of(weight, statistics, Array1::zeros(weight.nrows()))?;
    objective.optimal_weights(weight, mask, &residual)
}

/// r r^T of each row (n) of `weight` (n x k): diag(W dX dX^T W^T), from the full dX dX^T (k x k) in the unit of the
/// other statistics.
///
/// # Errors
/// [`PruneError::Shape`].
pub fn residual_norms<T: Scalar>(
    weight: ArrayView2<T>,
    dxdxt: ArrayView2<T>,
) -> Result<Array1<T>, PruneError> {
    let k = weight.ncols();
    expect_shape("matrix dX dX^T", dxdxt.dim(), (k, k))?;
    Ok((&weight * &matmul(weight, dxdxt)).sum_axis(Axis(1)))
}

/// The error of a method divided by the error of the best weights for its mask: 1 at best.
pub fn optimality_gap(error: f64, best: f64) -> f64 {
    if error == best { 1.0 } else { error / best } // both can be zero
}

/// H^-1 = L L^T.
fn invert<T: Scalar>(hessian: Array2<T>) -> Result<Array2<T>, FactorError> {
    let l = factor(hessian)?;
    Ok(matmul(l.view(), l.t()))
}

/// b (L L^T)^-1, for lower triangular L.
fn solve<T: Scalar>(l: ArrayView2<T>, mut b: Array1<T>) -> Array1<T> {
    for i in 0..b.len() {
        let known = l.slice(s![i, ..i]).dot(&b.slice(s![..i]));
        b[i] = (b[i] - known) / l[(i, i)];
    }
    for i in (0..b.len()).rev() {
        let solved = b[i] / l[(i, i)];
        b[i] = solved;
        b.slice_mut(s![..i]).scaled_add(-solved, &l.slice(s![i, ..i]));
    }
    b
}

fn expect_shape(
    what: &'static str,
    found: (usize, usize),
    expected: (usize, usize),
) -> Result<(), PruneError> {
    if found == expected { Ok(()) } else { Err(PruneError::Shape { what, expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_optimum_does_not_depend_on_how_many_rows_are_solved_at_a_time() {
        let x = Array2::from_shape_fn((20, 6), |(i, j)| ((i * 7 + j * 11) as f64 * 0.7).sin());
        let mut statistics = Statistics::with_residual(6);
        statistics.update((&x * 1.5).view(), x.view());
        let weight = Array2::from_shape_fn((7, 6), |(i, j)| ((i * 6 + j) as f64 * 1.3).cos());
        let mask = Array2::from_shape_fn((7, 6), |(i, j)| (i + j) % 3 == 0);
        let objective = Objective::new(statistics.hessian.clone(), 0.1).unwrap();
        let residual = Residual::of(weight.view(), &statistics, Array1::zeros(7)).unwrap();
        let whole = objective.optimal_weights(weight.view(), mask.view(), &residual).unwrap();
        for at_once in 1..9 {
            let found =
                objective.optimal_weights_in_chunks(weight.view(), mask.view(), &residual, at_once).unwrap();
            assert_eq!(found, whole, "{at_once} rows");
        }
        assert!(whole.outer_iter().zip(weight.outer_iter()).all(|(new, old)| new != old));
    }
}
