//! The few dense operations the reference needs, over BLAS and LAPACK.
//!
//! OpenBLAS runs single-threaded; the parallelism is rayon's, over fixed blocks of the output. So there is one
//! level of parallelism, and a result does not depend on the number of threads.

use std::cmp::Ordering;
use std::sync::Once;

use lax::error::Error as LapackError;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, LinalgScalar, NdFloat, linalg, s};
use ndarray_linalg::error::LinalgError;
use ndarray_linalg::{CholeskyInplace, Diag, SolveTriangularInto, UPLO};
use rayon::prelude::*;

// Links the BLAS that `ndarray` and `ndarray-linalg` call.
extern crate openblas_src;

/// The number types of the reference: `f32` and `f64`.
pub trait Scalar: NdFloat + LinalgScalar + std::iter::Sum + serde::Serialize {
    /// `"f32"` or `"f64"`.
    const NAME: &'static str;
    /// Unit roundoff, half the distance from 1 to the next number.
    const UNIT_ROUNDOFF: f64;

    /// Rounds to the nearest `Self`.
    fn of(x: f64) -> Self;
    /// The same value in f64; exact.
    fn widen(self) -> f64;
    /// Total order of IEEE 754, in which -0 < +0 and NaNs have places.
    fn total_order(&self, other: &Self) -> Ordering;
    /// The nearest integer, of two equally near ones the even.
    fn round_ties_even(self) -> Self;

    /// Replaces a symmetric matrix (k x k, row-major, both triangles set) by its lower Cholesky factor, upper triangle 0.
    ///
    /// # Errors
    /// The 0-based column of the first pivot that is not positive.
    fn cholesky_in_place(a: &mut Array2<Self>) -> Result<(), usize>;
    /// Inverse of a small lower triangular matrix with non-zero diagonal.
    fn invert_small_lower(a: Array2<Self>) -> Array2<Self>;
}

macro_rules! scalar {
    ($type:ident) => {
        impl Scalar for $type {
            const NAME: &'static str = stringify!($type);
            const UNIT_ROUNDOFF: f64 = $type::EPSILON as f64 / 2.0;

            fn of(x: f64) -> Self {
                x as $type
            }
            fn widen(self) -> f64 {
                self as f64
            }
            fn total_order(&self, other: &Self) -> Ordering {
                self.total_cmp(other)
            }
            fn round_ties_even(self) -> Self {
                $type::round_ties_even(self)
            }
            fn cholesky_in_place(a: &mut Array2<Self>) -> Result<(), usize> {
                if a.is_empty() {
                    return Ok(());
                }
                single_threaded_blas();
                match a.cholesky_inplace(UPLO::Lower) {
                    Ok(_) => Ok(()),
                    // LAPACK counts from 1.
                    Err(LinalgError::Lapack(LapackError::LapackComputationalFailure { return_code })) => {
                        Err(return_code as usize - 1)
                    }
                    Err(error) => unreachable!("a square, contiguous matrix was passed: {error}"),
                }
            }
            fn invert_small_lower(a: Array2<Self>) -> Array2<Self> {
                let identity = row_major(Array2::eye(a.nrows()).view());
                a.solve_triangular_into(UPLO::Lower, Diag::NonUnit, identity)
                    .expect("triangular with a non-zero diagonal")
            }
        }
    };
}
scalar!(f32);
scalar!(f64);

/// Rows of an output of `rows` that one task computes. Every task packs the other operand anew, so few of many rows are
/// faster; but there should be work for several cores. Never a matter of how many there are.
fn rows_per_task(rows: usize) -> usize {
    rows.div_ceil(4).clamp(SMALLEST, 4 * SMALLEST)
}

/// Below this, halving a matrix or its rows costs more than it saves.
const SMALLEST: usize = 128;

/// OpenBLAS has no Rust setter for its thread count, and its own threads inside rayon's oversubscribe the cores.
pub(crate) fn single_threaded_blas() {
    unsafe extern "C" {
        fn openblas_set_num_threads(threads: std::ffi::c_int);
    }
    static ONCE: Once = Once::new();
    // SAFETY: called once, before this crate's first BLAS call.
    ONCE.call_once(|| unsafe { openblas_set_num_threads(1) });
}

/// What OpenBLAS says of itself: version, build options, the kernels chosen for this processor.
pub fn blas_description() -> String {
    unsafe extern "C" {
        fn openblas_get_config() -> *const std::ffi::c_char;
    }
    // SAFETY: returns a static, NUL-terminated string.
    let text = unsafe { std::ffi::CStr::from_ptr(openblas_get_config()) };
    text.to_string_lossy().trim().to_string()
}

/// C <- alpha A B + beta C, for A (m x k), B (k x n), C (m x n).
///
/// # Panics
/// When the shapes do not fit each other.
pub fn gemm<T: Scalar>(alpha: f64, a: ArrayView2<T>, b: ArrayView2<T>, beta: f64, mut c: ArrayViewMut2<T>) {
    single_threaded_blas();
    assert_eq!((a.nrows(), b.ncols()), c.dim(), "the product does not fit its place");
    let rows = rows_per_task(c.nrows());
    c.axis_chunks_iter_mut(Axis(0), rows)
        .into_par_iter()
        .zip(a.axis_chunks_iter(Axis(0), rows))
        .for_each(|(mut c, a)| linalg::general_mat_mul(T::of(alpha), &a, &b, T::of(beta), &mut c));
}

