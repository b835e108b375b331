//! How far pruned linears are from the best weights that their masks allow ([`exact`](crate::reference::exact)).
//!
//! The optimum costs a factorisation for each row, so a sample of the rows stands for the linear. In addition
//! to the method's own statistics, calibration gathers H of the sparse stream and the residual of each sampled row.

use ndarray::{Array2, ArrayView2, Axis};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::linalg::Scalar;
use crate::reference::exact::{Objective, Residual, optimality_gap};
use crate::reference::{PruneError, Statistics};

/// Seed of the choice of rows, so that every method and every run is measured on the same ones.
pub const ROW_SEED: u64 = 0;

/// One linear compared with the best weights for its mask. Errors are the sums over the sampled rows of
/// ||w' X^ - w X~||^2 + lambda ||w' - w||^2, a mean over sequences; lambda = damping * mean(diag H).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Optimality {
    /// error / best_error, 1 at best; null where the best weights leave no error above rounding, and where H of the
    /// kept columns of a row has no factor.
    pub gap: Option<f64>,
    /// The error of the stored weights.
    pub error: f64,
    /// The error of the best weights with the same mask, in the arithmetic of the run.
    pub best_error: Option<f64>,
    /// The damping in both errors.
    pub damping: f64,
    /// Rows measured.
    pub rows: usize,
}

/// The statistics of one group of linears.
pub struct GapMeter<T> {
    statistics: Statistics<T>,
    linears: Vec<Sampled<T>>,
}

/// The sampled rows of one linear.
struct Sampled<T> {
    rows: Vec<usize>,
    /// The rows of the original model (sampled x k).
    weight: Array2<T>,
    residual: Residual<T>,
}

impl<T: Scalar> GapMeter<T> {
    /// For the linears with these weights (each n x k, at least one): `rows` of each, or all if it has no more.
    pub fn new(weights: &[Array2<T>], rows: usize) -> Self {
        let linears = weights.iter().map(|weight| {
            let (n, k) = weight.dim();
            let mut chosen = sample(&mut ChaCha8Rng::seed_from_u64(ROW_SEED), n, rows.min(n)).into_vec();
            chosen.sort_unstable();
            let residual = Residual::new(chosen.len(), k);
            Sampled { weight: weight.select(Axis(0), &chosen), rows: chosen, residual }
        });
        GapMeter { statistics: Statistics::hessian_only(weights[0].ncols()), linears: linears.collect() }
    }

    /// Adds one sequence: its dense and sparse input (tokens x k).
    pub fn update(&mut self, dense: ArrayView2<T>, sparse: ArrayView2<T>) {
        let dx = &dense - &sparse;
        for linear in &mut self.linears {
            linear.residual.update(linear.weight.view(), dx.view(), sparse);
        }
        self.statistics.update(dense, sparse);
    }

    /// Measures every linear: `pruned` holds its weight as stored and what was pruned of it (`true`; both n x k).
    ///
    /// # Errors
    /// [`PruneError`]: shapes that do not fit, values that are not finite.
    pub fn measure<'a>(
        self,
        damping: f64,
        pruned: impl IntoIterator<Item = (&'a Array2<T>, &'a Array2<bool>)>,
    ) -> Result<Vec<Optimality>, PruneError> {
        let objective = Objective::new(self.statistics.hessian, damping)?;
        self.linears
            .iter()
            .zip(pruned)
            .map(|(linear, (weight, mask))| linear.measure(&objective, damping, weight, mask))
            .collect()
    }
}

impl<T: Scalar> Sampled<T> {
    fn measure(
        &self,
        objective: &Objective<T>,
        damping: f64,
        changed: &Array2<T>,
        mask: &Array2<bool>,
    ) -> Result<Optimality, PruneError> {
        let (weight, residual) = (self.weight.view(), &self.residual);
        let mask = mask.select(Axis(0), &self.rows);
        let sum = |errors: ndarray::Array1<T>| errors.iter().map(|e| e.widen()).sum::<f64>();
        let error = |changed: ArrayView2<T>| objective.error(weight, changed, residual).map(sum);

        let found = error(changed.select(Axis(0), &self.rows).view())?;
        let best = match objective.optimal_weights(weight, mask.view(), residual) {
            Ok(best) => Some(error(best.view())?),
            Err(PruneError::Factor(_)) => None,
            Err(error) => return Err(error),
        };
        // What is smaller than this is the rounding of E, a sum over k.
        let rounding = weight.ncols() as f64 * T::UNIT_ROUNDOFF * sum(objective.magnitude(weight, residual)?);
        let above = |error: f64| if error > rounding { error } else { 0.0 };
        let gap = best.map(|best| optimality_gap(above(found), above(best))).filter(|gap| gap.is_finite());
        Ok(Optimality { gap, error: found, best_error: best, damping, rows: self.rows.len() })
    }
}
