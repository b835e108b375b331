//! The native half of the Python package `duogpt`: arrays in, the crate's functions, arrays out. Signatures, defaults and
//! documentation of what users call are in `duogpt/*.py`.

mod array;
mod error;
mod layer;
mod settings;
mod vectors;

use pyo3::prelude::*;

#[pymodule]
mod _duogpt {
    #[pymodule_export]
    use crate::error::{DuogptError, NotPositiveDefiniteError};
    #[pymodule_export]
    use crate::layer::{
        Prepared, Pruned, Statistics, channel_norms, layer, magnitude, prepare, prune_activations,
        statistics, thresholds, wanda,
    };
    #[pymodule_export]
    use crate::vectors::{Case, Negative, Report, cases, compare, negatives};
}
