//! `duogpt thresholds`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{CliError, DataSource, Precision, Progress, fraction, open, with_precision};
use crate::backend::Cpu;
use crate::calibrate::thresholds::{Allocation, ThresholdFile, ThresholdJob};
use crate::calibrate::windows::{Cut, Windows};
use crate::files::write_atomically;
use crate::linalg::Scalar;
use crate::model::Checkpoint;

/// Arguments of `duogpt thresholds`.
#[derive(Args)]
pub struct ThresholdsArgs {
    /// The model: a Hugging Face model directory, pruned or not.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The file to create.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    data: DataSource,
    /// Calibration windows (of a token file: its first N; by default 16 of a text, all of a token file).
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Tokens per window (by default 2048, or the model's context if that is shorter).
    #[arg(long, value_name = "T")]
    sequence_length: Option<usize>,
    /// Seed of the windows' random starts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fraction of the activations to prune, weighted by the size of the linears: the share of each layer's weights that
    /// are multiplied by a zero.
    #[arg(long, value_name = "P", default_value = "0.5", value_parser = fraction, allow_negative_numbers = true)]
    activation_sparsity: f64,
    /// How this fraction is distributed over the linears of a layer.
    #[arg(long, value_enum, default_value_t = Allocation::Uniform)]
    allocation: Allocation,
    /// Step of the greedy allocation, as a fraction of the layer's weights. Smaller steps reach smaller linears and take
    /// longer: each layer runs P / S times for each of its linears.
    #[arg(long, value_name = "S", default_value_t = 0.02)]
    step: f64,
    /// Arithmetic of the forward passes.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Also print the file to stdout, and nothing else.
    #[arg(long)]
    json: bool,
}

/// Finds the thresholds, writes them, and prints a line per layer.
///
/// # Errors
/// If they cannot be found or written. Then no file is written.
pub fn run(args: &ThresholdsArgs) -> Result<ExitCode, CliError> {
    check_output(&args.output)?;
    let checkpoint = open(&args.model)?;
    let cut = Cut::Random { samples: args.samples.unwrap_or(16), seed: args.seed };
    let windows = args.data.windows(&checkpoint, args.sequence_length, args.samples, cut)?.ok_or(
        "thresholds need calibration data; give a text with --text FILE, or windows with --tokens FILE",
    )?;
    let file = with_precision!(args.precision, find(args, &checkpoint, &windows))?;
    let json = file.to_json();
    write_atomically(&args.output, json.as_bytes())?;
    if args.json {
        print!("{json}");
        return Ok(ExitCode::SUCCESS);
    }
    print!("{:<8}", "layer");
    checkpoint.config.linears().iter().for_each(|linear| print!("{:>11}", linear.to_string()));
    println!("   fraction of the input pruned on the calibration data");
    for (number, layer) in file.layers.iter().enumerate() {
        print!("{number:<8}");
        layer.projections.iter().for_each(|projection| print!("{:>11.4}", projection.realised));
        match (layer.error, layer.uniform_error) {
            (Some(error), Some(uniform)) => println!("   output error {error:.4} (uniform {uniform:.4})"),
            _ => println!(),
        }
    }
    println!(
        "{:.2} % of the weights are multiplied by a zero, {:.2} % were requested; thresholds in {}",
        100.0 * file.realised(),
        100.0 * file.activation_sparsity,
        args.output.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Checked before the long work.
fn check_output(path: &Path) -> Result<(), CliError> {
    let problem = |detail: &str| Err(format!("{}: {detail}", path.display()).into());
    if path.symlink_metadata().is_ok() {
        return problem("exists already; choose another --output or remove it");
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            problem("no such directory; create it, or choose another --output")
        }
        _ if path.file_name().is_none() => problem("is no name for a file"),
        _ => Ok(()),
    }
}

fn find<T: Scalar>(
    args: &ThresholdsArgs,
    checkpoint: &Checkpoint,
    windows: &Windows,
) -> Result<ThresholdFile, CliError> {
    let job = ThresholdJob {
        checkpoint,
        windows,
        activation_sparsity: args.activation_sparsity,
        allocation: args.allocation,
        step: args.step,
    };
    Ok(job.run::<T, _>(&Cpu, &Progress::new("thresholds", false))?)
}
