//! `duogpt prune`

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::method::{MethodName, Profile, Settings, warn_of_order};
use super::{
    ActivationType, BackendName, CliError, DataSource, IN_F32_ONLY, Precision, Progress, fraction, open,
    with_precision,
};
use crate::backend::{Backend, Cpu};
use crate::calibrate::PruneJob;
use crate::calibrate::report::{GridRounding, PruneReport};
use crate::calibrate::windows::{Cut, Windows};
use crate::cuda::Cuda;
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::sparse_bitmask::StorageFormat;
use crate::reference::baseline::gptaq::{GridConfig, GridRange, Symmetry};
use crate::reference::{ColumnOrder, Method, Sparsity};
use crate::tensors::FloatType;

/// Arguments of `duogpt prune`.
#[derive(Args)]
pub struct PruneArgs {
    /// The dense model: a Hugging Face model directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The directory to create.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    data: DataSource,
    /// Calibration windows (of a token file: its first N; by default 128 of a text, all of a token file).
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Tokens per window (by default 2048, or the model's context if that is shorter).
    #[arg(long, value_name = "T")]
    sequence_length: Option<usize>,
    /// Seed of the windows' random starts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Pruning method.
    #[arg(long, value_enum, default_value_t = MethodName::Duogpt)]
    method: MethodName,
    /// Fraction of weights to prune, or N:M: N zeros in every M weights of a row (by default 0.5; gptaq prunes none).
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    weight_sparsity: Option<Sparsity>,
    /// Fraction of each token's activations to zero during calibration (by default 0.5; 0 for gptaq). Wanda and magnitude
    /// are always calibrated on dense activations.
    #[arg(long, value_name = "P", value_parser = fraction, allow_negative_numbers = true)]
    activation_sparsity: Option<f64>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    quantisation: Quantisation,
    /// Device that gathers statistics and prunes. The forward pass of the model stays on the CPU.
    #[arg(long, value_enum, default_value_t = BackendName::Cpu)]
    backend: BackendName,
    /// Arithmetic of calibration and pruning.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// How the pruned weights are stored. sparse-bitmask leaves out the zeros, in the layout of the compressed-tensors
    /// package: about 56 % of the bytes at 50 % zeros in bf16.
    #[arg(long, value_enum, default_value_t)]
    format: StorageFormat,
    /// Type of the stored weights (by default as in the checkpoint).
    #[arg(long, value_enum)]
    dtype: Option<FloatType>,
    /// Round the input of every linear to this type in both streams, as a model that runs in that type does. By default
    /// inputs are not rounded on the CPU, and on a CUDA device to the type of the weights.
    #[arg(long, value_enum)]
    activation_dtype: Option<ActivationType>,
    /// If a Hessian is not positive definite, multiply the damping by ten, up to 1, until it is, and warn.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    damping_retry: bool,
    /// Compare the output error of each linear with that of the best weights for the same mask, on N of its rows.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "32")]
    report_gap: Option<NonZeroUsize>,
    /// Continue a run that was interrupted, at its first unfinished layer.
    #[arg(long)]
    resume: bool,
    /// Print the report as JSON to stdout, and nothing else.
    #[arg(long)]
    json: bool,
}

/// The grids that kept weights are rounded to.
#[derive(Args)]
struct Quantisation {
    /// Round the kept weights to grids of 2^B points, in the column loop (gptaq, duogpt, sparsegpt). The checkpoint
    /// holds the rounded weights as ordinary numbers, so that any runtime loads it; nothing is packed.
    #[arg(long, value_name = "B")]
    bits: Option<u32>,
    /// Use one grid for every G input channels of a row, fitted to the weights at the moment when the first of these
    /// channels is processed, instead of one grid per row.
    #[arg(long, value_name = "G", requires = "bits")]
    group_size: Option<usize>,
    /// Fit grids from the smallest to the largest weight, instead of symmetrically around zero.
    #[arg(long, requires = "bits")]
    asymmetric: bool,
    /// Shrink the range of each grid to the one with the least rounding error.
    #[arg(long, requires = "bits")]
    mse: bool,
}

impl Quantisation {
    fn grids(&self) -> Option<GridConfig> {
        let symmetry = if self.asymmetric { Symmetry::Asymmetric } else { Symmetry::Symmetric };
        self.bits.map(|bits| GridConfig {
            range: if self.mse { GridRange::LeastError } else { GridRange::Full },
            group_size: self.group_size,
            ..GridConfig::new(bits, symmetry)
        })
    }
}

impl PruneArgs {
    fn method(&self) -> Result<Method, CliError> {
        if self.method == MethodName::Gptaq {
            if self.weight_sparsity.is_some_and(|sparsity| sparsity.fraction() > 0.0) {
                return Err("--method gptaq prunes no weights: leave --weight-sparsity out, or prune and quantise at \
                     once with --method duogpt --bits B"
                    .into());
            }
            if self.settings.profile != Profile::Default {
                return Err(
                    "--profile is for duogpt and sparsegpt: gptaq starts from its own published settings; \
                     leave it out"
                        .into(),
                );
            }
        }
        let sparsity = self.weight_sparsity.unwrap_or(Sparsity::Unstructured(0.5));
        Ok(self.settings.method(self.method, sparsity))
    }

