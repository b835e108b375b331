//! A case, run and compared: by the reference, by another backend, or by somebody's port.

use std::path::Path;

use ndarray::{Array2, Axis, s};

use super::budgets::{Budgets, recorded_order};
use super::case::{Case, CaseError, NegativeCase, TensorRole};
use super::compute::{Computed, Followed, VectorError, compute};
use super::cuts::Cuts;
use super::judge::{Verdict, judge};
use super::stages::{CALL, FILE, REFUSED};
use super::tensor::{CaseTensor, CaseTensors, Contents};
use crate::backend::{BackendError, Cpu};
use crate::linalg::Scalar;
use crate::reference::order::inverse;
use crate::tensor_error::TensorError;
use crate::tensors::{FloatType, TensorFile};
use crate::verify::causes::usual_cause;
use crate::verify::compare::{Processing, compare, compare_decisions};
use crate::verify::inspect::Inspect;
use crate::verify::kind::Kind;
use crate::verify::report::{CaseFacts, CaseStatus, Failure, FileReport, NegativeReport, Outcome, Stage};

/// Checks the reference in f64: every stage of the case, to its tolerance, or an outcome that it accepts.
///
/// # Errors
/// [`VectorError`]. A stage that differs is not an error: it is in the report.
pub fn verify_exactly(case: &Case) -> Result<FileReport, VectorError> {
    let computed = compute::<f64, _>(case, &Cpu, &Followed::default())?;
    Ok(judged(case, judge(case, &computed.tensors, None), &case.folder.join(TENSORS), None)?)
}

/// Holds what a port computed to a case.
///
/// # Errors
/// When the case's own tensors cannot be read again.
pub fn judge_results(
    case: &Case,
    path: &Path,
    results: &CaseTensors,
    tolerance: Option<f64>,
) -> Result<FileReport, TensorError> {
    let verdict = judge(case, results, tolerance);
    let undecided = verdict.failure.is_none() && verdict.trivial;
    let mut report = judged(case, verdict, path, Some(&case.folder.join(TENSORS)))?;
    if undecided {
        report.set_status(CaseStatus::Undecided);
    }
    Ok(report)
}

/// The report of a port that left no result where none is required.
///
/// # Errors
/// When the case's own tensors cannot be read again.
pub fn missing_results(case: &Case, path: &Path) -> Result<FileReport, TensorError> {
    let mut report = judged(case, Verdict::default(), path, Some(&case.folder.join(TENSORS)))?;
    report.set_status(CaseStatus::Missing);
    Ok(report)
}

/// The report of a port whose results cannot be read, or are not there.
///
/// # Errors
/// When the case's own tensors cannot be read again.
pub fn unreadable_results(case: &Case, path: &Path, why: String) -> Result<FileReport, TensorError> {
    without_results(case, path, FILE, why)
}

/// The report of a port that was called on the case and gave no arrays. `function` is what it is called.
///
/// # Errors
/// When the case's own tensors cannot be read again.
pub fn failed_call(case: &Case, function: &Path, why: String) -> Result<FileReport, TensorError> {
    without_results(case, function, CALL, why)
}

fn without_results(case: &Case, path: &Path, stage: &str, why: String) -> Result<FileReport, TensorError> {
    let failure = Failure { stage: stage.into(), tensor: String::new(), place: String::new(), why };
    let verdict = Verdict { failure: Some(failure), ..Verdict::default() };
    judged(case, verdict, path, Some(&case.folder.join(TENSORS)))
}

const TENSORS: &str = "tensors.safetensors";

