//! A bound per element: how far rounding alone can move a sum of products, in any precision.
//!
//! A kernel rounds its inputs to a type with unit roundoff u, sums their products in f32 or better (unit roundoff
//! v = min(u, 2^-24)), in any order, and rounds the result to the type. With r roundings to the type and t of the sum on the
//! way from an input to the result, the result is off by at most c u bnd, where c u = (1 + u)^r (1 + v)^t - 1 and bnd is
//! the sum with every term replaced by its magnitude. The book derives r and t for each tensor (docs/bounds.md).

use ndarray::{Array1, Array2, Axis, Zip};

use super::budgets::recorded_order;
use super::case::Case;
use super::tensor::CaseTensor;
use crate::linalg::matmul;
use crate::tensors::FloatType;
use crate::verify::kind::Kind;

/// What the name of a recorded bound begins with: `bnd.stats.hessian` is that of `stats.hessian`.
pub(super) const PREFIX: &str = "bnd.";

/// The bound of one tensor.
#[derive(Clone, Debug)]
pub struct Bound {
    /// bnd, in the tensor's shape as a matrix.
    pub sums: Array2<f64>,
    /// r: roundings to the type.
    pub roundings: f64,
    /// t: roundings of the sum.
    pub terms: f64,
}

impl Bound {
    /// c u of a result in this type.
    pub fn relative(&self, precision: FloatType) -> f64 {
        let u = precision.unit_roundoff();
        let v = u.min(FloatType::F32.unit_roundoff());
        (self.roundings * u.ln_1p() + self.terms * v.ln_1p()).exp_m1()
    }
}

/// What each element of a result in this type may be off by; none where the tensor has no bound.
pub fn allowed(case: &Case, name: &str, expected: &CaseTensor, precision: FloatType) -> Option<Array2<f64>> {
    let smallest = precision.smallest_normal();
    let bound = bound(case, name, expected, smallest)?;
    let relative = bound.relative(precision);
    Some(bound.sums.mapv(|bnd| relative * (bnd + smallest)))
}

/// The bound of a tensor that follows from others of the case; none where it does not. Below `smallest`, the smallest
/// normal number of the type, rounding is absolute: a smaller input counts as that.
pub fn bound(case: &Case, name: &str, expected: &CaseTensor, smallest: f64) -> Option<Bound> {
    let sums = Sums { case, smallest };
    let algorithm = case.document.algorithm;
    let k = case.document.shape.k as f64;
    let copied = || Some(expected.values.mapv(|x| sums.floor(x)));
    let (sums, roundings, terms) = match name {
        "stats.hessian" => (sums.hessian()?, 3.0, sums.terms()?),
        "stats.dxxt" => (sums.dxxt()?, 4.0, sums.terms()?),
        "stats.dxdxt" => (sums.dxdxt()?.insert_axis(Axis(0)), 5.0, sums.terms()?),
        "trace.coef_a" => {
            let order = sums.order();
            (sums.dxdxt()?.select(Axis(0), &order).insert_axis(Axis(0)), 5.0, sums.terms()?)
        }
        "stats.scaler_row" => (sums.hessian_diagonal()?.insert_axis(Axis(0)), 3.0, sums.terms()?),
        "trace.metric" if algorithm == Kind::Wanda => {
            let norms = sums.hessian_diagonal()?.mapv(f64::sqrt);
            (sums.magnitudes("input.weight")? * norms, 5.0, sums.terms()?)
        }
        "trace.damping" => {
            // Positive terms only. Each linear of a group sums the diagonal, divides, multiplies, and adds, on a stored H.
            let linears = 1.0 + case.document.settings.group_member.unwrap_or(0) as f64;
            (copied()?, 3.0 + 2.0 * linears, sums.terms()? + linears * (k + 3.0))
        }
        "trace.metric" | "trace.threshold" | "output.activations" => (copied()?, 1.0, 0.0),
        "output.weight" if matches!(algorithm, Kind::Wanda | Kind::Magnitude) => (copied()?, 1.0, 0.0),
        "trace.q_matrix" => (sums.q()?, 3.0, k),
        "trace.p_matrix" => {
            let alpha = case.document.settings.alpha?.abs();
            let lt = sums.magnitudes("trace.hinv_chol")?;
            (matmul(sums.u()?.view(), lt.view()) * alpha, 6.0, 2.0 * k + 1.0)
        }
        "trace.coef_b" => (sums.u()?.mapv(|u| u * u).sum_axis(Axis(1)).insert_axis(Axis(0)), 7.0, 3.0 * k),
        "trace.coef_2c" => {
            let lt = sums.magnitudes("trace.hinv_chol")?;
            let c = sums.q()?.diag().to_owned() / lt.diag();
            ((2.0 * c).insert_axis(Axis(0)), 6.0, k + 1.0)
        }
        "trace.score" => (sums.score(expected)?, 11.0, 0.0),
        _ => return None,
    };
    (sums.dim() == expected.values.dim()).then_some(Bound { sums, roundings, terms })
}

