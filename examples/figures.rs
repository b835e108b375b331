//! The book's pictures, from real runs on the small model. `make figures` makes what they need and then calls this:
//!
//! ```text
//! cargo run --release --example figures -- target/figures docs/figures
//! ```
//!
//! The first argument is the folder in which `scripts/figures.sh` left the results of its comparisons, the second where
//! to put the pictures. Each has a light ground of its own, so that it can be read on a dark page too.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use duogpt::backend::Cpu;
use duogpt::calibrate::streams::{Activations, Stream, Streams};
use duogpt::calibrate::windows::Windows;
use duogpt::model::Checkpoint;
use duogpt::model::forward::{Forward, Group};
use duogpt::reference::baseline::{magnitude::magnitude, sparsegpt::sparsegpt, wanda::wanda};
use duogpt::reference::prune::prune;
use duogpt::reference::{ChannelNorms, NarrowGroups, PruneConfig, Sparsity, Statistics};
use ndarray::{Array1, Array2, s};
use ndarray_linalg::{EighInto, UPLO};
use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Distinct also for colour-blind readers, and the same as in `duogpt compare`.
const METHODS: [(&str, RGBColor); 4] = [
    ("magnitude", RGBColor(213, 94, 0)),
    ("wanda", RGBColor(230, 159, 0)),
    ("sparsegpt", RGBColor(0, 114, 178)),
    ("duogpt", RGBColor(0, 158, 115)),
];
const DENSE: RGBColor = RGBColor(90, 90, 90);
const SPARSE: RGBColor = RGBColor(0, 114, 178);

/// The layer that is looked at: one of the middle.
const LAYER: usize = 3;
const CALIBRATION_WINDOWS: usize = 32;
const SPARSITY: f64 = 0.5;

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [results, output] = arguments.as_slice() else {
        return Err("usage: figures RESULTS OUTPUT, as `make figures` calls it".into());
    };
    let inputs = inputs_of_a_layer()?;
    let pictures = [
        ("spectrum.svg", spectrum(&inputs)?),
        ("zeros.svg", zeros(&inputs)?),
        ("error.svg", error(&results.join("sparsities/comparison.json"))?),
        ("noise.svg", noise(results)?),
    ];
    fs::create_dir_all(output)?;
    for (name, picture) in pictures {
        fs::write(output.join(name), picture)?;
        println!("{}", output.join(name).display());
    }
    Ok(())
}

/// What a group of linears of [`LAYER`] sees during calibration by DuoGPT.
struct Inputs {
    group: Group,
    /// The weight of its first linear.
    weight: Array2<f64>,
    /// Of X~ alone.
    dense: Statistics<f64>,
    /// Of X~ and X^.
    both: Statistics<f64>,
    /// By input channel: the fraction of tokens in which its entry of X^ is zero.
    zeros: Array1<f64>,
}

/// Calibrates as `duogpt prune` does, up to the layer, and gathers there.
fn inputs_of_a_layer() -> Result<Vec<Inputs>> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
    let checkpoint = Checkpoint::open(&model)?;
    let tokens = model.join("tokens-sampled-calibration.safetensors");
    let windows = Windows::from_tokens(&tokens, &checkpoint.config, None, Some(CALIBRATION_WINDOWS))?;
    let forward = Forward::<f64>::new(&checkpoint.config, windows.length());
    let embedding = checkpoint.embedding::<f64>()?;
    let rule = Activations { sparsity: SPARSITY, ..Activations::default() };
    let stream = |rule| Stream::new(&forward, &Cpu, &embedding, &windows, rule);
    let mut streams = Streams { dense: stream(Activations::default()), sparse: stream(rule) };
    let mut found = Vec::new();
    for number in 0..=LAYER {
        let layer = checkpoint.layer::<f64>(number)?;
        streams.enter(&layer);
        for group in Group::ALL {
            let k = group.channels(&checkpoint.config);
            let mut both = Statistics::with_residual(k);
            let mut of_dense = Statistics::hessian_only(k);
            let mut kept = Array1::<f64>::zeros(k);
            for (dense, sparse) in streams.dense.states.iter().zip(&streams.sparse.states) {
                both.update(dense.input.view(), sparse.input.view());
                of_dense.update(dense.input.view(), dense.input.view());
                kept += &sparse.input.mapv(|x| f64::from(x != 0.0)).sum_axis(ndarray::Axis(0));
            }
            let mut pruned = Vec::new();
            for weight in layer.group(group) {
                pruned.push(prune(weight.view(), &both, &PruneConfig::default())?.weight);
            }
            streams.advance(&layer, group, &pruned, || {});
            if number == LAYER {
                let weight = layer.group(group)[0].clone();
                let zeros = 1.0 - kept / windows.tokens.len() as f64;
                found.push(Inputs { group, weight, dense: of_dense, both, zeros });
            }
        }
    }
    Ok(found)
}

