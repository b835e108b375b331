//! Every stage of every golden file on every backend: the reference in f64 to 1e-9 and in f32 to its a-priori rounding error,
//! CUDA, emulated and on a device, to what the reference errs in f32; and the proof that the check can fail: planted errors
//! are found at the stage they were planted in.

mod backends;
mod emulator;
mod fixtures;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use approx::assert_abs_diff_eq;
use backends::on_every_backend;
use duogpt::cuda::Cuda;
use duogpt::linalg::Scalar;
use duogpt::reference::baseline::gptaq::{GridConfig, GridRange, Symmetry, quantise};
use duogpt::reference::prune::prepare;
use duogpt::reference::{Alpha, ColumnOrder, PruneConfig, Sparsity, Statistics};
use duogpt::tensors::{Dtype, TensorFile, TensorWriter};
use duogpt::verify::golden::{verify_file, verify_file_on};
use duogpt::verify::inspect::Inspect;
use duogpt::verify::kind::Kind;
use duogpt::verify::report::{FileReport, Outcome, Stage};
use duogpt::verify::tensors::compare_files;
use emulator::Emulator;
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::{Array2, ArrayView2};

fn golden(name: &str) -> PathBuf {
    fixtures::path("golden").join(format!("{name}.safetensors"))
}

fn main() {
    let mut files: Vec<PathBuf> =
        fs::read_dir(golden("x").parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut trials = vec![
        Trial::test("all_files_are_there", {
            let count = files.len();
            move || {
                if count == 22 { Ok(()) } else { Err(format!("{count} golden files, expected 22").into()) }
            }
        }),
        Trial::test("planted_errors_are_found_where_they_are", planted_errors),
        Trial::test("a_foreign_file_is_skipped_by_name", foreign_file),
        Trial::test("f32_budgets_are_the_stated_bounds", f32_budgets),
        Trial::test("a_flipped_decision_is_followed_and_told_apart", flipped_decisions),
        Trial::test("files_that_contradict_themselves_are_refused", contradictions),
        Trial::test("faults_of_a_kernel_are_found_at_their_stage", faults_of_kernels),
    ];
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        trials.extend(on_every_backend!(name, file, holds));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn holds<T: Scalar, B: Inspect<T>>(backend: &B, file: &Path) -> Result<(), String> {
    let report = verify_file_on::<T, B>(file, backend).map_err(|error| error.to_string())?;
    let kind = report.kind.ok_or("not recognised as a golden file")?;
    match B::unsupported(kind) {
        None => check_complete(&report).map_err(|failed| failed.message().unwrap_or_default().to_string())?,
        // The statistics of a GPTAQ file can be compared all the same.
        Some(reason)
            if report.not_compared == [reason] && (kind == Kind::Gptaq || report.stages.is_empty()) => {}
        Some(reason) => return Err(format!("not said to be skipped: {reason}")),
    }
    // The original has no scores of SparseGPT: in f32 they are held to the f64 reference.
    let scores = report.stages.iter().any(|stage| stage.name == "nm24: score (f64 reference)");
    if scores != (kind == Kind::SparseGpt && T::NAME == "f32") {
        return Err(format!("scores compared with the f64 reference: {scores}"));
    }
    if report.passed() { Ok(()) } else { Err(report.to_text()) }
}

/// A stage that is silently left out would pass unseen.
fn check_complete(report: &FileReport) -> Result<(), Failed> {
    let names: Vec<&str> = report.stages.iter().map(|stage| stage.name.as_str()).collect();
    let all = |wanted: &[&str]| -> Result<(), Failed> {
        match wanted.iter().find(|name| !names.contains(name)) {
            Some(missing) => Err(format!("stage `{missing}` was not checked; there are {names:?}").into()),
            None => Ok(()),
        }
    };
    let statistics =
        ["activation pruning", "statistics: H", "statistics: dX X^T", "statistics: diag dX dX^T"];
    let traces =
        ["factor: L^T", "Q", "alpha D", "a", "b", "2c", "factor of the score", "score", "mask", "weight"];
    let file = TensorFile::open(&report.path)?;
    match report.kind {
        Some(Kind::DuoGpt) => {
            all(&statistics)?;
            if file.get("trace.perm").is_some() {
                all(&["permutation"])?;
            }
            match report.path.file_stem().is_some_and(|stem| stem == "wide") {
                true => Ok(()), // recorded without traces
                false => all(&traces),
            }
        }
        Some(Kind::SparseGpt) => all(&["nm24: mask", "nm24: weight", "unstructured70_damp10: weight"]),
        Some(Kind::Wanda) => all(&["statistics: norms", "nm48: mask", "unstructured65: weight"]),
        Some(Kind::ActivationPruning) => all(&["ties.s50", "zeros.s90", "decode.s0", "random.s65"]),
        Some(Kind::Gptaq) => {
            all(&["statistics: H", "statistics: dX X^T"])?;
            for run in ["sym4", "asym4_mse", "sym3_act_order", "sym4_alpha0_gptq"] {
                for stage in ["scale", "zero", "codes", "weight"] {
                    all(&[&format!("{run}: {stage}")])?;
                }
            }
            Ok(())
        }
        None => Err("not recognised as a golden file".into()),
    }
}

/// A copy of a golden file with one tensor or metadata entry changed.
fn with_change(
    name: &str,
    change: impl Fn(&str, &mut [u8]),
    metadata: &[(&str, &str)],
) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("changed.safetensors");
    let source = TensorFile::open(&golden(name)).unwrap();
    let mut all: HashMap<String, String> = source.metadata.clone();
    all.extend(metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())));
    let tensors = source.in_file_order();
    let headers = tensors.iter().map(|(name, info)| (*name, info.dtype, info.shape.as_slice()));
    let writer = TensorWriter::create(&path, headers, &all).unwrap();
    for (name, _) in &tensors {
        let mut bytes = source.bytes(name).unwrap().to_vec();
        change(name, &mut bytes);
        writer.write(name, &bytes).unwrap();
    }
    writer.sync().unwrap();
    (directory, path)
}

