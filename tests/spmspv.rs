//! Storage formats of y = W (x * mask): conversions are exact for every bit pattern, and products follow the definition.

use approx::{abs_diff_eq, assert_abs_diff_eq};
use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, arr2};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use duogpt::reference::activation::prune_token;
use duogpt::reference::spmspv::{ALIGN, Dense, Format, Selected, TILE, TileBitmap, TileIndex, Value};
use duogpt::reference::teal::prune_below;
use duogpt::spmspv::{Instructions, Multiply, Vector};

/// Bits that a comparison of numbers would miss or a conversion spoil: zeros, denormals, infinities, NaNs quiet and signalling.
fn special<V: Value>() -> [V; 8] {
    let (sign, infinity, payload) = match size_of::<V>() {
        4 => (1 << 31, f32::INFINITY.to_bits(), 0x1234),
        _ => (1 << 15, V::of(f32::INFINITY).bits(), 0x15),
    };
    [0, sign, 1, sign | 1, infinity, sign | infinity, infinity | payload, sign | infinity | payload]
        .map(V::from_bits)
}

/// A weight of which about `density` is not +0; `wild` ones have any bits, the others are ordinary numbers.
fn weight<V: Value>(n: usize, k: usize, density: f64, wild: bool, seed: u64) -> Array2<V> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((n, k), || match random.random_bool(density) {
        false => V::ZERO,
        true if wild && random.random_bool(0.3) => special()[random.random_range(0..8)],
        true if wild => V::from_bits(random.random()),
        true => V::of(random.random_range(-1.0f32..1.0)),
    })
}

fn activations(k: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..k).map(|_| random.random_range(-1.0f32..1.0)).collect()
}

fn bits<V: Value>(weight: &Array2<V>) -> Array2<u32> {
    weight.mapv(V::bits)
}

fn round_trip<V: Value, F: Format<V>>(weight: &Array2<V>) -> F {
    let stored = F::from_dense(weight.view());
    assert_eq!(stored.dim(), weight.dim());
    assert_eq!(bits(&stored.to_dense()), bits(weight), "{}", F::NAME);
    stored
}

/// Shapes around the tile and the word, with empty ones.
fn shapes() -> impl Strategy<Value = (usize, usize)> {
    let rows = prop_oneof![0usize..70, 250usize..264, 500usize..530];
    (rows, 0usize..9)
}

/// Shape, density, seed.
type Case = ((usize, usize), f64, u64);

/// One body for the three types.
fn for_each_type(cases: u32, strategy: impl Strategy<Value = Case>, test: [fn(Case) -> TestCaseResult; 3]) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&strategy, |case| test.iter().try_for_each(|test| test(case)))
        .unwrap_or_else(|error| panic!("{error}"));
}

fn densities() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(1.0), 0.0..1.0]
}

#[test]
fn every_bit_pattern_comes_back() {
    fn test<V: Value>(((n, k), density, seed): Case) -> TestCaseResult {
        let weight = weight::<V>(n, k, density, true, seed);
        round_trip::<V, Dense<V>>(&weight);
        let index = round_trip::<V, TileIndex<V>>(&weight);
        let bitmap = round_trip::<V, TileBitmap<V>>(&weight);
        // No value twice, none of a +0: filling is all else.
        let stored = weight.iter().filter(|w| !w.is_zero()).count();
        prop_assert_eq!(index.values().iter().filter(|w| !w.is_zero()).count(), stored);
        prop_assert_eq!(bitmap.values().iter().filter(|w| !w.is_zero()).count(), stored);
        Ok(())
    }
    for_each_type(96, (shapes(), densities(), any::<u64>()), [test::<f32>, test::<f16>, test::<bf16>]);
}

