//! The algorithm, to be read.
//!
//! This module is the yardstick. Every equation of the paper stands here once, in the order in which it is used, in
//! plain code over `f32` or `f64`; the same text runs the real models. The `f64` instance is the oracle that other
//! implementations are compared with. The `f32` instance measures how much error arithmetic alone makes. Where the
//! paper and the original code differ, both exist, and a field of [`PruneConfig`] chooses.
//!
//! Read in this order:
//!
//! 1. [`activation`] what a linear layer sees at run time: each token's largest entries
//! 2. [`statistics`] what pruning needs to know of the calibration data
//! 3. [`order`] which column comes when
//! 4. [`factor`](mod@factor) from H to L with H^-1 = L L^T
//! 5. [`score`](mod@score) what the output residual adds: Q, U, a, b, c, D, and the score S
//! 6. [`mask`] which weights go
//! 7. [`prune`](mod@prune) Algorithm 1, which puts the six together
//! 8. [`exact`] what it approximates: Eq. 3 taken literally, and the best weights for a given mask
//! 9. [`baseline`] SparseGPT, Wanda, magnitude and GPTAQ on the same inputs
//! 10. [`teal`] thresholds that make activation pruning independent of the token
//! 11. [`spmspv`] what it is all for: y = W (x * mask) with weights stored without their zeros
//!
//! # Notation
//!
//! | symbol | shape | meaning |
//! |---|---|---|
//! | W | n x k | weight of one linear layer, a row per output channel: y = W x |
//! | X~ | k x m | dense input: what the layer sees in the original model |
//! | X^ | k x m | sparse input: what it sees in the model pruned so far, after activation pruning |
//! | dX = X~ - X^ | k x m | activation difference |
//! | H = X^ X^T | k x k | Hessian of the layer's objective |
//! | L | k x k | lower Cholesky factor of the *inverse*: H^-1 = L L^T |
//! | Q, U, D | k x k | dX X^T L; its strictly upper part; U L^T |
//! | a, b, c | k | diag(dX dX^T); row sums of U^2; diag(Q) / diag(L) |
//! | S | n x k | score: the loss that pruning a weight costs |
//! | p_w, p_x | | weight and activation sparsity: fractions of zeros |
//! | B | | block size of mask selection and lazy update |
//!
//! Activations are stored transposed, a row per token, as a model produces them. "Processing order" is the order of
//! [`order`]; everything else is in the original column order.

pub mod activation;
pub mod baseline;
pub mod exact;
pub mod factor;
pub mod mask;
pub mod order;
pub mod prune;
pub mod score;
pub mod spmspv;
pub mod statistics;
pub mod teal;

use serde::{Deserialize, Serialize};

use baseline::gptaq::GridConfig;
pub use factor::FactorError;
pub use mask::{Sparsity, Threshold};
pub use order::ColumnOrder;
pub use prune::{Prepared, Pruned, Replay};
pub use statistics::{ChannelNorms, Drift, Statistics};

/// The factor on the residual correction. The paper has none (1); the original code scales it down.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alpha {
    /// On a - b + 2c in the score.
    pub score: f64,
    /// On D in the update.
    pub update: f64,
}

impl Alpha {
    /// The same factor in both places.
    pub fn both(alpha: f64) -> Self {
        Alpha { score: alpha, update: alpha }
    }
}

/// Which weights of a block feed D in the update of the columns to its right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LazyUpdate {
    /// The pruned ones: the paper's Algorithm 1 and the original code.
    Pruned,
    /// Each column as it was at its turn, before pruning: what the derivation asks for, and what happens inside
    /// the block.
    Compensated,
}

/// What becomes of the weights of a dead input channel (H_pp = 0: the calibration never saw it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadChannels {
    /// Zeroed, as in the original code.
    Zero,
    /// Left to the loop, with H_pp = 1 like the rest of the column's statistics: nothing compensates them.
    Keep,
}

