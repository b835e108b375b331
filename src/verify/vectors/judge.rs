//! Holds the results of any implementation to a case.
//!
//! Stages are compared in the order in which an implementation computes them: all sliced ones for the first slice, then
//! for the next. So the first failure names the first wrong step in time, and not the first wrong array. Reals may be off
//! by the tolerance times the largest expected entry of their row, or, in f32, bf16 and f16, by what rounding can explain
//! ([`bounds`](super::bounds)); masks, permutations and codes must be equal. NaN and infinity never pass. Either all tensors
//! of a result agree with the case itself, or all agree with the same one of the alternatives that the case accepts.

use std::collections::BTreeMap;
use std::ops::Range;

use ndarray::Array2;

use super::bounds::allowed;
use super::case::{Case, CaseStage, SliceBy, TensorRole};
use super::tensor::{CaseTensor, CaseTensors, Contents};
use crate::tensors::FloatType;
use crate::verify::compare::{Processing, compare_decisions, compare_rows, row_scales};
use crate::verify::report::{Failure, Stage};

/// How results compare with a case.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The first wrong step; none where all that was shown is right.
    pub failure: Option<Failure>,
    /// The accepted outcome that fits, where it is not the case's own.
    pub alternative: Option<String>,
    /// Tensors of stages that were not shown.
    pub not_shown: Vec<String>,
    /// Whether all that was shown is zero or repeats an input: what a port that does nothing shows too.
    pub trivial: bool,
    /// The largest relative difference among the steps before the failure.
    pub worst: f64,
    /// Steps that passed before the failure.
    pub(super) steps: usize,
    /// Every tensor that was shown, compared at once.
    pub stages: Vec<Stage>,
}

/// Compares `results` with `case`; `tolerance` replaces the case's own.
pub fn judge(case: &Case, results: &CaseTensors, tolerance: Option<f64>) -> Verdict {
    let tolerance = tolerance.unwrap_or(case.document.tolerance.value);
    let mut best = judge_one(case, None, results, tolerance);
    for alternative in &case.document.accept {
        let other = judge_one(case, Some(&alternative.id), results, tolerance);
        if best.failure.is_some() && (other.failure.is_none() || other.steps > best.steps) {
            best = other;
        }
    }
    best.trivial = is_trivial(case, results);
    best
}

/// Whether every tensor that is shown is zero, or repeats an input (rounded to the type of the result).
fn is_trivial(case: &Case, results: &CaseTensors) -> bool {
    let entries = case.document.tensors.iter().filter(|(_, entry)| entry.role == TensorRole::Input);
    let inputs: Vec<&CaseTensor> = entries.filter_map(|(name, _)| case.tensors.get(name)).collect();
    let repeats = |found: &CaseTensor, input: &CaseTensor| {
        let rounded = |&x: &f64| match found.contents {
            Contents::Reals(precision) => precision.round(x),
            Contents::Flags | Contents::Integers => x,
        };
        let times = found.values.len().checked_div(input.values.len()).unwrap_or(0);
        let inputs = input.values.iter().map(rounded).cycle().take(found.values.len());
        times * input.values.len() == found.values.len() && found.values.iter().map(rounded).eq(inputs)
    };
    let stages = case.document.stages.iter().flat_map(|stage| &stage.tensors);
    stages.filter_map(|name| results.get(name)).all(|found| {
        found.values.iter().all(|x| *x == 0.0) || inputs.iter().any(|input| repeats(found, input))
    })
}

/// One comparison.
struct Step<'a> {
    stage: &'a str,
    tensor: &'a str,
    cut: StepCut,
    place: String,
}

/// The part of a tensor that a step compares.
enum StepCut {
    Whole,
    Columns(Range<usize>),
    Block(usize),
}

/// The steps in order of time.
fn steps(case: &Case) -> Vec<Step<'_>> {
    let stages = &case.document.stages;
    let is_sliced = |stage: &&CaseStage| stage.by != SliceBy::Whole;
    let mut steps = Vec::new();
    let mut slices_to_come = true;
    for stage in stages {
        if !is_sliced(&stage) {
            steps.extend(stage.tensors.iter().map(|tensor| Step {
                stage: &stage.name,
                tensor,
                cut: StepCut::Whole,
                place: String::new(),
            }));
        } else if std::mem::take(&mut slices_to_come) {
            let slices = &case.document.slices;
            for (at, &[start, end, block]) in slices.iter().enumerate() {
                let block_ends = slices.get(at + 1).is_none_or(|next| next[2] != block);
                for stage in stages.iter().filter(is_sliced) {
                    for tensor in &stage.tensors {
                        let (cut, place) = match stage.by {
                            SliceBy::Block if !block_ends => continue,
                            SliceBy::Block => (StepCut::Block(block), format!("block {block}")),
                            _ => (
                                StepCut::Columns(start..end),
                                format!("columns {start}..{end}, block {block}"),
                            ),
                        };
                        steps.push(Step { stage: &stage.name, tensor, cut, place });
                    }
                }
            }
        }
    }
    steps
}

