//! How far apart two results are, and what the difference looks like.
//!
//! Values are compared in the max norm: the error of an element is |found - expected| / max |expected|, absolute where
//! all that was expected is zero. Decisions (masks, orders, codes) are counted, and each that differs is weighed by its
//! *margin*: how far it was from going the other way.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use serde::Serialize;

use crate::linalg::Scalar;
use crate::tensors::FloatType;

/// A tolerance relative to the largest expected entry. At 1 zeros would pass for any result.
///
/// # Errors
/// What is needed, where `text` is none.
pub fn relative_tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if (0.0..1.0).contains(&x) => Ok(x),
        Ok(x) if x >= 1.0 => Err(format!(
            "a tolerance of {text} accepts zeros for any result: give a number below 1, such as 1e-4"
        )),
        _ => Err(format!("`{text}` is not a tolerance: give a number from 0 to below 1, such as 1e-9")),
    }
}

/// One element of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Place {
    /// Row.
    pub row: usize,
    /// Column.
    pub column: usize,
    /// What was expected there.
    pub expected: f64,
    /// What was found.
    pub found: f64,
}

impl Place {
    /// |found - expected|; 0 for the same infinity twice, NaN where one of them is NaN.
    pub fn difference(&self) -> f64 {
        if self.found == self.expected { 0.0 } else { (self.found - self.expected).abs() }
    }

    /// |found - expected| / |expected|; infinite where 0 was expected and something else found.
    pub fn relative(&self) -> f64 {
        if self.found == self.expected { 0.0 } else { self.difference() / self.expected.abs() }
    }
}

/// The order in which the algorithm produces the elements of a matrix: where to look for the *first* difference.
#[derive(Clone, Copy, Debug)]
pub enum Processing<'a> {
    /// Row by row (k x k matrices: row p belongs to step p).
    Rows,
    /// Column by column, in the given order of columns (n x k matrices).
    Columns(&'a [usize]),
}

impl Processing<'_> {
    /// Calls `visit` with (row, column) for every element of a matrix of this shape.
    fn walk(self, (rows, columns): (usize, usize), mut visit: impl FnMut(usize, usize)) {
        match self {
            Processing::Rows => (0..rows).for_each(|row| (0..columns).for_each(|column| visit(row, column))),
            Processing::Columns(order) => {
                order.iter().for_each(|&column| (0..rows).for_each(|row| visit(row, column)));
            }
        }
    }
}

/// The outcome of comparing the values of two matrices of one shape. JSON has null for what is not a number.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Rows and columns.
    pub shape: (usize, usize),
    /// max |found - expected| / max |expected|; NaN as soon as one element is.
    pub error: f64,
    /// The error that was allowed, in the same measure.
    pub budget: f64,
    /// The largest share of what was allowed that an element uses: error / budget, less where rounding explains an error.
    pub used: f64,
    /// Whether some element was allowed more than the budget, by its own bound on rounding errors.
    pub rounding: bool,
    /// Elements whose error exceeds the budget.
    pub over_budget: usize,
    /// The first of them in processing order.
    pub first: Option<Place>,
    /// The element with the largest error; none where all are equal.
    pub worst: Option<Place>,
    /// The element with the largest error relative to itself, of those where not 0 was expected.
    pub worst_relative: Option<Place>,
    /// ||found - expected||_2 / ||expected||_2; absolute where all that was expected is zero.
    pub relative_l2: f64,
    /// NaN and infinities.
    pub not_finite: NotFinite,
    /// Distances in units of the last place.
    pub ulps: UlpHistogram,
    /// What the difference looks like, where it has a familiar form.
    pub pattern: Option<Pattern>,
    /// Where the errors are.
    #[serde(skip)]
    pub heat: HeatMap,
}

/// Elements that are NaN or infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NotFinite {
    /// Among what was expected.
    pub expected: usize,
    /// Among what was found.
    pub found: usize,
}

/// How many elements lie how far apart, counted in representable numbers of the type that was compared.
///
/// Numbers of both signs stand on one line with -0 = +0, so that the distance is right across zero. What was expected
/// is rounded to the type first: distance 0 means correctly rounded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UlpHistogram {
    /// The type.
    pub precision: FloatType,
    /// Entry 0 counts distance 0, entry b the distances from 2^(b - 1) to 2^b - 1.
    pub counts: Vec<usize>,
    /// Pairs with a NaN in them.
    pub incomparable: usize,
}