/// Every choice that the paper leaves open or that the original code makes differently.
///
/// With N:M and an order other than natural, the groups lie in processing order, as in the original code; the stored
/// matrix then has no N:M pattern that hardware could use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneConfig {
    /// p_w, or N:M.
    pub weight_sparsity: Sparsity,
    /// B: columns per block of mask selection and lazy update.
    pub block_size: usize,
    /// H += damping * mean(diag H) * I.
    pub damping: f64,
    /// Factors on the residual correction.
    pub alpha: Alpha,
    /// The order of the columns.
    pub column_order: ColumnOrder,
    /// What feeds D across blocks.
    pub lazy_update: LazyUpdate,
    /// Where the cut through a block's scores lies.
    pub threshold: Threshold,
    /// What becomes of dead input channels.
    pub dead_channels: DeadChannels,
    /// A factor on all statistics: 1 (DuoGPT) or 2 (SparseGPT, GPTAQ). Felt only where there are dead channels,
    /// whose entry 1 it does not scale.
    pub hessian_scale: f64,
}

impl PruneConfig {
    /// The paper: damping 0.1, act-order, no alpha.
    pub fn paper(weight_sparsity: Sparsity) -> Self {
        PruneConfig { damping: 0.1, alpha: Alpha::both(1.0), ..Self::upstream(weight_sparsity) }
    }

    /// The original code's settings: damping 0.05, act-order, alpha 0.125.
    pub fn upstream(weight_sparsity: Sparsity) -> Self {
        PruneConfig {
            weight_sparsity,
            block_size: 128,
            damping: 0.05,
            alpha: Alpha::both(0.125),
            column_order: ColumnOrder::Hessian,
            lazy_update: LazyUpdate::Pruned,
            threshold: Threshold::Inclusive,
            dead_channels: DeadChannels::Zero,
            hessian_scale: 1.0,
        }
    }

    /// SparseGPT's published settings: damping 0.01, natural order; alpha is without effect.
    pub fn sparsegpt(weight_sparsity: Sparsity) -> Self {
        PruneConfig {
            damping: 0.01,
            alpha: Alpha::both(0.0),
            column_order: ColumnOrder::Natural,
            hessian_scale: 2.0,
            ..Self::upstream(weight_sparsity)
        }
    }

    /// GPTAQ's published settings, for [`baseline::gptaq`]: damping 0.01, natural order, alpha 0.25 on D. No weight is
    /// pruned.
    pub fn gptaq() -> Self {
        PruneConfig {
            alpha: Alpha { score: 0.0, update: 0.25 },
            threshold: Threshold::Exact,
            ..Self::sparsegpt(Sparsity::Unstructured(0.0))
        }
    }

    /// Checks every field, for a layer of k input channels.
    pub(crate) fn check(&self, k: usize) -> Result<(), ConfigError> {
        if self.block_size == 0 {
            return Err(ConfigError::NotPositive { what: "block size", value: 0.0 });
        }
        self.weight_sparsity.check(self.block_size)?;
        if matches!(self.weight_sparsity, Sparsity::NofM { .. }) {
            self.weight_sparsity.check(k)?;
        }
        let finite = [
            ("damping", self.damping),
            ("alpha of the score", self.alpha.score),
            ("alpha of the update", self.alpha.update),
        ];
        for (what, value) in finite {
            check_not_negative(what, value)?;
        }
        if !(self.hessian_scale.is_finite() && self.hessian_scale > 0.0) {
            return Err(ConfigError::NotPositive { what: "Hessian scale", value: self.hessian_scale });
        }
        if let ColumnOrder::Interleaved { run } = self.column_order {
            ColumnOrder::Interleaved { run }.permutation::<f64>(&[], None, self.block_size)?;
        }
        Ok(())
    }
}