fn of_group(inputs: &[Inputs], group: Group) -> Result<&Inputs> {
    Ok(inputs.iter().find(|inputs| inputs.group == group).ok_or("every group was gathered")?)
}

/// A picture drawn by `draw` on a light ground.
fn picture(size: (u32, u32), draw: impl FnOnce(&Area) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}

fn legend<'a, 'b, X: Ranged, Y: Ranged>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    position: SeriesLabelPosition,
) -> Result<()>
where
    'b: 'a,
{
    let mut labels = chart.configure_series_labels();
    let labels = labels.position(position).margin(8).label_font(("sans-serif", 13));
    labels.background_style(WHITE.mix(0.85)).border_style(BLACK.mix(0.4)).draw()?;
    Ok(())
}

/// Eigenvalues of H with dense and with sparse inputs.
fn spectrum(inputs: &[Inputs]) -> Result<String> {
    picture((760, 380), |area| {
        let panels = [(Group::GateUp, "input of gate_proj and up_proj"), (Group::Down, "input of down_proj")];
        for (area, (group, title)) in area.split_evenly((1, panels.len())).iter().zip(panels) {
            let inputs = of_group(inputs, group)?;
            draw_spectrum(area, &format!("layer {LAYER}: {title}"), inputs)?;
        }
        Ok(())
    })
}

