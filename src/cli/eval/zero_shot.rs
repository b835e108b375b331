//! `duogpt eval zero-shot`

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::ActivationPruning;
use crate::backend::Cpu;
use crate::calibrate::streams::Activations;
use crate::cli::{CliError, Precision, Progress, open, tokenizer_of, with_precision};
use crate::evaluate::zero_shot::harness::{self, Run};
use crate::evaluate::zero_shot::metrics::Metric;
use crate::evaluate::zero_shot::tasks::{Task, TaskData};
use crate::evaluate::zero_shot::{TaskOutcome, ZeroShotError, average, evaluate};
use crate::linalg::Scalar;

/// Arguments of `duogpt eval zero-shot`.
#[derive(Args)]
pub struct ZeroShotArgs {
    /// The model: a Hugging Face model directory.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Tasks to evaluate.
    #[arg(long, value_enum, value_name = "TASK,...", value_delimiter = ',', default_values_t = Task::ALL)]
    tasks: Vec<Task>,
    /// Directory with a file `TASK.jsonl` for each task: one document per line, in the fields of the published data set.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    #[command(flatten)]
    pruning: ActivationPruning,
    /// Use only the first N documents of each task.
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Number of solved examples before each question. Only 0 is supported.
    #[arg(long, value_name = "N", default_value_t = 0)]
    num_fewshot: usize,
    /// Arithmetic of the forward pass.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Print the result as JSON in lm-evaluation-harness's layout to stdout, and nothing else.
    #[arg(long)]
    json: bool,
}

/// Measures and prints.
///
/// # Errors
/// If the model cannot be measured.
pub fn run(args: &ZeroShotArgs) -> Result<ExitCode, CliError> {
    if args.num_fewshot != 0 {
        return Err(format!(
            "--num-fewshot {}: only 0 solved examples are supported; leave the flag out",
            args.num_fewshot
        )
        .into());
    }
    with_precision!(args.precision, measure(args))
}

fn measure<T: Scalar>(args: &ZeroShotArgs) -> Result<ExitCode, CliError> {
    let limit = args.limit.map(NonZeroUsize::get);
    let mut tasks: Vec<Task> = Vec::new();
    for &task in &args.tasks {
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    // The data first: a damaged line should be known before a large model is opened.
    let data: Vec<TaskData> =
        tasks.iter().map(|task| task.read(&args.data, limit)).collect::<Result<_, ZeroShotError>>()?;
    let checkpoint = open(&args.model)?;
    let tokenizer = tokenizer_of(&checkpoint)?;
    // On all tokens: what requests share at their beginning is computed once, and a dense prefix would end at another
    // token in each.
    let thresholds = args.pruning.thresholds(&checkpoint.config, 0)?;
    let sparsity = args.pruning.activation_sparsity;
    let activations = Activations { sparsity, thresholds: thresholds.as_ref(), ..Activations::default() };
    let progress = Progress::new("zero-shot", false);
    let outcomes = evaluate::<T, _>(&checkpoint, &tokenizer, &data, activations, &Cpu, &progress)?;
    drop(progress);
    if args.json {
        let run = Run {
            model: &args.model,
            precision: T::NAME,
            activation_sparsity: args.pruning.activation_sparsity,
            thresholds: args.pruning.thresholds.as_deref(),
            limit,
            max_length: checkpoint.config.max_position_embeddings,
        };
        println!("{}", serde_json::to_string_pretty(&harness::report(&outcomes, &run))?);
    } else {
        print!("{}", table(&outcomes, &args.pruning));
    }
    Ok(ExitCode::SUCCESS)
}

/// Accuracies in percent, and each of the paper's averages whose tasks were all evaluated.
fn table(outcomes: &[TaskOutcome], pruning: &ActivationPruning) -> String {
    let percent = |value: f64| format!("{:.2}", 100.0 * value);
    let cells = |metric: Option<Metric>| match metric {
        Some(metric) => (percent(metric.mean), metric.standard_error.map_or("-".into(), percent)),
        None => ("-".into(), "-".into()),
    };
    let mut table = format!(
        "zero-shot accuracy in percent, {pruning}\n\n{:<16}{:>10}{:>8}{:>10}{:>10}{:>10}\n",
        "task", "documents", "acc", "stderr", "acc_norm", "stderr"
    );
    for outcome in outcomes {
        let ((acc, error), (norm, norm_error)) =
            (cells(Some(outcome.accuracy.acc)), cells(outcome.accuracy.acc_norm));
        table += &format!(
            "{:<16}{:>10}{acc:>8}{error:>10}{norm:>10}{norm_error:>10}\n",
            outcome.task.name(),
            outcome.documents.len()
        );
    }
    let averages = [("five", &Task::FIVE[..]), ("seven", &Task::ALL)];
    let of = |task| outcomes.iter().find(|outcome| outcome.task == task).map(|outcome| outcome.accuracy);
    let averages = averages.map(|(count, tasks)| average(of, tasks).map(|metric| (count, metric.mean)));
    for (count, mean) in averages.into_iter().flatten() {
        table += &format!(
            "\naverage of {count} tasks {:>6} (acc_norm where a task has it, otherwise acc)",
            percent(mean)
        );
    }
    if averages.iter().any(Option::is_some) {
        table.push('\n');
    }
    table
}
