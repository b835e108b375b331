//! `prune --report-gap`: each linear beside the best weights for its mask.

mod common;

use std::path::Path;

use approx::{abs_diff_eq, assert_abs_diff_eq};
use common::{duogpt, fixture, read_json};
use duogpt::calibrate::gap::GapMeter;
use duogpt::linalg::Scalar;
use duogpt::reference::activation::prune_activations;
use duogpt::reference::baseline::magnitude::magnitude;
use duogpt::reference::exact::optimal_weights;
use duogpt::reference::{NarrowGroups, Sparsity, Statistics};
use ndarray::{Array2, ArrayView2};
use serde_json::Value;

/// Two linears of 7 and 4 rows on 12 channels, and three sequences of 20 tokens, dense and sparse.
struct Problem {
    weights: Vec<Array2<f64>>,
    sequences: Vec<(Array2<f64>, Array2<f64>)>,
}

impl Problem {
    fn new() -> Self {
        let wave = |i: usize, j: usize| ((i * 37 + j * 101) as f64 * 0.7).sin() * (1.0 + (j % 5) as f64);
        let sequence = |number: usize| {
            let dense = Array2::from_shape_fn((20, 12), |(i, j)| wave(i + 20 * number, j));
            let mut sparse = &dense * 1.1;
            prune_activations(sparse.view_mut(), 0.5);
            (dense, sparse)
        };
        let weight =
            |n, from| Array2::from_shape_fn((n, 12), |(i, j)| ((from + i * 12 + j) as f64 * 1.3).cos());
        Problem { weights: vec![weight(7, 0), weight(4, 500)], sequences: (0..3).map(sequence).collect() }
    }

    fn statistics(&self) -> Statistics<f64> {
        let mut statistics = Statistics::with_residual(12);
        self.sequences.iter().for_each(|(dense, sparse)| statistics.update(dense.view(), sparse.view()));
        statistics
    }

    fn meter<T: Scalar>(&self, rows: usize) -> GapMeter<T> {
        let cast = |a: &Array2<f64>| a.mapv(T::of);
        let mut meter = GapMeter::new(&self.weights.iter().map(cast).collect::<Vec<_>>(), rows);
        for (dense, sparse) in &self.sequences {
            meter.update(cast(dense).view(), cast(sparse).view());
        }
        meter
    }

    /// E of a row measured on the inputs themselves.
    fn error(&self, linear: usize, row: usize, changed: ArrayView2<f64>, damping: f64) -> f64 {
        let (w, new) = (self.weights[linear].row(row), changed.row(row));
        let output: f64 = self
            .sequences
            .iter()
            .map(|(dense, sparse)| (sparse.dot(&new) - dense.dot(&w)).mapv(|e| e * e).sum())
            .sum();
        let lambda = damping * self.statistics().hessian.diag().mean().unwrap();
        output / 3.0 + lambda * (&new - &w).mapv(|d| d * d).sum()
    }
}

fn halved(weight: &Array2<f64>) -> (Array2<f64>, Array2<bool>) {
    let pruned = magnitude(weight.view(), Sparsity::Unstructured(0.5), NarrowGroups::Refuse).unwrap();
    (pruned.weight, pruned.mask)
}

#[test]
fn the_errors_are_those_measured_on_the_inputs() {
    let problem = Problem::new();
    let pruned: Vec<_> = problem.weights.iter().map(halved).collect();
    for damping in [0.01, 0.3] {
        let measured = problem.meter::<f64>(99).measure(damping, pruned.iter().map(|(w, m)| (w, m))).unwrap();
        for (linear, found) in measured.iter().enumerate() {
            let (weight, mask) = &pruned[linear];
            let best =
                optimal_weights(problem.weights[linear].view(), &problem.statistics(), mask.view(), damping);
            let sum = |changed: ArrayView2<f64>| -> f64 {
                (0..weight.nrows()).map(|row| problem.error(linear, row, changed, damping)).sum()
            };
            let (error, best) = (sum(weight.view()), sum(best.unwrap().view()));
            // The condition of H + lambda I is below 1e5 here.
            assert_abs_diff_eq!(found.error, error, epsilon = 1e-10 * error);
            assert_abs_diff_eq!(found.best_error.unwrap(), best, epsilon = 1e-10 * error);
            assert_abs_diff_eq!(found.gap.unwrap(), error / best, epsilon = 1e-9 * error / best);
            assert!(found.gap.unwrap() > 1.0 && found.rows == weight.nrows());
            assert_eq!(found.damping, damping);
        }
    }
}

