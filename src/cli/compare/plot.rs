//! The plot of a comparison.

use plotters::coord::Shift;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;

use super::table::{description, scale};
use crate::cli::CliError;
use crate::evaluate::comparison::{ComparisonReport, MethodResult, PointResult, Quantity};
use crate::reference::Sparsity;

/// Distinct also for colour-blind readers; "dense" means weights: its activations are sparse like the others'.
const COLOURS: [(&str, RGBColor); 5] = [
    ("dense", RGBColor(120, 120, 120)),
    ("magnitude", RGBColor(213, 94, 0)),
    ("wanda", RGBColor(230, 159, 0)),
    ("sparsegpt", RGBColor(0, 114, 178)),
    ("duogpt", RGBColor(0, 158, 115)),
];

/// From one point to the next on the horizontal axis.
const STEP: i32 = 90;

/// A panel per quantity: the points side by side, a line per method, with the spread over repeats and documents as a bar.
pub(super) fn draw(report: &ComparisonReport, shown: &[Quantity]) -> Result<String, CliError> {
    let (width, height) = (720, 400);
    let mut svg = String::new();
    {
        let measured = |point: &&PointResult| point.rows.iter().any(|row| !row.optimality_gap.is_empty());
        let with_gap = report.points.iter().find(measured);
        let panels = shown.len() + usize::from(with_gap.is_some());
        let area = SVGBackend::with_string(&mut svg, (width, height * panels as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        let panels = area.split_evenly((panels, 1));
        for (panel, &quantity) in panels.iter().zip(shown) {
            draw_panel(panel, &report.points, quantity)?;
        }
        if let (Some(point), Some(panel)) = (with_gap, panels.last()) {
            draw_gaps(panel, point)?;
        }
        area.present()?;
    }
    Ok(svg)
}

fn draw_panel(
    area: &DrawingArea<SVGBackend, Shift>,
    points: &[PointResult],
    quantity: Quantity,
) -> Result<(), CliError> {
    // Mean and spread of a method at every point that has it.
    let series = |method: &str| -> Vec<(i32, f64, f64)> {
        let row = |point: &PointResult| -> Option<(f64, f64)> {
            let row: &MethodResult = point.rows.iter().find(|row| row.method == method)?;
            let estimate = &row.quantities.get(&quantity)?.estimate;
            let scale = scale(quantity);
            Some((scale * estimate.mean, scale * estimate.spread()))
        };
        let found = points.iter().enumerate().map(|(i, point)| Some((STEP * i as i32, row(point)?)));
        found.flatten().map(|(x, (mean, spread))| (x, mean, spread)).collect()
    };
    let (low, high) = (COLOURS.iter().flat_map(|(method, _)| series(method)))
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, mean, deviation)| {
            (low.min(mean - deviation), high.max(mean + deviation))
        });
    let pad = (high - low).max(1.0) * 0.08;
    let end = STEP * points.len() as i32;
    // On the right a quarter more, for the legend.
    let x = (-STEP / 2..end + end / 4 - STEP / 2).with_key_points((0..end).step_by(STEP as usize).collect());

    let mut chart = ChartBuilder::on(area)
        .caption(description(quantity), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(x, low - pad..high + pad)?;
    chart
        .configure_mesh()
        .x_desc("zero weights / zero activations (bars: one standard deviation)")
        .x_label_formatter(&|&x| points.get((x / STEP) as usize).map_or(String::new(), label))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (number, (method, colour)) in COLOURS.into_iter().enumerate() {
        let series = series(method);
        if series.is_empty() {
            continue;
        }
        let style = colour.stroke_width(2);
        let aside = STEP / 30 * (number as i32 - 2); // so that bars do not hide each other
        let bars = series.iter().filter(|(_, _, deviation)| *deviation > 0.0);
        chart.draw_series(bars.map(|&(x, mean, deviation)| {
            PathElement::new([(x + aside, mean - deviation), (x + aside, mean + deviation)], style)
        }))?;
        let line = series.iter().map(|&(x, mean, _)| (x + aside, mean));
        chart
            .draw_series(LineSeries::new(line, style).point_size(4))?
            .label(if method == "dense" { "dense weights" } else { method })
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    legend(&mut chart)
}

/// The optimality gap layer by layer, a line per method, at one point.
fn draw_gaps(area: &DrawingArea<SVGBackend, Shift>, point: &PointResult) -> Result<(), CliError> {
    let gaps = || point.rows.iter().flat_map(|row| &row.optimality_gap);
    let layers = point.rows.iter().map(|row| row.optimality_gap.len()).max().unwrap_or(0);
    let high = gaps().map(|gap| gap.mean + gap.spread()).fold(1.1, f64::max);
    // On the right a quarter more, for the legend.
    let right = (layers as f64 - 0.5) * 1.25;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("optimality gap at {}", label(point)), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..right, 1.0 - 0.05 * (high - 1.0)..high + 0.1 * (high - 1.0))?;
    chart
        .configure_mesh()
        .x_desc("decoder layer (1 is the best that the same zeros allow; bars: one standard deviation)")
        .x_labels(layers.min(20))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (method, colour) in COLOURS {
        let Some(row) = point.rows.iter().find(|row| row.method == method) else { continue };
        if row.optimality_gap.is_empty() {
            continue;
        }
        let style = colour.stroke_width(2);
        let points = || row.optimality_gap.iter().enumerate().map(|(layer, gap)| (layer as f64, gap));
        chart.draw_series(points().filter(|(_, gap)| gap.spread() > 0.0).map(|(x, gap)| {
            PathElement::new([(x, gap.mean - gap.spread()), (x, gap.mean + gap.spread())], style)
        }))?;
        chart
            .draw_series(LineSeries::new(points().map(|(x, gap)| (x, gap.mean)), style).point_size(4))?
            .label(method)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    legend(&mut chart)
}

fn legend<'a, X: Ranged, Y: Ranged>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
) -> Result<(), CliError> {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

fn label(point: &PointResult) -> String {
    let percent = |p: f64| format!("{:.0} %", 100.0 * p);
    let weights = match point.weight_sparsity {
        Sparsity::Unstructured(p) => percent(p),
        pattern => pattern.to_string(),
    };
    format!("{weights} / {}", percent(point.activation_sparsity))
}
