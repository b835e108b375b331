//! The stages of the statistics, which every second-order method begins with.

use ndarray::Array2;

use super::budgets::Budgets;
use super::file::{Golden, GoldenError};
use super::stages::{cast, column};
use crate::linalg::Scalar;
use crate::reference::Statistics;
use crate::verify::compare::Processing;
use crate::verify::inspect::Inspect;
use crate::verify::report::Stage;

/// The statistics of a file's input.
pub(super) struct Gathered<T, S> {
    /// How they compare.
    pub(super) stages: Vec<Stage>,
    /// Where the backend has them.
    pub(super) on_backend: S,
    /// A copy.
    pub(super) statistics: Statistics<T>,
    pub(super) budgets: Budgets,
}

impl<B> Golden<'_, B> {
    /// The running statistics, compared; then as computed. `scale` is the factor that the recorded ones carry.
    pub(super) fn statistics<T: Scalar>(&self, scale: f64) -> Result<Gathered<T, B::Statistics>, GoldenError>
    where
        B: Inspect<T>,
    {
        let (dense, sparse) = self.inputs()?;
        let (_, tokens, k) = dense.dim();
        let with_residual = self.file.get("stats.dxxt").is_some();
        let mut gathered = self.backend.statistics(k, with_residual);
        for (dense, sparse) in dense.outer_iter().zip(sparse.outer_iter()) {
            let (dense, sparse) = (cast(&dense.to_owned()), cast(&sparse.to_owned()));
            self.backend.update(&mut gathered, dense.view(), sparse.view());
        }
        let statistics = self.backend.read_statistics(&gathered).map_err(|e| self.refused(e))?;
        let budgets = self.budgets::<T>(&dense, &sparse, tokens)?;

        let mut stages = Vec::new();
        let mut stage = |name: &str, found: Array2<T>, expected: Array2<f64>, budget: f64| {
            stages.push(self.values_stage(name, found.view(), expected.view(), budget, Processing::Rows));
        };
        let hessian = self.square("stats.hessian", k)?;
        stage("statistics: H", &statistics.hessian * T::of(scale), hessian, budgets.hessian);
        if let Some(residual) = &statistics.residual {
            let dxxt = self.square("stats.dxxt", k)?;
            stage("statistics: dX X^T", &residual.dxxt * T::of(scale), dxxt, budgets.dxxt);
            if self.file.get("stats.dxdxt").is_some() {
                let dxdxt = self.vector("stats.dxdxt", k)?;
                stage(
                    "statistics: diag dX dX^T",
                    column(&residual.square_norms),
                    column(&dxdxt),
                    budgets.square_norms,
                );
            }
        }
        Ok(Gathered { stages, on_backend: gathered, statistics, budgets })
    }
}
