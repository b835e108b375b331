//! The directories of the pruned models.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::ComparisonError;
use super::job::MethodComparison;
use super::plan::PlannedModel;
use super::report::Pruning;
use crate::calibrate::report::{self, LinearReport};
use crate::tensors::TensorError;

/// The subdirectory of models that are removed once they are measured.
const TEMPORARY: &str = "temporary";

/// Where a pruned model is, or will be.
pub(super) struct ModelDirectory {
    pub path: PathBuf,
    temporary: bool,
}

impl ModelDirectory {
    pub fn of(job: &MethodComparison, model: &PlannedModel) -> Self {
        let kept = job.models.join(model.name());
        match job.keep || kept.is_dir() {
            true => ModelDirectory { path: kept, temporary: false },
            false => ModelDirectory { path: job.models.join(TEMPORARY).join(model.name()), temporary: true },
        }
    }

    /// Whether the model has to be pruned: it does not exist, and a measurement needs it.
    pub fn must_prune(&self, job: &MethodComparison, model: &PlannedModel) -> bool {
        model.method.is_some()
            && !self.path.is_dir()
            && (job.keep || model.lacks_pruning() || model.lacks_measurement())
    }

    /// Creates the parent directory.
    pub fn create_parent(&self) -> Result<(), TensorError> {
        match self.path.parent() {
            Some(parent) => fs::create_dir_all(parent).map_err(TensorError::io(parent)),
            None => Ok(()),
        }
    }

    /// A guard that removes a temporary model when it is dropped.
    pub fn remove_when_measured(&self) -> Option<RemoveOnDrop<'_>> {
        self.temporary.then(|| RemoveOnDrop(&self.path))
    }

    /// The report of the pruning run that made the model.
    pub fn read_report(&self) -> Result<Pruning, ComparisonError> {
        #[derive(Deserialize)]
        struct Totals {
            seconds: f64,
            sparsity: f64,
        }
        #[derive(Deserialize)]
        struct Whole {
            totals: Totals,
            linears: Vec<LinearReport>,
        }
        let path = self.path.join(report::FILE_NAME);
        let text = fs::read_to_string(&path).map_err(TensorError::io(&path))?;
        let Whole { totals, linears } = serde_json::from_str(&text)
            .map_err(|error| ComparisonError::Report { path, detail: error.to_string() })?;
        Ok(Pruning { seconds: totals.seconds, sparsity: totals.sparsity, linears })
    }
}

/// Removes the directories of models that are empty.
pub(super) fn remove_empty(job: &MethodComparison) {
    for directory in [job.models.join(TEMPORARY), job.models.clone()] {
        let _ = fs::remove_dir(directory); // the system refuses where something is left
    }
}

/// Removes a directory.
pub(super) struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        // What cannot be removed is in the user's own output directory, under a name that says what it is.
        let _ = fs::remove_dir_all(self.0);
    }
}
