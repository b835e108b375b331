//! The forward pass, in four steps per layer, one for each group of linears with a common input: {q, k, v}, {o}, {gate, up},
//! {down}.
//!
//! Calibration, perplexity and generation run the same steps; between two steps the caller may round or prune the
//! activations. The arithmetic is Hugging Face's: half-split rotary embedding, each key-value head repeated for
//! consecutive query heads. [`ModelConfig`] says in what the
//! [architectures](super::architecture) differ.

use std::fmt;
use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip, s};

use super::ModelConfig;
use super::architecture::Architecture;
use super::cache::KeyValues;
use super::config::{Activation, Llama3Scaling, NormKind, NormPlace, Positions};
use crate::linalg::{Scalar, gemm, matmul};

/// Linears with one common input, pruned with one set of statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// q, k and v: the input of the attention block.
    Qkv,
    /// o: its input is the output of attention.
    O,
    /// gate and up: the input of the MLP; up alone in an MLP without a gate.
    GateUp,
    /// down: its input is act(gate) * up, or act(up).
    Down,
}

impl Group {
    /// In the order of the forward pass.
    pub const ALL: [Group; 4] = [Group::Qkv, Group::O, Group::GateUp, Group::Down];

    /// The linears of the group.
    pub fn linears(self, config: &ModelConfig) -> &'static [Linear] {
        config.architecture.group(self)
    }

    /// Width of the common input.
    pub fn channels(self, config: &ModelConfig) -> usize {
        self.linears(config)[0].shape(config).1
    }
}

/// The role of a linear in the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
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

/// One of the linears of a decoder layer: a row of its [architecture](super::architecture)'s table. Shown by its own name,
/// as `q_proj` or `fc1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Its role.
    pub role: Role,
    /// Its place among the layer's linears, from 0.
    pub index: usize,
    /// The name of its tensors within the layer: `self_attn.q_proj`.
    pub module: &'static str,
}

impl Linear {
    /// A table of linears, in the order of the forward pass.
    pub const fn table<const N: usize>(rows: [(Role, &'static str); N]) -> [Linear; N] {
        let mut table = [Linear { role: rows[0].0, index: 0, module: rows[0].1 }; N];
        let mut index = 1;
        while index < N {
            table[index] = Linear { role: rows[index].0, index, module: rows[index].1 };
            index += 1;
        }
        table
    }

    /// The group it belongs to.
    pub fn group(self) -> Group {
        match self.role {
            Role::Q | Role::K | Role::V => Group::Qkv,
            Role::O => Group::O,
            Role::Gate | Role::Up => Group::GateUp,
            Role::Down => Group::Down,
        }
    }

    /// Rows (out) and columns (in) of its weight.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        match self.role {
            Role::Q => (config.query_size(), config.hidden_size),
            Role::K | Role::V => (config.key_value_size(), config.hidden_size),
            Role::O => (config.hidden_size, config.query_size()),
            Role::Gate | Role::Up => (config.intermediate_size, config.hidden_size),
            Role::Down => (config.hidden_size, config.intermediate_size),
        }
    }
}

impl Linear {
    /// The fields of `config.json` that its rows and columns come from.
    pub(super) fn fields(self) -> (&'static str, &'static str) {
        let (queries, keys) = ("`num_attention_heads` x `head_dim`", "`num_key_value_heads` x `head_dim`");
        let (hidden, inner) = ("`hidden_size`", "`intermediate_size` or `ffn_dim`");
        match self.role {
            Role::Q => (queries, hidden),
            Role::K | Role::V => (keys, hidden),
            Role::O => (hidden, queries),
            Role::Gate | Role::Up => (inner, hidden),
            Role::Down => (hidden, inner),
        }
    }
}

impl fmt::Display for Linear {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (_, name) = self.module.rsplit_once('.').unwrap_or(("", self.module));
        f.write_str(name)
    }
}

/// The weights of a norm: hidden each, head_dim of a norm of queries or keys.
#[derive(Clone, Debug)]
pub struct Norm<T> {
    /// Factors.
    pub weight: Array1<T>,
    /// Added by a LayerNorm.
    pub bias: Option<Array1<T>>,
}

