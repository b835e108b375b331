//! `duogpt compare`

mod plot;
mod table;

use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};

use super::method::{MethodName, Settings, warn_of_order};
use super::{CliError, DataSource, Precision, Progress, fraction, open, with_precision};
use crate::backend::Cpu;
use crate::calibrate::windows::Cut;
use crate::evaluate::comparison::{ComparisonReport, MethodComparison, Point, PointResult, Repeats, Steps};
use crate::evaluate::zero_shot::ZeroShotError;
use crate::evaluate::zero_shot::tasks::Task;
use crate::files::write_atomically;
use crate::linalg::Scalar;
use crate::reference::Sparsity;
use crate::tensors::TensorError;
use table::Table;

/// Arguments of `duogpt compare`.
#[derive(Args)]
#[command(after_long_help = NOISE)]
pub struct CompareArgs {
    /// The dense model: a Hugging Face model directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Methods to compare; `dense` is the model as it is.
    #[arg(long, value_enum, value_name = "METHOD,...", value_delimiter = ',', default_values_t = Contestant::ALL)]
    methods: Vec<Contestant>,
    /// Fractions of the weights to prune, or N:M patterns (by default 0.5).
    #[arg(long, value_name = "P,...", value_delimiter = ',', allow_negative_numbers = true)]
    weight_sparsity: Vec<Sparsity>,
    /// Fractions of the activations to prune: in every measurement, and in the calibration of DuoGPT and SparseGPT.
    /// Every weight sparsity is combined with every activation sparsity.
    #[arg(long, value_name = "P,...", value_delimiter = ',', default_values_t = [0.5], value_parser = fraction, allow_negative_numbers = true)]
    activation_sparsity: Vec<f64>,
    /// Calibration data: a text (UTF-8, or JSONL with a field `text`), or token windows (`.safetensors`).
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Number of calibration windows: random ones of a text (by default 128), or the first of a token file (by default all).
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Data to measure perplexity on: a text or token windows, as for --calibration.
    #[arg(long, value_name = "FILE")]
    evaluation: Option<PathBuf>,
    /// Measure on at most N windows.
    #[arg(long, value_name = "N")]
    evaluation_samples: Option<usize>,
    /// Tokens per window of both (by default 2048, or the model's context if that is shorter).
    #[arg(long, value_name = "T")]
    sequence_length: Option<usize>,
    /// Directory with a file `TASK.jsonl` for each task, as for `eval zero-shot`.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tasks to measure accuracy on.
    #[arg(long, value_enum, value_name = "TASK,...", value_delimiter = ',', default_values_t = Task::ALL, requires = "data")]
    tasks: Vec<Task>,
    /// Measure only the first N documents of each task.
    #[arg(long, value_name = "N", requires = "data")]
    limit: Option<NonZeroUsize>,
    /// Prune R times by every method, each time after a different jitter of the weights. A single run has no jitter.
    #[arg(long, value_name = "R", default_value = "1")]
    repeats: NonZeroU32,
    /// Size of the jitter: every weight w becomes w (1 + X u), with u uniform in [-1, 1).
    #[arg(long, value_name = "X", default_value_t = 1e-6)]
    jitter: f64,
    /// Seed of the jitter, and of the random starts of the windows cut from a calibration text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Report the optimality gap of every pruned linear, measured on N of its rows (see below).
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "32")]
    report_gap: Option<NonZeroUsize>,
    #[command(flatten)]
    settings: Settings,
    /// Arithmetic of all runs.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Directory for `comparison.svg`, `comparison.json` and, while they are needed, the pruned models.
    #[arg(long, value_name = "DIR", default_value = "comparison")]
    output: PathBuf,
    /// Directory of finished results, which are not computed again (by default `cache` in the output directory).
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Keep the pruned models in `models` in the output directory.
    #[arg(long)]
    keep: bool,
    /// Print all runs and their summary as JSON to stdout, and nothing else.
    #[arg(long)]
    json: bool,
}

const NOISE: &str = "\
Which method is best: at each weight and activation sparsity, every method is compared with the one that has the best
mean. Two means differ by no more than the noise when their difference is at most two standard errors,
2 sqrt(s1^2/R + e1^2 + s2^2/R + e2^2). Here s is the standard deviation over the R repeats and e the sampling error: the
standard error over the documents for an accuracy, and 0 for a perplexity, which is meant as that of the given windows.
(Errors over the same documents are treated as independent, which makes the noise too large rather than too small.) A
method within the noise of the best is marked ~, and the result is called AMBIGUOUS. A best method outside the noise of
all others is marked *. A single repeat does not measure the noise and names no best method. The standard deviation of
two or three repeats is rough; use more repeats where a decision depends on it.

The gap to dense is the difference to the dense weights at the same activation sparsity. The optimality gap
(--report-gap) is the output error of a linear divided by that of the best weights with the same zeros. The table shows
its mean over all linears; the plot and the JSON show it for every layer.

Finished results are stored under the SHA-256 of program, BLAS, model, settings, data and seed. After an interruption
the same command continues where it stopped.";

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contestant {
    /// The weights as they are.
    Dense,
    /// Prunes the smallest weights.
    Magnitude,
    /// Prunes the smallest products of weight and input norm.
    Wanda,
    /// Second-order pruning.
    Sparsegpt,
    /// Second-order pruning with the output-residual correction.
    Duogpt,
}

impl Contestant {
    const ALL: [Contestant; 5] = [
        Contestant::Dense,
        Contestant::Magnitude,
        Contestant::Wanda,
        Contestant::Sparsegpt,
        Contestant::Duogpt,
    ];

