//! What must hold for every input: proptest draws a seed, a shape and a condition number, and the matrices are built
//! from those.

use approx::abs_diff_eq;
use duogpt::reference::activation::{prune_activations, prune_token};
use duogpt::reference::baseline::sparsegpt::sparsegpt;
use duogpt::reference::factor::{FactorError, damp, dead_channels, factor, revive_dead_channels};
use duogpt::reference::order::inverse;
use duogpt::reference::prune::{prepare, prune};
use duogpt::reference::{
    Alpha, ColumnOrder, ConfigError, LazyUpdate, PruneConfig, Sparsity, Statistics, Threshold,
};
use ndarray::{Array1, Array2, Axis, s};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const EPS: f64 = f64::EPSILON;

fn random(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || random.random_range(-1.0..1.0))
}

/// Dense and sparse input, tokens x k.
type Sequence = (Array2<f64>, Array2<f64>);

/// A layer: weight, and per sequence dense and sparse input, whose channels' scales spread over `condition`.
#[derive(Clone, Debug)]
struct Layer {
    weight: Array2<f64>,
    inputs: Vec<Sequence>,
}

impl Layer {
    fn new(seed: u64, n: usize, k: usize, sequences: usize, tokens: usize, condition: f64) -> Self {
        let scale = Array1::from_shape_fn(k, |j| condition.powf(-((j * 7 % k) as f64) / k as f64 / 2.0));
        let inputs = (0..sequences as u64)
            .map(|i| {
                let dense = random(tokens, k, seed ^ (i + 1)) * &scale;
                let mut sparse = &dense + &(random(tokens, k, seed ^ (i + 1000)) * &scale * 0.1);
                prune_activations(sparse.view_mut(), 0.5);
                (dense, sparse)
            })
            .collect();
        Layer { weight: random(n, k, seed), inputs }
    }

    fn statistics(&self) -> Statistics<f64> {
        let mut statistics = Statistics::with_residual(self.weight.ncols());
        for (dense, sparse) in &self.inputs {
            statistics.update(dense.view(), sparse.view());
        }
        statistics
    }
}

prop_compose! {
    fn layers()(
        seed in any::<u64>(),
        n in 1usize..12,
        k in 1usize..40,
        sequences in 1usize..4,
        tokens in 1usize..30,
        condition in prop::sample::select(vec![1.0, 1e2, 1e4, 1e6]),
    ) -> Layer {
        Layer::new(seed, n, k, sequences, tokens, condition)
    }
}

fn configs() -> impl Strategy<Value = PruneConfig> {
    let orders = prop::sample::select(vec![
        ColumnOrder::Natural,
        ColumnOrder::Hessian,
        ColumnOrder::HessianDrift,
        ColumnOrder::Interleaved { run: 2 },
    ]);
    let updates = prop::sample::select(vec![LazyUpdate::Pruned, LazyUpdate::Compensated]);
    (orders, updates, 0.0..0.9, 1usize..8, prop::sample::select(vec![0.0, 0.125, 1.0]), 0.01..0.5).prop_map(
        |(column_order, lazy_update, p, half_block, alpha, damping)| PruneConfig {
            block_size: 2 * half_block,
            damping,
            alpha: Alpha::both(alpha),
            column_order,
            lazy_update,
            threshold: Threshold::Exact,
            ..PruneConfig::paper(Sparsity::Unstructured(p))
        },
    )
}

/// Relative to the largest entry. The two computations sum in another order, behind one factorisation each; with
/// damping of at least 0.01 the condition of the diagonally scaled Hessian is at most k / 0.01, and 40 columns of
/// triple products of it stay under 1e-9.
fn close(a: &Array2<f64>, b: &Array2<f64>) -> bool {
    let scale = b.iter().fold(1.0f64, |m, x| m.max(x.abs()));
    abs_diff_eq!(a, b, epsilon = 1e-9 * scale)
}