fn edit_f64(bytes: &mut [u8], index: usize, edit: impl Fn(f64) -> f64) {
    let place = &mut bytes[8 * index..8 * index + 8];
    let value = f64::from_le_bytes(place.try_into().unwrap());
    place.copy_from_slice(&edit(value).to_le_bytes());
}

fn planted_errors() -> Result<(), Failed> {
    let first_failure =
        |report: &FileReport| -> Option<Stage> { report.stages.iter().find(|s| !s.passed).cloned() };
    // One entry of a tensor, off by 1e-6 of it: the stage, and the place, must be named.
    for (tensor, stage) in [
        ("stats.hessian", "statistics: H"),
        ("stats.dxxt", "statistics: dX X^T"),
        ("trace.hinv_chol", "factor: L^T"),
        ("trace.q_matrix", "Q"),
        ("trace.p_matrix", "alpha D"),
        ("trace.score", "score"),
    ] {
        let largest = |bytes: &[u8]| {
            let values: Vec<f64> =
                bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
            (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs())).unwrap()
        };
        let (_directory, path) = with_change(
            "basic",
            |name, bytes| {
                if name == tensor {
                    edit_f64(bytes, largest(bytes), |x| x * (1.0 + 1e-6));
                }
            },
            &[],
        );
        let report = verify_file::<f64>(&path)?;
        let failure = first_failure(&report).ok_or_else(|| format!("a change of {tensor} passed"))?;
        if failure.name != stage || failure.place().is_none() {
            return Err(format!("a change of {tensor} was found as {failure:?}").into());
        }
    }
    // One flipped bit of the mask.
    let (_directory, path) = with_change(
        "basic",
        |name, bytes| {
            if name == "trace.mask" {
                bytes[5] ^= 1
            }
        },
        &[],
    );
    let report = verify_file::<f64>(&path)?;
    let mask = report.stages.iter().find(|stage| stage.name == "mask").unwrap();
    if mask.passed || mask.differing() != 1 {
        return Err(format!("a flipped mask bit was reported as {mask:?}").into());
    }
    // Two positions of the permutation exchanged.
    let swap = |name: &str, bytes: &mut [u8]| {
        if name == "trace.perm" {
            let (first, second) = bytes.split_at_mut(8);
            first.swap_with_slice(&mut second[..8]);
        }
    };
    let (_directory, path) = with_change("act_order", swap, &[]);
    let found = first_failure(&verify_file::<f64>(&path)?);
    if found.as_ref().is_none_or(|stage| stage.name != "permutation") {
        return Err(format!("an exchanged permutation was found as {found:?}").into());
    }
    // One quantised weight moved by a step of its grid: one code, however the rest of the row was to follow.
    for run in ["sym4", "sym3_act_order"] {
        let scale =
            TensorFile::open(&golden("gptaq"))?.matrix::<f64>(&format!("{run}.scale"))?.column(0).to_vec();
        let moved = |name: &str, bytes: &mut [u8]| {
            if name == format!("{run}.weight") {
                edit_f64(bytes, 64 * 9 + 40, |w| if w > 0.0 { w - scale[9] } else { w + scale[9] });
            }
        };
        let (_directory, path) = with_change("gptaq", moved, &[]);
        for report in [verify_file::<f64>(&path)?, verify_file::<f32>(&path)?] {
            let found = first_failure(&report);
            let fits = |s: &Stage| {
                s.name == format!("{run}: codes") && s.place().is_some_and(|p| (p.row, p.column) == (9, 40))
            };
            if !found.as_ref().is_some_and(fits) {
                return Err(format!("a moved weight of {run} was found as {found:?}").into());
            }
        }
    }
    // Settings that the outputs were not made with, also beyond the f32 budget.
    for (key, value) in
        [("percdamp", "0.1"), ("scale_alpha", "1.0"), ("blocksize", "16"), ("a_sparsity", "0.4")]
    {
        let (_directory, path) = with_change("basic", |_, _| {}, &[(key, value)]);
        if verify_file::<f64>(&path)?.passed() || verify_file::<f32>(&path)?.passed() {
            return Err(format!("{key} = {value} passed").into());
        }
    }
    Ok(())
}

