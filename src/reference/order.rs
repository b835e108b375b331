//! The order in which columns are processed ("act-order"), and its inverse.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::linalg::Scalar;

/// In which order the columns of W are processed. All rows share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnOrder {
    /// As stored.
    Natural,
    /// diag H, descending.
    Hessian,
    /// diag H + |diag dX X^T|, descending.
    HessianDrift,
    /// The Hessian order cut into runs of `run` columns, dealt round-robin to the blocks. The original code's
    /// `block_act` with `act_blocksize`; a permutation for every k.
    Interleaved {
        /// Columns per run; must divide the block size.
        run: usize,
    },
}

impl ColumnOrder {
    /// Checks that runs fill blocks.
    ///
    /// # Errors
    /// [`ConfigError::Run`] when the run does not divide the block.
    pub fn check(self, block_size: usize) -> Result<(), ConfigError> {
        match self {
            ColumnOrder::Interleaved { run } if run == 0 || !block_size.is_multiple_of(run) => {
                Err(ConfigError::Run { run, block_size })
            }
            _ => Ok(()),
        }
    }

    /// Position to original column: entry i of the result is the column that is processed i-th.
    ///
    /// `hessian` and `dxxt` are the diagonals of H (dead channels already set to 1) and of dX X^T. Equal keys keep
    /// their natural order.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn permutation<T: Scalar>(
        self,
        hessian: &[T],
        dxxt: Option<&[T]>,
        block_size: usize,
    ) -> Result<Vec<usize>, ConfigError> {
        self.check(block_size)?;
        let descending = |key: &[T]| {
            let mut order: Vec<usize> = (0..key.len()).collect();
            order.sort_by(|&a, &b| key[b].total_order(&key[a])); // stable
            order
        };
        Ok(match (self, dxxt) {
            (ColumnOrder::Natural, _) => (0..hessian.len()).collect(),
            (ColumnOrder::Hessian, _) | (ColumnOrder::HessianDrift, None) => descending(hessian),
            (ColumnOrder::HessianDrift, Some(dxxt)) => {
                let key: Vec<T> = hessian.iter().zip(dxxt).map(|(&h, &d)| h + d.abs()).collect();
                descending(&key)
            }
            (ColumnOrder::Interleaved { run }, _) => interleave(descending(hessian), run, block_size),
        })
    }
}

/// Run r of the ranked columns goes to block r mod (k / B). The weakest k mod B columns form the last, shorter
/// block. So every block gets its share of the strongest columns. `run` divides `block_size`.
fn interleave(ranked: Vec<usize>, run: usize, block_size: usize) -> Vec<usize> {
    let blocks = ranked.len() / block_size;
    let (dealt, weakest) = ranked.split_at(blocks * block_size);
    let runs: Vec<&[usize]> = dealt.chunks(run).collect();
    let mut order = Vec::with_capacity(ranked.len());
    for block in 0..blocks {
        order.extend(runs[block..].iter().step_by(blocks).copied().flatten());
    }
    order.extend(weakest);
    order
}

/// The inverse permutation: original column to position.
pub fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (position, &column) in order.iter().enumerate() {
        inverse[column] = position;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_dealt_round_robin() {
        let key: Vec<f64> = (0..128).map(|i| -(i as f64)).collect(); // the ranks are the columns
        let order = ColumnOrder::Interleaved { run: 32 }.permutation(&key, None, 64).unwrap();
        let expected: Vec<usize> = (0..32).chain(64..96).chain(32..64).chain(96..128).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn interleaving_is_a_permutation_for_every_width() {
        for k in 0..200 {
            let key: Vec<f64> = (0..k).map(|i| ((i * 37) % 11) as f64).collect();
            for (run, block) in [(1, 1), (4, 16), (16, 16), (8, 64), (32, 128)] {
                let order = ColumnOrder::Interleaved { run }.permutation(&key, None, block).unwrap();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..k).collect::<Vec<_>>(), "k = {k}, run {run}, block {block}");
            }
        }
    }

    #[test]
    fn the_run_must_divide_the_block() {
        let refused = ColumnOrder::Interleaved { run: 48 }.permutation(&[1.0f64; 128], None, 64);
        assert_eq!(refused, Err(ConfigError::Run { run: 48, block_size: 64 }));
    }
}
