//! The reference by function.

use std::borrow::Cow;

use duogpt::backend::Cpu;
use duogpt::reference::activation::prune_activations as prune_tokens;
use duogpt::reference::baseline::gptaq::{GridConfig, quantise};
use duogpt::reference::baseline::magnitude::magnitude as prune_by_magnitude;
use duogpt::reference::baseline::teal::{LinearHistogram, dense_tokens};
use duogpt::reference::baseline::wanda::{wanda as prune_by_wanda, wanda_by_share};
use duogpt::reference::teal::{MagnitudeHistogram, prune_below};
use duogpt::reference::{self, ChannelNorms, PruneError, Sparsity, prune};
use duogpt::verify::kind::Kind;
use duogpt::verify::vectors::case::WandaVariant;
use duogpt::verify::vectors::{Followed, layer_stages, sequence_rows};
use numpy::ndarray::{Array1, ArrayView2, ArrayViewD, Axis, Ix1, Ix2, s};
use numpy::{PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::array::{
    Number, Typed, as_array, give, in_one_type, mask as mask_of, matrix, of_case_tensor, reals,
};
use crate::error::{check_activation_sparsity, raise, refused};
use crate::settings::{Keywords, choice, chosen, narrow_groups, sparsity};

/// Running means over the calibration sequences: H, and with dense activations dX X^T and diag(dX dX^T).
///
/// `residual`: whether the two products of dX are gathered, which DuoGPT and GPTAQ need. `dtype`: "float32" or "float64".
#[pyclass(module = "duogpt")]
pub struct Statistics(Typed<reference::Statistics<f32>, reference::Statistics<f64>>);

/// One expression for both types.
macro_rules! each_type {
    ($value:expr, |$inner:ident| $body:expr) => {
        match $value {
            Typed::F32($inner) => $body,
            Typed::F64($inner) => $body,
        }
    };
}

fn empty<T: Number>(k: usize, residual: bool) -> PyResult<reference::Statistics<T>> {
    let reserved = k.checked_mul(k).map(|values| Vec::<T>::new().try_reserve_exact(values));
    match reserved {
        Some(Ok(())) if residual => Ok(reference::Statistics::with_residual(k)),
        Some(Ok(())) => Ok(reference::Statistics::hessian_only(k)),
        _ => Err(PyMemoryError::new_err(format!("no memory for the Hessian, {k} x {k}"))),
    }
}

#[pymethods]
impl Statistics {
    #[new]
    #[pyo3(signature = (k, *, residual=false, dtype="float64"))]
    fn new(k: usize, residual: bool, dtype: &str) -> PyResult<Self> {
        Ok(Statistics(match dtype {
            "float32" => Typed::F32(empty(k, residual)?),
            "float64" => Typed::F64(empty(k, residual)?),
            _ => return Err(refused(format!("dtype `{dtype}`: float32 or float64 is needed"))),
        }))
    }

    /// Adds one sequence to the means: the tokens x k array that the layer sees, and with `residual` what it sees in the
    /// original model. Both are read in place.
    #[pyo3(signature = (activations, dense_activations=None))]
    fn update(
        &mut self,
        py: Python,
        activations: &Bound<PyAny>,
        dense_activations: Option<&Bound<PyAny>>,
    ) -> PyResult<()> {
        let sparse = reals("activations", activations)?;
        let dense = dense_activations.map(|dense| reals("dense_activations", dense)).transpose()?;
        match dense {
            Some(dense) => in_one_type!((&mut self.0, &dense, &sparse), |statistics, dense, sparse| {
                let dense = matrix("dense_activations", dense)?;
                add(py, statistics, Some(dense), matrix("activations", sparse)?)
            }),
            None => in_one_type!((&mut self.0, &sparse), |statistics, sparse| {
                add(py, statistics, None, matrix("activations", sparse)?)
            }),
        }
    }

    /// Input channels.
    #[getter]
    fn k(&self) -> usize {
        each_type!(&self.0, |statistics| statistics.channels())
    }

    /// Sequences seen.
    #[getter]
    fn sequences(&self) -> usize {
        each_type!(&self.0, |statistics| statistics.sequences)
    }

    /// "float32" or "float64".
    #[getter]
    fn dtype(&self) -> &'static str {
        match self.0 {
            Typed::F32(_) => "float32",
            Typed::F64(_) => "float64",
        }
    }

    /// H = X^ X^T (k x k), a copy.
    #[getter]
    fn hessian(&self, py: Python) -> Py<PyAny> {
        each_type!(&self.0, |statistics| give(py, statistics.hessian.clone()))
    }

    /// dX X^T (k x k), a copy; None without `residual`.
    #[getter]
    fn dxxt(&self, py: Python) -> Option<Py<PyAny>> {
        each_type!(&self.0, |statistics| Some(give(py, statistics.residual.as_ref()?.dxxt.clone())))
    }

    /// diag(dX dX^T) (k), a copy; None without `residual`.
    #[getter]
    fn dxdxt(&self, py: Python) -> Option<Py<PyAny>> {
        each_type!(&self.0, |statistics| Some(give(py, statistics.residual.as_ref()?.square_norms.clone())))
    }

    fn __repr__(&self) -> String {
        let (k, sequences, dtype) = (self.k(), self.sequences(), self.dtype());
        format!("Statistics(k={k}, sequences={sequences}, dtype={dtype})")
    }
}

