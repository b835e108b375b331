//! SparseGPT: runs with several settings on one layer.

use ndarray::ArrayView2;

use super::cuts::{Region, decide};
use super::file::{Golden, GoldenError};
use super::stages::cast;
use super::statistics::Gathered;
use crate::backend::Cpu;
use crate::linalg::Scalar;
use crate::reference::{PruneConfig, prune};
use crate::verify::inspect::Inspect;
use crate::verify::report::Stage;

impl<B> Golden<'_, B> {
    pub(super) fn sparsegpt<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let Gathered { mut stages, on_backend, budgets, .. } = self.statistics::<T>(2.0)?;
        let weight = self.file.matrix::<f64>("input.weight")?;
        let exact = Golden { file: self.file, backend: &Cpu, single: Vec::new() };
        let exact = exact.statistics::<f64>(2.0)?.statistics;
        for run in self.runs(".mask") {
            let (sparsity, damping) = self.settings(&run)?;
            let config = PruneConfig { block_size: 32, damping, ..PruneConfig::sparsegpt(sparsity) };
            let prepared = self.backend.prepare(&on_backend, &config, None).map_err(|e| self.refused(e))?;
            let on_path = |mask: Option<ArrayView2<bool>>| {
                self.backend.prune(&prepared, cast::<T, _>(&weight).view(), mask)
            };
            let pruned = on_path(None).map_err(|e| self.refused(e))?;
            let replay = |mask: ArrayView2<bool>| {
                let pruned = on_path(Some(mask))?;
                let decided = decide(pruned.score.view(), &config);
                Ok((pruned, decided))
            };
            let factored = self.factored_budget::<T>(&budgets, damping, weight.ncols())?;
            // The original's scores are not recorded: those of the reference in f64, on the golden path.
            let mask = self.mask_of(&format!("{run}.mask"), weight.dim())?;
            let score = prune::prepare(&exact, &config, None)
                .and_then(|prepared| prepared.prune(weight.view(), Some(mask.view())))
                .map_err(|e| self.refused(e))?
                .score;
            let region = Region::of(&config);
            stages.extend(self.masked_stages(&run, pruned, replay, Some(&score), region, factored)?);
        }
        Ok(stages)
    }
}
