//! `duogpt eval perplexity`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::ActivationPruning;
use crate::backend::Cpu;
use crate::calibrate::streams::Activations;
use crate::calibrate::windows::{Cut, Windows};
use crate::cli::{ActivationType, CliError, DataSource, Precision, Progress, fraction, open, with_precision};
use crate::evaluate::perplexity::{Perplexity, perplexity};
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::tensors::FloatType;

/// Arguments of `duogpt eval perplexity`.
#[derive(Args)]
pub struct PerplexityArgs {
    /// The model: a Hugging Face model directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    data: DataSource,
    /// Tokens per window (by default 2048, or the model's context if that is shorter).
    #[arg(long, value_name = "T")]
    sequence_length: Option<usize>,
    /// Use at most N windows.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    pruning: ActivationPruning,
    /// Leave the first fraction F of each window's tokens dense (TEAL's published figures: 0.5).
    #[arg(long, value_name = "F", default_value = "0", value_parser = fraction, requires = "thresholds")]
    dense_prefix: f64,
    /// Round the input of every linear to this type.
    #[arg(long, value_enum)]
    activation_dtype: Option<ActivationType>,
    /// Arithmetic of the forward pass.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Print the result as JSON to stdout, and nothing else.
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
///
/// # Errors
/// If the model cannot be measured.
pub fn run(args: &PerplexityArgs) -> Result<ExitCode, CliError> {
    let checkpoint = open(&args.model)?;
    let cut = Cut::Consecutive { limit: args.limit };
    let windows = args
        .data
        .windows(&checkpoint, args.sequence_length, args.limit, cut)?
        .ok_or("give the text to measure on with --text FILE, or windows with --tokens FILE")?;
    let result = with_precision!(args.precision, measure(args, &checkpoint, &windows))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        println!(
            "perplexity {:.4} ({} windows of {} tokens, {})",
            result.perplexity, result.windows, result.sequence_length, args.pruning
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn measure<T: Scalar>(
    args: &PerplexityArgs,
    checkpoint: &Checkpoint,
    windows: &Windows,
) -> Result<Perplexity, CliError> {
    let dense_tokens = (windows.length() as f64 * args.dense_prefix).floor() as usize;
    let thresholds = args.pruning.thresholds(&checkpoint.config, dense_tokens)?;
    let activations = Activations {
        round_to: args.activation_dtype.map(FloatType::from),
        sparsity: args.pruning.activation_sparsity,
        thresholds: thresholds.as_ref(),
    };
    Ok(perplexity::<T, _>(checkpoint, windows, activations, &Cpu, &Progress::new("perplexity", false))?)
}
