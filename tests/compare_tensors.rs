//! A comparison names the first stage that differs, says what the difference looks like, and writes it down.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use approx::{abs_diff_eq, assert_abs_diff_eq};
use common::{duogpt, fixture};
use duogpt::tensors::FloatType;
use duogpt::tensors::{Dtype, TensorFile, TensorWriter};
use duogpt::verify::compare::{
    Decisions, NotFinite, Pattern, Processing, UlpHistogram, compare, compare_decisions, ulps,
};
use duogpt::verify::report::{FileReport, Outcome, Stage};
use duogpt::verify::tensors::compare_files;
use ndarray::{Array2, array};
use proptest::prelude::*;

/// A copy of a case's tensors, its tensors changed by `edit` (name, values as bytes).
fn edited(directory: &Path, name: &str, edit: impl Fn(&str, &mut [u8])) -> PathBuf {
    let source =
        TensorFile::open(&fixture("vectors/v1/duogpt").join(name).join("tensors.safetensors")).unwrap();
    let path = directory.join("port.safetensors");
    let tensors = source.in_file_order();
    let headers = tensors.iter().map(|(name, info)| (*name, info.dtype, info.shape.as_slice()));
    let writer = TensorWriter::create(&path, headers, &HashMap::new()).unwrap();
    for (name, _) in &tensors {
        let mut bytes = source.bytes(name).unwrap().to_vec();
        edit(name, &mut bytes);
        writer.write(name, &bytes).unwrap();
    }
    path
}

fn each_f64(bytes: &mut [u8], edit: impl Fn(usize, f64) -> f64) {
    for (i, place) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *place = edit(i, f64::from_le_bytes(*place)).to_le_bytes();
    }
}

fn compared(name: &str, port: &Path, tolerance: f64) -> FileReport {
    let golden =
        TensorFile::open(&fixture("vectors/v1/duogpt").join(name).join("tensors.safetensors")).unwrap();
    compare_files(&golden, &TensorFile::open(port).unwrap(), tolerance).unwrap()
}

fn first_failure(report: &FileReport) -> &Stage {
    report.stages.iter().find(|stage| !stage.passed).expect("something differs")
}

fn pattern(stage: &Stage) -> Option<Pattern> {
    match &stage.outcome {
        Outcome::Values(values) => values.pattern,
        _ => None,
    }
}

