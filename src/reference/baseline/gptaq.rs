//! GPTAQ: Algorithm 1 with q = the nearest point of a grid. With dX = 0 or alpha = 0 it is GPTQ (with [`GridCodes::Offset`], on
//! GPTQ's own grids).
//!
//! # Grids
//! Over the weights of one row, or of `group_size` columns of it, let lo = min(w, 0) and hi = max(w, 0). With b bits
//!
//! | | symmetric | asymmetric |
//! |---|---|---|
//! | scale | max(\|lo\|, hi) / (2^(b-1) - 1) | (hi - lo) / (2^b - 1) |
//! | zero | 0 | round(-lo / scale) |
//! | codes | -2^(b-1) .. 2^(b-1) - 1 | 0 .. 2^b - 1 |
//!
//! and a weight is stored as scale * (code - zero), code = round(w / scale) + zero clamped to the range of the codes.
//! Rounding is to nearest, ties to even. Zero is a point of every grid, so that pruned weights can be stored too.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::linalg::Scalar;
use crate::reference::order::inverse;
use crate::reference::prune::{LoopTrace, Prepared, Pruned, Rounding, check_finite, prepare};
use crate::reference::statistics::Statistics;
use crate::reference::{ConfigError, DeadChannels, PruneConfig, PruneError};

/// How the points of a grid lie around zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Symmetry {
    /// Symmetrically.
    Symmetric,
    /// From the smallest to the largest weight.
    Asymmetric,
}

/// How much of the range of the weights a grid covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GridRange {
    /// All of it.
    Full,
    /// The first of 1, 0.99, ..., 0.21 times the range with the smallest sum of |q - w|^2.4 ("MSE search").
    LeastError,
}

/// Which codes a grid has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GridCodes {
    /// As in the module's text: GPTAQ.
    #[default]
    Signed,
    /// 0 .. 2^b - 1 for symmetric grids too, with the zero at 2^(b-1) and the scale 2 max(\|lo\|, hi) / (2^b - 1). A
    /// row without negative weights keeps lo = 0, so that its largest weights are cut off at 7/15 of the maximum (4
    /// bits). No range is clamped from below: GPTQ.
    Offset,
}

/// On which weights the grid of a group of columns is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupGrids {
    /// As they stand at the turn of the group's first column.
    #[default]
    AtTurn,
    /// As they stood when the block began: the original GPTQ and GPTAQ, whose groups so miss the updates of their block.
    AtBlockStart,
    /// The original weights, dead channels zeroed. A group is then g consecutive columns of the original order, and
    /// known before the loop ("static groups").
    Static,
}

/// Which grids the weights are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridConfig {
    /// Bits per weight, 2 to 16.
    pub bits: u32,
    /// Where the points lie around zero.
    pub symmetry: Symmetry,
    /// How much of the range they cover.
    pub range: GridRange,
    /// `None`: one grid per row, found on the original weights. Weights that the loop moves out of its range are clamped,
    /// and later columns compensate. `Some(g)`: one grid for every g consecutive columns of a row (in processing order;
    /// the last group may be shorter), found on the current weights when its first column is processed.
    pub group_size: Option<usize>,
    /// Which codes they have.
    #[serde(default)]
    pub codes: GridCodes,
    /// On which weights the grids of groups are found.
    #[serde(default)]
    pub group_grids: GroupGrids,
}

impl GridConfig {
    /// One grid per row over the whole range of its weights.
    pub fn new(bits: u32, symmetry: Symmetry) -> Self {
        GridConfig {
            bits,
            symmetry,
            range: GridRange::Full,
            group_size: None,
            codes: GridCodes::Signed,
            group_grids: GroupGrids::AtTurn,
        }
    }

    /// Checks every field, for blocks of `block_size` columns.
    pub(crate) fn check(&self, block_size: usize) -> Result<(), ConfigError> {
        if !(2..=16).contains(&self.bits) {
            return Err(ConfigError::Bits { bits: self.bits });
        }
        match self.group_size {
            Some(0) => Err(ConfigError::NotPositive { what: "group size", value: 0.0 }),
            // The grid of a group that crosses the end of a block would be found on weights that lack that block's
            // lazy update.
            Some(size)
                if self.group_grids == GroupGrids::AtTurn
                    && !size.is_multiple_of(block_size)
                    && !block_size.is_multiple_of(size) =>
            {
                Err(ConfigError::GridGroup { group_size: size, block_size })
            }
            _ => Ok(()),
        }
    }
}

