//! Two sets of tensors, in files or in memory, tensor by tensor: a recorded run and somebody's port of it.
//!
//! Tensors of equal name are compared in the order in which the algorithm makes them, so that the first that fails is
//! the place to look. Names are those of the test vectors (`stats.hessian`, `trace.hinv_chol`, `trace.mask`,
//! `output.weight`, ...) or of a checkpoint; any other
//! name is accepted too.
//!
//! * Integers, booleans and masks are decisions: counted, and weighed by the recorded scores where there are any.
//! * A tensor whose name ends in `weight` is a pruned weight: where it is zero is a decision, and its values are
//!   compared where both agree on that.
//! * All else are values.

use std::path::Path;

use ndarray::{Array2, Zip};

use super::compare::{Processing, compare, compare_decisions};
use super::report::{FileReport, Stage};
use super::vectors::tensor::Contents;
use super::vectors::{Case, CaseError, CaseTensors, Cuts, STAGES};
use crate::model::architecture::index_of_weight;
use crate::tensor_error::TensorError;
use crate::tensors::{FloatType, TensorFile};

/// Tensors by name, in a file or in memory.
trait NamedTensors {
    fn path(&self) -> &Path;
    fn names(&self) -> impl Iterator<Item = &str>;
    /// The shape of a tensor, if it is there.
    fn shape(&self, name: &str) -> Option<&[usize]>;
    /// The values of a tensor that is there, and their type where they are numbers.
    fn values(&self, name: &str) -> Result<(Array2<f64>, Option<FloatType>), TensorError>;
}

