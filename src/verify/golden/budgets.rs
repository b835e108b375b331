//! What a stage may be off by.
//!
//! In f64 every stage must agree to 1e-9 of the largest golden entry, and masks must be identical. In f32 the budget
//! is the a-priori rounding error of the stage, with u = 2^-24, m summed terms and k columns:
//!
//! * sums: (m + 8) u sum |x| |y|, the standard bound on an inner product of rounded inputs;
//! * behind the factor: (m + 3 k) u cond(S) of the largest entry. S is the golden damped Hessian scaled to a unit
//!   diagonal: Cholesky does not feel the scaling, and the factor of a matrix perturbed by a relative epsilon moves
//!   by epsilon cond(S) to first order (cond in the 1-norm).
//!
//! * a grid's scale: 4 u (two rounded inputs, a factor, a difference and a quotient, none of which cancels); a point of
//!   it: 2 u more.
//!
//! Any other backend than the reference is held to what the reference measurably errs in f32, stage by stage: its values to
//! 2 error(CPU f32) + 4 eps. A decision of it may differ only if the two scores (or keys of the order) that it
//! compares lie closer than twice the error measured over all of that backend's own: each may be off by that much.
//!
//! No comparison of values survives a flipped mask bit. So values are compared under the golden order and mask, and
//! the decisions apart: an f32 flip passes only if the score lies within the score budget of the cut. A weight
//! rounded to another code is such a flip too. It passes only if the value that was rounded lies within the budget
//! behind the factor of the middle between the two points.

use ndarray::{Array2, Array3, Axis};

use super::file::{Golden, GoldenError};
use super::stages::{column, is_f64};
use crate::linalg::{Scalar, matmul};
use crate::reference::factor::{damp, dead_channels, factor, revive_dead_channels};
use crate::verify::report::{Outcome, Stage};

/// What an f64 implementation may differ by, relative to the largest golden entry of the stage.
pub(super) const F64_BUDGET: f64 = 1e-9;

/// Budgets of one layer, relative to the largest golden entry of each stage.
pub(super) struct Budgets {
    pub(super) hessian: f64,
    pub(super) dxxt: f64,
    pub(super) square_norms: f64,
    /// Roundings on the way to one entry of the Hessian.
    pub(super) terms: f64,
}

