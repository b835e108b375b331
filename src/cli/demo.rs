//! `duogpt demo`: a comparison on the small model that comes with the source.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::method::{MethodName, Profile};
use super::{CliError, compare, fraction};
use crate::calibrate::windows::Windows;
use crate::evaluate::comparison::{MethodComparison, Point, Repeats};
use crate::evaluate::zero_shot::tasks::Task;
use crate::model::Checkpoint;
use crate::reference::Sparsity;

/// Arguments of `duogpt demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Directory with `tiny-llama/` and `zero_shot/data/` (by default the one of the source tree).
    #[arg(long, value_name = "DIR")]
    fixtures: Option<PathBuf>,
    /// Where to put the plot and the results.
    #[arg(long, value_name = "DIR", default_value = "demo")]
    output: PathBuf,
    /// Dual sparsities: the fraction of weights, and of activations, that are zero.
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

/// Documents of each task: enough to show the columns, few enough not to wait for them.
const DOCUMENTS: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// Prunes by every method, measures, prints a table and draws a plot.
///
/// # Errors
/// When the small model cannot be found, or the output directory not be written.
pub fn run(args: &DemoArgs) -> Result<ExitCode, CliError> {
    let fixtures = find_fixtures(args.fixtures.as_deref())?;
    let model = fixtures.join("tiny-llama");
    let tasks = compare::read_tasks(&Task::ALL, &fixtures.join("zero_shot").join("data"), Some(DOCUMENTS))?;
    let checkpoint = Checkpoint::open(&model)?;
    let tokens =
        |name: &str| Windows::from_tokens(&model.join(name), &checkpoint.config, None, Some(WINDOWS));
    let calibration = tokens("tokens-sampled-calibration.safetensors")?;
    let evaluation = tokens("tokens-sampled-evaluation.safetensors")?;
    let point = |&p: &f64| {
        let weight_sparsity = Sparsity::Unstructured(p);
        let with_settings = |name: MethodName| name.method(Profile::Default, weight_sparsity);
        let methods =
            [None].into_iter().chain(METHODS.map(Some)).map(|name| name.map(with_settings)).collect();
        Point { weight_sparsity, activation_sparsity: p, methods }
    };
    let comparison = MethodComparison {
        checkpoint: &checkpoint,
        calibration: Some(&calibration),
        evaluation: Some(&evaluation),
        tasks: &tasks,
        points: args.sparsities.iter().map(point).collect(),
        repeats: Repeats { count: 1, jitter: 0.0, seed: 0 },
        report_gap: None,
        cache: args.output.join("cache"),
        models: args.output.join("models"),
        keep: false,
    };
    if !args.json {
        println!(
            "{}: calibrated on {WINDOWS} x {} tokens, measured on {WINDOWS} x {} tokens and {DOCUMENTS} documents of each \
             of seven tasks.\nSo small a model answers the tasks hardly better than by chance: their column shows that they \
             run, not who is better.\n",
            model.display(),
            calibration.length(),
            evaluation.length()
        );
    }
    compare::carry_out::<f32>(&comparison, &args.output, args.json)
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
