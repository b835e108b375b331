//! `duogpt verify`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::compare_tensors::ReportOutput;
use super::{CliError, Precision, with_precision};
use crate::linalg::Scalar;
use crate::verify::golden::{GoldenError, verify_file};
use crate::verify::report::{FileReport, Report};

/// Arguments of `duogpt verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Directory with golden files (safetensors), or one such file; subdirectories are searched.
    #[arg(long, value_name = "DIR", default_value = "fixtures/golden")]
    fixtures: PathBuf,
    /// Arithmetic to check.
    #[arg(long, value_enum, default_value_t = Precision::F64)]
    precision: Precision,
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
    let mut reports = Vec::new();
    for file in &files {
        let report = with_precision!(args.precision, check(file))?;
        if !args.output.json {
            print!("{}", report.to_text());
        }
        reports.push(report);
    }
    args.output.finish(&Report::new(reports), true)
}

fn check<T: Scalar>(file: &Path) -> Result<FileReport, GoldenError> {
    verify_file::<T>(file)
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
