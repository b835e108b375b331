//! The small model end to end: DuoGPT, 32 x 256 tokens, f32, from the dense checkpoint to the pruned one.

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use duogpt::backend::Cpu;
use duogpt::calibrate::windows::Windows;
use duogpt::calibrate::{PruneJob, Silent};
use duogpt::llama::Checkpoint;
use duogpt::llama::sparse_bitmask::StorageFormat;
use duogpt::reference::{Method, PruneConfig};

fn end_to_end(c: &mut Criterion) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let tokens = model.join("tokens-sampled-calibration.safetensors");
    let windows = Windows::from_tokens(&tokens, &checkpoint.config, None, Some(32)).unwrap();
    let mut group = c.benchmark_group("calibrate");
    group.sample_size(10).measurement_time(Duration::from_secs(60));
    group.bench_function("tiny_llama_duogpt_32x256", |b| {
        b.iter(|| {
            let directory = tempfile::tempdir().unwrap();
            let job = PruneJob {
                checkpoint: &checkpoint,
                windows: Some(&windows),
                method: Method::DuoGpt(PruneConfig::default()),
                activation_sparsity: 0.5,
                activation_dtype: None,
                grids: None,
                dtype: None,
                format: StorageFormat::Dense,
                output: &directory.path().join("pruned"),
                damping_retry: true,
                report_gap: None,
                resume: false,
            };
            job.run::<f32, _>(&Cpu, &Silent).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, end_to_end);
criterion_main!(benches);
