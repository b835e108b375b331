//! `duogpt verify`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::compare_tensors::ReportOutput;
use super::{BackendName, CliError, IN_F32_ONLY, Precision, with_precision};
use crate::backend::{Backend, Cpu};
use crate::cuda::Cuda;
use crate::linalg::Scalar;
use crate::verify::compare::relative_tolerance;
use crate::verify::report::{CaseStatus, FileReport, NegativeReport, Report};
use crate::verify::vectors::{
    Case, NegativeCase, VectorError, judge_negative, judge_results, load_all, missing_results, read_results,
    unreadable_results, verify_case,
};

/// Arguments of `duogpt verify`.
#[derive(Args)]
pub struct VerifyArgs {
    /// Folder of test vectors, or of one case.
    #[arg(long, value_name = "DIR", alias = "fixtures", default_value = "fixtures/vectors/v1")]
    vectors: PathBuf,
    /// Judge a port by its result files `DIR/<algorithm>/<case>.safetensors`, instead of running the reference.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["backend", "precision"])]
    results: Option<PathBuf>,
    /// With --results, the tolerance relative to the largest entry of a row, instead of the case's own; such as 1e-4 for
    /// a port in single precision.
    #[arg(long, value_name = "X", requires = "results", value_parser = relative_tolerance)]
    rtol: Option<f64>,
    /// With --results, do not count cases without a result as failures.
    #[arg(long, requires = "results")]
    allow_missing: bool,
    /// Only cases whose `<algorithm>/<case>` contains this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Backend to check. CUDA's error in a stage may be twice the error of the CPU in f32; stages that CUDA does not support
    /// are listed as skipped.
    #[arg(long, value_enum, default_value_t = BackendName::Cpu)]
    backend: BackendName,
    /// Arithmetic to check (by default f64 on the CPU; CUDA has f32 only).
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    #[command(flatten)]
    output: ReportOutput,
}

/// Checks every case and every result that must be rejected. Exit code 1 when something differs, is missing without
/// --allow-missing, or no case passes.
///
/// # Errors
/// When the folder holds no case, or one that cannot be used.
pub fn run(args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let (mut cases, mut negatives) = load_all(&args.vectors)?;
    if cases.is_empty() {
        let folder = args.vectors.display();
        return Err(format!(
            "{folder}: no cases (folders with a case.json); give a folder of them with --vectors"
        )
        .into());
    }
    let negative_reports = match &args.results {
        Some(_) => Vec::new(),
        None => {
            negatives.retain(|negative| negative.document.of.contains(&args.only));
            judge_negatives(&cases, &negatives)?
        }
    };
    cases.retain(|case| case.name().contains(&args.only));
    if cases.is_empty() {
        return Err(format!("{}: no case whose name contains `{}`", args.vectors.display(), args.only).into());
    }

    let (files, backend) = match &args.results {
        Some(results) => (judge_port(args, &cases, results)?, format!("results in {}", results.display())),
        None => verify(args, &cases)?,
    };
    let mut report = Report::new(files, backend);
    report.negatives = negative_reports;
    if !args.output.json {
        report.negatives.iter().for_each(|negative| print!("{}", negative.to_text()));
    }
    let code = args.output.finish(&report, true)?;
    Ok(if report.cases(CaseStatus::Pass) == 0 { ExitCode::from(1) } else { code })
}

/// The reference, or a backend, on every case.
fn verify(args: &VerifyArgs, cases: &[Case]) -> Result<(Vec<FileReport>, String), CliError> {
    let gpu = args.backend.device(args.precision.filter(|p| *p == Precision::F64).map(|_| IN_F32_ONLY))?;
    let cuda = gpu.map(|device| Cuda { device });
    let mut reports = Vec::new();
    for case in cases {
        let report = match &cuda {
            Some(cuda) => verify_case::<f32, _>(case, cuda),
            None => with_precision!(args.precision.unwrap_or(Precision::F64), on_cpu(case)),
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
    Ok((reports, backend))
}

fn on_cpu<T: Scalar>(case: &Case) -> Result<FileReport, VectorError> {
    verify_case::<T, _>(case, &Cpu)
}

/// What a port left for each case.
fn judge_port(args: &VerifyArgs, cases: &[Case], results: &Path) -> Result<Vec<FileReport>, CliError> {
    if !results.is_dir() {
        return Err(format!("{}: no such folder of results", results.display()).into());
    }
    let mut reports = Vec::new();
    for case in cases {
        let path = results.join(format!("{}.safetensors", case.name()));
        let report = match read_results(&path) {
            _ if !path.exists() && args.allow_missing => missing_results(case, &path)?,
            _ if !path.exists() => {
                unreadable_results(case, &path, format!("there is no {}", path.display()))?
            }
            Ok(tensors) => judge_results(case, &path, &tensors, args.rtol)?,
            Err(error) => unreadable_results(case, &path, error.to_string())?,
        };
        if !args.output.json {
            print!("{}", report.to_text());
        }
        reports.push(report);
    }
    Ok(reports)
}

fn judge_negatives(cases: &[Case], negatives: &[NegativeCase]) -> Result<Vec<NegativeReport>, CliError> {
    let judged = negatives.iter().map(|negative| {
        let of = &negative.document.of;
        let case = cases.iter().find(|case| case.name() == *of);
        let case = case
            .ok_or_else(|| format!("{}: no case `{of}` to be a wrong result of", negative.folder.display()));
        Ok(judge_negative(case?, negative))
    });
    judged.collect()
}
