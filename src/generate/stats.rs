//! The cost of a generation, compared with the time that memory needs for its bytes.

use std::fmt;

use serde::Serialize;

use super::decoder::{Decoder, Held};
use super::products::Products;
use super::{FormatKind, Generation};
use crate::linalg::Scalar;

/// The figures of one generation.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Arithmetic.
    pub precision: &'static str,
    /// The device that multiplied.
    pub products: String,
    /// The prompt.
    pub prompt: Speed,
    /// Tokens that were fed one by one, and the time of their passes.
    pub decoding: Speed,
    /// Mean over the decoded tokens; null when there was none.
    pub bytes_per_token: Option<BytesPerToken>,
    /// Bytes per second that the weights' memory delivers, as measured just now; null where that is not known.
    pub memory_bandwidth: Option<f64>,
    /// The time that memory needs for the bytes of a token, as a fraction of the time that the token took. Above 1 where
    /// the weights stay in a cache.
    pub share_of_byte_limit: Option<f64>,
    /// Memory.
    pub memory: Memory,
    /// Every linear, in the order of the forward pass.
    pub linears: Vec<LinearStats>,
}

/// Tokens in a time.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// How many.
    pub tokens: usize,
    /// How long they took.
    pub seconds: f64,
    /// The quotient; null without tokens.
    pub tokens_per_second: Option<f64>,
}

/// Bytes that one token reads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BytesPerToken {
    /// The sum of weights, keys and values.
    pub total: f64,
    /// Weights of the linears and lm_head.
    pub weights: f64,
    /// Keys and values of the tokens before.
    pub cache: f64,
    /// Bytes that dense weights with dense activations would read.
    pub dense_weights: f64,
}

/// Bytes in memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Weights of the linears and lm_head, as held.
    pub weights: usize,
    /// The same without compression.
    pub dense_weights: usize,
    /// Most that the process ever had resident, pages of mapped files included; null where the system does not say.
    pub peak_resident: Option<usize>,
}

/// One linear.
#[derive(Clone, Debug, Serialize)]
pub struct LinearStats {
    /// Its weight's tensor.
    pub tensor: String,
    /// How it is held.
    pub format: FormatKind,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// Fraction of zeros of the weight.
    pub weight_sparsity: f64,
    /// Fraction of inactive entries of the input, over the decoded tokens; null if there were none.
    pub activation_sparsity: Option<f64>,
    /// In memory.
    pub bytes: usize,
}

impl Speed {
    fn new(tokens: usize, seconds: f64) -> Self {
        Speed { tokens, seconds, tokens_per_second: (tokens > 0).then(|| tokens as f64 / seconds) }
    }
}

impl Stats {
    /// Of a generation by this decoder that has just ended. Memory is measured now, first its use and then its speed.
    pub fn new<T: Scalar, P: Products<T>>(
        decoder: &Decoder<T, P>,
        prompt_tokens: usize,
        generation: &Generation,
    ) -> Self {
        let (peak_resident, memory_bandwidth) = (peak_resident(), decoder.products().bandwidth());
        let traffic = &generation.traffic;
        let tokens = traffic.tokens;
        let held = || decoder.held.iter().flatten().chain([&decoder.held_head]);
        let sum = |of: fn(&Held) -> usize| held().map(of).sum::<usize>();
        let per_token = |bytes: usize| bytes as f64 / tokens as f64;
        let bytes_per_token = (tokens > 0).then(|| BytesPerToken {
            total: per_token(traffic.weight_bytes + traffic.cache_bytes),
            weights: per_token(traffic.weight_bytes),
            cache: per_token(traffic.cache_bytes),
            dense_weights: sum(|held| held.dense_bytes) as f64,
        });
        let decoding = Speed::new(tokens, generation.decoding_time.as_secs_f64());
        let linears = decoder.held.iter().flatten().zip(traffic.kept.iter().flatten());
        Stats {
            precision: T::NAME,
            products: decoder.products().describe(),
            prompt: Speed::new(prompt_tokens, generation.prompt_time.as_secs_f64()),
            decoding,
            bytes_per_token,
            memory_bandwidth,
            share_of_byte_limit: bytes_per_token
                .zip(memory_bandwidth)
                .map(|(bytes, bandwidth)| bytes.total / bandwidth * tokens as f64 / decoding.seconds),
            memory: Memory {
                weights: sum(|held| held.bytes),
                dense_weights: sum(|held| held.dense_bytes),
                peak_resident,
            },
            linears: linears
                .map(|(held, &kept)| LinearStats {
                    tensor: held.tensor.clone(),
                    format: held.format,
                    shape: held.shape,
                    weight_sparsity: held.sparsity,
                    activation_sparsity: (tokens > 0)
                        .then(|| 1.0 - kept as f64 / (tokens * held.shape.1) as f64),
                    bytes: held.bytes,
                })
                .collect(),
        }
    }
}

/// Linux's high-water mark of the resident set.
fn peak_resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}

const MEGA: f64 = 1e6;

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let speed = |speed: &Speed| match speed.tokens_per_second {
            Some(rate) => format!("{} tokens in {:.3} s, {rate:.2} tokens/s", speed.tokens, speed.seconds),
            None => "no token".into(),
        };
        writeln!(f, "prompt      {}", speed(&self.prompt))?;
        writeln!(f, "decoding    {} ({}, {})", speed(&self.decoding), self.precision, self.products)?;
        if let Some(bytes) = self.bytes_per_token {
            writeln!(
                f,
                "per token   {:.1} MB read: weights {:.1} (dense {:.1}), keys and values {:.2}",
                bytes.total / MEGA,
                bytes.weights / MEGA,
                bytes.dense_weights / MEGA,
                bytes.cache / MEGA
            )?;
        }
        if let (Some(share), Some(bandwidth)) = (self.share_of_byte_limit, self.memory_bandwidth) {
            let cached = if share > 1.0 { "; the weights stay in a cache" } else { "" };
            writeln!(
                f,
                "byte limit  {:.1} % of {:.1} GB/s, measured{cached}",
                100.0 * share,
                bandwidth / 1e9
            )?;
        }
        let Memory { weights, dense_weights, peak_resident } = self.memory;
        write!(
            f,
            "memory      weights {:.1} MB, {:.1} % of dense",
            weights as f64 / MEGA,
            100.0 * weights as f64 / dense_weights as f64
        )?;
        match peak_resident {
            Some(peak) => writeln!(f, "; the process at most {:.1} MB", peak as f64 / MEGA)?,
            None => writeln!(f)?,
        }
        writeln!(
            f,
            "\n{:<44} {:<7} {:>15}  weight sparsity  activation sparsity",
            "linear", "format", "shape"
        )?;
        for linear in &self.linears {
            let (rows, columns) = linear.shape;
            writeln!(
                f,
                "{:<44} {:<7} {:>15} {:>16.4} {:>20}",
                linear.tensor,
                linear.format,
                format!("{rows} x {columns}"),
                linear.weight_sparsity,
                linear.activation_sparsity.map_or("-".into(), |s| format!("{s:.4}")),
            )?;
        }
        Ok(())
    }
}