    /// The type that inputs are rounded to. A device multiplies inputs of 16 bits in a third of the operations that f32 takes.
    fn activation_dtype(
        &self,
        checkpoint: &Checkpoint,
        on_device: bool,
    ) -> Result<Option<FloatType>, CliError> {
        if self.activation_dtype.is_some() || !on_device {
            return Ok(self.activation_dtype.map(FloatType::from));
        }
        let Some(first) = checkpoint.linear_tensors().next() else { return Ok(None) };
        let dtype = FloatType::of(checkpoint.info(&first)?.dtype)
            .filter(|dtype| matches!(dtype, FloatType::Bf16 | FloatType::F16));
        if let Some(dtype) = dtype {
            eprintln!(
                "the input of every linear is rounded to {}, the type of the weights; --activation-dtype f32 leaves \
                 inputs as they are, and takes more than three times as many operations for their statistics",
                dtype.torch_name()
            );
        }
        Ok(dtype)
    }

    fn activation_sparsity(&self) -> f64 {
        self.activation_sparsity.unwrap_or(if self.method == MethodName::Gptaq { 0.0 } else { 0.5 })
    }
}

/// Prunes and prints a line per linear, or the report as JSON.
///
/// # Errors
/// If the checkpoint cannot be pruned. Then no output is written.
pub fn run(args: &PruneArgs) -> Result<ExitCode, CliError> {
    let gpu = args.backend.device(match (args.precision, args.quantisation.bits) {
        (Precision::F64, _) => Some(IN_F32_ONLY),
        (_, Some(_)) => Some("CUDA does not round weights to grids (--bits)"),
        _ => None,
    })?;
    let checkpoint = open(&args.model)?;
    let cut = Cut::Random { samples: args.samples.unwrap_or(128), seed: args.seed };
    let windows = args.data.windows(&checkpoint, args.sequence_length, args.samples, cut)?;
    let method = args.method()?;
    let grids = args.quantisation.grids();
    if let Method::DuoGpt(config) | Method::SparseGpt(config) | Method::Gptaq(config) = method
        && config.column_order != ColumnOrder::Natural
        && grids.is_some_and(|grids| grids.group_size.is_some())
    {
        eprintln!(
            "warning: groups of columns with one grid lie in processing order; with an order other than natural they are \
             not neighbours in the stored matrix"
        );
    }
    warn_of_order(method);
    let windows = windows.as_ref();
    let activation_dtype = args.activation_dtype(&checkpoint, gpu.is_some())?;
    let report = match gpu {
        Some(device) => {
            prune::<f32, _>(args, &checkpoint, windows, method, activation_dtype, &Cuda { device })?
        }
        None => with_precision!(
            args.precision,
            prune_on_cpu(args, &checkpoint, windows, method, activation_dtype)
        )?,
    };
    if args.json {
        print!("{}", report.to_json());
    } else {
        let totals = &report.totals;
        println!(
            "{}: {} of {} weights zero ({:.2} %), {:.1} s; report in {}",
            report.method.name(),
            totals.zeros,
            totals.weights,
            100.0 * totals.sparsity,
            totals.seconds,
            args.output.join(crate::calibrate::report::FILE_NAME).display()
        );
        match totals.grid_rounding {
            Some(GridRounding { moved: 0, .. }) => println!("every weight is stored exactly on its grid"),
            Some(GridRounding { moved, farthest }) => println!(
                "{moved} weights are stored beside their grid's point, at most {farthest:.2} steps off: the stored type \
                 cannot hold it (a wider --dtype can)"
            ),
            None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn prune_on_cpu<T: Scalar>(
    args: &PruneArgs,
    checkpoint: &Checkpoint,
    windows: Option<&Windows>,
    method: Method,
    activation_dtype: Option<FloatType>,
) -> Result<PruneReport, CliError> {
    prune::<T, _>(args, checkpoint, windows, method, activation_dtype, &Cpu)
}

fn prune<T: Scalar, B: Backend<T>>(
    args: &PruneArgs,
    checkpoint: &Checkpoint,
    windows: Option<&Windows>,
    method: Method,
    activation_dtype: Option<FloatType>,
    backend: &B,
) -> Result<PruneReport, CliError> {
    let job = PruneJob {
        checkpoint,
        windows,
        method,
        activation_sparsity: args.activation_sparsity(),
        activation_dtype,
        grids: args.quantisation.grids(),
        dtype: args.dtype,
        format: args.format,
        output: &args.output,
        damping_retry: args.damping_retry,
        report_gap: args.report_gap.map(NonZeroUsize::get),
        resume: args.resume,
    };
    Ok(job.run::<T, _>(backend, &Progress::new(method.name(), !args.json))?)
}