/// From where to where a grid reaches.
struct GridSpan<T> {
    lo: T,
    hi: T,
}

impl<T: Scalar> GridSpan<T> {
    /// The range of the weights as the original tools take it.
    fn of(w: ArrayView1<T>, config: &GridConfig) -> Self {
        let mut lo = w.iter().fold(T::zero(), |lo, &w| lo.min(w));
        let mut hi = w.iter().fold(T::zero(), |hi, &w| hi.max(w));
        match (config.symmetry, config.codes) {
            (Symmetry::Symmetric, GridCodes::Signed) => {
                (lo, hi) = (T::zero(), lo.abs().max(hi).max(T::of(NARROWEST)));
            }
            (Symmetry::Symmetric, GridCodes::Offset) => {
                hi = lo.abs().max(hi);
                if lo < T::zero() {
                    lo = -hi;
                }
            }
            (Symmetry::Asymmetric, _) => {}
        }
        if lo == T::zero() && hi == T::zero() {
            (lo, hi) = (-T::one(), T::one()); // a row of zeros has a grid too
        }
        GridSpan { lo, hi }
    }

    /// The grid over the whole of it.
    fn grid(&self, config: &GridConfig) -> Grid<T> {
        let clamped = (config.symmetry, config.codes) == (Symmetry::Asymmetric, GridCodes::Signed);
        let width = self.hi - self.lo;
        self.over(self.lo, if clamped { width.max(T::of(NARROWEST)) } else { width }, config)
    }

    /// The grid over this share of it, however narrow.
    fn shrunk(&self, share: T, config: &GridConfig) -> Grid<T> {
        self.over(share * self.lo, share * self.hi - share * self.lo, config)
    }

    // ANCHOR: over
    fn over(&self, lo: T, width: T, config: &GridConfig) -> Grid<T> {
        let half = 2f64.powi(config.bits as i32 - 1);
        let (lowest, highest) = match (config.symmetry, config.codes) {
            (Symmetry::Symmetric, GridCodes::Signed) => (-half, half - 1.0),
            _ => (0.0, 2.0 * half - 1.0),
        };
        let scale = width / T::of(highest);
        let zero = match (config.symmetry, config.codes) {
            (Symmetry::Symmetric, GridCodes::Signed) => T::zero(),
            (Symmetry::Symmetric, GridCodes::Offset) => T::of(half),
            (Symmetry::Asymmetric, _) => Scalar::round_ties_even(-lo / scale) + T::zero(), // +0, not -0
        };
        Grid { scale, zero, lowest: T::of(lowest), highest: T::of(highest) }
    }
    // ANCHOR_END: over
}

/// The narrowest range of a signed grid.
const NARROWEST: f64 = 1e-5;

/// The points that the weights of one row, or one group of it, are rounded to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid<T> {
    /// The distance of neighbouring points.
    pub scale: T,
    /// The code of the value 0.
    pub zero: T,
    lowest: T,
    highest: T,
}

impl<T: Scalar> Grid<T> {
    /// The grid for the weights `w`; see the module's text.
    pub fn find(w: ArrayView1<T>, config: &GridConfig) -> Self {
        let range = GridSpan::of(w, config);
        let mut best = range.grid(config);
        if config.range == GridRange::LeastError {
            let mut least = T::infinity();
            for percent in 0..80 {
                let grid = range.shrunk(T::of(1.0 - f64::from(percent) / 100.0), config);
                let error: T = w.iter().map(|&w| (grid.round(w) - w).abs().powf(T::of(2.4))).sum();
                if error < least {
                    (best, least) = (grid, error);
                }
            }
        }
        best
    }

    /// The code of the point nearest to `w`; an integer.
    // ANCHOR: round
    pub fn code(&self, w: T) -> T {
        (Scalar::round_ties_even(w / self.scale) + self.zero).max(self.lowest).min(self.highest)
    }

