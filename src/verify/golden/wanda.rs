//! Wanda: runs with several settings on one layer.

use ndarray::ArrayView2;

use super::budgets::F64_BUDGET;
use super::cuts::Region;
use super::file::{Golden, GoldenError};
use super::stages::{cast, column, is_f64, values_stage};
use crate::linalg::Scalar;
use crate::reference::baseline::wanda::wanda;
use crate::reference::mask::zero_pruned;
use crate::reference::{ChannelNorms, Pruned, Sparsity};
use crate::verify::compare::Processing;
use crate::verify::report::Stage;

impl<B> Golden<'_, B> {
    pub(super) fn wanda<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError> {
        let (dense, _) = self.inputs()?;
        let (sequences, tokens, k) = dense.dim();
        let mut norms = ChannelNorms::<T>::new(k);
        for x in dense.outer_iter() {
            norms.update(cast(&x.to_owned()).view());
        }
        // A sum of squares has no cancellation: its error is relative.
        let budget =
            if is_f64::<T>() { F64_BUDGET } else { (tokens + 3 * sequences + 8) as f64 * T::UNIT_ROUNDOFF };
        let golden = column(&self.vector("stats.scaler_row", k)?);
        let norms_found = column(&norms.square_norms);
        let mut stages = vec![values_stage(
            "statistics: norms",
            norms_found.view(),
            golden.view(),
            budget,
            Processing::Rows,
        )];
        let weight = self.file.matrix::<f64>("input.weight")?;
        for run in self.runs(".mask") {
            let (sparsity, _) = self.settings(&run)?;
            let pruned =
                wanda(cast::<T, _>(&weight).view(), &norms, sparsity).map_err(|e| self.refused(e))?;
            let decided = pruned.mask.clone(); // no score depends on a mask
            let replay = |mask: ArrayView2<bool>| {
                let weight = cast::<T, _>(&weight);
                let score = weight.mapv(T::abs) * &norms.square_norms.mapv(T::sqrt);
                let weight = zero_pruned(weight.view(), mask);
                let replayed = Pruned { weight, mask: mask.to_owned(), score };
                Ok((replayed, decided.clone()))
            };
            let region = match sparsity {
                Sparsity::Unstructured(_) => Region { per_row: true, width: k },
                Sparsity::NofM { m, .. } => Region { per_row: true, width: m },
            };
            stages.extend(self.masked_stages(&run, pruned, replay, None, region, budget)?);
        }
        Ok(stages)
    }
}
