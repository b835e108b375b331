//! `duogpt demo`: a comparison on the small model that comes with the source.

mod curve;
mod table;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::method::{MethodName, Profile};
use super::{CliError, compare, fraction};
use crate::calibrate::windows::Windows;
use crate::evaluate::comparison::{MethodComparison, Point, PointResult, Quantity, Repeats};
use crate::model::Checkpoint;
use crate::reference::{Method, Sparsity};
use curve::Series;

/// Arguments of `duogpt demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Directory that holds the small model, `tiny-llama` (by default `fixtures` of the source tree).
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Directory for the plot, the results and the cache.
    #[arg(long, value_name = "DIR", default_value = "demo")]
    output: PathBuf,
    /// Sparsities: each is the fraction of the weights and of the activations that are pruned.
    #[arg(long, value_name = "P,...", value_delimiter = ',', default_values_t = [0.4, 0.5, 0.6], value_parser = fraction)]
    sparsities: Vec<f64>,
    /// Print the results as JSON to stdout, and nothing else.
    #[arg(long)]
    json: bool,
}

/// The calibration and evaluation windows: as many as the published figures of this model were made with.
const WINDOWS: usize = 32;

/// The methods, from the simplest to the paper's.
const METHODS: [MethodName; 4] =
    [MethodName::Magnitude, MethodName::Wanda, MethodName::Sparsegpt, MethodName::Duogpt];

/// Prunes by every method, measures perplexities, and prints a table and what it shows; on a terminal a curve too.
///
/// # Errors
/// When the small model cannot be found, or the output directory not be written.
pub fn run(args: &DemoArgs) -> Result<ExitCode, CliError> {
    let fixtures = find_fixtures(args.fixtures.as_deref())?;
    let model = fixtures.join("tiny-llama");
    let checkpoint = Checkpoint::open(&model)?;
    let tokens =
        |name: &str| Windows::from_tokens(&model.join(name), &checkpoint.config, None, Some(WINDOWS));
    let calibration = tokens("tokens-sampled-calibration.safetensors")?;
    let evaluation = tokens("tokens-sampled-evaluation.safetensors")?;
    let comparison = MethodComparison {
        checkpoint: &checkpoint,
        calibration: Some(&calibration),
        evaluation: Some(&evaluation),
        tasks: &[],
        points: args.sparsities.iter().map(|&p| point(p)).collect(),
        repeats: Repeats { count: 1, jitter: 0.0, seed: 0 },
        report_gap: None,
        cache: args.output.join("cache"),
        models: args.output.join("models"),
        keep: false,
    };
    if !args.json {
        println!(
            "The small LLaMA in {} is pruned by four methods,\ncalibrated on {WINDOWS} windows of {} tokens and \
             measured on {WINDOWS} others.\n",
            model.display(),
            calibration.length()
        );
    }
    let done = compare::run_and_write::<f32>(&comparison, &args.output, |_| None)?;
    match args.json {
        true => print!("{}", done.json),
        false => show(&done),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the table and what it shows; on a terminal the curve too.
fn show(done: &compare::Done) {
    let points = &done.report.points;
    println!("Perplexity (lower is better), with and without pruning of the activations:\n");
    println!("{}\n\n{}\n", table::table(points), table::conclusion(points));
    if io::stdout().is_terminal()
        && let Some(curve) = curve(points)
    {
        println!("{curve}\n");
    }
    println!("{}", done.closing);
}

/// Every method at one sparsity of weights and activations.
fn point(p: f64) -> Point {
    let weight_sparsity = Sparsity::Unstructured(p);
    let with_settings = |name: MethodName| {
        let mut method = name.method(Profile::Default, weight_sparsity);
        // As for DuoGPT, without the factor 2 of SparseGPT's own code: what differs is the residual correction alone.
        if let Method::SparseGpt(config) = &mut method {
            config.hessian_scale = 1.0;
        }
        method
    };
    let methods = [None].into_iter().chain(METHODS.map(Some)).map(|name| name.map(with_settings)).collect();
    Point { weight_sparsity, activation_sparsity: p, methods }
}

/// Perplexity with sparse activations against the sparsity, a line per method.
fn curve(points: &[PointResult]) -> Option<String> {
    let mut points: Vec<&PointResult> = points.iter().collect();
    points.sort_by(|a, b| a.activation_sparsity.total_cmp(&b.activation_sparsity));
    let methods = points.first()?.rows.iter().enumerate().zip(['.', 'm', 'w', 's', 'd']);
    let series: Vec<Series> = methods
        .map(|((number, row), mark)| {
            let place = |point: &&PointResult| {
                (point.activation_sparsity, table::value(&point.rows[number], Quantity::Perplexity))
            };
            Series { name: row.method, mark, points: points.iter().map(place).collect() }
        })
        .collect();
    let labels: Vec<(f64, String)> =
        points.iter().map(|point| (point.activation_sparsity, table::percent(point))).collect();
    let title = "Perplexity with sparse activations, by the fraction of weights and activations pruned:";
    curve::draw(title, &series, &labels)
}

fn find_fixtures(given: Option<&Path>) -> Result<PathBuf, CliError> {
    let in_source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let candidates = match given {
        Some(given) => vec![given.to_path_buf()],
        None => vec![PathBuf::from("fixtures"), in_source],
    };
    let looked = candidates.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
    candidates.into_iter().find(|dir| dir.join("tiny-llama").is_dir()).ok_or_else(|| {
        format!(
            "the small model is not here (looked for tiny-llama in {looked}); it comes with the source repository, not \
             with the installed program: give its directory with --fixtures DIR"
        )
        .into()
    })
}
