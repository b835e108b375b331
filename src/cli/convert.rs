//! `duogpt convert`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{CliError, Progress};
use crate::calibrate::convert::convert;
use crate::llama::Checkpoint;
use crate::llama::sparse_bitmask::StorageFormat;

/// Arguments of `duogpt convert`.
#[derive(Args)]
pub struct ConvertArgs {
    /// A Hugging Face directory, in either format.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The directory to create.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// How the decoder layers' weights are to be stored.
    #[arg(long, value_enum)]
    format: StorageFormat,
}

/// Writes the same checkpoint in another format.
///
/// # Errors
/// When the checkpoint cannot be read or the output not be written; nothing is left then.
pub fn run(args: &ConvertArgs) -> Result<ExitCode, CliError> {
    let checkpoint = Checkpoint::open(&args.model)?;
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