    /// The point with the given code.
    pub fn value(&self, code: T) -> T {
        self.scale * (code - self.zero)
    }

    /// The point nearest to `w`.
    pub fn round(&self, w: T) -> T {
        self.value(self.code(w))
    }
    // ANCHOR_END: round
}

/// A quantised linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised<T> {
    /// The dequantised weight, and which weights were pruned: none by GPTAQ itself.
    pub pruned: Pruned<T>,
    /// The code of each weight (n x k), original column order. In a replay: the code that the loop would have chosen.
    pub codes: Array2<i32>,
    /// The scales (n x grids per row; groups in *processing* order).
    pub scale: Array2<T>,
    /// The code of zero in each grid (as `scale`).
    pub zero: Array2<T>,
    /// Which of its row's grids each column is rounded to (k), original column order.
    pub grid: Vec<usize>,
    /// W_j at its turn, before rounding (n x k), original column order.
    pub target: Array2<T>,
}

/// Quantises `weight` (n x k) with the statistics of its input.
///
/// `config` has the same meaning as in [`prune`](crate::reference::prune::prune); with [`PruneConfig::gptaq`] it prunes
/// nothing. With a sparsity in it the kept weights are quantised in the same loop: e then carries both errors.
///
/// # Errors
/// As [`prune`](crate::reference::prune::prune), and for invalid grids.
pub fn gptaq<T: Scalar>(
    weight: ArrayView2<T>,
    statistics: &Statistics<T>,
    config: &PruneConfig,
    grids: &GridConfig,
) -> Result<Quantised<T>, PruneError> {
    quantise(&prepare(statistics, config, None)?, weight, grids, None, None)
}

/// [`gptaq`] from its preparation on. `mask` and `codes` (both n x k, original column order) replay the decisions of
/// another run: after one weight that is pruned or rounded differently no later value can be compared.
///
/// # Errors
/// As [`gptaq`].
pub fn quantise<T: Scalar>(
    prepared: &Prepared<T>,
    weight: ArrayView2<T>,
    grids: &GridConfig,
    mask: Option<ArrayView2<bool>>,
    codes: Option<ArrayView2<i32>>,
) -> Result<Quantised<T>, PruneError> {
    run(prepared, weight, grids, mask, codes, None)
}

/// [`quantise`], and what the loop leaves behind besides its result.
///
/// # Errors
/// As [`quantise`].
pub fn quantise_traced<T: Scalar>(
    prepared: &Prepared<T>,
    weight: ArrayView2<T>,
    grids: &GridConfig,
    mask: Option<ArrayView2<bool>>,
    codes: Option<ArrayView2<i32>>,
) -> Result<(Quantised<T>, LoopTrace<T>), PruneError> {
    let mut trace = LoopTrace::new(weight.dim());
    let quantised = run(prepared, weight, grids, mask, codes, Some(&mut trace))?;
    Ok((quantised, trace))
}

