//! One stage: numbers in the arithmetic under test beside golden ones.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use super::file::Golden;
use crate::linalg::Scalar;
use crate::tensors::FloatType;
use crate::verify::compare::{Processing, compare};
use crate::verify::report::Stage;

/// A matrix of one column, so that vectors are compared like matrices.
pub(super) fn column<A: Clone>(v: &Array1<A>) -> Array2<A> {
    v.clone().insert_axis(Axis(1))
}

/// A golden value in the arithmetic under test.
pub(super) fn cast<T: Scalar, D: ndarray::Dimension>(a: &ndarray::Array<f64, D>) -> ndarray::Array<T, D> {
    a.mapv(T::of)
}

pub(super) fn is_f64<T: Scalar>() -> bool {
    T::UNIT_ROUNDOFF == f64::UNIT_ROUNDOFF
}

/// Compares values in the arithmetic under test.
pub(super) fn values_stage<T: Scalar>(
    name: impl Into<String>,
    found: ArrayView2<T>,
    expected: ArrayView2<f64>,
    budget: f64,
    processing: Processing,
) -> Stage {
    let precision = if is_f64::<T>() { FloatType::F64 } else { FloatType::F32 };
    Stage::values(name, compare(found, expected, precision, budget, processing))
}

impl<B> Golden<'_, B> {
    /// Compares values in the arithmetic under test.
    pub(super) fn values_stage<T: Scalar>(
        &self,
        name: &str,
        found: ArrayView2<T>,
        expected: ArrayView2<f64>,
        bound: f64,
        processing: Processing,
    ) -> Stage {
        values_stage(name, found, expected, self.allowed::<T>(name, bound), processing)
    }
}