/// The product A B of A (m x k) and B (k x n).
///
/// # Panics
/// When the inner dimensions differ.
pub fn matmul<T: Scalar>(a: ArrayView2<T>, b: ArrayView2<T>) -> Array2<T> {
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    gemm(1.0, a, b, 0.0, c.view_mut());
    c
}

/// C <- alpha A A^T + beta C for A (k x m) and symmetric C (k x k): the lower triangle by products, then mirrored.
///
/// # Panics
/// When the shapes do not fit each other.
pub fn gram<T: Scalar>(alpha: f64, a: ArrayView2<T>, beta: f64, c: &mut Array2<T>) {
    single_threaded_blas();
    assert_eq!((a.nrows(), a.nrows()), c.dim(), "the product does not fit its place");
    gram_lower(alpha, a, beta, c.view_mut());
    mirror_lower(c);
}

/// The lower triangle of [`gram`], by halves; what is above the diagonal is undefined:
///
/// ```text
/// [A1] [A1^T A2^T] = [A1 A1^T     .   ]
/// [A2]               [A2 A1^T  A2 A2^T]
/// ```
fn gram_lower<T: Scalar>(alpha: f64, a: ArrayView2<T>, beta: f64, mut c: ArrayViewMut2<T>) {
    let k = c.nrows();
    if k <= SMALLEST {
        linalg::general_mat_mul(T::of(alpha), &a, &a.t(), T::of(beta), &mut c);
        return;
    }
    let (a1, a2) = a.split_at(Axis(0), k / 2);
    let (top, bottom) = c.split_at(Axis(0), k / 2);
    let (first, _) = top.split_at(Axis(1), k / 2);
    let (below, second) = bottom.split_at(Axis(1), k / 2);
    rayon::join(
        || gemm(alpha, a2, a1.t(), beta, below),
        || rayon::join(|| gram_lower(alpha, a1, beta, first), || gram_lower(alpha, a2, beta, second)),
    );
}

/// A copy with the strides that LAPACK's wrapper accepts: of a 1 x 1 matrix ndarray may keep others.
pub(crate) fn row_major<T: Scalar>(a: ArrayView2<T>) -> Array2<T> {
    Array2::from_shape_vec(a.dim(), a.iter().copied().collect()).expect("one value per entry")
}

/// Copies the lower triangle onto the upper one.
fn mirror_lower<T: Scalar>(c: &mut Array2<T>) {
    let n = c.nrows();
    // Tiles keep the transposed reads in cache.
    const TILE: usize = 32;
    for top in (0..n).step_by(TILE) {
        for left in (0..=top).step_by(TILE) {
            for i in top..(top + TILE).min(n) {
                for j in left..(left + TILE).min(i) {
                    c[(j, i)] = c[(i, j)];
                }
            }
        }
    }
}

/// Replaces a lower triangular matrix by its inverse, by halves:
///
/// ```text
/// [A  ]^-1   [ A^-1              ]
/// [B C]    = [-C^-1 B A^-1   C^-1]
/// ```
///
/// # Panics
/// When a diagonal entry is zero.
pub fn invert_lower<T: Scalar>(mut l: ArrayViewMut2<T>) {
    const SMALL: usize = 64;
    let n = l.nrows();
    if n == 0 {
        return;
    }
    if n <= SMALL {
        let inverse = T::invert_small_lower(row_major(l.view()));
        l.assign(&inverse);
        return;
    }
    let half = n / 2;
    let (mut top, mut bottom) = l.split_at(Axis(0), half);
    let mut a = top.slice_mut(s![.., ..half]);
    let (mut b, mut c) = bottom.view_mut().split_at(Axis(1), half);
    rayon::join(|| invert_lower(a.view_mut()), || invert_lower(c.view_mut()));
    let ba = matmul(b.view(), a.view());
    gemm(-1.0, c.view(), ba.view(), 0.0, b.view_mut());
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn inverse_of_a_lower_matrix_across_the_recursion() {
        for n in [1, 2, 63, 64, 65, 130, 200] {
            let l = Array2::from_shape_fn((n, n), |(i, j)| match i.cmp(&j) {
                Ordering::Greater => ((i * 7 + j * 3) % 11) as f64 / 50.0 - 0.1,
                Ordering::Equal => 1.0 + (i % 3) as f64,
                Ordering::Less => 0.0,
            });
            let mut inverse = l.clone();
            invert_lower(inverse.view_mut());
            let bound = n as f64 * f64::UNIT_ROUNDOFF * norm(&l) * norm(&inverse);
            assert_abs_diff_eq!(matmul(l.view(), inverse.view()), Array2::eye(n), epsilon = bound);
        }
        fn norm(a: &Array2<f64>) -> f64 {
            a.rows().into_iter().map(|row| row.iter().map(|x| x.abs()).sum()).fold(0.0, f64::max)
        }
    }

    #[test]
    fn gram_is_the_product_with_the_transpose_and_exactly_symmetric() {
        // Small integers: every sum is exact, so equality is the right comparison.
        let a = Array2::from_shape_fn((300, 20), |(i, j)| ((i * 5 + j * 3) % 9) as f64 - 4.0);
        let mut c = Array2::from_elem((300, 300), 2.0);
        gram(1.0, a.view(), 0.5, &mut c);
        assert_eq!(c, a.dot(&a.t()) + 1.0);
        assert_eq!(matmul(a.view(), a.t()), a.dot(&a.t()));
        assert_eq!(c, c.t());
    }
}