/// Sums of magnitudes over the tensors of a case.
struct Sums<'a> {
    case: &'a Case,
    smallest: f64,
}

impl Sums<'_> {
    /// |x|, at least the smallest normal number: x is rounded by at most u of it. Zero is exact.
    fn floor(&self, x: f64) -> f64 {
        if x == 0.0 { 0.0 } else { x.abs().max(self.smallest) }
    }

    fn magnitudes(&self, name: &str) -> Option<Array2<f64>> {
        Some(self.case.tensors.get(name)?.values.mapv(|x| self.floor(x)))
    }

    /// |X^| (tokens x k).
    fn sparse(&self) -> Option<Array2<f64>> {
        self.magnitudes("input.sparse_activations").or_else(|| self.magnitudes("input.activations"))
    }

    /// |X~| + |X^| (tokens x k), the magnitudes of which dX is a difference; 0 where they are equal, in any type.
    fn residual(&self) -> Option<Array2<f64>> {
        let of = |name: &str| Some(&self.case.tensors.get(name)?.values);
        let (dense, sparse) = (of("input.dense_activations")?, of("input.sparse_activations")?);
        let both = |&x: &f64, &y: &f64| if x == y { 0.0 } else { self.floor(x) + self.floor(y) };
        (dense.dim() == sparse.dim()).then(|| Zip::from(dense).and(sparse).map_collect(both))
    }

    /// factor / sequences.
    fn scale(&self) -> Option<f64> {
        let sequences = self.case.tensors.get("input.calls")?.values.column(0).sum().max(1.0);
        Some(f64::from(self.case.document.settings.hessian_factor.unwrap_or(1)) / sequences)
    }

    /// A product and a sum over the tokens in any order; the weight of a sequence in the mean (5, where each X is scaled by
    /// a root: quotient, root and product); and for each later sequence the rounded factor of what is there already (2).
    fn terms(&self) -> Option<f64> {
        let calls = &self.case.tensors.get("input.calls")?.values;
        Some(self.sparse()?.nrows() as f64 + 5.0 + 2.0 * (calls.column(0).sum() - 1.0).max(0.0))
    }

    fn hessian(&self) -> Option<Array2<f64>> {
        let x = self.sparse()?;
        Some(matmul(x.t(), x.view()) * self.scale()?)
    }

    fn hessian_diagonal(&self) -> Option<Array1<f64>> {
        Some(self.sparse()?.mapv(|x| x * x).sum_axis(Axis(0)) * self.scale()?)
    }

    fn dxxt(&self) -> Option<Array2<f64>> {
        Some(matmul(self.residual()?.t(), self.sparse()?.view()) * self.scale()?)
    }

    fn dxdxt(&self) -> Option<Array1<f64>> {
        Some(self.residual()?.mapv(|dx| dx * dx).sum_axis(Axis(0)) * self.scale()?)
    }

    /// Position to original column.
    fn order(&self) -> Vec<usize> {
        recorded_order(self.case).unwrap_or_else(|| (0..self.case.document.shape.k).collect())
    }

    /// |dX X^T| |L| of the recorded factors, in processing order.
    fn q(&self) -> Option<Array2<f64>> {
        let order = self.order();
        let dxxt = self.magnitudes("stats.dxxt")?.select(Axis(0), &order).select(Axis(1), &order);
        Some(matmul(dxxt.view(), self.magnitudes("trace.hinv_chol")?.t()))
    }

    /// Its strictly upper triangle.
    fn u(&self) -> Option<Array2<f64>> {
        let mut u = self.q()?;
        u.indexed_iter_mut().filter(|((p, j), _)| j <= p).for_each(|(_, u)| *u = 0.0);
        Some(u)
    }

    /// W^2 (1 / L_pp^2 + |alpha| (a + b + |2c|)), with W^2 as the score has it.
    fn score(&self, expected: &CaseTensor) -> Option<Array2<f64>> {
        let lt = &self.case.tensors.get("trace.hinv_chol")?.values;
        let first = lt.diag().mapv(|l| l.powi(-2));
        let (mut bracket, mut whole) = (first.clone(), first.mapv(|x| self.floor(x)));
        if self.case.document.algorithm == Kind::DuoGpt {
            let alpha = self.case.document.settings.alpha?;
            let row = |name: &str| Some(self.case.tensors.get(name)?.values.row(0).to_owned());
            for (name, sign) in [("trace.coef_a", 1.0), ("trace.coef_b", -1.0), ("trace.coef_2c", 1.0)] {
                let coefficient = row(name)?;
                whole += &(coefficient.mapv(|x| self.floor(x)) * alpha.abs());
                bracket += &(coefficient * (sign * alpha));
            }
        }
        let square =
            |score: f64, bracket: f64| if bracket == 0.0 { 0.0 } else { self.floor(score / bracket) };
        let mut sums = expected.values.clone();
        for (column, mut sums) in sums.columns_mut().into_iter().enumerate() {
            sums.mapv_inplace(|score| square(score, bracket[column]) * whole[column]);
        }
        Some(sums)
    }
}