fn judged(
    case: &Case,
    verdict: Verdict,
    path: &Path,
    expected: Option<&Path>,
) -> Result<FileReport, TensorError> {
    let not_shown = verdict.not_shown.iter().map(|name| format!("`{name}` is not shown")).collect();
    let mut facts = facts(case, verdict.failure);
    facts.alternative = verdict.alternative;
    Ok(FileReport {
        path: path.to_path_buf(),
        sha256: TensorFile::open(expected.unwrap_or(path)).map(|file| file.sha256())?,
        expected: expected.map(Path::to_path_buf),
        kind: Some(case.document.algorithm),
        stages: verdict.stages,
        not_compared: not_shown,
        case: Some(facts),
    })
}

fn facts(case: &Case, failure: Option<Failure>) -> CaseFacts {
    CaseFacts {
        name: case.name(),
        status: if failure.is_some() { CaseStatus::Fail } else { CaseStatus::Pass },
        flags: case.document.flags.clone(),
        cause: failure.as_ref().map(|failure| usual_cause(&failure.stage).to_string()),
        failure,
        alternative: None,
    }
}

/// Judges a result that must be rejected.
pub fn judge_negative(case: &Case, negative: &NegativeCase) -> NegativeReport {
    let document = &negative.document;
    let failure = judge(case, &negative.tensors, None).failure;
    let mut output = negative.tensors.clone();
    output.retain(|name, _| {
        case.document.tensors.get(name).is_some_and(|entry| entry.role == TensorRole::Output)
    });
    NegativeReport {
        name: format!("negative/{}", document.id),
        defect: document.defect.clone(),
        expected: document.first_bad_stage.clone(),
        rejected_at_its_stage: failure.as_ref().is_some_and(|failure| {
            failure.stage == document.first_bad_stage && failure.place == document.first_bad_place
        }),
        rejected_by_its_output: judge(case, &output, None).failure.is_some(),
        failure,
    }
}

/// Checks a backend in the arithmetic `T`. The reference in f64 is checked as [`verify_exactly`] does; all else is held to
/// the rounding error of each stage, under the expected decisions. A case that the algorithm refuses has failed.
///
/// # Errors
/// As [`verify_exactly`], and what the device could not do.
pub fn verify_case<T: Scalar, B: Inspect<T>>(case: &Case, backend: &B) -> Result<FileReport, VectorError> {
    match compute_and_compare::<T, B>(case, backend) {
        Err(VectorError::Refused { source: BackendError::Prune(reason), .. }) => {
            let failure = Failure {
                stage: REFUSED.into(),
                tensor: String::new(),
                place: String::new(),
                why: reason.to_string(),
            };
            let verdict = Verdict { failure: Some(failure), ..Verdict::default() };
            Ok(judged(case, verdict, &case.folder.join(TENSORS), None)?)
        }
        other => other,
    }
}

fn compute_and_compare<T: Scalar, B: Inspect<T>>(
    case: &Case,
    backend: &B,
) -> Result<FileReport, VectorError> {
    let precision = FloatType::of_scalar::<T>();
    if B::REFERENCE && precision == FloatType::F64 {
        return verify_exactly(case);
    }
    let mut report = FileReport {
        path: case.folder.join(TENSORS),
        sha256: TensorFile::open(&case.folder.join(TENSORS))?.sha256(),
        expected: None,
        kind: Some(case.document.algorithm),
        stages: Vec::new(),
        not_compared: Vec::new(),
        case: None,
    };
    let kind = case.document.algorithm;
    let mut refused = None;
    if let Some(reason) = B::unsupported(kind) {
        report.not_compared.push(reason.into());
    } else if kind == Kind::Teal {
        report.not_compared.push("a value at the edge of a bin may round into the next: f64 only".into());
    } else {
        let single = if B::REFERENCE { Vec::new() } else { verify_case::<T, _>(case, &Cpu)?.stages };
        let rounded = Rounded::new::<T, B>(case, backend, single)?;
        rounded.stages(&mut report);
        refused = rounded.refused();
    }
    let failed = report.stages.iter().find(|stage| !stage.passed).map(|stage| {
        let (name, tensor) = stage.name.split_once(": ").unwrap_or((&stage.name, ""));
        let why = stage.summary();
        Failure { stage: name.into(), tensor: tensor.into(), place: String::new(), why }
    });
    report.case = Some(facts(case, failed.or(refused)));
    Ok(report)
}

