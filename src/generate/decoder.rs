//! The model in memory, and the forward pass of one sequence through it.

use ndarray::{Array1, Array2, Axis, s};
use rayon::prelude::*;

use super::error::GenerateError;
use super::products::{Keep, Products};
use super::weight::{FormatKind, Weight};
use crate::calibrate::streams::Activations;
use crate::linalg::Scalar;
use crate::model::cache::KeyValues;
use crate::model::forward::{Embedding, Forward, Group, Head, Layer, Layout, Linear, State};
use crate::model::{Checkpoint, CheckpointError};
use crate::progress::Observer;
use crate::tensors::FloatType;

/// Tokens of a prompt that are multiplied together: enough that multiplying a weight costs much more than decompressing
/// it, few enough that their activations need much less memory than the weights.
const CHUNK: usize = 256;

/// A model whose weights stay in memory, compressed, and the rule for its activations.
pub struct Decoder<'a, T: Scalar, P: Products<T>> {
    checkpoint: &'a Checkpoint,
    products: P,
    activations: Activations<'a>,
    forward: Forward<T>,
    /// The longest sequence, in tokens.
    capacity: usize,
    /// Without rows: they are read from the checkpoint.
    embedding: Embedding<T>,
    /// Without linears, and these beside it.
    layers: Vec<(Layer<T>, Vec<P::Weight>)>,
    /// Without lm_head, and this beside it.
    head: (Head<T>, P::Weight),
    /// What is held, by layer and linear.
    pub held: Vec<Vec<Held>>,
    /// lm_head; it is not pruned.
    pub held_head: Held,
}

/// A weight in memory.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its tensor in the checkpoint.
    pub tensor: String,
    /// How it is stored.
    pub format: FormatKind,
    /// Rows (out) and columns (in).
    pub shape: (usize, usize),
    /// Fraction of zeros.
    pub sparsity: f64,
    /// Bytes.
    pub bytes: usize,
    /// Bytes as a dense weight of its type.
    pub dense_bytes: usize,
}

/// One sequence: the keys and values of its tokens so far.
pub struct Sequence<T> {
    length: usize,
    /// By layer; none while the layer is at work.
    kept: Vec<Option<KeyValues<T>>>,
    /// What its single tokens read.
    pub traffic: Traffic,
}

/// What the passes of single tokens read.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// Passes.
    pub tokens: usize,
    /// Bytes of weights, lm_head included.
    pub weight_bytes: usize,
    /// Bytes of keys and values.
    pub cache_bytes: usize,
    /// By layer and linear: active entries of the input.
    pub kept: Vec<Vec<usize>>,
}

impl Traffic {
    /// Sets all counts to zero.
    pub fn clear(&mut self) {
        self.kept.iter_mut().flatten().for_each(|kept| *kept = 0);
        *self = Traffic { kept: std::mem::take(&mut self.kept), ..Traffic::default() };
    }
}