/// The weights of one decoder layer.
#[derive(Clone, Debug)]
pub struct Layer<T> {
    /// The norm of the attention block.
    pub attention_norm: Norm<T>,
    /// The norm of the MLP.
    pub mlp_norm: Norm<T>,
    /// The norms of queries and keys (head_dim each), where the architecture has them.
    pub query_key_norms: Option<[Norm<T>; 2]>,
    /// The linears (out x in), in the order of their architecture's table.
    pub linears: Vec<Array2<T>>,
    /// Their biases (out), in the same order.
    pub biases: Vec<Option<Array1<T>>>,
    /// Tokens that a token attends to, itself included; `None` for all tokens before it.
    pub window: Option<usize>,
    /// The architecture that defines the linears.
    pub architecture: &'static Architecture,
}

impl<T: Scalar> Layer<T> {
    /// One linear's weight (out x in).
    pub fn linear(&self, linear: Linear) -> &Array2<T> {
        &self.linears[linear.index]
    }

    /// The weights of a group.
    pub fn group(&self, group: Group) -> &[Array2<T>] {
        let linears = self.architecture.group(group);
        &self.linears[linears[0].index..][..linears.len()]
    }
}

/// Everything before the first layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding<T> {
    /// A row for each token (vocabulary x embedding width).
    pub tokens: Array2<T>,
    /// Projects the embedding to the width of the residual stream where the two differ (hidden x embedding width).
    pub project: Option<Array2<T>>,
    /// Learned vectors, added by position (positions x hidden).
    pub positions: Option<Array2<T>>,
}

/// Everything after the last layer.
#[derive(Clone, Debug)]
pub struct Head<T> {
    /// The norm before lm_head, if there is one.
    pub norm: Option<Norm<T>>,
    /// Projects the residual stream to the width of the embedding where the two differ (embedding width x hidden).
    pub project: Option<Array2<T>>,
    /// lm_head (vocabulary x embedding width).
    pub weight: Array2<T>,
}

/// y = x W^T for every weight (out x in) of a group; `x` is tokens x in. [`Forward::advance`] adds the biases,
/// so that the error of pruning is measured without them.
pub fn apply<T: Scalar>(weights: &[Array2<T>], x: ArrayView2<T>) -> Vec<Array2<T>> {
    weights.iter().map(|w| matmul(x, w.t())).collect()
}

/// Which tokens attend to which: a trunk, then branches that each continue the trunk and do not attend to each other.
///
/// So sequences with a common beginning share its rows and their cost. A single sequence is a trunk without branches. If
/// the beginning of a trunk was computed before and is kept in a [`KeyValues`], only the rest has rows.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Tokens of the trunk that were computed before and have no rows.
    cached: usize,
    trunk: usize,
    /// Counted as the trunk's tokens are.
    branches: Vec<Range<usize>>,
}

/// Consecutive rows of one trunk or branch.
struct Run {
    /// Tokens of the trunk that a branch attends to besides its own.
    trunk: usize,
    /// Place of the first token of the run, whether it has a row or not.
    start: usize,
    /// Places of the tokens with rows. Each attends to the places from `start` up to its own.
    tokens: Range<usize>,
}

impl Layout {
    /// The rows of the trunk come first, then those of each branch.
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

    /// The number of rows: each token counts once, without those computed before.
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

/// The state of one sequence, or of several with a common beginning, between two steps of the forward pass.
#[derive(Clone, Debug)]
pub struct State<T> {
    /// Which tokens attend to which.
    pub layout: Layout,
    /// The residual stream (tokens x hidden).
    pub hidden: Array2<T>,
    /// The input of the next group (tokens x channels).
    pub input: Array2<T>,
    /// Keys and values of the current layer, if later tokens need them.
    pub kept: Option<KeyValues<T>>,
}

impl<T: Scalar> State<T> {
    /// Embeds one sequence: its state before the first layer.
    ///
    /// # Panics
    /// When a token lies outside the vocabulary, or the sequence is longer than the table of positions.
    pub fn embed(embedding: &Embedding<T>, tokens: ArrayView1<u32>) -> Self {
        Self::embed_branches(embedding, tokens, Layout::new(tokens.len(), []))
    }

