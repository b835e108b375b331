//! The cuts of a mask: in each region the largest pruned score, and how far each score lies from it.

use ndarray::Array2;

use super::budgets::recorded_order;
use super::case::Case;
use crate::reference::Sparsity;
use crate::verify::kind::Kind;

/// A mask, and the scores that it cuts; all in processing order.
pub(in crate::verify) struct Cuts {
    /// n x k.
    score: Array2<f64>,
    /// Position to original column (k).
    pub(in crate::verify) order: Vec<usize>,
    /// The region of each column (k): one cut runs through the scores of a region, in all rows or in one.
    region: Vec<usize>,
    /// The largest score that is pruned in each region: a row per row of scores, or one for all.
    cuts: Array2<f64>,
    /// The largest magnitude of a score.
    largest: f64,
}

impl Cuts {
    /// `score` (n x k) must be on the path of `mask`, so that one flip does not cause the next.
    fn new(
        score: Array2<f64>,
        mask: &Array2<bool>,
        order: Vec<usize>,
        region: Vec<usize>,
        per_row: bool,
    ) -> Self {
        let rows = if per_row { score.nrows().max(1) } else { 1 };
        let regions = region.last().map_or(0, |last| last + 1);
        let mut cuts = Array2::from_elem((rows, regions), f64::NEG_INFINITY);
        for ((row, column), _) in mask.indexed_iter().filter(|(_, pruned)| **pruned) {
            let cut = &mut cuts[(row % rows, region[column])];
            *cut = cut.max(score[(row, column)]);
        }
        let largest = score.iter().fold(f64::MIN_POSITIVE, |m, s| m.max(s.abs()));
        Cuts { score, order, region, cuts, largest }
    }

    /// The cuts that a case records; `None` where it has no scores, or no mask.
    pub(in crate::verify) fn recorded(case: &Case) -> Option<Self> {
        let score = case.tensors.get("trace.score").or_else(|| case.tensors.get("trace.metric"))?;
        Self::through(case, score.values.clone())
    }

    /// The cuts of the recorded mask through other scores on its path.
    pub(super) fn through(case: &Case, score: Array2<f64>) -> Option<Self> {
        let mask = case.tensors.get("trace.mask")?.values.mapv(|pruned| pruned != 0.0);
        let settings = &case.document.settings;
        let k = mask.ncols();
        let sparsity = settings.sparsity().ok();
        // Groups are counted from the start of each block; without blocks, from that of the layer.
        let block = settings.block_size.unwrap_or(k).max(1);
        let (width, per_row) = match sparsity {
            Some(Sparsity::NofM { m, .. }) => (m.max(1), true),
            _ => (block, case.document.algorithm == Kind::Wanda),
        };
        let groups = block.div_ceil(width);
        let region = (0..k).map(|at| at / block * groups + at % block / width).collect();
        let order = recorded_order(case).unwrap_or_else(|| (0..k).collect());
        (score.dim() == mask.dim()).then(|| Cuts::new(score, &mask, order, region, per_row))
    }

    /// n and k.
    pub(in crate::verify) fn shape(&self) -> (usize, usize) {
        self.score.dim()
    }

    /// How far a score is from the cut through its region, relative to the largest score of all.
    pub(in crate::verify) fn margin(&self, row: usize, position: usize) -> f64 {
        let cut = self.cuts[(row % self.cuts.nrows(), self.region[position])];
        (self.score[(row, position)] - cut).abs() / self.largest
    }
}
