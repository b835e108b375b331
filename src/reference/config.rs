//! The settings of Algorithm 1: every choice that the paper leaves open or that the original code makes differently.

use serde::{Deserialize, Serialize};

use super::{ColumnOrder, ConfigError, NarrowGroups, Sparsity, Threshold};

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

/// Which weights of a block D multiplies in the update of the columns to its right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LazyUpdate {
    /// The pruned ones: the paper's Algorithm 1 and the original code.
    Pruned,
    /// Each column at its turn, before pruning: what the derivation asks for, and what the loop does inside the
    /// block.
    Compensated,
}

/// How the weights of a dead input channel are treated (H_pp = 0: it was zero in all calibration data).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadChannels {
    /// Set to zero, as in the original code.
    Zero,
    /// Processed like the others, with H_pp = 1; nothing compensates them.
    Keep,
}

/// What to do when the damped Hessian has no Cholesky factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedFactor {
    /// An error.
    #[default]
    Stop,
    /// L = I, so that blocks are pruned by magnitude and nothing is compensated: llm-compressor.
    Identity,
}

/// Zeros that the weights have before pruning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExistingZeros {
    /// They are weights like any other.
    #[default]
    Ignore,
    /// They stay zero and count towards the sparsity, as llm-compressor has it. A block that has enough of them loses
    /// no other weight. With N:M, scores of later blocks are hidden by the mask of the *first* block. Zeros take part
    /// in the compensation inside their block, but not in the lazy update.
    Preserve,
}

/// What tools do beyond the papers; the default is none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dialect {
    /// N:M groups that are cut short.
    pub narrow_groups: NarrowGroups,
    /// A Hessian that has no factor.
    pub failed_factor: FailedFactor,
    /// Zeros among the weights.
    pub existing_zeros: ExistingZeros,
    /// How many linears worked on the same H in place before this one (GPTAQ). They marked its dead channels, so that
    /// this one finds none to zero; and in natural order each damped it once, which this one repeats.
    pub group_member: usize,
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
    /// The weights that D multiplies across blocks.
    pub lazy_update: LazyUpdate,
    /// Where the threshold of a block's scores lies.
    pub threshold: Threshold,
    /// How dead input channels are treated.
    pub dead_channels: DeadChannels,
    /// A factor on all statistics: 1 (DuoGPT) or 2 (SparseGPT, GPTAQ). It changes the result only if there are dead
    /// channels, whose entry 1 it does not scale.
    pub hessian_scale: f64,
    /// What tools do beyond the papers.
    #[serde(default)]
    pub dialect: Dialect,
}

impl PruneConfig {
    /// The paper: damping 0.1, act-order, and no factor on the residual's terms (alpha 1).
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
            dialect: Dialect::default(),
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

    /// GPTAQ's published settings, for [`gptaq`](crate::reference::baseline::gptaq): damping 0.01, natural order, alpha
    /// 0.25 on D. No weight is pruned.
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
        let narrow = self.dialect.narrow_groups;
        narrow.check(self.weight_sparsity, self.block_size)?;
        narrow.check(self.weight_sparsity, k)?;
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
        self.column_order.check(self.block_size)
    }
}

impl Default for PruneConfig {
    /// The settings that measured best on the small model at 50 % weights and 50 % activations, over four calibration
    /// sets (`scripts/measure-profiles.sh`, table in `docs/differences.md`): natural order (every sorted order costs 0.2
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
}
