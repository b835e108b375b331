//! What to compare, and on what.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::ComparisonError;
use crate::calibrate::PruneJob;
use crate::calibrate::windows::Windows;
use crate::evaluate::zero_shot::tasks::TaskData;
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::reference::{Method, Sparsity};

/// How often each method prunes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Repeats {
    /// R, at least 1. With R = 1 the dense weights are pruned as they are, without jitter.
    pub count: u32,
    /// Relative jitter of the dense weights, different in every repeat.
    pub jitter: f64,
    /// Seed of the jitter.
    pub seed: u64,
}

/// Methods that are compared with each other: those of one weight and one activation sparsity.
#[derive(Clone, Debug)]
pub struct Point {
    /// Weight sparsity of the methods.
    pub weight_sparsity: Sparsity,
    /// p_x: during calibration, for a method that is calibrated on sparse activations, and during measurement.
    pub activation_sparsity: f64,
    /// Methods with this weight sparsity; `None` is the dense weights.
    pub methods: Vec<Option<Method>>,
}

/// A comparison of pruning methods on one model: what to compare, and on what.
pub struct MethodComparison<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// Calibration data; the dense weights and magnitude need none.
    pub calibration: Option<&'a Windows>,
    /// The windows for perplexity.
    pub evaluation: Option<&'a Windows>,
    /// The tasks for accuracy.
    pub tasks: &'a [TaskData],
    /// Methods and sparsities.
    pub points: Vec<Point>,
    /// How often each method prunes.
    pub repeats: Repeats,
    /// Measures each pruned linear against the best weights for its mask, on this many of its rows.
    pub report_gap: Option<usize>,
    /// Directory of the results.
    pub cache: PathBuf,
    /// Directory of the pruned models that are kept, and of a directory `temporary` for the others.
    pub models: PathBuf,
    /// Keeps the pruned models; otherwise each is removed once it is measured.
    pub keep: bool,
}

impl MethodComparison<'_> {
    /// Checks, before hours of work, everything that can be checked beforehand.
    pub(super) fn check<T: Scalar>(&self) -> Result<(), ComparisonError> {
        if self.evaluation.is_none() && self.tasks.is_empty() {
            return Err(ComparisonError::NothingToMeasure);
        }
        let (relative, smallest) = (self.repeats.jitter, 2.0 * T::UNIT_ROUNDOFF);
        if self.repeats.count > 1 && !(smallest..=0.1).contains(&relative) {
            return Err(ComparisonError::Jitter { relative, smallest, precision: T::NAME });
        }
        for point in &self.points {
            for &method in point.methods.iter().flatten() {
                self.prune_job(self.checkpoint, method, point.activation_sparsity, &self.models).check()?;
            }
        }
        Ok(())
    }

    /// The data that a method is calibrated on. Magnitude needs none and is faster without, unless its optimality gap
    /// is measured, which needs data.
    pub(super) fn calibration_of(&self, method: Method) -> Option<&Windows> {
        self.calibration.filter(|_| !matches!(method, Method::Magnitude(_)) || self.report_gap.is_some())
    }

    /// Prunes `checkpoint` into the directory `output`.
    pub(super) fn prune_job<'a>(
        &'a self,
        checkpoint: &'a Checkpoint,
        method: Method,
        activation_sparsity: f64,
        output: &'a Path,
    ) -> PruneJob<'a> {
        PruneJob {
            windows: self.calibration_of(method),
            activation_sparsity,
            report_gap: self.report_gap,
            resume: true,
            ..PruneJob::new(checkpoint, method, output)
        }
    }
}
