//! Every stage of every test vector on every backend: the reference in f64 to the case's tolerance and in f32 to its a-priori
//! rounding error, CUDA, emulated and on a device, to what the reference errs in f32; and the proof that the check can fail:
//! planted errors are found at the stage they were planted in.

mod backends;
mod emulator;
mod fixtures;

use approx::assert_abs_diff_eq;
use backends::on_every_backend;
use duogpt::backend::Cpu;
use duogpt::cuda::Cuda;
use duogpt::linalg::Scalar;
use duogpt::verify::inspect::Inspect;
use duogpt::verify::kind::Kind;
use duogpt::verify::report::{FileReport, Outcome, Stage};
use duogpt::verify::vectors::{Case, Followed, case_folders, compute, verify_case};
use emulator::Emulator;
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::{Array2, array};

fn case(name: &str) -> Case {
    Case::load(&fixtures::path("vectors/v1").join(name)).unwrap()
}

fn main() {
    let (cases, negative) = case_folders(&fixtures::path("vectors/v1")).unwrap();
    let mut trials = vec![
        Trial::test("all_cases_are_there", {
            let found = (cases.len(), negative.len());
            move || match found {
                (122, 36) => Ok(()),
                _ => Err(format!("{found:?} cases and wrong results, expected 122 and 36").into()),
            }
        }),
        Trial::test("planted_errors_are_found_where_they_are", planted_errors),
        Trial::test("f32_budgets_are_the_stated_bounds", f32_budgets),
        Trial::test("a_flipped_decision_is_followed_and_told_apart", flipped_decisions),
        Trial::test("faults_of_a_kernel_are_found_at_their_stage", faults_of_kernels),
    ];
    for folder in cases {
        let case = Case::load(&folder).unwrap();
        trials.extend(on_every_backend!(case.name().replace('/', "::"), case, holds));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Cases whose damped Hessian has no factor.
const SINGULAR: [&str; 2] = ["sparsegpt/singular-hessian", "sparsegpt/lc-identity-fallback"];

/// Cases with a row of zeros, whose asymmetric grid from -1 to 1 has its zero in the middle of two codes.
const TIED_ZERO: [&str; 2] = ["gptaq/zero-and-tiny-rows-asym", "gptq/static-groups-natural"];

fn holds<T: Scalar, B: Inspect<T>>(backend: &B, case: &Case) -> Result<(), String> {
    let report = verify_case::<T, B>(case, backend).map_err(|error| error.to_string())?;
    let kind = case.document.algorithm;
    let stages = &case.document.stages;
    let shown: usize = stages.iter().map(|stage| stage.tensors.len()).sum();
    let exact = T::NAME == "f64";
    // A stage that is silently left out would pass unseen.
    let complete = match () {
        () if exact => report.not_compared.is_empty() && report.stages.len() == shown,
        () if B::unsupported(kind).is_some() || kind == Kind::Teal => {
            report.stages.is_empty() && report.not_compared.len() == 1
        }
        () if SINGULAR.contains(&case.name().as_str()) => {
            report.not_compared.iter().any(|what| what.contains("singular"))
        }
        () if TIED_ZERO.contains(&case.name().as_str()) => report
            .not_compared
            .iter()
            .any(|what| what.contains("between two codes") || what.contains("grids")),
        () if B::REFERENCE => report.not_compared.is_empty() && report.stages.len() >= shown,
        () => report.stages.len() + report.not_compared.len() >= shown,
    };
    if !complete {
        return Err(format!("{shown} tensors to compare:\n{report:#?}"));
    }
    if report.passed() { Ok(()) } else { Err(report.to_text()) }
}

fn first_failure(report: &FileReport) -> Option<String> {
    let failure = report.case.as_ref()?.failure.as_ref()?;
    Some(format!("{}: {}", failure.stage, failure.tensor))
}

fn stage<'a>(report: &'a FileReport, name: &str) -> &'a Stage {
    let found = report.stages.iter().find(|stage| stage.name == name);
    found.unwrap_or_else(|| panic!("there is no stage `{name}` in {:#?}", report.stages))
}

