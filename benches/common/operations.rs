//! Floating-point operations, an addition and a multiplication counting as two; terms of the highest order alone.
//! A bench that gives them to criterion as elements has `elem = FLOP` in its name: 1 Gelem/s is 1 GFLOP/s.
#![allow(dead_code)] // each bench takes what it needs

use duogpt::model::{Group, ModelConfig};

/// H, of which half is computed, and dX X^T.
pub fn statistics(tokens: usize, k: usize) -> u64 {
    3 * (tokens * k * k) as u64
}

/// L: the Cholesky factor and its inverse, k^3 / 3 each.
pub fn factor(k: usize) -> u64 {
    2 * (k * k * k) as u64 / 3
}

/// What the linears of an input share: L, then Q with one triangle (k^3), and D of two (k^3 / 3).
pub fn prepare(k: usize) -> u64 {
    2 * (k * k * k) as u64
}

/// Two products for each pair of columns of each row.
pub fn update(n: usize, k: usize) -> u64 {
    2 * (n * k * k) as u64
}

/// A model: its linears in both streams, the statistics of each group, and the pruning.
pub fn calibrate(config: &ModelConfig, tokens: usize) -> u64 {
    let group = |group: Group| {
        let k = group.channels(config);
        let linear = |n: usize| 2 * 2 * (tokens * n * k) as u64 + update(n, k);
        let linears = group.linears(config).iter().map(|of| linear(of.shape(config).0));
        statistics(tokens, k) + prepare(k) + linears.sum::<u64>()
    };
    config.num_hidden_layers as u64 * Group::ALL.map(group).iter().sum::<u64>()
}
