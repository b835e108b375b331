//! What a stage may be off by in f32.
//!
//! In f64 the tolerance is the case's. In f32 the budget is the a-priori rounding error of the stage, relative to the
//! largest expected entry, with u = 2^-24, m summed terms and k columns:
//!
//! * sums: (m + 8) u sum |x| |y|, the standard bound on an inner product of rounded inputs;
//! * behind the factor: (m + 3 k) u cond(S) of the largest entry. S is the expected damped Hessian scaled to a unit
//!   diagonal: the error bound of Cholesky does not depend on such a scaling, and the factor of a matrix perturbed by a
//!   relative epsilon moves
//!   by epsilon cond(S) to first order (cond in the 1-norm);
//! * E = (W_j - q) / L_jj: the same of the largest W_j / L_jj, as W_j and q cancel where q is a rounded W_j;
//! * a grid's scale: 4 u (two rounded inputs, a factor, a difference and a quotient, none of which cancels); a point of
//!   it: 2 u more. The grid of a group is found on weights behind the factor.
//!
//! Any other backend than the reference is held to what the reference measurably errs in f32, stage by stage: its values to
//! 2 error(CPU f32) + 4 eps. A decision of it may differ only if the two scores (or keys of the order) that it
//! compares lie closer than twice the error measured over all of that backend's own: each may be off by that much.
//!
//! No comparison of values survives a flipped mask bit. So values are compared under the expected order, mask and codes,
//! and the decisions apart: an f32 flip passes only if the score lies within the score budget of the cut. A weight
//! rounded to another code is such a flip too. It passes only if the value that was rounded lies within the budget
//! behind the factor of the middle between the two points.

use ndarray::{Array2, Axis, Zip};

use super::case::Case;
use super::compute::VectorError;
use crate::linalg::{Scalar, matmul};
use crate::reference::factor::factor;
use crate::reference::prune::{damp_as_configured, in_processing_order};
use crate::reference::{ResidualStatistics, Statistics};
use crate::verify::kind::Kind;

/// The bounds of one case.
pub(super) struct Budgets {
    hessian: f64,
    dxxt: f64,
    square_norms: f64,
    /// Roundings on the way to one entry of a statistic, times u.
    terms: f64,
    /// Of all that comes behind the factor; none where the damped Hessian has no factor.
    pub(super) factored: Option<f64>,
    /// Of E.
    err: f64,
    grouped: bool,
    quantised: bool,
    unit: f64,
}

fn largest(a: &Array2<f64>) -> f64 {
    a.iter().fold(0.0f64, |m, x| m.max(x.abs()))
}

impl Budgets {
    /// See the module's text. `order` is the expected one.
    pub(super) fn new<T: Scalar>(case: &Case, order: &[usize]) -> Result<Self, VectorError> {
        let u = T::UNIT_ROUNDOFF;
        let settings = &case.document.settings;
        let calls = case.tensors.get("input.calls").map(|calls| &calls.values);
        let (mut sequences, mut tokens) = (0.0, 0.0f64);
        for call in calls.into_iter().flat_map(|calls| calls.rows()) {
            sequences += call[0];
            tokens = tokens.max(call[1]);
        }
        let terms = (tokens + 3.0 * sequences + 8.0) * u;
        let values = |name: &str| case.tensors.get(name).map(|tensor| tensor.values.mapv(f64::abs));
        let sparse = values("input.sparse_activations").or_else(|| values("input.activations"));
        let sparse = sparse.unwrap_or_default();
        let dense = values("input.dense_activations").unwrap_or_else(|| sparse.clone());
        // dX is exact where the two agree, and otherwise off by at most 2 u (|x~| + |x^|) to first order.
        let mut dx = Array2::zeros(sparse.raw_dim());
        if dense.dim() == sparse.dim() {
            Zip::from(&mut dx).and(&dense).and(&sparse).for_each(|dx, &x, &y| {
                *dx = if x == y { 0.0 } else { x + y };
            });
        }
        let factor_of_sums = f64::from(settings.hessian_factor.unwrap_or(1));
        let relative = |a: &Array2<f64>, b: &Array2<f64>, name: &str| {
            let sums = factor_of_sums / f64::max(sequences, 1.0) * largest(&matmul(a.t(), b.view()));
            match values(name).map(|expected| largest(&expected)) {
                // All zero means that X~ = X^ exactly: then dX is zero in any arithmetic.
                Some(0.0) => 0.0,
                Some(expected) => terms * sums / expected,
                None => 0.0,
            }
        };
        let mut budgets = Budgets {
            hessian: relative(&sparse, &sparse, "stats.hessian"),
            dxxt: relative(&dx, &sparse, "stats.dxxt"),
            square_norms: relative(&dx, &dx, "stats.dxdxt"),
            terms,
            factored: None,
            err: 0.0,
            grouped: settings.group_size.is_some() && settings.static_groups != Some(true),
            quantised: settings.bits.is_some(),
            unit: u,
        };
        if settings.block_size.is_some() && case.tensors.contains_key("stats.hessian") {
            budgets.behind_the_factor(case, order)?;
        }
        Ok(budgets)
    }

