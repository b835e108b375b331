//! The checks of every kernel and its host side against the reference, and of a whole layer, as functions of the device:
//! the emulator (`tests/cuda.rs`), the emulator with planted faults, and a GPU (`tests/gpu.rs`).

pub mod spmspv;

use std::fmt::Debug;

use duogpt::backend::{Backend, BackendError, Cpu};
use duogpt::cuda::activation::{ActivationType, activation, activation_counting};
use duogpt::cuda::device::{Buffer, Device};
use duogpt::cuda::mask::{mask, mask_counting};
use duogpt::cuda::panel::{Factors, Groups, Panel, PanelLayer, PanelVersion, panel};
use duogpt::cuda::score::{BlockColumns, score};
use duogpt::cuda::statistics::{Inputs, Statistics as DeviceStatistics, StatisticsVersion};
use duogpt::linalg::Scalar;
use duogpt::reference::activation::prune_activations;
use duogpt::reference::score::{Coefficients, Correction};
use duogpt::reference::{
    Alpha, ColumnOrder, LazyUpdate, Prepared, PruneConfig, Pruned, Sparsity, Statistics, Threshold,
};
use duogpt::verify::inspect::Inspect;
use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What differs, or what the device refused.
pub type Outcome = Result<(), String>;

fn failed(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub fn same<T: PartialEq + Debug>(what: &str, found: &[T], expected: &[T]) -> Outcome {
    if found.len() != expected.len() {
        return Err(format!("{what}: {} values, expected {}", found.len(), expected.len()));
    }
    match (0..found.len()).find(|&i| found[i] != expected[i]) {
        Some(i) => {
            Err(format!("{what}: first difference at {i}: {:?}, expected {:?}", found[i], expected[i]))
        }
        None => Ok(()),
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

pub fn random(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, columns), || random.random_range(-1.0f32..1.0))
}

/// Small integers: many ties, and sums without rounding.
pub fn integers(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    random(seed, rows, columns).mapv(|x| (4.0 * x).round())
}

pub fn flat<T: Clone>(a: &Array2<T>) -> Vec<T> {
    a.iter().cloned().collect()
}

// Activation pruning: exact, in every type.

pub fn activations_agree<T: ActivationType + PartialEq + Debug, D: Device>(
    device: &D,
    of: fn(f32) -> T,
    widen: fn(T) -> f32,
    sizes: &[usize],
) -> Outcome {
    const TOKENS: usize = 3;
    for &k in sizes {
        for (draw, p) in [0.0, 0.29, 0.5, 0.9].into_iter().enumerate() {
            for x in [random(draw as u64, TOKENS, k), integers(draw as u64, TOKENS, k)] {
                let x: Vec<T> = x.iter().map(|&x| of(x)).collect();
                let wide =
                    Array2::from_shape_vec((TOKENS, k), x.iter().map(|&x| widen(x)).collect()).unwrap();
                let mut expected = wide.clone();
                prune_activations(expected.view_mut(), p);
                let columns: Vec<Vec<u32>> = wide
                    .rows()
                    .into_iter()
                    .map(|token| {
                        let mut sorted: Vec<f32> = token.iter().map(|x| x.abs()).collect();
                        sorted.sort_by(f32::total_cmp);
                        let threshold = sorted[(k as f64 * p).floor() as usize];
                        (0..k as u32).filter(|&j| token[j as usize].abs() >= threshold).collect()
                    })
                    .collect();

                let on_device = Buffer::from_host(device, &x).map_err(failed)?;
                let kept = activation(device, &on_device, (TOKENS, k), p).map_err(failed)?;
                let what = format!("activation, k = {k}, p = {p}");
                let found: Vec<f32> =
                    kept.x.to_host(device).map_err(failed)?.into_iter().map(widen).collect();
                same(&what, &bits(&found), &bits(&flat(&expected)))?;
                let counts = kept.count.to_host(device).map_err(failed)?;
                let found = kept.columns.to_host(device).map_err(failed)?;
                for (token, columns) in columns.iter().enumerate() {
                    let found = &found[token * k..][..counts[token] as usize];
                    same(&format!("{what}, kept columns of token {token}"), found, columns)?;
                }
                let simple = activation_counting(device, &on_device, (TOKENS, k), p).map_err(failed)?;
                let simple: Vec<f32> =
                    simple.to_host(device).map_err(failed)?.into_iter().map(widen).collect();
                same(&format!("{what}, by counting"), &bits(&simple), &bits(&flat(&expected)))?;
            }
        }
    }
    Ok(())
}

pub fn activations_f32<D: Device>(device: &D, sizes: &[usize]) -> Outcome {
    activations_agree::<f32, D>(device, |x| x, |x| x, sizes)
}

// Scores and masks: exact.

/// Shapes of a block, and where it lies.
fn blocks(sizes: &[usize]) -> impl Iterator<Item = BlockColumns> + '_ {
    sizes.iter().enumerate().flat_map(move |(i, &width)| {
        [sizes[(i + 3) % sizes.len()], 2].map(|n| BlockColumns { n, k: width + 5, first: 2, width })
    })
}