/// All 65536 patterns of each 16-bit type, and those of f32 that differ in kind.
#[test]
fn all_patterns_of_the_short_types() {
    fn all<V: Value>(patterns: Vec<u32>) {
        let weight = Array2::from_shape_vec((patterns.len() / 64, 64), patterns).unwrap().mapv(V::from_bits);
        round_trip::<V, Dense<V>>(&weight);
        round_trip::<V, TileIndex<V>>(&weight);
        round_trip::<V, TileBitmap<V>>(&weight);
    }
    all::<bf16>((0..=0xffff).collect());
    all::<f16>((0..=0xffff).collect());
    all::<f32>((0..=0xffff).map(|high| high << 16 | high & 1).collect());
}

#[test]
fn types_keep_numbers_and_bits() {
    fn check<V: Value>(number: f32, bits: u32) {
        assert_eq!((V::of(number).bits(), V::from_bits(bits).bits()), (bits, bits));
        assert_eq!((V::from_bits(bits).to_f32(), V::from_bits(bits).to_f64()), (number, number.into()));
    }
    check::<f32>(-1.5, 0xbfc0_0000);
    check::<bf16>(-1.5, 0xbfc0);
    check::<f16>(-1.5, 0xbe00);
}

/// What the kernels build upon.
#[test]
fn segments_are_aligned_and_their_rows_distinct() {
    for density in [0.0, 0.03, 0.5, 0.99, 1.0] {
        let weight = weight::<bf16>(2 * TILE + 40, 7, density, false, 1);
        let index = TileIndex::from_dense(weight.view());
        let bitmap = TileBitmap::from_dense(weight.view());
        assert_eq!(index.segments().offsets().len(), 3 * 7 + 1);
        assert_eq!(index.segments().offsets(), bitmap.segments().offsets());
        for column in 0..7 {
            for tile in 0..3 {
                let segment = index.segments().range(column, tile);
                assert_eq!((segment.start % ALIGN, segment.end % ALIGN), (0, 0));
                let rows = &index.rows()[segment.clone()];
                let mut seen = [false; TILE];
                rows.iter().for_each(|&row| assert!(!std::mem::replace(&mut seen[row as usize], true)));
                let stored = index.values()[segment].iter().filter(|w| !w.is_zero()).count();
                let (words, before) =
                    (bitmap.bitmap()[column * 3 + tile], bitmap.prefix()[column * 3 + tile]);
                let mut count = 0;
                for (word, before) in words.into_iter().zip(before) {
                    assert_eq!(u32::from(before), count);
                    count += word.count_ones();
                }
                assert_eq!(count as usize, stored);
            }
        }
    }
}

/// Measured bytes are the stated ones and at most ALIGN - 1 values of filling per segment; at 50 % in bf16 KERNELS.md's
/// 1.125 and 1.5 and the bytes for offsets and prefixes.
#[test]
fn bytes_are_as_stated() {
    fn check<V: Value, F: Format<V>>(per_value: usize) {
        for density in [0.0, 0.5, 0.7, 1.0] {
            let (n, k) = (4 * TILE, 40);
            let weight = weight::<V>(n, k, density, false, 7);
            // The fraction that came out, not the one drawn for.
            let density = weight.iter().filter(|w| !w.is_zero()).count() as f64 / weight.len() as f64;
            let stated = F::bytes_per_weight(density);
            let measured = (F::from_dense(weight.view()).bytes() - end::<F, V>()) as f64 / (n * k) as f64;
            let filling = ((ALIGN - 1) * per_value) as f64 / TILE as f64;
            assert!(
                measured >= stated - 1e-9 && measured <= stated + filling,
                "{}: {measured} {stated}",
                F::NAME
            );
        }
    }
    /// The offset behind the last segment.
    fn end<F: Format<V>, V: Value>() -> usize {
        F::from_dense(ArrayView2::from_shape((0, 0), &[]).unwrap()).bytes()
    }
    check::<bf16, Dense<bf16>>(0);
    check::<bf16, TileIndex<bf16>>(3);
    check::<f32, TileIndex<f32>>(5);
    check::<bf16, TileBitmap<bf16>>(2);
    check::<f16, TileBitmap<f16>>(2);
    check::<f32, TileBitmap<f32>>(4);
    let of_bf16 = [Dense::<bf16>::bytes_per_weight(0.5), TileIndex::<bf16>::bytes_per_weight(0.5)];
    assert_eq!(of_bf16, [2.0, 1.5 + 4.0 / 256.0]);
    assert_eq!(TileBitmap::<bf16>::bytes_per_weight(0.5), 1.125 + 1.0 / 32.0 + 4.0 / 256.0);
}

