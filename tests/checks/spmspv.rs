//! The checks of the decoding product: selection, and every format's kernel behind it.

use std::fmt::Debug;

use duogpt::cuda::device::{Buffer, Device};
use duogpt::cuda::select::{RmsNorm, Selected};
use duogpt::cuda::spmspv::{Bitmap, Dense, Element, Index, Scratch, Weight};
use duogpt::generate::Keep;
use duogpt::reference::spmspv::{self as reference, Format};
use ndarray::{Array1, Array2};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Outcome, bits, failed, integers, random, same};

/// Sparsities of weights and activations.
pub const SPARSITIES: [f64; 5] = [0.0, 0.3, 0.5, 0.7, 0.9];

/// Large enough to be seen in 8 bits.
const EPS: f32 = 0.125;

/// Unit roundoff, and half the smallest number: what rounding to T can lose of a number, relative or absolute.
fn rounding<T: Element>() -> (f64, f64) {
    match T::SUFFIX {
        "bf16" => (2f64.powi(-8), 0.0), // as small as f32's
        "f16" => (2f64.powi(-11), 2f64.powi(-25)),
        _ => (2f64.powi(-24), 0.0),
    }
}

fn widen<T: Element>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

fn narrow<T: Element>(x: impl IntoIterator<Item = f32>) -> Vec<T> {
    x.into_iter().map(T::of).collect()
}

/// What the reference selects of `x`, against what the device did.
fn selection_agrees<T: Element, D: Device>(
    device: &D,
    what: &str,
    found: &Selected<T, D>,
    x: &[f32],
    keep: Keep,
) -> Outcome {
    let expected = keep.select(x);
    let count = found.count.to_host(device).map_err(failed)?;
    same(&format!("{what}: count"), &count, &[expected.len() as u32])?;
    let columns = found.columns.to_host(device).map_err(failed)?;
    same(&format!("{what}: columns"), &columns[..expected.len()], expected.indices())?;
    let values = found.x.to_host(device).map_err(failed)?;
    same(&format!("{what}: x"), &bits(&values[..expected.len()]), &bits(expected.values()))
}

/// Exact, but for the norm of numbers whose squares do not sum exactly: that one is within its rounding.
pub fn selections_agree<T: Element + PartialEq + Debug, D: Device>(device: &D, sizes: &[usize]) -> Outcome {
    for (draw, &k) in sizes.iter().enumerate() {
        let seed = draw as u64;
        let ints = integers(seed, 1, k);
        let selected = Selected::<T, D>::new(device, k).map_err(failed)?;
        for (exact, x) in [(true, ints.clone()), (false, random(seed, 1, k))] {
            let x: Vec<T> = narrow(x);
            let weight: Vec<T> = narrow(integers(seed + 9, 1, k).iter().map(|g| g + 0.5));
            let on_device = Buffer::from_host(device, &x).map_err(failed)?;
            let g = Buffer::from_host(device, &weight).map_err(failed)?;
            let wide = widen(&x);
            let kept_by = SPARSITIES.map(Keep::Largest).into_iter();
            let above = [0.0, 0.3, 1.0, 1e9].map(Keep::Above);
            for keep in kept_by.chain(above) {
                let what = format!("select {}, k = {k}, {keep:?}", T::SUFFIX);
                selected.select(device, &on_device, None, keep).map_err(failed)?;
                selection_agrees(device, &what, &selected, &wide, keep)?;

                let norm = RmsNorm { weight: &g, eps: EPS };
                selected.select(device, &on_device, Some(norm), keep).map_err(failed)?;
                let normed = selected.normed.to_host(device).map_err(failed)?;
                selection_agrees(device, &format!("{what}, norm"), &selected, &widen(&normed), keep)?;
                norm_agrees(&what, &normed, &x, &weight, exact)?;
            }
        }
    }
    Ok(())
}

