//! The command line: one file per subcommand, and what several of them share.

pub mod compare;
pub mod compare_tensors;
pub mod convert;
pub mod demo;
pub mod eval;
pub mod generate;
pub mod inspect;
mod method;
mod progress;
pub mod prune;
pub mod thresholds;
pub mod vectors;
pub mod verify;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::calibrate::windows::{Cut, Windows, WindowsError};
use crate::cuda::Gpu;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Checkpoint, CheckpointError};
use crate::tensors::FloatType;
use progress::Progress;

/// Reference and verification suite for the DuoGPT dual-sparse pruning algorithm.
#[derive(Parser)]
#[command(name = "duogpt", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prune the small model that comes with the source by four methods, and compare the results.
    Demo(demo::DemoArgs),
    /// Prune a checkpoint. If a flag is given twice, the last value is used.
    #[command(args_override_self = true)]
    Prune(prune::PruneArgs),
    /// Find an activation threshold for the input of every linear (TEAL), for `eval --thresholds`.
    Thresholds(thresholds::ThresholdsArgs),
    /// Prune a checkpoint by several methods, measure each, and report which differences exceed the noise. If a flag
    /// is given twice, the last value is used.
    #[command(args_override_self = true)]
    Compare(compare::CompareArgs),
    /// Measure the perplexity or the zero-shot accuracy of a model.
    #[command(subcommand)]
    Eval(eval::EvalCommand),
    /// Continue a text with a model. Weights stay compressed in memory; activations can be pruned.
    Generate(generate::GenerateArgs),
    /// Check the reference, the CUDA device, or the results of a port against the test vectors, stage by stage.
    Verify(verify::VerifyArgs),
    /// Make test vectors, or check a folder of them.
    #[command(subcommand)]
    Vectors(vectors::VectorsCommand),
    /// Compare the tensors of two files, for example those of a test vector and of your own port.
    CompareTensors(compare_tensors::CompareTensorsArgs),
    /// Store a checkpoint in another format (dense, or without the zeros), or make a model directory from a GGUF file.
    Convert(convert::ConvertArgs),
    /// List a checkpoint's tensors with shape, type, format, bytes and sparsity.
    Inspect(inspect::InspectArgs),
}

/// An error with its causes.
pub type CliError = Box<dyn Error + Send + Sync>;

impl Cli {
    /// Runs the subcommand. Exit code 1: a comparison found a difference. Exit code 2: the command could not run.
    pub fn run(self) -> ExitCode {
        let outcome = match self.command {
            Command::Demo(args) => demo::run(&args),
            Command::Prune(args) => prune::run(&args),
            Command::Thresholds(args) => thresholds::run(&args),
            Command::Compare(args) => compare::run(&args),
            Command::Eval(command) => eval::run(&command),
            Command::Generate(args) => generate::run(&args),
            Command::Verify(args) => verify::run(&args),
            Command::Vectors(command) => vectors::run(&command),
            Command::CompareTensors(args) => compare_tensors::run(&args),
            Command::Convert(args) => convert::run(&args),
            Command::Inspect(args) => inspect::run(&args),
        };
        outcome.unwrap_or_else(|error| {
            let mut said = error.to_string();
            eprintln!("error: {said}");
            let mut cause = error.source();
            while let Some(error) = cause {
                let text = error.to_string();
                // Many messages end in that of their cause.
                if !said.contains(&text) {
                    eprintln!("  caused by: {text}");
                }
                (said, cause) = (text, error.source());
            }
            ExitCode::from(2)
        })
    }
}

/// The arithmetic of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// Single.
    F32,
    /// Double.
    F64,
}

/// Calls a function that is generic over the scalar with the type that the flag names.
macro_rules! with_precision {
    ($precision:expr, $function:ident ( $($argument:expr),* $(,)? )) => {
        match $precision {
            $crate::cli::Precision::F32 => $function::<f32>($($argument),*),
            $crate::cli::Precision::F64 => $function::<f64>($($argument),*),
        }
    };
}
pub(crate) use with_precision;

