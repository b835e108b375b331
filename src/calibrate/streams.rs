//! The two streams: the original model on dense activations, and the model pruned so far on sparse ones.

use ndarray::Array2;
use rayon::prelude::*;

use crate::backend::Backend;
use crate::calibrate::windows::Windows;
use crate::linalg::{Scalar, matmul};
use crate::model::forward::{Embedding, Forward, Group, Layer, Linear, State, apply};
use crate::reference::teal::prune_below;
use crate::tensors::FloatType;

/// How the input of every linear of a decoder layer is rounded and pruned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Activations<'a> {
    /// The type to round to first, as a run in that type would.
    pub round_to: Option<FloatType>,
    /// p_x; 0 prunes nothing.
    pub sparsity: f64,
    /// TEAL's rule in place of p_x: entries that are not above the linear's threshold become zero.
    pub thresholds: Option<&'a Thresholds>,
}

/// A threshold t for the input of every linear: entries with |x| > t stay ([`teal`](crate::reference::teal)).
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// By layer, then in the order of the layer's linears.
    pub layers: Vec<Vec<f64>>,
    /// Tokens at the beginning of every sequence that are not pruned.
    pub dense_tokens: usize,
}

impl Activations<'_> {
    /// Rounds and prunes the common input of a group (tokens x channels), in place.
    pub fn treat<T: Scalar, B: Backend<T>>(self, backend: &B, x: &mut Array2<T>) {
        if let Some(to) = self.round_to {
            x.mapv_inplace(|x| to.round(x));
        }
        backend.prune_activations(x.view_mut(), self.sparsity);
    }
}

/// All sequences of one stream, between two groups.
pub struct Stream<'a, T, B> {
    forward: &'a Forward<T>,
    backend: &'a B,
    activations: Activations<'a>,
    /// Layers entered so far.
    entered: usize,
    /// One state per sequence; its input is already rounded and pruned.
    pub states: Vec<State<T>>,
}

impl<'a, T: Scalar, B: Backend<T>> Stream<'a, T, B> {
    /// Embeds the windows: the stream before the first layer.
    pub fn new(
        forward: &'a Forward<T>,
        backend: &'a B,
        embedding: &Embedding<T>,
        windows: &Windows,
        activations: Activations<'a>,
    ) -> Self {
        let states = windows.tokens.outer_iter().map(|tokens| State::embed(embedding, tokens)).collect();
        Self::of(forward, backend, states, activations)
    }

    /// The stream of given states before the first layer.
    pub fn of(
        forward: &'a Forward<T>,
        backend: &'a B,
        states: Vec<State<T>>,
        activations: Activations<'a>,
    ) -> Self {
        Stream { forward, backend, activations, entered: 0, states }
    }

    /// Enters a layer.
    pub fn enter(&mut self, layer: &Layer<T>) {
        self.entered += 1;
        self.each_state(|stream, state| stream.enter_one(layer, state));
    }

    /// Advances every sequence over a group of the layer that was entered.
    pub fn group(&mut self, layer: &Layer<T>, group: Group) {
        self.each_state(|stream, state| stream.group_one(layer, group, state));
    }

    /// Runs every sequence through a layer.
    pub fn layer(&mut self, layer: &Layer<T>, progress: impl Fn() + Sync) {
        self.entered += 1;
        self.each_state(|stream, state| {
            stream.enter_one(layer, state);
            Group::ALL.into_iter().for_each(|group| stream.group_one(layer, group, state));
            progress();
        });
    }

    fn each_state(&mut self, then: impl Fn(&Self, &mut State<T>) + Sync) {
        let mut states = std::mem::take(&mut self.states);
        let stream = &*self;
        states.par_iter_mut().for_each(|state| then(stream, state));
        self.states = states;
    }

    fn enter_one(&self, layer: &Layer<T>, state: &mut State<T>) {
        self.forward.enter(layer, state);
        self.activations.treat(self.backend, &mut state.input);
    }

    fn group_one(&self, layer: &Layer<T>, group: Group, state: &mut State<T>) {
        let outputs = match self.activations.thresholds {
            None => apply(layer.group(group), state.input.view()),
            Some(Thresholds { layers, dense_tokens }) => {
                let of = |&linear: &Linear| {
                    let mut x = state.input.clone();
                    prune_below(x.view_mut(), layers[self.entered - 1][linear.index], *dense_tokens);
                    matmul(x.view(), layer.linear(linear).t())
                };
                layer.architecture.group(group).iter().map(of).collect()
            }
        };
        self.advance(layer, group, outputs, state);
    }

