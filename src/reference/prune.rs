//! Algorithm 1: blocks of columns, the loop over a block's columns, and the lazy update of the rest.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut1, Axis, Zip, s};
use rayon::prelude::*;

use super::factor::{self, damp, dead_channels, revive_dead_channels};
use super::mask::{Sparsity, lowest, lowest_per_group};
use super::order::inverse;
use super::score::{Correction, score, score_scale};
use super::statistics::{ResidualStatistics, Statistics};
use super::{
    ColumnOrder, ConfigError, DeadChannels, ExistingZeros, FailedFactor, LazyUpdate, NarrowGroups,
    PruneConfig, PruneError, Threshold,
};
use crate::linalg::{Scalar, gemm};

/// All that Algorithm 1 needs besides the weights, in processing order. The linears that share an input share it.
#[derive(Clone, Debug)]
pub struct Prepared<T> {
    /// The settings that it was prepared with, and that the loop follows.
    pub config: PruneConfig,
    /// Position to original column (k).
    pub order: Vec<usize>,
    /// Dead channels, by original column (k).
    pub dead: Vec<bool>,
    /// L^T (k x k, upper): the layout in which the loop walks along rows.
    pub lt: Array2<T>,
    /// The residual correction; `None` makes the loop SparseGPT's.
    pub correction: Option<Correction<T>>,
    /// The factor of W^2 in the score (k).
    pub score_scale: Array1<T>,
}

/// A pruned linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned<T> {
    /// The new weight (n x k), original column order; a pruned weight is +0.
    pub weight: Array2<T>,
    /// `true` = pruned (n x k), original column order.
    pub mask: Array2<bool>,
    /// S as it was compared (n x k), *processing* order: per block, or per group for N:M, on the weights at that
    /// moment.
    pub score: Array2<T>,
}

/// Prunes one linear layer: `weight` (n x k) with the statistics of its input (k channels).
///
/// # Errors
/// [`PruneError`]: shapes that do not fit, values that are not finite, settings out of range, or a Hessian that has
/// no Cholesky factor.
pub fn prune<T: Scalar>(
    weight: ArrayView2<T>,
    statistics: &Statistics<T>,
    config: &PruneConfig,
) -> Result<Pruned<T>, PruneError> {
    prepare(statistics, config, None)?.prune(weight, None)
}

/// The part of Algorithm 1 that does not depend on W, in the original code's order: dead channels, permutation,
/// damping, factor, correction.
///
/// `order` (k, position to original column) replays the processing order of another run instead of finding one.
///
/// # Errors
/// As [`prune`], and an `order` that is not a permutation.
pub fn prepare<T: Scalar>(
    statistics: &Statistics<T>,
    config: &PruneConfig,
    order: Option<&[usize]>,
) -> Result<Prepared<T>, PruneError> {
    let k = statistics.channels();
    config.check(k)?;
    let Ordered { mut hessian, residual, order, dead } = in_processing_order(statistics, config, order)?;
    let l = factor::check_finite("Hessian", &hessian)
        .and_then(|()| {
            damp_as_configured(&mut hessian, config); // the mean of the diagonal would spread what is not finite
            factor::factor(hessian)
        })
        .or_else(|error| match config.dialect.failed_factor {
            FailedFactor::Stop => Err(error.in_original_order(&order)),
            FailedFactor::Identity => Ok(Array2::eye(k)),
        })?;
    let correction = residual.map(|residual| Correction::new(&residual, l.view()));
    let with_alpha = correction.as_ref().map(|c| (&c.coefficients, config.alpha.score));
    let score_scale = score_scale(l.view(), with_alpha);
    if let Some((column, _)) = score_scale.indexed_iter().find(|(_, s)| !s.is_finite()) {
        return Err(PruneError::NotFinite { what: "score", row: 0, column: order[column] });
    }
    let lt = l.t().as_standard_layout().into_owned();
    Ok(Prepared { config: *config, order, dead, lt, correction, score_scale })
}