pub fn scores_agree<D: Device>(device: &D, sizes: &[usize]) -> Outcome {
    for block in blocks(sizes) {
        let BlockColumns { n, k, first, width } = block;
        let (w, scale) = (random(1, n, k), random(2, 1, k));
        let upload = |a: &Array2<f32>| Buffer::from_host(device, &flat(a)).map_err(failed);
        let out = Buffer::from_host(device, &vec![7.0f32; n * k]).map_err(failed)?;
        score(device, block, &upload(&w)?, &upload(&scale)?, &out).map_err(failed)?;
        let mut expected = Array2::from_elem((n, k), 7.0f32);
        let columns = s![.., first..first + width];
        let of_block =
            duogpt::reference::score::score(w.slice(columns), scale.slice(s![0, first..first + width]));
        expected.slice_mut(columns).assign(&of_block);
        let found = out.to_host(device).map_err(failed)?;
        same(&format!("score, {block:?}"), &bits(&found), &bits(&flat(&expected)))?;
    }
    Ok(())
}

pub fn masks_agree<D: Device>(device: &D, sizes: &[usize]) -> Outcome {
    for block in blocks(sizes) {
        let BlockColumns { n, k, first, width } = block;
        for (draw, p) in [0.0, 0.29, 0.5, 0.9].into_iter().enumerate() {
            let tied = integers(draw as u64, n, k).mapv(|x| if x == 1.0 { -0.0 } else { x });
            for scores in [random(draw as u64, n, k), tied] {
                for threshold in [Threshold::Inclusive, Threshold::Exact] {
                    let columns = s![.., first..first + width];
                    let mut expected = Array2::from_elem((n, k), 7u8); // outside the block nothing changes
                    let of_block = threshold.select(scores.slice(columns), p).mapv(u8::from);
                    expected.slice_mut(columns).assign(&of_block);
                    let s = Buffer::from_host(device, &flat(&scores)).map_err(failed)?;
                    let fresh = || Buffer::from_host(device, &vec![7u8; n * k]).map_err(failed);
                    let out = fresh()?;
                    mask(device, block, &s, threshold, p, &out).map_err(failed)?;
                    let what = format!("mask, {block:?}, {threshold:?}, p = {p}");
                    same(&what, &out.to_host(device).map_err(failed)?, &flat(&expected))?;
                    if block.numel() <= 300 {
                        let out = fresh()?;
                        mask_counting(device, block, &s, threshold, p, &out).map_err(failed)?;
                        let found = out.to_host(device).map_err(failed)?;
                        same(&format!("{what}, by counting"), &found, &flat(&expected))?;
                    }
                }
            }
        }
    }
    Ok(())
}