/// One sequence more.
fn add<T: Number>(
    py: Python,
    statistics: &mut reference::Statistics<T>,
    dense: Option<ArrayView2<T>>,
    sparse: ArrayView2<T>,
) -> PyResult<()> {
    let k = statistics.channels();
    let shape = |what, expected: (usize, usize), found: (usize, usize)| {
        Err(raise(py, PruneError::Shape { what, expected, found }))
    };
    if sparse.ncols() != k || sparse.is_empty() {
        return shape("activations", (sparse.nrows().max(1), k), sparse.dim());
    }
    let dense = match (&statistics.residual, dense) {
        (Some(_), None) => {
            return Err(refused("dense_activations are needed where dX is gathered (residual=True)"));
        }
        (None, Some(_)) => return Err(refused("dense_activations are of no use without residual=True")),
        (_, dense) => dense.unwrap_or(sparse),
    };
    if dense.dim() != sparse.dim() {
        return shape("dense activations", sparse.dim(), dense.dim());
    }
    py.detach(|| statistics.update(dense, sparse));
    Ok(())
}

/// The sequences of an array: one (tokens x k), several of one length (sequences x tokens x k), or as `calls` counts them.
fn in_sequences<'a, T: Number>(
    what: &str,
    array: &'a PyReadonlyArrayDyn<T>,
    calls: Option<&Bound<PyAny>>,
) -> PyResult<Vec<ArrayView2<'a, T>>> {
    let view: ArrayViewD<'a, T> = array.as_array();
    if let Some(calls) = calls {
        let calls = as_array("calls", calls)?.call_method1("astype", ("float64",))?;
        let calls: PyReadonlyArrayDyn<f64> = calls.extract()?;
        let rows = matrix(what, array)?;
        let ranges = sequence_rows(matrix("calls", &calls)?, rows.nrows())
            .map_err(|why| refused(format!("calls {why}")))?;
        return Ok(ranges.into_iter().map(|range| rows.slice_move(s![range, ..])).collect());
    }
    match view.ndim() {
        2 => Ok(vec![matrix(what, array)?]),
        3 => {
            let length = view.len_of(Axis(0));
            let sequence = |at| view.clone().index_axis_move(Axis(0), at).into_dimensionality::<Ix2>();
            (0..length).map(|at| sequence(at).map_err(refused)).collect()
        }
        _ => Err(refused(format!(
            "the shape of {what} is {:?}, expected tokens x k or sequences x tokens x k",
            array.shape()
        ))),
    }
}