fn judge_one(case: &Case, alternative: Option<&str>, results: &CaseTensors, tolerance: f64) -> Verdict {
    let expected = |name: &str| {
        let other = alternative.and_then(|id| case.tensors.get(&format!("accept.{id}.{name}")));
        other.or_else(|| case.tensors.get(name))
    };
    let shown = || case.document.stages.iter().flat_map(|stage| &stage.tensors);
    let of_rounding: BTreeMap<&str, Array2<f64>> = shown()
        .filter_map(|name| {
            Some((name.as_str(), allowed_in(case, name, expected(name)?, results.get(name)?)?))
        })
        .collect();
    let mut verdict = Verdict {
        failure: None,
        alternative: alternative.map(String::from),
        not_shown: shown().filter(|name| !results.contains_key(*name)).cloned().collect(),
        trivial: false,
        worst: 0.0,
        steps: 0,
        stages: (case.document.stages.iter())
            .flat_map(|stage| stage.tensors.iter().map(move |name| (stage, name)))
            .filter_map(|(stage, name)| {
                let title = format!("{}: {name}", stage.name);
                let of_rounding = of_rounding.get(name.as_str());
                Some(whole(title, expected(name)?, results.get(name)?, tolerance, of_rounding))
            })
            .collect(),
    };
    for step in steps(case) {
        let Some(expected) = expected(step.tensor) else { continue }; // a loaded case has every tensor
        let outcome = match results.get(step.tensor) {
            Some(found) => deviation(expected, found, &step.cut, tolerance, of_rounding.get(step.tensor)),
            None if case.document.tensors[step.tensor].role == TensorRole::Output => {
                Err("it is missing, and an output is required".into())
            }
            None => continue,
        };
        match outcome {
            Ok(worst) => {
                verdict.worst = verdict.worst.max(worst);
                verdict.steps += 1;
            }
            Err(why) => {
                let (stage, tensor) = (step.stage.to_string(), step.tensor.to_string());
                verdict.failure = Some(Failure { stage, tensor, place: step.place, why });
                break;
            }
        }
    }
    verdict
}

/// The largest relative difference within the cut, or what is wrong with it.
fn deviation(
    expected: &CaseTensor,
    found: &CaseTensor,
    cut: &StepCut,
    tolerance: f64,
    of_rounding: Option<&Array2<f64>>,
) -> Result<f64, String> {
    if expected.shape != found.shape {
        return Err(format!("shape {:?}, expected {:?}", found.shape, expected.shape));
    }
    let (rows, columns) = expected.values.dim();
    let (rows, columns) = match cut {
        StepCut::Whole => (0..rows, 0..columns),
        StepCut::Columns(columns) => (0..rows, columns.clone()),
        StepCut::Block(block) => {
            let each = rows / expected.shape[0].max(1);
            (block * each..(block + 1) * each, 0..columns)
        }
    };
    let scales = row_scales(expected.values.view());
    let is_real = matches!(expected.contents, Contents::Reals(_));
    let (mut worst, mut wrong, mut first) = (0.0f64, 0, None);
    // Columns first: a weight is computed column by column.
    for column in columns.clone() {
        for row in rows.clone() {
            let (e, f) = (expected.values[(row, column)], found.values[(row, column)]);
            let relative = if e == f { 0.0 } else { (f - e).abs() / scales[row] };
            let rounded = || of_rounding.is_some_and(|allowed| (f - e).abs() <= allowed[(row, column)]);
            let fits = if is_real { f.is_finite() && (relative <= tolerance || rounded()) } else { e == f };
            if fits {
                worst = worst.max(relative);
            } else {
                wrong += 1;
                first = first.or(Some(format!("row {row}, column {column}: {f:e} for {e:e}")));
            }
        }
    }
    let of = rows.len() * columns.len();
    match first {
        None => Ok(if is_real { worst } else { 0.0 }),
        Some(first) => Err(format!("{wrong} of {of} entries differ, the first at {first}")),
    }
}

/// What rounding in the type of the result can explain; none in f64, whose rounding is below any tolerance, and where the
/// tensor is not a sum of products of others that the case has.
fn allowed_in(case: &Case, name: &str, expected: &CaseTensor, found: &CaseTensor) -> Option<Array2<f64>> {
    match found.contents {
        Contents::Reals(FloatType::F64) | Contents::Flags | Contents::Integers => None,
        Contents::Reals(precision) if found.shape == expected.shape => {
            allowed(case, name, expected, precision)
        }
        Contents::Reals(_) => None,
    }
}

/// A tensor compared at once: for the report.
fn whole(
    name: String,
    expected: &CaseTensor,
    found: &CaseTensor,
    tolerance: f64,
    of_rounding: Option<&Array2<f64>>,
) -> Stage {
    if expected.shape != found.shape {
        return Stage::shapes(name, expected.shape.clone(), found.shape.clone());
    }
    let natural: Vec<usize> = (0..expected.values.ncols()).collect();
    let (expected_values, found_values) = (expected.values.view(), found.values.view());
    match expected.contents {
        Contents::Reals(_) => {
            let precision = match found.contents {
                Contents::Reals(precision) => precision,
                _ => FloatType::F64,
            };
            let columns = Processing::Columns(&natural);
            let outcome =
                compare_rows(found_values, expected_values, precision, tolerance, of_rounding, columns);
            Stage::values(name, outcome)
        }
        Contents::Flags | Contents::Integers => {
            let outcome = compare_decisions(found_values, expected_values, &natural, None, |_, _| None);
            Stage::decisions(name, outcome)
        }
    }
}
