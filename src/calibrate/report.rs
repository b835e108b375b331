//! `prune-report.json`: settings, errors, sparsity and environment of a pruning run.

use std::fmt;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::gap::Optimality;
use super::method::DampingRetry;
use super::windows::Windows;
use crate::linalg::Scalar;
use crate::progress::Observer;
use crate::reference::Method;
use crate::reference::baseline::gptaq::GridConfig;
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
    /// ||W' X^ - W X~||_F / ||W X~||_F over the calibration data; null without data, or where W X~ is zero. Both are
    /// without the bias, which is the same in both outputs and would only enlarge the norm.
    pub relative_output_error: Option<f64>,
    /// The comparison with the best weights for the same mask, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub optimality: Option<Optimality>,
    /// How rounding to the stored type moved the grid points; null without grids.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grid_rounding: Option<GridRounding>,
    /// The damping that was used, if the Hessian needed more than was asked for.
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

    /// Reports the linear to the observer, after a warning if it was damped more than was asked for.
    pub(super) fn tell(&self, observer: &dyn Observer) {
        if let Some(retry) = self.damping_retry {
            observer.warning(&format!(
                "{}: the Hessian was not positive definite at column {}; damped with {}",
                self.tensor, retry.column, retry.damping
            ));
        }
        observer.result(&self.to_string());
    }
}

/// In one line, in columns: tensor, seconds, output error, sparsity and, where it was measured, the optimality gap.
impl fmt::Display for LinearReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let error = self.relative_output_error.map_or("-".into(), |error| format!("{error:.4}"));
        let (tensor, seconds, sparsity) = (&self.tensor, self.seconds, self.sparsity());
        write!(f, "{tensor:<44} {seconds:>7.2} s   output error {error:>7}   sparsity {sparsity:.4}")?;
        match self.optimality {
            Some(optimality) => {
                write!(f, "   gap {}", optimality.gap.map_or("-".into(), |gap| format!("{gap:.3}")))
            }
            None => Ok(()),
        }
    }
}

/// Quantised weights that the stored type cannot hold exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GridRounding {
    /// Weights whose stored value differs from their grid point.
    pub moved: usize,
    /// The largest difference, in steps of the grid. From 0.5 on, two grid points can become one.
    pub farthest: f64,
}

impl GridRounding {
    /// Compares the grid points with their stored values (n x k); `steps` holds the distances of neighbouring points.
    pub(super) fn of<T: Scalar>(points: &Array2<T>, stored: &Array2<T>, steps: &Array2<T>) -> Self {
        let mut found = GridRounding::default();
        for ((point, stored), step) in points.iter().zip(stored).zip(steps) {
            if point != stored {
                found.moved += 1;
                found.farthest = found.farthest.max(((*stored - *point) / *step).abs().widen());
            }
        }
        found
    }
}

/// The calibration data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Weights that are zero.
    pub zeros: usize,
    /// The fraction of zeros.
    pub sparsity: f64,
    /// The same for all linears; null without grids.
    pub grid_rounding: Option<GridRounding>,
    /// Wall-clock time of the whole run.
    pub seconds: f64,
}

impl Totals {
    pub(super) fn of(linears: &[LinearReport], seconds: f64) -> Self {
        let weights = linears.iter().map(|l| l.weights).sum();
        let zeros = linears.iter().map(|l| l.zeros).sum();
        let grid_rounding = linears
            .iter()
            .filter_map(|l| l.grid_rounding)
            .reduce(|a, b| GridRounding { moved: a.moved + b.moved, farthest: a.farthest.max(b.farthest) });
        Totals { weights, zeros, sparsity: zeros as f64 / weights as f64, grid_rounding, seconds }
    }
}

/// The program and machine of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this crate.
    pub version: String,
    /// Commit of the source, if it was built from a checkout.
    pub commit: String,
    /// Operating system and processor family.
    pub platform: String,
    /// The backend.
    pub backend: String,
    /// OpenBLAS's description of itself: version, build, and the kernels for this processor.
    pub blas: String,
}

impl Environment {
    /// The environment of this process.
    pub fn here(backend: String) -> Self {
        Environment {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("DUOGPT_COMMIT").into(),
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
    /// The grids that the kept weights were rounded to; the checkpoint holds their points as ordinary numbers.
    pub grids: Option<GridConfig>,
    /// p_x during calibration.
    pub activation_sparsity: f64,
    /// The type that activations were rounded to, if any.
    pub activation_dtype: Option<FloatType>,
    /// The data; null without.
    pub calibration: Option<Calibration>,
    /// Arithmetic of the run.
    pub precision: &'static str,
    /// Type of the stored weights; null means as in the source.
    pub dtype: Option<FloatType>,
    /// Sums over all linears.
    pub totals: Totals,
    /// Each linear, in the order of pruning.
    pub linears: Vec<LinearReport>,
    /// The program and the machine.
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
