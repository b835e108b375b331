//! Calibrated activation thresholds for every linear ([TEAL's rule](crate::reference::teal)), and their file.
//!
//! A first pass runs the calibration data through the model with dense activations. Layer by layer it makes histograms of the
//! magnitudes of each linear's input, decides how sparse each input is to be, and reads the thresholds off the histograms. A
//! second pass applies all thresholds and counts the entries that they prune.
//!
//! # The file
//! JSON, an object with
//!
//! | field | |
//! |---|---|
//! | `format` | `"duogpt-thresholds-1"` |
//! | `activation_sparsity`, `allocation`, `step` | the settings: the fraction, `"uniform"` or `"greedy"`, the greedy step |
//! | `model` | the model: `directory`, and the `sha256` of each file with weights |
//! | `calibration`, `precision`, `environment` | the data, the arithmetic, the program, as in `prune-report.json` |
//! | `layers` | a list with one object per decoder layer |
//!
//! and in each layer `projections`, a list of its linears in the order of the forward pass (q, k, v, o, gate, up, down; OPT
//! has no gate), with
//!
//! | field | |
//! |---|---|
//! | `projection` | its name: `"q_proj"` ... `"down_proj"`; of OPT `"out_proj"`, `"fc1"`, `"fc2"` |
//! | `shape` | rows and columns of its weight |
//! | `threshold` | t: entries of its input with \|x\| > t stay |
//! | `target` | the fraction of its input that is to be pruned |
//! | `realised` | the fraction that is pruned on the calibration data when all thresholds of the model apply |
//!
//! A greedy layer also has `error` and `uniform_error`: \|\|y - y'\|\| / \|\|y - x\|\| over the calibration data, for the layer's
//! input x, its dense output y, and its output y' with the thresholds, or with those of equal sparsity.

use std::path::Path;

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::CalibrateError;
use super::report::{Calibration, Environment};
use super::streams::{Activations, Stream, Thresholds};
use super::windows::Windows;
use crate::backend::Backend;
use crate::linalg::Scalar;
use crate::model::forward::{Forward, Group, Layer, Linear, State};
use crate::model::{Checkpoint, CheckpointError, ModelConfig};
use crate::progress::Observer;
use crate::reference::ConfigError;
use crate::reference::activation::check_fraction;
use crate::reference::teal::{MagnitudeHistogram, greedy_allocation};
use crate::tensors::{TensorError, TensorFile};

/// The file's `format`.
pub const FORMAT: &str = "duogpt-thresholds-1";

/// How the sparsity of a layer is distributed over its linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Allocation {
    /// The same sparsity for all.
    Uniform,
    /// Greedy: raised step by step for the linear that adds the least output error per weight (TEAL).
    Greedy,
}

/// A threshold for every linear, and how they were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThresholdFile {
    /// [`FORMAT`].
    pub format: String,
    /// In each layer, the fraction of the weights that are multiplied by a zero.
    pub activation_sparsity: f64,
    /// How the sparsity is distributed over the linears.
    pub allocation: Allocation,
    /// The step of the greedy allocation, as a fraction of a layer's weights.
    pub step: Option<f64>,
    /// The model.
    pub model: Model,
    /// The data.
    pub calibration: Calibration,
    /// Arithmetic of the passes.
    pub precision: String,
    /// One entry per decoder layer.
    pub layers: Vec<LayerThresholds>,
    /// The program and the machine.
    pub environment: Environment,
}

/// The calibrated model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// The path as it was given.
    pub directory: String,
    /// File name and SHA-256 of every file with weights.
    pub sha256: Vec<(String, String)>,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerThresholds {
    /// Relative output error with these thresholds; measured for the greedy allocation.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<f64>,
    /// Relative output error with equal sparsities; these are used where they are better.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uniform_error: Option<f64>,
    /// In the order of the layer's linears.
    pub projections: Vec<Projection>,
}

