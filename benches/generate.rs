//! One decoded token and the bytes that it reads, dense and sparse in weights, activations and both, of the small model after
//! magnitude pruning; and of the model directory that DUOGPT_BENCH_MODEL names, whose weights are taken as they are:
//!
//! ```text
//! cargo run --release --example make_random_checkpoint -- --output sparse-1.1b --weight-sparsity 0.5
//! DUOGPT_BENCH_MODEL=sparse-1.1b cargo bench --bench generate
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use duogpt::backend::Cpu;
use duogpt::calibrate::PruneJob;
use duogpt::calibrate::streams::Activations;
use duogpt::generate::{Decoder, Fast, FormatKind};
use duogpt::model::Checkpoint;
use duogpt::progress::Silent;
use duogpt::reference::{Method, Sparsity};

/// Tokens before the first that is timed, and tokens that are timed before the sequence begins anew.
const PROMPT: usize = 16;
const DECODED: usize = 48;

fn tokens(c: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
    let dense = Checkpoint::open(&source).unwrap();
    let method = Method::Magnitude(Sparsity::Unstructured(0.5));
    PruneJob::new(&dense, method, &small).run::<f32, _>(&Cpu, &Silent).unwrap();
    model(c, "tiny-llama", &small);
    if let Some(path) = std::env::var_os("DUOGPT_BENCH_MODEL") {
        let path = Path::new(&path);
        model(c, &path.file_name().unwrap_or_default().to_string_lossy(), path);
    }
}

fn model(c: &mut Criterion, name: &str, directory: &Path) {
    let checkpoint = Checkpoint::open(directory).unwrap();
    let tokens: Vec<u32> =
        (0..PROMPT + DECODED).map(|i| (i * 7919 % checkpoint.config.vocab_size) as u32).collect();
    let mut group = c.benchmark_group(format!("generate/{name}"));
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for (name, format, sparsity) in [
        ("dense", FormatKind::Dense, 0.0),
        ("activation_sparse", FormatKind::Dense, 0.5),
        ("weight_sparse_bitmap", FormatKind::Bitmap, 0.0),
        ("weight_sparse_index", FormatKind::Index, 0.0),
        ("dual_sparse_bitmap", FormatKind::Bitmap, 0.5),
        ("dual_sparse_index", FormatKind::Index, 0.5),
    ] {
        let rule = Activations { sparsity, ..Activations::default() };
        let decoder = Decoder::load(&checkpoint, Fast, Some(format), rule, tokens.len(), &Silent).unwrap();
        // The mean over the tokens that are timed.
        let mut sequence = decoder.sequence();
        decoder.feed(&mut sequence, &tokens[..PROMPT]).unwrap();
        for &token in &tokens[PROMPT..] {
            decoder.feed(&mut sequence, &[token]).unwrap();
        }
        let read = sequence.traffic.weight_bytes + sequence.traffic.cache_bytes;
        group.throughput(Throughput::BytesDecimal((read / DECODED) as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|count| {
                let mut time = Duration::ZERO;
                let mut left = count as usize;
                while left > 0 {
                    let mut sequence = decoder.sequence();
                    decoder.feed(&mut sequence, &tokens[..PROMPT]).unwrap();
                    let decoded = &tokens[PROMPT..][..left.min(DECODED)];
                    let start = Instant::now();
                    for &token in decoded {
                        decoder.feed(&mut sequence, &[token]).unwrap();
                    }
                    time += start.elapsed();
                    left -= decoded.len();
                }
                time
            });
        });
    }
    group.finish();
}

criterion_group!(benches, tokens);
criterion_main!(benches);
