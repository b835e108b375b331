//! y = W (x * mask) on the CPU, 50 % of W and of x zero: every format and type beside our own dense product of the same type,
//! and OpenBLAS's sgemv on the same cores. The weights are cold: copies of more than three last-level caches in turn.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duogpt::reference::spmspv::{Dense, Format, Selected, TileBitmap, TileIndex};
use duogpt::spmspv::{Multiply, Vector};
use half::{bf16, f16};
use ndarray::linalg::general_mat_vec_mul;
use ndarray::{Array2, ArrayView1, ArrayViewMut1, Axis};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Three times the largest last-level cache that we measure on.
const COLD: usize = 3 * (32 << 20);

/// So many copies of a weight are as cold as memory.
fn copies<F: Clone>(weight: F, bytes: usize) -> Vec<F> {
    vec![weight; COLD.div_ceil(bytes) + 1]
}

fn measure<F: Multiply + Clone>(
    group: &mut BenchmarkGroup<WallTime>,
    name: String,
    weight: F,
    x: &Selected<f32>,
) {
    let (n, k) = weight.shape();
    let bytes = weight.stored_bytes();
    let weights = copies(weight, bytes);
    group.throughput(Throughput::BytesDecimal(weights[0].bytes_read(x.indices()) as u64));
    let (mut y, mut turn) = (vec![0.0; n], 0);
    group.bench_function(BenchmarkId::new(name, format!("{n}x{k}")), |b| {
        b.iter(|| {
            turn = (turn + 1) % weights.len();
            weights[turn].multiply(black_box(x), &mut y);
        });
    });
}

fn formats<V: Vector>(
    c: &mut Criterion,
    (n, k): (usize, usize),
    dense: &Array2<f32>,
    x: [&Selected<f32>; 2],
) {
    let mut group = c.benchmark_group(format!("spmspv/{}", V::FLOAT.torch_name()));
    group.sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
    let weight = dense.mapv(V::of);
    assert_eq!(weight.dim(), (n, k));
    let [all, half] = x;
    measure(&mut group, "dense, all of x".into(), Dense::from_dense(weight.view()), all);
    measure(&mut group, "dense".into(), Dense::from_dense(weight.view()), half);
    measure(&mut group, "index".into(), TileIndex::from_dense(weight.view()), half);
    measure(&mut group, "bitmap, all of x".into(), TileBitmap::from_dense(weight.view()), all);
    measure(&mut group, "bitmap".into(), TileBitmap::from_dense(weight.view()), half);
    group.finish();
}

/// Rows split over the threads; BLAS itself on one.
fn sgemv(c: &mut Criterion, (n, k): (usize, usize), dense: &Array2<f32>, x: &[f32]) {
    let mut group = c.benchmark_group("spmspv/OpenBLAS");
    group.sample_size(20).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(300));
    let _ = duogpt::linalg::matmul(dense.slice(ndarray::s![..2, ..2]), dense.slice(ndarray::s![..2, ..2]));
    let weights = copies(dense.clone(), 4 * n * k);
    let (mut y, mut turn) = (vec![0.0f32; n], 0);
    let rows = n.div_ceil(rayon::current_num_threads());
    group.throughput(Throughput::BytesDecimal((4 * n * k) as u64));
    group.bench_function(BenchmarkId::new("sgemv", format!("{n}x{k}")), |b| {
        b.iter(|| {
            turn = (turn + 1) % weights.len();
            let of_rows = weights[turn].axis_chunks_iter(Axis(0), rows).into_par_iter();
            of_rows.zip(y.par_chunks_mut(rows)).for_each(|(weight, y)| {
                let (x, mut y) = (ArrayView1::from(black_box(x)), ArrayViewMut1::from(y));
                general_mat_vec_mul(1.0, &weight, &x, 0.0, &mut y);
            });
        });
    });
    group.finish();
}

fn products(c: &mut Criterion) {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    for (n, k) in [(4096, 4096), (11008, 4096)] {
        let dense = Array2::from_shape_simple_fn((n, k), || match random.random_bool(0.5) {
            true => random.random_range(-1.0f32..1.0),
            false => 0.0,
        });
        let x: Vec<f32> = (0..k).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let (all, half) = (Selected::all(&x), Selected::top_k(&x, 0.5));
        sgemv(c, (n, k), &dense, &x);
        formats::<bf16>(c, (n, k), &dense, [&all, &half]);
        formats::<f16>(c, (n, k), &dense, [&all, &half]);
        formats::<f32>(c, (n, k), &dense, [&all, &half]);
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
