//! Whole layers, and the errors that pruning ends with, on every backend.

mod backends;
#[allow(dead_code, reason = "checks of single kernels are for tests/cuda.rs and tests/gpu.rs")]
mod checks;
mod emulator;

use backends::on_every_backend;
use checks::{Case, cases, integers, layer_agrees, random};
use duogpt::linalg::Scalar;
use duogpt::reference::{FactorError, PruneConfig, PruneError, Replay, Sparsity};
use duogpt::verify::inspect::Inspect;
use libtest_mimic::Arguments;
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