#[pyfunction]
#[pyo3(signature = (activations, dense_activations, calls))]
pub fn statistics(
    py: Python,
    activations: &Bound<PyAny>,
    dense_activations: Option<&Bound<PyAny>>,
    calls: Option<&Bound<PyAny>>,
) -> PyResult<Statistics> {
    let sparse = reals("activations", activations)?;
    let dense = dense_activations.map(|dense| reals("dense_activations", dense)).transpose()?;
    fn gather<T: Number>(
        py: Python,
        sparse: &PyReadonlyArrayDyn<T>,
        dense: Option<&PyReadonlyArrayDyn<T>>,
        calls: Option<&Bound<PyAny>>,
    ) -> PyResult<reference::Statistics<T>> {
        let parts = in_sequences("activations", sparse, calls)?;
        let mut statistics = empty(sparse.shape().last().copied().unwrap_or(0), dense.is_some())?;
        match dense {
            None => parts.into_iter().try_for_each(|part| add(py, &mut statistics, None, part))?,
            Some(dense) if dense.shape() != sparse.shape() => {
                let (found, expected) = (dense.shape(), sparse.shape());
                return Err(refused(format!(
                    "dense_activations have shape {found:?}, activations {expected:?}"
                )));
            }
            Some(dense) => {
                let dense = in_sequences("dense_activations", dense, calls)?;
                dense
                    .into_iter()
                    .zip(parts)
                    .try_for_each(|(dense, part)| add(py, &mut statistics, Some(dense), part))?;
            }
        }
        Ok(statistics)
    }
    Ok(Statistics(match (&sparse, &dense) {
        (Typed::F32(sparse), None) => Typed::F32(gather(py, sparse, None, calls)?),
        (Typed::F64(sparse), None) => Typed::F64(gather(py, sparse, None, calls)?),
        (Typed::F32(sparse), Some(Typed::F32(dense))) => Typed::F32(gather(py, sparse, Some(dense), calls)?),
        (Typed::F64(sparse), Some(Typed::F64(dense))) => Typed::F64(gather(py, sparse, Some(dense), calls)?),
        _ => return Err(crate::array::mixture()),
    }))
}

#[pyfunction]
#[pyo3(signature = (activations, calls))]
pub fn channel_norms(
    py: Python,
    activations: &Bound<PyAny>,
    calls: Option<&Bound<PyAny>>,
) -> PyResult<Py<PyAny>> {
    in_one_type!((&reals("activations", activations)?), |x| {
        let mut norms = ChannelNorms::new(x.shape().last().copied().unwrap_or(0));
        let parts = in_sequences("activations", x, calls)?;
        py.detach(|| parts.into_iter().for_each(|part| norms.update(part)));
        Ok(give(py, norms.square_norms))
    })
}

/// A pruned linear layer: arrays in the type of the weight.
#[pyclass(frozen, get_all, module = "duogpt")]
pub struct Pruned {
    /// The new weight (n x k); a pruned weight is +0.
    weight: Py<PyAny>,
    /// True = pruned (n x k).
    mask: Py<PyAny>,
    /// The scores as they were compared (n x k), columns in processing order.
    score: Py<PyAny>,
    /// The code of each weight (n x k, int32); None where nothing was quantised, as are the next three.
    codes: Option<Py<PyAny>>,
    /// The scales (n x grids per row), groups in processing order.
    scale: Option<Py<PyAny>>,
    /// The code of the value 0 in each grid (as `scale`).
    zero: Option<Py<PyAny>>,
    /// Which of its row's grids each column is rounded to (k).
    grid: Option<Py<PyAny>>,
    /// Every intermediate result under its name in the test vectors, where stages=True asked for it, else None.
    stages: Option<Py<PyDict>>,
}

impl Pruned {
    fn of<T: Number>(py: Python, pruned: prune::Pruned<T>) -> Self {
        Pruned {
            weight: give(py, pruned.weight),
            mask: give(py, pruned.mask),
            score: give(py, pruned.score),
            codes: None,
            scale: None,
            zero: None,
            grid: None,
            stages: None,
        }
    }
}

#[pymethods]
impl Pruned {
    fn __repr__(&self, py: Python) -> PyResult<String> {
        let shape = self.weight.getattr(py, "shape")?;
        let zeros: f64 = self.mask.call_method0(py, "sum")?.extract(py)?;
        let size: f64 = self.mask.getattr(py, "size")?.extract(py)?;
        let zeros = zeros / size.max(1.0);
        let quantised = if self.codes.is_some() { ", quantised" } else { "" };
        Ok(format!("Pruned(shape={shape}, pruned={zeros:.4}{quantised})"))
    }
}

