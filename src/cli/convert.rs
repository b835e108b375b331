//! `duogpt convert`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{ActivationType, CliError, Progress, open};
use crate::calibrate::convert::convert;
use crate::calibrate::import::import;
use crate::model::Checkpoint;
use crate::model::gguf::GgufFile;
use crate::model::sparse_bitmask::StorageFormat;
use crate::tensors::FloatType;

/// Arguments of `duogpt convert`.
#[derive(Args)]
pub struct ConvertArgs {
    /// A Hugging Face model directory, in either format; or a GGUF file of a LLaMA (values in F32, F16, BF16, Q8_0, Q4_0 or
    /// Q4_1), which becomes such a directory.
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// The directory to create.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// How the weights of the decoder layers are stored; needed for a directory.
    #[arg(long, value_enum)]
    format: Option<StorageFormat>,
    /// The type of a GGUF file's values in the directory: f32 holds every one of them exactly.
    #[arg(long, value_enum)]
    dtype: Option<ActivationType>,
}

/// Writes the same checkpoint in another format.
///
/// # Errors
/// If the checkpoint cannot be read or the output cannot be written. Then no output is left.
pub fn run(args: &ConvertArgs) -> Result<ExitCode, CliError> {
    if args.model.is_file() {
        return run_gguf(args);
    }
    if args.dtype.is_some() {
        return Err(
            "--dtype is for a GGUF file; `prune --dtype` changes the type of a directory's weights".into()
        );
    }
    let format = args.format.ok_or("give --format dense or --format sparse-bitmask")?;
    let checkpoint = open(&args.model)?;
    convert(&checkpoint, &args.output, format, &Progress::new("convert", false))?;
    let (before, after) = (bytes(&checkpoint), bytes(&Checkpoint::open(&args.output)?));
    println!(
        "{}: {after} bytes of weights ({:.1} % of the source's {before})",
        args.output.display(),
        100.0 * after as f64 / before as f64
    );
    Ok(ExitCode::SUCCESS)
}

fn run_gguf(args: &ConvertArgs) -> Result<ExitCode, CliError> {
    if args.format == Some(StorageFormat::SparseBitmask) {
        return Err("a GGUF file becomes a dense directory; convert that to --format sparse-bitmask".into());
    }
    let file = GgufFile::open(&args.model)?;
    let dtype = args.dtype.map_or(FloatType::F32, FloatType::from);
    import(&file, &args.output, dtype, &Progress::new("convert", false))?;
    let after = bytes(&Checkpoint::open(&args.output)?);
    println!("{}: {after} bytes of weights, from {}", args.output.display(), args.model.display());
    Ok(ExitCode::SUCCESS)
}

fn bytes(checkpoint: &Checkpoint) -> usize {
    checkpoint.shards().iter().map(|shard| shard.identity().0).sum()
}
