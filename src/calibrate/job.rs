//! A pruning run: the checks before it, the loop over the layers, the report after it.

use std::path::Path;
use std::time::Instant;

use super::directory::check_target;
use super::error::CalibrateError;
use super::group::GroupPruner;
use super::output::{OutputDirectory, Storage};
use super::report::{self, Calibration, Environment, LinearReport, PruneReport, Totals};
use super::streams::{Activations, Stream, Streams};
use super::windows::Windows;
use crate::backend::Backend;
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::forward::{Forward, Group};
use crate::model::sparse_bitmask::StorageFormat;
use crate::progress::Observer;
use crate::reference::Method;
use crate::reference::activation::check_fraction;
use crate::reference::baseline::gptaq::GridConfig;
use crate::tensors::FloatType;

/// What to prune, how, and where to put it.
pub struct PruneJob<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// Calibration data; only magnitude needs none.
    pub windows: Option<&'a Windows>,
    /// Method and settings.
    pub method: Method,
    /// p_x of the sparse stream. Wanda and magnitude ignore it: they are calibrated on dense activations.
    pub activation_sparsity: f64,
    /// Rounds every linear's input in both streams.
    pub activation_dtype: Option<FloatType>,
    /// Rounds the kept weights to grids, in the column loop. They are stored as ordinary numbers.
    pub grids: Option<GridConfig>,
    /// Type of the stored weights; `None` keeps each tensor's.
    pub dtype: Option<FloatType>,
    /// How the pruned weights are stored.
    pub format: StorageFormat,
    /// The directory to create.
    pub output: &'a Path,
    /// Damps a Hessian that is not positive definite ten times as much, up to 1, until it is.
    pub damping_retry: bool,
    /// Compares this many rows of each linear with the best weights for its mask ([`gap`](super::gap)).
    pub report_gap: Option<usize>,
    /// Continues an interrupted run of the same job at its first unfinished layer.
    pub resume: bool,
}

impl<'a> PruneJob<'a> {
    /// A job with the default options: no calibration data, no activation pruning, types as stored, and a retry with more damping.
    pub fn new(checkpoint: &'a Checkpoint, method: Method, output: &'a Path) -> Self {
        PruneJob {
            checkpoint,
            windows: None,
            method,
            activation_sparsity: 0.0,
            activation_dtype: None,
            grids: None,
            dtype: None,
            format: StorageFormat::Dense,
            output,
            damping_retry: true,
            report_gap: None,
            resume: false,
        }
    }

    /// Prunes, in the arithmetic `T`, and writes the new directory with its `prune-report.json`.
    ///
    /// # Errors
    /// [`CalibrateError`]. The unfinished output is removed, unless the disk refused a write after the first layer: then the
    /// finished layers are kept for `resume`.
    pub fn run<T: Scalar, B: Backend<T>>(
        &self,
        backend: &B,
        observer: &dyn Observer,
    ) -> Result<PruneReport, CalibrateError> {
        let start = Instant::now();
        check_target(self.output)?;
        self.check()?;
        let fingerprint = self.fingerprint::<T>();
        let sparsity = self.method.weight_sparsity();
        let storage = Storage { dtype: self.dtype, format: self.format, sparsity };
        let (output, mut linears) = match self.resume {
            true => OutputDirectory::resume(self.output, self.checkpoint, storage, &fingerprint)?,
            false => (OutputDirectory::create(self.output, self.checkpoint, storage)?, Vec::new()),
        };
        let config = &self.checkpoint.config;
        let sequences = self.windows.map_or(0, Windows::len);
        observer.begin(
            (config.num_hidden_layers * (Group::ALL.len() * 2 * sequences + config.linears().len())) as u64,
        );

        let forward = Forward::<T>::new(config, self.windows.map_or(0, Windows::length));
        let mut streams = self.streams(&forward, backend)?;
        let finished = linears.len() / config.linears().len();
        self.replay_finished_layers(finished, &output, streams.as_mut(), observer)?;
        let pruner = GroupPruner {
            backend,
            observer,
            checkpoint: self.checkpoint,
            output: &output,
            method: self.method,
            grids: self.grids,
            damping_retry: self.damping_retry,
            report_gap: self.report_gap,
        };
        for number in finished..config.num_hidden_layers {
            linears.extend(self.prune_layer(&pruner, number, streams.as_mut())?);
            output.layer_finished(&fingerprint, &linears)?;
            self.tell_finished(number, observer);
        }

        let report = self.report::<T>(linears, start.elapsed().as_secs_f64(), backend.describe());
        output.write_file(report::FILE_NAME, &report.to_json())?;
        output.finish()?;
        Ok(report)
    }

    /// p_x of the sparse stream: zero for a method that is calibrated on dense activations.
    fn sparse_stream_sparsity(&self) -> f64 {
        if self.method.sees_sparse_activations() { self.activation_sparsity } else { 0.0 }
    }