fn run<T: Number>(
    py: Python,
    prepared: &prune::Prepared<T>,
    weight: ArrayView2<T>,
    grids: Option<&GridConfig>,
    mask: Option<ArrayView2<bool>>,
) -> PyResult<Pruned> {
    let Some(grids) = grids else {
        let pruned = py.detach(|| prepared.prune(weight, mask)).map_err(|error| raise(py, error))?;
        return Ok(Pruned::of(py, pruned));
    };
    let found =
        py.detach(|| quantise(prepared, weight, grids, mask, None)).map_err(|error| raise(py, error))?;
    let grid: Vec<i64> = found.grid.iter().map(|&grid| grid as i64).collect();
    Ok(Pruned {
        codes: Some(give(py, found.codes)),
        scale: Some(give(py, found.scale)),
        zero: Some(give(py, found.zero)),
        grid: Some(give(py, Array1::from(grid))),
        ..Pruned::of(py, found.pruned)
    })
}

/// The statistics that the method uses: SparseGPT and GPTQ know no dX.
fn used<T: Number>(
    statistics: &reference::Statistics<T>,
    kind: Kind,
) -> PyResult<Cow<'_, reference::Statistics<T>>> {
    if statistics.sequences == 0 {
        return Err(refused("the statistics are of no sequence: `update` was not called"));
    }
    let with_residual = matches!(kind, Kind::DuoGpt | Kind::Gptaq);
    match statistics.residual.is_some() {
        false if with_residual => Err(refused(format!(
            "{} needs the statistics of dX: give dense_activations to `statistics` too",
            kind.name()
        ))),
        true if !with_residual => Ok(Cow::Owned(reference::Statistics {
            sequences: statistics.sequences,
            hessian: statistics.hessian.clone(),
            residual: None,
        })),
        _ => Ok(Cow::Borrowed(statistics)),
    }
}

#[pyfunction]
#[pyo3(signature = (algorithm, weight, statistics, keywords, order, mask, stages))]
#[allow(clippy::too_many_arguments)] // called by the package's own functions alone
pub fn layer(
    py: Python,
    algorithm: &str,
    weight: &Bound<PyAny>,
    statistics: &Statistics,
    keywords: &Bound<PyAny>,
    order: Option<Vec<usize>>,
    mask: Option<&Bound<PyAny>>,
    stages: bool,
) -> PyResult<Pruned> {
    let kind: Kind = chosen("algorithm", algorithm)?;
    let (config, grids) = Keywords::read(keywords)?.configs(kind)?;
    let weight = reals("weight", weight)?;
    let mask = mask.map(mask_of).transpose()?;
    let mask = mask.as_ref().map(|mask| mask.as_array());
    in_one_type!((&weight, &statistics.0), |weight, statistics| {
        let weight = matrix("weight", weight)?;
        let statistics = used(statistics, kind)?;
        let prepared = py
            .detach(|| prune::prepare(&statistics, &config, order.as_deref()))
            .map_err(|error| raise(py, error))?;
        let mut pruned = run(py, &prepared, weight, grids.as_ref(), mask)?;
        if stages {
            let followed = Followed { order, mask: mask.map(|mask| mask.to_owned()), codes: None };
            let computed = py
                .detach(|| layer_stages(&Cpu, &statistics, weight, &config, grids.as_ref(), &followed))
                .map_err(|error| raise(py, error))?;
            let named = PyDict::new(py);
            for (name, tensor) in &computed.tensors {
                named.set_item(name, of_case_tensor(py, tensor))?;
            }
            pruned.stages = Some(named.unbind());
        }
        Ok(pruned)
    })
}

/// All that the column loop needs besides the weights, in processing order. The linears that share an input share it.
#[pyclass(frozen, module = "duogpt")]
pub struct Prepared(Typed<prune::Prepared<f32>, prune::Prepared<f64>>);

#[pyfunction]
#[pyo3(signature = (algorithm, statistics, keywords, order))]
pub fn prepare(
    py: Python,
    algorithm: &str,
    statistics: &Statistics,
    keywords: &Bound<PyAny>,
    order: Option<Vec<usize>>,
) -> PyResult<Prepared> {
    let kind: Kind = chosen("algorithm", algorithm)?;
    let (config, _) = Keywords::read(keywords)?.configs(kind)?;
    fn prepared<T: Number>(
        py: Python,
        statistics: &reference::Statistics<T>,
        kind: Kind,
        config: &reference::PruneConfig,
        order: Option<&[usize]>,
    ) -> PyResult<prune::Prepared<T>> {
        let statistics = used(statistics, kind)?;
        py.detach(|| prune::prepare(&statistics, config, order)).map_err(|error| raise(py, error))
    }
    let order = order.as_deref();
    Ok(Prepared(match &statistics.0 {
        Typed::F32(statistics) => Typed::F32(prepared(py, statistics, kind, &config, order)?),
        Typed::F64(statistics) => Typed::F64(prepared(py, statistics, kind, &config, order)?),
    }))
}