    /// The same for tokens in the order of a layout's rows.
    ///
    /// # Panics
    /// As [`embed`](Self::embed), and when the layout has another number of rows.
    pub fn embed_branches(embedding: &Embedding<T>, tokens: ArrayView1<u32>, layout: Layout) -> Self {
        assert_eq!(tokens.len(), layout.rows(), "a token per row");
        let rows: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
        Self::of_rows(embedding, embedding.tokens.select(Axis(0), &rows), layout)
    }

    /// The same, given the row of each token (tokens x embedding size).
    pub fn of_rows(embedding: &Embedding<T>, rows: Array2<T>, layout: Layout) -> Self {
        let mut hidden = rows;
        if let Some(project) = &embedding.project {
            hidden = matmul(hidden.view(), project.t());
        }
        if let Some(table) = &embedding.positions {
            let positions: Vec<usize> = layout.positions().collect();
            hidden += &table.select(Axis(0), &positions);
        }
        State { layout, hidden, input: Array2::zeros((0, 0)), kept: None }
    }
}

/// The steps between the linears.
#[derive(Clone, Debug)]
pub struct Forward<T> {
    config: ModelConfig,
    rotary: Option<Rotary<T>>,
}

impl<T: Scalar> Forward<T> {
    /// With rotary tables for sequences of up to `length` tokens.
    pub fn new(config: &ModelConfig, length: usize) -> Self {
        let rotary = match config.positions {
            Positions::Rotary { theta, scaling } => {
                Some(Rotary::new(theta, scaling, config.head_dim, length))
            }
            Positions::Learned { .. } => None,
        };
        Forward { config: config.clone(), rotary }
    }

    /// Enters a layer: sets the input of {q, k, v}.
    pub fn enter(&self, layer: &Layer<T>, state: &mut State<T>) {
        state.input = self.block_input(&state.hidden, &layer.attention_norm);
    }

    // ANCHOR: advance
    /// Takes the outputs of `group` without their biases (a matrix per linear, from [`apply`]) and sets the input of the
    /// next group of the layer. After {down} there is none: enter the next layer.
    pub fn advance(&self, layer: &Layer<T>, group: Group, mut outputs: Vec<Array2<T>>, state: &mut State<T>) {
        for (linear, output) in layer.architecture.group(group).iter().zip(&mut outputs) {
            if let Some(bias) = &layer.biases[linear.index] {
                *output += bias;
            }
        }
        let mut outputs = outputs.into_iter();
        let mut next = || outputs.next().expect("one output per linear of the group");
        match group {
            Group::Qkv => {
                let (mut q, mut k, v) = (next(), next(), next());
                if let Some([query_norm, key_norm]) = &layer.query_key_norms {
                    q = self.norm_heads(q, query_norm);
                    k = self.norm_heads(k, key_norm);
                }
                if let Some(rotary) = &self.rotary {
                    rotary.turn(&mut q, &state.layout);
                    rotary.turn(&mut k, &state.layout);
                }
                let (layout, window) = (&state.layout, layer.window);
                state.input = match &mut state.kept {
                    None => self.attention(q.view(), k.view(), v.view(), layout, window),
                    Some(kept) => {
                        kept.append(k.view(), v.view());
                        self.attention(q.view(), kept.keys(), kept.values(), layout, window)
                    }
                };
            }
            Group::O => {
                self.leave_block(next(), &layer.attention_norm, state);
                state.input = self.block_input(&state.hidden, &layer.mlp_norm);
            }
            Group::GateUp => {
                let mut inner = next();
                inner.mapv_inplace(|x| self.config.activation.apply(x));
                // The first was a gate if there is a second.
                if let Some(up) = outputs.next() {
                    inner *= &up;
                }
                state.input = inner;
            }
            Group::Down => {
                self.leave_block(next(), &layer.mlp_norm, state);
                state.input = Array2::zeros((0, 0));
            }
        }
    }
    // ANCHOR_END: advance