impl<T> Sequence<T> {
    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl<'a, T: Scalar, P: Products<T>> Decoder<'a, T, P> {
    /// Reads all weights, and holds the linears in the given format, or each in the [best](FormatKind::best) one. Sequences
    /// will have up to `capacity` tokens.
    ///
    /// # Errors
    /// [`GenerateError`] when a tensor cannot be read or is stored in f64, or the device has no room.
    pub fn load(
        checkpoint: &'a Checkpoint,
        products: P,
        format: Option<FormatKind>,
        activations: Activations<'a>,
        capacity: usize,
        observer: &dyn Observer,
    ) -> Result<Self, GenerateError> {
        let config = &checkpoint.config;
        observer.begin(config.num_hidden_layers as u64 + 1);
        // First what is largest as it is read, while memory is empty.
        let weight = checkpoint.head::<f32>()?.weight;
        let (head, held_head) =
            store(checkpoint, &checkpoint.lm_head_tensor(), weight, Some(FormatKind::Dense))?;
        let head = products.hold(head)?;
        checkpoint.drop_pages();
        observer.advance();
        let (mut layers, mut held) = (Vec::new(), Vec::new());
        for number in 0..config.num_hidden_layers {
            let store = |&linear: &Linear| -> Result<(P::Weight, Held), GenerateError> {
                let weight = checkpoint.linear::<f32>(number, linear)?;
                let (weight, held) = store(checkpoint, &checkpoint.tensor(number, linear), weight, format)?;
                Ok((products.hold(weight)?, held))
            };
            let stored = config.linears().par_iter().map(store).collect::<Result<Vec<_>, _>>()?;
            let (weights, of_layer) = stored.into_iter().unzip();
            layers.push((checkpoint.frame(number)?, weights));
            held.push(of_layer);
            checkpoint.drop_pages();
            observer.advance();
        }
        Ok(Decoder {
            checkpoint,
            activations,
            forward: Forward::new(config, capacity),
            capacity,
            embedding: checkpoint.embedding_frame()?,
            layers,
            head: (checkpoint.head_frame()?, head),
            products,
            held,
            held_head,
        })
    }

    /// Tokens that a sequence can have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What multiplies.
    pub fn products(&self) -> &P {
        &self.products
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> Sequence<T> {
        let config = &self.checkpoint.config;
        let kept = || Some(KeyValues::new(config, self.capacity));
        let of_layer = |held: &Vec<Held>| vec![0; held.len()];
        Sequence {
            length: 0,
            kept: self.layers.iter().map(|_| kept()).collect(),
            traffic: Traffic { kept: self.held.iter().map(of_layer).collect(), ..Traffic::default() },
        }
    }

    /// Takes the sequence's next tokens through the model; returns the logits (vocabulary) after the last of them.
    ///
    /// # Errors
    /// [`GenerateError`] when a row of the embedding is not finite, or the device fails.
    ///
    /// # Panics
    /// When there is no token, one is outside the vocabulary, or they are more than the capacity leaves.
    pub fn feed(&self, sequence: &mut Sequence<T>, tokens: &[u32]) -> Result<Array1<T>, GenerateError> {
        assert!(!tokens.is_empty(), "nothing to predict from");
        // On a thread of the pool from the beginning: each of a token's many small steps would be handed over to one.
        rayon::scope(|_| self.feed_on_the_pool(sequence, tokens))
    }

    fn feed_on_the_pool(
        &self,
        sequence: &mut Sequence<T>,
        tokens: &[u32],
    ) -> Result<Array1<T>, GenerateError> {
        // The rule is one for all tokens of a pass.
        let dense = self.activations.thresholds.map_or(0, |thresholds| thresholds.dense_tokens);
        let mut rest = tokens;
        let mut hidden = Array2::zeros((0, 0));
        while !rest.is_empty() {
            let sparse_from = dense.saturating_sub(sequence.length);
            let longest = if sparse_from > 0 { sparse_from.min(CHUNK) } else { CHUNK };
            let (chunk, after) = rest.split_at(longest.min(rest.len()));
            hidden = self.pass(sequence, chunk, sparse_from > 0)?;
            rest = after;
        }
        let last = hidden.slice(s![-1.., ..]).to_owned();
        let (head, weight) = &self.head;
        let input = self.forward.leave(head, &last);
        let mut products =
            self.products.multiply(std::slice::from_ref(weight), &[Keep::ALL], input.view())?;
        let logits = products.pop().expect("one product per weight");
        if last.nrows() == hidden.nrows() {
            sequence.traffic.weight_bytes += logits.bytes;
        }
        Ok(logits.output.index_axis_move(Axis(0), 0))
    }

    /// The hidden states (tokens x hidden) after the last layer.
    fn pass(
        &self,
        sequence: &mut Sequence<T>,
        tokens: &[u32],
        dense: bool,
    ) -> Result<Array2<T>, GenerateError> {
        let rows = self.checkpoint.embedding_rows::<T>(tokens)?;
        let mut state = State::of_rows(&self.embedding, rows, Layout::after(sequence.length, tokens.len()));
        let single = tokens.len() == 1;
        sequence.length += tokens.len();
        for (number, (layer, weights)) in self.layers.iter().enumerate() {
            state.kept = sequence.kept[number].take();
            self.forward.enter(layer, &mut state);
            for group in Group::ALL {
                let linears = layer.architecture.group(group);
                if let Some(to) = self.activations.round_to {
                    state.input.mapv_inplace(|x| to.round(x));
                }
                let keep: Vec<Keep> =
                    linears.iter().map(|&linear| self.keep(number, linear, dense)).collect();
                let weights = &weights[linears[0].index..][..linears.len()];
                let products = self.products.multiply(weights, &keep, state.input.view())?;
                if single {
                    for (&linear, product) in linears.iter().zip(&products) {
                        sequence.traffic.weight_bytes += product.bytes;
                        sequence.traffic.kept[number][linear.index] += product.kept;
                    }
                }
                let outputs = products.into_iter().map(|product| product.output).collect();
                self.forward.advance(layer, group, outputs, &mut state);
            }
            if single {
                sequence.traffic.cache_bytes += state.kept.as_ref().map_or(0, KeyValues::bytes);
            }
            sequence.kept[number] = state.kept.take();
        }
        sequence.traffic.tokens += usize::from(single);
        Ok(state.hidden)
    }

    /// Which entries of a linear's input stay active.
    fn keep(&self, layer: usize, linear: Linear, dense: bool) -> Keep {
        match self.activations.thresholds {
            Some(_) if dense => Keep::ALL,
            Some(thresholds) => Keep::Above(thresholds.layers[layer][linear.index]),
            None => Keep::Largest(self.activations.sparsity),
        }
    }
}

/// A weight as its checkpoint's type says, in a format.
fn store(
    checkpoint: &Checkpoint,
    tensor: &str,
    weight: Array2<f32>,
    format: Option<FormatKind>,
) -> Result<(Weight, Held), CheckpointError> {
    let dtype =
        FloatType::of(checkpoint.info(tensor)?.dtype).expect("checked when the checkpoint was opened");
    let zeros = weight.iter().filter(|w| **w == 0.0).count();
    let sparsity = zeros as f64 / weight.len() as f64;
    let format = format.unwrap_or_else(|| FormatKind::best(dtype, 1.0 - sparsity));
    let shape = weight.dim();
    let stored = Weight::new(weight, dtype, format).ok_or_else(|| CheckpointError::Unsupported {
        path: checkpoint.directory.clone(),
        detail: format!(
            "tensor `{tensor}` is stored as F64, and decoding holds F32, F16 and BF16; write the checkpoint with --dtype f32"
        ),
    })?;
    let held = Held {
        tensor: tensor.into(),
        format,
        shape,
        sparsity,
        bytes: stored.bytes(),
        dense_bytes: shape.0 * shape.1 * dtype.size(),
    };
    Ok((stored, held))
}