    fn behind_the_factor(&mut self, case: &Case, order: &[usize]) -> Result<(), VectorError> {
        let settings = &case.document.settings;
        let refused =
            |detail: String| super::case::CaseError::Malformed { path: case.folder.clone(), detail };
        let config = settings.prune_config(case.document.algorithm).map_err(refused)?;
        let expected = case.tensor("stats.hessian")?.values.clone() / config.hessian_scale;
        let k = expected.ncols();
        let residual = case.tensors.get("stats.dxxt").map(|dxxt| ResidualStatistics {
            dxxt: dxxt.values.clone() / config.hessian_scale,
            square_norms: ndarray::Array1::zeros(k),
        });
        let statistics = Statistics { sequences: 1, hessian: expected, residual };
        let ordered = in_processing_order(&statistics, &config, Some(order));
        let mut hessian = ordered.map_err(|e| refused(e.to_string()))?.hessian;
        damp_as_configured(&mut hessian, &config);
        let scale = hessian.diag().mapv(|h| 1.0 / h.sqrt());
        let scaled = &hessian * &scale * &scale.insert_axis(Axis(1));
        let Ok(l) = factor(scaled.clone()) else { return Ok(()) };
        let condition = norm1(&scaled) * norm1(&matmul(l.view(), l.t()));
        let factored = (self.terms + 3.0 * k as f64 * self.unit) * condition;
        self.factored = Some(factored);
        self.err = factored;
        let tensors = ["output.weight", "trace.err", "trace.hinv_chol"].map(|name| case.tensors.get(name));
        if let [Some(weight), Some(err), Some(lt)] = tensors {
            // W_j / L_jj at its turn is q / L_jj + e.
            let l = lt.values.diag().to_owned();
            let target = weight.values.select(Axis(1), order) / &l + &err.values;
            self.err = factored * (1.0 + largest(&target) / largest(&err.values).max(f64::MIN_POSITIVE));
        }
        Ok(())
    }

    /// What the values of a tensor may be off by, relative to the largest expected one.
    pub(super) fn of(&self, name: &str, kind: Kind) -> f64 {
        let u = self.unit;
        let factored = self.factored.unwrap_or(0.0);
        let scale = 4.0 * u + if self.grouped { factored } else { 0.0 };
        match name {
            "stats.hessian" => self.hessian,
            "stats.dxxt" => self.dxxt,
            "stats.dxdxt" | "trace.coef_a" => self.square_norms,
            // A sum of squares has no cancellation: its error is relative.
            "stats.scaler_row" | "trace.damping" => self.terms,
            "trace.metric" if kind == Kind::Wanda => self.terms + 4.0 * u,
            "trace.metric" | "trace.threshold" | "trace.thresholds" | "output.activations" => u,
            "trace.zero" => 0.0,
            "trace.scale" => scale,
            "output.weight" if self.quantised => scale + 2.0 * u,
            "output.weight" if matches!(kind, Kind::Wanda | Kind::Magnitude) => u,
            "trace.err" => self.err,
            _ => factored,
        }
    }

    /// How far apart two keys of the column order must be to be told apart.
    pub(super) fn key(&self) -> f64 {
        self.hessian + self.dxxt
    }
}

/// Position to original column, as a case records it.
pub(super) fn recorded_order(case: &Case) -> Option<Vec<usize>> {
    let order: Vec<usize> = case.tensors.get("trace.perm")?.values.iter().map(|&c| c as usize).collect();
    let k = order.len();
    let mut seen = vec![false; k];
    let valid = order.iter().all(|&column| column < k && !std::mem::replace(&mut seen[column], true));
    valid.then_some(order)
}

fn norm1(a: &Array2<f64>) -> f64 {
    a.columns().into_iter().map(|c| c.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max)
}
