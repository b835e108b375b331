//! The outcome of a comparison.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::job::Repeats;
use crate::calibrate::report::{Environment, LinearReport};
use crate::calibrate::windows::Windows;
use crate::evaluate::noise::{Estimate, Standing};
use crate::evaluate::perplexity::Perplexity;
use crate::evaluate::zero_shot::Accuracy;
use crate::evaluate::zero_shot::tasks::Task;
use crate::model::Jitter;
use crate::reference::{Method, Sparsity};

/// A quantity by which methods are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// Perplexity without activation pruning.
    PerplexityDenseActivations,
    /// Perplexity with the point's activation sparsity, like everything below.
    Perplexity,
    /// The mean accuracy of the paper's main tables.
    FiveTasks,
    /// The mean accuracy of all seven tasks.
    SevenTasks,
    /// The accuracy of one task: per character where the task has that.
    Task(Task),
}

impl Quantity {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::PerplexityDenseActivations => "perplexity_dense_activations",
            Quantity::Perplexity => "perplexity",
            Quantity::FiveTasks => "five_tasks",
            Quantity::SevenTasks => "seven_tasks",
            Quantity::Task(task) => task.name(),
        }
    }

    /// Whether a larger value is better.
    pub fn is_accuracy(self) -> bool {
        !matches!(self, Quantity::PerplexityDenseActivations | Quantity::Perplexity)
    }
}

impl Serialize for Quantity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A quantity of one method, compared with the other methods of the point.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Mean and deviation over the repeats.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Difference to the dense weights at the same activation sparsity; null if those are not compared.
    pub gap_to_dense: Option<f64>,
    /// The rank among the methods that prune; null if there is only one, and for the dense weights.
    pub standing: Option<Standing>,
}

/// The report of a pruning run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pruning {
    /// Wall-clock time.
    pub seconds: f64,
    /// Fraction of zeros.
    pub sparsity: f64,
    /// Every linear.
    pub linears: Vec<LinearReport>,
}

/// One repeat of a method.
#[derive(Clone, Debug, Serialize)]
pub struct MethodRun {
    /// Name of the model, and of its directory where it is kept.
    pub name: String,
    /// The jitter of the dense weights, where there was one.
    pub jitter: Option<Jitter>,
    /// Null for the dense model.
    pub pruning: Option<Pruning>,
    /// Perplexity without activation pruning.
    pub perplexity_dense_activations: Option<Perplexity>,
    /// With the point's activation sparsity.
    pub perplexity: Option<Perplexity>,
    /// With the point's activation sparsity.
    pub tasks: BTreeMap<Task, Accuracy>,
}

/// One method at one point.
#[derive(Clone, Debug, Serialize)]
pub struct MethodResult {
    /// Name of the method; `"dense"` is the dense weights.
    pub method: &'static str,
    /// Its settings; null for the dense weights.
    pub settings: Option<Method>,
    /// Every quantity.
    pub quantities: BTreeMap<Quantity, Measured>,
    /// By decoder layer: the mean over its linears of error / error of the best weights for the same mask. Empty where
    /// it was not asked for, and for the dense weights.
    pub optimality_gap: Vec<Estimate>,
    /// Wall-clock time of pruning; null for the dense weights.
    pub seconds_to_prune: Option<Estimate>,
    /// The repeats.
    pub runs: Vec<MethodRun>,
}

/// All methods at one point.
#[derive(Clone, Debug, Serialize)]
pub struct PointResult {
    /// Weight sparsity of the methods that prune.
    pub weight_sparsity: Sparsity,
    /// Activation sparsity of all, the dense weights too.
    pub activation_sparsity: f64,
    /// In the order in which the methods were given.
    pub rows: Vec<MethodResult>,
}

/// The windows that were used.
#[derive(Clone, Debug, Serialize)]
pub struct WindowsSummary {
    /// Where they came from.
    pub source: String,
    /// Number of windows.
    pub windows: usize,
    /// Tokens per window.
    pub sequence_length: usize,
    /// SHA-256 of the tokens.
    pub sha256: String,
}

impl WindowsSummary {
    pub(super) fn of(windows: &Windows) -> Self {
        WindowsSummary {
            source: windows.source.clone(),
            windows: windows.len(),
            sequence_length: windows.length(),
            sha256: windows.digest(),
        }
    }
}

/// How much was computed, and how much was in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Models pruned.
    pub pruned: usize,
    /// Perplexities and task accuracies measured.
    pub measured: usize,
    /// Results of either kind read from the cache.
    pub from_cache: usize,
}

/// The whole outcome of a comparison of methods.
#[derive(Clone, Debug, Serialize)]
pub struct ComparisonReport {
    /// Directory of the dense model.
    pub model: PathBuf,
    /// SHA-256 of the content of its files.
    pub model_sha256: String,
    /// Calibration data.
    pub calibration: Option<WindowsSummary>,
    /// The windows for perplexity.
    pub evaluation: Option<WindowsSummary>,
    /// Documents per task.
    pub documents: BTreeMap<Task, usize>,
    /// Arithmetic of the runs.
    pub precision: &'static str,
    /// How often each method pruned.
    pub repeats: Repeats,
    /// How much was computed and how much was cached.
    pub steps: Steps,
    /// Every pair of sparsities.
    pub points: Vec<PointResult>,
    /// The program and the machine.
    pub environment: Environment,
}
