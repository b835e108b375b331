//! `duogpt convert`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{CliError, Progress, open};
use crate::calibrate::convert::convert;
use crate::model::Checkpoint;
use crate::model::sparse_bitmask::StorageFormat;

/// Arguments of `duogpt convert`.
#[derive(Args)]
pub struct ConvertArgs {
    /// A Hugging Face model directory, in either format.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The directory to create.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// How the weights of the decoder layers are stored.
    #[arg(long, value_enum)]
    format: StorageFormat,
}

/// Writes the same checkpoint in another format.
///
/// # Errors
/// If the checkpoint cannot be read or the output cannot be written. Then no output is left.
pub fn run(args: &ConvertArgs) -> Result<ExitCode, CliError> {
    let checkpoint = open(&args.model)?;
    convert(&checkpoint, &args.output, args.format, &Progress::new("convert", false))?;
    let bytes = |checkpoint: &Checkpoint| -> usize {
        checkpoint.shards().iter().map(|shard| shard.identity().0).sum()
    };
    let (before, after) = (bytes(&checkpoint), bytes(&Checkpoint::open(&args.output)?));
    println!(
        "{}: {after} bytes of weights ({:.1} % of the source's {before})",
        args.output.display(),
        100.0 * after as f64 / before as f64
    );
    Ok(ExitCode::SUCCESS)
}
