//! `duogpt verify`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::compare_tensors::ReportOutput;
use super::{BackendName, CliError, IN_F32_ONLY, Precision, with_precision};
use crate::backend::{Backend, Cpu};
use crate::cuda::Cuda;
use crate::verify::golden::{verify_file, verify_file_on};
use crate::verify::report::Report;

/// Arguments of `duogpt verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Directory with golden files (safetensors), or one such file; subdirectories are searched.
    #[arg(long, value_name = "DIR", default_value = "fixtures/golden")]
    fixtures: PathBuf,
    /// What to check. CUDA may err twice as much as the CPU does in f32; what it does not do is listed as skipped.
    #[arg(long, value_enum, default_value_t = BackendName::Cpu)]
    backend: BackendName,
    /// Arithmetic to check (by default f64 on the CPU; CUDA has f32 only).
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    #[command(flatten)]
    output: ReportOutput,
}

/// Checks every golden file, a line per stage. Exit code 1 when a stage differs.
///
/// # Errors
/// When no golden file can be found or read.
pub fn run(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let mut files = Vec::new();
    collect(&args.fixtures, &mut files)?;
    if files.is_empty() {
        return Err(format!(
            "{}: no safetensors files; give a directory with golden files with --fixtures",
            args.fixtures.display()
        )
        .into());
    }
    let gpu = args.backend.device(args.precision.filter(|p| *p == Precision::F64).map(|_| IN_F32_ONLY))?;
    let cuda = gpu.map(|device| Cuda { device });
    let mut reports = Vec::new();
    for file in &files {
        let report = match &cuda {
            Some(cuda) => verify_file_on::<f32, _>(file, cuda),
            None => with_precision!(args.precision.unwrap_or(Precision::F64), verify_file(file)),
        }?;
        if !args.output.json {
            print!("{}", report.to_text());
        }
        reports.push(report);
    }
    let backend = match &cuda {
        Some(cuda) => cuda.describe(),
        None => Backend::<f64>::describe(&Cpu),
    };
    args.output.finish(&Report::new(reports, backend), true)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), CliError> {
    if path.is_file() {
        files.push(path.into());
        return Ok(());
    }
    let unreadable =
        |error| format!("{}: {error}; give a directory with golden files with --fixtures", path.display());
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(unreadable)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            collect(&entry, files)?;
        } else if entry.extension().is_some_and(|e| e == "safetensors") {
            files.push(entry);
        }
    }
    Ok(())
}