/// The statistics in processing order, before damping.
pub(crate) struct Ordered<T> {
    /// H (k x k), dead channels revived.
    pub hessian: Array2<T>,
    /// The statistics of dX, where they were gathered.
    pub residual: Option<ResidualStatistics<T>>,
    /// Position to original column (k).
    pub order: Vec<usize>,
    /// Dead channels, by original column (k): none where another linear marked them in this H before.
    pub dead: Vec<bool>,
}

/// Revives dead channels, finds the order (or takes the forced one), and permutes the statistics by it.
pub(crate) fn in_processing_order<T: Scalar>(
    statistics: &Statistics<T>,
    config: &PruneConfig,
    forced: Option<&[usize]>,
) -> Result<Ordered<T>, PruneError> {
    let scale = T::of(config.hessian_scale);
    let mut hessian = &statistics.hessian * scale;
    let mut dead = dead_channels(&hessian);
    revive_dead_channels(&mut hessian, &dead);
    if config.dialect.group_member > 0 {
        dead.fill(false);
    }
    let order = match forced {
        Some(order) => checked_order(order, dead.len())?,
        None => {
            let dxxt = statistics.residual.as_ref().map(|residual| (&residual.dxxt.diag() * scale).to_vec());
            config.column_order.permutation(&hessian.diag().to_vec(), dxxt.as_deref(), config.block_size)?
        }
    };
    if order.iter().enumerate().any(|(position, &column)| position != column) {
        hessian = permute_both(hessian.view(), &order);
    }
    let residual = statistics.residual.as_ref().map(|residual| ResidualStatistics {
        dxxt: permute_both(residual.dxxt.view(), &order) * scale,
        square_norms: residual.square_norms.select(Axis(0), &order) * scale,
    });
    Ok(Ordered { hessian, residual, order, dead })
}

/// Damps H, in natural order once more for every linear that worked on it before; another order works on a copy.
/// Returns what was added to the diagonal.
pub(crate) fn damp_as_configured<T: Scalar>(hessian: &mut Array2<T>, config: &PruneConfig) -> T {
    let before = match config.column_order {
        ColumnOrder::Natural => config.dialect.group_member,
        _ => 0,
    };
    (0..=before).map(|_| damp(hessian, config.damping)).sum()
}

/// The columns in another order, row-major.
fn select_columns<A: Copy>(a: ArrayView2<A>, order: &[usize]) -> Array2<A> {
    Array2::from_shape_fn(a.raw_dim(), |(i, j)| a[(i, order[j])])
}

fn permute_both<T: Scalar>(a: ArrayView2<T>, order: &[usize]) -> Array2<T> {
    Array2::from_shape_fn(a.raw_dim(), |(i, j)| a[(order[i], order[j])])
}

pub(crate) fn checked_order(order: &[usize], k: usize) -> Result<Vec<usize>, ConfigError> {
    let mut seen = vec![false; k];
    let fits = order.len() == k && order.iter().all(|&c| c < k && !std::mem::replace(&mut seen[c], true));
    if fits { Ok(order.to_vec()) } else { Err(ConfigError::NotAPermutation { k }) }
}

impl<T: Scalar> Prepared<T> {
    /// Prunes one linear (n x k) whose input the preparation describes.
    ///
    /// `mask` (n x k, original column order, `true` = pruned) replays the decisions of another run: no comparison of
    /// values survives a flipped mask bit. Scores are still computed.
    ///
    /// # Errors
    /// As [`prune`], and a mask of another shape.
    pub fn prune(
        &self,
        weight: ArrayView2<T>,
        mask: Option<ArrayView2<bool>>,
    ) -> Result<Pruned<T>, PruneError> {
        self.run(weight, mask, &mut vec![Unrounded; weight.nrows()], None)
    }

    /// [`prune`](Self::prune), and what the loop leaves behind besides its result.
    ///
    /// # Errors
    /// As [`prune`](Self::prune).
    pub fn prune_traced(
        &self,
        weight: ArrayView2<T>,
        mask: Option<ArrayView2<bool>>,
    ) -> Result<(Pruned<T>, LoopTrace<T>), PruneError> {
        let mut trace = LoopTrace::new(weight.dim());
        let pruned = self.run(weight, mask, &mut vec![Unrounded; weight.nrows()], Some(&mut trace))?;
        Ok((pruned, trace))
    }

