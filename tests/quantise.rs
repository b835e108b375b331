//! `prune --bits`: kept weights rounded to grids inside the column loop, through the whole pipeline.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use approx::{abs_diff_eq, assert_abs_diff_eq};
use common::{duogpt, eval_perplexity, fixture, read_json};
use duogpt::backend::Cpu;
use duogpt::calibrate::streams::{Activations, Stream};
use duogpt::calibrate::windows::Windows;
use duogpt::model::Checkpoint;
use duogpt::model::forward::{Forward, Group};
use duogpt::reference::baseline::gptaq::{GridConfig, GridRange, Symmetry, gptaq};
use duogpt::reference::{PruneConfig, Statistics};
use duogpt::tensors::TensorFile;
use ndarray::{Array2, s};
use serde_json::Value;

/// Prunes a model of the fixtures; returns the output directory and the report.
fn prune(directory: &Path, model: &str, flags: &[&str]) -> (PathBuf, Value) {
    let tokens = match model {
        "nano-llama" => "nano-llama/tokens-calibration.safetensors",
        _ => "tiny-llama/tokens-sampled-calibration.safetensors",
    };
    let (source, tokens) = (fixture(model), fixture(tokens));
    let output = directory.join(format!("pruned{}", flags.join("")));
    let mut arguments =
        vec!["prune", "--model", source.to_str().unwrap(), "--tokens", tokens.to_str().unwrap()];
    arguments.extend(["--output", output.to_str().unwrap()]);
    arguments.extend(flags);
    let outcome = duogpt(&arguments);
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let report = read_json(&output.join("prune-report.json"));
    (output, report)
}

fn weight(directory: &Path, tensor: &str) -> Array2<f64> {
    TensorFile::open(&directory.join("model.safetensors")).unwrap().matrix(tensor).unwrap()
}

fn open(model: &str) -> Checkpoint {
    Checkpoint::open(&fixture(model)).unwrap()
}

#[test]
fn every_row_or_group_has_at_most_two_to_the_bits_values_and_the_sparsity_is_met() {
    let directory = tempfile::tempdir().unwrap();
    let nano = |flags: &[&str]| {
        prune(
            directory.path(),
            "nano-llama",
            &[&["--block-size", "32", "--threshold", "exact"], flags].concat(),
        )
    };
    for (flags, bits, group, sparsity) in [
        (&["--method", "gptaq", "--bits", "4"][..], 4u32, None, 0.0),
        (&["--method", "gptaq", "--bits", "2", "--asymmetric", "--mse"], 2, None, 0.0),
        (&["--method", "gptaq", "--bits", "3", "--group-size", "16", "--mse"], 3, Some(16), 0.0),
        (&["--method", "duogpt", "--bits", "4"], 4, None, 0.5),
        (&["--method", "duogpt", "--bits", "3", "--group-size", "32", "--asymmetric"], 3, Some(32), 0.5),
        (&["--method", "sparsegpt", "--bits", "4", "--group-size", "64"], 4, Some(64), 0.5),
        (
            &["--method", "duogpt", "--bits", "4", "--weight-sparsity", "2:4", "--group-size", "16"],
            4,
            Some(16),
            0.5,
        ),
        (&["--method", "duogpt", "--bits", "4", "--column-order", "hessian"], 4, None, 0.5),
    ] {
        let (output, report) = nano(flags);
        let name = flags.join(" ");
        assert_eq!(report["grids"]["bits"], bits, "{name}");
        assert_eq!(report["grids"]["group_size"].as_u64(), group.map(|g| g as u64), "{name}");
        let asymmetric = flags.contains(&"--asymmetric");
        assert_eq!(report["grids"]["symmetry"], if asymmetric { "asymmetric" } else { "symmetric" });
        assert_eq!(report["grids"]["range"], if flags.contains(&"--mse") { "least_error" } else { "full" });
        // The checkpoint is of f32, and so is the arithmetic: nothing is rounded once more.
        assert_eq!(
            report["totals"]["grid_rounding"],
            serde_json::json!({"moved": 0, "farthest": 0.0}),
            "{name}"
        );
        let mut most = 0;
        for tensor in open("nano-llama").linear_tensors() {
            let weight = weight(&output, &tensor);
            let (n, k) = weight.dim();
            for start in (0..k).step_by(group.unwrap_or(k)) {
                for row in weight.slice(s![.., start..(start + group.unwrap_or(k)).min(k)]).rows() {
                    let values: BTreeSet<u64> = row.iter().map(|w| w.to_bits()).collect();
                    assert!(values.len() <= 1 << bits, "{name}: {tensor}: {} values", values.len());
                    most = most.max(values.len());
                }
            }
            let zeros = weight.iter().filter(|w| **w == 0.0).count();
            // The floor of each block of 32 columns loses less than a weight.
            assert!(zeros as f64 > (n * k) as f64 * sparsity - k.div_ceil(32) as f64, "{name}: {tensor}");
        }
        assert!(2 * most > 1 << bits, "{name}: at most {most} values in a row");
    }
}