#[test]
fn an_unchanged_copy_is_equal_and_stages_stand_in_the_order_of_the_algorithm() {
    let directory = tempfile::tempdir().unwrap();
    let copy = edited(directory.path(), "act-order-k64", |_, _| {});
    let report = compared("act-order-k64", &copy, 0.0);
    assert!(report.passed(), "{}", report.to_text());
    let place = |name: &str| report.stages.iter().position(|stage| stage.name == name).unwrap();
    let order =
        ["input.weight", "stats.hessian", "trace.perm", "trace.hinv_chol", "trace.q_matrix", "trace.mask"];
    assert!(order.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{}", report.to_text());
    assert!(place("trace.mask") < place("output.weight: zeros"));
    assert!(report.not_compared.is_empty());
}

#[test]
fn a_familiar_mistake_is_recognised_at_its_stage() {
    let directory = tempfile::tempdir().unwrap();
    let found = |name: &str, edit: &dyn Fn(&mut [u8])| {
        let port = edited(directory.path(), "basic", |tensor, bytes| {
            if tensor == name {
                edit(bytes);
            }
        });
        let report = compared("basic", &port, 1e-9);
        let stage = first_failure(&report);
        assert_eq!(stage.name, name);
        pattern(stage)
    };
    assert_eq!(found("stats.dxxt", &|bytes| each_f64(bytes, |_, x| -x)), Some(Pattern::Negated));
    let doubled = found("stats.hessian", &|bytes| each_f64(bytes, |_, x| 2.0 * x));
    assert!(
        matches!(doubled, Some(Pattern::Scaled { factor }) if abs_diff_eq!(factor, 2.0, epsilon = 1e-12)),
        "{doubled:?}"
    );
    let one_row = |bytes: &mut [u8]| each_f64(bytes, |i, x| if i / 64 == 3 { -x } else { x });
    assert_eq!(found("trace.q_matrix", &one_row), Some(Pattern::PartlyNegated));
    let transpose = |bytes: &mut [u8]| {
        let original = bytes.to_vec();
        for (i, j) in (0..64 * 64).map(|at| (at / 64, at % 64)) {
            let (to, from) = (8 * (64 * i + j), 8 * (64 * j + i));
            bytes[to..to + 8].copy_from_slice(&original[from..from + 8]);
        }
    };
    assert_eq!(found("trace.hinv_chol", &transpose), Some(Pattern::Transposed));
    // One wrong value has no form, only a place.
    let one_value = |bytes: &mut [u8]| each_f64(bytes, |i, x| if i == 64 * 5 + 7 { x + 1.0 } else { x });
    assert_eq!(found("stats.hessian", &one_value), None);
}

#[test]
fn a_flipped_mask_bit_is_told_apart_from_values_and_weighed() {
    let directory = tempfile::tempdir().unwrap();
    // In `basic` position and column are the same.
    let port = edited(directory.path(), "basic", |tensor, bytes| {
        if tensor == "trace.mask" {
            bytes[64 * 4 + 40] ^= 1;
        }
        if tensor == "output.weight" {
            each_f64(bytes, |i, w| {
                if i != 64 * 4 + 40 {
                    w
                } else if w == 0.0 {
                    0.125
                } else {
                    0.0
                }
            });
        }
    });
    let report = compared("basic", &port, 1e-9);
    let failed: Vec<&Stage> = report.stages.iter().filter(|stage| !stage.passed).collect();
    let names: Vec<&str> = failed.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["trace.mask", "output.weight: zeros"]);
    // The margin from its definition: the distance to the largest pruned score of the block.
    let golden = TensorFile::open(&fixture("vectors/v1/duogpt/basic/tensors.safetensors")).unwrap();
    let (score, mask) = (golden.matrix::<f64>("trace.score").unwrap(), golden.flags("trace.mask").unwrap());
    let block = |at: &(usize, usize)| (32..64).contains(&at.1);
    let pruned = score.indexed_iter().filter(|(at, _)| block(at) && mask[*at]).map(|(_, s)| *s);
    let cut = pruned.fold(f64::NEG_INFINITY, f64::max);
    let largest = score.iter().fold(0.0f64, |m, s| m.max(s.abs()));
    let margin = (score[(4, 40)] - cut).abs() / largest;
    for stage in failed {
        let Outcome::Decisions(decisions) = &stage.outcome else { panic!("{stage:?}") };
        assert_eq!((decisions.differing, decisions.of), (1, 32 * 64));
        let flip = decisions.flips[0];
        assert_eq!((flip.place.row, flip.place.column, flip.margin), (4, 40, Some(margin)));
    }
    // What was a closer call than the tolerance passes.
    assert!(compared("basic", &port, 1.01 * margin).passed());
}

