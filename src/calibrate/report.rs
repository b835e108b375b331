//! `prune-report.json`: what was done, how well, on what machine.

use serde::{Deserialize, Serialize};

use super::windows::Windows;
use crate::backend::DampingRetry;
use crate::reference::Method;
use crate::tensors::FloatType;

/// Its name in the output directory.
pub const FILE_NAME: &str = "prune-report.json";

/// One linear.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinearReport {
    /// Tensor name.
    pub tensor: String,
    /// Decoder layer, from 0.
    pub layer: usize,
    /// n k.
    pub weights: usize,
    /// Weights that are zero as stored.
    pub zeros: usize,
    /// ||W' X^ - W X~||_F / ||W X~||_F over the calibration data; null without data, or where W X~ is zero.
    pub relative_output_error: Option<f64>,
    /// Where the Hessian needed more damping than was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub damping_retry: Option<DampingRetry>,
    /// Wall-clock time: pruning it, and its share of the group's statistics and factorisation.
    pub seconds: f64,
}

impl LinearReport {
    /// Fraction of zeros.
    pub fn sparsity(&self) -> f64 {
        self.zeros as f64 / self.weights as f64
    }
}

/// The calibration data.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// Where it came from.
    pub source: String,
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens per sequence.
    pub sequence_length: usize,
}

impl Calibration {
    pub(super) fn of(windows: &Windows) -> Self {
        Calibration {
            source: windows.source.clone(),
            sequences: windows.len(),
            sequence_length: windows.length(),
        }
    }
}

/// Sums over all linears.
#[derive(Clone, Debug, Serialize)]
pub struct Totals {
    /// Weights of all linears.
    pub weights: usize,
    /// Those that are zero.
    pub zeros: usize,
    /// Their fraction.
    pub sparsity: f64,
    /// Wall-clock time of the whole run.
    pub seconds: f64,
}

impl Totals {
    pub(super) fn of(linears: &[LinearReport], seconds: f64) -> Self {
        let weights = linears.iter().map(|l| l.weights).sum();
        let zeros = linears.iter().map(|l| l.zeros).sum();
        Totals { weights, zeros, sparsity: zeros as f64 / weights as f64, seconds }
    }
}

/// Where a run took place.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Version of this crate.
    pub version: &'static str,
    /// Commit of the source, where it was built from a checkout.
    pub commit: &'static str,
    /// Operating system and processor family.
    pub platform: String,
    /// The backend.
    pub backend: String,
    /// What OpenBLAS says of itself: version, build, kernels chosen for this processor.
    pub blas: String,
}

impl Environment {
    /// This process.
    pub fn here(backend: String) -> Self {
        Environment {
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("DUOGPT_COMMIT"),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            backend,
            blas: crate::linalg::blas_description(),
        }
    }
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct PruneReport {
    /// Method and settings.
    #[serde(flatten)]
    pub method: Method,
    /// p_x during calibration.
    pub activation_sparsity: f64,
    /// Rounding of the activations, where there was one.
    pub activation_dtype: Option<FloatType>,
    /// The data; null without.
    pub calibration: Option<Calibration>,
    /// Arithmetic of the run.
    pub precision: &'static str,
    /// Type of the stored weights; null means as in the source.
    pub dtype: Option<FloatType>,
    /// All linears together.
    pub totals: Totals,
    /// One by one, in the order of pruning.
    pub linears: Vec<LinearReport>,
    /// Where it took place.
    pub environment: Environment,
}

impl PruneReport {
    /// Pretty-printed JSON.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        text
    }
}