#[test]
fn the_optimum_has_no_gap_and_nothing_else_has_less() {
    fn check<T: Scalar>(rounding: f64) {
        let problem = Problem::new();
        let statistics = problem.statistics();
        let best = |weight: &Array2<f64>, mask: &Array2<bool>| {
            optimal_weights(weight.view(), &statistics, mask.view(), 0.05).unwrap().mapv(T::of)
        };
        let masks: Vec<_> = problem.weights.iter().map(|weight| halved(weight).1).collect();
        let optima: Vec<_> = problem.weights.iter().zip(&masks).map(|(w, m)| best(w, m)).collect();
        for found in problem.meter::<T>(99).measure(0.05, optima.iter().zip(&masks)).unwrap() {
            assert_abs_diff_eq!(found.gap.unwrap(), 1.0, epsilon = rounding);
        }
        let moved: Vec<_> = optima.iter().map(|w| w.mapv(|w| w * T::of(1.05))).collect();
        for found in problem.meter::<T>(99).measure(0.05, moved.iter().zip(&masks)).unwrap() {
            assert!(found.gap.unwrap() > 1.0 + 10.0 * rounding, "{found:?}");
        }
    }
    // E is at least a hundredth of its terms here, and known to a few k roundings of them.
    check::<f64>(100.0 * 4.0 * 12.0 * f64::UNIT_ROUNDOFF);
    check::<f32>(100.0 * 4.0 * 12.0 * f32::UNIT_ROUNDOFF);
}

#[test]
fn where_nothing_is_lost_the_gap_is_one() {
    // dX = 0 and the weights as they were: both errors are zero.
    let mut problem = Problem::new();
    problem.sequences.iter_mut().for_each(|(dense, sparse)| *dense = sparse.clone());
    let none: Vec<_> = problem.weights.iter().map(|weight| weight.mapv(|_| false)).collect();
    for found in problem.meter::<f64>(99).measure(0.01, problem.weights.iter().zip(&none)).unwrap() {
        assert_eq!((found.gap, found.error), (Some(1.0), 0.0));
    }
    // Something lost where nothing had to be: no number says how much worse that is.
    let moved: Vec<_> = problem.weights.iter().map(|weight| weight * 1.5).collect();
    for found in problem.meter::<f64>(99).measure(0.01, moved.iter().zip(&none)).unwrap() {
        assert!(found.gap.is_none() && found.error > 0.0);
    }
}

#[test]
fn a_sample_is_some_of_the_rows_and_always_the_same() {
    let problem = Problem::new();
    let pruned: Vec<_> = problem.weights.iter().map(halved).collect();
    let measure =
        |rows| problem.meter::<f64>(rows).measure(0.01, pruned.iter().map(|(w, m)| (w, m))).unwrap();
    assert_eq!(measure(5), measure(5));
    assert_eq!(measure(7), measure(99));
    let (all, some) = (measure(7), measure(5));
    assert_eq!((some[0].rows, some[1].rows), (5, 4));
    assert_eq!(some[1], all[1]);
    // Two rows are left out: what is missing is the error of two of the seven.
    let rows: Vec<f64> = (0..7).map(|row| problem.error(0, row, pruned[0].0.view(), 0.01)).collect();
    let missing = all[0].error - some[0].error;
    let pairs = (0..7).flat_map(|a| (0..a).map(move |b| (a, b)));
    let close =
        |&(a, b): &(usize, usize)| abs_diff_eq!(rows[a] + rows[b], missing, epsilon = 1e-10 * all[0].error);
    let found = pairs.filter(close).count();
    assert_eq!(found, 1);
}