fn run<T: Scalar>(
    prepared: &Prepared<T>,
    weight: ArrayView2<T>,
    grids: &GridConfig,
    mask: Option<ArrayView2<bool>>,
    codes: Option<ArrayView2<i32>>,
    trace: Option<&mut LoopTrace<T>>,
) -> Result<Quantised<T>, PruneError> {
    let (n, k) = weight.dim();
    grids.check(prepared.config.block_size)?;
    if let Some(codes) = codes.filter(|codes| codes.dim() != (n, k)) {
        return Err(PruneError::Shape { what: "codes", expected: (n, k), found: codes.dim() });
    }
    check_finite("weight", weight)?;
    let width = grids.group_size.unwrap_or(k).max(1);
    let is_static = grids.group_size.is_some() && grids.group_grids == GroupGrids::Static;
    // The grid of each position: groups lie in processing order, static ones in the original order.
    let grid_at = |position: usize| (if is_static { prepared.order[position] } else { position }) / width;
    let grid: Vec<usize> = (0..k).map(grid_at).collect();
    let known = |row: usize| -> Vec<Grid<T>> {
        if grids.group_size.is_none() {
            return vec![Grid::find(weight.row(row), grids)];
        }
        if !is_static || k != prepared.order.len() {
            return Vec::new();
        }
        let zeroes = prepared.config.dead_channels == DeadChannels::Zero;
        let live =
            |column: usize| if zeroes && prepared.dead[column] { T::zero() } else { weight[(row, column)] };
        let values = Array1::from_shape_fn(k, live);
        values.axis_chunks_iter(Axis(0), width).map(|group| Grid::find(group, grids)).collect()
    };
    let mut rows: Vec<QuantisedRow<T>> = (0..n)
        .into_par_iter()
        .map(|row| QuantisedRow {
            config: grids,
            grids: known(row),
            grid: &grid,
            block: (0, Vec::new()),
            forced: codes.map(|codes| prepared.order.iter().map(|&column| codes[(row, column)]).collect()),
            codes: Vec::with_capacity(k),
            target: Vec::with_capacity(k),
        })
        .collect();
    let pruned = prepared.run(weight, mask, &mut rows, trace)?;

    let position = inverse(&prepared.order);
    let per_row = rows.first().map_or(0, |row| row.grids.len());
    let code = |(row, column): (usize, usize)| {
        let (at, row_of_grids) = (position[column], &rows[row]);
        match pruned.mask[(row, column)] {
            true => row_of_grids.grids[grid[at]].zero.widen() as i32,
            false => row_of_grids.codes[at].widen() as i32,
        }
    };
    Ok(Quantised {
        codes: Array2::from_shape_fn((n, k), code),
        scale: Array2::from_shape_fn((n, per_row), |(row, group)| rows[row].grids[group].scale),
        zero: Array2::from_shape_fn((n, per_row), |(row, group)| rows[row].grids[group].zero),
        target: Array2::from_shape_fn((n, k), |(row, column)| rows[row].target[position[column]]),
        grid: position.iter().map(|&at| grid[at]).collect(),
        pruned,
    })
}

impl<T: Scalar> Quantised<T> {
    /// The distance of neighbouring points at each weight (n x k), original column order.
    pub fn steps(&self) -> Array2<T> {
        Array2::from_shape_fn(self.codes.dim(), |(row, column)| self.scale[(row, self.grid[column])])
    }
}

/// The state of one row in the loop, in processing order.
struct QuantisedRow<'a, T> {
    config: &'a GridConfig,
    /// One for the whole row, those of static groups, or those of the groups that have begun.
    grids: Vec<Grid<T>>,
    /// The grid of each column.
    grid: &'a [usize],
    /// The first column of the current block, and the row from there on as it stood when the block began.
    block: (usize, Vec<T>),
    forced: Option<Vec<i32>>,
    codes: Vec<T>,
    target: Vec<T>,
}