/// A computation in f32 beside the expected one, in processing order.
struct Rounded<'a> {
    case: &'a Case,
    precision: FloatType,
    computed: Computed,
    budgets: Budgets,
    order: Vec<usize>,
    /// The scores on the path of the expected mask: recorded, or the reference's in f64.
    score: Option<CaseTensor>,
    /// The stages of the reference in the same arithmetic; none where the backend is the reference.
    single: Vec<Stage>,
}

impl<'a> Rounded<'a> {
    fn new<T: Scalar, B: Inspect<T>>(
        case: &'a Case,
        backend: &B,
        single: Vec<Stage>,
    ) -> Result<Self, VectorError> {
        let followed = expected_decisions(case);
        let computed = compute::<T, B>(case, backend, &followed)?;
        let order = match &followed.order {
            Some(order) => order.clone(),
            None => (0..case.document.shape.k).collect(),
        };
        let mut score = case.tensors.get("trace.score").cloned();
        if score.is_none() && case.document.settings.block_size.is_some() && followed.mask.is_some() {
            score = compute::<f64, _>(case, &Cpu, &followed)?.tensors.remove("trace.score");
        }
        let budgets = Budgets::new::<T>(case, &order)?;
        Ok(Rounded { case, precision: FloatType::of_scalar::<T>(), computed, budgets, order, score, single })
    }

    /// That the backend finds no factor of a Hessian that has one.
    fn refused(&self) -> Option<Failure> {
        let named = |tensors: &CaseTensors| tensors.contains_key("output.error");
        let wrong =
            named(&self.computed.tensors) && !named(&self.case.tensors) && self.budgets.factored.is_some();
        let why = self.computed.stopped.clone().filter(|_| wrong)?;
        Some(Failure { stage: REFUSED.into(), tensor: String::new(), place: String::new(), why })
    }

    fn stages(&self, report: &mut FileReport) {
        let before_the_factor = ["statistics", "dead", "permutation", "damping"];
        let has_loop = self.case.document.settings.block_size.is_some();
        for stage in &self.case.document.stages {
            if has_loop
                && self.budgets.factored.is_none()
                && !before_the_factor.contains(&stage.name.as_str())
            {
                let reason = "H is singular: whether it has a factor in f32 is a matter of rounding";
                report.not_compared.push(reason.into());
                return;
            }
            if stage.name == "grid"
                && let Some(row) = self.tied_zero()
            {
                let reason =
                    format!("the zero of row {row}'s grid lies between two codes: f32 may take the other");
                report.not_compared.push(reason);
                return;
            }
            if stage.name == "mask" && !self.case.tensors.contains_key("trace.score") && has_loop {
                // The original left no scores.
                let found = self.computed.tensors.get("trace.score").zip(self.score.as_ref());
                report.stages.extend(found.map(|(found, expected)| {
                    self.values("score: f64 reference".into(), "trace.score", found, expected)
                }));
            }
            for name in &stage.tensors {
                let title = format!("{}: {name}", stage.name);
                let compared = self.case.tensors.get(name).zip(self.computed.tensors.get(name));
                match compared {
                    Some((expected, found)) if expected.shape == found.shape => {
                        let stage = self.stage(title, name, expected, found, &report.stages);
                        report.stages.push(stage);
                    }
                    Some((expected, found)) => {
                        let shapes = (expected.shape.clone(), found.shape.clone());
                        report.stages.push(Stage::shapes(title, shapes.0, shapes.1));
                    }
                    None => report.not_compared.push(match &self.computed.stopped {
                        Some(reason) => format!("`{name}`: {reason}"),
                        None => format!("`{name}` cannot be read from this backend"),
                    }),
                }
            }
        }
    }