impl<B> Golden<'_, B> {
    /// What a stage of values may be off by: the reference by `bound`, any other backend by what the reference errs.
    pub(super) fn allowed<T: Scalar>(&self, name: &str, bound: f64) -> f64 {
        match self.single.iter().find(|stage| stage.name == name) {
            Some(Stage { outcome: Outcome::Values(single), .. }) => {
                2.0 * single.error + 8.0 * T::UNIT_ROUNDOFF // eps = 2 u
            }
            _ => bound,
        }
    }

    /// How far from each other two compared numbers may be whose order differs: the reference by `bound`, any other backend
    /// by twice the error of the stages that say how far off they are.
    pub(super) fn margin<'s>(&self, bound: f64, measured: impl IntoIterator<Item = &'s Stage>) -> f64 {
        if self.single.is_empty() {
            return bound;
        }
        let error = |stage: &Stage| match &stage.outcome {
            Outcome::Values(values) => values.error,
            _ => 0.0,
        };
        2.0 * measured.into_iter().map(error).sum::<f64>()
    }

    /// See the module's text.
    pub(super) fn budgets<T: Scalar>(
        &self,
        dense: &Array3<f64>,
        sparse: &Array3<f64>,
        tokens: usize,
    ) -> Result<Budgets, GoldenError> {
        if is_f64::<T>() {
            return Ok(Budgets {
                hessian: F64_BUDGET,
                dxxt: F64_BUDGET,
                square_norms: F64_BUDGET,
                terms: 0.0,
            });
        }
        let (sequences, _, k) = dense.dim();
        let u = T::UNIT_ROUNDOFF;
        let terms = (tokens + 3 * sequences + 8) as f64;
        let flat = |x: &Array3<f64>| x.to_shape((sequences * tokens, k)).expect("contiguous").mapv(f64::abs);
        let (dense, sparse) = (flat(dense), flat(sparse));
        // dX is exact where the two agree, and otherwise off by at most 2 u (|x~| + |x^|) to first order.
        let mut dx = &dense + &sparse;
        ndarray::Zip::from(&mut dx).and(&dense).and(&sparse).for_each(|dx, x, y| {
            if x == y {
                *dx = 0.0
            }
        });
        let mean = 1.0 / sequences as f64;
        let largest = |a: &Array2<f64>| a.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let sums = |a: &Array2<f64>, b: &Array2<f64>| terms * u * mean * largest(&matmul(a.t(), b.view()));
        let relative = |bound: f64, name: &str| -> Result<f64, GoldenError> {
            let golden = match self.file.get(name) {
                Some(info) if info.shape.len() == 1 => column(&self.file.vector(name)?),
                Some(_) => self.file.matrix(name)?,
                None => return Ok(bound),
            };
            let scale = largest(&golden);
            // All zero means that X~ = X^ exactly: then dX is zero in any arithmetic.
            Ok(if scale == 0.0 { 0.0 } else { bound / scale })
        };
        Ok(Budgets {
            hessian: relative(sums(&sparse, &sparse), "stats.hessian")?,
            dxxt: relative(sums(&dx, &sparse), "stats.dxxt")?,
            square_norms: relative(sums(&dx, &dx), "stats.dxdxt")?,
            terms,
        })
    }

    /// The budget of all that comes behind the factor; see the module's text.
    pub(super) fn factored_budget<T: Scalar>(
        &self,
        budgets: &Budgets,
        damping: f64,
        k: usize,
    ) -> Result<f64, GoldenError> {
        if is_f64::<T>() {
            return Ok(F64_BUDGET);
        }
        let mut hessian = self.square("stats.hessian", k)?;
        let dead = dead_channels(&hessian);
        revive_dead_channels(&mut hessian, &dead);
        damp(&mut hessian, damping);
        let scale = hessian.diag().mapv(|h| 1.0 / h.sqrt());
        let scaled = &hessian * &scale * &scale.insert_axis(Axis(1));
        let l = factor(scaled.clone()).map_err(|e| self.refused(e))?;
        let condition = norm1(&scaled) * norm1(&matmul(l.view(), l.t()));
        Ok((budgets.terms + 3.0 * k as f64) * T::UNIT_ROUNDOFF * condition)
    }
}

fn norm1(a: &Array2<f64>) -> f64 {
    a.columns().into_iter().map(|c| c.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ndarray::array;

    use super::super::stages::values_stage;
    use super::*;
    use crate::backend::Cpu;
    use crate::tensors::TensorFile;
    use crate::verify::compare::Processing;

    #[test]
    fn another_backend_may_err_twice_as_much_as_the_reference() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = TensorFile::open(&root.join("fixtures/golden/basic.safetensors")).unwrap();
        let stage = |name: &str, found: f64| {
            values_stage(name, array![[found]].view(), array![[4.0]].view(), 1.0, Processing::Rows)
        };
        let single = vec![stage("Q", 5.0), stage("score", 6.0)]; // errors of 1/4 and 1/2
        let golden = Golden { file: &file, backend: &Cpu, single };
        assert_eq!(golden.allowed::<f32>("Q", 1e-9), 0.5 + 4.0 * f64::from(f32::EPSILON));
        assert_eq!(golden.allowed::<f32>("not measured", 1e-9), 1e-9);
        assert_eq!(golden.margin(1e-9, &golden.single), 1.5);
        let reference = Golden { file: &file, backend: &Cpu, single: Vec::new() };
        assert_eq!(reference.allowed::<f32>("Q", 1e-9), 1e-9);
        assert_eq!(reference.margin(1e-9, &golden.single), 1e-9);
    }
}
