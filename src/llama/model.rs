//! The forward pass, cut where the linears that share an input are: {q, k, v}, {o}, {gate, up}, {down}.
//!
//! Calibration, perplexity and generation run the same steps; between two of them stands whatever treats the
//! activations. The arithmetic is Hugging Face's: half-split rotary embedding, each key-value head repeated for
//! consecutive query heads.

use std::fmt;
use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip, s};

use super::LlamaConfig;
use super::cache::KeyValues;
use crate::linalg::{Scalar, gemm, matmul};

/// Linears with one common input, pruned with one set of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// q, k and v, behind the first norm.
    Qkv,
    /// o, behind the attention.
    O,
    /// gate and up, behind the second norm.
    GateUp,
    /// down, behind silu(gate) * up.
    Down,
}

impl Group {
    /// In the order of the forward pass.
    pub const ALL: [Group; 4] = [Group::Qkv, Group::O, Group::GateUp, Group::Down];

    /// The linears of the group.
    pub fn linears(self) -> &'static [Linear] {
        match self {
            Group::Qkv => &[Linear::Q, Linear::K, Linear::V],
            Group::O => &[Linear::O],
            Group::GateUp => &[Linear::Gate, Linear::Up],
            Group::Down => &[Linear::Down],
        }
    }

    /// Width of the common input.
    pub fn channels(self, config: &LlamaConfig) -> usize {
        self.linears()[0].shape(config).1
    }
}

/// The seven linears of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linear {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// MLP gate.
    Gate,
    /// MLP up.
    Up,
    /// MLP down.
    Down,
}

impl Linear {
    /// In the order of the forward pass.
    pub const ALL: [Linear; 7] =
        [Linear::Q, Linear::K, Linear::V, Linear::O, Linear::Gate, Linear::Up, Linear::Down];

    /// The group it belongs to.
    pub fn group(self) -> Group {
        match self {
            Linear::Q | Linear::K | Linear::V => Group::Qkv,
            Linear::O => Group::O,
            Linear::Gate | Linear::Up => Group::GateUp,
            Linear::Down => Group::Down,
        }
    }

    /// Rows (out) and columns (in) of its weight.
    pub fn shape(self, config: &LlamaConfig) -> (usize, usize) {
        match self {
            Linear::Q => (config.query_size(), config.hidden_size),
            Linear::K | Linear::V => (config.key_value_size(), config.hidden_size),
            Linear::O => (config.hidden_size, config.query_size()),
            Linear::Gate | Linear::Up => (config.intermediate_size, config.hidden_size),
            Linear::Down => (config.hidden_size, config.intermediate_size),
        }
    }
}

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Linear::Q => "q_proj",
            Linear::K => "k_proj",
            Linear::V => "v_proj",
            Linear::O => "o_proj",
            Linear::Gate => "gate_proj",
            Linear::Up => "up_proj",
            Linear::Down => "down_proj",
        })
    }
}

/// The weights of one decoder layer.
#[derive(Clone, Debug)]
pub struct Layer<T> {
    /// Weight of the norm before attention (hidden).
    pub input_layernorm: Array1<T>,
    /// Weight of the norm before the MLP (hidden).
    pub post_attention_layernorm: Array1<T>,
    /// The linears (out x in), in the order of [`Linear::ALL`].
    pub linears: Vec<Array2<T>>,
}

impl<T: Scalar> Layer<T> {
    /// One linear's weight (out x in).
    pub fn linear(&self, linear: Linear) -> &Array2<T> {
        &self.linears[linear as usize]
    }

    /// The weights of a group.
    pub fn group(&self, group: Group) -> &[Array2<T>] {
        let linears = group.linears();
        &self.linears[linears[0] as usize..=linears[linears.len() - 1] as usize]
    }
}

/// y = x W^T for every weight (out x in) of a group; `x` is tokens x in.
pub fn apply<T: Scalar>(weights: &[Array2<T>], x: ArrayView2<T>) -> Vec<Array2<T>> {
    weights.iter().map(|w| matmul(x, w.t())).collect()
}