    /// Takes the outputs of a group's linears for one sequence; rounds and prunes the input of the next group.
    fn advance(&self, layer: &Layer<T>, group: Group, outputs: Vec<Array2<T>>, state: &mut State<T>) {
        self.forward.advance(layer, group, outputs, state);
        self.activations.treat(self.backend, &mut state.input);
    }

    /// Whether every entry of the next group's inputs is finite.
    pub fn is_finite(&self) -> bool {
        self.states.par_iter().all(|state| state.input.iter().all(|x| x.is_finite()))
    }
}

/// The error of the pruned linears' outputs against the dense ones, summed over sequences.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutputError {
    /// sum (y^ - y~)^2
    pub squared_error: f64,
    /// sum y~^2
    pub squared_norm: f64,
}

impl OutputError {
    /// ||Y^ - Y~||_F / ||Y~||_F, unless Y~ is zero.
    pub fn relative(self) -> Option<f64> {
        (self.squared_norm > 0.0).then(|| (self.squared_error / self.squared_norm).sqrt())
    }

    /// The stream, `"dense"` or `"sparse"`, in which an output is not finite. (The sums are of f64: outputs of an f32
    /// run cannot overflow them.)
    pub fn not_finite(self) -> Option<&'static str> {
        match (self.squared_norm.is_finite(), self.squared_error.is_finite()) {
            (false, _) => Some("dense"),
            (true, false) => Some("sparse"),
            (true, true) => None,
        }
    }
}

/// The dense and the sparse stream, between the same two groups.
pub struct Streams<'a, T, B> {
    /// Original weights, dense activations.
    pub dense: Stream<'a, T, B>,
    /// Weights pruned so far, pruned activations.
    pub sparse: Stream<'a, T, B>,
}

impl<T: Scalar, B: Backend<T>> Streams<'_, T, B> {
    /// Enters a layer with both streams.
    pub fn enter(&mut self, layer: &Layer<T>) {
        self.dense.enter(layer);
        self.sparse.enter(layer);
    }

    /// The stream, `"dense"` or `"sparse"`, in which an input of the next group is not finite.
    pub fn not_finite(&self) -> Option<&'static str> {
        let streams = [(&self.dense, "dense"), (&self.sparse, "sparse")];
        streams.into_iter().find(|(stream, _)| !stream.is_finite()).map(|(_, name)| name)
    }

    /// Advances both streams over one group, the sparse one with the `pruned` weights; returns the output error of each
    /// linear.
    ///
    /// Sequences run in parallel; their errors are added in the order of the sequences, so that a run repeats bit for
    /// bit.
    pub fn advance(
        &mut self,
        layer: &Layer<T>,
        group: Group,
        pruned: &[Array2<T>],
        progress: impl Fn() + Sync,
    ) -> Vec<OutputError> {
        let mut dense_states = std::mem::take(&mut self.dense.states);
        let mut sparse_states = std::mem::take(&mut self.sparse.states);
        let (dense_stream, sparse_stream) = (&self.dense, &self.sparse);
        let per_sequence: Vec<Vec<OutputError>> = dense_states
            .par_iter_mut()
            .zip(&mut sparse_states)
            .map(|(dense, sparse)| {
                let expected = apply(layer.group(group), dense.input.view());
                let found = apply(pruned, sparse.input.view());
                let errors = expected.iter().zip(&found);
                let errors = errors.map(|(expected, found)| output_error(expected, found)).collect();
                dense_stream.advance(layer, group, expected, dense);
                sparse_stream.advance(layer, group, found, sparse);
                progress();
                errors
            })
            .collect();
        self.dense.states = dense_states;
        self.sparse.states = sparse_states;
        let mut total = vec![OutputError::default(); pruned.len()];
        for errors in &per_sequence {
            for (total, one) in total.iter_mut().zip(errors) {
                total.squared_error += one.squared_error;
                total.squared_norm += one.squared_norm;
            }
        }
        total
    }
}

fn output_error<T: Scalar>(expected: &Array2<T>, found: &Array2<T>) -> OutputError {
    let mut sums = OutputError::default();
    for (expected, found) in expected.iter().zip(found) {
        let (expected, found) = (expected.widen(), found.widen());
        sums.squared_error += (found - expected).powi(2);
        sums.squared_norm += expected * expected;
    }
    sums
}