    /// Algorithm 1, the kept weights rounded by `rounding` (n, one for each row).
    pub(crate) fn run<R: Rounding<T>>(
        &self,
        weight: ArrayView2<T>,
        forced_mask: Option<ArrayView2<bool>>,
        rounding: &mut [R],
        mut trace: Option<&mut LoopTrace<T>>,
    ) -> Result<Pruned<T>, PruneError> {
        let config = &self.config;
        let (n, k) = weight.dim();
        let channels = self.order.len();
        if k != channels {
            return Err(PruneError::Shape { what: "weight", expected: (n, channels), found: (n, k) });
        }
        if let Some(mask) = forced_mask.filter(|mask| mask.dim() != (n, k)) {
            return Err(PruneError::Shape { what: "mask", expected: (n, k), found: mask.dim() });
        }
        check_finite("weight", weight)?;

        let mut w = select_columns(weight, &self.order);
        if config.dead_channels == DeadChannels::Zero {
            for (position, &column) in self.order.iter().enumerate() {
                if self.dead[column] {
                    w.column_mut(position).fill(T::zero());
                }
            }
        }
        let preserved = match config.dialect.existing_zeros {
            ExistingZeros::Ignore => None,
            ExistingZeros::Preserve => Some(w.mapv(|w| w == T::zero())),
        };
        let forced = forced_mask.map(|mask| select_columns(mask, &self.order));
        let mut mask = forced.clone().unwrap_or_else(|| Array2::from_elem((n, k), false));
        let mut scores = Array2::zeros((n, k));
        let mut rounding: Array1<(usize, &mut R)> = rounding.iter_mut().enumerate().collect();

        // ANCHOR: blocks
        for start in (0..k).step_by(config.block_size) {
            let end = (start + config.block_size).min(k);
            let block = Block::new(self, start..end);
            let columns = s![.., start..end];
            let zeros = preserved.as_ref().map(|preserved| preserved.slice(columns));

            let mut hidden = None; // the weights without a score in N:M
            if let Sparsity::Unstructured(p) = config.weight_sparsity {
                let mut score = score(w.slice(columns), block.score_scale);
                let selected = match zeros {
                    Some(zeros) => Some(extend_zeros(&mut score, zeros, p, config.threshold)),
                    // A forced mask needs no selection but for the trace.
                    None if forced.is_some() && trace.is_none() => None,
                    None => Some(config.threshold.select(score.view(), p)),
                };
                if let Some(selected) = selected {
                    if forced.is_none() {
                        mask.slice_mut(columns).assign(&selected);
                    }
                    if let Some(trace) = &mut trace {
                        trace.decided.slice_mut(columns).assign(&selected);
                    }
                }
                scores.slice_mut(columns).assign(&score);
            } else if let Some(zeros) = zeros {
                if forced.is_none() {
                    mask.slice_mut(columns).assign(&zeros);
                }
                hidden = Some(if start == 0 {
                    zeros.to_owned()
                } else {
                    mask.slice(s![.., ..end - start]).to_owned()
                });
            }

            let mut e = Array2::zeros((n, end - start)); // E: what each pruning leaves to compensate
            let mut compensated = Array2::zeros((n, end - start)); // W_j at its turn, before pruning
            let free = forced.is_none();
            Zip::from(w.slice_mut(s![.., start..]).rows_mut())
                .and(mask.slice_mut(columns).rows_mut())
                .and(scores.slice_mut(columns).rows_mut())
                .and(e.rows_mut())
                .and(compensated.rows_mut())
                .and(&mut rounding)
                .par_for_each(|w, mask, score, e, compensated, (row, rounding)| {
                    let hidden = hidden.as_ref().map(|hidden| hidden.row(*row));
                    let (w, mask, score) = (contiguous(w), contiguous(mask), contiguous(score));
                    let (e, compensated) = (contiguous(e), contiguous(compensated));
                    block.prune_row(Row { w, mask, score, hidden, e, compensated }, free, *rounding);
                });

            // Lazy update of the columns to the right.
            let (left, mut rest) = w.view_mut().split_at(Axis(1), end);
            gemm(-1.0, e.view(), self.lt.slice(s![start..end, end..]), 1.0, rest.view_mut());
            if let Some(correction) = &self.correction {
                let carried = match config.lazy_update {
                    LazyUpdate::Pruned => left.slice(columns),
                    LazyUpdate::Compensated => compensated.view(),
                };
                let d = correction.d.slice(s![start..end, end..]);
                gemm(config.alpha.update, carried, d, 1.0, rest.view_mut());
            }
            if let Some(preserved) = &preserved {
                let zeros = preserved.slice(s![.., end..]);
                Zip::from(&mut rest).and(&zeros).for_each(|w, &zero| {
                    if zero {
                        *w = T::zero()
                    }
                });
            }
            if let Some(trace) = &mut trace {
                if let Sparsity::NofM { n, m } = config.weight_sparsity {
                    let decided = lowest_per_group(scores.slice(columns), m, n, config.dialect.narrow_groups);
                    trace.decided.slice_mut(columns).assign(&decided);
                    if let Some(zeros) = zeros {
                        Zip::from(trace.decided.slice_mut(columns))
                            .and(zeros)
                            .for_each(|d, &zero| *d |= zero);
                    }
                }
                trace.errors.slice_mut(columns).assign(&e);
                trace.block_weights.push(w.clone());
            }
        }
        // ANCHOR_END: blocks

        check_finite("pruned weight", w.view())?;
        let position = inverse(&self.order);
        Ok(Pruned {
            weight: select_columns(w.view(), &position),
            mask: select_columns(mask.view(), &position),
            score: scores,
        })
    }
}

