//! Pruning a whole checkpoint: two streams, layer by layer, group by group.
//!
//! For each group of linears with one input, in this order: gather statistics over all sequences, prune every linear
//! of the group with the same statistics, take both streams over the group, the sparse one with the weights as they
//! will be stored. A group's input depends only on groups already pruned, so each linear runs exactly once per
//! sequence and stream.
//!
//! Memory: one layer's weights and statistics, and per sequence and stream the hidden state and the input of the
//! group at hand.

pub mod convert;
pub mod gap;
pub mod output;
pub mod report;
pub mod streams;
pub mod thresholds;
pub mod windows;

use std::path::Path;
use std::time::Instant;

use crate::backend::{Backend, Gathered};
use crate::linalg::Scalar;
use crate::llama::model::{Forward, Group, Linear};
use crate::llama::sparse_bitmask::StorageFormat;
use crate::llama::{Checkpoint, CheckpointError};
use crate::progress::Observer;
use crate::reference::baseline::gptaq::GridConfig;
use crate::reference::{ConfigError, Method, PruneError, Pruned};
use crate::tensors::{FloatType, TensorError};
use gap::GapMeter;
use output::OutputDirectory;
use report::{Calibration, Environment, GridRounding, LinearReport, PruneReport, Totals};
use streams::{Activations, Stream, advance_both};
use windows::Windows;

/// Why a checkpoint could not be pruned.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The source or the output directory.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor of either.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// N:M or the block do not fit a linear of this model.
    #[error("{tensor}: {source}")]
    Setting {
        /// The first linear that the settings do not fit.
        tensor: String,
        /// Why.
        source: ConfigError,
    },
    /// One linear could not be pruned.
    #[error("{tensor}: {source}")]
    Linear {
        /// Its tensor.
        tensor: String,
        /// Why.
        source: PruneError,
    },
    /// Something learns from data, and none was given.
    #[error("{what} needs calibration data; give a text or token windows")]
    NoData {
        /// The method, or what else asks for it.
        what: &'static str,
    },
    /// The forward pass overflowed.
    #[error(
        "layer {layer}, {side} of {linear}: a value of the {stream} stream is not finite; try --precision f64, or check the checkpoint"
    )]
    NotFinite {
        /// The decoder layer, from 0.
        layer: usize,
        /// The first linear that such a value goes into, or comes out of.
        linear: Linear,
        /// `"input"` or `"output"`.
        side: &'static str,
        /// `"dense"` or `"sparse"`.
        stream: &'static str,
    },
}

/// What to prune, how, and where to put it.
pub struct PruneJob<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// Calibration data; only magnitude does without.
    pub windows: Option<&'a Windows>,
    /// Method and settings.
    pub method: Method,
    /// p_x that the sparse stream is pruned with. Wanda and magnitude are calibrated on dense activations, whatever
    /// it says.
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
    /// Measures each linear against the best weights for its mask, on so many of its rows ([`gap`]).
    pub report_gap: Option<usize>,
    /// Continues an interrupted run of the same job at its first unfinished layer.
    pub resume: bool,
}