fn report(directory: &Path, flags: &[&str]) -> Value {
    let nano = fixture("nano-llama");
    let tokens = nano.join("tokens-calibration.safetensors");
    let output = directory.join(format!("pruned{}", flags.join("")));
    let mut arguments = vec!["prune", "--precision", "f64", "--dtype", "f64", "--block-size", "32"];
    arguments.extend(["--model", nano.to_str().unwrap(), "--tokens", tokens.to_str().unwrap()]);
    arguments.extend(["--output", output.to_str().unwrap()]);
    arguments.extend(flags);
    let outcome = duogpt(&arguments);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    if flags.contains(&"--report-gap") {
        let text = String::from_utf8_lossy(&outcome.stdout);
        assert_eq!(text.lines().filter(|line| line.contains("   gap ")).count(), 21, "{text}");
    }
    read_json(&output.join("prune-report.json"))
}

fn gaps(report: &Value) -> Vec<f64> {
    let of = |linear: &Value| linear["optimality"]["gap"].as_f64().unwrap_or_else(|| panic!("{linear}"));
    report["linears"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn every_method_reports_it_and_none_beats_the_optimum() {
    let directory = tempfile::tempdir().unwrap();
    let mean = |flags: &[&str]| {
        let report = report(directory.path(), &[flags, &["--report-gap", "400"]].concat());
        let linears = report["linears"].as_array().unwrap();
        for linear in linears {
            // 400 is more than any linear has.
            let (rows, weights) = (&linear["optimality"]["rows"], linear["weights"].as_u64().unwrap());
            let width = if linear["tensor"].as_str().unwrap().contains("down") { 176 } else { 64 };
            assert_eq!(rows.as_u64().unwrap() * width, weights, "{linear}");
        }
        let gaps = gaps(&report);
        // The errors are at least 1e-4 of their terms, sums over at most 176 columns.
        let rounding = 1e4 * 4.0 * 176.0 * f64::UNIT_ROUNDOFF;
        assert!(gaps.iter().all(|&gap| gap >= 1.0 - rounding), "{flags:?}: {gaps:?}");
        gaps.iter().sum::<f64>() / gaps.len() as f64
    };
    let duogpt = mean(&["--method", "duogpt"]);
    let sparsegpt = mean(&["--method", "sparsegpt"]);
    let wanda = mean(&["--method", "wanda"]);
    let magnitude = mean(&["--method", "magnitude"]);
    // With dense activations its first layer would have dX = 0, no pruned weights, and so nothing that must be lost.
    mean(&["--method", "gptaq", "--bits", "3", "--activation-sparsity", "0.5"]);
    let coarse = mean(&["--method", "duogpt", "--bits", "2"]);
    assert!(duogpt < sparsegpt, "{duogpt} {sparsegpt}");
    assert!(sparsegpt < wanda && sparsegpt < magnitude, "{sparsegpt} {wanda} {magnitude}");
    assert!(coarse > duogpt, "{coarse} {duogpt}");
}

#[test]
fn the_report_is_without_it_unless_asked() {
    let directory = tempfile::tempdir().unwrap();
    let without = report(directory.path(), &[]);
    assert!(without["linears"].as_array().unwrap().iter().all(|linear| linear.get("optimality").is_none()));
    let with = report(directory.path(), &["--report-gap"]);
    assert!(with["linears"].as_array().unwrap().iter().all(|linear| linear["optimality"]["rows"] == 32));
    // Measuring changes nothing.
    for (with, without) in
        with["linears"].as_array().unwrap().iter().zip(without["linears"].as_array().unwrap())
    {
        assert_eq!(with["relative_output_error"], without["relative_output_error"]);
    }
}

#[test]
fn a_model_that_loses_nothing_has_no_gap() {
    let directory = tempfile::tempdir().unwrap();
    let nothing = ["--method", "wanda", "--weight-sparsity", "0", "--report-gap", "8"];
    assert_eq!(gaps(&report(directory.path(), &nothing)), vec![1.0; 21]);
}