// The column loop: with one block and no product the reference rounds at the same places, so bits must agree.

/// L^T, D and the score's factor of a layer that is one block wide.
fn some_factors(seed: u64, config: PruneConfig) -> Prepared<f32> {
    let k = config.block_size;
    let small = random(seed, k, k) * 0.2;
    let lt = Array2::from_shape_fn((k, k), |(i, j)| match i.cmp(&j) {
        std::cmp::Ordering::Less => small[(i, j)],
        std::cmp::Ordering::Equal => 1.0 + small[(i, j)],
        std::cmp::Ordering::Greater => 0.0,
    });
    let d = Array2::from_shape_fn((k, k), |(i, j)| if i < j { small[(j, i)] } else { 0.0 });
    let nothing = Array1::zeros(k);
    let coefficients = Coefficients { a: nothing.clone(), b: nothing.clone(), c: nothing };
    Prepared {
        config,
        order: (0..k).collect(),
        dead: vec![false; k],
        lt,
        correction: Some(Correction { d, coefficients }),
        score_scale: random(seed + 1, 1, k).row(0).mapv(|x| 1.0 + x),
    }
}

pub fn panels_agree<D: Device>(device: &D, sizes: &[usize]) -> Outcome {
    for &width in sizes {
        let mut sparsities = vec![Sparsity::Unstructured(0.5)];
        let divisors = (2..=width).filter(|m| width.is_multiple_of(*m));
        let groups: Vec<usize> = divisors.filter(|&m| m <= 8 || m == width).collect();
        sparsities.extend(groups.into_iter().map(|m| Sparsity::NofM { n: m.div_ceil(3), m }));
        for (i, sparsity) in sparsities.into_iter().enumerate() {
            for forced in [false, true] {
                panel_agrees(device, width, 1 + 4 * i, sparsity, forced)?;
            }
        }
    }
    Ok(())
}

