//! Checks a folder of cases against the schema: a reader must accept it, no field may be unknown, and every name must be one
//! of the schema's.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::bounds::{PREFIX, bound};
use super::case::{Case, CaseError, NegativeCase, TensorRole};
use super::stages::is_stage;
use crate::files::parse_json;
use crate::tensor_error::TensorError;

/// Everything about a loaded case that the schema does not allow.
///
/// # Errors
/// [`CaseError`] when its `case.json` cannot be read again.
pub fn lint_case(case: &Case) -> Result<Vec<String>, CaseError> {
    let Case { folder, document, .. } = case;
    let mut wrong = unknown_fields(&folder.join("case.json"), document)?;
    let mut check = |holds: bool, detail: String| {
        if !holds {
            wrong.push(detail);
        }
    };
    let is_id = |id: &str| {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        id.starts_with(lower) && id.chars().all(|c| lower(c) || c == '-')
    };
    check(is_id(&document.id), format!("id `{}` is not lower case, digits and hyphens", document.id));
    let named = folder.file_name().is_some_and(|name| *name == *document.id);
    check(named, format!("the folder is not named after the id `{}`", document.id));
    for (name, entry) in &document.tensors {
        let known =
            ["input.", "stats.", "trace.", "output.", PREFIX].iter().any(|start| name.starts_with(start));
        check(known, format!("tensor `{name}` begins with none of input., stats., trace., output., bnd."));
        let of = name.strip_prefix(PREFIX);
        let is_bound = entry.role == TensorRole::Bound;
        check(of.is_some() == is_bound, format!("tensor `{name}`: `bnd.` and the role `bound` go together"));
        if let Some(detail) = of.and_then(|of| wrong_bound(case, of)) {
            check(false, format!("tensor `{name}` {detail}"));
        }
    }
    for stage in &document.stages {
        check(is_stage(&stage.name), format!("stage `{}` is unknown", stage.name));
    }
    check(!document.flags.is_empty(), "`flags` is empty: a case says why it exists".into());
    for flag in &document.flags {
        check(
            is_id(&flag.id) && !flag.reason.is_empty(),
            format!("flag `{}` needs an id and a reason", flag.id),
        );
    }
    let has = |fields: &[&str]| fields.iter().all(|field| document.source.contains_key(*field));
    let third_party = ["repository", "file", "commit", "python", "torch", "numpy", "arithmetic", "how"];
    let own = ["program", "version", "command", "arithmetic", "how"];
    check(has(&third_party) || has(&own), format!("`source` needs {third_party:?}, or {own:?}"));
    let fractions = [
        document.settings.outlier_threshold,
        match document.settings.weight_sparsity {
            Some(super::case::CaseSparsity::Fraction(p)) => Some(p),
            _ => None,
        },
    ];
    for p in fractions.into_iter().flatten() {
        check((0.0..1.0).contains(&p), format!("{p} is no fraction in [0, 1)"));
    }
    Ok(wrong)
}

/// What is wrong with the recorded bound of tensor `of`: it must be the one that follows from the case's other tensors.
fn wrong_bound(case: &Case, of: &str) -> Option<String> {
    let recorded = case.tensors.get(&format!("{PREFIX}{of}"))?;
    let Some(bound) = case.tensors.get(of).and_then(|expected| bound(case, of, expected, 0.0)) else {
        return Some(format!("bounds `{of}`, which is no sum of products of other tensors of the case"));
    };
    if recorded.shape != case.tensors[of].shape {
        return Some(format!("has another shape than `{of}`"));
    }
    // Sums of magnitudes: any two orders of summation agree to their rounding.
    let differs = |(at, &sum): (_, &f64)| (recorded.values[at] - sum).abs() > 1e-9 * sum;
    let at = bound.sums.indexed_iter().find(|&place| differs(place)).map(|(at, _)| at)?;
    let (found, expected) = (recorded.values[at], bound.sums[at]);
    Some(format!(
        "is {found:e} at row {}, column {}; the sum of magnitudes there is {expected:e}",
        at.0, at.1
    ))
}

/// Everything about the result in `folder` that the schema does not allow, given the names of all cases.
///
/// # Errors
/// [`CaseError`] when it cannot be read at all.
pub fn lint_negative(folder: &Path, cases: &[String]) -> Result<Vec<String>, CaseError> {
    let negative = NegativeCase::load(folder)?;
    let document = &negative.document;
    let mut wrong = unknown_fields(&folder.join("case.json"), document)?;
    if !cases.contains(&document.of) {
        wrong.push(format!("`of` names no case: `{}`", document.of));
    }
    if !is_stage(&document.first_bad_stage) {
        wrong.push(format!("stage `{}` is unknown", document.first_bad_stage));
    }
    Ok(wrong)
}

/// The fields of the file that the document, written again, does not have.
fn unknown_fields(path: &Path, document: &impl Serialize) -> Result<Vec<String>, CaseError> {
    let malformed =
        |error: serde_json::Error| CaseError::Malformed { path: path.into(), detail: error.to_string() };
    let text = std::fs::read_to_string(path).map_err(TensorError::io(path))?;
    let read = parse_json(&text).map_err(malformed)?;
    let known = serde_json::to_value(document).map_err(malformed)?;
    let mut unknown = Vec::new();
    compare_fields("", &read, &known, &mut unknown);
    Ok(unknown)
}

fn compare_fields(at: &str, read: &Value, known: &Value, unknown: &mut Vec<String>) {
    match (read, known) {
        (Value::Object(read), Value::Object(known)) => {
            for (name, value) in read {
                match known.get(name) {
                    Some(known) => compare_fields(&format!("{at}{name}."), value, known, unknown),
                    None if value.is_null() => {} // null says "none"
                    None => unknown.push(format!("field `{at}{name}` is unknown")),
                }
            }
        }
        (Value::Array(read), Value::Array(known)) => {
            for (number, (read, known)) in read.iter().zip(known).enumerate() {
                compare_fields(&format!("{at}{number}."), read, known, unknown);
            }
        }
        _ => {}
    }
}
