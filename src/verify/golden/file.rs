//! A golden file: its tensors, in the shapes that they must have, and its settings.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ndarray::{Array1, Array2, Array3, Ix1};

use crate::backend::BackendError;
use crate::reference::baseline::gptaq::{GridConfig, GridRange, Symmetry};
use crate::reference::{Alpha, ColumnOrder, PruneConfig, Sparsity};
use crate::tensors::{TensorError, TensorFile};
use crate::verify::kind::Kind;
use crate::verify::report::Stage;

/// Why a golden file could not be checked at all.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file, or a tensor in it.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The metadata or names say something that is not understood.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The reference refused the input.
    #[error("{}: {source}", path.display())]
    Prune {
        /// The file.
        path: PathBuf,
        /// What the reference said.
        source: BackendError,
    },
}

/// A golden file that a backend is held to.
pub(super) struct Golden<'a, B> {
    pub(super) file: &'a TensorFile,
    pub(super) backend: &'a B,
    /// The stages of the reference in the same arithmetic; none where the backend is the reference.
    pub(super) single: Vec<Stage>,
}

impl<B> Golden<'_, B> {
    pub(super) fn malformed(&self, detail: impl Into<String>) -> GoldenError {
        GoldenError::Malformed { path: self.file.path().to_path_buf(), detail: detail.into() }
    }

    pub(super) fn refused(&self, source: impl Into<BackendError>) -> GoldenError {
        GoldenError::Prune { path: self.file.path().to_path_buf(), source: source.into() }
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        let any = |suffix: &str| self.file.names().any(|name| name.ends_with(suffix));
        if self.file.metadata.get("algorithm").is_some_and(|a| a == "DuoGPT") {
            Some(Kind::DuoGpt)
        } else if any(".scale") && any(".zero") {
            Some(Kind::Gptaq)
        } else if any("stats.scaler_row") {
            Some(Kind::Wanda)
        } else if any("stats.hessian") && any(".mask") {
            Some(Kind::SparseGpt)
        } else if any(".input") {
            Some(Kind::ActivationPruning)
        } else {
            None
        }
    }

    pub(super) fn metadata<V: std::str::FromStr>(&self, key: &str) -> Result<V, GoldenError> {
        let text = self
            .file
            .metadata
            .get(key)
            .ok_or_else(|| self.malformed(format!("metadata `{key}` is missing")))?;
        // Python spells booleans with a capital.
        let text = match text.as_str() {
            "True" => "true",
            "False" => "false",
            other => other,
        };
        text.parse().map_err(|_| self.malformed(format!("metadata `{key}` = `{text}` is not understood")))
    }

    /// The original's settings.
    pub(super) fn config(&self) -> Result<PruneConfig, GoldenError> {
        let weight_sparsity = match self.metadata("prunen")? {
            0 => Sparsity::Unstructured(self.metadata("sparsity")?),
            n => Sparsity::NofM { n, m: self.metadata("prunem")? },
        };
        let column_order = if !self.metadata("act_order")? {
            ColumnOrder::Natural
        } else if self.metadata("block_act")? {
            ColumnOrder::Interleaved { run: self.metadata("act_blocksize")? }
        } else if self.metadata("dxxt_permutation")? {
            ColumnOrder::HessianDrift
        } else {
            ColumnOrder::Hessian
        };
        Ok(PruneConfig {
            block_size: self.metadata("blocksize")?,
            damping: self.metadata("percdamp")?,
            alpha: Alpha::both(self.metadata("scale_alpha")?),
            column_order,
            ..PruneConfig::upstream(weight_sparsity)
        })
    }

    /// `unstructured50`, `unstructured70_damp10` (damping 0.10), `nm24`.
    pub(super) fn settings(&self, run: &str) -> Result<(Sparsity, f64), GoldenError> {
        let unknown =
            || self.malformed(format!("run `{run}` says no settings (unstructured<percent> or nm<N><M>)"));
        let percent = |text: &str| text.parse::<f64>().map(|p| p / 100.0).map_err(|_| unknown());
        let (pattern, damping) = match run.split_once("_damp") {
            Some((pattern, damping)) => (pattern, percent(damping)?),
            None => (run, 0.01),
        };
        let sparsity = if let Some(p) = pattern.strip_prefix("unstructured") {
            Sparsity::Unstructured(percent(p)?)
        } else {
            let digits: Vec<usize> = pattern
                .strip_prefix("nm")
                .map(|text| text.chars().filter_map(|c| c.to_digit(10)).map(|d| d as usize).collect())
                .unwrap_or_default();
            match digits[..] {
                [n, m] => Sparsity::NofM { n, m },
                _ => return Err(unknown()),
            }
        };
        Ok((sparsity, damping))
    }

    /// `sym4`, `asym4_mse`, `sym3_act_order`, `sym4_alpha0_gptq`: symmetry and bits, then what differs from the
    /// published settings.
    pub(super) fn grid_settings(&self, run: &str) -> Result<(GridConfig, PruneConfig), GoldenError> {
        let unknown = || {
            self.malformed(format!("run `{run}` says no settings (sym<bits> or asym<bits>, then options)"))
        };
        let (grid, mut options) = run.split_at(run.find('_').unwrap_or(run.len()));
        let (symmetry, bits) = match grid.strip_prefix("asym") {
            Some(bits) => (Symmetry::Asymmetric, bits),
            None => (Symmetry::Symmetric, grid.strip_prefix("sym").ok_or_else(unknown)?),
        };
        let bits = bits.parse().map_err(|_| unknown())?;
        let mut grids = GridConfig { bits, symmetry, range: GridRange::Full, group_size: None };
        let mut config = PruneConfig { block_size: 32, ..PruneConfig::gptaq() };
        while !options.is_empty() {
            options = if let Some(rest) = options.strip_prefix("_mse") {
                grids.range = GridRange::LeastError;
                rest
            } else if let Some(rest) = options.strip_prefix("_act_order") {
                config.column_order = ColumnOrder::Hessian;
                rest
            } else if let Some(rest) = options.strip_prefix("_alpha0") {
                config.alpha.update = 0.0;
                rest
            } else {
                // Only says once more that alpha = 0 is GPTQ.
                options.strip_prefix("_gptq").ok_or_else(unknown)?
            };
        }
        Ok((grids, config))
    }

    /// The runs of a baseline file: the names before `suffix`.
    pub(super) fn runs(&self, suffix: &str) -> BTreeSet<String> {
        let ends = |name: &str| name.strip_suffix(suffix).map(str::to_string);
        self.file.names().filter_map(ends).collect()
    }

    /// X~ and X^ (X^ = X~ where only one is recorded), sequences x tokens x k.
    pub(super) fn inputs(&self) -> Result<(Array3<f64>, Array3<f64>), GoldenError> {
        let dense = self.file.cube::<f64>("input.dense_activations")?;
        let sparse = match self.file.get("input.sparse_activations") {
            Some(_) => self.file.cube::<f64>("input.sparse_activations")?,
            None => dense.clone(),
        };
        if dense.dim() != sparse.dim() {
            return Err(self.malformed("dense and sparse activations differ in shape"));
        }
        Ok((dense, sparse))
    }

    pub(super) fn square(&self, name: &str, k: usize) -> Result<Array2<f64>, GoldenError> {
        self.matrix_of(name, (k, k))
    }

    pub(super) fn matrix_of(&self, name: &str, shape: (usize, usize)) -> Result<Array2<f64>, GoldenError> {
        let matrix = self.file.matrix::<f64>(name)?;
        self.expect_shape(name, matrix.shape(), &[shape.0, shape.1])?;
        Ok(matrix)
    }

    pub(super) fn vector(&self, name: &str, k: usize) -> Result<Array1<f64>, GoldenError> {
        let vector = self.file.vector::<f64>(name)?;
        self.expect_shape(name, vector.shape(), &[k])?;
        Ok(vector)
    }

    pub(super) fn mask_of(&self, name: &str, shape: (usize, usize)) -> Result<Array2<bool>, GoldenError> {
        let mask = self.file.flags(name)?;
        self.expect_shape(name, mask.shape(), &[shape.0, shape.1])?;
        Ok(mask)
    }

    /// `trace.perm`, where it was recorded.
    pub(super) fn recorded_order(&self, k: usize) -> Result<Option<Vec<usize>>, GoldenError> {
        if self.file.get("trace.perm").is_none() {
            return Ok(None);
        }
        let order = self.file.integers::<Ix1>("trace.perm")?;
        self.expect_shape("trace.perm", order.shape(), &[k])?;
        let mut seen = vec![false; k];
        let mut fresh = |&c: &usize| c < k && !std::mem::replace(&mut seen[c], true);
        let order: Option<Vec<usize>> =
            order.iter().map(|&c| usize::try_from(c).ok().filter(&mut fresh)).collect();
        let order =
            order.ok_or_else(|| self.malformed("`trace.perm` is not a permutation of the columns"))?;
        Ok(Some(order))
    }

    pub(super) fn expect_shape(
        &self,
        name: &str,
        found: &[usize],
        expected: &[usize],
    ) -> Result<(), TensorError> {
        if found == expected {
            return Ok(());
        }
        Err(TensorError::ShapeMismatch {
            path: self.file.path().to_path_buf(),
            name: name.into(),
            expected: format!("{expected:?}"),
            found: found.to_vec(),
        })
    }
}