/// Which tokens see which: a trunk, then branches that each continue the trunk and do not see each other.
///
/// So sequences with a common beginning share its rows, and what is computed for them. A single sequence is a trunk
/// without branches; of a trunk whose beginning was computed before, and is kept in a [`KeyValues`], only the rest has
/// rows.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Tokens of the trunk that have no rows.
    cached: usize,
    trunk: usize,
    /// Counted as the trunk's tokens are.
    branches: Vec<Range<usize>>,
}

/// Consecutive rows of one trunk or branch.
struct Run {
    /// Tokens of the trunk that a branch sees besides its own.
    trunk: usize,
    /// Place of the first token that belongs to the run, with rows or without.
    start: usize,
    /// Places of the tokens with rows. Each sees `start` up to itself.
    tokens: Range<usize>,
}

impl Layout {
    /// Rows 0.. are the trunk, then the branches follow one another.
    pub fn new(trunk: usize, branches: impl IntoIterator<Item = usize>) -> Self {
        let mut end = trunk;
        let branches = branches.into_iter().map(|length| {
            end += length;
            end - length..end
        });
        Layout { cached: 0, trunk, branches: branches.collect() }
    }

    /// The next `length` tokens of a sequence of which `cached` were computed before.
    pub fn after(cached: usize, length: usize) -> Self {
        Layout { cached, trunk: cached + length, branches: Vec::new() }
    }

    /// The row of a branch's token at `position`, counted from the beginning of the trunk.
    pub fn row(&self, branch: usize, position: usize) -> usize {
        if position < self.trunk { position } else { self.branches[branch].start + position - self.trunk }
    }

    /// Tokens in all, each counted once, without those computed before.
    pub fn rows(&self) -> usize {
        self.branches.last().map_or(self.trunk, |branch| branch.end) - self.cached
    }

    fn runs(&self) -> impl Iterator<Item = Run> {
        let trunk = Run { trunk: 0, start: 0, tokens: self.cached..self.trunk };
        let branch =
            |branch: &Range<usize>| Run { trunk: self.trunk, start: branch.start, tokens: branch.clone() };
        std::iter::once(trunk).chain(self.branches.iter().map(branch))
    }

    /// The position of each row's token in its sequence.
    fn positions(&self) -> impl Iterator<Item = usize> {
        self.runs().flat_map(|run| run.tokens.map(move |token| run.trunk + token - run.start))
    }
}

/// Where one sequence, or several with a common beginning, stand in the forward pass.
#[derive(Clone, Debug)]
pub struct State<T> {
    /// Which tokens see which.
    pub layout: Layout,
    /// The residual stream (tokens x hidden).
    pub hidden: Array2<T>,
    /// The input of the next group (tokens x channels).
    pub input: Array2<T>,
    /// Keys and values of the layer at hand, where they are to be kept for tokens to come.
    pub kept: Option<KeyValues<T>>,
}

impl<T: Scalar> State<T> {
    /// One sequence at the bottom of the model: the rows of the embedding (vocabulary x hidden).
    ///
    /// # Panics
    /// When a token lies outside the vocabulary.
    pub fn embed(embedding: ArrayView2<T>, tokens: ArrayView1<u32>) -> Self {
        Self::embed_branches(embedding, tokens, Layout::new(tokens.len(), []))
    }

    /// The same for tokens in the order of a layout's rows.
    ///
    /// # Panics
    /// When a token lies outside the vocabulary, or the layout has another number of rows.
    pub fn embed_branches(embedding: ArrayView2<T>, tokens: ArrayView1<u32>, layout: Layout) -> Self {
        assert_eq!(tokens.len(), layout.rows(), "a token per row");
        let rows: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
        let hidden = embedding.select(Axis(0), &rows);
        State { layout, hidden, input: Array2::zeros((0, 0)), kept: None }
    }
}

