//! `duogpt eval`: one file per measure.

pub mod perplexity;
pub mod zero_shot;

use std::process::ExitCode;

use clap::Subcommand;

use super::CliError;

/// What to measure.
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
/// Whatever keeps the model from being measured.
pub fn run(command: &EvalCommand) -> Result<ExitCode, CliError> {
    match command {
        EvalCommand::Perplexity(args) => perplexity::run(args),
        EvalCommand::ZeroShot(args) => zero_shot::run(args),
    }
}
