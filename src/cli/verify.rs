//! `duogpt verify`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{CliError, Precision, with_precision};
use crate::linalg::Scalar;
use crate::verify::golden::{FileReport, GoldenError, Stage, verify_file};

/// Arguments of `duogpt verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Directory with golden files (safetensors), or one such file; subdirectories are searched.
    #[arg(long, value_name = "DIR", default_value = "fixtures/golden")]
    fixtures: PathBuf,
    /// Arithmetic to check.
    #[arg(long, value_enum, default_value_t = Precision::F64)]
    precision: Precision,
    /// Print the report as JSON to stdout, and nothing else.
    #[arg(long)]
    json: bool,
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
        if !args.json {
            print_report(&report);
        }
        reports.push(report);
    }
    let stages = || reports.iter().flat_map(|report| &report.stages);
    let failed = stages().filter(|stage| !stage.passed).count();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        let skipped: Vec<_> = reports.iter().filter(|report| report.skipped.is_some()).collect();
        println!("{} files, {} stages, {failed} failed", reports.len(), stages().count());
        for report in skipped {
            println!("skipped: {}: {}", report.path.display(), report.skipped.as_deref().unwrap_or_default());
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
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

fn print_report(report: &FileReport) {
    println!("{}", report.path.display());
    report.stages.iter().for_each(print_stage);
    if let Some(reason) = &report.skipped {
        println!("  skipped: {reason}");
    }
}

fn print_stage(stage: &Stage) {
    let verdict = if stage.passed { "PASS" } else { "FAIL" };
    let place = stage.place.as_ref().map_or(String::new(), |p| {
        let which = if stage.passed { "largest" } else { "first" };
        format!("  {which} at row {}, column {}: {:e} for {:e}", p.row, p.column, p.found, p.expected)
    });
    let note = stage.note.as_ref().map_or(String::new(), |note| format!("  ({note})"));
    println!(
        "  {verdict}  {:<34} error {:>8.2e} of {:>8.2e}{place}{note}",
        stage.name, stage.error, stage.budget
    );
}