/// The steps between the linears.
#[derive(Clone, Debug)]
pub struct Forward<T> {
    config: LlamaConfig,
    rotary: Rotary<T>,
}

impl<T: Scalar> Forward<T> {
    /// For sequences of up to `length` tokens.
    pub fn new(config: &LlamaConfig, length: usize) -> Self {
        Forward { config: config.clone(), rotary: Rotary::new(config, length) }
    }

    /// Enters a layer: sets the input of {q, k, v}.
    pub fn enter(&self, layer: &Layer<T>, state: &mut State<T>) {
        state.input = self.norm(&state.hidden, &layer.input_layernorm);
    }

    /// Takes the outputs of `group` (a matrix per linear) and sets the input of the next group of the layer.
    /// Behind {down} there is none: the next layer is entered.
    pub fn advance(&self, layer: &Layer<T>, group: Group, outputs: Vec<Array2<T>>, state: &mut State<T>) {
        let mut outputs = outputs.into_iter();
        let mut next = || outputs.next().expect("one output per linear of the group");
        match group {
            Group::Qkv => {
                let (mut q, mut k, v) = (next(), next(), next());
                self.rotary.turn(&mut q, &state.layout);
                self.rotary.turn(&mut k, &state.layout);
                state.input = match &mut state.kept {
                    None => self.attention(q.view(), k.view(), v.view(), &state.layout),
                    Some(kept) => {
                        kept.append(k.view(), v.view());
                        self.attention(q.view(), kept.keys(), kept.values(), &state.layout)
                    }
                };
            }
            Group::O => {
                state.hidden += &next();
                state.input = self.norm(&state.hidden, &layer.post_attention_layernorm);
            }
            Group::GateUp => {
                let (mut gate, up) = (next(), next());
                Zip::from(&mut gate).and(&up).for_each(|gate, &up| *gate = silu(*gate) * up);
                state.input = gate;
            }
            Group::Down => {
                state.hidden += &next();
                state.input = Array2::zeros((0, 0));
            }
        }
    }

    /// x / rms(x) * weight, token by token.
    pub fn norm(&self, x: &Array2<T>, weight: &Array1<T>) -> Array2<T> {
        let (eps, width) = (T::of(self.config.rms_norm_eps), T::of(x.ncols() as f64));
        let mut out = x.clone();
        for mut token in out.axis_iter_mut(Axis(0)) {
            let mean_square = token.iter().map(|&x| x * x).sum::<T>() / width;
            let scale = T::one() / (mean_square + eps).sqrt();
            Zip::from(&mut token).and(weight).for_each(|x, &w| *x = *x * scale * w);
        }
        out
    }