    /// The input of a block (attention or MLP), from the residual stream.
    fn block_input(&self, hidden: &Array2<T>, norm: &Norm<T>) -> Array2<T> {
        match self.config.norm_place {
            NormPlace::Before => self.norm(hidden, norm),
            NormPlace::Behind => hidden.clone(),
        }
    }

    /// Adds the output of a block to the residual stream.
    fn leave_block(&self, output: Array2<T>, norm: &Norm<T>, state: &mut State<T>) {
        state.hidden += &output;
        if self.config.norm_place == NormPlace::Behind {
            state.hidden = self.norm(&state.hidden, norm);
        }
    }

    /// The logits (tokens x vocabulary) of hidden states after the last layer (tokens x hidden).
    pub fn logits(&self, head: &Head<T>, hidden: &Array2<T>) -> Array2<T> {
        matmul(self.leave(head, hidden).view(), head.weight.t())
    }

    /// The input of lm_head (tokens x embedding width), of hidden states after the last layer.
    pub fn leave(&self, head: &Head<T>, hidden: &Array2<T>) -> Array2<T> {
        let mut hidden = match &head.norm {
            Some(norm) => self.norm(hidden, norm),
            None => hidden.clone(),
        };
        if let Some(project) = &head.project {
            hidden = matmul(hidden.view(), project.t());
        }
        hidden
    }

    /// Applies the model's kind of norm to every token.
    pub fn norm(&self, x: &Array2<T>, norm: &Norm<T>) -> Array2<T> {
        let width = T::of(x.ncols() as f64);
        let mut out = x.clone();
        for mut token in out.axis_iter_mut(Axis(0)) {
            let eps = match self.config.norm {
                NormKind::Rms { eps } => eps,
                NormKind::Layer { eps } => {
                    let mean = token.iter().copied().sum::<T>() / width;
                    token.mapv_inplace(|x| x - mean);
                    eps
                }
            };
            let mean_square = token.iter().map(|&x| x * x).sum::<T>() / width;
            let scale = T::one() / (mean_square + T::of(eps)).sqrt();
            Zip::from(&mut token).and(&norm.weight).for_each(|x, &w| *x = *x * scale * w);
            if let Some(bias) = &norm.bias {
                token += bias;
            }
        }
        out
    }

    /// Applies it to every head separately (tokens x heads * head_dim).
    fn norm_heads(&self, x: Array2<T>, norm: &Norm<T>) -> Array2<T> {
        let (tokens, width) = x.dim();
        let d = self.config.head_dim;
        let by_head = x.into_shape_with_order((tokens * width / d, d)).expect("heads of equal width");
        let normed = self.norm(&by_head, norm);
        normed.into_shape_with_order((tokens, width)).expect("as it was")
    }

