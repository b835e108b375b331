//! The test vectors, and the judge of `duogpt verify`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duogpt::backend::{Backend, Cpu};
use duogpt::verify::html::page;
use duogpt::verify::report::{self, CaseStatus, FileReport};
use duogpt::verify::tensors::compare_arrays;
use duogpt::verify::vectors::case::{self, TensorRole};
use duogpt::verify::vectors::{CaseTensors, failed_call, judge_results, load_all};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serialize;
use serde_json::json;

use crate::array::{of_case_tensor, to_case_tensor};
use crate::error::{check_tolerance, refused};

/// One linear layer of the test vectors: inputs, settings and every intermediate result of the original tool.
#[pyclass(frozen, module = "duogpt")]
pub struct Case(Arc<case::Case>);

/// Plain data as Python has it.
fn plain(py: Python, value: &impl Serialize) -> PyResult<Py<PyAny>> {
    let text = serde_json::to_string(value).map_err(refused)?;
    Ok(py.import("json")?.call_method1("loads", (text,))?.unbind())
}

/// The tensors whose names `chosen` gives a name.
fn arrays<'a>(
    py: Python,
    tensors: &'a CaseTensors,
    chosen: impl Fn(&'a str) -> Option<&'a str>,
) -> PyResult<Py<PyDict>> {
    let named = PyDict::new(py);
    for (name, tensor) in tensors {
        if let Some(name) = chosen(name) {
            named.set_item(name, of_case_tensor(py, tensor))?;
        }
    }
    Ok(named.unbind())
}

impl Case {
    fn role(&self, name: &str) -> Option<TensorRole> {
        self.0.document.tensors.get(name).map(|entry| entry.role)
    }
}

#[pymethods]
impl Case {
    /// `<algorithm>/<id>`.
    #[getter]
    fn name(&self) -> String {
        self.0.name()
    }

    /// What it computes.
    #[getter]
    fn algorithm(&self) -> &'static str {
        self.0.document.algorithm.name()
    }

    /// "original", or the name of a tool that deviates from it.
    #[getter]
    fn dialect(&self) -> &str {
        &self.0.document.dialect
    }

    /// Rows n and columns k of the weight; n is None where there is no weight.
    #[getter]
    fn shape(&self) -> (Option<usize>, usize) {
        (self.0.document.shape.n, self.0.document.shape.k)
    }

    /// The settings of the run, by the names of the schema.
    #[getter]
    fn settings(&self, py: Python) -> PyResult<Py<PyAny>> {
        plain(py, &self.0.document.settings)
    }

    /// The inputs by name, without the prefix `input.`: new arrays at each access.
    #[getter]
    fn inputs(&self, py: Python) -> PyResult<Py<PyDict>> {
        arrays(py, &self.0.tensors, |name| {
            name.strip_prefix("input.").filter(|_| self.role(name) == Some(TensorRole::Input))
        })
    }

    /// What the original tool computed from them, by name: statistics, intermediate results, output.
    #[getter]
    fn expected(&self, py: Python) -> PyResult<Py<PyDict>> {
        arrays(py, &self.0.tensors, |name| {
            Some(name).filter(|name| self.role(name).is_some_and(|role| role != TensorRole::Input))
        })
    }

    /// The names of the stages in computing order, each with its tensors.
    #[getter]
    fn stages(&self, py: Python) -> PyResult<Py<PyDict>> {
        let stages = PyDict::new(py);
        for stage in &self.0.document.stages {
            stages.set_item(&stage.name, &stage.tensors)?;
        }
        Ok(stages.unbind())
    }

    /// The tensors that a result must have.
    #[getter]
    fn outputs(&self) -> Vec<&str> {
        let shown = self.0.document.stages.iter().flat_map(|stage| &stage.tensors);
        shown.map(String::as_str).filter(|name| self.role(name) == Some(TensorRole::Output)).collect()
    }

    /// What each tensor means, by its full name.
    #[getter]
    fn meaning(&self, py: Python) -> PyResult<Py<PyDict>> {
        let meaning = PyDict::new(py);
        for (name, entry) in &self.0.document.tensors {
            meaning.set_item(name, &entry.meaning)?;
        }
        Ok(meaning.unbind())
    }

    /// What the case tests, and why.
    #[getter]
    fn flags(&self, py: Python) -> PyResult<Py<PyDict>> {
        let flags = PyDict::new(py);
        for flag in &self.0.document.flags {
            flags.set_item(&flag.id, &flag.reason)?;
        }
        Ok(flags.unbind())
    }

    /// How far a real may be off, relative to the largest expected entry of its row.
    #[getter]
    fn tolerance(&self) -> f64 {
        self.0.document.tolerance.value
    }

    fn __repr__(&self) -> String {
        format!("Case({})", self.name())
    }
}