fn planted_errors() -> Result<(), Failed> {
    // One entry of a tensor, the largest, off by 1e-6 of it: the stage must be named.
    for (name, tensor, stage) in [
        ("duogpt/basic", "stats.hessian", "statistics: stats.hessian"),
        ("duogpt/basic", "stats.dxxt", "statistics: stats.dxxt"),
        ("duogpt/basic", "trace.hinv_chol", "factor: trace.hinv_chol"),
        ("duogpt/basic", "trace.q_matrix", "drift: trace.q_matrix"),
        ("duogpt/basic", "trace.p_matrix", "drift: trace.p_matrix"),
        ("duogpt/basic", "trace.score", "score: trace.score"),
        ("duogpt/natural", "trace.err", "err: trace.err"),
        ("duogpt/natural", "trace.block_weight", "block_weight: trace.block_weight"),
        ("wanda/per-row-50", "trace.metric", "metric: trace.metric"),
        ("teal/skewed", "trace.thresholds", "threshold: trace.thresholds"),
        ("gptq/sym4", "trace.scale", "grid: trace.scale"),
    ] {
        let mut changed = case(name);
        let values = &mut changed.tensors.get_mut(tensor).unwrap().values;
        let largest = values.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        values.iter_mut().filter(|x| x.abs() == largest).for_each(|x| *x *= 1.0 + 1e-6);
        let found = first_failure(&verify_case::<f64, _>(&changed, &Cpu)?);
        if found.as_deref() != Some(stage) {
            return Err(format!("a change of {tensor} in {name} was found at {found:?}").into());
        }
    }
    // One flipped bit of the mask, two exchanged positions, and a code one step off.
    for (name, tensor, stage) in [
        ("duogpt/basic", "trace.mask", "mask: trace.mask"),
        ("duogpt/act-order", "trace.perm", "permutation: trace.perm"),
        ("gptaq/sym4", "trace.codes", "codes: trace.codes"),
        ("sparsegpt/dead-channels", "trace.dead", "dead: trace.dead"),
    ] {
        let mut changed = case(name);
        let values = &mut changed.tensors.get_mut(tensor).unwrap().values;
        match tensor {
            "trace.perm" => values.swap((0, 0), (0, 1)),
            "trace.codes" => values[(3, 5)] += 1.0,
            _ => values[(0, 5)] = 1.0 - values[(0, 5)],
        }
        let found = first_failure(&verify_case::<f64, _>(&changed, &Cpu)?);
        if found.as_deref() != Some(stage) {
            return Err(format!("a change of {tensor} in {name} was found at {found:?}").into());
        }
        if tensor != "trace.perm" && verify_case::<f32, _>(&changed, &Cpu)?.passed() {
            return Err(format!("a change of {tensor} in {name} passes in f32").into());
        }
    }
    // Settings that the outputs were not made with, also beyond the f32 budget.
    for change in 0..4 {
        let mut changed = case("duogpt/basic");
        let settings = &mut changed.document.settings;
        match change {
            0 => settings.damping = Some(0.1),
            1 => settings.alpha = Some(1.0),
            2 => settings.block_size = Some(16),
            _ => settings.hessian_factor = Some(2),
        }
        if verify_case::<f64, _>(&changed, &Cpu)?.passed() || verify_case::<f32, _>(&changed, &Cpu)?.passed()
        {
            return Err(format!("change {change} of the settings passed").into());
        }
    }
    Ok(())
}

/// A fault of a kernel shows at the first stage that it touches.
fn faults_of_kernels() -> Result<(), Failed> {
    let layer = case("duogpt/act-order-k64");
    let tokens = case("activation/ties-and-zeros");
    let faults = [
        (
            &tokens,
            "activation.cu",
            "keep = key >= threshold",
            "keep = key > threshold",
            "output: output.activations",
        ),
        (
            &layer,
            "statistics.cu",
            "d = dense_x - sparse_x;",
            "d = sparse_x - dense_x;",
            "statistics: stats.dxxt",
        ),
        (
            &layer,
            "factor.cu",
            "order[i % k]] * scale;",
            "order[i % k]] * scale * 1.00001f;",
            "factor: trace.hinv_chol",
        ),
        (
            &layer,
            "factor.cu",
            "if (j <= p) row[j] = 0.0f;",
            "if (j < p) row[j] = 0.0f;",
            "drift: trace.p_matrix",
        ),
        (&layer, "factor.cu", "(a[p] - b + 2.0f * c)", "(a[p] - b - 2.0f * c)", "score: trace.score"),
        (
            &layer,
            "score.cu",
            "float square = w[at] * w[at];",
            "float square = w[at] * w[at] * 1.00001f;",
            "score: trace.score",
        ),
        (
            &layer,
            "panel.cu",
            "w_[v] += residual - compensation;",
            "w_[v] -= compensation;",
            "score: trace.score",
        ),
    ];
    for (case, file, from, to, stage) in faults {
        let cuda = Cuda { device: Emulator::with_fault(7, file, from, to) };
        let report = verify_case::<f32, _>(case, &cuda)?;
        let found = report.stages.iter().find(|stage| !stage.passed).map(|stage| stage.name.as_str());
        if found != Some(stage) {
            return Err(format!("{file}: `{to}` was found at {found:?}, not at {stage}").into());
        }
    }
    Ok(())
}

