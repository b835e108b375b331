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
use super::{CliError, DataSource, Precision, Progress, fraction, with_precision};
use crate::backend::Cpu;
use crate::calibrate::windows::Cut;
use crate::evaluate::comparison::{ComparisonReport, MethodComparison, Point, PointResult, Repeats, Steps};
use crate::evaluate::zero_shot::ZeroShotError;
use crate::evaluate::zero_shot::tasks::Task;
use crate::files::write_atomically;
use crate::linalg::Scalar;
use crate::model::Checkpoint;
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
    /// What to compare.
    #[arg(long, value_enum, value_name = "METHOD,...", value_delimiter = ',', default_values_t = Contestant::ALL)]
    methods: Vec<Contestant>,
    /// Fractions of weights to prune, or N:M; 0.5 when not given.
    #[arg(long, value_name = "P,...", value_delimiter = ',', allow_negative_numbers = true)]
    weight_sparsity: Vec<Sparsity>,
    /// Fractions of activations pruned when measured, and during calibration where the method sees it. Every weight
    /// sparsity is combined with every activation sparsity.
    #[arg(long, value_name = "P,...", value_delimiter = ',', default_values_t = [0.5], value_parser = fraction, allow_negative_numbers = true)]
    activation_sparsity: Vec<f64>,
    /// Calibration data: a text (UTF-8, or JSONL with a field `text`), or token windows (`.safetensors`).
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Calibration windows (of a token file: its first N; by default 128 of a text, all of a token file).
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// What perplexity is measured on: a text or token windows, as above.
    #[arg(long, value_name = "FILE")]
    evaluation: Option<PathBuf>,
    /// At most so many windows of it.
    #[arg(long, value_name = "N")]
    evaluation_samples: Option<usize>,
    /// Tokens per window of either (by default 2048, or the model's context if that is shorter).
    #[arg(long, value_name = "T")]
    sequence_length: Option<usize>,
    /// Directory with a file `TASK.jsonl` per task, as for `eval zero-shot`.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tasks that accuracy is measured on.
    #[arg(long, value_enum, value_name = "TASK,...", value_delimiter = ',', default_values_t = Task::ALL, requires = "data")]
    tasks: Vec<Task>,
    /// Only the first N documents of each task.
    #[arg(long, value_name = "N", requires = "data")]
    limit: Option<NonZeroUsize>,
    /// Prune so often by every method, each time after another jitter of the weights. A single run has none.
    #[arg(long, value_name = "R", default_value = "1")]
    repeats: NonZeroU32,
    /// Every weight w becomes w (1 + X u), with u uniform in [-1, 1).
    #[arg(long, value_name = "X", default_value_t = 1e-6)]
    jitter: f64,
    /// Seed of the jitter, and of the random starts of a calibration text's windows.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Measure each pruned linear against the best weights for its mask, on N of its rows.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "32")]
    report_gap: Option<NonZeroUsize>,
    #[command(flatten)]
    settings: Settings,
    /// Arithmetic of all runs.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Where to put `comparison.svg`, `comparison.json` and, for as long as they are needed, the pruned models.
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
What is better: Methods of one weight and one activation sparsity are held against the one with the best mean. A
difference of two means lies inside the noise when it is at most two standard errors of the difference,
2 sqrt(s1^2/R + e1^2 + s2^2/R + e2^2). s is the standard deviation over the R repeats. e is 0 for perplexities, which are
those of the given windows; for accuracies it is the standard error over the documents (taken as independent between
methods, which errs on the careful side). A method inside the noise of the best is marked ~ and the point is called
AMBIGUOUS; a best outside the noise of all others is marked *. One repeat measures no noise and names no winner. Of two
or three repeats the standard deviations are rough themselves; take more where it matters.

The gap to dense is the difference to the dense weights with the same activation sparsity. The optimality gap
(--report-gap) is the output error of a linear over that of the best weights with the same zeros; the table has its mean
over all linears, plot and JSON have it layer by layer.

Finished results are kept by the SHA-256 of the program, BLAS, model, settings, data and seed. After an interruption
the same command continues where it was.";

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contestant {
    /// The weights as they are.
    Dense,
    /// Smallest weights.
    Magnitude,
    /// Smallest weights times input norm.
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
    let checkpoint = Checkpoint::open(&args.model)?;
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
                return Err("--weight-sparsity: dense weights have none; name a method that prunes, or leave the flag out".into());
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
