//! How far apart two results are.

use ndarray::{ArrayView2, Axis};

use crate::linalg::Scalar;

/// One element of a comparison.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
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

/// The order in which the algorithm produces the elements of a matrix: where to look for the *first* difference.
#[derive(Clone, Copy, Debug)]
pub enum Processing<'a> {
    /// Row by row (k x k matrices: row p belongs to step p).
    Rows,
    /// Column by column, in the given order of columns (n x k matrices).
    Columns(&'a [usize]),
}

/// The outcome of comparing two matrices of one shape.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Comparison {
    /// max |found - expected| / max |expected|; absolute where all that was expected is zero.
    pub error: f64,
    /// The error that was allowed, in the same measure.
    pub budget: f64,
    /// Elements whose error exceeds the budget.
    pub over_budget: usize,
    /// The first of them in processing order.
    pub first: Option<Place>,
    /// The element with the largest error.
    pub worst: Option<Place>,
}

impl Comparison {
    /// Whether every element is within the budget. NaN never is.
    pub fn passed(&self) -> bool {
        self.over_budget == 0
    }
}

/// Compares `found` with `expected` in the max norm.
///
/// # Panics
/// When the shapes differ.
pub fn compare<T: Scalar>(
    found: ArrayView2<T>,
    expected: ArrayView2<f64>,
    budget: f64,
    processing: Processing,
) -> Comparison {
    assert_eq!(found.dim(), expected.dim(), "two results of one stage have one shape");
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let scale = if largest == 0.0 { 1.0 } else { largest };
    let mut outcome = Comparison { error: 0.0, budget, over_budget: 0, first: None, worst: None };
    let mut visit = |row: usize, column: usize| {
        let (found, expected) = (found[(row, column)].widen(), expected[(row, column)]);
        let error = (found - expected).abs() / scale;
        let place = || Some(Place { row, column, expected, found });
        // NaN is not within anything: it counts as over the budget, and as the largest error.
        let within = |limit: f64| error <= limit;
        if !within(budget) {
            outcome.over_budget += 1;
            outcome.first = outcome.first.take().or_else(place);
        }
        if outcome.worst.is_none() || !within(outcome.error) {
            outcome.worst = place();
            outcome.error = if outcome.error.is_nan() { outcome.error } else { error };
        }
    };
    match processing {
        Processing::Rows => {
            for row in 0..found.nrows() {
                for column in 0..found.ncols() {
                    visit(row, column);
                }
            }
        }
        Processing::Columns(order) => {
            for &column in order {
                for row in 0..found.len_of(Axis(0)) {
                    visit(row, column);
                }
            }
        }
    }
    outcome
}