/// One linear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Projection {
    /// Its name.
    pub projection: String,
    /// Rows and columns of its weight.
    pub shape: (usize, usize),
    /// Entries of its input with a larger magnitude stay.
    pub threshold: f64,
    /// The fraction to prune.
    pub target: f64,
    /// The fraction that is pruned on the calibration data.
    pub realised: f64,
}

impl ThresholdFile {
    /// Reads a file and checks that it fits a model of this shape.
    ///
    /// # Errors
    /// [`CheckpointError`]: unreadable, not a file of thresholds, or for another model.
    pub fn read(path: &Path, config: &ModelConfig) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(TensorError::io(path))?;
        let malformed = |detail| CheckpointError::Malformed { path: path.into(), detail };
        let file: ThresholdFile = serde_json::from_str(&text)
            .map_err(|error| malformed(format!("no file of `duogpt thresholds`: {error}")))?;
        file.check(config).map_err(malformed)?;
        Ok(file)
    }

    fn check(&self, config: &ModelConfig) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("`format` is {:?}, expected {FORMAT:?}", self.format));
        }
        let (found, expected) = (self.layers.len(), config.num_hidden_layers);
        if found != expected {
            return Err(format!(
                "has thresholds for {found} layers, the model has {expected}; is it another model's?"
            ));
        }
        for (number, layer) in self.layers.iter().enumerate() {
            let (found, expected) = (layer.projections.len(), config.linears().len());
            if found != expected {
                return Err(format!("layer {number} has {found} projections, expected {expected}"));
            }
            for (projection, linear) in layer.projections.iter().zip(config.linears()) {
                let Projection { projection: name, shape, threshold, .. } = projection;
                if *name != linear.to_string() {
                    return Err(format!("layer {number}: found {name} where {linear} is expected"));
                }
                let expected = linear.shape(config);
                if *shape != expected {
                    return Err(format!(
                        "layer {number}, {name}: is for a weight of shape {shape:?}, the model's is {expected:?}; is it another \
                         model's?"
                    ));
                }
                if !(threshold.is_finite() && *threshold >= 0.0) {
                    return Err(format!("layer {number}, {name}: a threshold cannot be {threshold}"));
                }
            }
        }
        Ok(())
    }

    /// The thresholds for a run that does not prune the first `dense_tokens` tokens of every sequence.
    pub fn thresholds(&self, dense_tokens: usize) -> Thresholds {
        let of = |layer: &LayerThresholds| layer.projections.iter().map(|p| p.threshold).collect();
        Thresholds { layers: self.layers.iter().map(of).collect(), dense_tokens }
    }

    /// The fraction of all weights that are multiplied by a zero on the calibration data.
    pub fn realised(&self) -> f64 {
        let projections = || self.layers.iter().flat_map(|layer| &layer.projections);
        let size = |p: &Projection| (p.shape.0 * p.shape.1) as f64;
        projections().map(|p| p.realised * size(p)).sum::<f64>() / projections().map(size).sum::<f64>()
    }

    /// Pretty-printed JSON.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("thresholds are plain data");
        text.push('\n');
        text
    }
}

/// Which thresholds to find, and on what.
pub struct ThresholdJob<'a> {
    /// The model, pruned or not.
    pub checkpoint: &'a Checkpoint,
    /// Calibration data.
    pub windows: &'a Windows,
    /// The fraction of each layer's weights that is to be multiplied by a zero.
    pub activation_sparsity: f64,
    /// How the sparsity is distributed over the linears.
    pub allocation: Allocation,
    /// A step of the greedy allocation, as a fraction of the layer's weights. A linear smaller than that stays dense.
    pub step: f64,
}