fn foreign_file() -> Result<(), Failed> {
    let model = fixtures::path("nano-llama/model.safetensors");
    let report = verify_file::<f64>(&model)?;
    if report.kind.is_none() && !report.not_compared.is_empty() {
        Ok(())
    } else {
        Err(format!("{report:?}").into())
    }
}

/// A fault of a kernel shows at the first stage that it touches.
fn faults_of_kernels() -> Result<(), Failed> {
    let faults = [
        ("activation.cu", "keep = key >= threshold", "keep = key > threshold", "activation pruning"),
        ("statistics.cu", "d = dense_x - sparse_x;", "d = sparse_x - dense_x;", "statistics: dX X^T"),
        ("factor.cu", "order[i % k]] * scale;", "order[i % k]] * scale * 1.00001f;", "factor: L^T"),
        ("factor.cu", "if (j <= p) row[j] = 0.0f;", "if (j < p) row[j] = 0.0f;", "alpha D"),
        ("factor.cu", "(a[p] - b + 2.0f * c)", "(a[p] - b - 2.0f * c)", "factor of the score"),
        ("score.cu", "float square = w[at] * w[at];", "float square = w[at] * w[at] * 1.00001f;", "score"),
        ("panel.cu", "w_[v] += residual - compensation;", "w_[v] -= compensation;", "score"),
    ];
    for (file, from, to, stage) in faults {
        let cuda = Cuda { device: Emulator::with_fault(7, file, from, to) };
        let report = verify_file_on::<f32, _>(&golden("act_order"), &cuda)?;
        let found = report.stages.iter().find(|stage| !stage.passed).map(|stage| stage.name.as_str());
        if found != Some(stage) {
            return Err(format!("{file}: `{to}` was found at {found:?}, not at {stage}").into());
        }
    }
    Ok(())
}