fn draw_spectrum(area: &Area, title: &str, inputs: &Inputs) -> Result<()> {
    let tokens = CALIBRATION_WINDOWS as f64;
    let eigenvalues = |h: &Array2<f64>| -> Result<Vec<f64>> {
        let (values, _) = (h * tokens).eigh_into(UPLO::Lower)?;
        Ok(values.iter().rev().copied().collect())
    };
    let dense = eigenvalues(&inputs.dense.hessian)?;
    let sparse = eigenvalues(&inputs.both.hessian)?;
    let mean = inputs.both.hessian.diag().mean().ok_or("H has a diagonal")? * tokens;
    let all = || dense.iter().chain(&sparse).copied();
    let low = all().fold(f64::INFINITY, f64::min).min(0.01 * mean) / 2.0;
    let high = all().fold(0.0, f64::max) * 2.0;
    let k = dense.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..k, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("rank of the eigenvalue")
        .y_desc("eigenvalue of H (squared activations)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0e}"))
        .x_labels(6)
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .draw()?;
    let lines = [("dense activations", &dense, DENSE), ("half of each token pruned", &sparse, SPARSE)];
    for (name, values, colour) in lines {
        let style = colour.stroke_width(2);
        let points = values.iter().enumerate().map(|(rank, &value)| (rank as f64, value));
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    for (damping, colour) in [(0.1, METHODS[0].1), (0.01, METHODS[1].1)] {
        let style = colour.stroke_width(1);
        chart
            .draw_series(DashedLineSeries::new([(0.0, damping * mean), (k, damping * mean)], 6, 4, style))?
            .label(format!("damping {damping}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// Which weights of one linear four methods prune, and which input channels the activation pruning leaves out.
fn zeros(inputs: &[Inputs]) -> Result<String> {
    let inputs = of_group(inputs, Group::Qkv)?;
    let sparsity = Sparsity::Unstructured(SPARSITY);
    let config = PruneConfig { weight_sparsity: sparsity, ..PruneConfig::default() };
    let norms = ChannelNorms { sequences: 1, square_norms: inputs.dense.hessian.diag().to_owned() };
    let weight = inputs.weight.view();
    let masks = [
        magnitude(weight, sparsity, NarrowGroups::Refuse)?.mask,
        wanda(weight, &norms, sparsity, NarrowGroups::Refuse)?.mask,
        sparsegpt(weight, &inputs.both, &config)?.mask,
        prune(weight, &inputs.both, &config)?.mask,
    ];
    picture((760, 620), |area| {
        let (maps, curves) = area.split_vertically(250);
        for ((area, mask), (name, _)) in maps.split_evenly((1, 4)).iter().zip(&masks).zip(METHODS) {
            draw_map(area, name, mask)?;
        }
        draw_channels(&curves, inputs, &masks)
    })
}

/// Rows and columns per cell of a map.
const CELL: usize = 8;

/// The fraction of zeros in each square of the weight.
fn draw_map(area: &Area, name: &str, mask: &Array2<bool>) -> Result<()> {
    let (n, k) = mask.dim();
    let mut chart = ChartBuilder::on(area)
        .caption(name, ("sans-serif", 16))
        .margin(6)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0..k as i32, n as i32..0)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("input channel")
        .y_desc("output channel")
        .x_labels(3)
        .y_labels(4)
        .draw()?;
    let cells = (0..n / CELL).flat_map(|i| (0..k / CELL).map(move |j| (i * CELL, j * CELL)));
    chart.draw_series(cells.map(|(i, j)| {
        let cell = mask.slice(s![i..i + CELL, j..j + CELL]);
        let zeros = cell.iter().filter(|pruned| **pruned).count() as f64 / cell.len() as f64;
        let (i, j, side) = (i as i32, j as i32, CELL as i32);
        Rectangle::new([(j, i), (j + side, i + side)], shade(zeros).filled())
    }))?;
    Ok(())
}

/// White where at most a fifth is zero, black where at least four fifths are.
fn shade(zeros: f64) -> RGBColor {
    let level = (255.0 * ((0.8 - zeros) / 0.6).clamp(0.0, 1.0)) as u8;
    RGBColor(level, level, level)
}

/// Channels per point of a curve.
const RUN: usize = 16;

/// The fraction of zeros of each input channel, strongest channel first.
fn draw_channels(area: &Area, inputs: &Inputs, masks: &[Array2<bool>]) -> Result<()> {
    let energy = inputs.both.hessian.diag();
    let mut order: Vec<usize> = (0..energy.len()).collect();
    order.sort_by(|&a, &b| energy[b].total_cmp(&energy[a]));
    let curve = |of_channel: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        let runs = order.chunks_exact(RUN).enumerate();
        let mean = |run: &[usize]| run.iter().map(|&j| of_channel(j)).sum::<f64>() / RUN as f64;
        runs.map(|(at, run)| (((at * RUN) + RUN / 2) as f64, 100.0 * mean(run))).collect()
    };
    let mut chart = ChartBuilder::on(area)
        .caption(format!("layer {LAYER}, q_proj: zeros by input channel"), ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..order.len() as f64, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("input channels, those with the largest entry of diag H first (means of 16)")
        .y_desc("zeros (%)")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .draw()?;
    let activations = curve(&|j| inputs.zeros[j]);
    let style = DENSE.stroke_width(2);
    chart
        .draw_series(DashedLineSeries::new(activations, 6, 4, style))?
        .label("activations (per token)")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    for (mask, (name, colour)) in masks.iter().zip(METHODS) {
        let of_channel = |j: usize| {
            let column = mask.column(j);
            column.iter().filter(|pruned| **pruned).count() as f64 / column.len() as f64
        };
        // SparseGPT's is hidden by DuoGPT's otherwise.
        let style = colour.stroke_width(if name == "sparsegpt" { 6 } else { 2 });
        chart
            .draw_series(LineSeries::new(curve(&of_channel), style))?
            .label(format!("weights, {name}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

fn points(comparison: &Value) -> impl Iterator<Item = &Value> {
    comparison["points"].as_array().into_iter().flatten()
}

/// A quantity of a method at a point, in all repeats.
fn values(point: &Value, method: &str, quantity: &str) -> Result<Vec<f64>> {
    let rows = point["rows"].as_array().ok_or("a point has rows")?;
    let row = rows.iter().find(|row| row["method"] == method).ok_or_else(|| format!("no {method}"))?;
    let values = row["quantities"][quantity]["values"].as_array().ok_or_else(|| format!("no {quantity}"))?;
    Ok(values.iter().filter_map(Value::as_f64).collect())
}

/// Mean and standard deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let estimate = duogpt::evaluate::noise::Estimate::new(values.to_vec(), None);
    (estimate.mean, estimate.standard_deviation.unwrap_or(0.0))
}

/// From one standard deviation below the mean to one above.
fn bar<X: Copy>(x: X, mean: f64, deviation: f64, style: ShapeStyle) -> PathElement<(X, f64)> {
    PathElement::new([(x, mean - deviation), (x, mean + deviation)], style)
}

/// Perplexity by method and sparsity.
fn error(path: &Path) -> Result<String> {
    let comparison = read(path)?;
    picture((760, 400), |area| {
        let panels = [
            ("perplexity_dense_activations", "measured with dense activations"),
            ("perplexity", "measured with 50 % of activations zero"),
        ];
        for (area, (quantity, title)) in area.split_evenly((1, panels.len())).iter().zip(panels) {
            draw_error(area, title, &comparison, quantity)?;
        }
        Ok(())
    })
}

/// Perplexities that get a label.
const TICKS: [f64; 10] = [25.0, 30.0, 35.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0, 200.0];

fn draw_error(area: &Area, title: &str, comparison: &Value, quantity: &str) -> Result<()> {
    let mut series = Vec::new();
    for (method, colour) in METHODS {
        let mut line = Vec::new();
        for point in points(comparison) {
            let p = point["weight_sparsity"].as_f64().ok_or("a weight sparsity is a number")?;
            let (mean, deviation) = spread(&values(point, method, quantity)?);
            line.push((100.0 * p, mean, deviation));
        }
        series.push((method, colour, line));
    }
    let dense = values(points(comparison).next().ok_or("a comparison has points")?, "dense", quantity)?[0];
    let highest =
        series.iter().flat_map(|(_, _, line)| line).map(|(_, mean, s)| mean + s).fold(0.0, f64::max);
    let (low, high) = (dense * 0.97, highest * 1.05);
    let ticks = TICKS.into_iter().filter(|tick| (low..high).contains(tick)).collect();
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(27.0..73.0, (low..high).log_scale().with_key_points(ticks))?;
    chart
        .configure_mesh()
        .x_desc("zero weights (%)")
        .y_desc("perplexity (logarithmic)")
        .x_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .draw()?;
    let style = DENSE.stroke_width(1);
    chart
        .draw_series(DashedLineSeries::new([(27.0, dense), (73.0, dense)], 6, 4, style))?
        .label("dense weights")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    for (method, colour, line) in series {
        let style = colour.stroke_width(2);
        let bars = line.iter().map(|&(x, mean, deviation)| bar(x, mean, deviation, style));
        chart.draw_series(bars.collect::<Vec<_>>())?;
        chart
            .draw_series(LineSeries::new(line.iter().map(|&(x, mean, _)| (x, mean)), style).point_size(3))?
            .label(method)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// Jitters of the weights, as `scripts/figures.sh` names them.
const JITTERS: [&str; 5] = ["2e-7", "1e-6", "1e-5", "1e-4", "1e-3"];

/// From one jitter to the next on the horizontal axis.
const STEP: i32 = 120;

/// Every repeat of two methods, by the size of the disturbance.
fn noise(results: &Path) -> Result<String> {
    let mut series = Vec::new();
    for (at, jitter) in JITTERS.into_iter().enumerate() {
        let comparison = read(&results.join(format!("jitter-{jitter}/comparison.json")))?;
        let point = points(&comparison).next().ok_or("a comparison has points")?;
        for (method, colour) in METHODS.into_iter().skip(2) {
            series.push((at, method, colour, values(point, method, "perplexity")?));
        }
    }
    let all = || series.iter().flat_map(|(.., values)| values.iter().copied());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    let pad = 0.12 * (high - low);
    let end = STEP * JITTERS.len() as i32;
    picture((760, 380), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(
                "one model, pruned again and again: 50 % of weights, 50 % of activations",
                ("sans-serif", 16),
            )
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(
                (-STEP / 2..end + STEP / 3).with_key_points((0..end).step_by(STEP as usize).collect()),
                low - pad..high + pad,
            )?;
        chart
            .configure_mesh()
            .x_desc("relative jitter of the dense weights (each point one run; bars: one standard deviation)")
            .y_desc("perplexity")
            .x_label_formatter(&|&x| JITTERS[(x / STEP) as usize].to_string())
            .y_label_formatter(&|y| format!("{y:.1}"))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.1))
            .draw()?;
        for (number, (method, colour)) in METHODS.into_iter().skip(2).enumerate() {
            let of_method = || series.iter().filter(move |(_, name, ..)| *name == method);
            let aside = STEP / 4 * number as i32 - STEP / 8;
            let dots = of_method()
                .flat_map(|(at, .., values)| values.iter().map(move |&y| (STEP * *at as i32 + aside, y)));
            chart
                .draw_series(dots.map(|point| Circle::new(point, 3, colour.mix(0.7).filled())))?
                .label(method)
                .legend(move |(x, y)| Circle::new((x + 9, y), 4, colour.filled()));
            let bars = of_method().map(|(at, .., values)| {
                let (mean, deviation) = spread(values);
                let x = STEP * *at as i32 + aside + STEP / 12;
                bar(x, mean, deviation, colour.stroke_width(2))
            });
            chart.draw_series(bars.collect::<Vec<_>>())?;
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    })
}