impl ThresholdJob<'_> {
    /// Computes the thresholds, in the arithmetic `T`.
    ///
    /// Memory: one layer's weights, and for each sequence the hidden state and the input of the current group; the greedy
    /// allocation needs two more of both.
    ///
    /// # Errors
    /// [`CalibrateError`].
    pub fn run<T: Scalar, B: Backend<T>>(
        &self,
        backend: &B,
        observer: &dyn Observer,
    ) -> Result<ThresholdFile, CalibrateError> {
        check_fraction("activation sparsity", self.activation_sparsity)?;
        if self.step.is_nan() || self.step <= 0.0 {
            return Err(ConfigError::NotPositive { what: "step of the allocation", value: self.step }.into());
        }
        let config = &self.checkpoint.config;
        let per_layer = self.windows.len() * (2 + self.most_trials());
        observer.begin((config.num_hidden_layers * per_layer) as u64);
        let forward = Forward::<T>::new(config, self.windows.length());
        let embedding = self.checkpoint.embedding::<T>()?;
        let stream = |rule| Stream::new(&forward, backend, &embedding, self.windows, rule);

        let mut dense = stream(Activations::default());
        let mut layers = Vec::new();
        for number in 0..config.num_hidden_layers {
            let layer = self.checkpoint.layer::<T>(number)?;
            self.checkpoint.drop_pages();
            layers.push(self.layer(number, &layer, &forward, backend, &mut dense, observer)?);
            observer.finished(&format!(
                "the thresholds of layer {} of {}",
                number + 1,
                config.num_hidden_layers
            ));
        }
        drop(dense);

        let environment = Environment::here(backend.describe());
        let mut file = ThresholdFile {
            format: FORMAT.into(),
            activation_sparsity: self.activation_sparsity,
            allocation: self.allocation,
            step: (self.allocation == Allocation::Greedy).then_some(self.step),
            model: Model::of(self.checkpoint),
            calibration: Calibration::of(self.windows),
            precision: T::NAME.into(),
            layers,
            environment,
        };
        let thresholds = file.thresholds(0);
        let rule = Activations { thresholds: Some(&thresholds), ..Activations::default() };
        let mut sparse = stream(rule);
        for (number, found) in file.layers.iter_mut().enumerate() {
            let layer = self.checkpoint.layer::<T>(number)?;
            self.checkpoint.drop_pages();
            sparse.enter(&layer);
            for group in Group::ALL {
                for linear in group.linears(config) {
                    let projection = &mut found.projections[linear.index];
                    projection.realised = pruned_fraction(&sparse.states, projection.threshold);
                }
                sparse.group(&layer, group);
            }
            self.windows.tokens.rows().into_iter().for_each(|_| observer.advance());
            observer.finished(&format!(
                "applying them to layer {} of {}",
                number + 1,
                config.num_hidden_layers
            ));
        }
        Ok(file)
    }

    /// The thresholds of one layer; runs the dense stream through it.
    fn layer<T: Scalar, B: Backend<T>>(
        &self,
        number: usize,
        layer: &Layer<T>,
        forward: &Forward<T>,
        backend: &B,
        dense: &mut Stream<T, B>,
        observer: &dyn Observer,
    ) -> Result<LayerThresholds, CalibrateError> {
        let greedy = self.allocation == Allocation::Greedy;
        let below = if greedy { dense.states.clone() } else { Vec::new() };
        let mut histograms = Vec::new();
        dense.enter(layer);
        for group in Group::ALL {
            if !dense.is_finite() {
                let linear = layer.architecture.group(group)[0];
                let (side, stream) = ("input", "dense");
                return Err(CalibrateError::NotFinite { layer: number, linear, side, stream });
            }
            let mut histogram = MagnitudeHistogram::default();
            dense.states.iter().for_each(|state| histogram.update(state.input.view()));
            histograms.push(histogram);
            dense.group(layer, group);
        }
        self.windows.tokens.rows().into_iter().for_each(|_| observer.advance());

        let linears = layer.architecture.linears;
        let thresholds = |sparsities: &[f64]| -> Result<Vec<f64>, CalibrateError> {
            let of =
                |linear: &Linear| histograms[linear.group() as usize].threshold(sparsities[linear.index]);
            Ok(linears.iter().map(of).collect::<Result<_, _>>()?)
        };
        let uniform = vec![self.activation_sparsity; linears.len()];
        let mut trials = 0;
        // ||y - y'|| / ||y - x||
        let mut relative_error = |sparsities: &[f64]| -> Result<f64, CalibrateError> {
            let trial = Thresholds { layers: vec![thresholds(sparsities)?], dense_tokens: 0 };
            let rule = Activations { thresholds: Some(&trial), ..Activations::default() };
            let mut stream = Stream::of(forward, backend, below.clone(), rule);
            stream.layer(layer, || observer.advance());
            trials += 1;
            let squared = |a: &[State<T>]| -> f64 {
                let pairs = a.par_iter().zip(&dense.states);
                // In the order of the sequences, so that a run repeats bit for bit.
                let each: Vec<f64> = pairs.map(|(a, b)| distance(a.hidden.view(), b.hidden.view())).collect();
                each.iter().sum()
            };
            Ok((squared(&stream.states) / squared(&below)).sqrt())
        };
        let (mut targets, mut error, mut uniform_error) = (uniform.clone(), None, None);
        if greedy {
            let sizes: Vec<usize> = layer.linears.iter().map(Array2::len).collect();
            let grown = greedy_allocation(&sizes, self.activation_sparsity, self.step, |trial| {
                // A sparsity that is no fraction does not come here; it would be the last choice.
                relative_error(trial).unwrap_or(f64::NAN)
            })?;
            let (of_grown, of_uniform) = (relative_error(&grown)?, relative_error(&uniform)?);
            // Step by step is not best at the end by necessity.
            (targets, error) =
                if of_grown <= of_uniform { (grown, Some(of_grown)) } else { (uniform, Some(of_uniform)) };
            uniform_error = Some(of_uniform);
            // Linears that were full were not tried.
            let left = (self.most_trials() - trials) * self.windows.len();
            (0..left).for_each(|_| observer.advance());
        }
        let projections =
            linears.iter().zip(thresholds(&targets)?).zip(&targets).map(|((linear, threshold), &target)| {
                Projection {
                    projection: linear.to_string(),
                    shape: layer.linear(*linear).dim(),
                    threshold,
                    target,
                    realised: 0.0,
                }
            });
        Ok(LayerThresholds { error, uniform_error, projections: projections.collect() })
    }

    /// Upper bound on the runs of one layer that its allocation takes.
    fn most_trials(&self) -> usize {
        match self.allocation {
            Allocation::Uniform => 0,
            // Up to one more step where the division is not exact, and the two at the end.
            Allocation::Greedy => {
                let linears = self.checkpoint.config.linears().len();
                ((self.activation_sparsity / self.step).ceil() as usize + 1) * linears + 2
            }
        }
    }
}

/// sum (a - b)^2
fn distance<T: Scalar>(a: ArrayView2<T>, b: ArrayView2<T>) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a.widen() - b.widen()).powi(2)).sum()
}

/// The fraction of the states' input that a threshold prunes.
fn pruned_fraction<T: Scalar>(states: &[State<T>], threshold: f64) -> f64 {
    let below = |state: &State<T>| state.input.iter().filter(|x| x.widen().abs() <= threshold).count();
    let all: usize = states.iter().map(|state| state.input.len()).sum();
    states.par_iter().map(below).sum::<usize>() as f64 / all as f64
}

impl Model {
    fn of(checkpoint: &Checkpoint) -> Self {
        let hash = |shard: &TensorFile| {
            let name = shard.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            let sha256 = shard.sha256();
            shard.drop_pages();
            (name, sha256)
        };
        let sha256 = checkpoint.shards().iter().map(hash).collect();
        Model { directory: checkpoint.directory.display().to_string(), sha256 }
    }
}