fn max_abs(a: &Array2<f64>) -> f64 {
    a.iter().fold(0.0, |m, x| m.max(x.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// With the mask and the un-pruned W_j in both places, blocks are only a way to compute.
    #[test]
    fn blocked_equals_unblocked(layer in layers(), config in configs(), seed in any::<u64>()) {
        let config = PruneConfig { lazy_update: LazyUpdate::Compensated, ..config };
        // The interleaved order depends on the block size by design.
        let config = match config.column_order {
            ColumnOrder::Interleaved { .. } => PruneConfig { column_order: ColumnOrder::Hessian, ..config },
            _ => config,
        };
        let statistics = layer.statistics();
        let mask = random(layer.weight.nrows(), layer.weight.ncols(), seed).mapv(|x| x < 0.0);
        let run = |block_size| {
            let config = PruneConfig { block_size, ..config };
            let replay = Some(mask.view());
            prepare(&statistics, &config, None).unwrap().prune(layer.weight.view(), replay).unwrap()
        };
        let whole = run(64);
        prop_assert!(close(&run(config.block_size).weight, &whole.weight));
        prop_assert!(close(&run(1).weight, &whole.weight));
    }

    #[test]
    fn no_drift_or_no_alpha_is_sparsegpt(layer in layers(), config in configs()) {
        // alpha = 0, drift present; the drift order may look at the drift.
        let config = match config.column_order {
            ColumnOrder::HessianDrift => PruneConfig { column_order: ColumnOrder::Hessian, ..config },
            _ => config,
        };
        let statistics = layer.statistics();
        let expected = sparsegpt(layer.weight.view(), &statistics, &config).unwrap();
        let without = PruneConfig { alpha: Alpha::both(0.0), ..config };
        let found = prune(layer.weight.view(), &statistics, &without).unwrap();
        prop_assert_eq!(&found.mask, &expected.mask);
        prop_assert!(close(&found.weight, &expected.weight));

        // dX = 0, alpha as it is.
        let mut still = Statistics::with_residual(layer.weight.ncols());
        for (_, sparse) in &layer.inputs {
            still.update(sparse.view(), sparse.view());
        }
        let found = prune(layer.weight.view(), &still, &config).unwrap();
        prop_assert_eq!(&found.mask, &expected.mask);
        prop_assert!(close(&found.weight, &expected.weight));
    }

    #[test]
    fn an_order_is_the_same_as_permuted_inputs(layer in layers(), config in configs()) {
        let statistics = layer.statistics();
        let ordered = prepare(&statistics, &config, None).unwrap();
        let found = ordered.prune(layer.weight.view(), None).unwrap();
        let permute = |x: &Array2<f64>| x.select(Axis(1), &ordered.order);
        let permuted = Layer {
            weight: permute(&layer.weight),
            inputs: layer.inputs.iter().map(|(dense, sparse)| (permute(dense), permute(sparse))).collect(),
        };
        let natural = PruneConfig { column_order: ColumnOrder::Natural, ..config };
        let expected = prune(permuted.weight.view(), &permuted.statistics(), &natural).unwrap();
        let position = inverse(&ordered.order);
        prop_assert_eq!(&found.mask, &expected.mask.select(Axis(1), &position));
        prop_assert!(close(&found.weight, &expected.weight.select(Axis(1), &position)));
    }

    #[test]
    fn a_multiple_of_the_statistics_changes_nothing(layer in layers(), config in configs(), power in -8i32..8) {
        prop_assume!(layer.statistics().hessian.diag().iter().all(|&h| h > 0.0)); // no dead channels
        let found = |hessian_scale| {
            prune(layer.weight.view(), &layer.statistics(), &PruneConfig { hessian_scale, ..config }).unwrap()
        };
        let (one, scaled) = (found(1.0), found(2f64.powi(2 * power)));
        prop_assert_eq!(&one.mask, &scaled.mask);
        prop_assert!(close(&one.weight, &scaled.weight));
    }

    #[test]
    fn rows_do_not_feel_each_other_under_a_given_mask(layer in layers(), config in configs(), seed in any::<u64>()) {
        let statistics = layer.statistics();
        let prepared = prepare(&statistics, &config, None).unwrap();
        let mask = random(layer.weight.nrows(), layer.weight.ncols(), seed).mapv(|x| x < 0.0);
        let run = |rows: std::ops::Range<usize>| {
            let replay = Some(mask.slice(s![rows.clone(), ..]));
            prepared.prune(layer.weight.slice(s![rows, ..]), replay).unwrap().weight
        };
        let together = run(0..layer.weight.nrows());
        for row in 0..layer.weight.nrows() {
            prop_assert!(close(&run(row..row + 1), &together.slice(s![row..row + 1, ..]).to_owned()));
        }
    }

    #[test]
    fn the_exact_threshold_meets_the_sparsity_in_every_block(layer in layers(), config in configs()) {
        let Sparsity::Unstructured(p) = config.weight_sparsity else { unreachable!() };
        let statistics = layer.statistics();
        let prepared = prepare(&statistics, &config, None).unwrap();
        let pruned = prepared.prune(layer.weight.view(), None).unwrap();
        for columns in prepared.order.chunks(config.block_size) {
            let block = pruned.mask.select(Axis(1), columns);
            let expected = (block.len() as f64 * p).floor() as usize;
            prop_assert_eq!(block.iter().filter(|m| **m).count(), expected);
        }
        for (w, m) in pruned.weight.iter().zip(&pruned.mask) {
            prop_assert!(!m || (*w == 0.0 && w.is_sign_positive()), "a pruned weight is +0");
        }
    }

    #[test]
    fn n_of_m_holds_in_every_group(seed in any::<u64>(), groups in 1usize..10, nm in prop::sample::select(vec![(1, 2), (2, 4), (4, 8), (3, 4), (0, 2)]), config in configs()) {
        let (n, m) = nm;
        let layer = Layer::new(seed, 5, groups * m, 2, 20, 1e2);
        let config = PruneConfig { weight_sparsity: Sparsity::NofM { n, m }, block_size: 8, ..config };
        let prepared = prepare(&layer.statistics(), &config, None).unwrap();
        let pruned = prepared.prune(layer.weight.view(), None).unwrap();
        for group in prepared.order.chunks(m) {
            for row in pruned.mask.select(Axis(1), group).outer_iter() {
                prop_assert_eq!(row.iter().filter(|pruned| **pruned).count(), n);
            }
        }
    }

    #[test]
    fn activation_pruning_keeps_the_largest(seed in any::<u64>(), k in 1usize..200, p in 0.0..0.999) {
        let before = random(1, k, seed).row(0).to_owned(); // distinct magnitudes, almost surely
        let mut after = before.clone();
        prune_token(after.view_mut(), p);
        let kept = after.iter().filter(|x| **x != 0.0).count();
        prop_assert_eq!(kept, k - (k as f64 * p).floor() as usize);
        let smallest_kept = after.iter().filter(|x| **x != 0.0).fold(f64::INFINITY, |m, x| m.min(x.abs()));
        for (before, after) in before.iter().zip(&after) {
            prop_assert!(after == before || (*after == 0.0 && before.abs() < smallest_kept));
        }
    }

    #[test]
    fn the_lazy_updates_differ_only_across_blocks(layer in layers(), config in configs()) {
        let run = |lazy_update| prune(layer.weight.view(), &layer.statistics(), &PruneConfig { lazy_update, ..config }).unwrap();
        let statistics = layer.statistics();
        let order = prepare(&statistics, &config, None).unwrap().order;
        let first: Vec<usize> = order.iter().take(config.block_size).copied().collect();
        let (pruned, compensated) = (run(LazyUpdate::Pruned), run(LazyUpdate::Compensated));
        prop_assert_eq!(pruned.weight.select(Axis(1), &first), compensated.weight.select(Axis(1), &first));
        if order.len() <= config.block_size {
            prop_assert_eq!(&pruned, &compensated);
        }
    }

    #[test]
    fn orders_are_permutations(layer in layers(), config in configs()) {
        let prepared = prepare(&layer.statistics(), &config, None).unwrap();
        let mut sorted = prepared.order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..layer.weight.ncols()).collect::<Vec<_>>());
        let position = inverse(&prepared.order);
        for (i, &column) in prepared.order.iter().enumerate() {
            prop_assert_eq!(position[column], i);
        }
    }

    /// The mean over sequences of what one sequence gives; gamma_m bounds a sum of m terms.
    #[test]
    fn the_running_mean_equals_the_direct_sum(layer in layers()) {
        let statistics = layer.statistics();
        let mean = |f: &dyn Fn(&Sequence) -> Array2<f64>| {
            layer.inputs.iter().map(f).fold(Array2::zeros((layer.weight.ncols(), layer.weight.ncols())), |sum, x| sum + x)
                / layer.inputs.len() as f64
        };
        let hessian = mean(&|(_, sparse)| sparse.t().dot(sparse));
        let dxxt = mean(&|(dense, sparse)| (dense - sparse).t().dot(sparse));
        let dxdxt = mean(&|(dense, sparse)| (dense - sparse).t().dot(&(dense - sparse)));
        let terms = (layer.inputs.len() * (layer.inputs[0].0.nrows() + 4)) as f64;
        let residual = statistics.residual.unwrap();
        prop_assert!(abs_diff_eq!(statistics.hessian, hessian, epsilon = terms * EPS * max_abs(&hessian)));
        // A product's error is bounded by the norms of its factors, not by the product.
        let bound = (max_abs(&hessian) * max_abs(&dxdxt)).sqrt();
        prop_assert!(abs_diff_eq!(residual.dxxt, dxxt, epsilon = terms * EPS * bound));
        let bound = terms * EPS * max_abs(&dxdxt);
        prop_assert!(abs_diff_eq!(residual.square_norms, dxdxt.diag(), epsilon = bound));
    }
}