#[pymethods]
impl Prepared {
    /// Prunes one linear (n x k) whose input was prepared. `mask` (n x k, True = pruned) replays the decisions of another
    /// run. The weight is read in place.
    #[pyo3(signature = (weight, mask=None))]
    fn prune(&self, py: Python, weight: &Bound<PyAny>, mask: Option<&Bound<PyAny>>) -> PyResult<Pruned> {
        let weight = reals("weight", weight)?;
        let mask = mask.map(mask_of).transpose()?;
        let mask = mask.as_ref().map(|mask| mask.as_array());
        in_one_type!((&weight, &self.0), |weight, prepared| {
            run(py, prepared, matrix("weight", weight)?, None, mask)
        })
    }

    /// Position to original column (k).
    #[getter]
    fn perm(&self, py: Python) -> Py<PyAny> {
        let order = each_type!(&self.0, |prepared| &prepared.order);
        give(py, order.iter().map(|&column| column as i64).collect::<Array1<_>>())
    }

    /// Dead channels, by original column (k).
    #[getter]
    fn dead(&self, py: Python) -> Py<PyAny> {
        let dead = each_type!(&self.0, |prepared| &prepared.dead);
        give(py, Array1::from(dead.clone()))
    }

    /// The upper factor L^T with H^-1 = L L^T (k x k), a copy.
    #[getter]
    fn hinv_chol(&self, py: Python) -> Py<PyAny> {
        each_type!(&self.0, |prepared| give(py, prepared.lt.clone()))
    }

    /// D = U L^T (k x k), without the factor alpha, a copy; None where dX was not gathered.
    #[getter]
    fn d(&self, py: Python) -> Option<Py<PyAny>> {
        each_type!(&self.0, |prepared| Some(give(py, prepared.correction.as_ref()?.d.clone())))
    }

    /// The factor of W^2 in the score (k), a copy.
    #[getter]
    fn score_scale(&self, py: Python) -> Py<PyAny> {
        each_type!(&self.0, |prepared| give(py, prepared.score_scale.clone()))
    }
}

#[pyfunction]
#[pyo3(signature = (weight, norms, weight_sparsity, variant, skip_narrow_group))]
pub fn wanda(
    py: Python,
    weight: &Bound<PyAny>,
    norms: &Bound<PyAny>,
    weight_sparsity: &Bound<PyAny>,
    variant: Option<String>,
    skip_narrow_group: bool,
) -> PyResult<Pruned> {
    let asked = sparsity(weight_sparsity)?;
    let variant: Option<WandaVariant> = choice("variant", &variant)?;
    in_one_type!((&reals("weight", weight)?, &reals("norms", norms)?), |weight, norms| {
        let weight = matrix("weight", weight)?;
        let square_norms = norms.as_array().into_dimensionality::<Ix1>();
        let square_norms = square_norms
            .map_err(|_| {
                refused(format!("norms have shape {:?}, expected one number per channel", norms.shape()))
            })?
            .to_owned();
        let norms = ChannelNorms { sequences: 1, square_norms };
        let pruned = py.detach(|| match (variant, asked) {
            (None, _) => prune_by_wanda(weight, &norms, asked, narrow_groups(skip_narrow_group)).map(Some),
            (Some(WandaVariant::Cumulative), Sparsity::Unstructured(p)) => {
                wanda_by_share(weight, &norms, p).map(|(pruned, _)| Some(pruned))
            }
            (Some(WandaVariant::Cumulative), Sparsity::NofM { .. }) => Ok(None),
        });
        match pruned.map_err(|error| raise(py, error))? {
            Some(pruned) => Ok(Pruned::of(py, pruned)),
            None => Err(refused("the variant `cumulative` has no N:M sparsity: give a fraction")),
        }
    })
}

