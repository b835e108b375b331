//! One square layer of k channels pruned to 50 % in f32, B = 128, natural order: everything behind the statistics
//! (`layer`), and the factorisation alone (`factor`).

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duogpt::reference::activation::prune_activations;
use duogpt::reference::factor::{damp, factor};
use duogpt::reference::{PruneConfig, Statistics, prune};

#[path = "common/data.rs"]
mod data;
#[path = "common/operations.rs"]
mod operations;

fn layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("prune");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for k in [256, 512, 1024, 2048] {
        let dense = data::activations(8192, k);
        let mut sparse = dense.clone();
        prune_activations(sparse.view_mut(), 0.5);
        let mut statistics = Statistics::with_residual(k);
        statistics.update(dense.view(), sparse.view());
        let weight = data::activations(k, k);
        let config = PruneConfig::default();
        group.throughput(Throughput::Elements(operations::prepare(k) + operations::update(k, k)));
        group.bench_function(BenchmarkId::new("layer, elem = FLOP", k), |b| {
            b.iter(|| prune::prune(black_box(weight.view()), &statistics, &config).unwrap());
        });
        let mut hessian = statistics.hessian.clone();
        damp(&mut hessian, config.damping);
        group.throughput(Throughput::Elements(operations::factor(k)));
        group.bench_function(BenchmarkId::new("factor, elem = FLOP", k), |b| {
            b.iter_batched(|| hessian.clone(), |hessian| factor(hessian).unwrap(), BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, layers);
criterion_main!(benches);