/// A DuoGPT layer of one row and two columns, two sequences of two tokens; without traces but for the order.
fn by_hand() -> Case {
    let mut by_hand = case("duogpt/wide");
    let document = &mut by_hand.document;
    (document.shape.n, document.shape.k) = (Some(1), 2);
    document.settings.block_size = Some(2);
    document.settings.damping = Some(1.0 / 3.0);
    document.settings.alpha = Some(1.0);
    document.settings.column_order = serde_json::from_value("hessian_drift".into()).unwrap();
    let mut stages = case("duogpt/act-order").document.stages;
    stages.retain(|stage| ["statistics", "permutation", "output"].contains(&stage.name.as_str()));
    document.stages = stages;
    let mut order = case("duogpt/act-order").tensors["trace.perm"].clone();
    order.shape = vec![2];
    order.values = array![[0.0, 1.0]];
    by_hand.tensors.insert("trace.perm".into(), order);
    let mut set = |name: &str, shape: &[usize], values: Array2<f64>| {
        let tensor = by_hand.tensors.get_mut(name).unwrap();
        (tensor.shape, tensor.values) = (shape.to_vec(), values);
    };
    set("input.calls", &[2, 2], array![[1.0, 2.0], [1.0, 2.0]]);
    set("input.dense_activations", &[4, 2], array![[2.0, 3.0], [0.0, 1.0], [1.0, 0.0], [1.0, 2.0]]);
    set("input.sparse_activations", &[4, 2], array![[2.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 2.0]]);
    set("input.weight", &[1, 2], array![[1.0, 2.0]]);
    set("stats.hessian", &[2, 2], array![[3.0, 2.0], [2.0, 3.0]]);
    set("stats.dxxt", &[2, 2], array![[0.0, 0.0], [2.0, 1.0]]);
    set("stats.dxdxt", &[2], array![[0.0, 2.0]]);
    set("output.weight", &[1, 2], array![[1.0, 0.0]]);
    by_hand
}

/// The bounds of the module's text, worked out by hand.
fn f32_budgets() -> Result<(), Failed> {
    let u = f64::from(f32::EPSILON) / 2.0;
    let near = |x: f64, expected: f64| assert_abs_diff_eq!(x / expected, 1.0, epsilon = 1e-12);
    let in_u = |report: &FileReport, name: &str| match &stage(report, name).outcome {
        Outcome::Values(values) => values.budget / u,
        other => panic!("{other:?} has no budget"),
    };
    let report = verify_case::<f32, _>(&by_hand(), &Cpu)?;
    // 2 tokens and 3 for each of 2 sequences and 8: 16 roundings, of the mean of sum |x| |y|, over the largest entry. dX
    // has one entry that is not zero, 3 - 1, known to 3 + 1 roundings.
    near(in_u(&report, "statistics: stats.hessian"), 16.0 * (6.0 / 2.0) / 3.0);
    near(in_u(&report, "statistics: stats.dxxt"), 16.0 * (4.0 * 2.0 / 2.0) / 2.0);
    near(in_u(&report, "statistics: stats.dxdxt"), 16.0 * (4.0 * 4.0 / 2.0) / 2.0);
    // Damped by 1 and scaled, H is [1 1/2; 1/2 1], its inverse 4/3 [1 -1/2; -1/2 1]: the condition is 3/2 * 2.
    near(in_u(&report, "output: output.weight"), (16.0 + 3.0 * 2.0) * 3.0);
    // The keys of the order are 3 + 0 and 3 + 1; they may be off like H and dX X^T together.
    let Outcome::Decisions(order) = &stage(&report, "permutation: trace.perm").outcome else { panic!() };
    assert_eq!((order.differing, order.widest_margin), (2, Some(0.25)));
    near(order.margin_budget.unwrap() / u, 16.0 + 32.0);

    let grids = verify_case::<f32, _>(&case("gptaq/sym4"), &Cpu)?;
    near(in_u(&grids, "grid: trace.scale"), 4.0);
    near(in_u(&grids, "output: output.weight"), 6.0);
    // Scores of Wanda: a sum of squares, its root, a product and a rounded weight.
    let wanda = case("wanda/per-row-50");
    let calls = &wanda.tensors["input.calls"].values;
    let tokens = calls.column(1).iter().fold(0.0f64, |most, &tokens| most.max(tokens));
    let terms = tokens + 3.0 * calls.column(0).sum() + 8.0;
    let report = verify_case::<f32, _>(&wanda, &Cpu)?;
    near(in_u(&report, "statistics: stats.scaler_row"), terms);
    near(in_u(&report, "metric: trace.metric"), terms + 4.0);
    Ok(())
}