#[test]
fn shapes_names_and_types_that_differ_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]| {
        let path = directory.path().join(name);
        let headers = tensors.iter().map(|(name, dtype, shape, _)| (*name, *dtype, *shape));
        let writer = TensorWriter::create(&path, headers, &HashMap::new()).unwrap();
        tensors.iter().for_each(|(name, _, _, bytes)| writer.write(name, bytes).unwrap());
        TensorFile::open(&path).unwrap()
    };
    let f64s = |values: &[f64]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let f32s = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let a = write(
        "a.safetensors",
        &[
            ("shape", Dtype::F64, &[2, 3], f64s(&[0.0; 6])),
            ("only.a", Dtype::F64, &[1], f64s(&[0.0])),
            ("third", Dtype::F64, &[1], f64s(&[1.0 / 3.0])),
            ("empty", Dtype::F64, &[0, 4], Vec::new()),
            ("scalar", Dtype::F64, &[], f64s(&[2.0])),
        ],
    );
    let b = write(
        "b.safetensors",
        &[
            ("shape", Dtype::F64, &[3, 2], f64s(&[0.0; 6])),
            ("third", Dtype::F32, &[1], f32s(&[1.0 / 3.0])),
            ("empty", Dtype::F64, &[0, 4], Vec::new()),
            ("scalar", Dtype::F64, &[], f64s(&[2.0])),
        ],
    );
    let report = compare_files(&a, &b, 1e-7).unwrap();
    let stage = |name: &str| report.stages.iter().find(|stage| stage.name == name).unwrap();
    assert!(!stage("shape").passed && stage("shape").summary().contains("[3, 2], expected [2, 3]"));
    assert!(stage("shape").explanation()[0].contains("transpose"));
    assert!(stage("empty").passed && stage("empty").summary() == "empty" && stage("scalar").passed);
    assert!(report.not_compared[0].contains("only.a"));
    // 1/3 in f32 is the nearest f32: no step away.
    let reversed = compare_files(&b, &a, 1e-7).unwrap();
    for stage in [stage("third"), reversed.stages.iter().find(|stage| stage.name == "third").unwrap()] {
        let Outcome::Values(values) = &stage.outcome else { panic!() };
        assert!(values.passed() && values.error > 0.0);
        assert_eq!((values.ulps.precision, &values.ulps.counts[..]), (FloatType::F32, &[1][..]));
    }

    let stranger = write("c.safetensors", &[("other", Dtype::F64, &[1], f64s(&[0.0]))]);
    let refused = compare_files(&a, &stranger, 0.0).unwrap_err().to_string();
    assert!(refused.contains("c.safetensors") && refused.contains("a.safetensors"), "{refused}");
}

#[test]
fn nan_infinities_and_zeros_are_handled() {
    let inf = f64::INFINITY;
    let check = |found: Array2<f64>, expected: Array2<f64>, budget| {
        compare(found.view(), expected.view(), FloatType::F64, budget, Processing::Rows)
    };
    let nan = check(array![[1.0, f64::NAN, 3.0]], array![[1.0, 2.0, 4.0]], 10.0);
    assert!(!nan.passed() && nan.error.is_nan() && nan.over_budget == 1);
    assert_eq!((nan.smallest_passing_budget(), nan.not_finite.found, nan.ulps.incomparable), (None, 1, 1));
    assert_eq!(nan.worst.unwrap().column, 1);
    let both = check(array![[f64::NAN]], array![[f64::NAN]], 1.0);
    assert!(!both.passed());
    // An infinity in the same place agrees, and does not hide the rest.
    let same = check(array![[inf, 2.0]], array![[inf, 1.0]], 0.5);
    assert_eq!((same.error, same.over_budget, same.relative_l2), (1.0, 1, 1.0));
    assert!(check(array![[-inf]], array![[-inf]], 0.0).passed());
    assert!(!check(array![[inf]], array![[-inf]], 1e300).passed());
    // Nor does it let the rest have a form.
    let two = check(array![[inf, -inf, 1.0]], array![[inf, -inf, -1.0]], 0.5);
    assert_eq!(
        (two.over_budget, two.not_finite, two.pattern),
        (1, NotFinite { expected: 2, found: 2 }, None)
    );
    // All zero: absolute. Nothing: equal.
    let zero = check(array![[0.0, -0.0, 1e-3]], array![[0.0, 0.0, 0.0]], 1e-2);
    assert!(zero.passed() && zero.error == 1e-3 && zero.worst_relative.is_none());
    assert!(check(Array2::zeros((0, 3)), Array2::zeros((0, 3)), 0.0).passed());
}