impl NamedTensors for TensorFile {
    fn path(&self) -> &Path {
        TensorFile::path(self)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        TensorFile::names(self)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.get(name).map(|info| info.shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<(Array2<f64>, Option<FloatType>), TensorError> {
        TensorFile::values(self, name)
    }
}

/// Tensors in memory, and what they are called in errors.
struct Arrays<'a> {
    called: &'static str,
    tensors: &'a CaseTensors,
}

impl NamedTensors for Arrays<'_> {
    fn path(&self) -> &Path {
        Path::new(self.called)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<(Array2<f64>, Option<FloatType>), TensorError> {
        let tensor = &self.tensors[name];
        let float = match tensor.contents {
            Contents::Reals(float) => Some(float),
            Contents::Flags | Contents::Integers => None,
        };
        Ok((tensor.values.clone(), float))
    }
}

/// Compares every tensor of `found` that `expected` has too. `tolerance` is relative to the largest entry of each
/// tensor, and for decisions to the largest score.
///
/// # Errors
/// [`CaseError`] when a tensor cannot be read, or the files have none in common.
pub fn compare_files(
    expected: &TensorFile,
    found: &TensorFile,
    tolerance: f64,
) -> Result<FileReport, CaseError> {
    let cuts = recorded_cuts(expected)?;
    let report = compare_named(expected, found, cuts.as_ref(), tolerance)?;
    Ok(FileReport { sha256: found.sha256(), ..report })
}

/// [`compare_files`] for tensors in memory. How clear a decision was is not known.
///
/// # Errors
/// [`CaseError`] when the two have no tensor in common.
pub fn compare_arrays(
    expected: &CaseTensors,
    found: &CaseTensors,
    tolerance: f64,
) -> Result<FileReport, CaseError> {
    let expected = Arrays { called: "expected", tensors: expected };
    compare_named(&expected, &Arrays { called: "found", tensors: found }, None, tolerance)
}

fn compare_named(
    expected: &impl NamedTensors,
    found: &impl NamedTensors,
    cuts: Option<&Cuts>,
    tolerance: f64,
) -> Result<FileReport, CaseError> {
    let mut names: Vec<&str> = expected.names().filter(|name| found.shape(name).is_some()).collect();
    names.sort_by_key(|name| turn(name));
    if names.is_empty() {
        return Err(CaseError::Malformed {
            path: found.path().to_path_buf(),
            detail: format!(
                "no tensor has the name of one in {}; give tensors that mean the same the same name",
                expected.path().display()
            ),
        });
    }
    let mut stages = Vec::new();
    for name in names {
        let [expected_shape, found_shape] =
            [expected.shape(name), found.shape(name)].map(Option::unwrap_or_default);
        if expected_shape != found_shape {
            stages.push(Stage::shapes(name, expected_shape.to_vec(), found_shape.to_vec()));
            continue;
        }
        stages.extend(compare_tensor(name, expected.values(name)?, found.values(name)?, cuts, tolerance));
    }
    let not_compared = [only_in(expected, found), only_in(found, expected)].concat();
    Ok(FileReport {
        path: found.path().to_path_buf(),
        sha256: String::new(),
        expected: Some(expected.path().to_path_buf()),
        kind: None,
        stages,
        not_compared,
        case: None,
    })
}

/// The tensors of `here` that `there` lacks.
fn only_in(here: &impl NamedTensors, there: &impl NamedTensors) -> Vec<String> {
    here.names()
        .filter(|name| there.shape(name).is_none())
        .map(|name| format!("`{name}` is only in {}", here.path().display()))
        .collect()
}

/// The scores and the mask of a case, where the file is one's `tensors.safetensors`.
fn recorded_cuts(file: &TensorFile) -> Result<Option<Cuts>, CaseError> {
    match file.path().parent() {
        Some(folder)
            if file.path().ends_with("tensors.safetensors") && folder.join("case.json").is_file() =>
        {
            Ok(Cuts::recorded(&Case::load(folder)?))
        }
        _ => Ok(None),
    }
}

/// When the algorithm makes a tensor: stage, layer, place within the layer, name.
fn turn(name: &str) -> (usize, usize, usize, &str) {
    let first = |found: Option<usize>| found.unwrap_or(usize::MAX);
    let traced = STAGES.into_iter().flat_map(|(_, _, tensors)| tensors);
    let stage = std::iter::once(&"input.").chain(traced).position(|known| name.starts_with(known));
    let layer = name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
    let linear = layer.and_then(|_| index_of_weight(name));
    (first(stage), first(layer), first(linear), name)
}

fn compare_tensor(
    name: &str,
    (expected, expected_type): (Array2<f64>, Option<FloatType>),
    (mut found, found_type): (Array2<f64>, Option<FloatType>),
    cuts: Option<&Cuts>,
    tolerance: f64,
) -> Vec<Stage> {
    let natural: Vec<usize> = (0..expected.ncols()).collect();
    // Scores belong to the one weight of the file, as columns of processing order.
    let known = cuts.filter(|cuts| cuts.shape() == expected.dim());
    let of_scores = |row, position| known.map(|cuts| cuts.margin(row, position));

    let (Some(expected_type), Some(found_type)) = (expected_type, found_type) else {
        let margin = |row, position| if name.ends_with("mask") { of_scores(row, position) } else { None };
        let budget = Some(tolerance);
        let outcome = compare_decisions(found.view(), expected.view(), &natural, budget, margin);
        return vec![Stage::decisions(name, outcome)];
    };
    // Distances in the type that has fewer digits: in the finer one they say nothing.
    let fewer_digits = expected_type.unit_roundoff() > found_type.unit_roundoff();
    let precision = if fewer_digits { expected_type } else { found_type };
    let values = |name: String, found: &Array2<f64>, processing| {
        Stage::values(name, compare(found.view(), expected.view(), precision, tolerance, processing))
    };
    let has_zeros = |a: &Array2<f64>| a.iter().any(|x| *x == 0.0);
    let is_weight = name.ends_with("weight");
    if !is_weight || !(has_zeros(&expected) || has_zeros(&found)) {
        let by_columns = is_weight || name.ends_with("score");
        let processing = if by_columns { Processing::Columns(&natural) } else { Processing::Rows };
        return vec![values(name.to_string(), &found, processing)];
    }
    let order = known.map_or(natural.as_slice(), |cuts| &cuts.order);
    let zeros = |a: &Array2<f64>| a.mapv(|x| x == 0.0);
    let outcome =
        compare_decisions(zeros(&found).view(), zeros(&expected).view(), order, Some(tolerance), of_scores);
    let differ = outcome.differing > 0;
    Zip::from(&mut found).and(&expected).for_each(|found, &expected| {
        if (*found == 0.0) != (expected == 0.0) {
            *found = expected; // told apart as a flip
        }
    });
    let mut compared = values(format!("{name}: values"), &found, Processing::Columns(order));
    if differ {
        compared.note = Some("a flipped zero changes the values to its right too".into());
    }
    vec![Stage::decisions(format!("{name}: zeros"), outcome), compared]
}
