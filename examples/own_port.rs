//! A port of one stage, held against a test vector: the pattern for checking your own.
//!
//! The statistics are computed here, in plain loops, in place of the reference's; everything after them is the
//! reference's. What comes out is written under the names of the vectors, for `duogpt compare-tensors`:
//!
//! ```text
//! cargo run --release --example own_port -- port.safetensors
//! cargo run --release -- compare-tensors fixtures/vectors/v1/duogpt/basic/tensors.safetensors port.safetensors
//! ```
//!
//! With `--sign-error` the activation difference is taken the wrong way round. `docs/compare-tensors.md` shows how
//! the comparison leads to it.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use duogpt::reference::prune::prepare;
use duogpt::reference::score::residual_projection;
use duogpt::reference::{Alpha, PruneConfig, ResidualStatistics, Sparsity, Statistics};
use duogpt::tensors::{Dtype, FloatType, TensorFile, TensorWriter};
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, Ix2};

/// H, dX X^T and diag(dX dX^T), means over the sequences; activations are sequences x tokens x k.
fn statistics(dense: &Array3<f64>, sparse: &Array3<f64>, sign_error: bool) -> Statistics<f64> {
    let (sequences, tokens, k) = dense.dim();
    let mut hessian = Array2::zeros((k, k));
    let mut residual = ResidualStatistics { dxxt: Array2::zeros((k, k)), square_norms: Array1::zeros(k) };
    let mean = 1.0 / sequences as f64;
    for s in 0..sequences {
        for t in 0..tokens {
            let difference = |i: usize| {
                let dx = dense[(s, t, i)] - sparse[(s, t, i)];
                if sign_error { -dx } else { dx }
            };
            for i in 0..k {
                for j in 0..k {
                    hessian[(i, j)] += mean * sparse[(s, t, i)] * sparse[(s, t, j)];
                    residual.dxxt[(i, j)] += mean * difference(i) * sparse[(s, t, j)];
                }
                residual.square_norms[i] += mean * difference(i) * difference(i);
            }
        }
    }
    Statistics { sequences, hessian, residual: Some(residual) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let sign_error = arguments.iter().any(|argument| argument == "--sign-error");
    let output = arguments.iter().find(|argument| !argument.starts_with("--"));
    let output = PathBuf::from(output.ok_or("usage: own_port [--sign-error] OUTPUT.safetensors")?);

    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors/v1/duogpt/basic");
    let tensors = TensorFile::open(&case.join("tensors.safetensors"))?;
    let weight = tensors.matrix::<f64>("input.weight")?;
    // Rows are tokens; here all sequences have as many.
    let calls = tensors.integers::<Ix2>("input.calls")?;
    let shape = (calls.nrows(), calls[(0, 1)] as usize, weight.ncols());
    let activations = |name| -> Result<Array3<f64>, Box<dyn Error>> {
        Ok(tensors.matrix(name)?.into_shape_with_order(shape)?)
    };
    let (dense, sparse) = (activations("input.dense_activations")?, activations("input.sparse_activations")?);

    // The settings, as case.json has them.
    let config = PruneConfig {
        block_size: 32,
        damping: 0.01,
        alpha: Alpha::both(0.25),
        column_order: duogpt::reference::ColumnOrder::Natural,
        ..PruneConfig::upstream(Sparsity::Unstructured(0.5))
    };
    let statistics = statistics(&dense, &sparse, sign_error);
    let prepared = prepare(&statistics, &config, None)?;
    let pruned = prepared.prune(weight.view(), None)?;

    let (Some(residual), Some(correction)) = (&statistics.residual, &prepared.correction) else {
        return Err("DuoGPT gathers the residual".into());
    };
    let column = |v: &Array1<f64>| v.clone().insert_axis(Axis(1));
    let coefficients = &correction.coefficients;
    let values: [(&str, Array2<f64>); 10] = [
        ("stats.hessian", statistics.hessian.clone()),
        ("stats.dxxt", residual.dxxt.clone()),
        ("stats.dxdxt", column(&residual.square_norms)),
        ("trace.hinv_chol", prepared.lt.clone()),
        ("trace.q_matrix", residual_projection(residual.dxxt.view(), prepared.lt.t())),
        ("trace.coef_a", column(&coefficients.a)),
        ("trace.coef_b", column(&coefficients.b)),
        ("trace.coef_2c", column(&(2.0 * &coefficients.c))),
        ("trace.score", pruned.score),
        ("output.weight", pruned.weight),
    ];
    let shape = |a: &Array2<f64>| match a.ncols() {
        1 => vec![a.nrows()],
        _ => a.shape().to_vec(),
    };
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = (values.iter())
        .map(|(name, a)| (*name, Dtype::F64, shape(a), FloatType::F64.encode(ArrayView2::from(a))))
        .collect();
    let mask = pruned.mask.iter().map(|&pruned| u8::from(pruned)).collect();
    tensors.push(("trace.mask", Dtype::U8, pruned.mask.shape().to_vec(), mask));
    let headers = tensors.iter().map(|(name, dtype, shape, _)| (*name, *dtype, shape.as_slice()));
    let writer = TensorWriter::create(&output, headers, &HashMap::new())?;
    for (name, _, _, bytes) in &tensors {
        writer.write(name, bytes)?;
    }
    writer.sync()?;
    Ok(())
}
