//! Whole layers, the errors that pruning ends with, and decoders, on every backend.

mod backends;
#[allow(dead_code, reason = "checks of single kernels are for tests/cuda.rs and tests/gpu.rs")]
mod checks;
mod emulator;
mod fixtures;

use backends::{device_trial, on_device, on_emulator, on_every_backend};
use checks::{Case, cases, integers, layer_agrees, random};
use duogpt::backend::Cpu;
use duogpt::calibrate::PruneJob;
use duogpt::calibrate::streams::Activations;
use duogpt::cuda::{Cuda, Device, DeviceProducts};
use duogpt::generate::decoder::Traffic;
use duogpt::generate::{Decoder, Fast, FormatKind, Products, Reference};
use duogpt::linalg::Scalar;
use duogpt::llama::Checkpoint;
use duogpt::progress::Silent;
use duogpt::reference::{FactorError, Method, PruneConfig, PruneError, Replay, Sparsity};
use duogpt::verify::inspect::Inspect;
use libtest_mimic::{Arguments, Trial};
use ndarray::Array2;

fn main() {
    let mut trials = Vec::new();
    for (i, case) in cases().into_iter().enumerate() {
        let name = format!("layer_{i}_{}x{}", case.n, case.k);
        trials.extend(on_every_backend!(name, case, layer));
    }
    trials.extend(on_every_backend!("a_hessian_without_factor", (), hessian_without_factor));
    trials.extend(on_every_backend!("a_hessian_with_nan", (), hessian_with_nan));
    trials.extend(on_every_backend!("wrong_shapes", (), wrong_shapes));
    trials.push(Trial::test("decoder::emulated", || on_emulator("decoder", decoder)));
    trials.push(device_trial("decoder", || on_device(decoder)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn layer<T: Scalar, B: Inspect<T>>(backend: &B, case: &Case) -> Result<(), String> {
    layer_agrees(backend, case).map_err(|difference| format!("{:?}: {difference}", case.config))
}

fn wide<T: Scalar>(x: &Array2<f32>) -> Array2<T> {
    x.mapv(|x| T::of(x.into()))
}

/// The error that preparing from this input (tokens x k) ends with.
fn refused<T: Scalar, B: Inspect<T>>(
    backend: &B,
    x: &Array2<f32>,
    config: &PruneConfig,
) -> Result<PruneError, String> {
    let mut statistics = backend.statistics(x.ncols(), true);
    let x = wide(x);
    backend.update(&mut statistics, x.view(), x.view());
    backend.prepare(&statistics, config, Replay::default()).err().ok_or("it was prepared".into())
}

fn expect(found: &PruneError, expected: &PruneError) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("`{found}`, expected `{expected}`")) }
}

/// Channels that no token shares, but for two equal ones, of which a pivot is zero in any arithmetic: 4 - 2 * 2.
fn hessian_without_factor<T: Scalar, B: Inspect<T>>(backend: &B, (): &()) -> Result<(), String> {
    let config = PruneConfig { damping: 0.0, ..PruneConfig::upstream(Sparsity::Unstructured(0.5)) };
    let mut x = Array2::<f32>::eye(9) * 2.0;
    x[(4, 7)] = 2.0;
    x[(7, 7)] = 0.0;
    let found = refused(backend, &x, &config)?;
    // The factorisation goes backwards: of two equal columns the earlier fails.
    let expected = FactorError::NotPositiveDefinite { column: 4, pivot: 4.0 };
    expect(&found, &expected.into())
}

fn hessian_with_nan<T: Scalar, B: Inspect<T>>(backend: &B, (): &()) -> Result<(), String> {
    let mut x = integers(3, 30, 9);
    x[(3, 2)] = f32::NAN;
    let found = refused(backend, &x, &PruneConfig::default())?;
    expect(&found, &FactorError::NotFinite { what: "Hessian", row: 0, column: 2 }.into())
}