#[test]
fn the_pipeline_stores_what_the_loop_gives_on_the_models_own_input() {
    let (nano, model) = (fixture("nano-llama"), open("nano-llama"));
    let windows =
        Windows::from_tokens(&nano.join("tokens-calibration.safetensors"), &model.config, None, None)
            .unwrap();
    let forward = Forward::<f64>::new(&model.config, windows.length());
    let embedding = model.embedding::<f64>().unwrap();
    let layer = model.layer::<f64>(0).unwrap();
    let input = |sparsity| {
        let rule = Activations { sparsity, ..Activations::default() };
        let mut stream = Stream::new(&forward, &Cpu, &embedding, &windows, rule);
        stream.enter(&layer);
        stream.states
    };
    let mut statistics = Statistics::with_residual(64);
    for (dense, sparse) in input(0.0).iter().zip(&input(0.4)) {
        statistics.update(dense.input.view(), sparse.input.view());
    }
    let config = PruneConfig { block_size: 32, ..PruneConfig::gptaq() };
    let grids = GridConfig {
        range: GridRange::LeastError,
        group_size: Some(16),
        ..GridConfig::new(3, Symmetry::Asymmetric)
    };

    let directory = tempfile::tempdir().unwrap();
    let flags = ["--method", "gptaq", "--bits", "3", "--group-size", "16", "--asymmetric", "--mse"];
    let (output, _) = prune(
        directory.path(),
        "nano-llama",
        &[
            &flags[..],
            &["--activation-sparsity", "0.4", "--block-size", "32", "--precision", "f64", "--dtype", "f64"],
        ]
        .concat(),
    );
    for &linear in Group::Qkv.linears(&model.config) {
        let expected = gptaq(layer.linear(linear).view(), &statistics, &config, &grids).unwrap();
        assert_eq!(weight(&output, &model.tensor(0, linear)), expected.pruned.weight, "{linear}");
    }
}

#[test]
fn sixteen_bits_change_nothing_but_what_leaves_the_range_of_its_grid() {
    let directory = tempfile::tempdir().unwrap();
    let nano = |more: &[&str]| {
        let flags = ["--block-size", "32", "--precision", "f64", "--dtype", "f64", "--threshold", "exact"];
        prune(directory.path(), "nano-llama", &[&flags[..], more].concat()).0
    };
    let plain = nano(&[]);
    // A grid of its own for each weight, which is then the last point of it, up to rounding and to the smallest step
    // of 1e-5 / 32767.
    let own = nano(&["--bits", "16", "--group-size", "1"]);
    for tensor in open("nano-llama").linear_tensors() {
        assert_abs_diff_eq!(weight(&own, &tensor), weight(&plain, &tensor), epsilon = 1e-8);
    }
    // A grid for the row, found before the loop moves weights out of its range: those are cut off. Rows without them are
    // as they were, unless the others' scores have moved the common threshold.
    let shared = nano(&["--bits", "16", "--asymmetric"]);
    let model = open("nano-llama");
    let (mut same, mut cut, mut moved) = (0, 0, 0);
    for &linear in Group::Qkv.linears(&model.config) {
        let original = weight(&fixture("nano-llama"), &model.tensor(0, linear));
        let (plain, shared) =
            (weight(&plain, &model.tensor(0, linear)), weight(&shared, &model.tensor(0, linear)));
        for ((original, plain), shared) in original.rows().into_iter().zip(plain.rows()).zip(shared.rows()) {
            let lowest = original.fold(0.0f64, |m, &w| m.min(w));
            let highest = original.fold(0.0f64, |m, &w| m.max(w));
            let step = (highest - lowest) / 65535.0;
            let inside = |w: &f64| lowest - step < *w && *w < highest + step;
            assert!(shared.iter().all(inside), "{linear}");
            let difference = plain.iter().zip(&shared).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let other_mask = plain.iter().zip(&shared).any(|(a, b)| (*a == 0.0) != (*b == 0.0));
            match (plain.iter().all(inside), other_mask) {
                (false, _) => cut += 1,
                (true, true) => moved += 1,
                // Half a step of each of 64 columns, of which a later one takes at most its own size.
                (true, false) if difference <= 32.0 * step => same += 1,
                (true, false) => panic!("{linear}: {} steps", difference / step),
            }
        }
    }
    assert!(same > moved && same > 10 && cut > 0, "{same} {cut} {moved}");
}

