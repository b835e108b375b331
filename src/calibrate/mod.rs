//! Pruning a whole checkpoint: two streams, layer by layer, group by group.
//!
//! For each group of linears with one input, in this order: gather statistics over all sequences, prune every linear
//! of the group with the same statistics, take both streams over the group, the sparse one with the weights as they
//! will be stored. A group's input depends only on groups already pruned, so each linear runs exactly once per
//! sequence and stream.
//!
//! Memory: one layer's weights and statistics, and per sequence and stream the hidden state and the input of the
//! group at hand.

pub mod output;
pub mod report;
pub mod streams;
pub mod windows;

use std::path::Path;
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::backend::{Backend, Gathered};
use crate::linalg::Scalar;
use crate::llama::model::{Forward, Group, Linear};
use crate::llama::{Checkpoint, CheckpointError};
use crate::reference::{ConfigError, Method, PruneError};
use crate::tensors::{FloatType, TensorError};
use output::OutputDirectory;
use report::{Calibration, Environment, LinearReport, PruneReport, Totals};
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
    /// The method learns from data, and none was given.
    #[error("{method} needs calibration data; give a text or token windows")]
    NoData {
        /// The method.
        method: &'static str,
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
    /// Type of the stored weights; `None` keeps each tensor's.
    pub dtype: Option<FloatType>,
    /// The directory to create.
    pub output: &'a Path,
    /// Damps a Hessian that is not positive definite ten times as much, up to 1, until it is.
    pub damping_retry: bool,
    /// Continues an interrupted run of the same job at its first unfinished layer.
    pub resume: bool,
}

/// Hears how far a long computation is.
pub trait Observer: Sync {
    /// Units of work in all; comes first.
    fn begin(&self, total: u64) {
        let _ = total;
    }
    /// One more unit is done.
    fn advance(&self) {}
    /// A linear is pruned and measured.
    fn linear(&self, report: &LinearReport) {
        let _ = report;
    }
}

/// Hears nothing.
pub struct Silent;
impl Observer for Silent {}

impl PruneJob<'_> {
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
        self.check()?;
        let fingerprint = self.fingerprint::<T>();
        let (output, mut linears) = match self.resume {
            true => OutputDirectory::resume(self.output, self.checkpoint, self.dtype, &fingerprint)?,
            false => (OutputDirectory::create(self.output, self.checkpoint, self.dtype)?, Vec::new()),
        };
        let config = &self.checkpoint.config;
        let sequences = self.windows.map_or(0, Windows::len);
        observer.begin(
            (config.num_hidden_layers * (Group::ALL.len() * 2 * sequences + Linear::ALL.len())) as u64,
        );

        let sparsity = if self.method.sees_sparse_activations() { self.activation_sparsity } else { 0.0 };
        let dense_activations = Activations { round_to: self.activation_dtype, sparsity: 0.0 };
        let sparse_activations = Activations { round_to: self.activation_dtype, sparsity };
        let forward = Forward::<T>::new(config, self.windows.map_or(0, Windows::length));
        let mut streams = match self.windows {
            Some(windows) => {
                let embedding = self.checkpoint.embedding::<T>()?;
                let stream = |rule| Stream::new(&forward, backend, embedding.view(), windows, rule);
                Some((stream(dense_activations), stream(sparse_activations)))
            }
            None => None,
        };

        let finished = linears.len() / Linear::ALL.len();
        for number in 0..finished {
            // An interrupted run got this far: only the streams have to.
            if let Some((dense, sparse)) = &mut streams {
                let mut layer = self.checkpoint.layer::<T>(number)?;
                dense.layer(&layer, || observer.advance());
                for linear in Linear::ALL {
                    layer.linears[linear as usize] = output.read(&linear.tensor(number))?;
                }
                sparse.layer(&layer, || observer.advance());
                self.checkpoint.drop_pages();
            }
        }
        for number in finished..config.num_hidden_layers {
            let layer = self.checkpoint.layer::<T>(number)?;
            self.checkpoint.drop_pages();
            if let Some((dense, sparse)) = &mut streams {
                dense.enter(&layer);
                sparse.enter(&layer);
            }
            for group in Group::ALL {
                let name = |linear: Linear| linear.tensor(number);
                let refused =
                    |linear: Linear| move |source| CalibrateError::Linear { tensor: name(linear), source };
                let first = group.linears()[0];

                let gathering = Instant::now();
                let mut gathered = Gathered::new(backend, &self.method, group.channels(config));
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
                        observer.advance();
                    }
                }
                let (ready, damping_retry) =
                    gathered.prepare(backend, self.damping_retry).map_err(refused(first))?;
                let shared_seconds = gathering.elapsed().as_secs_f64() / group.linears().len() as f64;

                let mut pruned = Vec::new();
                let mut reports = Vec::new();
                for &linear in group.linears() {
                    let pruning = Instant::now();
                    let mut weight =
                        ready.prune(backend, layer.linear(linear).view()).map_err(refused(linear))?.weight;
                    output.write(&name(linear), &mut weight)?;
                    reports.push(LinearReport {
                        tensor: name(linear),
                        layer: number,
                        weights: weight.len(),
                        zeros: weight.iter().filter(|w| **w == T::zero()).count(),
                        relative_output_error: None,
                        damping_retry,
                        seconds: shared_seconds + pruning.elapsed().as_secs_f64(),
                    });
                    pruned.push(weight);
                    observer.advance();
                }
                if let Some((dense, sparse)) = &mut streams {
                    let errors = advance_both(dense, sparse, &layer, group, &pruned, || observer.advance());
                    for (&linear, error) in group.linears().iter().zip(&errors) {
                        if let Some(stream) = error.not_finite() {
                            let side = "output";
                            return Err(CalibrateError::NotFinite { layer: number, linear, side, stream });
                        }
                    }
                    for (report, error) in reports.iter_mut().zip(errors) {
                        report.relative_output_error = error.relative();
                    }
                }
                reports.iter().for_each(|report| observer.linear(report));
                linears.append(&mut reports);
            }
            output.layer_finished(&fingerprint, &linears)?;
        }

        let report = PruneReport {
            method: self.method,
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
        output.finish()?;
        Ok(report)
    }

    /// What two runs must have in common for one to continue the other.
    fn fingerprint<T: Scalar>(&self) -> String {
        let mut tokens = Sha256::new();
        if let Some(windows) = self.windows {
            tokens.update(windows.length().to_le_bytes());
            windows.tokens.iter().for_each(|token| tokens.update(token.to_le_bytes()));
        }
        let shards: Vec<String> = (self.checkpoint.shards().iter())
            .map(|shard| format!("{} {:?}", shard.path().display(), shard.identity()))
            .collect();
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "checkpoint": shards,
            "tokens": tokens.finalize().to_vec(),
            "method": self.method,
            "activation_sparsity": self.activation_sparsity,
            "activation_dtype": self.activation_dtype,
            "dtype": self.dtype,
            "precision": T::NAME,
            "damping_retry": self.damping_retry,
        })
        .to_string()
    }

    fn check(&self) -> Result<(), CalibrateError> {
        OutputDirectory::check(self.output)?;
        crate::reference::activation::check_fraction("activation sparsity", self.activation_sparsity)?;
        if self.windows.is_none() && !matches!(self.method, Method::Magnitude(_)) {
            return Err(CalibrateError::NoData { method: self.method.name() });
        }
        for group in Group::ALL {
            let channels = group.channels(&self.checkpoint.config);
            let tensor = group.linears()[0].tensor(0);
            self.method.check(channels).map_err(|source| CalibrateError::Setting { tensor, source })?;
        }
        Ok(())
    }
}