    /// softmax(Q K^T / sqrt(d)) V per head. Each token attends to itself and to the tokens before it in its sequence: to all,
    /// or to a window. `q` has a row per row of the layout; `k` and `v` also have rows for the tokens computed before.
    fn attention(
        &self,
        q: ArrayView2<T>,
        k: ArrayView2<T>,
        v: ArrayView2<T>,
        layout: &Layout,
        window: Option<usize>,
    ) -> Array2<T> {
        let d = self.config.head_dim;
        let queries_per_kv = self.config.num_attention_heads / self.config.num_key_value_heads;
        let scale = 1.0 / (d as f64).sqrt();
        // The first position that the token at `position` sees.
        let first_seen = |position: usize| window.map_or(0, |window| (position + 1).saturating_sub(window));
        // Queries in strips: keys after a strip's last token, or before its first token's window, are skipped.
        const STRIP: usize = 128;
        let mut context = Array2::zeros((layout.rows(), self.config.query_size()));
        for head in 0..self.config.num_attention_heads {
            let kv = head / queries_per_kv;
            let (own, shared) = (head * d..(head + 1) * d, kv * d..(kv + 1) * d);
            for Run { trunk, start: run_start, tokens } in layout.runs() {
                for start in tokens.clone().step_by(STRIP) {
                    let end = (start + STRIP).min(tokens.end);
                    let rows = start - layout.cached..end - layout.cached;
                    let q = q.slice(s![rows.clone(), own.clone()]);
                    // The columns of the scores are positions from `first` on: of the trunk, then of the run.
                    let position = trunk + start - run_start;
                    let first = first_seen(position);
                    let of_trunk = first.min(trunk)..trunk;
                    let of_run = run_start + first.saturating_sub(trunk)..end;
                    let mut scores = Array2::zeros((end - start, of_trunk.len() + of_run.len()));
                    let (mut on_trunk, mut on_run) = scores.view_mut().split_at(Axis(1), of_trunk.len());
                    if !of_trunk.is_empty() {
                        let k = k.slice(s![of_trunk.clone(), shared.clone()]);
                        gemm(scale, q, k.t(), 0.0, on_trunk.view_mut());
                    }
                    let k = k.slice(s![of_run.clone(), shared.clone()]);
                    gemm(scale, q, k.t(), 0.0, on_run.view_mut());
                    for (position, mut row) in (position..).zip(scores.axis_iter_mut(Axis(0))) {
                        let seen = first_seen(position) - first..position + 1 - first;
                        row.slice_mut(s![..seen.start]).fill(T::zero());
                        row.slice_mut(s![seen.end..]).fill(T::zero());
                        softmax(row.slice_mut(s![seen]));
                    }
                    let (on_trunk, on_run) = scores.view().split_at(Axis(1), of_trunk.len());
                    let mut context = context.slice_mut(s![rows, own.clone()]);
                    let v_run = v.slice(s![of_run, shared.clone()]);
                    gemm(1.0, on_run, v_run, 0.0, context.view_mut());
                    if !of_trunk.is_empty() {
                        let v_trunk = v.slice(s![of_trunk, shared.clone()]);
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

impl Activation {
    fn apply<T: Scalar>(self, x: T) -> T {
        match self {
            Activation::Silu => x / (T::one() + (-x).exp()),
            // Not `max`, which would hide NaN.
            Activation::Relu if x < T::zero() => T::zero(),
            Activation::Relu => x,
        }
    }
}

/// Rotary position embedding: cosines and sines (positions x head_dim / 2), computed in the arithmetic of the run, as
/// Hugging Face does: in f32 the rounding of the angles is visible in the logits of long sequences.
#[derive(Clone, Debug)]
struct Rotary<T> {
    cos: Array2<T>,
    sin: Array2<T>,
}

impl<T: Scalar> Rotary<T> {
    fn new(theta: f64, scaling: Option<Llama3Scaling>, head_dim: usize, length: usize) -> Self {
        let half = head_dim / 2;
        let frequency: Vec<T> = (0..half).map(|i| frequency(theta, scaling, head_dim, i)).collect();
        let table = |f: fn(T) -> T| {
            Array2::from_shape_fn((length, half), |(position, i)| f(T::of(position as f64) * frequency[i]))
        };
        Rotary { cos: table(T::cos), sin: table(T::sin) }
    }

    /// Rotates every head of `x` (tokens x heads * head_dim): entry i pairs with entry i + head_dim / 2.
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

/// theta^(-2 i / head_dim), with LLaMA-3's scaling: the frequencies of long wavelengths are divided by the factor, those of short
/// ones stay, and between them the frequency is interpolated.
fn frequency<T: Scalar>(theta: f64, scaling: Option<Llama3Scaling>, head_dim: usize, i: usize) -> T {
    let plain = T::one() / T::of(theta).powf(T::of(2.0 * i as f64 / head_dim as f64));
    let Some(scaling) = scaling else { return plain };
    let turns = scaling.original_max_position_embeddings * plain.widen() / std::f64::consts::TAU;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    plain * T::of(smooth + (1.0 - smooth) / scaling.factor)
}
