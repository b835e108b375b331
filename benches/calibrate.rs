//! The small model end to end: DuoGPT, 32 x 256 tokens, f32, from the dense checkpoint to the pruned one.

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use duogpt::backend::Cpu;
use duogpt::calibrate::PruneJob;
use duogpt::calibrate::windows::Windows;
use duogpt::model::Checkpoint;
use duogpt::progress::Silent;
use duogpt::reference::{Method, PruneConfig};

#[path = "common/operations.rs"]
mod operations;

fn end_to_end(c: &mut Criterion) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let tokens = model.join("tokens-sampled-calibration.safetensors");
    let windows = Windows::from_tokens(&tokens, &checkpoint.config, None, Some(32)).unwrap();
    let mut group = c.benchmark_group("calibrate");
    group.sample_size(10).measurement_time(Duration::from_secs(60));
    let operations = operations::calibrate(&checkpoint.config, windows.tokens.len());
    group.throughput(Throughput::Elements(operations));
    group.bench_function("tiny_llama_duogpt_32x256, elem = FLOP", |b| {
        b.iter(|| {
            let directory = tempfile::tempdir().unwrap();
            let output = directory.path().join("pruned");
            let job = PruneJob {
                windows: Some(&windows),
                activation_sparsity: 0.5,
                ..PruneJob::new(&checkpoint, Method::DuoGpt(PruneConfig::default()), &output)
            };
            job.run::<f32, _>(&Cpu, &Silent).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, end_to_end);
criterion_main!(benches);
