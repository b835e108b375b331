//! Rounding in any order stays within the bound of each element, and a fault does not.

mod common;
#[path = "../examples/rounding_bound.rs"]
#[expect(dead_code, reason = "its main")]
mod rounding_bound;

use common::fixture;
use duogpt::backend::Cpu;
use duogpt::tensors::FloatType;
use duogpt::verify::kind::Kind;
use duogpt::verify::report::Stage;
use duogpt::verify::vectors::bounds::{allowed, bound};
use duogpt::verify::vectors::case::CaseSettings;
use duogpt::verify::vectors::make::NewCase;
use duogpt::verify::vectors::tensor::Contents;
use duogpt::verify::vectors::{Case, CaseTensor, CaseTensors, Followed, case_folders, compute, judge};
use ndarray::{Array2, ArrayView2, Axis};
use proptest::prelude::*;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn case(name: &str) -> Case {
    Case::load(&fixture("vectors/v1").join(name)).unwrap()
}

fn all_cases() -> impl Iterator<Item = Case> {
    let (cases, _) = case_folders(&fixture("vectors/v1")).unwrap();
    cases.into_iter().map(|folder| Case::load(&folder).unwrap())
}

/// A case with sums over 1024 tokens.
fn long_case() -> Case {
    let new = NewCase {
        id: "long".into(),
        algorithm: Kind::DuoGpt,
        seed: 3,
        n: 4,
        k: 24,
        sequences: 4,
        tokens: 256,
        settings: CaseSettings::default().completed(Kind::DuoGpt).unwrap(),
        singular: false,
        command: String::new(),
    };
    new.make().unwrap()
}

/// A matrix product as a kernel computes it: inputs rounded to a type, products and sums in an accumulator of another, in
/// a random order over a random number of partial sums.
struct Kernel {
    inputs: FloatType,
    accumulator: FloatType,
    random: ChaCha8Rng,
}

