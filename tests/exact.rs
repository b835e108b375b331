//! The exact yardsticks: Eq. 3, Theorem 1, Eq. 6, and the best weights for a mask.
//!
//! # Tolerances
//! Problems are made from a seed, a shape and a condition number, so that the condition of H is known. With u = 2^-53,
//! m tokens and k columns, what comes behind H^-1 is allowed (m + 3 k) u cond(H) of the sum of the absolute terms: the
//! sums of m products that make H, three passes of k over its factor, and the amplification of both by the inverse. What only
//! rearranges the same numbers is allowed the rounding of its sums.

use approx::{abs_diff_eq, assert_abs_diff_eq};
use duogpt::linalg::{gram, matmul};
use duogpt::reference::activation::prune_activations;
use duogpt::reference::baseline::gptaq::{GridConfig, Symmetry, gptaq};
use duogpt::reference::baseline::{magnitude::magnitude, sparsegpt::sparsegpt, wanda::wanda};
use duogpt::reference::exact::{
    ExactRow, Objective, Residual, correction_by_elimination, damped_inputs, greedy_row, optimal_weights,
    optimality_gap, residual_norms,
};
use duogpt::reference::factor::factor;
use duogpt::reference::prune::prune;
use duogpt::reference::score::Correction;
use duogpt::reference::{
    Alpha, ChannelNorms, ColumnOrder, ConfigError, FactorError, NarrowGroups, PruneConfig, PruneError,
    Sparsity, Statistics, Threshold,
};
use ndarray::{Array1, Array2, ArrayView2, Axis, array};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const U: f64 = f64::EPSILON / 2.0;

/// A small problem with a Hessian of known condition.
#[derive(Clone, Debug)]
struct Problem {
    seed: u64,
    n: usize,
    k: usize,
    m: usize,
    /// cond(X^); H has its square.
    condition: f64,
    /// ||dX|| against ||X^||.
    drift: f64,
}

fn problems() -> impl Strategy<Value = Problem> {
    (any::<u64>(), 1usize..5, 2usize..13, 0usize..20, 0.0f64..2.5, 0.0f64..1.5).prop_map(
        |(seed, n, k, more, digits, drift)| Problem {
            seed,
            n,
            k,
            m: k + more,
            condition: 10f64.powf(digits),
            drift,
        },
    )
}

struct Layer {
    weight: Array2<f64>,
    /// X~^T and X^^T, tokens x k.
    dense: Array2<f64>,
    sparse: Array2<f64>,
}

impl Problem {
    /// The bound behind H^-1, relative.
    fn behind_the_factor(&self) -> f64 {
        (self.m + 3 * self.k) as f64 * U * self.condition.powi(2)
    }

    fn layer(&self) -> Layer {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut uniform =
            |rows, columns| Array2::from_shape_simple_fn((rows, columns), || rng.random_range(-1.0..1.0));
        let (m, k) = (self.m, self.k);
        // Singular values from 1 down to 1 / condition, turned by reflections on both sides.
        let mut sparse = Array2::zeros((m, k));
        for j in 0..k {
            sparse[(j, j)] = self.condition.powf(-(j as f64) / (k - 1) as f64);
        }
        for _ in 0..3 {
            reflect(&mut sparse, &uniform(1, m).row(0).to_owned());
            sparse = sparse.reversed_axes();
            reflect(&mut sparse, &uniform(1, k).row(0).to_owned());
            sparse = sparse.reversed_axes();
        }
        let sparse = sparse.as_standard_layout().into_owned();
        let dense = &sparse + &(uniform(m, k) * (self.drift / (m as f64).sqrt()));
        Layer { weight: uniform(self.n, k), dense, sparse }
    }
}

/// A <- (I - 2 v v^T / v^T v) A.
fn reflect(a: &mut Array2<f64>, v: &Array1<f64>) {
    let projected = v.dot(a) * (2.0 / v.dot(v));
    for (mut row, &v) in a.axis_iter_mut(Axis(0)).zip(v) {
        row.scaled_add(-v, &projected);
    }
}

impl Layer {
    /// Sums over one sequence.
    fn statistics(&self) -> Statistics<f64> {
        let mut statistics = Statistics::with_residual(self.sparse.ncols());
        statistics.update(self.dense.view(), self.sparse.view());
        statistics
    }