fn norm_agrees<T: Element + PartialEq + Debug>(
    what: &str,
    found: &[T],
    x: &[T],
    g: &[T],
    exact: bool,
) -> Outcome {
    let k = x.len() as f64;
    if exact {
        // The sum of squares has no rounding error: every further step rounds once, here as there.
        let sum: f32 = x.iter().map(|x| x.to_f32() * x.to_f32()).sum();
        let scale = 1.0 / (sum / x.len() as f32 + EPS).sqrt();
        let scaled = x.iter().map(|x| T::of(x.to_f32() * scale).to_f32());
        let expected: Vec<T> = narrow(scaled.zip(g).map(|(x, g)| x * g.to_f32()));
        return same(&format!("{what}: norm"), found, &expected);
    }
    let square = |x: &T| x.to_f64() * x.to_f64();
    let scale = 1.0 / (x.iter().map(square).sum::<f64>() / k + f64::from(EPS)).sqrt();
    let (relative, absolute) = rounding::<T>();
    // Half of the k roundings of the sum (the root halves them), and those of square, mean, eps, root and quotient.
    let budget = (0.5 * k + 8.0) * 2f64.powi(-24) + 2.1 * relative;
    for (j, found) in found.iter().enumerate() {
        let expected = x[j].to_f64() * scale * g[j].to_f64();
        let allowed = budget * expected.abs() + absolute * (1.0 + g[j].to_f64().abs());
        let error = (found.to_f64() - expected).abs();
        if error.is_nan() || error > allowed {
            return Err(format!(
                "{what}: norm: first difference at {j}: {found:?}, expected {expected} +- {allowed:.2e}"
            ));
        }
    }
    Ok(())
}

/// A NaN goes by top-k and stays above a threshold; infinities are numbers; zeros of both signs are never selected.
pub fn selections_of_what_is_no_number<T: Element, D: Device>(device: &D) -> Outcome {
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    for x in [
        [nan, 1.0, -3.0, 2.0, 0.5],
        [nan, nan, nan, 2.0, -nan],
        [infinity, 1.0, -0.0, 0.0, -infinity],
        [-0.0; 5],
    ] {
        let x: Vec<T> = narrow(x);
        let on_device = Buffer::from_host(device, &x).map_err(failed)?;
        let selected = Selected::<T, D>::new(device, 5).map_err(failed)?;
        for keep in [Keep::Largest(0.5), Keep::ALL, Keep::Above(1.0)] {
            selected.select(device, &on_device, None, keep).map_err(failed)?;
            selection_agrees(device, &format!("{x:?}, {keep:?}"), &selected, &widen(&x), keep)?;
        }
    }
    Ok(())
}

/// A weight and activations to multiply, and how sparse.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub n: usize,
    pub k: usize,
    pub weight_sparsity: f64,
    pub sparsity: f64,
}

/// Every size as n and as k, in turn with every sparsity; and every pair of sparsities.
pub fn product_cases(sizes: &[usize]) -> Vec<Case> {
    let at = |i: usize| sizes[i % sizes.len()];
    let case = |n, k, i: usize, j: usize| Case {
        n,
        k,
        weight_sparsity: SPARSITIES[i % 5],
        sparsity: SPARSITIES[j % 5],
    };
    let shapes =
        (0..sizes.len()).flat_map(|i| [case(at(i), at(i + 3), i, i / 2), case(at(i + 5), at(i), 2, 2)]);
    let pairs = (0..25).map(|i| case(at(sizes.len() / 2), at(sizes.len() - 2), i, i / 5));
    shapes.chain(pairs).collect()
}

/// About `weight_sparsity` of the weights are zero, and every seventh column is.
fn sparse_weight<T: Element>(dense: Array2<f32>, weight_sparsity: f64, seed: u64) -> Array2<T> {
    let mut draws = ChaCha8Rng::seed_from_u64(seed);
    let mut weight = dense.mapv(|w| T::of(if draws.random_bool(weight_sparsity) { 0.0 } else { w }));
    if weight_sparsity > 0.0 {
        weight.columns_mut().into_iter().skip(3).step_by(7).for_each(|mut column| column.fill(T::ZERO));
    }
    weight
}

pub fn products_agree<T: Element + Debug, D: Device>(device: &D, cases: &[Case]) -> Outcome {
    let scratch = Scratch::new(device).map_err(failed)?;
    for (i, &case) in cases.iter().enumerate() {
        let Case { n, k, weight_sparsity, sparsity } = case;
        let seed = i as u64;
        for (exact, weight, x) in [
            (true, integers(seed, n, k), integers(seed + 1, 1, k)),
            (false, random(seed, n, k), random(seed + 1, 1, k)),
        ] {
            let weight = sparse_weight::<T>(weight, weight_sparsity, seed);
            let x: Vec<T> = narrow(x);
            let keep = Keep::Largest(sparsity);
            product_agrees(device, &scratch, &weight, &x, keep, exact)
                .map_err(|error| format!("{} {case:?}: {error}", T::SUFFIX))?;
        }
    }
    Ok(())
}

