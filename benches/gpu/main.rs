//! Every kernel on a CUDA device, over the layers of the LLaMA models: checked, then timed by device events with a cold
//! cache, as a percentage of rates measured in the same run, beside its baselines. `cargo bench --bench gpu -- panel` times
//! those whose name contains `panel`. Without a device it says so and ends.
//!
//! `DUOGPT_GPU_SIZES=small`: one small layer, for a device made of the CPU (tests/fake_cuda).
//! `DUOGPT_BENCH_RESULTS`: a file for the results as JSON; the table goes beside it, as `.md`.
//! `DUOGPT_ENVIRONMENT`: a text about the machine, to go into it.
//! `DUOGPT_PEER_RESULTS`: what `benches/peer/peer.py` wrote in the same session, for the ratios.

mod machine;
mod suite;

use std::path::Path;
use std::process::ExitCode;

use criterion::Criterion;
use duogpt::calibrate::report::Environment;
use duogpt::cuda::{Device, Gpu};
use duogpt::files::write_atomically;
use serde_json::{Value, json};
use suite::{Pace, Peer, Shape, Suite};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let gpu = match Gpu::new(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("gpu benches: not run: {error}");
            let required = std::env::var_os("DUOGPT_REQUIRE_GPU").is_some();
            return Ok(if required { ExitCode::from(2) } else { ExitCode::SUCCESS });
        }
    };
    println!("{}", gpu.describe());
    // As criterion has it: `cargo bench` says --bench, and what does not only tries whether all runs.
    let timed = std::env::args().any(|argument| argument == "--bench");
    let filters = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let peer = std::env::var_os("DUOGPT_PEER_RESULTS").map(|path| read_peer(path.as_ref())).transpose()?;
    let small = std::env::var_os("DUOGPT_GPU_SIZES").is_some_and(|sizes| sizes == "small");
    let rates =
        if small { machine::rates(&gpu, 1 << 20, 128)? } else { machine::rates(&gpu, 1 << 30, 8192)? };
    println!(
        "measured: copy {:.0} GB/s, bf16 product {:.1} TFLOP/s, f32 product {:.1} TFLOP/s",
        1e-9 * rates.copy_bytes_per_second,
        1e-12 * rates.bf16_operations_per_second,
        1e-12 * rates.f32_operations_per_second
    );
    let criterion = Criterion::default().without_plots().nresamples(1000).configure_from_args();
    let pace = if timed { Pace::Timed(Box::new(criterion), rates) } else { Pace::Once };
    let times = peer.as_ref().map(|(times, _)| times.clone()).unwrap_or_default();
    let (layers, tokens) =
        if small { (vec![Shape { name: "small", n: 48, k: 160 }], 20) } else { (layers(), 2048) };
    let mut suite = Suite::new(&gpu, layers, tokens, pace).only(filters).against(times);
    suite::all(&mut suite);

    println!("\n{}", suite.table());
    if let Some(path) = std::env::var_os("DUOGPT_BENCH_RESULTS") {
        let path = Path::new(&path);
        let results = json!({
            "environment": Environment::here(gpu.describe()),
            "machine": std::env::var_os("DUOGPT_ENVIRONMENT").and_then(|path| std::fs::read_to_string(path).ok()),
            "rates": rates,
            "peer": peer.map(|(_, environment)| environment),
            "lines": suite.lines,
            "failed": suite.failed,
        });
        let text = serde_json::to_string_pretty(&results).expect("plain data") + "\n";
        write_atomically(path, text.as_bytes()).map_err(|error| error.to_string())?;
        let table = path.with_extension("md");
        write_atomically(&table, suite.table().as_bytes()).map_err(|error| error.to_string())?;
        println!("written: {}, {}", path.display(), table.display());
    }
    if suite.failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{} cases failed:\n  {}", suite.failed.len(), suite.failed.join("\n  "));
    Ok(ExitCode::FAILURE)
}

/// Times by case, and where they were taken.
fn read_peer(path: &Path) -> Result<(Peer, Value), String> {
    let wrong = |detail: String| format!("{}: {detail}; benches/peer/peer.py writes it", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let results: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let times: Peer = serde_json::from_value(results["seconds"].clone())
        .map_err(|error| wrong(format!("`seconds`: {error}")))?;
    Ok((times, results["environment"].clone()))
}

/// The layers of the models that the paper prunes; those that share a shape once, under the first model's name.
fn layers() -> Vec<Shape> {
    let layer = |name, n, k| Shape { name, n, k };
    vec![
        layer("llama-2-7b-qkvo", 4096, 4096),
        layer("llama-2-7b-gate-up", 11008, 4096),
        layer("llama-2-7b-down", 4096, 11008),
        layer("llama-3-8b-kv", 1024, 4096),
        layer("llama-3-8b-gate-up", 14336, 4096),
        layer("llama-3-8b-down", 4096, 14336),
        layer("llama-2-13b-qkvo", 5120, 5120),
        layer("llama-2-13b-gate-up", 13824, 5120),
        layer("llama-2-13b-down", 5120, 13824),
        layer("llama-2-70b-kv", 1024, 8192),
        layer("llama-2-70b-qo", 8192, 8192),
        layer("llama-2-70b-gate-up", 28672, 8192),
        layer("llama-2-70b-down", 8192, 28672),
    ]
}
