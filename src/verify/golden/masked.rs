//! The stages that the runs of SparseGPT and Wanda share: score, mask, weight.

use ndarray::{Array2, ArrayView2};

use super::cuts::{Cuts, Region, mask_stage};
use super::file::{Golden, GoldenError};
use super::stages::is_f64;
use crate::backend::BackendError;
use crate::linalg::Scalar;
use crate::reference::Pruned;
use crate::verify::compare::Processing;
use crate::verify::report::Stage;

impl<B> Golden<'_, B> {
    pub(super) fn masked_stages<T: Scalar>(
        &self,
        run: &str,
        mut pruned: Pruned<T>,
        replay: impl Fn(ArrayView2<bool>) -> Result<(Pruned<T>, Array2<bool>), BackendError>,
        exact_score: Option<&Array2<f64>>,
        region: Region,
        budget: f64,
    ) -> Result<Vec<Stage>, GoldenError> {
        let shape = pruned.weight.dim();
        let natural: Vec<usize> = (0..shape.1).collect();
        let golden_mask = self.mask_of(&format!("{run}.mask"), shape)?;
        let mut decided = pruned.mask.clone();
        if decided != golden_mask {
            (pruned, decided) = replay(golden_mask.view()).map_err(|e| self.refused(e))?;
        }
        let columns = Processing::Columns(&natural);
        let compared = exact_score.filter(|_| !is_f64::<T>()).map(|exact| {
            let name = format!("{run}: score (f64 reference)");
            self.values_stage(&name, pruned.score.view(), exact.view(), budget, columns)
        });
        let margin = self.margin(budget, &compared);
        // Margins are our own, under the golden mask.
        let score = pruned.score.mapv(|s| s.widen());
        let cuts = Cuts::new(score, golden_mask, natural.clone(), region);
        let mask = mask_stage::<T>(format!("{run}: mask"), &decided, &cuts, margin);
        let golden = self.matrix_of(&format!("{run}.weight"), shape)?;
        let name = format!("{run}: weight");
        let weight = self.values_stage(&name, pruned.weight.view(), golden.view(), budget, columns);
        Ok(compared.into_iter().chain([mask, weight]).collect())
    }
}