/// The parts of a golden file made by hand.
struct Tensors(Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn f64(mut self, name: &'static str, shape: &[usize], values: &[f64]) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.0.push((name, Dtype::F64, shape.to_vec(), bytes));
        self
    }

    fn i64(mut self, name: &'static str, values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.0.push((name, Dtype::I64, vec![values.len()], bytes));
        self
    }

    fn mask(mut self, name: &'static str, shape: &[usize], pruned: &[u8]) -> Self {
        self.0.push((name, Dtype::U8, shape.to_vec(), pruned.to_vec()));
        self
    }

    fn write(self, metadata: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("by-hand.safetensors");
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let headers = self.0.iter().map(|(name, dtype, shape, _)| (*name, *dtype, shape.as_slice()));
        let writer = TensorWriter::create(&path, headers, &metadata).unwrap();
        self.0.iter().for_each(|(name, _, _, bytes)| writer.write(name, bytes).unwrap());
        (directory, path)
    }
}

/// A DuoGPT layer of one row and two columns, two sequences of two tokens, without traces.
fn by_hand(order: &[i64], output: &[f64]) -> (tempfile::TempDir, PathBuf) {
    Tensors(Vec::new())
        .f64("input.dense_activations", &[2, 2, 2], &[2.0, 3.0, 0.0, 1.0, 1.0, 0.0, 1.0, 2.0])
        .f64("input.sparse_activations", &[2, 2, 2], &[2.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 2.0])
        .f64("input.weight", &[1, 2], &[1.0, 2.0])
        .f64("stats.hessian", &[2, 2], &[3.0, 2.0, 2.0, 3.0])
        .f64("stats.dxxt", &[2, 2], &[0.0, 0.0, 2.0, 1.0])
        .f64("stats.dxdxt", &[2], &[0.0, 2.0])
        .i64("trace.perm", order)
        .f64("output.weight", &[1, output.len()], output)
        .write(&[
            ("algorithm", "DuoGPT"),
            ("prunen", "0"),
            ("sparsity", "0.5"),
            ("act_order", "True"),
            ("block_act", "False"),
            ("dxxt_permutation", "True"),
            ("blocksize", "2"),
            ("percdamp", "0.3333333333333333"),
            ("scale_alpha", "1"),
            ("a_sparsity", "0"),
        ])
}

fn stage<'a>(report: &'a FileReport, name: &str) -> &'a Stage {
    let found = report.stages.iter().find(|stage| stage.name == name);
    found.unwrap_or_else(|| panic!("there is no stage `{name}` in\n{}", report.to_text()))
}

fn budget(stage: &Stage) -> f64 {
    match &stage.outcome {
        Outcome::Values(values) => values.budget,
        other => panic!("{other:?} has no budget"),
    }
}

