//! Keyword arguments as settings: those of the test vectors, under the same names, and three more of the command line.

use duogpt::reference::baseline::gptaq::GridConfig;
use duogpt::reference::{NarrowGroups, PruneConfig, Sparsity};
use duogpt::verify::kind::Kind;
use duogpt::verify::vectors::case::{CaseSettings, CaseSparsity, CountsPruned};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::de::DeserializeOwned;

use crate::error::refused;

/// The settings of one function; what it does not have is `None`.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Keywords<'py> {
    #[pyo3(default)]
    weight_sparsity: Option<Bound<'py, PyAny>>,
    block_size: usize,
    damping: f64,
    #[pyo3(default)]
    alpha: Option<f64>,
    column_order: String,
    order_run: usize,
    hessian_factor: u32,
    #[pyo3(default)]
    lazy_update: Option<String>,
    #[pyo3(default)]
    threshold: Option<String>,
    #[pyo3(default)]
    dead_channels: Option<String>,
    #[pyo3(default)]
    skip_narrow_group: Option<bool>,
    #[pyo3(default)]
    identity_fallback: Option<bool>,
    #[pyo3(default)]
    preserve_mask: Option<bool>,
    #[pyo3(default)]
    group_member: Option<usize>,
    #[pyo3(default)]
    bits: Option<u32>,
    #[pyo3(default)]
    symmetric: Option<bool>,
    #[pyo3(default)]
    mse: Option<bool>,
    #[pyo3(default)]
    grid: Option<String>,
    #[pyo3(default)]
    group_size: Option<usize>,
    #[pyo3(default)]
    static_groups: Option<bool>,
}

impl<'py> Keywords<'py> {
    /// The keyword arguments in a dict.
    ///
    /// # Errors
    /// `TypeError` that names the one whose value cannot be used.
    pub fn read(keywords: &Bound<'py, PyAny>) -> PyResult<Self> {
        keywords.extract().map_err(|error: PyErr| match error.cause(keywords.py()) {
            Some(cause) => {
                let said = error.to_string();
                let name = said.rsplit('.').next().unwrap_or_default(); // ends with `Keywords.<name>`
                PyTypeError::new_err(format!("{name}: {}", cause.value(keywords.py())))
            }
            None => error,
        })
    }

    fn case_settings(&self) -> PyResult<CaseSettings> {
        let weight_sparsity =
            self.weight_sparsity.as_ref().map(sparsity).transpose()?.map(|found| match found {
                Sparsity::Unstructured(p) => CaseSparsity::Fraction(p),
                Sparsity::NofM { n, m } => CaseSparsity::Groups { n, m, counts: CountsPruned::Pruned },
            });
        Ok(CaseSettings {
            weight_sparsity,
            block_size: Some(self.block_size),
            damping: Some(self.damping),
            alpha: self.alpha,
            column_order: Some(chosen("column_order", &self.column_order)?),
            order_run: Some(self.order_run),
            hessian_factor: Some(self.hessian_factor),
            skip_narrow_group: self.skip_narrow_group,
            identity_fallback: self.identity_fallback,
            preserve_mask: self.preserve_mask,
            group_member: self.group_member,
            bits: self.bits,
            symmetric: self.symmetric,
            mse: self.mse,
            grid: choice("grid", &self.grid)?,
            group_size: self.group_size,
            static_groups: self.static_groups,
            ..CaseSettings::default()
        })
    }

    /// The loop's settings, and the grids if weights are rounded to some.
    pub fn configs(&self, kind: Kind) -> PyResult<(PruneConfig, Option<GridConfig>)> {
        if matches!(kind, Kind::DuoGpt | Kind::SparseGpt) && self.weight_sparsity.is_none() {
            return Err(PyTypeError::new_err("weight_sparsity: a fraction or \"N:M\" is needed"));
        }
        let settings = self.case_settings()?;
        let mut config = settings.prune_config(kind).map_err(refused)?;
        if let Some(update) = choice("lazy_update", &self.lazy_update)? {
            config.lazy_update = update;
        }
        if let Some(threshold) = choice("threshold", &self.threshold)? {
            config.threshold = threshold;
        }
        if let Some(dead) = choice("dead_channels", &self.dead_channels)? {
            config.dead_channels = dead;
        }
        Ok((config, settings.grid_config().map_err(refused)?))
    }
}

/// One of a few words.
pub fn chosen<T: DeserializeOwned>(name: &str, word: &str) -> PyResult<T> {
    serde_json::from_value(serde_json::Value::String(word.into()))
        .map_err(|error| refused(format!("{name}: {error}")))
}

/// One of a few words, if there is one.
pub fn choice<T: DeserializeOwned>(name: &str, word: &Option<String>) -> PyResult<Option<T>> {
    word.as_deref().map(|word| chosen(name, word)).transpose()
}

/// A fraction, `"2:4"`, or what the settings of a case have: `{"n": 2, "m": 4, "counts": "pruned"}`.
pub fn sparsity(value: &Bound<PyAny>) -> PyResult<Sparsity> {
    if let Ok(text) = value.extract::<String>() {
        return text.parse().map_err(|error: String| refused(format!("weight_sparsity: {error}")));
    }
    if let Ok(groups) = value.cast::<PyDict>() {
        let at = |name: &str| match groups.get_item(name)? {
            Some(count) => count.extract(),
            None => Err(refused(format!("weight_sparsity: \"{name}\" is missing; N of every M are pruned"))),
        };
        if groups.get_item("counts")?.is_some_and(|counts| !counts.eq("pruned").unwrap_or(false)) {
            return Err(refused("weight_sparsity: n counts what is pruned: \"counts\" must be \"pruned\""));
        }
        return Ok(Sparsity::NofM { n: at("n")?, m: at("m")? });
    }
    value.extract().map(Sparsity::Unstructured).map_err(|_| {
        PyTypeError::new_err(format!("weight_sparsity is {value}: a fraction or \"N:M\" is needed"))
    })
}

/// What becomes of N:M groups that are cut short.
pub fn narrow_groups(skip_narrow_group: bool) -> NarrowGroups {
    if skip_narrow_group { NarrowGroups::Keep } else { NarrowGroups::Prune }
}
