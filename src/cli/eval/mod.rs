//! `duogpt eval`: one file per measure.

pub mod perplexity;
pub mod zero_shot;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{CliError, fraction};
use crate::calibrate::streams::Thresholds;
use crate::calibrate::thresholds::ThresholdFile;
use crate::model::{CheckpointError, ModelConfig};

/// How activations are pruned at the input of every linear.
#[derive(Args)]
#[group(required = false, multiple = false)]
pub struct ActivationPruning {
    /// Fraction of each token's activations to zero at the input of every linear: the smallest ones.
    #[arg(long, value_name = "P", default_value = "0", value_parser = fraction, allow_negative_numbers = true)]
    pub(super) activation_sparsity: f64,
    /// Zero the activations that are not above the thresholds in this file, written by `duogpt thresholds`.
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
}

impl ActivationPruning {
    /// The thresholds of the file, if one is given; the first `dense_tokens` tokens of a sequence stay dense.
    pub(super) fn thresholds(
        &self,
        config: &ModelConfig,
        dense_tokens: usize,
    ) -> Result<Option<Thresholds>, CheckpointError> {
        let read = |path: &PathBuf| ThresholdFile::read(path, config);
        Ok(self.thresholds.as_ref().map(read).transpose()?.map(|file| file.thresholds(dense_tokens)))
    }
}

impl fmt::Display for ActivationPruning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.thresholds {
            Some(path) => write!(f, "activation thresholds {}", path.display()),
            None => write!(f, "activation sparsity {}", self.activation_sparsity),
        }
    }
}

/// The measure.
#[derive(Subcommand)]
pub enum EvalCommand {
    /// Perplexity of consecutive, non-overlapping windows.
    Perplexity(perplexity::PerplexityArgs),
    /// Accuracy on multiple-choice tasks, equal to lm-evaluation-harness.
    ZeroShot(zero_shot::ZeroShotArgs),
}

/// Measures and prints.
///
/// # Errors
/// If the model cannot be measured.
pub fn run(command: &EvalCommand) -> Result<ExitCode, CliError> {
    match command {
        EvalCommand::Perplexity(args) => perplexity::run(args),
        EvalCommand::ZeroShot(args) => zero_shot::run(args),
    }
}