/// No column is active; no weight is there; one of each.
pub fn empty_products_agree<T: Element + Debug, D: Device>(device: &D) -> Outcome {
    let scratch = Scratch::new(device).map_err(failed)?;
    let (n, k) = (300, 40);
    let dense = integers(1, n, k).mapv(T::of);
    let none = Array2::from_elem((n, k), T::ZERO);
    let mut one = none.clone();
    one[(299, 39)] = T::of(3.0);
    let mut last = vec![T::ZERO; k];
    last[39] = T::of(-2.0);
    let all: Vec<T> = narrow(integers(2, 1, k));
    for (weight, x) in [(&dense, &vec![T::ZERO; k]), (&none, &all), (&dense, &last), (&one, &last)] {
        product_agrees(device, &scratch, weight, x, Keep::Above(0.0), true)?;
    }
    // No input at all, and no output.
    product_agrees(device, &scratch, &Array2::from_elem((3, 0), T::ZERO), &[], Keep::Largest(0.5), true)?;
    product_agrees(device, &scratch, &Array2::from_elem((0, 3), T::ZERO), &all[..3], Keep::Largest(0.5), true)
}

/// Selection and product, one behind the other on the device, by every format, against the definition in f64: equal where sums are
/// exact; else within gamma_m sum |W_ij x_j|, the bound of any order of m fused multiply-adds. And the same bits when the blocks
/// come in another order.
fn product_agrees<T: Element + Debug, D: Device>(
    device: &D,
    scratch: &Scratch<D>,
    weight: &Array2<T>,
    x: &[T],
    keep: Keep,
    exact: bool,
) -> Outcome {
    let selected = Selected::<T, D>::new(device, x.len()).map_err(failed)?;
    let on_device = Buffer::from_host(device, x).map_err(failed)?;
    selected.select(device, &on_device, None, keep).map_err(failed)?;

    let dense = reference::Dense::from_dense(weight.view());
    let list = keep.select(&widen(x));
    let expected = dense.product(&list);
    let sizes = weight.mapv(|w| w.to_f64().abs());
    let m = list.len() as f64 * 2f64.powi(-24);
    let gamma = if exact { 0.0 } else { m / (1.0 - m) };
    let allowed = list.iter().fold(Array1::zeros(weight.nrows()), |sum: Array1<f64>, (j, x)| {
        sum + sizes.column(j).mapv(|w| gamma * w * f64::from(x.abs()))
    });
    let close = |what: &str, found: &[f32]| {
        let error = |i: usize| (f64::from(found[i]) - expected[i]).abs();
        match (0..found.len()).find(|&i| error(i).is_nan() || error(i) > allowed[i]) {
            Some(i) => Err(format!(
                "{what}: first difference at {i}: {}, expected {} +- {:.2e}",
                found[i], expected[i], allowed[i]
            )),
            None => Ok(()),
        }
    };

    let y = Buffer::from_host(device, &vec![f32::NAN; weight.nrows()]).map_err(failed)?;
    let result = || y.to_host(device).map_err(failed);
    close("skip", &product::<T, Dense<T, D>, D>(device, scratch, &dense, &selected, &y)?)?;
    let index = reference::TileIndex::from_dense(weight.view());
    close("index", &product::<T, Index<T, D>, D>(device, scratch, &index, &selected, &y)?)?;
    let bitmap = reference::TileBitmap::from_dense(weight.view());
    close("bitmap", &product::<T, Bitmap<T, D>, D>(device, scratch, &bitmap, &selected, &y)?)?;

    let mut whole = vec![0.0f32; x.len()];
    list.iter().for_each(|(j, x)| whole[j] = x);
    let whole = Buffer::from_host(device, &whole).map_err(failed)?;
    let weight = Dense::<T, D>::new(device, &dense).map_err(failed)?;
    weight.gemv(device, &whole, scratch, &y).map_err(failed)?;
    close("gemv", &result()?)
}

fn product<T: Element, W: Weight<T, D>, D: Device>(
    device: &D,
    scratch: &Scratch<D>,
    weight: &W::Host,
    selected: &Selected<T, D>,
    y: &Buffer<f32, D>,
) -> Result<Vec<f32>, String> {
    let weight = W::new(device, weight).map_err(failed)?;
    let once = || {
        weight.product(device, selected, scratch, y).map_err(failed)?;
        y.to_host(device).map_err(failed)
    };
    let (y, again) = (once()?, once()?);
    same(&format!("{}, again", W::KERNEL), &bits(&again), &bits(&y))?;
    Ok(y)
}
