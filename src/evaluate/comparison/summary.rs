//! From the runs of a point to means, gaps and standings.

use std::collections::BTreeMap;

use super::job::Point;
use super::report::{Measured, MethodResult, MethodRun, PointResult, Quantity};
use crate::calibrate::report::LinearReport;
use crate::evaluate::noise::{Estimate, standings};
use crate::evaluate::zero_shot::average;
use crate::evaluate::zero_shot::tasks::Task;
use crate::reference::Method;

/// Sums up a point; `runs` holds the repeats of each of its methods.
pub(super) fn summarise(point: &Point, runs: Vec<Vec<MethodRun>>) -> PointResult {
    let methods = point.methods.iter().zip(runs);
    let mut rows: Vec<MethodResult> = methods.map(|(&method, runs)| over_repeats(method, runs)).collect();
    compare_with_each_other(&mut rows);
    PointResult {
        weight_sparsity: point.weight_sparsity,
        activation_sparsity: point.activation_sparsity,
        rows,
    }
}

/// One method, not yet compared with the others.
fn over_repeats(method: Option<Method>, runs: Vec<MethodRun>) -> MethodResult {
    let seconds: Vec<f64> = runs.iter().flat_map(|run| &run.pruning).map(|p| p.seconds).collect();
    MethodResult {
        method: method.map_or("dense", |method| method.name()),
        settings: method,
        quantities: measured(&runs),
        optimality_gap: gap_by_layer(&runs),
        seconds_to_prune: method.map(|_| Estimate::new(seconds, Some(0.0))),
        runs,
    }
}

/// Every quantity over the repeats.
fn measured(runs: &[MethodRun]) -> BTreeMap<Quantity, Measured> {
    let mut all: BTreeMap<Quantity, Vec<(f64, Option<f64>)>> = BTreeMap::new();
    for run in runs {
        for (quantity, value) in quantities(run) {
            all.entry(quantity).or_default().push(value);
        }
    }
    let estimate = |values: Vec<(f64, Option<f64>)>| {
        let errors: Option<Vec<f64>> = values.iter().map(|(_, error)| *error).collect();
        let sampling_error = errors.map(|errors| errors.iter().sum::<f64>() / errors.len() as f64);
        let estimate = Estimate::new(values.into_iter().map(|(value, _)| value).collect(), sampling_error);
        Measured { estimate, gap_to_dense: None, standing: None }
    };
    all.into_iter().map(|(quantity, values)| (quantity, estimate(values))).collect()
}

/// Every quantity of one run, with its sampling error.
fn quantities(run: &MethodRun) -> BTreeMap<Quantity, (f64, Option<f64>)> {
    let mut all = BTreeMap::new();
    let perplexities = [
        (Quantity::PerplexityDenseActivations, &run.perplexity_dense_activations),
        (Quantity::Perplexity, &run.perplexity),
    ];
    for (quantity, found) in perplexities {
        // A perplexity is meant as that of these windows: they are not a sample.
        all.extend(found.as_ref().map(|found| (quantity, (found.perplexity, Some(0.0)))));
    }
    let of = |task| run.tasks.get(&task).copied();
    let averages = [(Quantity::FiveTasks, &Task::FIVE[..]), (Quantity::SevenTasks, &Task::ALL)];
    let averages = averages.map(|(quantity, tasks)| (quantity, average(of, tasks)));
    let tasks = run.tasks.iter().map(|(&task, found)| (Quantity::Task(task), Some(found.headline())));
    for (quantity, metric) in averages.into_iter().chain(tasks) {
        all.extend(metric.map(|metric| (quantity, (metric.mean, metric.standard_error))));
    }
    all
}

/// The mean gap of each layer's linears over the repeats; nothing where it was not measured.
fn gap_by_layer(runs: &[MethodRun]) -> Vec<Estimate> {
    let linears = || runs.iter().flat_map(|run| &run.pruning).map(|pruning| &pruning.linears);
    let layers = linears().flatten().map(|linear| linear.layer + 1).max().unwrap_or(0);
    let of_layer = |layer: usize| -> Option<Estimate> {
        let mean = |of_run: &Vec<LinearReport>| -> Option<f64> {
            let gaps = of_run.iter().filter(|linear| linear.layer == layer);
            let gaps: Vec<f64> = gaps.filter_map(|linear| linear.optimality?.gap).collect();
            (!gaps.is_empty()).then(|| gaps.iter().sum::<f64>() / gaps.len() as f64)
        };
        Some(Estimate::new(linears().map(mean).collect::<Option<_>>()?, None))
    };
    (0..layers).map(of_layer).collect::<Option<_>>().unwrap_or_default()
}

/// Sets gaps and standings of the methods of one point.
fn compare_with_each_other(rows: &mut [MethodResult]) {
    let quantities: Vec<Quantity> = rows.iter().flat_map(|row| row.quantities.keys().copied()).collect();
    for quantity in quantities {
        let of = |row: &MethodResult| row.quantities[&quantity].estimate.clone();
        let dense = rows.iter().find(|row| row.settings.is_none()).map(of);
        let pruned: Vec<Estimate> = rows.iter().filter(|row| row.settings.is_some()).map(of).collect();
        let mut standings = match pruned.len() {
            0 | 1 => Vec::new(),
            _ => standings(&pruned, quantity.is_accuracy()),
        }
        .into_iter();
        for row in rows.iter_mut() {
            let is_pruned = row.settings.is_some();
            let measured = row.quantities.get_mut(&quantity).expect("every row is measured by the same");
            measured.gap_to_dense = dense.as_ref().map(|dense| measured.estimate.mean - dense.mean);
            measured.standing = if is_pruned { standings.next() } else { None };
        }
    }
}