impl Default for PruneConfig {
    /// What measured best on the small model at 50 % weights and 50 % activations, over four calibration sets
    /// (`scripts/measure-profiles.sh`, table in `docs/differences.md`): natural order (every sorted order costs 0.2
    /// perplexity there), damping 0.01 (0.05 and 0.1 are no better), and alpha 0.25 (with sparse activations as good
    /// as 0.5 within the noise, with dense ones better by 0.3). Differences below 0.15 are noise.
    fn default() -> Self {
        PruneConfig {
            damping: 0.01,
            alpha: Alpha::both(0.25),
            column_order: ColumnOrder::Natural,
            ..Self::upstream(Sparsity::Unstructured(0.5))
        }
    }
}

/// A finite number that is not negative.
pub(crate) fn check_not_negative(what: &'static str, value: f64) -> Result<(), ConfigError> {
    if value.is_finite() && value >= 0.0 { Ok(()) } else { Err(ConfigError::Negative { what, value }) }
}

/// Settings that make no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A sparsity outside \[0, 1).
    #[error("{what} {value} is outside [0, 1)")]
    Fraction {
        /// Which sparsity.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// N:M needs 0 <= N < M.
    #[error("sparsity {n}:{m} needs fewer zeros than columns per group")]
    NotNofM {
        /// Zeros per group.
        n: usize,
        /// Columns per group.
        m: usize,
    },
    /// M must divide the block size and the number of input channels.
    #[error(
        "sparsity {n}:{m}: groups of {m} columns do not divide a width of {width} (M must divide the block size and the input channels)"
    )]
    Group {
        /// Zeros per group.
        n: usize,
        /// Columns per group.
        m: usize,
        /// The block size or number of input channels that M does not divide.
        width: usize,
    },
    /// The interleaved order's run must divide the block size.
    #[error("the interleaved order's runs of {run} columns do not divide the block size {block_size}")]
    Run {
        /// Columns per run.
        run: usize,
        /// B.
        block_size: usize,
    },
    /// Zero, negative or not a number.
    #[error("{what} {value} must be positive")]
    NotPositive {
        /// Which setting.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// Negative or not a number.
    #[error("{what} {value} must be a number that is not negative")]
    Negative {
        /// Which setting.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// Too few or too many bits for a grid.
    #[error("grids of {bits} bits are not supported (2 to 16)")]
    Bits {
        /// Bits per weight.
        bits: u32,
    },
    /// A grid's group of columns must fill blocks, or blocks groups.
    #[error(
        "grids of {group_size} columns neither divide the block size {block_size} nor are a multiple of it"
    )]
    GridGroup {
        /// Columns per grid.
        group_size: usize,
        /// B.
        block_size: usize,
    },
    /// GPTAQ without grids.
    #[error("gptaq rounds every weight to a grid and needs one: give the bits per weight (--bits)")]
    NoGrid,
    /// Grids for a method that has no column loop.
    #[error("{method} has no column loop to quantise in; quantise with duogpt, sparsegpt or gptaq")]
    NotQuantised {
        /// The method.
        method: &'static str,
    },
    /// An allocation whose steps cannot add up to the target.
    #[error("steps of {step} of the weights are too coarse to reach a sparsity of {target}")]
    Step {
        /// A step, as a fraction of all weights.
        step: f64,
        /// The sparsity asked for.
        target: f64,
    },
    /// A replayed order that is none.
    #[error("the given column order is not a permutation of {k} columns")]
    NotAPermutation {
        /// Input channels.
        k: usize,
    },
}

/// Why a layer could not be pruned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PruneError {
    /// Settings that make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The Hessian has no factor.
    #[error(transparent)]
    Factor(#[from] FactorError),
    /// The device of the backend failed.
    #[error(transparent)]
    Device(#[from] crate::cuda::DeviceError),
    /// Two inputs do not fit each other.
    #[error("the {what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// Rows and columns that would fit.
        expected: (usize, usize),
        /// Rows and columns that were given.
        found: (usize, usize),
    },
    /// What the backend does not do.
    #[error("this backend cannot {what}; use the CPU's")]
    Unsupported {
        /// What was asked of it.
        what: &'static str,
    },
    /// NaN or an infinity.
    #[error("the {what} has a value that is not finite at row {row}, column {column}")]
    NotFinite {
        /// Which matrix.
        what: &'static str,
        /// Row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
    },
}