pub fn panel_agrees<D: Device>(
    device: &D,
    width: usize,
    n: usize,
    sparsity: Sparsity,
    forced: bool,
) -> Outcome {
    let config = PruneConfig {
        weight_sparsity: sparsity,
        block_size: width,
        alpha: Alpha::both(0.125),
        ..PruneConfig::default()
    };
    let seed = (width * 10 + n) as u64;
    let prepared = some_factors(seed, config);
    let w = if forced { random(seed, n, width) } else { integers(seed, n, width) };
    let given = random(seed + 5, n, width).mapv(|x| x < 0.0);
    let expected = prepared.prune(w.view(), forced.then_some(given.view())).map_err(failed)?;

    // The block lies inside a wider layer, whose other columns must stay as they are.
    let (k, first) = (width + 7, 3);
    let place = s![.., first..first + width];
    let wide = |a: ArrayView2<f32>, rows: usize| {
        let mut out = Array2::from_elem((rows, k), 7.0f32);
        out.slice_mut(place).assign(&a);
        flat(&out)
    };
    let square = |a: &Array2<f32>| {
        let mut out = Array2::from_elem((k, k), f32::NAN);
        out.slice_mut(s![first..first + width, first..first + width]).assign(a);
        Buffer::from_host(device, &flat(&out)).map_err(failed)
    };
    let (lt, d) = (square(&prepared.lt)?, square(&prepared.correction.as_ref().unwrap().d)?);
    let scale = prepared.score_scale.view().insert_axis(ndarray::Axis(0));
    let scale = Buffer::from_host(device, &wide(scale, 1)).map_err(failed)?;
    let factors = Factors { lt: &lt, d: Some(&d), alpha: 0.125, scale: &scale };
    let groups = match sparsity {
        Sparsity::Unstructured(_) => None,
        Sparsity::NofM { n, m } => Some(Groups { n, m, forced }),
    };
    let start = if forced || groups.is_none() { expected.mask.clone() } else { Array2::default((n, width)) };
    let start_mask: Vec<u8> =
        wide(start.mapv(|m| if m { 1.0 } else { 0.0 }).view(), n).iter().map(|&x| x as u8).collect();
    let block = BlockColumns { n, k, first, width };
    let mut left: Option<(Vec<u32>, Vec<u32>)> = None;
    for version in [PanelVersion::Any, PanelVersion::WarpPerRow] {
        let what = format!("panel, {version:?}, n = {n}, width = {width}, {sparsity}, forced = {forced}");
        let w = Buffer::from_host(device, &wide(w.view(), n)).map_err(failed)?;
        let mask = Buffer::from_host(device, &start_mask).map_err(failed)?;
        let s = Buffer::from_host(device, &vec![7.0f32; n * k]).map_err(failed)?;
        let layer = PanelLayer { w: &w, mask: &mask, s: &s };
        let Panel { e, before } = panel(device, block, &layer, &factors, groups, version).map_err(failed)?;
        let host = |buffer: &Buffer<f32, D>| buffer.to_host(device).map_err(failed);
        if groups.is_some() {
            same(&format!("{what}: score"), &bits(&host(&s)?), &bits(&wide(expected.score.view(), n)))?;
        }
        let expected_mask = wide(expected.mask.mapv(|m| if m { 1.0 } else { 0.0 }).view(), n);
        let found: Vec<f32> = mask.to_host(device).map_err(failed)?.into_iter().map(f32::from).collect();
        same(&format!("{what}: mask"), &found, &expected_mask)?;
        same(&format!("{what}: weight"), &bits(&host(&w)?), &bits(&wide(expected.weight.view(), n)))?;
        // E and W before pruning: by definition e = (before - q) / L_jj; and both versions agree.
        let (e, before) = (host(&e)?, host(&before)?);
        let by_definition: Vec<f32> = before
            .iter()
            .enumerate()
            .map(|(i, b)| (b - flat(&expected.weight)[i]) / prepared.lt[(i % width, i % width)])
            .collect();
        same(&format!("{what}: E"), &bits(&e), &bits(&by_definition))?;
        let now = (bits(&e), bits(&before));
        if let Some(left) = &left {
            same(&format!("{what}: W before pruning"), &now.1, &left.1)?;
        }
        left = Some(now);
    }
    Ok(())
}

// Statistics: exact on small integers, and on random numbers as close to f64 as the CPU in f32.

pub const INPUTS: [Inputs; 3] = [Inputs::Bf16, Inputs::F16, Inputs::F32];

/// Rounds to the type.
pub fn rounded(x: Array2<f32>, inputs: Inputs) -> Array2<f32> {
    match inputs {
        Inputs::Bf16 => x.mapv(|x| bf16::from_f32(x).to_f32()),
        Inputs::F16 => x.mapv(|x| f16::from_f32(x).to_f32()),
        Inputs::F32 => x,
    }
}

/// Dense and sparse input of small integers but for the first token, whose X^ or dX takes more than one split. All sums
/// are exact in f32.
fn exact_inputs(seed: u64, (tokens, k): (usize, usize), inputs: Inputs) -> (Array2<f32>, Array2<f32>) {
    let (mut dense, mut sparse) = (integers(seed, tokens, k), integers(seed + 2, tokens, k));
    let (first_dense, first_sparse) = match inputs {
        Inputs::Bf16 => (256.0, 0.5),
        Inputs::F16 => (0.125, 257.0),
        Inputs::F32 => (0.0, 2049.0),
    };
    dense.row_mut(0).fill(first_dense);
    sparse.row_mut(0).fill(first_sparse);
    assert_eq!(Inputs::of(&[dense.view(), sparse.view()]), inputs);
    (dense, sparse)
}

