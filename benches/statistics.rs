//! One sequence's update of H, dX X^T and diag(dX dX^T): 8192 tokens of k channels, f32.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use duogpt::reference::Statistics;
use duogpt::reference::activation::prune_activations;

#[path = "common/data.rs"]
mod data;
#[path = "common/operations.rs"]
mod operations;

fn statistics(c: &mut Criterion) {
    let mut group = c.benchmark_group("statistics");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for k in [256, 512, 1024, 2048] {
        let dense = data::activations(8192, k);
        let mut sparse = dense.clone();
        prune_activations(sparse.view_mut(), 0.5);
        group.throughput(Throughput::Elements(operations::statistics(8192, k)));
        group.bench_with_input(BenchmarkId::new("8192_tokens, elem = FLOP", k), &k, |b, &k| {
            b.iter(|| {
                let mut statistics = Statistics::with_residual(k);
                statistics.update(black_box(dense.view()), black_box(sparse.view()));
                statistics
            });
        });
    }
    group.finish();
}

criterion_group!(benches, statistics);
criterion_main!(benches);