/// A form of difference that tells its cause.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "form")]
pub enum Pattern {
    /// found = -expected everywhere.
    Negated,
    /// found = -expected wherever the budget is exceeded.
    PartlyNegated,
    /// found = factor * expected everywhere.
    Scaled {
        /// The factor.
        factor: f64,
    },
    /// found = expected^T: row-major read as column-major, or an upper factor for a lower one.
    Transposed,
}

/// The largest error (in the measure of [`Comparison::error`]) in each cell of a grid laid over the matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeatMap {
    /// Cells from top to bottom, and from left to right.
    pub shape: (usize, usize),
    /// Row by row.
    pub cells: Vec<f64>,
}

impl HeatMap {
    /// Cells in either direction.
    const MOST: usize = 32;

    fn new((rows, columns): (usize, usize)) -> Self {
        let shape = (rows.min(Self::MOST), columns.min(Self::MOST));
        HeatMap { shape, cells: vec![0.0; shape.0 * shape.1] }
    }

    fn note(&mut self, (rows, columns): (usize, usize), (row, column): (usize, usize), error: f64) {
        let cell = row * self.shape.0 / rows * self.shape.1 + column * self.shape.1 / columns;
        // NaN stays: it is the largest of errors.
        let largest = self.cells[cell];
        if error.is_nan() || error > largest {
            self.cells[cell] = error;
        }
    }
}

impl UlpHistogram {
    fn new(precision: FloatType) -> Self {
        UlpHistogram { precision, counts: Vec::new(), incomparable: 0 }
    }

    fn note(&mut self, found: f64, expected: f64) {
        let Some(distance) = ulps(self.precision, found, expected) else {
            self.incomparable += 1;
            return;
        };
        let bucket = (u64::BITS - distance.leading_zeros()) as usize;
        self.counts.resize(self.counts.len().max(bucket + 1), 0);
        self.counts[bucket] += 1;
    }

    /// The distances that entry `bucket` counts: `"0"`, `"1"`, `"2-3"`, `"4-7"`, ... `"2^20"` (up to the next power).
    pub fn label(bucket: usize) -> String {
        match bucket {
            0 | 1 => bucket.to_string(),
            2..=10 => format!("{}-{}", 1u64 << (bucket - 1), (1u64 << bucket) - 1),
            _ => format!("2^{}", bucket - 1),
        }
    }
}

/// How many representable numbers of the type lie between two values, after both are rounded to it: the number of
/// steps from one to the other. `None` for NaN.
pub fn ulps(precision: FloatType, a: f64, b: f64) -> Option<u64> {
    if a.is_nan() || b.is_nan() {
        return None;
    }
    Some(on_the_line(precision, a).abs_diff(on_the_line(precision, b)))
}

/// The place of a value among the representable numbers of its type, 0 for both zeros.
fn on_the_line(precision: FloatType, x: f64) -> i64 {
    let magnitude = precision.bits(x.abs()) as i64;
    if x.is_sign_negative() { -magnitude } else { magnitude }
}

impl Comparison {
    /// Whether every element is within the budget. NaN never is.
    pub fn passed(&self) -> bool {
        self.over_budget == 0
    }

    /// The smallest budget that would have passed; `None` where a NaN or an infinity stands in the way of any.
    pub fn smallest_passing_budget(&self) -> Option<f64> {
        self.error.is_finite().then_some(self.error)
    }

    /// How much of the budget is used, in percent; a budget of zero is used up by any error.
    pub fn budget_used(&self) -> f64 {
        100.0 * self.used
    }
}

/// Compares the values `found` with the `expected` ones.
///
/// `precision` is the type in which `found` was computed or stored: that of the ULP distances.
///
/// # Panics
/// When the shapes differ.
pub fn compare<T: Scalar>(
    found: ArrayView2<T>,
    expected: ArrayView2<f64>,
    precision: FloatType,
    budget: f64,
    processing: Processing,
) -> Comparison {
    let scale = scale(expected);
    compare_scaled(found, expected, precision, budget, processing, |_| scale, None)
}