    fn stage(
        &self,
        title: String,
        name: &str,
        expected: &CaseTensor,
        found: &CaseTensor,
        before: &[Stage],
    ) -> Stage {
        let natural: Vec<usize> = (0..expected.values.ncols()).collect();
        let decided = self.computed.decided.get(name).unwrap_or(found);
        let compared = |budget: Option<f64>, margin: &dyn Fn(usize, usize) -> Option<f64>| {
            let (decided, expected) = (decided.values.view(), expected.values.view());
            compare_decisions(decided, expected, &natural, budget, margin)
        };
        let factored = self.budgets.factored.unwrap_or(0.0);
        let outcome = match name {
            "trace.perm" => {
                let key = self.keys();
                let most = key.iter().fold(f64::MIN_POSITIVE, |most, key| most.max(*key));
                let budget = self.margin(self.budgets.key(), before, &["stats.hessian", "stats.dxxt"]);
                let at = |tensor: &CaseTensor, position: usize| key[tensor.values[(0, position)] as usize];
                compared(Some(budget), &|_, p| Some((at(decided, p) - at(expected, p)).abs() / most))
            }
            "trace.mask" => {
                let cuts = match &self.score {
                    Some(score) => Cuts::through(self.case, score.values.clone()),
                    None => Cuts::recorded(self.case),
                };
                let scored = if self.score.is_some() { "trace.score" } else { "trace.metric" };
                let bound = self.budgets.of(scored, self.case.document.algorithm);
                let budget = self.margin(bound, before, &["trace.score", "f64 reference", "trace.metric"]);
                compared(Some(budget), &|row, position| Some(cuts.as_ref()?.margin(row, position)))
            }
            "trace.codes" => {
                let margin = |row, position| self.distance_from_the_middle(row, position, decided, expected);
                compared(Some(factored), &margin)
            }
            _ if !matches!(expected.contents, Contents::Reals(_)) => compared(None, &|_, _| None),
            _ => return self.values(title, name, found, expected),
        };
        Stage::decisions(title, outcome)
    }

    fn values(&self, title: String, name: &str, found: &CaseTensor, expected: &CaseTensor) -> Stage {
        let bound = self.budgets.of(name, self.case.document.algorithm);
        let budget = match self.single.iter().find(|stage| stage.name == title) {
            Some(Stage { outcome: Outcome::Values(single), .. }) => {
                2.0 * single.error + 8.0 * self.precision.unit_roundoff() // eps = 2 u
            }
            _ => bound,
        };
        let natural: Vec<usize> = (0..expected.values.ncols()).collect();
        let columns = match name {
            "output.weight" => Processing::Columns(&self.order),
            "trace.score" | "trace.err" => Processing::Columns(&natural),
            _ => Processing::Rows,
        };
        let outcome = compare(found.values.view(), expected.values.view(), self.precision, budget, columns);
        Stage::values(title, outcome)
    }

    /// How far from each other two compared numbers may be whose order differs: the reference by `bound`, any other
    /// backend by twice the error of the stages that say how far off they are.
    fn margin(&self, bound: f64, measured: &[Stage], names: &[&str]) -> f64 {
        if self.single.is_empty() {
            return bound;
        }
        let counts = |stage: &&Stage| names.iter().any(|name| stage.name.ends_with(name));
        let error = |stage: &Stage| match &stage.outcome {
            Outcome::Values(values) => values.error,
            _ => 0.0,
        };
        2.0 * measured.iter().filter(counts).map(error).sum::<f64>()
    }