/// Matrices for `factor`, after the kinds that LAPACK's own tests use.
fn test_matrices(k: usize) -> Vec<(String, Array2<f64>)> {
    let mut matrices = Vec::new();
    let mut add = |name: &str, spread: f64, scale: f64, tokens: usize, dead: &dyn Fn(usize) -> bool| {
        let mut x = random(tokens, k, 42 + k as u64);
        for j in 0..k {
            // Scales fall geometrically from 1 to 1 / sqrt(spread): a Hessian's fall to 1 / spread.
            let exponent = if k > 1 { j as f64 / (k - 1) as f64 } else { 0.0 };
            let factor = if dead(j) { 0.0 } else { scale * spread.powf(-exponent / 2.0) };
            x.column_mut(j).mapv_inplace(|x| x * factor);
        }
        matrices.push((name.to_string(), x.t().dot(&x)));
    };
    let alive = |_: usize| false;
    add("random", 1.0, 1.0, 4 * k + 4, &alive);
    add("condition 1e6", 1e6, 1.0, 4 * k + 4, &alive);
    add("condition 1e12", 1e12, 1.0, 4 * k + 4, &alive);
    add("rank-deficient", 1.0, 1.0, k / 2 + 1, &alive);
    add("near overflow", 1.0, 1e150, 4 * k + 4, &alive);
    add("near underflow", 1.0, 1e-150, 4 * k + 4, &alive);
    add("one dead channel", 1.0, 1.0, 4 * k + 4, &|j| j == k / 2);
    add("all dead", 1.0, 1.0, 4 * k + 4, &|_| true);
    matrices
}

