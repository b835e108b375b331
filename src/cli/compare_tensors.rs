//! `duogpt compare-tensors`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::CliError;
use crate::backend::{Backend, Cpu};
use crate::files::write_atomically;
use crate::tensors::TensorFile;
use crate::verify::compare::relative_tolerance;
use crate::verify::html::page;
use crate::verify::report::{CaseStatus, Report};
use crate::verify::tensors::compare_files;

/// Arguments of `duogpt compare-tensors`.
#[derive(Args)]
pub struct CompareTensorsArgs {
    /// The expected tensors: the tensors.safetensors of a test vector, or the output of a program that you trust.
    #[arg(value_name = "EXPECTED")]
    expected: PathBuf,
    /// The tensors to check, under the same names (safetensors).
    #[arg(value_name = "FOUND")]
    found: PathBuf,
    /// Allowed difference of a value, relative to the largest entry of its tensor. The default fits two programs that
    /// compute in double precision.
    #[arg(long, value_name = "X", default_value_t = 1e-9, value_parser = relative_tolerance)]
    tolerance: f64,
    #[command(flatten)]
    output: ReportOutput,
}

/// Where the report is written.
#[derive(Args)]
pub struct ReportOutput {
    /// Print the report as JSON to stdout, and nothing else.
    #[arg(long)]
    pub json: bool,
    /// Write the report with plots as one HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl ReportOutput {
    /// Prints and writes the report; exit code 1 if a stage differs. `printed`: the text has been printed already.
    pub(super) fn finish(&self, report: &Report, printed: bool) -> Result<ExitCode, CliError> {
        if let Some(path) = &self.html {
            write_atomically(path, page(report).as_bytes())?;
        }
        if self.json {
            print!("{}", report.to_json());
        } else {
            if !printed {
                report.files.iter().for_each(|file| print!("{}", file.to_text()));
            }
            let (files, stages) = (report.files.len(), report.stages().count());
            let rejected = match report.negatives.len() {
                0 => String::new(),
                negatives => format!(", {negatives} wrong results to reject"),
            };
            let [undecided, missing] =
                [(CaseStatus::Undecided, "undecided"), (CaseStatus::Missing, "missing")].map(
                    |(status, word)| match report.cases(status) {
                        0 => String::new(),
                        count => format!(", {count} {word}"),
                    },
                );
            let failed = report.failed();
            println!("{files} files, {stages} stages{rejected}, {failed} failed{undecided}{missing}");
            if let Some(path) = &self.html {
                println!("with plots: {}", path.display());
            }
        }
        Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// Compares two files tensor by tensor. Exit code 1 when they differ.
///
/// # Errors
/// If a file cannot be read, or the two have no tensor in common.
pub fn run(args: &CompareTensorsArgs) -> Result<ExitCode, CliError> {
    let (expected, found) = (TensorFile::open(&args.expected)?, TensorFile::open(&args.found)?);
    let report =
        Report::new(vec![compare_files(&expected, &found, args.tolerance)?], Backend::<f64>::describe(&Cpu));
    args.output.finish(&report, false)
}