    /// softmax(Q K^T / sqrt(d)) V per head, each token seeing itself and those before it in its sequence. `q` has a row per
    /// row of the layout, `k` and `v` also for the tokens that were computed before.
    fn attention(&self, q: ArrayView2<T>, k: ArrayView2<T>, v: ArrayView2<T>, layout: &Layout) -> Array2<T> {
        let d = self.config.head_dim;
        let queries_per_kv = self.config.num_attention_heads / self.config.num_key_value_heads;
        let scale = 1.0 / (d as f64).sqrt();
        // Queries in strips: what lies behind a strip's last token is never computed.
        const STRIP: usize = 128;
        let mut context = Array2::zeros((layout.rows(), self.config.query_size()));
        for head in 0..self.config.num_attention_heads {
            let kv = head / queries_per_kv;
            let (own, shared) = (head * d..(head + 1) * d, kv * d..(kv + 1) * d);
            for Run { trunk, start: first, tokens } in layout.runs() {
                for start in tokens.clone().step_by(STRIP) {
                    let end = (start + STRIP).min(tokens.end);
                    let rows = start - layout.cached..end - layout.cached;
                    let q = q.slice(s![rows.clone(), own.clone()]);
                    // The columns of the scores: the trunk, then the run.
                    let mut scores = Array2::zeros((end - start, trunk + end - first));
                    let (mut on_trunk, mut on_run) = scores.view_mut().split_at(Axis(1), trunk);
                    if trunk > 0 {
                        let k = k.slice(s![..trunk, shared.clone()]);
                        gemm(scale, q, k.t(), 0.0, on_trunk.view_mut());
                    }
                    let k = k.slice(s![first..end, shared.clone()]);
                    gemm(scale, q, k.t(), 0.0, on_run.view_mut());
                    for (i, mut row) in scores.axis_iter_mut(Axis(0)).enumerate() {
                        let seen = trunk + start - first + i + 1;
                        let (seen, mut unseen) = row.view_mut().split_at(Axis(0), seen);
                        unseen.fill(T::zero());
                        softmax(seen);
                    }
                    let (on_trunk, on_run) = scores.view().split_at(Axis(1), trunk);
                    let mut context = context.slice_mut(s![rows, own.clone()]);
                    let v_run = v.slice(s![first..end, shared.clone()]);
                    gemm(1.0, on_run, v_run, 0.0, context.view_mut());
                    if trunk > 0 {
                        let v_trunk = v.slice(s![..trunk, shared.clone()]);
                        gemm(1.0, on_trunk, v_trunk, 1.0, context.view_mut());
                    }
                }
            }
        }
        context
    }
}

fn softmax<T: Scalar>(mut x: ndarray::ArrayViewMut1<T>) {
    let largest = x.iter().copied().fold(T::neg_infinity(), T::max);
    x.mapv_inplace(|x| (x - largest).exp());
    let sum: T = x.iter().copied().sum();
    x.mapv_inplace(|x| x / sum);
}

fn silu<T: Scalar>(x: T) -> T {
    x / (T::one() + (-x).exp())
}

/// Rotary position embedding: cosines and sines (positions x head_dim / 2), computed in the arithmetic of the run, as
/// Hugging Face does: in f32 the rounding of the angles shows in the logits of long sequences.
#[derive(Clone, Debug)]
struct Rotary<T> {
    cos: Array2<T>,
    sin: Array2<T>,
}

impl<T: Scalar> Rotary<T> {
    fn new(config: &LlamaConfig, length: usize) -> Self {
        let half = config.head_dim / 2;
        let frequency: Vec<T> = (0..half).map(|i| frequency(config, i)).collect();
        let table = |f: fn(T) -> T| {
            Array2::from_shape_fn((length, half), |(position, i)| f(T::of(position as f64) * frequency[i]))
        };
        Rotary { cos: table(T::cos), sin: table(T::sin) }
    }

    /// Turns every head of `x` (tokens x heads * head_dim): entry i pairs with entry i + head_dim / 2.
    fn turn(&self, x: &mut Array2<T>, layout: &Layout) {
        let half = self.cos.ncols();
        for (position, mut token) in layout.positions().zip(x.axis_iter_mut(Axis(0))) {
            let (cos, sin) = (self.cos.row(position), self.sin.row(position));
            for mut head in token.axis_chunks_iter_mut(Axis(0), 2 * half) {
                let (first, second) = head.view_mut().split_at(Axis(0), half);
                Zip::from(first).and(second).and(cos).and(sin).for_each(|a, b, &cos, &sin| {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                });
            }
        }
    }
}

/// theta^(-2 i / head_dim), with LLaMA-3's stretching: long wavelengths are divided by the factor, short ones stay,
/// and between them the frequency is interpolated.
fn frequency<T: Scalar>(config: &LlamaConfig, i: usize) -> T {
    let plain = T::one() / T::of(config.rope_theta).powf(T::of(2.0 * i as f64 / config.head_dim as f64));
    let Some(scaling) = config.rope_scaling else { return plain };
    let turns = scaling.original_max_position_embeddings * plain.widen() / std::f64::consts::TAU;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    plain * T::of(smooth + (1.0 - smooth) / scaling.factor)
}