fn wrong_shapes<T: Scalar, B: Inspect<T>>(backend: &B, (): &()) -> Result<(), String> {
    let (mut statistics, config) = (backend.statistics(4, false), PruneConfig::default());
    let x = wide(&random(1, 20, 4));
    backend.update(&mut statistics, x.view(), x.view());
    let prepared = backend.prepare(&statistics, &config, Replay::default()).map_err(|e| e.to_string())?;
    let prune = |weight: Array2<T>, replay| {
        backend.prune(&prepared, weight.view(), &config, replay).err().ok_or("it was pruned".to_string())
    };
    let found = prune(wide(&random(2, 3, 5)), Replay::default())?;
    expect(&found, &PruneError::Shape { what: "weight", expected: (3, 4), found: (3, 5) })?;
    let mask = Array2::default((2, 4));
    let found = prune(wide(&random(2, 3, 4)), Replay { order: None, mask: Some(mask.view()) })?;
    expect(&found, &PruneError::Shape { what: "mask", expected: (3, 4), found: (2, 4) })?;
    let mut weight = random(2, 3, 4);
    weight[(1, 2)] = f32::INFINITY;
    let found = prune(wide(&weight), Replay::default())?;
    expect(&found, &PruneError::NotFinite { what: "weight", row: 1, column: 2 })?;
    let order = [0, 1, 2, 2];
    match backend.prepare(&statistics, &config, Replay { order: Some(&order), mask: None }) {
        Err(PruneError::Config(_)) => Ok(()),
        _ => Err("an order that is no permutation was taken".into()),
    }
}

/// A decoder whose products a device computes errs no more than twice what the one on the CPU does, both held to the one in f64; and
/// it reads the same bytes.
fn decoder<D: Device + 'static>(cuda: &Cuda<D>) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (dense, pruned) = (fixtures::path("nano-llama"), directory.path().join("pruned"));
    let dense = Checkpoint::open(&dense).map_err(|error| error.to_string())?;
    let method = Method::Magnitude(Sparsity::Unstructured(0.5));
    PruneJob::new(&dense, method, &pruned).run::<f32, _>(&Cpu, &Silent).map_err(|error| error.to_string())?;
    let model = Checkpoint::open(&pruned).map_err(|error| error.to_string())?;
    for (sparsity, format) in [(0.0, FormatKind::Dense), (0.5, FormatKind::Index), (0.5, FormatKind::Bitmap)]
    {
        let rule = Activations { sparsity, ..Activations::default() };
        let (exact, _) = decoded::<f64, _>(&model, Reference, format, rule)?;
        let (on_cpu, expected) = decoded(&model, Fast, format, rule)?;
        let products = DeviceProducts::new(&cuda.device).map_err(|error| error.to_string())?;
        let (found, traffic) = decoded(&model, products, format, rule)?;
        let error = |logits: &[f32]| {
            logits.iter().zip(&exact).map(|(x, exact)| (f64::from(*x) - exact).abs()).fold(0.0, f64::max)
        };
        let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let bound = 2.0 * error(&on_cpu) + 4.0 * f64::from(f32::EPSILON) * largest;
        if found.iter().any(|x| x.is_nan()) || error(&found) > bound {
            return Err(format!("{format:?}: the logits err by {:e}, allowed {bound:e}", error(&found)));
        }
        let counts = |traffic: &Traffic| (traffic.tokens, traffic.weight_bytes, traffic.kept.clone());
        if counts(&traffic) != counts(&expected) {
            return Err(format!("{format:?}: read {traffic:?}, expected {expected:?}"));
        }
    }
    Ok(())
}

/// The logits behind a prompt of two tokens and behind two more, and what these read.
fn decoded<T: Scalar, P: Products<T>>(
    model: &Checkpoint,
    products: P,
    format: FormatKind,
    rule: Activations,
) -> Result<(Vec<T>, Traffic), String> {
    let decoder =
        Decoder::load(model, products, Some(format), rule, 4, &Silent).map_err(|e| e.to_string())?;
    let mut sequence = decoder.sequence();
    let mut logits = Vec::new();
    for tokens in [&[17, 230][..], &[5], &[301]] {
        logits.extend(decoder.feed(&mut sequence, tokens).map_err(|error| error.to_string())?);
    }
    Ok((logits, sequence.traffic))
}
