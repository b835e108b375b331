//! DuoGPT: one layer with every intermediate result.

use ndarray::{Array2, Array3, ArrayView2, Axis};

use super::cuts::{Cuts, Region, decide, mask_stage};
use super::file::{Golden, GoldenError};
use super::stages::{cast, column, is_f64};
use super::statistics::Gathered;
use crate::linalg::Scalar;
use crate::reference::activation::check_fraction;
use crate::reference::factor::dead_channels;
use crate::reference::order::inverse;
use crate::reference::score::{Coefficients, coefficients};
use crate::reference::{ColumnOrder, PruneConfig, Statistics};
use crate::verify::compare::{Processing, compare_decisions};
use crate::verify::inspect::{Inspect, Trace};
use crate::verify::report::Stage;

impl<B> Golden<'_, B> {
    pub(super) fn duogpt<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let config = self.config()?;
        let (dense, sparse) = self.inputs()?;
        let weight = self.file.matrix::<f64>("input.weight")?;
        let (n, k) = weight.dim();
        self.expect_shape("input.dense_activations", &dense.shape()[2..], &[k])?;
        config.check(k).map_err(|e| self.refused(e))?;

        let mut stages = vec![self.activation_stage::<T>(&dense, &sparse)?];
        let gathered = self.statistics::<T>(1.0)?;
        let Gathered { on_backend, statistics, budgets, .. } = &gathered;
        let factored = self.factored_budget::<T>(budgets, config.damping, k)?;
        let prepare = |order: Option<&[usize]>| {
            self.backend.prepare(on_backend, &config, order).map_err(|e| self.refused(e))
        };
        let mut prepared = prepare(None)?;
        let mut trace = self.backend.trace(on_backend, &prepared).map_err(|e| self.refused(e))?;
        let in_key = ["statistics: H", "statistics: dX X^T"];
        let keys = gathered.stages.iter().filter(|stage| in_key.contains(&stage.name.as_str()));
        let key_budget = self.margin(budgets.hessian + budgets.dxxt, keys);
        let (order_stage, order) = self.order_stage(&config, statistics, &trace.order, key_budget)?;
        if order != trace.order {
            prepared = prepare(Some(&order))?;
            trace = self.backend.trace(on_backend, &prepared).map_err(|e| self.refused(e))?;
        }
        stages.extend(gathered.stages.iter().cloned());
        stages.extend(order_stage);
        let traced = self.file.get("trace.score").is_some();
        if traced {
            stages.extend(self.factor_stages(&config, statistics, &trace, budgets.square_norms, factored)?);
        }

        // Values under the golden order and mask.
        let position = inverse(&order);
        let natural: Vec<usize> = (0..k).collect();
        let golden_mask = match traced {
            true => Some(self.mask_of("trace.mask", (n, k))?.select(Axis(1), &position)),
            false => None,
        };
        let weight = cast::<T, _>(&weight);
        let run = |mask: Option<ArrayView2<bool>>| {
            self.backend.prune(&prepared, weight.view(), mask).map_err(|e| self.refused(e))
        };
        let mut pruned = run(None)?;
        if let Some(golden_mask) = &golden_mask {
            let mut decided = pruned.mask.clone();
            if decided != *golden_mask {
                // One flip changes every later score: decide again on the golden path.
                pruned = run(Some(golden_mask.view()))?;
                decided = decide(pruned.score.view(), &config).select(Axis(1), &position);
            }
            let score = self.matrix_of("trace.score", (n, k))?;
            let columns = Processing::Columns(&natural);
            let compared = self.values_stage("score", pruned.score.view(), score.view(), factored, columns);
            let margin = self.margin(factored, [&compared]);
            stages.push(compared);
            let score = score.select(Axis(1), &position);
            let cuts = Cuts::new(score, golden_mask.clone(), order.clone(), Region::of(&config));
            stages.push(mask_stage::<T>("mask", &decided, &cuts, margin));
        }
        let output = self.matrix_of("output.weight", (n, k))?;
        // Without traces the mask of the output stands in for the one that was not recorded.
        let mut name = "weight";
        if golden_mask.is_none() && !is_f64::<T>() {
            name = "weight (mask of the golden output)";
            pruned = run(Some(output.mapv(|w| w == 0.0).view()))?;
        }
        let columns = Processing::Columns(&order);
        stages.push(self.values_stage(name, pruned.weight.view(), output.view(), factored, columns));
        Ok(stages)
    }

    /// X^ is the pruned X~, unless the streams differ beyond that; then pruning X^ again must not change it.
    pub(super) fn activation_stage<T: Scalar>(
        &self,
        dense: &Array3<f64>,
        sparse: &Array3<f64>,
    ) -> Result<Stage, GoldenError>
    where
        B: Inspect<T>,
    {
        let p: f64 = self.metadata("a_sparsity")?;
        check_fraction("metadata `a_sparsity`", p).map_err(|e| self.refused(e))?;
        let drifted = dense.iter().zip(sparse).any(|(&x, &pruned)| pruned != 0.0 && pruned != x);
        let source = if drifted { sparse } else { dense };
        let mut stage = self.pruned_stage::<T>("activation pruning", source, sparse, p)?;
        stage.note = drifted.then(|| "X^ is no pruned X~ here: checked that pruning keeps it".to_string());
        Ok(stage)
    }

    /// The order, and the golden one to go on with: dead channels tie, and the original's sort is not stable.
    pub(super) fn order_stage<T: Scalar>(
        &self,
        config: &PruneConfig,
        statistics: &Statistics<T>,
        ours: &[usize],
        key_budget: f64,
    ) -> Result<(Option<Stage>, Vec<usize>), GoldenError> {
        let k = statistics.channels();
        let dead = dead_channels(&statistics.hessian);
        let Some(golden) = self.recorded_order(k)? else { return Ok((None, ours.to_vec())) };
        let key = |column: usize| {
            let h = if dead[column] { 1.0 } else { statistics.hessian[(column, column)].widen() };
            match (&config.column_order, &statistics.residual) {
                (ColumnOrder::HessianDrift, Some(residual)) => {
                    h + residual.dxxt[(column, column)].widen().abs()
                }
                _ => h,
            }
        };
        // Equal keys may stand in either order.
        let largest = (0..k).map(key).fold(f64::MIN_POSITIVE, f64::max);
        let budget = if is_f64::<T>() { 0.0 } else { key_budget };
        let margin = |_, i: usize| Some((key(ours[i]) - key(golden[i])).abs() / largest);
        let as_row = |order: &[usize]| Array2::from_shape_fn((1, k), |(_, i)| order[i] as f64);
        let natural: Vec<usize> = (0..k).collect();
        let outcome =
            compare_decisions(as_row(ours).view(), as_row(&golden).view(), &natural, Some(budget), margin);
        let stage = Stage::decisions("permutation", outcome);
        Ok((Some(stage), golden))
    }

    /// L^T, Q, alpha D, a, b, 2c, and the factor of the score that a backend makes of them.
    pub(super) fn factor_stages<T: Scalar>(
        &self,
        config: &PruneConfig,
        statistics: &Statistics<T>,
        trace: &Trace<T>,
        norms_budget: f64,
        factored: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let Trace { order, lt, q, d, scale } = trace;
        let k = order.len();
        let (Some(residual), Some(q), Some(d)) = (&statistics.residual, q, d) else {
            return Err(self.malformed("tensor `stats.dxxt` is missing"));
        };
        let a = residual.square_norms.select(Axis(0), order) * T::of(config.hessian_scale);
        let Coefficients { a, b, c } = coefficients(a.view(), q.view(), lt.t());
        let golden_lt = self.square("trace.hinv_chol", k)?;
        let golden = |name| self.vector(name, k);
        let (golden_a, golden_b, golden_2c) =
            (golden("trace.coef_a")?, golden("trace.coef_b")?, golden("trace.coef_2c")?);
        let golden_scale = golden_lt.diag().mapv(|l| 1.0 / (l * l))
            + (&golden_a - &golden_b + &golden_2c) * config.alpha.score;

        let stage = |name: &str, found: &Array2<T>, expected: &Array2<f64>, budget| {
            self.values_stage(name, found.view(), expected.view(), budget, Processing::Rows)
        };
        Ok(vec![
            stage("factor: L^T", lt, &golden_lt, factored),
            stage("Q", q, &self.square("trace.q_matrix", k)?, factored),
            stage("alpha D", &(d * T::of(config.alpha.update)), &self.square("trace.p_matrix", k)?, factored),
            stage("a", &column(&a), &column(&golden_a), norms_budget),
            stage("b", &column(&b), &column(&golden_b), factored),
            stage("2c", &column(&(c * T::of(2.0))), &column(&golden_2c), factored),
            stage("factor of the score", &column(scale), &column(&golden_scale), factored),
        ])
    }
}