#[pyfunction]
#[pyo3(signature = (weight, weight_sparsity, skip_narrow_group))]
pub fn magnitude(
    py: Python,
    weight: &Bound<PyAny>,
    weight_sparsity: &Bound<PyAny>,
    skip_narrow_group: bool,
) -> PyResult<Pruned> {
    let asked = sparsity(weight_sparsity)?;
    in_one_type!((&reals("weight", weight)?), |weight| {
        let weight = matrix("weight", weight)?;
        let pruned = py.detach(|| prune_by_magnitude(weight, asked, narrow_groups(skip_narrow_group)));
        Ok(Pruned::of(py, pruned.map_err(|error| raise(py, error))?))
    })
}

#[pyfunction]
#[pyo3(signature = (activations, activation_sparsity, bins, outlier_threshold))]
pub fn thresholds(
    py: Python,
    activations: &Bound<PyAny>,
    activation_sparsity: Vec<f64>,
    bins: Option<usize>,
    outlier_threshold: f64,
) -> PyResult<Vec<f64>> {
    if bins.is_some_and(|bins| Vec::<[f64; 3]>::new().try_reserve_exact(bins).is_err()) {
        return Err(PyMemoryError::new_err(format!("no memory for {} bins", bins.unwrap_or_default())));
    }
    in_one_type!((&reals("activations", activations)?), |x| {
        let x = x.as_array();
        let x = x.to_shape(as_rows(x.shape())?).map_err(refused)?; // a copy only where the strides ask for one
        if let Some(((row, column), _)) = x.indexed_iter().find(|(_, x)| !x.is_finite()) {
            return Err(raise(py, PruneError::NotFinite { what: "activations", row, column }));
        }
        let found = py.detach(|| match bins {
            Some(bins) => {
                let histogram = LinearHistogram::new(x.view(), bins, outlier_threshold)?;
                activation_sparsity.iter().map(|&p| histogram.threshold(p)).collect()
            }
            None => {
                let mut histogram = MagnitudeHistogram::default();
                histogram.update(x.view());
                activation_sparsity.iter().map(|&p| histogram.threshold(p)).collect::<Result<Vec<_>, _>>()
            }
        });
        found.map_err(|error| raise(py, error))
    })
}

/// Rows and columns of an array of any shape: its last dimension has the columns.
fn as_rows(shape: &[usize]) -> PyResult<(usize, usize)> {
    let Some((&k, leading)) = shape.split_last() else {
        return Err(refused("activations are a single number, expected tokens x k"));
    };
    Ok((leading.iter().product(), k))
}

#[pyfunction]
#[pyo3(signature = (activations, activation_sparsity, threshold, apply_prefill))]
pub fn prune_activations(
    py: Python,
    activations: &Bound<PyAny>,
    activation_sparsity: Option<f64>,
    threshold: Option<f64>,
    apply_prefill: Option<bool>,
) -> PyResult<Py<PyAny>> {
    if activation_sparsity.is_some() == threshold.is_some() {
        return Err(PyTypeError::new_err("give either activation_sparsity or threshold"));
    }
    activation_sparsity.map_or(Ok(()), check_activation_sparsity)?;
    if let Some(threshold) = threshold.filter(|threshold| threshold.is_nan() || *threshold < 0.0) {
        return Err(refused(format!("threshold {threshold} must be a number that is not negative")));
    }
    in_one_type!((&reals("activations", activations)?), |x| {
        let shape = x.shape().to_vec();
        let mut pruned = x.as_array().as_standard_layout().into_owned();
        let mut rows = pruned.view_mut().into_shape_with_order(as_rows(&shape)?).map_err(refused)?;
        let tokens = if shape.len() > 1 { shape[shape.len() - 2] } else { 1 };
        let dense = apply_prefill.map_or(0, |prompts| dense_tokens(tokens, prompts));
        py.detach(|| {
            if let Some(p) = activation_sparsity {
                prune_tokens(rows, p);
            } else if let Some(threshold) = threshold {
                for prompt in rows.axis_chunks_iter_mut(Axis(0), tokens.max(1)) {
                    prune_below(prompt, threshold, dense);
                }
            }
        });
        Ok(give(py, pruned))
    })
}