/// A case whose makers decided otherwise in one place, and went on from there: that decision alone must fail.
fn flipped_decisions() -> Result<(), Failed> {
    let failures = |report: &FileReport| -> Vec<(String, usize)> {
        let failed = report.stages.iter().filter(|stage| !stage.passed);
        failed.map(|stage| (stage.name.clone(), stage.differing())).collect()
    };
    // A mask bit in the last block, the lowest score: of this case's decisions to prune a clear one. Positions are columns.
    let mut flipped = case("duogpt/alpha-one-sparse70");
    let last_block = flipped.document.slices.last().map_or(0, |slice| slice[0]);
    let mut mask = flipped.tensors["trace.mask"].values.mapv(|pruned| pruned != 0.0);
    let score = &flipped.tensors["trace.score"].values;
    let in_last_block = score.indexed_iter().filter(|((_, column), _)| *column >= last_block);
    let (at, _) = in_last_block.min_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    assert!(mask[at]);
    mask[at] = false;
    let followed = Followed { mask: Some(mask), ..Followed::default() };
    let computed = compute::<f64, _>(&flipped, &Cpu, &followed)?;
    for name in ["trace.mask", "trace.score", "output.weight"] {
        flipped.tensors.insert(name.into(), computed.tensors[name].clone());
    }
    let failed = failures(&verify_case::<f32, _>(&flipped, &Cpu)?);
    assert_eq!(failed, [("mask: trace.mask".to_string(), 1)]);
    assert_eq!(first_failure(&verify_case::<f64, _>(&flipped, &Cpu)?).as_deref(), Some("mask: trace.mask"));

    // A code, early in its row. What follows in the row is decided anew, column by column, until nothing changes.
    let mut flipped = case("gptaq/sym4");
    let k = flipped.document.shape.k;
    let free = compute::<f64, _>(&flipped, &Cpu, &Followed::default())?;
    let mut codes = free.tensors["trace.codes"].values.mapv(|code| code as i32);
    codes[(7, 3)] += if codes[(7, 3)] > 0 { -1 } else { 1 };
    let followed = loop {
        let followed = Followed { codes: Some(codes.clone()), ..Followed::default() };
        let computed = compute::<f64, _>(&flipped, &Cpu, &followed)?;
        let decided = &computed.tensors["trace.codes"].values;
        let next = (4..k).find(|&column| decided[(7, column)] != f64::from(codes[(7, column)]));
        let Some(column) = next else { break computed };
        codes[(7, column)] = decided[(7, column)] as i32;
    };
    flipped.tensors.get_mut("trace.codes").unwrap().values = codes.mapv(f64::from);
    for name in ["trace.err", "output.weight"] {
        flipped.tensors.insert(name.into(), followed.tensors[name].clone());
    }
    let failed = failures(&verify_case::<f32, _>(&flipped, &Cpu)?);
    assert_eq!(failed, [("codes: trace.codes".to_string(), 1)]);
    Ok(())
}