/// [`compare`] with every error relative to the largest magnitude expected in its *row*, or in the whole matrix where
/// the row is all zero: the measure of the test vectors. `of_rounding` is what each element may be off by as it is, where
/// that is more.
///
/// # Panics
/// When the shapes differ.
pub fn compare_rows<T: Scalar>(
    found: ArrayView2<T>,
    expected: ArrayView2<f64>,
    precision: FloatType,
    budget: f64,
    of_rounding: Option<&Array2<f64>>,
    processing: Processing,
) -> Comparison {
    let scales = row_scales(expected);
    compare_scaled(found, expected, precision, budget, processing, |row| scales[row], of_rounding)
}

/// What the errors of each row are relative to; see [`compare_rows`].
pub fn row_scales(expected: ArrayView2<f64>) -> Vec<f64> {
    let whole = scale(expected);
    let largest = |row: ArrayView1<f64>| row.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    expected.rows().into_iter().map(largest).map(|row| if row == 0.0 { whole } else { row }).collect()
}

fn compare_scaled<T: Scalar>(
    found: ArrayView2<T>,
    expected: ArrayView2<f64>,
    precision: FloatType,
    budget: f64,
    processing: Processing,
    scale_of: impl Fn(usize) -> f64,
    of_rounding: Option<&Array2<f64>>,
) -> Comparison {
    assert_eq!(found.dim(), expected.dim(), "two results of one stage have one shape");
    let shape = expected.dim();
    let mut outcome = Comparison {
        shape,
        error: 0.0,
        budget,
        used: 0.0,
        rounding: false,
        over_budget: 0,
        first: None,
        worst: None,
        worst_relative: None,
        relative_l2: 0.0,
        not_finite: NotFinite::default(),
        ulps: UlpHistogram::new(precision),
        pattern: None,
        heat: HeatMap::new(shape),
    };
    let (mut difference_squares, mut expected_squares) = (0.0, 0.0);
    processing.walk(shape, |row, column| {
        let place =
            Place { row, column, expected: expected[(row, column)], found: found[(row, column)].widen() };
        let scale = scale_of(row);
        let error = place.difference() / scale;
        let limit = of_rounding.map_or(budget, |allowed| budget.max(allowed[(row, column)] / scale));
        outcome.rounding |= limit > budget;
        let share = if error == 0.0 { 0.0 } else { error / limit };
        if share.is_nan() || share > outcome.used {
            outcome.used = share;
        }
        // NaN is not within anything: it counts as over the budget, and as the largest error.
        let within = |limit: f64| error <= limit;
        if !within(limit) {
            outcome.over_budget += 1;
            outcome.first = outcome.first.or(Some(place));
        }
        if !within(outcome.error) && !outcome.error.is_nan() {
            outcome.worst = Some(place);
            outcome.error = error;
        }
        let largest = outcome.worst_relative.map_or(0.0, |worst| worst.relative());
        if place.expected != 0.0 && place.relative() > largest {
            outcome.worst_relative = Some(place);
        }
        outcome.not_finite.expected += usize::from(!place.expected.is_finite());
        outcome.not_finite.found += usize::from(!place.found.is_finite());
        outcome.ulps.note(place.found, place.expected);
        let shown = if limit > budget { share * budget } else { error }; // beyond the budget is beyond the limit
        outcome.heat.note(shape, (row, column), shown);
        difference_squares += error * error; // scaled: no square overflows that need not
        if place.expected.is_finite() {
            expected_squares += (place.expected / scale).powi(2);
        }
    });
    let norm = if expected_squares == 0.0 { 1.0 } else { expected_squares };
    outcome.relative_l2 = (difference_squares / norm).sqrt();
    if !outcome.passed() && outcome.not_finite == NotFinite::default() {
        let tolerance = budget.max(4.0 * precision.unit_roundoff());
        let scale = scale(expected);
        outcome.pattern = pattern(found, expected, tolerance * scale, budget * scale);
    }
    outcome
}

/// The largest finite magnitude; 1 where there is none but zeros.
fn scale(expected: ArrayView2<f64>) -> f64 {
    let finite = expected.iter().filter(|x| x.is_finite());
    let largest = finite.fold(0.0f64, |m, x| m.max(x.abs()));
    if largest == 0.0 { 1.0 } else { largest }
}

