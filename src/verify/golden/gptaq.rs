//! GPTAQ and GPTQ: runs with several grids on one layer.

use ndarray::{Array2, ArrayView2};

use super::budgets::F64_BUDGET;
use super::file::{Golden, GoldenError};
use super::stages::{cast, is_f64, values_stage};
use super::statistics::Gathered;
use crate::linalg::Scalar;
use crate::reference::baseline::gptaq::{Quantised, quantise};
use crate::reference::prune;
use crate::verify::compare::{Processing, compare_decisions};
use crate::verify::inspect::Inspect;
use crate::verify::kind::Kind;
use crate::verify::report::Stage;

impl<B> Golden<'_, B> {
    /// A backend that does not quantise is held to the statistics alone.
    pub(super) fn gptaq<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let Gathered { mut stages, statistics, budgets, .. } = self.statistics::<T>(2.0)?;
        if B::unsupported(Kind::Gptaq).is_some() {
            return Ok(stages);
        }
        let weight = self.file.matrix::<f64>("input.weight")?;
        self.expect_shape("input.weight", &weight.shape()[1..], &[statistics.channels()])?;
        for run in self.runs(".scale") {
            let (grids, config) = self.grid_settings(&run)?;
            let factored = self.factored_budget::<T>(&budgets, config.damping, weight.ncols())?;
            let prepared = prune::prepare(&statistics, &config, None).map_err(|e| self.refused(e))?;
            let weight = cast::<T, _>(&weight);
            let quantise = |codes: Option<ArrayView2<i32>>| {
                quantise(&prepared, weight.view(), &grids, None, codes).map_err(|e| self.refused(e))
            };
            stages.extend(self.quantised_stages(&run, quantise, &prepared.order, factored)?);
        }
        Ok(stages)
    }

    pub(super) fn quantised_stages<T: Scalar>(
        &self,
        run: &str,
        quantise: impl Fn(Option<ArrayView2<i32>>) -> Result<Quantised<T>, GoldenError>,
        order: &[usize],
        factored: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let mut quantised = quantise(None)?;
        let (n, k) = quantised.target.dim();
        let weight = self.matrix_of(&format!("{run}.weight"), (n, k))?;
        let scale = self.matrix_of(&format!("{run}.scale"), quantised.scale.dim())?;
        let zero = self.matrix_of(&format!("{run}.zero"), quantised.zero.dim())?;
        // One grid per row; the code is not recorded, but the point is.
        let codes = Array2::from_shape_fn((n, k), |(row, column)| {
            (weight[(row, column)] / scale[(row, 0)] + zero[(row, 0)]).round() as i32
        });
        if quantised.codes != codes {
            quantised = quantise(Some(codes.view()))?;
        }
        let (scale_budget, point_budget) = match is_f64::<T>() {
            true => (F64_BUDGET, F64_BUDGET),
            false => (4.0 * T::UNIT_ROUNDOFF, 6.0 * T::UNIT_ROUNDOFF),
        };
        let stage = |name: &str, found: &Array2<T>, expected: &Array2<f64>, budget: f64| {
            let processing = if found.ncols() == k { Processing::Columns(order) } else { Processing::Rows };
            values_stage(format!("{run}: {name}"), found.view(), expected.view(), budget, processing)
        };
        Ok(vec![
            stage("scale", &quantised.scale, &scale, scale_budget),
            stage("zero", &quantised.zero, &zero, 0.0),
            code_stage(&format!("{run}: codes"), &quantised, &codes, &weight, order, factored),
            stage("weight", &quantised.pruned.weight, &weight, point_budget),
        ])
    }
}

/// Holds the codes to the golden ones. The margin of a weight that was rounded to another code is its distance from
/// the middle between the two points, relative to the largest weight. Each was rounded on the golden path, so that one
/// flip does not cause the next.
fn code_stage<T: Scalar>(
    name: &str,
    quantised: &Quantised<T>,
    golden: &Array2<i32>,
    weight: &Array2<f64>,
    order: &[usize],
    budget: f64,
) -> Stage {
    let largest = weight.iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs()));
    let margin = |row, position: usize| {
        let at = (row, order[position]);
        let (scale, zero) = (quantised.scale[(row, 0)].widen(), quantised.zero[(row, 0)].widen());
        let middle = scale * (f64::from(quantised.codes[at]) / 2.0 + f64::from(golden[at]) / 2.0 - zero);
        Some((quantised.target[at].widen() - middle).abs() / largest)
    };
    let budget = (!is_f64::<T>()).then_some(budget);
    Stage::decisions(name, compare_decisions(quantised.codes.view(), golden.view(), order, budget, margin))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::reference::Pruned;
    use crate::verify::compare::Place;

    #[test]
    fn a_code_may_flip_only_in_f32_and_only_near_the_middle_of_two_points() {
        fn stage<T: Scalar>(target: f64, code: i32) -> Stage {
            let weight = array![[1.0, 2.0]]; // scale 0.5, zero at 1: codes 3 and 5
            let of = |a: &Array2<f64>| cast::<T, _>(a);
            let quantised = Quantised {
                pruned: Pruned { weight: of(&weight), mask: array![[false, false]], score: of(&weight) },
                codes: array![[3, code]],
                scale: of(&array![[0.5]]),
                zero: of(&array![[1.0]]),
                grid: vec![0, 0],
                target: of(&array![[1.1, target]]),
            };
            code_stage("codes", &quantised, &array![[3, 5]], &weight, &[1, 0], 1e-3)
        }
        // The middle between the codes 5 and 4 is 1.75, and the largest weight is 2.
        let near = stage::<f32>(1.751, 4);
        assert!(near.passed && near.differing() == 1);
        assert_eq!(near.place(), Some(Place { row: 0, column: 1, expected: 5.0, found: 4.0 }));
        assert!(!stage::<f32>(1.753, 4).passed);
        assert!(!stage::<f32>(1.75, 3).passed); // two steps
        assert!(!stage::<f64>(1.751, 4).passed);
        assert!(stage::<f64>(2.0, 5).passed && stage::<f64>(2.0, 5).differing() == 0);
    }
}
