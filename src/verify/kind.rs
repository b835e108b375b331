//! What a golden file holds.

use serde::Serialize;

/// The kinds of golden files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One DuoGPT layer with its traces.
    DuoGpt,
    /// Runs of SparseGPT on one layer.
    SparseGpt,
    /// Runs of Wanda on one layer.
    Wanda,
    /// Runs of GPTAQ on one layer.
    Gptaq,
    /// Activation pruning alone.
    ActivationPruning,
}