#[test]
fn error_measures_are_their_definitions() {
    let expected = array![[1.0, -2.0], [4.0, 0.0]];
    let found = array![[1.5, -2.0], [3.0, 0.5]];
    let natural = [0, 1];
    let outcome = compare(found.view(), expected.view(), FloatType::F64, 0.2, Processing::Columns(&natural));
    assert_eq!(outcome.error, 0.25); // |3 - 4| / 4
    assert_eq!((outcome.smallest_passing_budget(), outcome.budget_used()), (Some(0.25), 125.0));
    let first = outcome.first.unwrap();
    assert_eq!((outcome.over_budget, first.row, first.column), (1, 1, 0));
    let relative = outcome.worst_relative.unwrap();
    assert_eq!((relative.row, relative.column, relative.relative()), (0, 0, 0.5));
    assert_abs_diff_eq!(outcome.relative_l2, (1.5f64 / 21.0).sqrt(), epsilon = 1e-15);
    // A smaller budget: the first in processing order is another one than in reading order.
    let reversed = [1, 0];
    let outcome = compare(found.view(), expected.view(), FloatType::F64, 0.1, Processing::Columns(&reversed));
    let first = outcome.first.unwrap();
    assert_eq!((outcome.over_budget, first.row, first.column), (3, 1, 1));
}

#[test]
fn the_first_of_equal_relative_errors_is_named_and_none_where_all_is_equal() {
    let check = |found: Array2<f64>, expected: Array2<f64>| {
        compare(found.view(), expected.view(), FloatType::F64, 0.0, Processing::Rows)
    };
    let tied = check(array![[3.0, 6.0]], array![[2.0, 4.0]]).worst_relative.unwrap();
    assert_eq!((tied.row, tied.column), (0, 0));
    let equal = check(array![[2.0, 4.0]], array![[2.0, 4.0]]);
    assert_eq!((equal.first, equal.worst, equal.worst_relative), (None, None, None));
    assert_eq!(equal.pattern, None);
}

#[test]
fn a_form_is_told_within_the_budget_whatever_the_scale() {
    let form = |found: Array2<f64>, expected: Array2<f64>, budget| {
        compare(found.view(), expected.view(), FloatType::F64, budget, Processing::Rows).pattern
    };
    // 1e-9 of the largest is 4e-3.
    assert_eq!(form(array![[-4e6 + 1e-3, 3e6]], array![[4e6, -3e6]], 1e-9), Some(Pattern::Negated));
    let (found, expected) = (array![[4e6 + 1e-3, -1e6, 2e6]], array![[4e6, 1e6, 2e6]]);
    assert_eq!(form(found, expected, 1e-9), Some(Pattern::PartlyNegated));
    // 6 for 4 is at the budget, not over it.
    assert_eq!(form(array![[6.0, -2.0]], array![[4.0, 2.0]], 0.5), Some(Pattern::PartlyNegated));
}

#[test]
fn a_cell_of_the_heat_map_holds_its_largest_error() {
    let expected = Array2::from_elem((64, 96), 1.0);
    let mut found = expected.clone();
    // Cells of 2 x 3 elements.
    (found[(10, 50)], found[(11, 49)], found[(63, 95)]) = (3.0, 2.0, 1.5);
    (found[(0, 0)], found[(1, 2)]) = (f64::NAN, 6.0);
    let heat = compare(found.view(), expected.view(), FloatType::F64, 0.0, Processing::Rows).heat;
    assert_eq!(heat.shape, (32, 32));
    let mut cells = heat.cells;
    assert!(cells[0].is_nan());
    assert_eq!((cells[5 * 32 + 16], cells[31 * 32 + 31]), (2.0, 0.5));
    (cells[0], cells[5 * 32 + 16], cells[31 * 32 + 31]) = (0.0, 0.0, 0.0);
    assert_eq!(cells, vec![0.0; 32 * 32]);
}

