//! The report as one page: tables, and for what differs a picture of where, how far and how clearly.

use plotters::prelude::*;

use super::compare::{Comparison, Decisions, HeatMap, UlpHistogram};
use super::markup::escape;
use super::picture::{self, anchor, picture};
use super::report::{CaseStatus, FileReport, NegativeReport, Outcome, Report, Stage, percent};
use super::vectors::FILE;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
td.number { font-variant-numeric: tabular-nums } .pass { color: #00694d } .fail { color: #b03a00; font-weight: 600 }
code { background: #f3f3f3; padding: .1rem .3rem; overflow-wrap: anywhere } .plots { display: flex; flex-wrap: wrap; gap: 1rem }
svg { max-width: 100%; height: auto } details { margin: 1rem 0 }
";

const BLUE: RGBColor = RGBColor(0, 114, 178);
const ORANGE: RGBColor = RGBColor(213, 94, 0);

/// The report as one page that needs no other file.
pub fn page(report: &Report) -> String {
    let failed = report.failed();
    let verdict = if failed == 0 { "PASS" } else { "FAIL" };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>duogpt: {verdict}</title><style>{STYLE}{}</style></head><body>\n\
         <h1>{}: {} files, {} stages, {failed} failed</h1>\n\
         <p>Run again: <code>{}</code></p>\n",
        picture::STYLE,
        mark(failed == 0),
        report.files.len(),
        report.stages().count(),
        escape(&report.command),
    );
    html += &picture(report);
    report
        .negatives
        .iter()
        .filter(|negative| !negative.passed())
        .for_each(|negative| html += &rejected(negative));
    let environment = &report.environment;
    let facts = [
        ("version", format!("{} ({})", environment.version, environment.commit)),
        ("platform", environment.platform.clone()),
        ("backend", environment.backend.clone()),
        ("BLAS", environment.blas.clone()),
    ];
    html += "<table>";
    for (what, value) in facts {
        html += &format!("<tr><th>{what}</th><td>{}</td></tr>", escape(&value));
    }
    html += "</table>\n";
    let mut files: Vec<_> = report.files.iter().enumerate().collect();
    files.sort_by_key(|(_, file)| file.passed()); // stable: failures first
    files.into_iter().for_each(|(number, file)| html += &section(number, file));
    report
        .negatives
        .iter()
        .filter(|negative| negative.passed())
        .for_each(|negative| html += &rejected(negative));
    html + "</body></html>\n"
}

fn rejected(negative: &NegativeReport) -> String {
    let found = negative.failure.as_ref().map_or("passes".into(), |failure| format!("rejected at {failure}"));
    format!("<p>{} {}: {}</p>\n", mark(negative.passed()), escape(&negative.name), escape(&found))
}

fn section(number: usize, file: &FileReport) -> String {
    let mut html = match &file.case {
        Some(case) => {
            // Where the picture's cell leads for a stage without a row below: one whose tensors are not there.
            let has_row =
                |stage: &str| file.stages.iter().any(|row| row.name.split(':').next() == Some(stage));
            let failed = case.failure.as_ref().map(|failure| failure.stage.as_str());
            let lone = failed.filter(|stage| !has_row(stage));
            let lone = if case.status == CaseStatus::Missing { Some(FILE) } else { lone };
            let id = lone.map_or(String::new(), |stage| format!(" id=\"{}\"", anchor(number, stage)));
            format!("<h2{id}>{} {}</h2>\n", verdict(case.status), escape(&case.name))
        }
        None => format!("<h2>{}</h2>\n", escape(&file.path.display().to_string())),
    };
    if let Some(case) = &file.case {
        if let Some(failure) = &case.failure {
            html += &format!("<p>First failing stage: {}</p>\n", escape(&failure.to_string()));
        }
        if let Some(cause) = &case.cause {
            html += &format!("<p>Usual causes: {}</p>\n", escape(cause));
        }
        for flag in &case.flags {
            html += &format!("<p>The case: {}: {}</p>\n", escape(&flag.id), escape(&flag.reason));
        }
    }
    if let Some(expected) = &file.expected {
        html += &format!("<p>compared with {}</p>\n", escape(&expected.display().to_string()));
    }
    if !file.sha256.is_empty() {
        html += &format!("<p>SHA-256 <code>{}</code></p>\n", file.sha256);
    }
    html += "<table><tr><th></th><th>stage</th><th>outcome</th><th>budget used</th></tr>\n";
    let mut linked = "";
    for stage in &file.stages {
        // The first tensor of a stage is where the picture's cell leads.
        let name = stage.name.split(':').next().unwrap_or_default();
        let id = match file.case {
            Some(_) if name != linked => format!(" id=\"{}\"", anchor(number, name)),
            _ => String::new(),
        };
        linked = name;
        let used = match &stage.outcome {
            Outcome::Values(values) => percent(values.budget_used()),
            _ => String::new(),
        };
        html += &format!(
            "<tr{id}><td>{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{used}</td></tr>\n",
            mark(stage.passed),
            escape(&stage.name),
            escape(&stage.summary()),
        );
    }
    html += "</table>\n";
    for what in &file.not_compared {
        html += &format!("<p>skipped: {}</p>\n", escape(what));
    }
    // Pictures of what fails, and of what comes closest to it.
    let closest = (file.stages.iter())
        .filter(|stage| stage.passed && stage.budget_used() > 0.0)
        .max_by(|a, b| a.budget_used().total_cmp(&b.budget_used()));
    for stage in file.stages.iter().filter(|stage| !stage.passed) {
        html += &details(stage, true);
    }
    if let Some(stage) = closest {
        html += &details(stage, false);
    }
    html
}

/// Explanation and plots of one stage.
fn details(stage: &Stage, open: bool) -> String {
    let title = if open { "" } else { ", the stage that uses most of its budget" };
    let open = if open { " open" } else { "" };
    let mut html = format!("<details{open}><summary>{}{title}</summary>\n<ul>", escape(&stage.name));
    for line in stage.explanation() {
        html += &format!("<li>{}</li>", escape(&line));
    }
    html += "</ul>\n<div class=\"plots\">";
    match &stage.outcome {
        Outcome::Values(values) => {
            html += &drawn(|| heat_map(values));
            html += &drawn(|| histogram(&values.ulps));
        }
        Outcome::Decisions(decisions) if decisions.widest_margin.is_some() => {
            html += &drawn(|| margins(decisions))
        }
        Outcome::Decisions(_) | Outcome::Shapes { .. } => {}
    }
    html + "</div></details>\n"
}

type Drawing = Result<String, Box<dyn std::error::Error>>;

/// A plot, or the reason why there is none.
fn drawn(plot: impl Fn() -> Drawing) -> String {
    plot().unwrap_or_else(|error| format!("<p>no plot: {}</p>", escape(&error.to_string())))
}

/// The errors over rows and columns, light where there is none, dark at the largest, orange beyond the budget.
fn heat_map(values: &Comparison) -> Drawing {
    let HeatMap { shape: (rows, columns), cells } = &values.heat;
    let (n, k) = values.shape;
    // By digits: an error a thousand times smaller is still to be seen.
    let shade = |error: f64| (1.0 + (error / values.error).log10() / 16.0).clamp(0.0, 1.0);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (440, 400)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .caption("largest error by place, orange beyond the budget", ("sans-serif", 14))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..k as f64, n as f64..0.0)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(k.min(10))
            .y_labels(n.min(10))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .x_desc("column")
            .y_desc("row")
            .draw()?;
        chart.draw_series((0..rows * columns).filter(|&i| cells[i] != 0.0).map(|i| {
            let (row, column, error) = ((i / columns) as f64, (i % columns) as f64, cells[i]);
            let (height, width) = (n as f64 / *rows as f64, k as f64 / *columns as f64);
            let corners = [(column * width, row * height), ((column + 1.0) * width, (row + 1.0) * height)];
            let colour = match error <= values.budget {
                true => BLUE.mix(0.08 + 0.92 * shade(error)),
                false => ORANGE.mix(if error.is_finite() { 0.3 + 0.7 * shade(error) } else { 1.0 }),
            };
            Rectangle::new(corners, colour.filled())
        }))?;
        area.present()?;
    }
    Ok(svg)
}