/// The bounds of the module's text, worked out by hand.
fn f32_budgets() -> Result<(), Failed> {
    let u = f64::from(f32::EPSILON) / 2.0;
    let in_u = |report: &FileReport, name: &str| budget(stage(report, name)) / u;
    let near = |x: f64, expected: f64| assert_abs_diff_eq!(x / expected, 1.0, epsilon = 1e-12);

    let (_directory, path) = by_hand(&[0, 1], &[1.0, 0.0]);
    let report = verify_file::<f32>(&path)?;
    // 2 tokens and 3 for each of 2 sequences and 8: 16 roundings, of the mean of sum |x| |y|, over the largest entry. dX
    // has one entry that is not zero, 3 - 1, known to 3 + 1 roundings.
    near(in_u(&report, "statistics: H"), 16.0 * (6.0 / 2.0) / 3.0);
    near(in_u(&report, "statistics: dX X^T"), 16.0 * (4.0 * 2.0 / 2.0) / 2.0);
    near(in_u(&report, "statistics: diag dX dX^T"), 16.0 * (4.0 * 4.0 / 2.0) / 2.0);
    // Damped by 1 and scaled, H is [1 1/2; 1/2 1], its inverse 4/3 [1 -1/2; -1/2 1]: the condition is 3/2 * 2.
    let weight = "weight (mask of the golden output)";
    near(in_u(&report, weight), (16.0 + 3.0 * 2.0) * 3.0);
    // The keys of the order are 3 + 0 and 3 + 1; they may be off like H and dX X^T together.
    let Outcome::Decisions(order) = &stage(&report, "permutation").outcome else { panic!() };
    assert_eq!((order.differing, order.widest_margin), (2, Some(0.25)));
    near(order.margin_budget.unwrap() / u, 16.0 + 32.0);
    let exact = verify_file::<f64>(&path)?;
    assert_eq!(budget(stage(&exact, "weight")), 1e-9);
    let Outcome::Decisions(order) = &stage(&exact, "permutation").outcome else { panic!() };
    assert_eq!(order.margin_budget, Some(0.0));

    let gptaq = verify_file::<f32>(&golden("gptaq"))?;
    near(in_u(&gptaq, "sym4: scale"), 4.0);
    near(in_u(&gptaq, "sym4: weight"), 6.0);

    // Wanda: scores |w| * norm are 1 * 3 and 2 * 2, so that column 0 should go; the file says column 1.
    let (_directory, path) = Tensors(Vec::new())
        .f64("input.dense_activations", &[2, 1, 2], &[3.0, 2.0, 3.0, 2.0])
        .f64("input.weight", &[1, 2], &[1.0, 2.0])
        .f64("stats.scaler_row", &[2], &[9.0, 4.0])
        .mask("nm12.mask", &[1, 2], &[0, 1])
        .f64("nm12.weight", &[1, 2], &[1.0, 0.0])
        .write(&[]);
    for (report, margin_budget) in
        [(verify_file::<f32>(&path)?, Some(15.0)), (verify_file::<f64>(&path)?, None)]
    {
        let mask = stage(&report, "nm12: mask");
        let Outcome::Decisions(decisions) = &mask.outcome else { panic!() };
        assert!(!mask.passed && stage(&report, "nm12: weight").passed, "{}", report.to_text());
        assert_eq!((decisions.differing, decisions.widest_margin), (2, Some(0.25)));
        assert_eq!(decisions.margin_budget.is_some(), margin_budget.is_some());
        if let Some(expected) = margin_budget {
            near(decisions.margin_budget.unwrap() / u, expected);
            near(in_u(&report, "statistics: norms"), expected);
        }
    }
    Ok(())
}