    fn row(&self, i: usize) -> ExactRow<f64> {
        ExactRow::new(self.weight.row(i), self.dense.view(), self.sparse.view()).unwrap()
    }

    fn dx(&self) -> Array2<f64> {
        &self.dense - &self.sparse
    }

    fn dx_gram(&self) -> Array2<f64> {
        let mut dxdxt = Array2::zeros((self.sparse.ncols(), self.sparse.ncols()));
        gram(1.0, self.dx().t(), 0.0, &mut dxdxt);
        dxdxt
    }

    fn residual(&self) -> Residual<f64> {
        let norms = residual_norms(self.weight.view(), self.dx_gram().view()).unwrap();
        Residual::of(self.weight.view(), &self.statistics(), norms).unwrap()
    }

    fn inverse(&self) -> Array2<f64> {
        let l = factor(self.statistics().hessian).unwrap();
        matmul(l.view(), l.t())
    }

    /// r and X r^T of one row, and the absolute terms of L_p added up.
    fn terms(&self, i: usize, p: usize) -> (Array1<f64>, Array1<f64>, f64) {
        let w = self.weight.row(i);
        let h_inv = self.inverse().mapv(f64::abs);
        let r = self.dx().dot(&w);
        let xr = self.sparse.t().dot(&r);
        // |r| |X^T| rather than |r X^T|: r X^T may itself have cancelled.
        let size = self.sparse.t().mapv(f64::abs).dot(&r.mapv(f64::abs));
        let at_p = size.dot(&h_inv.column(p));
        let scale = (w[p].abs() + at_p).powi(2) / h_inv[(p, p)] + r.dot(&r) + size.dot(&h_inv).dot(&size);
        (r, xr, scale)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/exact.proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_two_forms_of_the_loss_are_equal(problem in problems()) {
        let layer = problem.layer();
        for (i, p) in (0..problem.n).flat_map(|i| (0..problem.k).map(move |p| (i, p))) {
            let row = layer.row(i);
            let (_, _, scale) = layer.terms(i, p);
            // Both forms use the same H^-1: two nested sums over k, one over m, some ten operations more, twice.
            let tolerance = 2.0 * (2 * problem.k + problem.m + 10) as f64 * U * scale;
            let (found, expected) = (row.loss(p), row.loss_with_completed_square(p));
            prop_assert!(abs_diff_eq!(found, expected, epsilon = tolerance), "{found} {expected} {tolerance}");
        }
    }

    #[test]
    fn the_step_meets_its_constraint_and_no_other_change_is_better(problem in problems(), seed: u64) {
        let layer = problem.layer();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (i, p) in (0..problem.n).flat_map(|i| (0..problem.k).map(move |p| (i, p))) {
            let row = layer.row(i);
            let (r, xr, scale) = layer.terms(i, p);
            let dw = row.duogpt_step(p);
            prop_assert_eq!(dw[p], -layer.weight[(i, p)]);

            let tolerance = problem.behind_the_factor() * scale;
            let loss = row.loss_of(dw.view());
            let found = row.loss(p);
            prop_assert!(abs_diff_eq!(found, loss, epsilon = tolerance), "{found} {loss} {tolerance}");

            // The gradient is zero in every column but p ...
            let hessian = layer.statistics().hessian;
            let gradient = hessian.dot(&dw) - &xr;
            let length = |v: &Array1<f64>| v.dot(v).sqrt();
            let steep = problem.behind_the_factor() * (length(&dw) + length(&r)); // ||H|| = ||X|| = 1
            for (j, g) in gradient.iter().enumerate().filter(|(j, _)| *j != p) {
                prop_assert!(g.abs() <= steep, "column {j}: {g} {steep}");
            }
            // ... and so no other change with w_p removed has less loss, whether it is near or far.
            for size in [1.0, 1e-2, 1e-4] {
                let mut other = Array1::from_shape_simple_fn(problem.k, || size * rng.random_range(-1.0..1.0));
                other[p] = 0.0;
                let slack = 2.0 * steep * other.mapv(f64::abs).sum() + 4.0 * (problem.m + problem.k) as f64 * U * scale;
                let worse = row.loss_of((&dw + &other).view());
                prop_assert!(worse >= loss - slack, "{worse} {loss} {slack}");
            }
        }
    }

    #[test]
    fn theorem_1(problem in problems()) {
        let layer = problem.layer();
        for (i, p) in (0..problem.n).flat_map(|i| (0..problem.k).map(move |p| (i, p))) {
            let row = layer.row(i);
            let (_, _, scale) = layer.terms(i, p);
            let tolerance = problem.behind_the_factor() * scale;
            let gain = row.loss_of(row.sparsegpt_step(p).view()) - row.loss_of(row.duogpt_step(p).view());
            let promised = row.theorem_1(p);
            prop_assert!(abs_diff_eq!(gain, promised, epsilon = tolerance), "{gain} {promised} {tolerance}");
            prop_assert!(promised >= -tolerance && gain >= -tolerance);
        }
    }

    #[test]
    fn without_a_residual_it_is_obc(problem in problems()) {
        let layer = problem.layer();
        let h_inv = layer.inverse();
        for i in 0..problem.n {
            let w = layer.weight.row(i);
            let mut row = ExactRow::new(w, layer.sparse.view(), layer.sparse.view()).unwrap();
            for p in 0..problem.k {
                // Every term with r is an exact zero.
                let obc = w[p] * w[p] / h_inv[(p, p)];
                let tolerance = problem.behind_the_factor() * obc;
                prop_assert!(abs_diff_eq!(row.loss(p), obc, epsilon = tolerance));
                prop_assert_eq!(row.duogpt_step(p), row.sparsegpt_step(p));
                prop_assert_eq!(row.theorem_1(p), 0.0);
            }
            row.remove(0);
            prop_assert_eq!(row.weights()[0].to_bits(), 0.0f64.to_bits());
        }
    }

    #[test]
    fn greedy_removal_is_obc_from_the_optimum_and_ends_in_the_optimum_of_its_mask(
        problem in problems(), share in 0.0f64..1.0, damping in prop_oneof![Just(0.0), 1e-3..0.2f64],
    ) {
        let layer = problem.layer();
        let count = (problem.k as f64 * share) as usize + 1;
        let statistics = layer.statistics();
        let residual = layer.residual();
        // Damping only lowers the condition of H, and ||H|| becomes at most 1.2.
        let objective = Objective::new(statistics.hessian.clone(), damping).unwrap();
        let (dense, sparse) = damped_inputs(layer.dense.view(), layer.sparse.view(), damping);
        let whole = Array2::from_elem((problem.n, problem.k), false);
        let start = objective.optimal_weights(layer.weight.view(), whole.view(), &residual).unwrap();
        let mut mask = whole;
        let mut weight = layer.weight.clone();
        let mut loss = Array1::zeros(problem.n);
        for i in 0..problem.n {
            let w = layer.weight.row(i);
            let greedy = greedy_row(w, dense.view(), sparse.view(), count).unwrap();
            let obc = greedy_row(start.row(i), sparse.view(), sparse.view(), count).unwrap();
            prop_assert_eq!(&greedy.removed, &obc.removed);
            prop_assert_eq!(greedy.removed.len(), count);
            // Removing more never costs less.
            let (_, _, scale) = layer.terms(i, 0);
            let rises = |pair: &[f64]| pair[1] >= pair[0] - problem.behind_the_factor() * scale;
            prop_assert!(greedy.loss.windows(2).all(rises));
            for &p in &greedy.removed {
                mask[(i, p)] = true;
                prop_assert_eq!(greedy.weight[p].to_bits(), 0.0f64.to_bits());
            }
            weight.row_mut(i).assign(&greedy.weight);
            loss[i] = greedy.loss[count - 1];
        }
        let best = objective.optimal_weights(layer.weight.view(), mask.view(), &residual).unwrap();
        let error = objective.error(layer.weight.view(), weight.view(), &residual).unwrap();
        for i in 0..problem.n {
            // Each of `count` eliminations may add as much as the factor itself. H^-1 is at most condition^2.
            let (r, ..) = layer.terms(i, 0);
            let w = layer.weight.row(i);
            let moved = w.dot(&w).sqrt() + r.dot(&r).sqrt() * problem.condition;
            let tolerance = (count + 1) as f64 * problem.behind_the_factor() * moved;
            for p in 0..problem.k {
                let (found, expected) = (weight[(i, p)], best[(i, p)]);
                prop_assert!(abs_diff_eq!(found, expected, epsilon = tolerance), "{found} {expected} {tolerance}");
            }
            let tolerance = tolerance * moved;
            let (loss, error) = (loss[i], error[i]);
            prop_assert!(abs_diff_eq!(loss, error, epsilon = tolerance), "{loss} {error} {tolerance}");
        }
    }

    #[test]
    fn the_closed_form_is_the_elimination_column_by_column(problem in problems()) {
        let layer = problem.layer();
        let Statistics { hessian, residual: Some(residual), .. } = layer.statistics() else { unreachable!() };
        let l = factor(hessian.clone()).unwrap();
        let closed = Correction::new(&residual, l.view());
        let explicit = correction_by_elimination(hessian, &residual).unwrap();
        // Both sides have the error. ||H^-1|| = condition^2.
        let length = |p: usize| residual.dxxt.row(p).dot(&residual.dxxt.row(p)).sqrt();
        let inverse = problem.condition.powi(2);
        let relative = 2.0 * problem.behind_the_factor();
        prop_assert_eq!(&closed.coefficients.a, &explicit.coefficients.a);
        for p in 0..problem.k {
            for j in 0..problem.k {
                let (found, expected) = (closed.d[(p, j)], explicit.d[(p, j)]);
                prop_assert!(abs_diff_eq!(found, expected, epsilon = relative * length(p) * inverse), "D {p} {j}");
                prop_assert!(j > p || (found == 0.0 && expected == 0.0), "D {p} {j} is not strictly upper");
            }
            let (found, expected) = (closed.coefficients.b[p], explicit.coefficients.b[p]);
            let tolerance = relative * length(p).powi(2) * inverse;
            prop_assert!(abs_diff_eq!(found, expected, epsilon = tolerance), "b {p}: {found} {expected}");
            // c is a column of H^-1 over its diagonal entry, which is at least 1 / ||H|| = 1.
            let (found, expected) = (closed.coefficients.c[p], explicit.coefficients.c[p]);
            let tolerance = relative * length(p) * inverse;
            prop_assert!(abs_diff_eq!(found, expected, epsilon = tolerance), "c {p}: {found} {expected}");
        }
    }

    #[test]
    fn the_error_is_the_one_measured_on_the_damped_inputs(problem in problems(), damping in 0.0f64..0.5, seed: u64) {
        let layer = problem.layer();
        let statistics = layer.statistics();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let changed = layer.weight.mapv(|w| w + rng.random_range(-1.0..1.0));
        let residual = layer.residual();
        let error = Objective::new(statistics.hessian.clone(), damping)
            .unwrap()
            .error(layer.weight.view(), changed.view(), &residual)
            .unwrap();
        let (dense, sparse) = damped_inputs(layer.dense.view(), layer.sparse.view(), damping);
        let off = sparse.dot(&changed.t()) - dense.dot(&layer.weight.t());
        // The absolute terms: the two parts of the difference, apart.
        let size = sparse.mapv(f64::abs).dot(&(&changed - &layer.weight).t().mapv(f64::abs))
            + (&dense - &sparse).mapv(f64::abs).dot(&layer.weight.t().mapv(f64::abs));
        for i in 0..problem.n {
            let direct: f64 = off.column(i).iter().map(|e| e * e).sum();
            let scale: f64 = size.column(i).iter().map(|e| e * e).sum::<f64>()
                + sparse.mapv(f64::abs).dot(&layer.weight.row(i).mapv(f64::abs)).iter().map(|e| e * e).sum::<f64>();
            // Sums over m + k tokens and twice over k columns, on both sides.
            let tolerance = 2.0 * (problem.m + 4 * problem.k + 10) as f64 * U * scale;
            let found = error[i];
            prop_assert!(abs_diff_eq!(found, direct, epsilon = tolerance), "{found} {direct} {tolerance}");
        }
    }

    #[test]
    fn no_method_beats_the_optimum_for_its_mask(problem in problems(), damping in 1e-3f64..0.3, half in 0.2f64..0.8) {
        let layer = Layer { sparse: pruned(&problem.layer().dense, 0.4), ..problem.layer() };
        let statistics = layer.statistics();
        let residual = layer.residual();
        let objective = Objective::new(statistics.hessian.clone(), damping).unwrap();
        let mut norms = ChannelNorms::new(problem.k);
        norms.update(layer.sparse.view());
        let sparsity = Sparsity::Unstructured(half);
        let config = PruneConfig {
            block_size: 4,
            damping,
            column_order: ColumnOrder::Hessian,
            threshold: Threshold::Exact,
            ..PruneConfig::upstream(sparsity)
        };
        let weight = layer.weight.view();
        let grids = GridConfig { group_size: Some(2), ..GridConfig::new(4, Symmetry::Asymmetric) };
        let methods = [
            ("duogpt", prune(weight, &statistics, &config).unwrap()),
            ("duogpt, no alpha", prune(weight, &statistics, &PruneConfig { alpha: Alpha::both(1.0), ..config }).unwrap()),
            ("sparsegpt", sparsegpt(weight, &statistics, &config).unwrap()),
            ("wanda", wanda(weight, &norms, sparsity, NarrowGroups::Refuse).unwrap()),
            ("magnitude", magnitude(weight, sparsity, NarrowGroups::Refuse).unwrap()),
            ("duogpt, quantised", gptaq(weight, &statistics, &config, &grids).unwrap().pruned),
        ];
        for (method, found) in methods {
            let best = objective.optimal_weights(weight, found.mask.view(), &residual).unwrap();
            prop_assert!(best.iter().zip(&found.mask).all(|(w, &pruned)| !pruned || w.to_bits() == 0));
            let error = objective.error(weight, found.weight.view(), &residual).unwrap();
            let least = objective.error(weight, best.view(), &residual).unwrap();
            for i in 0..problem.n {
                // E at the optimum is off by the square of its error, so that rounding E itself is what counts.
                let tolerance = 2.0 * (problem.m + 4 * problem.k + 10) as f64 * U * scale(&layer, i, &found.weight);
                prop_assert!(least[i] <= error[i] + tolerance, "{method}: {} {} {tolerance}", least[i], error[i]);
            }
        }
    }
}

fn pruned(x: &Array2<f64>, sparsity: f64) -> Array2<f64> {
    let mut x = x.clone();
    prune_activations(x.view_mut(), sparsity);
    x
}

/// The absolute terms of E for one row, with a bound on damping added up.
fn scale(layer: &Layer, i: usize, changed: &Array2<f64>) -> f64 {
    let size = |x: ArrayView2<f64>, w: Array1<f64>| -> f64 {
        x.mapv(f64::abs).dot(&w.mapv(f64::abs)).iter().map(|e| e * e).sum()
    };
    let (w, new) = (layer.weight.row(i).to_owned(), changed.row(i).to_owned());
    size(layer.sparse.view(), w.clone()) + size(layer.sparse.view(), new) + size(layer.dense.view(), w)
}

/// Two orthogonal channels with norms 2 and 1, dX in the second only: everything can be done by hand.
fn by_hand() -> Layer {
    let sparse = array![[2.0, 0.0], [0.0, 1.0]];
    let dense = array![[2.0, 0.0], [0.5, 2.0]];
    Layer { weight: array![[3.0, -1.0]], dense, sparse }
}

#[test]
fn the_steps_of_a_row_done_by_hand() {
    let layer = by_hand();
    // dX^T = [[0, 0], [0.5, 1]], r = (0, 0.5): H^-1 = diag(1/4, 1), X r^T = (0, 0.5).
    let row = layer.row(0);
    assert_eq!(row.loss(0), 9.0 * 4.0); // r is repaired by column 1: 0.25 - 0.25
    assert_eq!(row.loss(1), 1.0 + 0.25 + 2.0 * -0.5); // (w_1 + g_1)^2 = 0.25
    assert_eq!(row.duogpt_step(0), array![-3.0, 0.5]);
    assert_eq!(row.sparsegpt_step(0), array![-3.0, 0.0]);
    assert_eq!(row.theorem_1(0), 0.25);
    assert_eq!(row.theorem_1(1), 0.0);
    let greedy = greedy_row(layer.weight.row(0), layer.dense.view(), layer.sparse.view(), 9).unwrap();
    assert_eq!(greedy.removed, [1, 0]);
    assert_eq!(greedy.loss, [0.25, 36.25]);
    assert_eq!(greedy.weight, array![0.0, 0.0]);
}

#[test]
fn the_optimum_done_by_hand_and_its_gap() {
    let layer = by_hand();
    let statistics = layer.statistics();
    let keep_second = array![[true, false]];
    let best = optimal_weights(layer.weight.view(), &statistics, keep_second.view(), 0.0).unwrap();
    assert_eq!(best, array![[0.0, -0.5]]);
    // The mean of diag H is 2.5, so lambda = 3: (w H + w dX X^T + lambda w)_1 / (1 + lambda), and a factor without
    // rounding.
    let damped = optimal_weights(layer.weight.view(), &statistics, keep_second.view(), 1.2).unwrap();
    assert_eq!(damped, array![[0.0, -0.875]]);
    let objective = Objective::new(statistics.hessian.clone(), 0.0).unwrap();
    let residual = Residual::of(layer.weight.view(), &statistics, array![0.25]).unwrap();
    let error =
        |weight: &Array2<f64>| objective.error(layer.weight.view(), weight.view(), &residual).unwrap()[0];
    assert_eq!((error(&best), error(&array![[0.0, -1.0]])), (36.0, 36.25));
    // w H w^T + r r^T
    assert_eq!(objective.magnitude(layer.weight.view(), &residual), Ok(array![36.0 + 1.0 + 0.25]));
    assert_eq!(optimality_gap(36.25, 36.0), 36.25 / 36.0);
    assert_eq!(optimality_gap(0.0, 0.0), 1.0);
    assert_eq!(optimality_gap(1.0, 0.0), f64::INFINITY);
}

#[test]
fn kept_weights_of_dead_channels_stay() {
    let x = array![[1.0, 0.0, 2.0], [2.0, 0.0, 1.0]];
    let mut statistics = Statistics::with_residual(3);
    statistics.update(x.view(), x.view());
    let weight = array![[1.0, 5.0, 3.0], [1.0, 5.0, 3.0]];
    let mask = array![[false, false, true], [false, true, false]];
    for damping in [0.0, 0.1] {
        let best = optimal_weights(weight.view(), &statistics, mask.view(), damping).unwrap();
        assert_eq!((best[(0, 1)], best[(1, 1)]), (5.0, 0.0));
        assert_eq!(best[(0, 2)], 0.0);
    }
}

#[test]
fn a_residual_gathered_by_rows_is_that_of_the_statistics() {
    let wave = |i: usize, j: usize| ((i * 13 + j * 29) as f64 * 0.7).sin();
    let (n, k, tokens) = (3, 5, 8);
    let weight = Array2::from_shape_fn((n, k), |(i, j)| wave(i + 50, j));
    let (mut statistics, mut found) = (Statistics::with_residual(k), Residual::new(n, k));
    let mut dxdxt: Array2<f64> = Array2::zeros((k, k));
    for sequence in 0..3 {
        let dense = Array2::from_shape_fn((tokens, k), |(i, j)| wave(i + tokens * sequence, j));
        let sparse = pruned(&dense, 0.4);
        let dx = &dense - &sparse;
        statistics.update(dense.view(), sparse.view());
        found.update(weight.view(), dx.view(), sparse.view());
        dxdxt += &(dx.t().dot(&dx) / 3.0);
    }
    let norms = residual_norms(weight.view(), dxdxt.view()).unwrap();
    let expected = Residual::of(weight.view(), &statistics, norms).unwrap();
    assert_eq!((found.sequences, expected.sequences), (3, 3));
    // Sums of at most 3 * 8 * 5 * 5 products of numbers below 1, on both sides.
    let tolerance = 2.0 * 600.0 * 600.0 * U;
    assert_abs_diff_eq!(found.products, expected.products, epsilon = tolerance);
    assert_abs_diff_eq!(found.norms, expected.norms, epsilon = tolerance);
    assert!(expected.norms.iter().all(|&norm| norm > 0.1));
}

#[test]
fn weights_of_dead_channels_cost_nothing() {
    let x = array![[1.0, 0.0, 2.0], [2.0, 0.0, 1.0]];
    let mut statistics = Statistics::with_residual(3);
    statistics.update(x.view(), x.view());
    let weight = array![[1.0, 5.0, 3.0]];
    let residual = Residual::of(weight.view(), &statistics, array![0.0]).unwrap();
    let objective = Objective::new(statistics.hessian, 0.1).unwrap();
    let error = |changed: Array2<f64>| objective.error(weight.view(), changed.view(), &residual).unwrap()[0];
    assert_eq!(error(array![[1.0, 0.0, 3.0]]), 0.0);
    assert!(error(array![[0.0, 5.0, 3.0]]) > 1.0);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let layer = by_hand();
    let statistics = layer.statistics();
    let (weight, mask) = (layer.weight.view(), array![[false, true]]);
    let negative = optimal_weights(weight, &statistics, mask.view(), -0.1).unwrap_err();
    assert_eq!(negative, PruneError::Config(ConfigError::Negative { what: "damping", value: -0.1 }));
    let wide = optimal_weights(weight, &statistics, array![[true]].view(), 0.0).unwrap_err();
    assert_eq!(wide, PruneError::Shape { what: "mask", expected: (1, 2), found: (1, 1) });
    let nan = optimal_weights(array![[1.0, f64::NAN]].view(), &statistics, mask.view(), 0.0).unwrap_err();
    assert_eq!(nan, PruneError::NotFinite { what: "weight", row: 0, column: 1 });
    let short = greedy_row(array![1.0].view(), layer.dense.view(), layer.sparse.view(), 1).unwrap_err();
    assert_eq!(short, PruneError::Shape { what: "row of weights", expected: (1, 2), found: (1, 1) });

    let objective = Objective::new(statistics.hessian.clone(), 0.0).unwrap();
    let shape = |what, expected, found| Err(PruneError::Shape { what, expected, found });
    let fitting = Residual::new(1, 2);
    for (rows, what) in [(array![[1.0]], "weight"), (array![[1.0, 1.0], [1.0, 1.0]], "residual")] {
        let (rows, (n, k)) = (rows.view(), rows.dim());
        let refused = match what {
            "weight" => shape(what, (n, 2), (n, k)),
            _ => shape(what, (n, k), (1, 2)),
        };
        assert_eq!(objective.magnitude(rows, &fitting), refused);
        assert_eq!(objective.error(rows, rows, &fitting), refused);
    }
    let norms = Residual { norms: array![0.0, 0.0], ..fitting };
    assert_eq!(objective.magnitude(weight, &norms), shape("residual norms", (1, 1), (2, 1)));

    // Two equal channels: H of both is singular, and of each alone is not.
    let twice = array![[1.0, 3.0, 3.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]];
    let mut singular = Statistics::hessian_only(3);
    singular.update(twice.view(), twice.view());
    let weight = array![[1.0, 1.0, 1.0]];
    let both = optimal_weights(weight.view(), &singular, array![[true, false, false]].view(), 0.0);
    assert_eq!(both, Err(PruneError::Factor(FactorError::NotPositiveDefinite { column: 2, pivot: 11.0 })));
    assert!(optimal_weights(weight.view(), &singular, array![[true, false, true]].view(), 0.0).is_ok());
    assert!(optimal_weights(weight.view(), &singular, array![[true, false, false]].view(), 0.1).is_ok());
    assert!(matches!(
        greedy_row(weight.row(0), twice.view(), twice.view(), 1),
        Err(PruneError::Factor(FactorError::NotPositiveDefinite { .. }))
    ));
}

#[test]
fn the_same_text_runs_in_f32() {
    let x = array![[2.0f32, 0.0], [0.0, 1.0]];
    let greedy = greedy_row(array![3.0f32, -1.0].view(), x.view(), x.view(), 1).unwrap();
    assert_eq!((greedy.removed, greedy.weight), (vec![1], array![3.0f32, 0.0]));
}