/// The mask of a block whose zeros stay: they alone, if they are enough, else the lowest scores besides. Leaves 0 for
/// every score that was not compared.
fn extend_zeros<T: Scalar>(
    score: &mut Array2<T>,
    zeros: ArrayView2<bool>,
    p: f64,
    threshold: Threshold,
) -> Array2<bool> {
    let wanted = (score.len() as f64 * p).floor() as usize;
    if wanted <= zeros.iter().filter(|zero| **zero).count() {
        score.fill(T::zero());
        return zeros.to_owned();
    }
    Zip::from(&mut *score).and(zeros).for_each(|score, &zero| {
        if zero {
            *score = T::zero()
        }
    });
    threshold.select(score.view(), p)
}

/// What the loop leaves behind besides its result, in processing order.
#[derive(Clone, Debug, PartialEq)]
pub struct LoopTrace<T> {
    /// The mask (n x k) that the scores ask for, which differs from the replayed one where a decision does.
    pub decided: Array2<bool>,
    /// E: (W_j - q) / L_jj of every column (n x k).
    pub errors: Array2<T>,
    /// The weights (n x k) after each block and its lazy update.
    pub block_weights: Vec<Array2<T>>,
}

impl<T: Scalar> LoopTrace<T> {
    /// Nothing yet, for a weight of n x k.
    pub(crate) fn new(shape: (usize, usize)) -> Self {
        LoopTrace {
            decided: Array2::from_elem(shape, false),
            errors: Array2::zeros(shape),
            block_weights: Vec::new(),
        }
    }
}

/// What a kept weight is rounded to.
pub(crate) trait Rounding<T>: Send {
    /// Before the columns of a block: its row from the block's first column on.
    fn begin_block(&mut self, _column: usize, _rest: &[T]) {}

    /// The rounded weight of column `column` (in processing order). `rest` is its row from that column on: current
    /// within the block, beyond it as the last lazy update left it. Called once for every column from the left,
    /// pruned or not.
    fn round(&mut self, column: usize, rest: &[T]) -> T;
}

/// The weight itself.
#[derive(Clone, Copy)]
struct Unrounded;

impl<T: Scalar> Rounding<T> for Unrounded {
    fn round(&mut self, _: usize, rest: &[T]) -> T {
        rest[0]
    }
}

/// The square of L^T and D that one block of columns needs, and its part of the score.
struct Block<'a, T> {
    /// Its first column.
    start: usize,
    lt: ArrayView2<'a, T>,
    /// alpha_update * D; zero without a correction.
    d: Array2<T>,
    score_scale: ArrayView1<'a, T>,
    sparsity: Sparsity,
    narrow_groups: NarrowGroups,
}