impl<'a> PruneJob<'a> {
    /// A job without calibration data and activation pruning, that keeps types, retries with more damping, and does nothing more.
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
    /// [`CalibrateError`]. Nothing is left behind then.
    pub fn run<T: Scalar, B: Backend<T>>(
        &self,
        backend: &B,
        observer: &dyn Observer,
    ) -> Result<PruneReport, CalibrateError> {
        let start = Instant::now();
        OutputDirectory::check(self.output)?;
        self.check()?;
        let fingerprint = self.fingerprint::<T>();
        let (output, mut linears) = match self.resume {
            true => OutputDirectory::resume(self.output, self.checkpoint, self.dtype, &fingerprint)?,
            false => (OutputDirectory::create(self.output, self.checkpoint, self.dtype)?, Vec::new()),
        };
        let config = &self.checkpoint.config;
        let sequences = self.windows.map_or(0, Windows::len);
        observer.begin(
            (config.num_hidden_layers * (Group::ALL.len() * 2 * sequences + config.linears().len())) as u64,
        );

        let sparsity = if self.method.sees_sparse_activations() { self.activation_sparsity } else { 0.0 };
        let dense_activations = Activations { round_to: self.activation_dtype, ..Activations::default() };
        let sparse_activations = Activations { sparsity, ..dense_activations };
        let forward = Forward::<T>::new(config, self.windows.map_or(0, Windows::length));
        let mut streams = match self.windows {
            Some(windows) => {
                let embedding = self.checkpoint.embedding::<T>()?;
                let stream = |rule| Stream::new(&forward, backend, &embedding, windows, rule);
                Some((stream(dense_activations), stream(sparse_activations)))
            }
            None => None,
        };

        let finished = linears.len() / config.linears().len();
        let tell_finished = |number: usize| {
            observer.finished(&format!("layer {} of {}", number + 1, config.num_hidden_layers))
        };
        for number in 0..finished {
            // An interrupted run got this far: only the streams have to.
            if let Some((dense, sparse)) = &mut streams {
                let mut layer = self.checkpoint.layer::<T>(number)?;
                dense.layer(&layer, || observer.advance());
                for &linear in config.linears() {
                    layer.linears[linear.index] = output.read(&self.checkpoint.tensor(number, linear))?;
                }
                sparse.layer(&layer, || observer.advance());
                self.checkpoint.drop_pages();
            }
            tell_finished(number);
        }
        for number in finished..config.num_hidden_layers {
            let layer = self.checkpoint.layer::<T>(number)?;
            self.checkpoint.drop_pages();
            if let Some((dense, sparse)) = &mut streams {
                dense.enter(&layer);
                sparse.enter(&layer);
            }
            for group in Group::ALL {
                let name = |linear: Linear| self.checkpoint.tensor(number, linear);
                let refused =
                    |linear: Linear| move |source| CalibrateError::Linear { tensor: name(linear), source };
                let group_linears = group.linears(config);
                let first = group_linears[0];

                let gathering = Instant::now();
                let mut gathered = Gathered::new(backend, &self.method, group.channels(config));
                let mut meter = self.report_gap.map(|rows| GapMeter::new(layer.group(group), rows));
                if let Some((dense, sparse)) = &streams {
                    for (stream, which) in [(dense, "dense"), (sparse, "sparse")] {
                        if !stream.is_finite() {
                            return Err(CalibrateError::NotFinite {
                                layer: number,
                                linear: first,
                                side: "input",
                                stream: which,
                            });
                        }
                    }
                    for (dense, sparse) in dense.states.iter().zip(&sparse.states) {
                        gathered.update(backend, dense.input.view(), sparse.input.view());
                        if let Some(meter) = &mut meter {
                            meter.update(dense.input.view(), sparse.input.view());
                        }
                        observer.advance();
                    }
                }
                let (ready, damping_retry) =
                    gathered.prepare(backend, self.damping_retry).map_err(refused(first))?;
                let shared_seconds = gathering.elapsed().as_secs_f64() / group_linears.len() as f64;

                let (mut pruned, mut masks) = (Vec::new(), Vec::new());
                let mut reports = Vec::new();
                for &linear in group_linears {
                    let pruning = Instant::now();
                    let (Pruned { mut weight, mask, .. }, steps) = ready
                        .prune(backend, layer.linear(linear).view(), self.grids.as_ref())
                        .map_err(refused(linear))?;
                    let points = steps.as_ref().map(|_| weight.clone());
                    output.write(&name(linear), &mut weight)?;
                    let on_grid = points.zip(steps);
                    reports.push(LinearReport {
                        tensor: name(linear),
                        layer: number,
                        weights: weight.len(),
                        zeros: weight.iter().filter(|w| **w == T::zero()).count(),
                        relative_output_error: None,
                        optimality: None,
                        grid_rounding: on_grid
                            .map(|(points, steps)| GridRounding::of(&points, &weight, &steps)),
                        damping_retry,
                        seconds: shared_seconds + pruning.elapsed().as_secs_f64(),
                    });
                    pruned.push(weight);
                    masks.push(mask);
                    observer.advance();
                }
                if let Some(meter) = meter {
                    let damping = ready.damping();
                    drop(ready); // both hold a matrix of the size of H
                    let measured =
                        meter.measure(damping, pruned.iter().zip(&masks)).map_err(refused(first))?;
                    for (report, optimality) in reports.iter_mut().zip(measured) {
                        report.optimality = Some(optimality);
                    }
                }
                if let Some((dense, sparse)) = &mut streams {
                    let errors = advance_both(dense, sparse, &layer, group, &pruned, || observer.advance());
                    for (&linear, error) in group_linears.iter().zip(&errors) {
                        if let Some(stream) = error.not_finite() {
                            let side = "output";
                            return Err(CalibrateError::NotFinite { layer: number, linear, side, stream });
                        }
                    }
                    for (report, error) in reports.iter_mut().zip(errors) {
                        report.relative_output_error = error.relative();
                    }
                }
                reports.iter().for_each(|report| report.tell(observer));
                linears.append(&mut reports);
            }
            output.layer_finished(&fingerprint, &linears)?;
            tell_finished(number);
        }

        let report = PruneReport {
            method: self.method,
            grids: self.grids,
            activation_sparsity: sparsity,
            activation_dtype: self.activation_dtype,
            calibration: self.windows.map(Calibration::of),
            precision: T::NAME,
            dtype: self.dtype,
            totals: Totals::of(&linears, start.elapsed().as_secs_f64()),
            linears,
            environment: Environment::here(backend.describe()),
        };
        output.write_file(report::FILE_NAME, &report.to_json())?;
        output.finish(self.format)?;
        Ok(report)
    }

    /// What two runs must have in common for one to continue the other.
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
    /// [`CalibrateError`] for the first that does not.
    pub fn check(&self) -> Result<(), CalibrateError> {
        crate::reference::activation::check_fraction("activation sparsity", self.activation_sparsity)?;
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