/// LAPACK's measure: norm(I - L^T H L) / (k eps cond(H)), dimensionless, with one threshold for all.
#[test]
fn factor_is_backward_stable() {
    const THRESHOLD: f64 = 30.0;
    for k in [0, 1, 2, 3, 5, 10, 50, 200] {
        for (name, mut hessian) in test_matrices(k) {
            let dead = dead_channels(&hessian);
            revive_dead_channels(&mut hessian, &dead);
            damp(&mut hessian, 0.01);
            let l = factor(hessian.clone()).unwrap_or_else(|error| panic!("{name}, k = {k}: {error}"));
            assert_eq!(l.dim(), (k, k));
            assert!(l.indexed_iter().all(|((i, j), &x)| i >= j || x == 0.0), "{name}, k = {k}: lower");
            assert!(l.diag().iter().all(|&x| x > 0.0), "{name}, k = {k}: positive diagonal");
            if k == 0 {
                continue;
            }
            let norm1 =
                |a: &Array2<f64>| a.columns().into_iter().map(|c| c.mapv(f64::abs).sum()).fold(0.0, f64::max);
            let condition = norm1(&hessian) * norm1(&l.dot(&l.t()));
            let residual = norm1(&(l.t().dot(&hessian).dot(&l) - Array2::<f64>::eye(k)));
            let ratio = residual / (k as f64 * EPS * condition);
            assert!(ratio <= THRESHOLD, "{name}, k = {k}: ratio {ratio}");
        }
    }
}

#[test]
fn factor_refuses_a_singular_hessian() {
    // Two equal channels and no damping: the second pivot is zero.
    let singular = ndarray::array![[1.0, 1.0], [1.0, 1.0]];
    assert_eq!(factor(singular), Err(FactorError::NotPositiveDefinite { column: 0, pivot: 1.0 }));
}

#[test]
fn a_replayed_order_must_be_a_permutation() {
    let statistics = Layer::new(1, 2, 3, 1, 10, 1.0).statistics();
    let with_order = |order: &[usize]| {
        prepare(&statistics, &PruneConfig::default(), Some(order)).map(|prepared| prepared.order)
    };
    assert_eq!(with_order(&[2, 0, 1]), Ok(vec![2, 0, 1]));
    for wrong in [&[0, 1][..], &[0, 1, 2, 0], &[0, 1, 3], &[0, 1, 4], &[0, 1, 1]] {
        assert_eq!(with_order(wrong), Err(ConfigError::NotAPermutation { k: 3 }.into()), "{wrong:?}");
    }
}