/// The form of a difference between finite matrices: what `found` equals within `tolerance` (absolute).
fn pattern<T: Scalar>(
    found: ArrayView2<T>,
    expected: ArrayView2<f64>,
    tolerance: f64,
    budget: f64,
) -> Option<Pattern> {
    let pairs = || found.iter().zip(expected).map(|(f, &e)| (f.widen(), e));
    let all_near = |what: &dyn Fn(f64) -> f64| pairs().all(|(f, e)| (f - what(e)).abs() <= tolerance);
    if expected.iter().all(|e| *e == 0.0) {
        return None;
    }
    if all_near(&|e| -e) {
        return Some(Pattern::Negated);
    }
    let over_budget = |&(f, e): &(f64, f64)| (f - e).abs() > budget;
    if pairs().filter(over_budget).all(|(f, e)| (f + e).abs() <= tolerance) {
        return Some(Pattern::PartlyNegated);
    }
    // The least-squares factor.
    let factor = pairs().map(|(f, e)| f * e).sum::<f64>() / pairs().map(|(_, e)| e * e).sum::<f64>();
    if all_near(&|e| factor * e) {
        return Some(Pattern::Scaled { factor });
    }
    let square = expected.nrows() == expected.ncols();
    let transposed = || found.t().indexed_iter().all(|(at, f)| (f.widen() - expected[at]).abs() <= tolerance);
    (square && transposed()).then_some(Pattern::Transposed)
}

/// The outcome of comparing decisions: mask bits, positions of an order, codes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decisions {
    /// All decisions.
    pub of: usize,
    /// Those that differ.
    pub differing: usize,
    /// The margin up to which a decision may differ; none allows no difference.
    pub margin_budget: Option<f64>,
    /// The largest margin of those that differ; none where a margin is not known, or nothing differs.
    pub widest_margin: Option<f64>,
    /// The ones that differ, in processing order, the first [`Decisions::LISTED`] of them.
    pub flips: Vec<Flip>,
}

/// A decision that differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flip {
    /// Where, and what was decided.
    #[serde(flatten)]
    pub place: Place,
    /// The position of its column in processing order.
    pub position: usize,
    /// How far the decision was from going the other way, where that is known.
    pub margin: Option<f64>,
}

impl Decisions {
    /// How many flips are listed one by one.
    pub const LISTED: usize = 1000;

    /// Whether every decision is the same, or was a close one.
    pub fn passed(&self) -> bool {
        let close = |budget: f64| self.widest_margin.is_some_and(|margin| margin <= budget);
        self.differing == 0 || self.margin_budget.is_some_and(close)
    }
}

/// Compares decisions. `order` gives the column at each position; `margin` weighs a differing decision, given its row
/// and its column's position in that order.
///
/// # Panics
/// When the shapes differ.
pub fn compare_decisions<A: Copy + PartialEq + Into<f64>>(
    found: ArrayView2<A>,
    expected: ArrayView2<A>,
    order: &[usize],
    margin_budget: Option<f64>,
    margin: impl Fn(usize, usize) -> Option<f64>,
) -> Decisions {
    assert_eq!(found.dim(), expected.dim(), "two results of one stage have one shape");
    let mut outcome =
        Decisions { of: expected.len(), differing: 0, margin_budget, widest_margin: None, flips: Vec::new() };
    let mut all_known = true;
    for (position, &column) in order.iter().enumerate() {
        for row in 0..expected.len_of(Axis(0)) {
            let (found, expected) = (found[(row, column)], expected[(row, column)]);
            if found == expected {
                continue;
            }
            let margin = margin(row, position);
            outcome.differing += 1;
            outcome.widest_margin = match (outcome.widest_margin, margin) {
                // A margin that is NaN is as wide as can be.
                (Some(widest), Some(margin)) if margin.is_nan() || margin > widest => Some(margin),
                (None, margin) => margin,
                (widest, _) => widest,
            };
            all_known &= margin.is_some();
            if outcome.flips.len() < Decisions::LISTED {
                let place = Place { row, column, expected: expected.into(), found: found.into() };
                outcome.flips.push(Flip { place, position, margin });
            }
        }
    }
    if !all_known {
        outcome.widest_margin = None;
    }
    outcome
}