/// The same sum for every format, in the same order, so the same bits; and that of the dense product of the pruned x, up to the
/// rounding of k additions in either.
#[test]
fn products_follow_the_definition() {
    fn test<V: Value>(((n, k), density, seed): Case) -> TestCaseResult {
        let weight = weight::<V>(n, 8 * k, density, false, seed);
        let x = activations(8 * k, !seed);
        let wide = weight.mapv(V::to_f64);
        for selected in [Selected::top_k(&x, 0.5), Selected::above(&x, 0.4), Selected::all(&x)] {
            let mut pruned = Array1::<f64>::zeros(x.len());
            selected.iter().for_each(|(j, x)| pruned[j] = x.into());
            let expected = wide.dot(&pruned);
            let bound = wide.mapv(f64::abs).dot(&pruned.mapv(f64::abs)) * (8 * k) as f64 * f64::EPSILON;
            let y = Dense::from_dense(weight.view()).product(&selected);
            prop_assert!(((&y - &expected).mapv(f64::abs) - bound).iter().all(|excess| *excess <= 0.0));
            prop_assert_eq!(&TileIndex::from_dense(weight.view()).product(&selected), &y);
            prop_assert_eq!(&TileBitmap::from_dense(weight.view()).product(&selected), &y);
        }
        Ok(())
    }
    for_each_type(48, (shapes(), densities(), any::<u64>()), [test::<f32>, test::<f16>, test::<bf16>]);
}

#[test]
fn a_product_by_hand() {
    let weight = arr2(&[[1.0f32, 0.0, -2.0], [0.0, 4.0, 0.5]]);
    let y = TileBitmap::from_dense(weight.view()).product(&Selected::top_k(&[3.0, 0.25, -8.0], 0.34));
    assert_eq!(y.to_vec(), [19.0, -4.0]); // index floor(3 * 0.34) = 1: 0.25 goes
}

/// Selected is the list of what the rules of `activation` and `teal` leave.
#[test]
fn selected_entries_are_those_that_pruning_leaves() {
    let x = [1.0f32, -2.0, 2.0, 3.0, -0.0, 2.0, 0.0];
    let nonzero =
        |x: Array1<f32>| -> Vec<_> { x.into_iter().enumerate().filter(|(_, x)| *x != 0.0).collect() };
    for sparsity in [0.0, 0.1, 0.3, 0.5, 0.6, 0.9] {
        let mut pruned = Array1::from(x.to_vec());
        prune_token(pruned.view_mut(), sparsity);
        assert_eq!(Selected::top_k(&x, sparsity).iter().collect::<Vec<_>>(), nonzero(pruned));
    }
    for threshold in [0.0, 1.0, 2.0, 5.0] {
        let mut pruned = arr2(&[x]);
        prune_below(pruned.view_mut(), threshold, 0);
        assert_eq!(
            Selected::above(&x, threshold).iter().collect::<Vec<_>>(),
            nonzero(pruned.row(0).to_owned())
        );
    }
    assert_eq!(Selected::all(&x).indices(), [0, 1, 2, 3, 5]);
    assert!(Selected::<f32>::top_k(&[], 0.5).is_empty() && !Selected::all(&x).is_empty());
}

