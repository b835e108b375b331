//! `duogpt inspect`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::CliError;
use crate::llama::Checkpoint;
use crate::tensors::Dtype;

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
    /// Fraction of zeros, for the linears.
    sparsity: Option<f64>,
}

/// Lists every tensor.
///
/// # Errors
/// When the checkpoint cannot be read.
pub fn run(args: &InspectArgs) -> Result<ExitCode, CliError> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let mut lines = Vec::new();
    let (mut weights, mut zeros) = (0, 0);
    for layer in 0..checkpoint.config.num_hidden_layers {
        for &linear in checkpoint.config.linears() {
            let weight = checkpoint.linear::<f32>(layer, linear)?;
            let zero = weight.iter().filter(|w| **w == 0.0).count();
            weights += weight.len();
            zeros += zero;
            let tensor = checkpoint.tensor(layer, linear);
            let info = checkpoint.info(&tensor)?;
            let sparsity = Some(zero as f64 / weight.len() as f64);
            lines.push(TensorLine { tensor, dtype: info.dtype, shape: info.shape.clone(), sparsity });
        }
        checkpoint.drop_pages();
    }
    for shard in checkpoint.shards() {
        for (name, info) in shard.in_file_order() {
            if lines.iter().all(|line| line.tensor != name) {
                let (dtype, shape) = (info.dtype, info.shape.clone());
                lines.push(TensorLine { tensor: name.into(), dtype, shape, sparsity: None });
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
        let dtype = format!("{:?}", line.dtype);
        println!("{:<48} {dtype:<5} {shape:>16}   {sparsity}", line.tensor);
    }
    println!("linears: {weights} weights, {zeros} zero ({:.2} %)", 100.0 * zeros as f64 / weights as f64);
    Ok(ExitCode::SUCCESS)
}
