//! From H to L with H^-1 = L L^T: dead channels, damping, and one Cholesky factorisation.

use ndarray::{Array2, s};

use crate::linalg::{Scalar, invert_lower, row_major};

/// Why a Hessian has no factor.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FactorError {
    /// A pivot of the factorisation is not positive.
    #[error(
        "the Hessian is not positive definite at column {column} (diagonal entry {pivot:e}); use more calibration \
         tokens or a larger damping"
    )]
    NotPositiveDefinite {
        /// Column, counted from 0: of the matrix given to [`factor`], or of the layer where pruning reports it.
        column: usize,
        /// The diagonal entry of the damped Hessian there.
        pivot: f64,
    },
    /// NaN or an infinity in the Hessian, or in its factor.
    #[error("the {what} has a value that is not finite at row {row}, column {column}")]
    NotFinite {
        /// `"Hessian"` or `"factor"`.
        what: &'static str,
        /// Row of the first such value.
        row: usize,
        /// Column of the first such value.
        column: usize,
    },
    /// H must equal its transpose.
    #[error("the Hessian is not symmetric: entries ({row}, {column}) and ({column}, {row}) differ")]
    NotSymmetric {
        /// Row of the first such entry.
        row: usize,
        /// Its column.
        column: usize,
    },
}

impl FactorError {
    /// The same for columns that stood at these positions: `order` is position to original column.
    pub(crate) fn in_original_order(self, order: &[usize]) -> Self {
        use FactorError::*;
        match self {
            NotPositiveDefinite { column, pivot } => NotPositiveDefinite { column: order[column], pivot },
            NotFinite { what, row, column } => NotFinite { what, row: order[row], column: order[column] },
            NotSymmetric { row, column } => NotSymmetric { row: order[row], column: order[column] },
        }
    }
}

/// Input channels that carried nothing over the whole calibration: H_pp = 0.
pub fn dead_channels<T: Scalar>(hessian: &Array2<T>) -> Vec<bool> {
    hessian.diag().iter().map(|&h| h == T::zero()).collect()
}

/// Sets H_pp = 1 for dead channels, so that H can be factored. Comes before ordering and damping; the 1 enters
/// both, as in the original code.
pub fn revive_dead_channels<T: Scalar>(hessian: &mut Array2<T>, dead: &[bool]) {
    for (h, _) in hessian.diag_mut().iter_mut().zip(dead).filter(|(_, dead)| **dead) {
        *h = T::one();
    }
}

/// H <- H + damping * mean(diag H) * I; returns what was added to the diagonal.
// ANCHOR: damp
pub fn damp<T: Scalar>(hessian: &mut Array2<T>, damping: f64) -> T {
    let k = hessian.nrows();
    if k == 0 {
        return T::zero();
    }
    let mean = hessian.diag().iter().map(|h| h.widen()).sum::<f64>() / k as f64;
    let shift = T::of(damping * mean);
    hessian.diag_mut().mapv_inplace(|h| h + shift);
    shift
}
// ANCHOR_END: damp

/// L (k x k, lower triangular) with H^-1 = L L^T, of a damped Hessian in processing order.
///
/// H is never inverted. With J the reversal of the columns, J H J = M M^T gives H = R R^T for the upper
/// triangular R = J M J, and so L = R^-T: one factorisation and one triangular inverse.
///
/// # Errors
/// [`FactorError`] with the offending entry: not symmetric, not finite, not positive definite.
// ANCHOR: factor
pub fn factor<T: Scalar>(hessian: Array2<T>) -> Result<Array2<T>, FactorError> {
    check_hessian(&hessian)?;
    let k = hessian.nrows();
    let mut m = row_major(hessian.slice(s![..;-1, ..;-1]));
    if let Err(reversed) = T::cholesky_in_place(&mut m) {
        let column = k - 1 - reversed;
        return Err(FactorError::NotPositiveDefinite { column, pivot: hessian[(column, column)].widen() });
    }
    drop(hessian);
    check_finite("factor", &m)?; // LAPACK lets NaN and overflow through
    let mut l = row_major(m.slice(s![..;-1, ..;-1]).t()); // R^T, lower
    drop(m);
    invert_lower(l.view_mut());
    check_finite("factor", &l)?;
    Ok(l)
}
// ANCHOR_END: factor

/// Finite, and symmetric up to the rounding of a sum taken in another order.
fn check_hessian<T: Scalar>(hessian: &Array2<T>) -> Result<(), FactorError> {
    check_finite("Hessian", hessian)?;
    let tolerance = T::of(2.0 * hessian.nrows() as f64 * T::UNIT_ROUNDOFF);
    for row in 0..hessian.nrows() {
        for column in 0..row {
            let (a, b) = (hessian[(row, column)], hessian[(column, row)]);
            // |h_ij| <= sqrt(h_ii h_jj) for any Gram matrix: the scale of the sum that an entry is.
            let scale =
                (hessian[(row, row)].abs().sqrt() * hessian[(column, column)].abs().sqrt()).max(a.abs());
            if (a - b).abs() > tolerance * scale {
                return Err(FactorError::NotSymmetric { row, column });
            }
        }
    }
    Ok(())
}

pub(super) fn check_finite<T: Scalar>(what: &'static str, a: &Array2<T>) -> Result<(), FactorError> {
    match a.indexed_iter().find(|(_, x)| !x.is_finite()) {
        Some(((row, column), _)) => Err(FactorError::NotFinite { what, row, column }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn names_the_column_whose_pivot_fails() {
        // Elimination runs from the last column to the first: the 2 x 2 block of columns 1 and 2 is indefinite.
        let hessian = array![[5.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]];
        assert_eq!(factor(hessian), Err(FactorError::NotPositiveDefinite { column: 1, pivot: 1.0 }));
    }

    #[test]
    fn refuses_what_lapack_would_let_through() {
        assert_eq!(
            factor(array![[1.0, f64::NAN], [0.0, 1.0]]),
            Err(FactorError::NotFinite { what: "Hessian", row: 0, column: 1 })
        );
        assert_eq!(
            factor(array![[1.0, 0.5], [0.0, 1.0]]),
            Err(FactorError::NotSymmetric { row: 1, column: 0 })
        );
    }

    #[test]
    fn symmetric_is_up_to_the_rounding_of_two_sums_of_k_terms() {
        // |h_ij - h_ji| <= 2 k u sqrt(h_ii h_jj); here 2 * 4 * 2^-53 * 2 * 4 = 2^-47.
        let with_asymmetry = |difference: f64| {
            let mut hessian = Array2::from_diag(&array![4.0, 4.0, 16.0, 4.0]);
            (hessian[(1, 2)], hessian[(2, 1)]) = (1.0, 1.0 + difference);
            factor(hessian)
        };
        let allowed = 0.5f64.powi(47);
        assert!(with_asymmetry(allowed).is_ok());
        let refused = Err(FactorError::NotSymmetric { row: 2, column: 1 });
        assert_eq!(with_asymmetry(allowed + f64::EPSILON), refused);
        assert_eq!(with_asymmetry(-allowed - f64::EPSILON), refused);
    }
}