/// The device that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The reference implementation.
    Cpu,
    /// The first CUDA device, in f32.
    Cuda,
    /// CUDA if it can be used, otherwise the CPU.
    Auto,
}

/// Why `--precision f64` excludes CUDA.
pub(crate) const IN_F32_ONLY: &str = "CUDA computes in f32, not --precision f64";

impl BackendName {
    /// The chosen device; `None` is the CPU. `cannot` names a requested option that CUDA does not support.
    ///
    /// # Errors
    /// With `cuda`: the unsupported option, or why no device can be used. `auto` prints that and uses the CPU.
    pub(crate) fn device(self, cannot: Option<&str>) -> Result<Option<Gpu>, CliError> {
        let device = || match cannot {
            Some(reason) => Err(CliError::from(format!("{reason}: use --backend cpu"))),
            None => Ok(Gpu::new(0)?),
        };
        match self {
            BackendName::Cpu => Ok(None),
            BackendName::Cuda => device().map(Some),
            BackendName::Auto => Ok(device().inspect_err(|error| eprintln!("{error}; using the CPU")).ok()),
        }
    }
}

/// Types that activations can be rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActivationType {
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl From<ActivationType> for FloatType {
    fn from(value: ActivationType) -> Self {
        match value {
            ActivationType::F32 => FloatType::F32,
            ActivationType::Bf16 => FloatType::Bf16,
            ActivationType::F16 => FloatType::F16,
        }
    }
}

/// Opens a model directory, and prints what its user should know of how it is read.
///
/// # Errors
/// [`CheckpointError`].
pub(crate) fn open(model: &Path) -> Result<Checkpoint, CheckpointError> {
    let checkpoint = Checkpoint::open(model)?;
    for warning in &checkpoint.warnings {
        eprintln!("warning: {}: {warning}", model.display());
    }
    Ok(checkpoint)
}

/// Reads a model's tokenizer, and prints what its user should know of how it is read.
///
/// # Errors
/// [`CheckpointError`].
pub(crate) fn tokenizer_of(checkpoint: &Checkpoint) -> Result<Tokenizer, CheckpointError> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    for warning in &tokenizer.warnings {
        eprintln!("warning: {}: {warning}", checkpoint.directory.display());
    }
    Ok(tokenizer)
}

/// A fraction of zeros in [0, 1).
pub(crate) fn fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if (0.0..1.0).contains(&p) => Ok(p),
        _ => Err(format!("`{text}` is not a fraction: give a number in [0, 1), such as 0.5")),
    }
}

/// A text or a token file.
#[derive(Args, Clone, Debug)]
#[group(required = false, multiple = false)]
pub struct DataSource {
    /// Text file (UTF-8), or JSONL with a field `text` in every line.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Token windows: safetensors with a tensor `tokens` (windows x length, I64).
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
}

impl DataSource {
    /// Token windows if the name ends in `.safetensors`, otherwise a text.
    pub fn of(file: &Path) -> Self {
        let file = Some(file.to_path_buf());
        match file.as_ref().and_then(|file| file.extension()) {
            Some(extension) if extension == "safetensors" => DataSource { text: None, tokens: file },
            _ => DataSource { text: file, tokens: None },
        }
    }

    /// Cuts the text into windows, or reads the windows of the token file; `None` if neither is given.
    ///
    /// # Errors
    /// [`WindowsError`].
    pub fn windows(
        &self,
        checkpoint: &Checkpoint,
        length: Option<usize>,
        rows: Option<usize>,
        cut: Cut,
    ) -> Result<Option<Windows>, WindowsError> {
        let config = &checkpoint.config;
        match (&self.text, &self.tokens) {
            (Some(text), _) => {
                let tokenizer = tokenizer_of(checkpoint)?;
                // The paper's 2048, or what the model can do.
                let length = length.unwrap_or(config.max_position_embeddings.min(2048));
                Windows::from_text(text, &tokenizer, config, length, cut).map(Some)
            }
            (None, Some(tokens)) => Windows::from_tokens(tokens, config, length, rows).map(Some),
            (None, None) => Ok(None),
        }
    }
}