/// A result with one defect, which must be rejected.
#[pyclass(frozen, module = "duogpt")]
pub struct Negative(case::NegativeCase);

#[pymethods]
impl Negative {
    /// `negative/<id>`.
    #[getter]
    fn name(&self) -> String {
        format!("negative/{}", self.0.document.id)
    }

    /// The case that it is a result of.
    #[getter]
    fn of(&self) -> &str {
        &self.0.document.of
    }

    /// What is wrong with it.
    #[getter]
    fn defect(&self) -> &str {
        &self.0.document.defect
    }

    /// The stage at which it must be rejected.
    #[getter]
    fn first_bad_stage(&self) -> &str {
        &self.0.document.first_bad_stage
    }

    /// The slice of columns or the block there; empty where a tensor is compared at once.
    #[getter]
    fn first_bad_place(&self) -> &str {
        &self.0.document.first_bad_place
    }

    /// Its tensors by name.
    #[getter]
    fn results(&self, py: Python) -> PyResult<Py<PyDict>> {
        arrays(py, &self.0.tensors, Some)
    }

    fn __repr__(&self) -> String {
        format!("Negative({} of {})", self.name(), self.of())
    }
}

fn load(py: Python, folder: &Path) -> PyResult<(Vec<case::Case>, Vec<case::NegativeCase>)> {
    let found = py.detach(|| load_all(folder)).map_err(refused)?;
    if found.0.is_empty() {
        let folder = folder.display();
        return Err(refused(format!(
            "{folder}: no cases (folders with a case.json); give a folder of them with vectors="
        )));
    }
    Ok(found)
}

/// The cases below a folder, sorted by name.
#[pyfunction]
pub fn cases(py: Python, folder: PathBuf) -> PyResult<Vec<Case>> {
    Ok(load(py, &folder)?.0.into_iter().map(|case| Case(Arc::new(case))).collect())
}

/// The results below a folder that must be rejected.
#[pyfunction]
pub fn negatives(py: Python, folder: PathBuf) -> PyResult<Vec<Negative>> {
    Ok(load(py, &folder)?.1.into_iter().map(Negative).collect())
}

/// What was compared with what: text by `str()`, a page in a notebook, true where everything agrees.
#[pyclass(module = "duogpt")]
pub struct Report(report::Report);