    /// Both streams before the first layer; `None` without data.
    fn streams<'f, T: Scalar, B: Backend<T>>(
        &self,
        forward: &'f Forward<T>,
        backend: &'f B,
    ) -> Result<Option<Streams<'f, T, B>>, CalibrateError> {
        let Some(windows) = self.windows else { return Ok(None) };
        let dense = Activations { round_to: self.activation_dtype, ..Activations::default() };
        let sparse = Activations { sparsity: self.sparse_stream_sparsity(), ..dense };
        let embedding = self.checkpoint.embedding::<T>()?;
        let stream = |rule| Stream::new(forward, backend, &embedding, windows, rule);
        Ok(Some(Streams { dense: stream(dense), sparse: stream(sparse) }))
    }

    /// Runs the streams through the layers that an interrupted run has pruned already.
    fn replay_finished_layers<T: Scalar, B: Backend<T>>(
        &self,
        finished: usize,
        output: &OutputDirectory,
        streams: Option<&mut Streams<T, B>>,
        observer: &dyn Observer,
    ) -> Result<(), CalibrateError> {
        let Some(Streams { dense, sparse }) = streams else { return Ok(()) };
        for number in 0..finished {
            let mut layer = self.checkpoint.layer::<T>(number)?;
            dense.layer(&layer, || observer.advance());
            for &linear in self.checkpoint.config.linears() {
                layer.linears[linear.index] = output.read(&self.checkpoint.tensor(number, linear))?;
            }
            sparse.layer(&layer, || observer.advance());
            self.checkpoint.drop_pages();
            self.tell_finished(number, observer);
        }
        Ok(())
    }

    /// Prunes one decoder layer group by group, and runs both streams through it.
    fn prune_layer<T: Scalar, B: Backend<T>>(
        &self,
        pruner: &GroupPruner<B>,
        number: usize,
        mut streams: Option<&mut Streams<T, B>>,
    ) -> Result<Vec<LinearReport>, CalibrateError> {
        let layer = self.checkpoint.layer::<T>(number)?;
        self.checkpoint.drop_pages();
        if let Some(streams) = &mut streams {
            streams.enter(&layer);
        }
        let mut linears = Vec::new();
        for group in Group::ALL {
            linears.extend(pruner.prune_group(number, &layer, group, streams.as_deref_mut())?);
        }
        Ok(linears)
    }

    fn tell_finished(&self, number: usize, observer: &dyn Observer) {
        observer.finished(&format!("layer {} of {}", number + 1, self.checkpoint.config.num_hidden_layers));
    }

    fn report<T: Scalar>(&self, linears: Vec<LinearReport>, seconds: f64, backend: String) -> PruneReport {
        PruneReport {
            method: self.method,
            grids: self.grids,
            activation_sparsity: self.sparse_stream_sparsity(),
            activation_dtype: self.activation_dtype,
            calibration: self.windows.map(Calibration::of),
            precision: T::NAME,
            dtype: self.dtype,
            totals: Totals::of(&linears, seconds),
            linears,
            environment: Environment::here(backend),
        }
    }

    /// What must be equal in two runs for one to continue the other.
    fn fingerprint<T: Scalar>(&self) -> String {
        let shards: Vec<String> = (self.checkpoint.shards().iter())
            .map(|shard| format!("{} {:?}", shard.path().display(), shard.identity()))
            .collect();
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "checkpoint": shards,
            "jitter": self.checkpoint.jitter,
            "tokens": self.windows.map(Windows::digest),
            "method": self.method,
            "grids": self.grids,
            "activation_sparsity": self.activation_sparsity,
            "activation_dtype": self.activation_dtype,
            "dtype": self.dtype,
            "precision": T::NAME,
            "damping_retry": self.damping_retry,
            "report_gap": self.report_gap,
        })
        .to_string()
    }

    /// Checks that method, settings and data fit the model, before any work.
    ///
    /// # Errors
    /// [`CalibrateError`] for the first one that does not fit.
    pub fn check(&self) -> Result<(), CalibrateError> {
        check_fraction("activation sparsity", self.activation_sparsity)?;
        if self.windows.is_none() && !matches!(self.method, Method::Magnitude(_)) {
            return Err(CalibrateError::NoData { what: self.method.name() });
        }
        if self.windows.is_none() && self.report_gap.is_some() {
            return Err(CalibrateError::NoData { what: "the optimality gap" });
        }
        self.method.check_grids(self.grids.as_ref())?;
        for group in Group::ALL {
            let config = &self.checkpoint.config;
            let channels = group.channels(config);
            let tensor = self.checkpoint.tensor(0, group.linears(config)[0]);
            self.method.check(channels).map_err(|source| CalibrateError::Setting { tensor, source })?;
        }
        Ok(())
    }
}