impl Kernel {
    fn new(inputs: FloatType, accumulator: FloatType, seed: u64) -> Self {
        Kernel { inputs, accumulator, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    fn rounded(&self, a: &Array2<f64>) -> Array2<f64> {
        a.mapv(|x| self.inputs.round(x))
    }

    /// a^T b of rounded matrices (terms x rows, terms x columns), in the accumulator.
    fn sums(&mut self, a: ArrayView2<f64>, b: ArrayView2<f64>) -> Array2<f64> {
        let mut order: Vec<usize> = (0..a.nrows()).collect();
        order.shuffle(&mut self.random);
        let parts = self.random.random_range(1..=8);
        let accumulator = self.accumulator;
        Array2::from_shape_fn((a.ncols(), b.ncols()), |(row, column)| {
            let mut partial = vec![0.0; parts];
            for (at, &term) in order.iter().enumerate() {
                let product = accumulator.round(a[(term, row)] * b[(term, column)]);
                let sum = &mut partial[at % parts];
                *sum = accumulator.round(*sum + product);
            }
            partial.into_iter().fold(0.0, |sum, part| accumulator.round(sum + part))
        })
    }

    /// The statistics of a case with a residual, and the products behind its factor, fed with the recorded tensors.
    fn run(&mut self, case: &Case) -> CaseTensors {
        let (inputs, accumulator) = (self.inputs, self.accumulator);
        let mut shown = CaseTensors::new();
        let mut put = |name: &str, values: Array2<f64>| {
            let contents = Contents::Reals(inputs);
            let values = values.mapv(|x| inputs.round(x));
            shown.insert(name.into(), CaseTensor { values, contents, ..case.tensors[name].clone() });
        };
        let recorded = |name: &str| case.tensors[name].values.mapv(|x| inputs.round(x));
        let (dense, sparse) = (recorded("input.dense_activations"), recorded("input.sparse_activations"));
        let dx = self.rounded(&(dense - &sparse));
        let sequences = case.tensors["input.calls"].values.column(0).sum();
        let scale = f64::from(case.document.settings.hessian_factor.unwrap()) / sequences;
        let mean = |sums: Array2<f64>| sums.mapv(|sum| accumulator.round(sum * accumulator.round(scale)));
        put("stats.hessian", mean(self.sums(sparse.view(), sparse.view())));
        put("stats.dxxt", mean(self.sums(dx.view(), sparse.view())));

        let k = case.document.shape.k;
        let order: Vec<usize> = match case.tensors.get("trace.perm") {
            Some(order) => order.values.iter().map(|&column| column as usize).collect(),
            None => (0..k).collect(),
        };
        let dxxt = recorded("stats.dxxt").select(Axis(0), &order).select(Axis(1), &order);
        let lt = recorded("trace.hinv_chol");
        let mut q = self.sums(dxxt.t(), lt.t());
        q.mapv_inplace(|x| inputs.round(x));
        let mut u = q.clone();
        u.indexed_iter_mut().filter(|((p, j), _)| j <= p).for_each(|(_, u)| *u = 0.0);
        let alpha = inputs.round(case.document.settings.alpha.unwrap());
        let d = self.sums(u.t(), lt.view());
        put("trace.p_matrix", d.mapv(|d| accumulator.round(alpha * d)));
        let squares = u.mapv(|u| accumulator.round(u * u));
        let ones = Array2::ones((k, 1));
        if case.document.algorithm != Kind::DuoGpt {
            return shown;
        }
        put("trace.coef_b", self.sums(squares.t(), ones.view()).reversed_axes());
        let c = q.diag().to_owned() / lt.diag();
        put("trace.coef_2c", (c * 2.0).insert_axis(Axis(0)));
        put("trace.q_matrix", q);

        // The score with every operation rounded, on weights that give the recorded scores.
        let round = |x: f64| inputs.round(x);
        let row = |name: &str| case.tensors[name].values.row(0).to_owned();
        let (a, b, c2) = (row("trace.coef_a"), row("trace.coef_b"), row("trace.coef_2c"));
        let exact_lt = &case.tensors["trace.hinv_chol"].values;
        let alpha_exact = case.document.settings.alpha.unwrap();
        let scores = Array2::from_shape_fn(case.tensors["trace.score"].values.dim(), |(row, p)| {
            let exact = exact_lt[(p, p)].powi(-2) + alpha_exact * (a[p] - b[p] + c2[p]);
            let weight = round((case.tensors["trace.score"].values[(row, p)] / exact).max(0.0).sqrt());
            let l = round(lt[(p, p)]);
            let first = round(1.0 / round(l * l));
            let correction = round(alpha * round(round(round(a[p]) - round(b[p])) + round(c2[p])));
            round(round(weight * weight) * round(first + correction))
        });
        put("trace.score", scores);
        shown
    }
}

fn stages(case: &Case, shown: &CaseTensors) -> Vec<Stage> {
    judge(case, shown, None).stages
}

fn failed(stages: &[Stage]) -> Vec<&str> {
    stages.iter().filter(|stage| !stage.passed).map(|stage| stage.name.as_str()).collect()
}

const LOW: [FloatType; 3] = [FloatType::F32, FloatType::Bf16, FloatType::F16];

const WITH_RESIDUAL: [&str; 6] = [
    "duogpt/basic",
    "duogpt/act-order-k64",
    "duogpt/bf16-inputs",
    "duogpt/drifted-stream",
    "gptaq/drift-alpha-one",
    "gptaq/sym3-act-order-dead",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn inputs_in_any_type_summed_in_f32_in_any_order_pass(seed: u64, which in 0..WITH_RESIDUAL.len()) {
        let case = case(WITH_RESIDUAL[which]);
        for precision in LOW {
            let shown = Kernel::new(precision, FloatType::F32, seed).run(&case);
            let stages = stages(&case, &shown);
            prop_assert!(stages.len() == shown.len() && failed(&stages).is_empty(), "{precision:?} {stages:#?}");
        }
    }

    #[test]
    fn a_fault_of_twice_the_bound_fails_where_it_is(seed: u64, times in 2.0f64..10.0) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let case = case(WITH_RESIDUAL[random.random_range(0..WITH_RESIDUAL.len())]);
        for precision in LOW {
            let right = Kernel::new(precision, FloatType::F32, seed).run(&case);
            for name in right.keys() {
                let allowed = allowed(&case, name, &case.tensors[name], precision).unwrap();
                let (rows, columns) = allowed.dim();
                let at = (random.random_range(0..rows), random.random_range(0..columns));
                // Where rounding alone explains less than the tolerance of the case, that is what counts.
                let row = case.tensors[name].values.row(at.0);
                let largest = row.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
                if allowed[at] < 1e-8 * largest || largest == 0.0 {
                    continue;
                }
                let mut wrong = right.clone();
                let moved = case.tensors[name].values[at] + times * allowed[at];
                wrong.get_mut(name).unwrap().values[at] = precision.round(moved);
                let stages = stages(&case, &wrong);
                let failed: Vec<&Stage> = stages.iter().filter(|stage| !stage.passed).collect();
                prop_assert!(failed.len() == 1 && failed[0].name.ends_with(name), "{name} {precision:?}");
                let place = failed[0].place().unwrap();
                prop_assert_eq!((place.row, place.column), at);
            }
        }
    }
}

#[test]
fn a_dropped_token_or_sequence_fails() {
    for name in WITH_RESIDUAL {
        let case = case(name);
        let rows = case.tensors["input.calls"].values.row(0).product() as usize;
        // A token is less than what bf16 rounds away of a sum over hundreds; a sequence is more.
        for (precision, dropped) in [(FloatType::F32, 1), (FloatType::Bf16, rows), (FloatType::F16, rows)] {
            let mut without = case.clone();
            for input in ["input.dense_activations", "input.sparse_activations"] {
                let values = &mut without.tensors.get_mut(input).unwrap().values;
                values.slice_mut(ndarray::s![..dropped, ..]).fill(0.0);
            }
            let shown = Kernel::new(precision, FloatType::F32, 1).run(&without);
            let stages = stages(&case, &shown);
            assert!(failed(&stages).contains(&"statistics: stats.hessian"), "{name} {precision:?}");
        }
    }
}

#[test]
fn sums_of_a_thousand_terms_held_in_half_precision_fail() {
    let case = long_case();
    for precision in [FloatType::Bf16, FloatType::F16] {
        let right = Kernel::new(precision, FloatType::F32, 5).run(&case);
        assert!(failed(&stages(&case, &right)).is_empty(), "{precision:?}");
        // Of dX X^T the rounded inputs alone explain as much: where X^ is near X~, their difference has few digits left.
        let wrong = Kernel::new(precision, precision, 5).run(&case);
        let failed = stages(&case, &wrong).into_iter().filter(|stage| !stage.passed);
        let failed: Vec<String> = failed.map(|stage| format!("{} {}", stage.name, stage.summary())).collect();
        assert!(
            failed.iter().any(|name| name.starts_with("statistics: stats.hessian")),
            "{precision:?} {failed:?}"
        );
    }
    // Inputs in bf16 are no f32 arithmetic.
    let mut claimed = Kernel::new(FloatType::Bf16, FloatType::F32, 5).run(&case);
    claimed.values_mut().for_each(|tensor| tensor.contents = Contents::Reals(FloatType::F32));
    assert!(failed(&stages(&case, &claimed)).contains(&"statistics: stats.hessian"));
}

/// The statistics of the reference in f32, end to end; and bnd is never below the value that it bounds.
#[test]
fn the_reference_in_f32_is_within_the_bound_of_every_statistic() {
    let mut bounded = 0;
    for case in all_cases() {
        for (name, expected) in &case.tensors {
            if let Some(bound) = bound(&case, name, expected, 0.0) {
                bounded += 1;
                let holds =
                    bound.sums.iter().zip(&expected.values).all(|(sum, x)| *sum >= x.abs() * (1.0 - 1e-9));
                assert!(holds && bound.sums.iter().all(|sum| sum.is_finite()), "{}: {name}", case.name());
            }
        }
        let mut shown = compute::<f32, _>(&case, &Cpu, &Followed::default()).unwrap().tensors;
        shown.retain(|name, _| {
            name.starts_with("stats.")
                || ["trace.metric", "trace.threshold", "trace.damping"].contains(&&**name)
        });
        let stages = stages(&case, &shown);
        assert!(failed(&stages).is_empty(), "{}: {:?}", case.name(), failed(&stages));
    }
    assert!(bounded > 300, "{bounded}");
}

/// c u of a result of r roundings and t terms, by hand.
#[test]
fn c_counts_the_roundings() {
    let case = case("duogpt/basic");
    let tokens: f64 = case.tensors["input.calls"].values.rows().into_iter().map(|call| call.product()).sum();
    let sequences = case.tensors["input.calls"].values.column(0).sum();
    let bound = bound(&case, "stats.hessian", &case.tensors["stats.hessian"], 0.0).unwrap();
    assert_eq!((bound.roundings, bound.terms), (3.0, tokens + 5.0 + 2.0 * (sequences - 1.0)));
    for (precision, c) in [
        (FloatType::F32, 3.0 + bound.terms),
        (FloatType::Bf16, 3.0 + bound.terms / 2f64.powi(16)),
        (FloatType::F16, 3.0 + bound.terms / 2f64.powi(13)),
    ] {
        let u = precision.unit_roundoff();
        // To first order; the second is smaller by c u.
        approx::assert_relative_eq!(bound.relative(precision), c * u, max_relative = c * u);
    }
}

/// The counts of docs/bounds.md: M for the mean of the sums over tokens, k columns. No other tensor has a bound.
#[test]
fn every_tensor_has_the_roundings_that_the_book_counts() {
    for (name, others) in [
        ("duogpt/basic", vec![]),
        ("gptaq/shared-h-second-member", vec![]),
        ("wanda/per-row-50", vec![("trace.metric", 5.0, [1.0, 0.0, 0.0]), ("output.weight", 1.0, [0.0; 3])]),
        ("magnitude/per-layer-50", vec![("trace.metric", 1.0, [0.0; 3]), ("output.weight", 1.0, [0.0; 3])]),
    ] {
        let case = case(name);
        let k = case.document.shape.k as f64;
        let m = case.tensors.get("input.calls").map_or(0.0, |calls| {
            let tokens: f64 = calls.values.rows().into_iter().map(|call| call.product()).sum();
            tokens + 5.0 + 2.0 * (calls.values.column(0).sum() - 1.0)
        });
        let linears = 1.0 + case.document.settings.group_member.unwrap_or(0) as f64;
        // r, and t as multiples of M, k and 1.
        let mut counted = vec![
            ("stats.hessian", 3.0, [1.0, 0.0, 0.0]),
            ("stats.scaler_row", 3.0, [1.0, 0.0, 0.0]),
            ("stats.dxxt", 4.0, [1.0, 0.0, 0.0]),
            ("stats.dxdxt", 5.0, [1.0, 0.0, 0.0]),
            ("trace.coef_a", 5.0, [1.0, 0.0, 0.0]),
            ("trace.damping", 3.0 + 2.0 * linears, [1.0, linears, 3.0 * linears]),
            ("trace.q_matrix", 3.0, [0.0, 1.0, 0.0]),
            ("trace.p_matrix", 6.0, [0.0, 2.0, 1.0]),
            ("trace.coef_b", 7.0, [0.0, 3.0, 0.0]),
            ("trace.coef_2c", 6.0, [0.0, 1.0, 1.0]),
            ("trace.score", 11.0, [0.0; 3]),
            ("trace.threshold", 1.0, [0.0; 3]),
        ];
        counted.extend(others);
        for tensor in case.document.stages.iter().flat_map(|stage| &stage.tensors) {
            let found = bound(&case, tensor, &case.tensors[tensor], 0.0).map(|b| (b.roundings, b.terms));
            let expected = counted.iter().find(|(name, ..)| name == tensor);
            let expected = expected.map(|&(_, r, [of_m, of_k, ones])| (r, of_m * m + of_k * k + ones));
            assert_eq!(found, expected, "{name}: {tensor}");
        }
    }
}

/// The table in docs/bounds.md is what its command prints.
#[test]
fn the_book_shows_what_its_example_prints() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bounds.md")).unwrap();
    let table = rounding_bound::table().unwrap();
    assert!(page.contains(&table), "docs/bounds.md lacks\n{table}");
    assert_eq!(table.matches('!').count(), 4, "sums in bf16 and f16, in two orders: {table}");
}