/// A pruning method with its settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", content = "config", rename_all = "lowercase")]
pub enum Method {
    /// Second-order pruning with the output-residual correction.
    DuoGpt(PruneConfig),
    /// Second-order pruning without it.
    SparseGpt(PruneConfig),
    /// Quantisation with the output-residual correction; GPTQ with alpha = 0.
    Gptaq(PruneConfig),
    /// Weight magnitude times input norm.
    Wanda(Sparsity),
    /// Weight magnitude.
    Magnitude(Sparsity),
}

impl Method {
    /// The name that the command line and the reports use.
    pub fn name(&self) -> &'static str {
        match self {
            Method::DuoGpt(_) => "duogpt",
            Method::SparseGpt(_) => "sparsegpt",
            Method::Gptaq(_) => "gptaq",
            Method::Wanda(_) => "wanda",
            Method::Magnitude(_) => "magnitude",
        }
    }

    /// The weight sparsity asked for.
    pub fn weight_sparsity(&self) -> Sparsity {
        match self {
            Method::DuoGpt(config) | Method::SparseGpt(config) | Method::Gptaq(config) => {
                config.weight_sparsity
            }
            Method::Wanda(sparsity) | Method::Magnitude(sparsity) => *sparsity,
        }
    }

    /// Whether calibration prunes the activations that the method sees. Wanda and magnitude are calibrated on dense
    /// activations.
    pub fn sees_sparse_activations(&self) -> bool {
        matches!(self, Method::DuoGpt(_) | Method::SparseGpt(_) | Method::Gptaq(_))
    }

    /// Checks the settings, for a layer of k input channels.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that makes no sense.
    pub fn check(&self, k: usize) -> Result<(), ConfigError> {
        match self {
            Method::DuoGpt(config) | Method::SparseGpt(config) | Method::Gptaq(config) => config.check(k),
            Method::Wanda(sparsity) | Method::Magnitude(sparsity) => sparsity.check(k),
        }
    }

    /// Checks whether the kept weights can be rounded to `grids`. GPTAQ must have some; the methods without a column
    /// loop, in which the others make up for the rounding, can have none.
    ///
    /// # Errors
    /// [`ConfigError`] for the first setting that makes no sense.
    pub fn check_grids(&self, grids: Option<&GridConfig>) -> Result<(), ConfigError> {
        match (self, grids) {
            (Method::Gptaq(_), None) => Err(ConfigError::NoGrid),
            (Method::Wanda(_) | Method::Magnitude(_), Some(_)) => {
                Err(ConfigError::NotQuantised { method: self.name() })
            }
            (Method::DuoGpt(config) | Method::SparseGpt(config) | Method::Gptaq(config), Some(grids)) => {
                grids.check(config.block_size)
            }
            (_, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_the_published_settings() {
        let (sparsity, hessian) = (Sparsity::Unstructured(0.5), ColumnOrder::Hessian);
        let settings =
            |c: PruneConfig| (c.damping, c.column_order, c.alpha.score, c.alpha.update, c.hessian_scale);
        assert_eq!(settings(PruneConfig::paper(sparsity)), (0.1, hessian, 1.0, 1.0, 1.0));
        assert_eq!(settings(PruneConfig::upstream(sparsity)), (0.05, hessian, 0.125, 0.125, 1.0));
        let natural = ColumnOrder::Natural;
        assert_eq!(settings(PruneConfig::sparsegpt(sparsity)), (0.01, natural, 0.0, 0.0, 2.0));
        assert_eq!(settings(PruneConfig::gptaq()), (0.01, natural, 0.0, 0.25, 2.0));
        assert_eq!(settings(PruneConfig::default()), (0.01, natural, 0.25, 0.25, 1.0));
        for config in [PruneConfig::paper(sparsity), PruneConfig::sparsegpt(sparsity), PruneConfig::default()]
        {
            assert_eq!(config.block_size, 128);
            assert_eq!((config.lazy_update, config.threshold), (LazyUpdate::Pruned, Threshold::Inclusive));
            assert_eq!((config.weight_sparsity, config.dead_channels), (sparsity, DeadChannels::Zero));
        }
        let gptaq = PruneConfig::gptaq();
        assert_eq!((gptaq.weight_sparsity, gptaq.threshold), (Sparsity::Unstructured(0.0), Threshold::Exact));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let good = PruneConfig::default();
        assert_eq!(good.check(100), Ok(()));
        let changed = |change: &dyn Fn(&mut PruneConfig)| {
            let mut config = good;
            change(&mut config);
            config.check(100).unwrap_err()
        };
        let negative = |what, value| ConfigError::Negative { what, value };
        let not_positive = |what, value| ConfigError::NotPositive { what, value };
        assert_eq!(changed(&|c| c.block_size = 0), not_positive("block size", 0.0));
        assert_eq!(changed(&|c| c.damping = -1.0), negative("damping", -1.0));
        assert_eq!(
            changed(&|c| c.alpha.score = f64::INFINITY),
            negative("alpha of the score", f64::INFINITY)
        );
        assert_eq!(changed(&|c| c.alpha.update = -0.5), negative("alpha of the update", -0.5));
        assert_eq!(changed(&|c| c.hessian_scale = 0.0), not_positive("Hessian scale", 0.0));
        let infinite = f64::INFINITY;
        assert_eq!(changed(&|c| c.hessian_scale = infinite), not_positive("Hessian scale", infinite));
        assert!(matches!(
            changed(&|c| c.weight_sparsity = Sparsity::Unstructured(1.0)),
            ConfigError::Fraction { .. }
        ));
        // M must divide the block size, and the columns.
        let group = |width| ConfigError::Group { n: 2, m: 8, width };
        assert_eq!(changed(&|c| c.weight_sparsity = Sparsity::NofM { n: 2, m: 8 }), group(100));
        let of_a_block = |c: &mut PruneConfig| {
            (c.weight_sparsity, c.block_size) = (Sparsity::NofM { n: 2, m: 8 }, 100);
        };
        assert_eq!(changed(&of_a_block), group(100));
        let run = |c: &mut PruneConfig| c.column_order = ColumnOrder::Interleaved { run: 33 };
        assert_eq!(changed(&run), ConfigError::Run { run: 33, block_size: 128 });
        // Zero is a damping, and an alpha.
        let zero = PruneConfig { damping: 0.0, alpha: Alpha::both(0.0), ..good };
        assert_eq!(zero.check(100), Ok(()));
    }

    #[test]
    fn methods_know_their_names_settings_and_data() {
        let sparsity = Sparsity::NofM { n: 2, m: 4 };
        let config = PruneConfig { weight_sparsity: sparsity, ..PruneConfig::default() };
        let methods = [
            (Method::DuoGpt(config), "duogpt", true),
            (Method::SparseGpt(config), "sparsegpt", true),
            (Method::Gptaq(config), "gptaq", true),
            (Method::Wanda(sparsity), "wanda", false),
            (Method::Magnitude(sparsity), "magnitude", false),
        ];
        let grids = GridConfig {
            bits: 4,
            symmetry: baseline::gptaq::Symmetry::Symmetric,
            range: baseline::gptaq::GridRange::Full,
            group_size: None,
        };
        for (method, name, second_order) in methods {
            assert_eq!((method.name(), method.weight_sparsity()), (name, sparsity));
            assert_eq!(method.sees_sparse_activations(), second_order);
            assert_eq!((method.check(8), method.check(6).is_err()), (Ok(()), true));
            assert_eq!(method.check_grids(Some(&grids)).is_ok(), second_order);
            assert_eq!(method.check_grids(None).is_ok(), name != "gptaq");
            let too_wide = GridConfig { bits: 17, ..grids };
            assert!(method.check_grids(Some(&too_wide)).is_err());
        }
    }
}