impl<T: Scalar> Rounding<T> for QuantisedRow<'_, T> {
    fn begin_block(&mut self, column: usize, rest: &[T]) {
        if self.config.group_size.is_some() && self.config.group_grids == GroupGrids::AtBlockStart {
            self.block = (column, rest.to_vec());
        }
    }

    fn round(&mut self, column: usize, rest: &[T]) -> T {
        if self.grid[column] == self.grids.len()
            && let Some(size) = self.config.group_size
        {
            let weights = match self.config.group_grids {
                GroupGrids::AtBlockStart => &self.block.1[column - self.block.0..],
                GroupGrids::AtTurn | GroupGrids::Static => rest,
            };
            self.grids.push(Grid::find(ArrayView1::from(&weights[..size.min(weights.len())]), self.config));
        }
        let grid = self.grids[self.grid[column]];
        let code = grid.code(rest[0]);
        self.codes.push(code);
        self.target.push(rest[0]);
        grid.value(self.forced.as_ref().map_or(code, |forced| T::of(f64::from(forced[column]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{ColumnOrder, LazyUpdate, Sparsity, Threshold};
    use approx::{abs_diff_eq, assert_abs_diff_eq};
    use ndarray::{array, s};

    fn config(bits: u32, symmetry: Symmetry) -> GridConfig {
        GridConfig::new(bits, symmetry)
    }

    /// A layer without ties, X^ 50 % sparse by position.
    fn layer() -> (Array2<f64>, Statistics<f64>) {
        let wave = |i: usize, j: usize| ((i * 37 + j * 101) as f64 * 0.7).sin() * (1.0 + (j % 5) as f64);
        let mut statistics = Statistics::with_residual(24);
        for sequence in 0..3 {
            let dense = Array2::from_shape_fn((40, 24), |(i, j)| wave(i + 40 * sequence, j));
            let sparse = Array2::from_shape_fn((40, 24), |(i, j)| match (i * 7 + j * 3) % 2 {
                0 => dense[(i, j)],
                _ => 0.0,
            });
            statistics.update(dense.view(), sparse.view());
        }
        (Array2::from_shape_fn((6, 24), |(i, j)| ((i * 24 + j) as f64 * 1.3).cos()), statistics)
    }

    fn steps() -> PruneConfig {
        PruneConfig { block_size: 8, ..PruneConfig::gptaq() }
    }

    #[test]
    fn grids_done_by_hand() {
        let w = array![-1.0f64, 0.25, 3.0];
        let symmetric = Grid::find(w.view(), &config(3, Symmetry::Symmetric)); // codes -4 .. 3, step 1
        assert_eq!((symmetric.scale, symmetric.zero), (1.0, 0.0));
        // Ties go to the even neighbour; what lies outside, to the end.
        let rounded = array![0.5, 1.5, 2.5, -0.5, -3.6, -9.0, 9.0].mapv(|w| symmetric.round(w));
        assert_eq!(rounded, array![0.0, 2.0, 2.0, 0.0, -4.0, -4.0, 3.0]);
        assert_eq!(symmetric.round(-0.2).to_bits(), 0.0f64.to_bits());
        let asymmetric = Grid::find(w.view(), &config(2, Symmetry::Asymmetric)); // codes 0 .. 3, step 4/3
        assert_eq!((asymmetric.scale, asymmetric.zero), (4.0 / 3.0, 1.0));
        assert_eq!(
            array![-9.0, -0.7, 0.0, 0.7, 9.0].mapv(|w| asymmetric.code(w)),
            array![0.0, 0.0, 1.0, 2.0, 3.0]
        );
        // Of one sign: the range still begins at zero.
        let positive = Grid::find(array![2.0f64, 3.0].view(), &config(2, Symmetry::Asymmetric));
        assert_eq!((positive.scale, positive.zero.to_bits()), (1.0, 0.0f64.to_bits())); // not -0
        // -1 is the code -3 of the full range and -4 of three quarters of it: without an error in both, the first stays.
        let search = GridConfig { range: GridRange::LeastError, ..config(3, Symmetry::Symmetric) };
        assert_eq!(Grid::find(array![-1.0f64].view(), &search).scale, 1.0 / 3.0);
    }

    #[test]
    fn zero_is_a_point_of_every_grid() {
        let rows =
            [array![0.0f64, 0.0], array![5e-324, 0.0], array![1e300, -1e-300], array![-0.3, 0.7], array![]];
        for (row, symmetry) in rows.iter().flat_map(|r| [(r, Symmetry::Symmetric), (r, Symmetry::Asymmetric)])
        {
            for bits in [2, 4, 16] {
                let grid = Grid::find(row.view(), &config(bits, symmetry));
                assert!(grid.scale > 0.0 && grid.scale.is_finite());
                assert_eq!(grid.round(0.0).to_bits(), 0.0f64.to_bits(), "{row} {symmetry:?} {bits}");
            }
        }
    }

    #[test]
    fn the_search_tries_every_hundredth_down_to_a_fifth_and_takes_the_first_best() {
        let search = |symmetry| GridConfig { range: GridRange::LeastError, ..config(3, symmetry) };
        // The more other weights there are, the more of an outlier's range it pays to give up.
        for (others, outlier, least, most) in [(200, 0.5, 0, 40), (200, 3.0, 41, 78), (20_000, 8.0, 79, 79)] {
            let mut w = Array1::from_shape_fn(others, |i| (i as f64 * 0.37).sin());
            w[7] = outlier;
            let range = w.iter().fold(0.0f64, |m, w| m.max(w.abs()));
            let error = |percent: usize| -> f64 {
                let scale = (1.0 - percent as f64 / 100.0) * range / 3.0;
                w.iter().map(|w| ((w / scale).round().clamp(-4.0, 3.0) * scale - w).abs().powf(2.4)).sum()
            };
            let best = (0..80).fold(0, |best, i| if error(i) < error(best) { i } else { best });
            assert!((least..=most).contains(&best), "{best} for {outlier}");
            let found = Grid::find(w.view(), &search(Symmetry::Symmetric)).scale;
            let expected = (1.0 - best as f64 / 100.0) * range / 3.0;
            assert_abs_diff_eq!(found, expected, epsilon = 4.0 * f64::EPSILON * expected);
        }
        // Nothing but zeros: every grid is without error, and the first is the whole range.
        let zeros = array![0.0, 0.0];
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
            assert_eq!(
                Grid::find(zeros.view(), &search(symmetry)),
                Grid::find(zeros.view(), &config(3, symmetry))
            );
        }
    }

    #[test]
    fn every_weight_is_the_grid_point_of_its_code_and_nearest_to_its_target() {
        let (weight, statistics) = layer();
        for (group_size, order) in
            [(None, ColumnOrder::Hessian), (Some(4), ColumnOrder::Natural), (Some(16), ColumnOrder::Natural)]
        {
            let grids = GridConfig { group_size, ..config(4, Symmetry::Asymmetric) };
            let steps = PruneConfig { column_order: order, ..steps() };
            let found = gptaq(weight.view(), &statistics, &steps, &grids).unwrap();
            assert_eq!(found.scale.dim(), (6, 24usize.div_ceil(group_size.unwrap_or(24))));
            let stepped = found.steps();
            assert!(found.pruned.mask.iter().all(|pruned| !pruned));
            for ((i, j), &q) in found.pruned.weight.indexed_iter() {
                let group = j / group_size.unwrap_or(24);
                let (scale, zero) = (found.scale[(i, group)], found.zero[(i, group)]);
                assert_eq!(stepped[(i, j)], scale);
                let code = found.codes[(i, j)];
                assert!((0..16).contains(&code));
                assert_eq!(q, scale * (f64::from(code) - zero));
                let outside = code == 0 || code == 15;
                let half_a_step = scale * (0.5 + 1e-12);
                assert!(outside || abs_diff_eq!(q, found.target[(i, j)], epsilon = half_a_step));
            }
        }
    }

    #[test]
    fn groups_see_the_weights_as_they_stand_whatever_the_blocks() {
        let (weight, statistics) = layer();
        // Compensated: what feeds D does not depend on the blocks, so nothing may.
        let run = |block_size, group| {
            let steps = PruneConfig { block_size, lazy_update: LazyUpdate::Compensated, ..steps() };
            let grids = GridConfig { group_size: Some(group), ..config(4, Symmetry::Symmetric) };
            gptaq(weight.view(), &statistics, &steps, &grids).unwrap()
        };
        for group in [1, 4, 8, 16, 24, 48] {
            let whole = run(48, group);
            for block_size in [1, 2, 4, 8] {
                if group % block_size != 0 && block_size % group != 0 {
                    continue;
                }
                let blocked = run(block_size, group);
                assert_eq!(blocked.codes, whole.codes, "blocks of {block_size}, groups of {group}");
                // Sums of at most 2 * 24 products of numbers below 4, in another order, through 24 columns.
                let tolerance = 24.0 * 48.0 * 16.0 * f64::EPSILON;
                assert_abs_diff_eq!(blocked.scale, whole.scale, epsilon = tolerance);
            }
        }
        // Grids of the original weights would be others.
        let first = Grid::find(weight.slice(s![0, 8..16]), &config(4, Symmetry::Symmetric));
        assert_ne!(run(8, 8).scale[(0, 1)], first.scale);
        assert_eq!(
            run(8, 8).scale[(0, 0)],
            Grid::find(weight.slice(s![0, ..8]), &config(4, Symmetry::Symmetric)).scale
        );
    }

    #[test]
    fn alpha_zero_is_gptq() {
        let (weight, statistics) = layer();
        let grids = config(4, Symmetry::Symmetric);
        let without = Statistics { residual: None, ..statistics.clone() };
        let gptq = gptaq(weight.view(), &without, &steps(), &grids).unwrap();
        let mut steps = steps();
        assert_ne!(gptaq(weight.view(), &statistics, &steps, &grids).unwrap().codes, gptq.codes);
        steps.alpha.update = 0.0;
        assert_eq!(gptaq(weight.view(), &statistics, &steps, &grids).unwrap().codes, gptq.codes);
    }

    #[test]
    fn pruning_and_quantising_in_one_loop() {
        let (weight, statistics) = layer();
        let steps = PruneConfig {
            block_size: 8,
            threshold: Threshold::Exact,
            ..PruneConfig::upstream(Sparsity::Unstructured(0.5))
        };
        for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
            let grids = GridConfig { group_size: Some(8), ..config(4, symmetry) };
            let found = gptaq(weight.view(), &statistics, &steps, &grids).unwrap();
            assert_eq!(found.pruned.mask.iter().filter(|pruned| **pruned).count(), 6 * 24 / 2);
            let position = inverse(&prepare(&statistics, &steps, None).unwrap().order);
            for ((i, j), &pruned) in found.pruned.mask.indexed_iter() {
                if pruned {
                    assert_eq!(found.pruned.weight[(i, j)].to_bits(), 0);
                    assert_eq!(f64::from(found.codes[(i, j)]), found.zero[(i, position[j] / 8)]);
                }
            }
        }
        // On a fine grid it is pruning alone, up to half a step at each of 24 columns.
        let grids = config(16, Symmetry::Asymmetric);
        let fine = gptaq(weight.view(), &statistics, &steps, &grids).unwrap();
        let alone = crate::reference::prune::prune(weight.view(), &statistics, &steps).unwrap();
        assert_eq!(fine.pruned.mask, alone.mask);
    }

    #[test]
    fn a_replay_goes_on_with_the_given_codes_and_still_decides() {
        let (weight, statistics) = layer();
        let (steps, grids) = (steps(), config(4, Symmetry::Asymmetric));
        let prepared = prepare(&statistics, &steps, None).unwrap();
        let run =
            |codes: Option<ArrayView2<i32>>| quantise(&prepared, weight.view(), &grids, None, codes).unwrap();
        let free = run(None);
        assert_eq!(run(Some(free.codes.view())), free);
        let mut other = free.codes.clone();
        other[(2, 5)] += 1;
        let replayed = run(Some(other.view()));
        assert_eq!(replayed.codes[(2, 5)], free.codes[(2, 5)]);
        assert_eq!(replayed.target.slice(s![2, ..=5]), free.target.slice(s![2, ..=5]));
        let step = replayed.pruned.weight[(2, 5)] - free.pruned.weight[(2, 5)];
        assert_abs_diff_eq!(step, free.scale[(2, 0)], epsilon = 16.0 * f64::EPSILON * free.scale[(2, 0)]);
        assert_ne!(replayed.target.slice(s![2, 6..]), free.target.slice(s![2, 6..]));
        assert_eq!(replayed.target.row(1), free.target.row(1));
    }

    #[test]
    fn senseless_grids_are_refused() {
        let (weight, statistics) = layer();
        let refused = |grids| match gptaq(weight.view(), &statistics, &steps(), &grids) {
            Err(PruneError::Config(error)) => error,
            other => panic!("{other:?}"),
        };
        for bits in [0, 1, 17, u32::MAX] {
            assert_eq!(refused(config(bits, Symmetry::Symmetric)), ConfigError::Bits { bits });
        }
        let grouped = |size| GridConfig { group_size: Some(size), ..config(4, Symmetry::Symmetric) };
        assert_eq!(refused(grouped(0)), ConfigError::NotPositive { what: "group size", value: 0.0 });
        assert_eq!(refused(grouped(12)), ConfigError::GridGroup { group_size: 12, block_size: 8 });
        let no_rows = gptaq(Array2::zeros((0, 24)).view(), &statistics, &steps(), &grouped(8)).unwrap();
        assert_eq!(no_rows.codes.dim(), (0, 24));
    }
}