    /// None of the dense weights.
    fn method(self) -> Option<MethodName> {
        match self {
            Contestant::Dense => None,
            Contestant::Magnitude => Some(MethodName::Magnitude),
            Contestant::Wanda => Some(MethodName::Wanda),
            Contestant::Sparsegpt => Some(MethodName::Sparsegpt),
            Contestant::Duogpt => Some(MethodName::Duogpt),
        }
    }
}

/// Prunes, measures, prints a table and draws a plot.
///
/// # Errors
/// Whatever keeps a method from being measured; what was finished before is not lost.
pub fn run(args: &CompareArgs) -> Result<ExitCode, CliError> {
    let points = args.points()?;
    // The data first: a damaged line should be known before a large model is opened.
    let tasks = match &args.data {
        Some(directory) => {
            let read = |task: &Task| task.read(directory, args.limit.map(NonZeroUsize::get));
            unique(&args.tasks).iter().map(read).collect::<Result<_, ZeroShotError>>()?
        }
        None => Vec::new(),
    };
    let checkpoint = open(&args.model)?;
    let windows = |file: &Option<PathBuf>, rows, cut| match file {
        Some(file) => DataSource::of(file).windows(&checkpoint, args.sequence_length, rows, cut),
        None => Ok(None),
    };
    let random = Cut::Random { samples: args.samples.unwrap_or(128), seed: args.seed };
    let consecutive = Cut::Consecutive { limit: args.evaluation_samples };
    let calibration = windows(&args.calibration, args.samples, random)?;
    let evaluation = windows(&args.evaluation, args.evaluation_samples, consecutive)?;
    let comparison = MethodComparison {
        checkpoint: &checkpoint,
        calibration: calibration.as_ref(),
        evaluation: evaluation.as_ref(),
        tasks: &tasks,
        points,
        repeats: Repeats { count: args.repeats.get(), jitter: args.jitter, seed: args.seed },
        report_gap: args.report_gap.map(NonZeroUsize::get),
        cache: args.cache.clone().unwrap_or_else(|| args.output.join("cache")),
        models: args.output.join("models"),
        keep: args.keep,
    };
    with_precision!(args.precision, compare(&comparison, &args.output, args.json))
}

impl CompareArgs {
    fn points(&self) -> Result<Vec<Point>, CliError> {
        let methods = unique(&self.methods);
        let names: Vec<MethodName> = methods.iter().filter_map(|contestant| contestant.method()).collect();
        let weight_sparsities = match (names.is_empty(), &self.weight_sparsity[..]) {
            (true, []) => vec![Sparsity::Unstructured(0.0)],
            (true, _) => {
                return Err("--weight-sparsity: dense weights are not pruned; name a method that prunes, or leave the flag out".into());
            }
            (false, []) => vec![Sparsity::Unstructured(0.5)],
            (false, given) => unique(given),
        };
        let mut points = Vec::new();
        for &weight_sparsity in &weight_sparsities {
            let with_settings = |name| self.settings.method(name, weight_sparsity);
            names.iter().for_each(|&name| warn_of_order(with_settings(name)));
            for &activation_sparsity in &unique(&self.activation_sparsity) {
                let methods =
                    methods.iter().map(|contestant| contestant.method().map(with_settings)).collect();
                points.push(Point { weight_sparsity, activation_sparsity, methods });
            }
        }
        Ok(points)
    }
}

fn unique<T: PartialEq + Copy>(given: &[T]) -> Vec<T> {
    let mut unique = Vec::new();
    given.iter().for_each(|&one| {
        if !unique.contains(&one) {
            unique.push(one)
        }
    });
    unique
}

/// Compares, and shows the outcome: on stdout a table or JSON, in the output directory plot and JSON.
fn compare<T: Scalar>(
    comparison: &MethodComparison,
    output: &Path,
    json: bool,
) -> Result<ExitCode, CliError> {
    let table = Table::of(comparison);
    if !json {
        println!("{}", table.head());
    }
    let done = run_and_write::<T>(comparison, output, |point| (!json).then(|| table.point(point)))?;
    match json {
        true => print!("{}", done.json),
        false => println!("{}\n{}", table.legend(), done.closing),
    }
    Ok(ExitCode::SUCCESS)
}

/// A comparison that was run, and whose files are written.
pub(super) struct Done {
    pub report: ComparisonReport,
    /// The report as it was written.
    pub json: String,
    /// What was computed, how long it took, and where the files are.
    pub closing: String,
}

/// Runs a comparison and writes its plot and its results into the directory `output`. As soon as a point is finished,
/// what `show` makes of it is printed to stdout.
pub(super) fn run_and_write<T: Scalar>(
    comparison: &MethodComparison,
    output: &Path,
    show: impl Fn(&PointResult) -> Option<String>,
) -> Result<Done, CliError> {
    let start = Instant::now();
    let progress = Progress::new("comparing", false);
    let print = |point: &PointResult| show(point).iter().for_each(|text| progress.print(text));
    let report = comparison.run::<T, _>(&Cpu, &progress, print)?;
    drop(progress);
    let json = serde_json::to_string_pretty(&report)? + "\n";
    fs::create_dir_all(output).map_err(TensorError::io(output))?;
    let (plot, results) = (output.join("comparison.svg"), output.join("comparison.json"));
    write_atomically(&plot, plot::draw(&report, &table::shown(comparison))?.as_bytes())?;
    write_atomically(&results, json.as_bytes())?;
    let Steps { pruned, measured, from_cache } = report.steps;
    let closing = format!(
        "Pruned {pruned} models and measured {measured} results in {:.0} s; {from_cache} results were already in {}.\n\
         The plot is in {}, all numbers are in {}.",
        start.elapsed().as_secs_f64(),
        comparison.cache.display(),
        plot.display(),
        results.display()
    );
    Ok(Done { report, json, closing })
}