#[test]
fn the_widest_margin_decides_and_an_unknown_one_allows_nothing() {
    let decided = |margins: &[Option<f64>]| {
        let found = Array2::from_elem((1, margins.len()), true);
        let order: Vec<usize> = (0..margins.len()).collect();
        let margin = |_, position: usize| margins[position];
        compare_decisions(found.view(), found.mapv(|x| !x).view(), &order, Some(0.25), margin)
    };
    let widest = |margins: &[Option<f64>]| (decided(margins).widest_margin, decided(margins).passed());
    assert_eq!(widest(&[Some(0.1), Some(0.3), Some(0.2)]), (Some(0.3), false));
    assert_eq!(widest(&[Some(0.1), Some(0.25), Some(0.2)]), (Some(0.25), true));
    assert_eq!(widest(&[Some(0.1), None]), (None, false));
    assert_eq!(widest(&[None, Some(0.1)]), (None, false));
    let nan = decided(&[Some(0.1), Some(f64::NAN), Some(0.2)]);
    assert!(nan.widest_margin.unwrap().is_nan() && !nan.passed());
    let many = decided(&vec![Some(0.1); Decisions::LISTED + 1]);
    assert_eq!((many.differing, many.flips.len()), (Decisions::LISTED + 1, Decisions::LISTED));
}