pub fn statistics_agree<D: Device>(device: &D, sizes: &[usize]) -> Outcome {
    for (i, &k) in sizes.iter().enumerate() {
        let tokens = sizes[(i + 4) % sizes.len()];
        for (inputs, version) in INPUTS.into_iter().flat_map(|inputs| {
            [StatisticsVersion::Plain, StatisticsVersion::TensorCores].map(|version| (inputs, version))
        }) {
            let mut expected = Statistics::with_residual(k);
            // So few tokens wait that sequences are cut.
            let mut found = DeviceStatistics::of_version(device, k, true, version, 64).map_err(failed)?;
            // Two sequences: halves of integers are exact too.
            for seed in [1, 2] {
                let (dense, sparse) = exact_inputs(seed, (tokens, k), inputs);
                expected.update(dense.view(), sparse.view());
                found.update(device, dense.view(), sparse.view()).map_err(failed)?;
            }
            let what = |what| format!("{what}, {inputs:?}, {version:?}, k = {k}, {tokens} tokens");
            let found = found.to_host(device).map_err(failed)?;
            same(&what("H"), &flat(&found.hessian), &flat(&expected.hessian))?;
            let (found, expected) = (found.residual.unwrap(), expected.residual.unwrap());
            same(&what("dX X^T"), &flat(&found.dxxt), &flat(&expected.dxxt))?;
            same(&what("diag(dX dX^T)"), &found.square_norms.to_vec(), &expected.square_norms.to_vec())?;
        }
    }
    Ok(())
}

