//! `duogpt demo`: the main job on the small model that comes with the source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use plotters::prelude::*;
use serde::Serialize;

use super::{Bar, CliError, fraction};
use crate::backend::Cpu;
use crate::calibrate::PruneJob;
use crate::calibrate::streams::Activations;
use crate::calibrate::windows::Windows;
use crate::evaluate::perplexity::perplexity;
use crate::llama::Checkpoint;
use crate::reference::{Method, PruneConfig, Sparsity};

/// Arguments of `duogpt demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Directory with `tiny-llama/` (by default the one of the source tree).
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

/// One model of the comparison.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    method: &'static str,
    /// Fraction of zeros asked for, of weights (0 for the dense model) and of activations.
    weight_sparsity: f64,
    activation_sparsity: f64,
    perplexity_dense_activations: f64,
    perplexity_sparse_activations: f64,
    seconds_to_prune: f64,
}

/// The calibration and evaluation windows: as many as the published figures of this model were made with.
const WINDOWS: usize = 32;

/// Prunes, measures, prints a table and draws a plot.
///
/// # Errors
/// When the small model cannot be found, or the output directory not be written.
pub fn run(args: &DemoArgs) -> Result<ExitCode, CliError> {
    let model = find_model(args.fixtures.as_deref())?;
    let checkpoint = Checkpoint::open(&model)?;
    let tokens =
        |name: &str| Windows::from_tokens(&model.join(name), &checkpoint.config, None, Some(WINDOWS));
    let calibration = tokens("tokens-sampled-calibration.safetensors")?;
    let evaluation = tokens("tokens-sampled-evaluation.safetensors")?;
    fs::create_dir_all(&args.output).map_err(|error| format!("{}: {error}", args.output.display()))?;

    let start = Instant::now();
    let say = |line: String| {
        if !args.json {
            println!("{line}");
        }
    };
    say(format!(
        "{}: calibrated on {WINDOWS} x {} tokens, measured on {WINDOWS} x {}\n",
        model.display(),
        calibration.length(),
        evaluation.length()
    ));
    say(format!(
        "{:<10} {:>7} {:>11} {:>18} {:>18} {:>8}",
        "", "weights", "activations", "perplexity,", "perplexity,", "seconds"
    ));
    say(format!(
        "{:<10} {:>7} {:>11} {:>18} {:>18} {:>8}",
        "method", "zero", "zero", "dense activations", "sparse activations", "to prune"
    ));
    let mut entries = Vec::new();
    for &p in &args.sparsities {
        let sparsity = Sparsity::Unstructured(p);
        let config = PruneConfig { weight_sparsity: sparsity, ..PruneConfig::default() };
        let methods = [
            None,
            Some(Method::Magnitude(sparsity)),
            Some(Method::Wanda(sparsity)),
            Some(Method::SparseGpt(config)),
            Some(Method::DuoGpt(config)),
        ];
        for method in methods {
            let entry = measure(args, &checkpoint, &calibration, &evaluation, method, p)?;
            say(format!(
                "{:<10} {:>5.0} % {:>9.0} % {:>18.2} {:>18.2} {:>8.1}",
                entry.method,
                100.0 * entry.weight_sparsity,
                100.0 * entry.activation_sparsity,
                entry.perplexity_dense_activations,
                entry.perplexity_sparse_activations,
                entry.seconds_to_prune
            ));
            entries.push(entry);
        }
        say(String::new());
    }

    let json = serde_json::to_string_pretty(&entries)? + "\n";
    let plot = args.output.join("perplexity.svg");
    crate::files::write_atomically(&args.output.join("results.json"), json.as_bytes())?;
    crate::files::write_atomically(&plot, draw(&entries)?.as_bytes())?;
    if args.json {
        print!("{json}");
    } else {
        println!("{:.0} s in all; plot in {}", start.elapsed().as_secs_f64(), plot.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn find_model(fixtures: Option<&Path>) -> Result<PathBuf, CliError> {
    let in_source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let candidates = match fixtures {
        Some(given) => vec![given.to_path_buf()],
        None => vec![PathBuf::from("fixtures"), in_source],
    };
    let found = candidates.iter().map(|dir| dir.join("tiny-llama")).find(|dir| dir.is_dir());
    found.ok_or_else(|| {
        let looked = candidates.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
        format!(
            "the small model is not here (looked for tiny-llama in {looked}); it comes with the source repository, not \
             with the installed program: give its directory with --fixtures DIR"
        )
        .into()
    })
}

/// Prunes by one method (`None`: leaves the model as it is) into a temporary directory, and measures.
fn measure(
    args: &DemoArgs,
    checkpoint: &Checkpoint,
    calibration: &Windows,
    evaluation: &Windows,
    method: Option<Method>,
    p: f64,
) -> Result<Entry, CliError> {
    let mut entry = Entry {
        method: method.map_or("dense", |method| method.name()),
        weight_sparsity: method.map_or(0.0, |_| p),
        activation_sparsity: p,
        perplexity_dense_activations: 0.0,
        perplexity_sparse_activations: 0.0,
        seconds_to_prune: 0.0,
    };
    let Some(method) = method else {
        (entry.perplexity_dense_activations, entry.perplexity_sparse_activations) =
            both_perplexities(checkpoint, evaluation, p)?;
        return Ok(entry);
    };
    let pruned = args.output.join(format!("{}-{p}", method.name()));
    if pruned.is_dir() {
        fs::remove_dir_all(&pruned)?; // of an earlier demo that was interrupted
    }
    let data_free = matches!(method, Method::Magnitude(_));
    let job = PruneJob {
        checkpoint,
        windows: (!data_free).then_some(calibration),
        method,
        activation_sparsity: p,
        activation_dtype: None,
        grids: None,
        dtype: None,
        output: &pruned,
        damping_retry: true,
        report_gap: None,
        resume: false,
    };
    let report = job.run::<f32, _>(&Cpu, &Bar::new(format!("{} {p}", method.name()), false))?;
    entry.seconds_to_prune = report.totals.seconds;
    (entry.perplexity_dense_activations, entry.perplexity_sparse_activations) =
        both_perplexities(&Checkpoint::open(&pruned)?, evaluation, p)?;
    fs::remove_dir_all(&pruned)?;
    Ok(entry)
}

/// With dense and with sparse activations.
fn both_perplexities(checkpoint: &Checkpoint, windows: &Windows, p: f64) -> Result<(f64, f64), CliError> {
    let at = |sparsity| {
        let activations = Activations { sparsity, ..Activations::default() };
        perplexity::<f32, _>(checkpoint, windows, activations, &Cpu, &Bar::new("perplexity", false))
            .map(|r| r.perplexity)
    };
    Ok((at(0.0)?, at(p)?))
}

/// Perplexity with sparse activations against dual sparsity, a line per method.
fn draw(entries: &[Entry]) -> Result<String, CliError> {
    let points = |method: &str| -> Vec<(f64, f64)> {
        let of_method = entries.iter().filter(|e| e.method == method);
        of_method.map(|e| (100.0 * e.activation_sparsity, e.perplexity_sparse_activations)).collect()
    };
    let bounds = |values: &mut dyn Iterator<Item = f64>, margin: f64| {
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let pad = (high - low).max(1.0) * margin;
        low - pad..high + pad
    };
    let x = bounds(&mut entries.iter().map(|e| 100.0 * e.activation_sparsity), 0.05);
    let y = bounds(&mut entries.iter().map(|e| e.perplexity_sparse_activations), 0.08);

    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (720, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("Perplexity of tiny-llama by dual sparsity", ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc("zero weights and zero activations, %")
            .y_desc("perplexity")
            .light_line_style(TRANSPARENT)
            .draw()?;
        // Distinct also for colour-blind readers; "dense" means weights: its activations are sparse like the others'.
        let colours = [
            ("dense", RGBColor(120, 120, 120)),
            ("magnitude", RGBColor(213, 94, 0)),
            ("wanda", RGBColor(230, 159, 0)),
            ("sparsegpt", RGBColor(0, 114, 178)),
            ("duogpt", RGBColor(0, 158, 115)),
        ];
        for (method, colour) in colours {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points(method), style).point_size(4))?
                .label(if method == "dense" { "dense weights" } else { method })
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}