#[test]
fn a_weight_is_compared_by_columns_and_its_zeros_are_decisions() {
    let directory = tempfile::tempdir().unwrap();
    let file = |file: &str, name: &str, values: &Array2<f64>| {
        let path = directory.path().join(file);
        let header = [(name, Dtype::F64, values.shape())];
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        TensorWriter::create(&path, header, &HashMap::new()).unwrap().write(name, &bytes).unwrap();
        TensorFile::open(&path).unwrap()
    };
    let stages = |name: &str, found: Array2<f64>, expected: Array2<f64>| -> Vec<Stage> {
        let (expected, found) = (file("expected", name, &expected), file("found", name, &found));
        compare_files(&expected, &found, 1e-9).unwrap().stages
    };
    let names = |stages: &[Stage]| stages.iter().map(|stage| stage.name.clone()).collect::<Vec<_>>();

    for (name, first) in [("q_proj.weight", (1, 0)), ("trace.score", (1, 0)), ("stats.hessian", (0, 1))] {
        let stages = stages(name, array![[1.0, 2.5], [3.5, 4.0]], array![[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(names(&stages), [name]);
        assert_eq!(stages[0].place().map(|place| (place.row, place.column)), Some(first), "{name}");
    }
    assert_eq!(names(&stages("stats.dxxt", array![[1.0, 2.0]], array![[0.0, 2.0]])), ["stats.dxxt"]);

    let weight = array![[1.0, 0.0, 2.0]];
    let flipped = stages("q_proj.weight", array![[1.0, 3.0, 2.0]], weight.clone());
    assert_eq!(names(&flipped), ["q_proj.weight: zeros", "q_proj.weight: values"]);
    let place = flipped[0].place().unwrap();
    assert_eq!((place.column, place.expected, place.found), (1, 1.0, 0.0)); // a zero was expected, none found
    assert!(!flipped[0].passed && flipped[1].passed && flipped[1].note.is_some());
    let same = stages("q_proj.weight", weight.clone(), weight);
    assert!(same[0].passed && same[1].passed && same[1].note.is_none());
}

#[test]
fn the_text_says_where_and_how_far() {
    let expected = array![[1.0, 2.0, 0.5], [4.0, 5.0, 6.0]];
    let mut found = expected.clone();
    found[(0, 1)] = 3.0;
    let stage = |found: &Array2<f64>| {
        Stage::values("x", compare(found.view(), expected.view(), FloatType::F64, 0.1, Processing::Rows))
    };
    assert!(stage(&found).summary().starts_with("error"));
    let text = stage(&found).explanation().join("\n");
    assert!(text.contains("(in processing order) at row 0, column 1: 3e0 for 2e0"), "{text}");
    assert!(text.ends_with("(float64): 0 (5 times), 2^51 (1 times)"), "{text}");
    found[(0, 2)] = f64::NAN;
    let text = stage(&found).explanation().join("\n");
    assert!(text.contains("0 (4 times), 2^51 (1 times), NaN (1 times)"), "{text}");

    assert!(Stage::shapes("x", vec![2, 3], vec![4, 3]).explanation().is_empty());
    let labels = [0, 1, 2, 3, 10, 11].map(UlpHistogram::label);
    assert_eq!(labels, ["0", "1", "2-3", "4-7", "512-1023", "2^10"]);
}

#[test]
fn ulp_distances_are_right_across_zero_and_in_every_type() {
    let tiny = f64::from_bits(1);
    assert_eq!(ulps(FloatType::F64, tiny, -tiny), Some(2));
    assert_eq!(ulps(FloatType::F64, 0.0, -0.0), Some(0));
    assert_eq!(ulps(FloatType::F64, 1.0, 1.0 + f64::EPSILON), Some(1));
    assert_eq!(ulps(FloatType::F32, 1.0, 1.0 + f64::EPSILON), Some(0));
    assert_eq!(ulps(FloatType::Bf16, 1.0, 1.0078125), Some(1));
    assert_eq!(ulps(FloatType::F16, -1.0, 1.0), Some(2 * 0x3c00));
    assert_eq!(ulps(FloatType::F64, f64::NAN, 1.0), None);
    // The line has no gap at the top: the largest number is next to infinity.
    assert_eq!(ulps(FloatType::F32, f64::from(f32::MAX), f64::INFINITY), Some(1));
}

proptest! {
    #[test]
    fn an_ulp_distance_counts_the_steps_to_the_neighbours(x: f32, steps in 0u32..200) {
        prop_assume!(x.is_finite());
        let mut y = x;
        for _ in 0..steps {
            y = y.next_up();
        }
        prop_assume!(y.is_finite());
        // next_up passes through -0 and +0 as one number.
        prop_assert_eq!(ulps(FloatType::F32, x.into(), y.into()), Some(steps.into()));
    }
}

#[test]
fn the_command_line_finds_a_planted_sign_error_and_writes_json_and_one_page() {
    let directory = tempfile::tempdir().unwrap();
    let golden = fixture("vectors/v1/duogpt/basic/tensors.safetensors");
    let port = edited(directory.path(), "basic", |tensor, bytes| {
        if tensor == "stats.dxxt" {
            each_f64(bytes, |_, x| -x);
        }
        if tensor == "trace.mask" {
            bytes[3] ^= 1;
        }
    });
    let page = directory.path().join("report.html");
    let (golden, port) = (golden.to_str().unwrap(), port.to_str().unwrap());
    let outcome = duogpt(&["compare-tensors", golden, port, "--html", page.to_str().unwrap()]);
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(outcome.status.code(), Some(1), "{text}");
    assert!(
        text.contains("FAIL  stats.dxxt") && text.contains("every value has the opposite sign"),
        "{text}"
    );
    assert!(
        text.contains("first beyond the budget") && text.contains("passes with a tolerance of"),
        "{text}"
    );

    let html = std::fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("<svg") && html.contains("opposite sign") && html.contains("how clear each flipped")
    );
    for outside in ["src=", "href=", "url(", "@import"] {
        assert!(!html.contains(outside), "the page must need nothing besides itself: {outside}");
    }

    let outcome = duogpt(&["compare-tensors", golden, port, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let stages = json["files"][0]["stages"].as_array().unwrap();
    let stage = stages.iter().find(|stage| stage["name"] == "stats.dxxt").unwrap();
    assert_eq!(stage["outcome"]["pattern"]["form"], "negated");
    assert_eq!(json["files"][0]["sha256"].as_str().unwrap().len(), 64);
    assert!(json["command"].as_str().unwrap().contains("compare-tensors"));
    assert!(json["environment"]["blas"].is_string());

    assert_eq!(duogpt(&["compare-tensors", golden, golden]).status.code(), Some(0));
    let missing = duogpt(&["compare-tensors", golden, "no-such-file.safetensors"]);
    let error = String::from_utf8(missing.stderr).unwrap();
    assert!(missing.status.code() == Some(2) && error.contains("no-such-file.safetensors"), "{error}");
    let wrong = duogpt(&["compare-tensors", golden, golden, "--tolerance", "-1"]);
    assert_eq!(wrong.status.code(), Some(2));
}
