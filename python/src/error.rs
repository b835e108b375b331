//! The package's exceptions. Their words are the crate's.

use duogpt::backend::BackendError;
use duogpt::reference::{ConfigError, FactorError, PruneError};
use duogpt::verify::compare::relative_tolerance;
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

create_exception!(
    duogpt,
    DuogptError,
    PyValueError,
    "Settings, arrays or test vectors that cannot be used. The message says which, and what was expected."
);
create_exception!(
    duogpt,
    NotPositiveDefiniteError,
    DuogptError,
    "The damped Hessian has no Cholesky factor. `column` is where it fails, `pivot` the diagonal entry there. More \
     calibration tokens or a larger damping help."
);

/// A [`DuogptError`] with the words of `error`.
pub fn refused(error: impl ToString) -> PyErr {
    DuogptError::new_err(error.to_string())
}

/// The exception for what the algorithm says.
pub fn raise(py: Python, error: impl Into<BackendError>) -> PyErr {
    let error = error.into();
    let BackendError::Prune(PruneError::Factor(FactorError::NotPositiveDefinite { column, pivot })) = error
    else {
        return refused(error);
    };
    let raised = NotPositiveDefiniteError::new_err(error.to_string());
    let value = raised.value(py);
    match value.setattr("column", column).and_then(|()| value.setattr("pivot", pivot)) {
        Ok(()) => raised,
        Err(other) => other,
    }
}

/// A tolerance below 1.
pub fn check_tolerance(value: f64) -> PyResult<()> {
    relative_tolerance(&value.to_string()).map(drop).map_err(refused)
}

/// An activation sparsity in [0, 1).
pub fn check_activation_sparsity(value: f64) -> PyResult<()> {
    match (0.0..1.0).contains(&value) {
        true => Ok(()),
        false => Err(refused(ConfigError::Fraction { what: "activation sparsity", value })),
    }
}