/// A file whose makers decided otherwise in one place, and went on from there: that decision alone must fail.
fn flipped_decisions() -> Result<(), Failed> {
    let failures = |report: &FileReport| -> Vec<(String, usize)> {
        let failed = report.stages.iter().filter(|stage| !stage.passed);
        failed.map(|stage| (stage.name.clone(), stage.differing())).collect()
    };
    let statistics = |file: &TensorFile| -> Result<Statistics<f64>, Failed> {
        let dense = file.cube::<f64>("input.dense_activations")?;
        let sparse = file.cube::<f64>("input.sparse_activations")?;
        let mut statistics = Statistics::with_residual(dense.dim().2);
        dense
            .outer_iter()
            .zip(sparse.outer_iter())
            .for_each(|(dense, sparse)| statistics.update(dense, sparse));
        Ok(statistics)
    };
    let bytes = |values: &Array2<f64>| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };

    // A mask bit in the last block; in `basic` positions are columns.
    let file = TensorFile::open(&golden("basic"))?;
    let config = PruneConfig {
        block_size: 32,
        damping: 0.01,
        alpha: Alpha::both(0.25),
        column_order: ColumnOrder::Natural,
        ..PruneConfig::upstream(Sparsity::Unstructured(0.5))
    };
    let mut mask = file.flags("trace.mask")?;
    mask[(4, 40)] = !mask[(4, 40)];
    let replay = Some(mask.view());
    let prepared = prepare(&statistics(&file)?, &config, None)?;
    let pruned = prepared.prune(file.matrix("input.weight")?.view(), replay)?;
    let (_directory, path) = with_change(
        "basic",
        |name, place| match name {
            "trace.mask" => place[64 * 4 + 40] ^= 1,
            "trace.score" => place.copy_from_slice(&bytes(&pruned.score)),
            "output.weight" => place.copy_from_slice(&bytes(&pruned.weight)),
            _ => {}
        },
        &[],
    );
    assert_eq!(failures(&verify_file::<f64>(&path)?), [("mask".to_string(), 1)]);

    // A code, early in its row.
    let file = TensorFile::open(&golden("gptaq"))?;
    let weight = file.matrix::<f64>("input.weight")?;
    let grids =
        GridConfig { bits: 4, symmetry: Symmetry::Symmetric, range: GridRange::Full, group_size: None };
    let config = PruneConfig { block_size: 32, ..PruneConfig::gptaq() };
    let prepared = prepare(&statistics(&file)?, &config, None)?;
    let run = |codes: Option<ArrayView2<i32>>| quantise(&prepared, weight.view(), &grids, None, codes);
    let mut codes = run(None)?.codes;
    codes[(9, 3)] += if codes[(9, 3)] > 0 { -1 } else { 1 };
    // What follows in the row is decided anew, column by column, until nothing changes.
    let quantised = loop {
        let quantised = run(Some(codes.view()))?;
        let next = (4..64).find(|&column| quantised.codes[(9, column)] != codes[(9, column)]);
        let Some(column) = next else { break quantised };
        codes[(9, column)] = quantised.codes[(9, column)];
    };
    let output = |name: &str, place: &mut [u8]| {
        if name == "sym4.weight" {
            place.copy_from_slice(&bytes(&quantised.pruned.weight));
        }
    };
    let (_directory, path) = with_change("gptaq", output, &[]);
    assert_eq!(failures(&verify_file::<f64>(&path)?), [("sym4: codes".to_string(), 1)]);
    Ok(())
}

fn contradictions() -> Result<(), Failed> {
    let refusal = |order: &[i64], output: &[f64]| {
        let (_directory, path) = by_hand(order, output);
        verify_file::<f64>(&path).unwrap_err().to_string()
    };
    for order in [[0, 0], [0, 2], [0, 5], [-1, 0]] {
        let refused = refusal(&order, &[1.0, 0.0]);
        assert!(refused.contains("`trace.perm` is not a permutation"), "{order:?}: {refused}");
    }
    let refused = refusal(&[0, 1], &[1.0, 0.0, 0.0]);
    assert!(refused.contains("output.weight") && refused.contains("[1, 2]"), "{refused}");
    // Without traces there are no scores to weigh flips with; the rest is compared all the same.
    let (_directory, path) = by_hand(&[0, 1], &[1.0, 0.0]);
    let file = TensorFile::open(&path)?;
    assert!(compare_files(&file, &file, 0.0)?.passed());
    // One tensor of a kind does not make a golden file.
    for lonely in ["model.scale", "stats.hessian"] {
        let (_directory, path) = Tensors(Vec::new()).f64(lonely, &[1, 1], &[1.0]).write(&[]);
        assert_eq!(verify_file::<f64>(&path)?.kind, None, "{lonely}");
    }
    Ok(())
}
