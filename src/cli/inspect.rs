//! `duogpt inspect`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{CliError, open};
use crate::model::Checkpoint;
use crate::model::sparse_bitmask::StorageFormat;
use crate::tensors::{Dtype, TensorError};

/// Arguments of `duogpt inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// A Hugging Face model directory.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Print as JSON to stdout, and nothing else.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct TensorLine {
    tensor: String,
    dtype: Dtype,
    shape: Vec<usize>,
    format: StorageFormat,
    bytes: usize,
    /// Fraction of zeros; only of linears.
    sparsity: Option<f64>,
}

impl TensorLine {
    fn of(checkpoint: &Checkpoint, tensor: &str, sparsity: Option<f64>) -> Result<Self, TensorError> {
        let info = checkpoint.info(tensor)?;
        let (format, bytes) = checkpoint.storage(tensor)?;
        let (dtype, shape) = (info.dtype, info.shape.clone());
        Ok(TensorLine { tensor: tensor.into(), dtype, shape, format, bytes, sparsity })
    }
}

/// Lists every tensor.
///
/// # Errors
/// If the checkpoint cannot be read.
pub fn run(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let checkpoint = open(&args.model)?;
    let mut lines = Vec::new();
    let (mut weights, mut zeros) = (0, 0);
    for layer in 0..checkpoint.config.num_hidden_layers {
        for &linear in checkpoint.config.linears() {
            let weight = checkpoint.linear::<f32>(layer, linear)?;
            let zero = weight.iter().filter(|w| **w == 0.0).count();
            weights += weight.len();
            zeros += zero;
            let sparsity = Some(zero as f64 / weight.len() as f64);
            lines.push(TensorLine::of(&checkpoint, &checkpoint.tensor(layer, linear), sparsity)?);
        }
        checkpoint.drop_pages();
    }
    for shard in 0..checkpoint.shards().len() {
        for (name, _) in checkpoint.tensors_of(shard) {
            if lines.iter().all(|line| line.tensor != name) {
                lines.push(TensorLine::of(&checkpoint, &name, None)?);
            }
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(ExitCode::SUCCESS);
    }
    for line in &lines {
        let shape = line.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let sparsity = line.sparsity.map_or(String::new(), |s| format!("sparsity {s:.4}"));
        let (dtype, bytes) = (format!("{:?}", line.dtype), line.bytes);
        let format = line.format.to_possible_value().expect("no format is hidden");
        let format = format.get_name();
        println!("{:<48} {dtype:<5} {shape:>16} {format:<14} {bytes:>12} bytes   {sparsity}", line.tensor);
    }
    let (bytes, dense) = lines.iter().fold((0, 0), |(bytes, dense), line| {
        (bytes + line.bytes, dense + line.shape.iter().product::<usize>() * line.dtype.bitsize() / 8)
    });
    println!("all tensors: {bytes} bytes, {:.1} % of dense", 100.0 * bytes as f64 / dense as f64);
    println!("linears: {weights} weights, {zeros} zero ({:.2} %)", 100.0 * zeros as f64 / weights as f64);
    Ok(ExitCode::SUCCESS)
}