fn named_tensors(results: &Bound<PyDict>) -> PyResult<CaseTensors> {
    let mut tensors = CaseTensors::new();
    for (name, value) in results {
        let name: String = name.extract()?;
        let tensor = to_case_tensor(&format!("`{name}`"), &value)?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

#[pymethods]
impl Report {
    /// An empty report of what `command` says.
    #[new]
    fn new(command: String) -> Self {
        let report = report::Report::new(Vec::new(), Backend::<f64>::describe(&Cpu));
        Report(report::Report { command, ..report })
    }

    /// Adds the verdict on what a function returned for a case, arrays by name; `rtol` replaces the case's tolerance.
    fn judge(
        &mut self,
        py: Python,
        case: &Case,
        function: PathBuf,
        results: &Bound<PyDict>,
        rtol: Option<f64>,
    ) -> PyResult<()> {
        rtol.map_or(Ok(()), check_tolerance)?;
        let report = match named_tensors(results) {
            Ok(tensors) => py.detach(|| judge_results(&case.0, &function, &tensors, rtol)),
            Err(error) => failed_call(&case.0, &function, error.value(py).to_string()),
        };
        self.0.files.push(report.map_err(refused)?);
        Ok(())
    }

    /// Adds the verdict on a function that gave no arrays for a case.
    fn reject(&mut self, case: &Case, function: PathBuf, why: String) -> PyResult<()> {
        self.0.files.push(failed_call(&case.0, &function, why).map_err(refused)?);
        Ok(())
    }

    /// Whether no case fails and at least one passes. Of compared arrays: whether all agree.
    #[getter]
    fn passed(&self) -> bool {
        let decided =
            |file: &FileReport| file.case.as_ref().is_none_or(|case| case.status == CaseStatus::Pass);
        self.0.failed() == 0 && self.0.files.iter().any(decided)
    }

    /// The verdict on each case by its name: "pass", "fail", or "undecided" where nothing is wrong, but all that the
    /// function returned is zero or repeats an input.
    #[getter]
    fn verdicts(&self, py: Python) -> PyResult<Py<PyAny>> {
        let cases = self.0.files.iter().filter_map(|file| file.case.as_ref());
        plain(py, &cases.map(|case| (&case.name, case.status)).collect::<BTreeMap<_, _>>())
    }

    /// A dict for each failure: case, stage, tensor, place, why, cause. Of compared arrays: tensor and why.
    #[getter]
    fn failures(&self, py: Python) -> PyResult<Py<PyAny>> {
        let mut failures = Vec::new();
        for file in &self.0.files {
            match &file.case {
                Some(case) => failures.extend(case.failure.as_ref().map(|failure| {
                    json!({
                        "case": case.name,
                        "stage": failure.stage,
                        "tensor": failure.tensor,
                        "place": failure.place,
                        "why": failure.why,
                        "cause": case.cause,
                    })
                })),
                None => failures.extend(file.stages.iter().filter(|stage| !stage.passed).map(|stage| {
                    let why: Vec<String> = [vec![stage.summary()], stage.explanation()].concat();
                    json!({ "tensor": stage.name, "why": why.join("\n") })
                })),
            }
        }
        plain(py, &failures)
    }

    /// The whole report as plain data: what `duogpt verify --json` prints.
    fn to_dict(&self, py: Python) -> PyResult<Py<PyAny>> {
        plain(py, &self.0)
    }

    /// The report as one HTML page that needs no other file.
    fn html(&self) -> String {
        page(&self.0)
    }

    fn _repr_html_(&self) -> String {
        // In a frame, so that the page's style stays its own.
        let page = page(&self.0).replace('&', "&amp;").replace('"', "&quot;");
        format!("<iframe srcdoc=\"{page}\" style=\"width: 100%; height: 40rem; border: 0\"></iframe>")
    }

    fn __bool__(&self) -> bool {
        self.passed()
    }

    fn __str__(&self) -> String {
        let text: String = self.0.files.iter().map(|file| file.to_text()).collect();
        let failed = self.0.failed();
        if self.0.files.iter().any(|file| file.case.is_none()) {
            return format!("{text}{} stages, {failed} failed", self.0.stages().count());
        }
        let undecided = match self.0.cases(CaseStatus::Undecided) {
            0 => String::new(),
            count => format!(", {count} undecided"),
        };
        format!("{text}{} cases, {failed} failed{undecided}", self.0.files.len())
    }

    fn __repr__(&self) -> String {
        self.__str__()
    }
}

/// Compares arrays by name.
#[pyfunction]
pub fn compare(expected: &Bound<PyDict>, found: &Bound<PyDict>, tolerance: f64) -> PyResult<Report> {
    check_tolerance(tolerance)?;
    let (expected_tensors, found_tensors) = (named_tensors(expected)?, named_tensors(found)?);
    let file = expected
        .py()
        .detach(|| compare_arrays(&expected_tensors, &found_tensors, tolerance))
        .map_err(refused)?;
    let mut report = Report::new("duogpt.compare(expected, found)".into());
    report.0.files.push(file);
    Ok(report)
}