/// How many values lie how many representable numbers apart.
fn histogram(ulps: &UlpHistogram) -> Drawing {
    let mut bars: Vec<(String, usize)> =
        ulps.counts.iter().enumerate().map(|(bucket, &count)| (UlpHistogram::label(bucket), count)).collect();
    if ulps.incomparable > 0 {
        bars.push(("NaN".into(), ulps.incomparable));
    }
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (520, 400)).into_drawing_area();
        let title = format!("distance in units of the last place ({})", ulps.precision.torch_name());
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 14))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0..bars.len().max(1), 0..most + most / 10 + 1)?;
        let label = |bar: &usize| bars.get(*bar).map_or(String::new(), |(label, _)| label.clone());
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_labels(10)
            .x_label_formatter(&label)
            .x_desc("distance")
            .y_desc("values")
            .draw()?;
        chart.draw_series(
            bars.iter()
                .enumerate()
                .map(|(i, (_, count))| Rectangle::new([(i, 0), (i + 1, *count)], BLUE.filled())),
        )?;
        area.present()?;
    }
    Ok(svg)
}

/// How clear each flipped decision was, in processing order; the line is what is allowed.
fn margins(decisions: &Decisions) -> Drawing {
    const CLOSEST: f64 = 1e-18;
    let digits = |margin: f64| margin.clamp(CLOSEST, 10.0).log10();
    let points: Vec<(f64, f64)> = (decisions.flips.iter())
        .filter_map(|flip| Some((flip.position as f64, digits(flip.margin?))))
        .collect();
    let right = points.iter().fold(1.0f64, |right, (x, _)| right.max(*x)) * 1.05;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (520, 400)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .caption("how clear each flipped decision was", ("sans-serif", 14))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..right, CLOSEST.log10()..1.0)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .x_desc("column, in processing order")
            .y_desc("margin")
            .y_label_formatter(&|y| format!("1e{y:.0}"))
            .draw()?;
        if let Some(budget) = decisions.margin_budget {
            let line = [(0.0, digits(budget)), (right, digits(budget))];
            chart.draw_series(LineSeries::new(line, &ORANGE))?;
        }
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 2, BLUE.filled())))?;
        area.present()?;
    }
    Ok(svg)
}

fn verdict(status: CaseStatus) -> &'static str {
    match status {
        CaseStatus::Pass => mark(true),
        CaseStatus::Fail => mark(false),
        CaseStatus::Undecided => "UNDECIDED",
        CaseStatus::Missing => "MISSING",
    }
}

fn mark(passed: bool) -> &'static str {
    if passed { "<span class=\"pass\">PASS</span>" } else { "<span class=\"fail\">FAIL</span>" }
}