/// Every format with every kind of instructions gives the same sums: those of the definition up to the rounding of one
/// fused multiply-add per selected column, gamma_m sum |w| |x| (and an underflow each).
#[test]
fn fast_products_agree_with_each_other_and_with_the_definition() {
    fn test<V: Vector>(((n, k), density, seed): Case) -> TestCaseResult {
        let weight = weight::<V>(n, 8 * k, density, false, seed);
        let x = activations(8 * k, !seed);
        let magnitudes = Dense::from_dense(weight.mapv(|w| V::of(w.to_f32().abs())).view());
        let absolute: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        let rules: [fn(&[f32]) -> Selected; 3] =
            [|x| Selected::top_k(x, 0.5), |x| Selected::above(x, 0.7), Selected::all];
        for rule in rules {
            let selected = rule(&x);
            let dense = Dense::from_dense(weight.view());
            let expected = dense.product(&selected);
            let of_selected = selected.len() as f64 * f64::from(f32::EPSILON / 2.0);
            let gamma = of_selected / (1.0 - of_selected);
            let bound = magnitudes.product(&rule(&absolute)) * gamma
                + selected.len() as f64 * f64::from(f32::from_bits(1));

            let mut first = vec![f32::NAN; n];
            dense.multiply(&selected, &mut first);
            for (i, &y) in first.iter().enumerate() {
                prop_assert!(
                    abs_diff_eq!(f64::from(y), expected[i], epsilon = bound[i]),
                    "row {}: {} for {}",
                    i,
                    y,
                    expected[i]
                );
            }
            let formats: [&dyn Multiply; 3] =
                [&dense, &TileIndex::from_dense(weight.view()), &TileBitmap::from_dense(weight.view())];
            for format in formats {
                prop_assert_eq!(format.shape(), weight.dim());
                for instructions in Instructions::supported() {
                    let mut y = vec![f32::NAN; n];
                    format.multiply_with(instructions, &selected, &mut y);
                    prop_assert_eq!(&y, &first, "{:?}", instructions);
                }
            }
        }
        Ok(())
    }
    for_each_type(48, (shapes(), densities(), any::<u64>()), [test::<f32>, test::<f16>, test::<bf16>]);
}

/// More rows than one task has: the tasks' places, and the same bits on one thread as on several.
#[test]
fn fast_products_do_not_depend_on_the_number_of_threads() {
    let weight = weight::<bf16>(10 * TILE + 77, 33, 0.5, false, 3);
    let bitmap = TileBitmap::from_dense(weight.view());
    let x = Selected::all(&(1..=33).map(|x| 1.0 / x as f32).collect::<Vec<_>>());
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = vec![f32::NAN; weight.nrows()];
        pool.install(|| bitmap.multiply(&x, &mut y));
        y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(on(1), on(3));
    let definition = bitmap.product(&x);
    let of_one: Array1<f64> = on(1).into_iter().map(|y| f32::from_bits(y).into()).collect();
    assert_abs_diff_eq!(of_one, definition, epsilon = 33.0 * f64::from(f32::EPSILON) * 4.2);
}

/// The bytes that a product reads are those of the columns it needs.
#[test]
fn bytes_read_are_those_of_the_selected_columns() {
    let weight = weight::<bf16>(2 * TILE, 8, 0.5, false, 5);
    let x: Vec<f32> = (1..=8).map(|x| x as f32).collect();
    let formats: [&dyn Multiply; 3] = [
        &Dense::from_dense(weight.view()),
        &TileIndex::from_dense(weight.view()),
        &TileBitmap::from_dense(weight.view()),
    ];
    for format in formats {
        let (all, none) = (format.bytes_read(Selected::all(&x).indices()), format.bytes_read(&[]));
        // All but the offset of the end, what may be read ahead, and the prefixes, for which the product counts bits.
        let (rest, prefixes) = (4 + 64, 2 * 8 * (TILE / 32));
        assert!(none == 0 && all <= format.stored_bytes() && all + rest + prefixes >= format.stored_bytes());
        let half = format.bytes_read(Selected::above(&x, 4.0).indices());
        let rest = format.bytes_read(&[0, 1, 2, 3]);
        assert_eq!(half + rest, all);
    }
}
