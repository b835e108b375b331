//! Golden files: outputs of the original Python code, one layer at a time, and the check of every stage against them.
//!
//! What a file holds is told by its tensors and metadata, never by its name:
//!
//! | kind | told by | checked |
//! |---|---|---|
//! | DuoGPT | metadata `algorithm = DuoGPT` | activation pruning, statistics, order, factor, Q, D, a, b, 2c, score, mask, weight |
//! | GPTAQ | `<run>.scale` | statistics, then scale, zero, codes and weight of every run |
//! | Wanda | `stats.scaler_row` | statistics, then mask and weight of every run |
//! | SparseGPT | `stats.hessian` | statistics, then mask and weight of every run |
//! | activation pruning | `<case>.input` | every `<case>.s<percent>` |

mod activation;
mod budgets;
mod cuts;
mod duogpt;
mod file;
mod gptaq;
mod masked;
mod sparsegpt;
mod stages;
mod statistics;
mod wanda;

use std::path::Path;

use super::inspect::Inspect;
use super::kind::Kind;
use super::report::FileReport;
use crate::backend::Cpu;
use crate::linalg::Scalar;
use crate::tensors::TensorFile;
pub(super) use cuts::{Cuts, recorded_cuts};
use file::Golden;
pub use file::GoldenError;

/// Checks one golden file with the reference in the arithmetic `T`.
///
/// # Errors
/// [`GoldenError`] when the file cannot be read or is not understood. A stage that differs is not an error: it is in
/// the report.
pub fn verify_file<T: Scalar>(path: &Path) -> Result<FileReport, GoldenError> {
    verify_file_on::<T, _>(path, &Cpu)
}

/// Checks one golden file with a backend.
///
/// # Errors
/// As [`verify_file`], and what the backend could not do.
pub fn verify_file_on<T: Scalar, B: Inspect<T>>(path: &Path, backend: &B) -> Result<FileReport, GoldenError> {
    let file = TensorFile::open(path)?;
    // What the reference errs in this arithmetic.
    let single = if B::REFERENCE { Vec::new() } else { verify_file::<T>(path)?.stages };
    let golden = Golden { file: &file, backend, single };
    let kind = golden.kind();
    let stages = match kind {
        Some(Kind::DuoGpt) => golden.duogpt::<T>()?,
        Some(Kind::SparseGpt) => golden.sparsegpt::<T>()?,
        Some(Kind::Wanda) if B::unsupported(Kind::Wanda).is_some() => Vec::new(),
        Some(Kind::Wanda) => golden.wanda::<T>()?,
        Some(Kind::ActivationPruning) => golden.activation_pruning::<T>()?,
        Some(Kind::Gptaq) => golden.gptaq::<T>()?,
        None => Vec::new(),
    };
    let not_compared = match kind.map(B::unsupported) {
        Some(reason) => reason.map(String::from).into_iter().collect(),
        None => vec!["not a golden file: neither its metadata nor its tensors name a known kind".into()],
    };
    Ok(FileReport {
        path: path.to_path_buf(),
        sha256: file.sha256(),
        expected: None,
        kind,
        stages,
        not_compared,
    })
}