fn perplexity(model: &Path) -> f64 {
    let tokens = fixture("tiny-llama/tokens-sampled-evaluation.safetensors");
    eval_perplexity(model, &tokens, "8", &[])["perplexity"].as_f64().unwrap()
}

#[test]
fn a_real_model_loses_more_with_fewer_bits() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = |flags: &[&str]| {
        let (output, report) = prune(directory.path(), "tiny-llama", &[&["--samples", "8"], flags].concat());
        (perplexity(&output), report)
    };
    let dense = perplexity(&fixture("tiny-llama"));
    let (eight, _) = tiny(&["--method", "gptaq", "--bits", "8"]);
    let (four, _) = tiny(&["--method", "gptaq", "--bits", "4"]);
    let (two, _) = tiny(&["--method", "gptaq", "--bits", "2", "--mse"]);
    let (pruned, _) = tiny(&["--method", "duogpt"]);
    let (both, _) = tiny(&["--method", "duogpt", "--bits", "4", "--group-size", "128"]);
    let (wanda, _) = tiny(&["--method", "wanda"]);
    // 1 % is what another, equally good model may differ by.
    assert_abs_diff_eq!(eight / dense, 1.0, epsilon = 0.01);
    assert!(dense < four && four < 1.03 * dense && two > 1.1 * four, "{dense} {four} {two}");
    // Four bits cost less on top of half the weights than the choice of method does.
    assert!(both < 1.03 * pruned && both < wanda, "{pruned} {both} {wanda}");
}

#[test]
fn weights_that_bf16_moves_off_their_grid_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--samples", "2", "--method", "gptaq", "--bits", "8", "--asymmetric"];
    let (exact, exact_report) =
        prune(directory.path(), "tiny-llama", &[&flags[..], &["--dtype", "f32"]].concat());
    let (stored, report) = prune(directory.path(), "tiny-llama", &flags);
    assert_eq!(exact_report["totals"]["grid_rounding"]["moved"], 0);
    let mut moved = 0;
    let model = open("tiny-llama");
    for &linear in model.config.linears() {
        let found = &report["linears"][linear.index]["grid_rounding"];
        moved += found["moved"].as_u64().unwrap();
        if linear.group() != Group::Qkv {
            continue; // their inputs already differ
        }
        let tensor = model.tensor(0, linear);
        let (points, stored) = (weight(&exact, &tensor), weight(&stored, &tensor));
        let mut farthest = 0.0f64;
        for (points, stored) in points.rows().into_iter().zip(stored.rows()) {
            let mut values = points.to_vec();
            values.sort_by(f64::total_cmp);
            values.dedup();
            // Of 256 weights on 255 steps some are neighbours; in f32 a step is known to its rounding.
            let step = values.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
            let shift = points.iter().zip(stored).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            farthest = farthest.max(shift / step);
        }
        let off = points.iter().zip(&stored).filter(|(a, b)| a != b).count();
        assert_eq!(found["moved"], off, "{tensor}");
        let reported = found["farthest"].as_f64().unwrap();
        let close = abs_diff_eq!(reported / farthest, 1.0, epsilon = 1e-4);
        assert!(off > 0 && close, "{tensor}: {reported} {farthest}");
    }
    assert!(report["totals"]["grid_rounding"]["moved"].as_u64().unwrap() > moved);
}