    /// The first row whose grid has another zero than expected only because -lo / scale lies in the middle of two codes.
    fn tied_zero(&self) -> Option<usize> {
        let tensor = |name: &str| self.case.tensors.get(name).map(|tensor| &tensor.values);
        let (zero, scale, weight) = (tensor("trace.zero")?, tensor("trace.scale")?, tensor("input.weight")?);
        let found = &self.computed.tensors.get("trace.zero")?.values;
        let width = self.case.document.settings.group_size.unwrap_or(weight.ncols()).max(1);
        let differs = zero.indexed_iter().find(|(at, zero)| found.get(*at) != Some(zero));
        let ((row, position), &expected) = differs?;
        let group = self.order[position] / width * width;
        let columns = group..(group + width).min(weight.ncols());
        let weights = weight.slice(s![row, columns]);
        let lo = weights.iter().fold(0.0f64, |lo, &w| lo.min(w));
        let lo = if weights.iter().all(|w| *w == 0.0) { -1.0 } else { lo };
        let unrounded = -lo / scale[(row, position)];
        // Scale and quotient are rounded, and lo before them.
        let near = 4.0 * self.precision.unit_roundoff() * unrounded.abs();
        ((unrounded - expected).abs() >= 0.5 - near).then_some(row)
    }

    /// What the column order sorts by.
    fn keys(&self) -> Vec<f64> {
        let diagonal = |name: &str| {
            self.computed.tensors.get(name).map_or(Vec::new(), |tensor| tensor.values.diag().to_vec())
        };
        let (h, mut drift) = (diagonal("stats.hessian"), diagonal("stats.dxxt"));
        if self.case.document.settings.column_order != Some(super::case::OrderKind::HessianDrift) {
            drift.fill(0.0);
        }
        drift.resize(h.len(), 0.0);
        h.iter().zip(drift).map(|(&h, drift)| if h == 0.0 { 1.0 } else { h } + drift.abs()).collect()
    }

    /// How far the rounded value was from the middle between the points of two codes, relative to the largest weight.
    fn distance_from_the_middle(
        &self,
        row: usize,
        position: usize,
        found: &CaseTensor,
        expected: &CaseTensor,
    ) -> Option<f64> {
        let at = (row, position);
        let scale = self.computed.tensors.get("trace.scale")?.values[at];
        let zero = self.computed.tensors.get("trace.zero")?.values[at];
        let middle = scale * (found.values[at] / 2.0 + expected.values[at] / 2.0 - zero);
        let weight = &self.case.tensors.get("output.weight")?.values;
        let largest = weight.iter().fold(f64::MIN_POSITIVE, |m, w| m.max(w.abs()));
        Some((self.computed.target.as_ref()?[at] - middle).abs() / largest)
    }
}

/// The decisions that a case records, in original column order.
fn expected_decisions(case: &Case) -> Followed {
    let order = recorded_order(case);
    let k = case.document.shape.k;
    let position = order.as_ref().map_or((0..k).collect(), |order| inverse(order));
    let original = |name: &str| -> Option<Array2<f64>> {
        let values = &case.tensors.get(name)?.values;
        (values.ncols() == k).then(|| values.select(Axis(1), &position))
    };
    let sparse = case.document.settings.weight_sparsity.is_some();
    let output = case.tensors.get("output.weight").filter(|_| sparse).map(|w| w.values.mapv(|w| w == 0.0));
    let mask = original("trace.mask").map(|mask| mask.mapv(|pruned| pruned != 0.0));
    Followed {
        order,
        mask: if sparse { mask.or(output) } else { None },
        codes: original("trace.codes").map(|codes| codes.mapv(|code| code as i32)),
    }
}

/// Every case below a folder, and every result that must be rejected with the case that it is of.
///
/// # Errors
/// [`CaseError`] that names the file.
pub fn load_all(root: &Path) -> Result<(Vec<Case>, Vec<NegativeCase>), CaseError> {
    let (cases, negatives) = super::case::case_folders(root)?;
    let cases = cases.iter().map(|folder| Case::load(folder)).collect::<Result<Vec<_>, _>>()?;
    let negatives = negatives.iter().map(|folder| NegativeCase::load(folder)).collect::<Result<_, _>>()?;
    Ok((cases, negatives))
}
