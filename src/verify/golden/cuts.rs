//! The cuts that a mask makes through its scores, and how far each score lies from its cut.

use ndarray::{Array2, ArrayView2, Axis};

use super::file::{Golden, GoldenError};
use super::stages::is_f64;
use crate::backend::Cpu;
use crate::linalg::Scalar;
use crate::reference::mask::select;
use crate::reference::order::inverse;
use crate::reference::{PruneConfig, Sparsity};
use crate::tensors::TensorFile;
use crate::verify::compare::compare_decisions;
use crate::verify::kind::Kind;
use crate::verify::report::Stage;

/// Which scores one cut runs through: `width` columns (in processing order) of all rows, or of one.
#[derive(Clone, Copy)]
pub(in crate::verify) struct Region {
    pub(super) per_row: bool,
    pub(super) width: usize,
}

impl Region {
    pub(super) fn of(config: &PruneConfig) -> Self {
        match config.weight_sparsity {
            Sparsity::Unstructured(_) => Region { per_row: false, width: config.block_size },
            Sparsity::NofM { m, .. } => Region { per_row: true, width: m },
        }
    }
}

/// A mask, and the scores that it cuts.
pub(in crate::verify) struct Cuts {
    /// n x k, original column order.
    score: Array2<f64>,
    /// n x k, original column order.
    mask: Array2<bool>,
    /// Position to original column (k).
    pub(in crate::verify) order: Vec<usize>,
    region: Region,
    /// The largest score that is pruned in each region: a row per row of scores, or one for all.
    cuts: Array2<f64>,
    /// The largest magnitude of a score.
    largest: f64,
}

impl Cuts {
    /// `score` (n x k, original order) must be on the path of `mask`, so that one flip does not cause the next.
    pub(super) fn new(score: Array2<f64>, mask: Array2<bool>, order: Vec<usize>, region: Region) -> Self {
        let (n, k) = score.dim();
        let rows = if region.per_row { n } else { 1 };
        let mut cuts = Array2::from_elem((rows, k.div_ceil(region.width)), f64::NEG_INFINITY);
        for (position, &column) in order.iter().enumerate() {
            for row in (0..n).filter(|&row| mask[(row, column)]) {
                let cut = &mut cuts[(row % rows, position / region.width)];
                *cut = cut.max(score[(row, column)]);
            }
        }
        let largest = score.iter().fold(f64::MIN_POSITIVE, |m, s| m.max(s.abs()));
        Cuts { score, mask, order, region, cuts, largest }
    }

    /// n and k.
    pub(in crate::verify) fn shape(&self) -> (usize, usize) {
        self.score.dim()
    }

    /// How far the score of an element is from the cut through its region, relative to the largest score of all.
    pub(in crate::verify) fn margin(&self, row: usize, position: usize) -> f64 {
        let cut = self.cuts[(row % self.cuts.nrows(), position / self.region.width)];
        (self.score[(row, self.order[position])] - cut).abs() / self.largest
    }
}

/// The scores and the mask that a DuoGPT file recorded; `None` for any other file.
pub(in crate::verify) fn recorded_cuts(file: &TensorFile) -> Result<Option<Cuts>, GoldenError> {
    let golden = Golden { file, backend: &Cpu, single: Vec::new() };
    if golden.kind() != Some(Kind::DuoGpt) || file.get("trace.score").is_none() {
        return Ok(None);
    }
    let score = file.matrix::<f64>("trace.score")?;
    let mask = golden.mask_of("trace.mask", score.dim())?;
    let order = golden.recorded_order(score.ncols())?.unwrap_or_else(|| (0..score.ncols()).collect());
    let position = inverse(&order);
    let in_original_order = |order: &[usize]| (score.select(Axis(1), order), mask.select(Axis(1), order));
    let (score, mask) = in_original_order(&position);
    Ok(Some(Cuts::new(score, mask, order, Region::of(&golden.config()?))))
}

/// The mask that these scores ask for, block by block (group by group for N:M); both in processing order.
pub(super) fn decide<T: Scalar>(score: ArrayView2<T>, config: &PruneConfig) -> Array2<bool> {
    let mut mask = Array2::from_elem(score.dim(), false);
    for (score, mut mask) in (score.axis_chunks_iter(Axis(1), config.block_size))
        .zip(mask.axis_chunks_iter_mut(Axis(1), config.block_size))
    {
        mask.assign(&select(score, config.weight_sparsity, config.threshold));
    }
    mask
}

/// Holds `decided` (original order) to the mask of `cuts`.
pub(super) fn mask_stage<T: Scalar>(
    name: impl Into<String>,
    decided: &Array2<bool>,
    cuts: &Cuts,
    score_budget: f64,
) -> Stage {
    let budget = (!is_f64::<T>()).then_some(score_budget);
    let margin = |row, position| Some(cuts.margin(row, position));
    Stage::decisions(name, compare_decisions(decided.view(), cuts.mask.view(), &cuts.order, budget, margin))
}