/// Statistics of three sequences of random numbers, of which half are pruned: within twice the error of the CPU in f32,
/// plus 4 eps.
pub fn statistics_are_accurate<D: Device>(device: &D, shapes: &[(usize, usize)]) -> Outcome {
    for &(tokens, k) in shapes {
        for inputs in INPUTS {
            let version = StatisticsVersion::TensorCores;
            let mut found = DeviceStatistics::of_version(device, k, true, version, 64).map_err(failed)?;
            let (mut single, mut exact) =
                (Statistics::<f32>::with_residual(k), Statistics::<f64>::with_residual(k));
            for seed in [1, 2, 3] {
                let dense = rounded(random(seed, tokens, k), inputs);
                let mut sparse = rounded(&dense * 0.9 + &(random(seed + 5, tokens, k) * 0.1), inputs);
                prune_activations(sparse.view_mut(), 0.5);
                let wide = |x: &Array2<f32>| x.mapv(f64::from);
                exact.update(wide(&dense).view(), wide(&sparse).view());
                single.update(dense.view(), sparse.view());
                found.update(device, dense.view(), sparse.view()).map_err(failed)?;
            }
            let found = errors(&found.to_host(device).map_err(failed)?, &exact);
            for ((what, here), (_, cpu)) in found.into_iter().zip(errors(&single, &exact)) {
                let budget = 2.0 * cpu + 4.0 * f64::from(f32::EPSILON);
                if here > budget {
                    return Err(format!(
                        "{what}, {inputs:?}, k = {k}, {tokens} tokens: error {here:.2e} of {budget:.2e}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Errors of H, dX X^T and diag(dX dX^T).
fn errors(found: &Statistics<f32>, exact: &Statistics<f64>) -> [(&'static str, f64); 3] {
    let (residual, exact_residual) = (found.residual.as_ref().unwrap(), exact.residual.as_ref().unwrap());
    let (squares, exact_squares) = (residual.square_norms.clone(), exact_residual.square_norms.clone());
    [
        ("H", error(&found.hessian, &exact.hessian)),
        ("dX X^T", error(&residual.dxxt, &exact_residual.dxxt)),
        ("diag(dX dX^T)", error(&squares.insert_axis(Axis(0)), &exact_squares.insert_axis(Axis(0)))),
    ]
}

/// One large token, then many small ones of which a float would lose every single one: 2^24 + 1 is none.
pub fn small_sums_are_kept<D: Device>(device: &D) -> Outcome {
    let version = StatisticsVersion::TensorCores;
    let mut found = DeviceStatistics::of_version(device, 2, true, version, 32).map_err(failed)?;
    let mut exact = 0.0f64;
    for sequence in 0..64 {
        // As many tokens as are multiplied at once.
        let sparse = Array2::from_shape_fn((32, 2), |(t, _)| match (t, sequence) {
            (0, 0) => 4096.0,
            (0, _) => 1.0,
            _ => 0.0,
        });
        exact += f64::from(sparse[(0, 0)]).powi(2);
        found.update(device, Array2::zeros((32, 2)).view(), sparse.view()).map_err(failed)?;
    }
    let mean = (exact / 64.0) as f32;
    let found = found.to_host(device).map_err(failed)?;
    same("H", &flat(&found.hessian), &[mean; 4])?;
    let residual = found.residual.unwrap();
    same("dX X^T", &flat(&residual.dxxt), &[-mean; 4])?;
    same("diag(dX dX^T)", &residual.square_norms.to_vec(), &[mean; 2])
}

// A whole layer.

pub struct Case {
    pub n: usize,
    pub k: usize,
    pub config: PruneConfig,
    pub residual: bool,
    /// Channels that no token uses.
    pub dead: &'static [usize],
    /// What the activations are rounded to.
    pub inputs: Inputs,
}

/// Dense and sparse inputs of two sequences.
fn inputs(case: &Case) -> Vec<(Array2<f32>, Array2<f32>)> {
    let tokens = case.k + 20;
    let scale = Array1::from_shape_fn(case.k, |j| 10f32.powf(-((j * 7 % case.k) as f32) / case.k as f32));
    (1..3)
        .map(|seed| {
            let dense = rounded(random(seed, tokens, case.k) * &scale, case.inputs);
            let noise = random(seed + 100, tokens, case.k) * &scale * 0.1;
            let mut sparse = rounded(&dense + &noise, case.inputs);
            prune_activations(sparse.view_mut(), 0.5);
            for &column in case.dead {
                sparse.column_mut(column).fill(0.0);
            }
            (dense, sparse)
        })
        .collect()
}

fn gather<T: Scalar, B: Backend<T>>(backend: &B, case: &Case) -> B::Statistics {
    let mut statistics = backend.statistics(case.k, case.residual);
    for (dense, sparse) in inputs(case) {
        let wide = |x: Array2<f32>| x.mapv(|x| T::of(x.into()));
        backend.update(&mut statistics, wide(dense).view(), wide(sparse).view());
    }
    statistics
}

fn weight<T: Scalar>(case: &Case) -> Array2<T> {
    random(50, case.n, case.k).mapv(|w| T::of(w.into()))
}

pub fn run<T: Scalar, B: Backend<T>>(
    backend: &B,
    case: &Case,
    order: Option<&[usize]>,
    mask: Option<ArrayView2<bool>>,
) -> Result<Pruned<T>, BackendError> {
    let prepared = backend.prepare(&gather(backend, case), &case.config, order)?;
    backend.prune(&prepared, weight(case).view(), mask)
}

/// max |found - expected| / max |expected|
pub fn error<T: Scalar>(found: &Array2<T>, expected: &Array2<f64>) -> f64 {
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(largest > 0.0, "nothing to compare with");
    let difference = found.iter().zip(expected).map(|(a, b)| (a.widen() - b).abs());
    difference.fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) }) / largest
}

/// The backend prunes by its own decisions; f64 and f32 on the CPU then repeat them. The decisions must be those that its own
/// scores ask for, and scores and weights as close to f64 as those of the CPU in f32: within twice, plus 4 eps.
pub fn layer_agrees<T: Scalar, B: Inspect<T>>(backend: &B, case: &Case) -> Outcome {
    let statistics = gather(backend, case);
    let prepared = backend.prepare(&statistics, &case.config, None).map_err(failed)?;
    let found = backend.prune(&prepared, weight(case).view(), None).map_err(failed)?;
    let order = backend.trace(&statistics, &prepared).map_err(failed)?.order;
    let mask = Some(found.mask.view());
    let exact = run::<f64, _>(&Cpu, case, Some(&order), mask).map_err(failed)?;
    let single = run::<f32, _>(&Cpu, case, Some(&order), mask).map_err(failed)?;
    for (what, found, single, exact) in [
        ("score", &found.score, &single.score, &exact.score),
        ("weight", &found.weight, &single.weight, &exact.weight),
    ] {
        let (here, budget) =
            (error(found, exact), 2.0 * error(single, exact) + 4.0 * f64::from(f32::EPSILON));
        if here > budget {
            return Err(format!("{what}: error {here:.2e} of {budget:.2e}"));
        }
    }
    let in_order = Array2::from_shape_fn((case.n, case.k), |(i, j)| found.mask[(i, order[j])]);
    for first in (0..case.k).step_by(case.config.block_size) {
        let columns = s![.., first..(first + case.config.block_size).min(case.k)];
        let (score, mask) = (found.score.slice(columns), in_order.slice(columns));
        let expected = match case.config.weight_sparsity {
            Sparsity::Unstructured(p) => case.config.threshold.select(score, p),
            Sparsity::NofM { n, m } => {
                let mut mask = Array2::default(score.dim());
                for (mut mask, score) in
                    mask.exact_chunks_mut((1, m)).into_iter().zip(score.exact_chunks((1, m)))
                {
                    let lowest =
                        duogpt::reference::mask::lowest(&score.iter().copied().collect::<Vec<_>>(), n);
                    mask.row_mut(0).assign(&lowest);
                }
                mask
            }
        };
        same(&format!("mask of the block from column {first}"), &flat(&mask.to_owned()), &flat(&expected))?;
    }
    if found
        .weight
        .iter()
        .zip(&found.mask)
        .any(|(w, &gone)| gone && (*w != T::zero() || w.is_sign_negative()))
    {
        return Err("a pruned weight is not +0".into());
    }
    Ok(())
}

pub fn cases() -> Vec<Case> {
    let natural = PruneConfig::default();
    let sorted = PruneConfig { block_size: 32, ..PruneConfig::upstream(Sparsity::Unstructured(0.5)) };
    let case = |n, k, config| Case { n, k, config, residual: true, dead: &[], inputs: Inputs::F32 };
    vec![
        case(9, 129, natural),
        case(
            33,
            65,
            PruneConfig {
                block_size: 32,
                lazy_update: LazyUpdate::Compensated,
                threshold: Threshold::Exact,
                ..natural
            },
        ),
        Case { dead: &[0, 31, 32, 76], inputs: Inputs::Bf16, ..case(12, 77, sorted) },
        Case { inputs: Inputs::F16, ..case(7, 130, natural) },
        case(8, 96, PruneConfig { column_order: ColumnOrder::Interleaved { run: 8 }, ..sorted }),
        case(8, 70, PruneConfig { column_order: ColumnOrder::HessianDrift, hessian_scale: 2.0, ..sorted }),
        case(
            5,
            128,
            PruneConfig { weight_sparsity: Sparsity::NofM { n: 2, m: 4 }, block_size: 64, ..natural },
        ),
        case(5, 96, PruneConfig { weight_sparsity: Sparsity::NofM { n: 4, m: 8 }, ..sorted }),
        case(3, 300, PruneConfig { block_size: 256, ..natural }),
        case(3, 300, PruneConfig { block_size: 300, ..natural }),
        Case { residual: false, ..case(9, 100, PruneConfig::sparsegpt(Sparsity::Unstructured(0.7))) },
        case(2, 1, PruneConfig { threshold: Threshold::Exact, ..natural }),
        case(4, 33, PruneConfig { block_size: 1, ..natural }),
    ]
}
