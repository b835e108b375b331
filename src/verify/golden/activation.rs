//! Activation pruning alone: a tensor `<case>.s<percent>` for every `<case>.input`.

use ndarray::{Array2, Array3};

use super::file::{Golden, GoldenError};
use super::stages::{cast, is_f64, values_stage};
use crate::linalg::Scalar;
use crate::reference::activation::check_fraction;
use crate::verify::compare::Processing;
use crate::verify::inspect::Inspect;
use crate::verify::report::Stage;

impl<B> Golden<'_, B> {
    pub(super) fn activation_pruning<T: Scalar>(&self) -> Result<Vec<Stage>, GoldenError>
    where
        B: Inspect<T>,
    {
        let mut stages = Vec::new();
        for name in self.file.names() {
            let Some((case, percent)) = name.split_once(".s") else { continue };
            let p: f64 = percent
                .parse()
                .map_err(|_| self.malformed(format!("tensor `{name}` names no percentage")))?;
            check_fraction("the percentage of a tensor's name", p / 100.0).map_err(|e| self.refused(e))?;
            let input = self.file.cube::<f64>(&format!("{case}.input"))?;
            let golden = self.file.cube::<f64>(name)?;
            self.expect_shape(name, golden.shape(), input.shape())?;
            stages.push(self.pruned_stage::<T>(name, &input, &golden, p / 100.0)?);
        }
        Ok(stages)
    }

    /// Prunes `input` and compares with `golden`, a row per token.
    pub(super) fn pruned_stage<T: Scalar>(
        &self,
        name: &str,
        input: &Array3<f64>,
        golden: &Array3<f64>,
        p: f64,
    ) -> Result<Stage, GoldenError>
    where
        B: Inspect<T>,
    {
        let (sequences, tokens, k) = input.dim();
        let flat = |x: &Array3<f64>| x.to_shape((sequences * tokens, k)).expect("contiguous").to_owned();
        let found: Array2<T> =
            self.backend.pruned_activations(cast(&flat(input)), p).map_err(|e| self.refused(e))?;
        // Entries are kept or zeroed, never computed: only the rounding of the input itself may show, with any backend.
        let budget = if is_f64::<T>() { 0.0 } else { T::UNIT_ROUNDOFF };
        Ok(values_stage(name, found.view(), flat(golden).view(), budget, Processing::Rows))
    }
}