/// One row of the block: what the loop reads and writes.
struct Row<'a, T> {
    /// From the block's first column to the last of the matrix.
    w: &'a mut [T],
    mask: &'a mut [bool],
    score: &'a mut [T],
    /// Weights that get no score in N:M: preserved zeros.
    hidden: Option<ArrayView1<'a, bool>>,
    e: &'a mut [T],
    compensated: &'a mut [T],
}

/// Row j of a square, right of the diagonal.
fn right_of_diagonal<A>(square: ArrayView2<'_, A>, j: usize) -> &[A] {
    &square.index_axis_move(Axis(0), j).to_slice().expect("a row of a row-major matrix")[j + 1..]
}

fn contiguous<A>(row: ArrayViewMut1<'_, A>) -> &mut [A] {
    row.into_slice().expect("a row of a row-major matrix")
}

impl<'a, T: Scalar> Block<'a, T> {
    fn new(prepared: &'a Prepared<T>, columns: std::ops::Range<usize>) -> Self {
        let square = s![columns.clone(), columns.clone()];
        let d = match &prepared.correction {
            Some(correction) => &correction.d.slice(square) * T::of(prepared.config.alpha.update),
            None => Array2::zeros((columns.len(), columns.len())),
        };
        Block {
            start: columns.start,
            lt: prepared.lt.slice(square),
            d,
            score_scale: prepared.score_scale.slice(s![columns]),
            sparsity: prepared.config.weight_sparsity,
            narrow_groups: prepared.config.dialect.narrow_groups,
        }
    }

    /// The column loop for one row:
    ///
    /// ```text
    /// q = W_j, rounded, where kept; 0 where pruned        e = (W_j - q) / L_jj
    /// W_{j..} += -e L_{j..,j}^T + W_j D_{j,j..}        (W_j before pruning; afterwards column j holds q)
    /// ```
    // ANCHOR: prune_row
    fn prune_row(&self, row: Row<T>, free: bool, rounding: &mut impl Rounding<T>) {
        let width = self.lt.nrows();
        rounding.begin_block(self.start, row.w);
        for j in 0..width {
            if let Sparsity::NofM { n, m } = self.sparsity
                && j % m == 0
            {
                let group = j..(j + m).min(width);
                if !self.narrow_groups.keeps(n, group.len()) {
                    for c in group.clone().filter(|&c| !row.hidden.is_some_and(|hidden| hidden[c])) {
                        row.score[c] = row.w[c] * row.w[c] * self.score_scale[c];
                    }
                    if free {
                        let mask = lowest(&row.score[group.clone()], n);
                        row.mask[group].iter_mut().zip(mask).for_each(|(place, mask)| *place |= mask);
                    }
                }
            }
            let w = row.w[j];
            let rounded = rounding.round(self.start + j, &row.w[j..]);
            let q = if row.mask[j] { T::zero() } else { rounded };
            let e = (w - q) / self.lt[(j, j)];
            row.e[j] = e;
            row.compensated[j] = w;
            row.w[j] = q;
            // Plain slices: this line is where the time goes, and so the compiler vectorises it.
            let (lt, d) = (right_of_diagonal(self.lt, j), right_of_diagonal(self.d.view(), j));
            for ((rest, &l), &d) in row.w[j + 1..width].iter_mut().zip(lt).zip(d) {
                *rest += w * d - e * l;
            }
        }
    }
    // ANCHOR_END: prune_row
}

pub(crate) fn check_finite<T: Scalar>(what: &'static str, a: ArrayView2<T>) -> Result<(), PruneError> {
    // Rows in parallel, the first row that offends wins.
    let bad = a.axis_iter(Axis(0)).into_par_iter().enumerate().find_map_first(|(row, values)| {
        values.iter().position(|x| !x.is_finite()).map(|column| (row, column))
    });
    match bad {
        Some((row, column)) => Err(PruneError::NotFinite { what, row, column }),
        None => Ok(()),
    }
}
