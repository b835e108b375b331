//! A pruning method with its settings: from a name, a profile and flags.

use clap::{Args, ValueEnum};

use crate::reference::{
    Alpha, ColumnOrder, DeadChannels, LazyUpdate, Method, PruneConfig, Sparsity, Threshold,
};

/// The methods that `prune` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum MethodName {
    Duogpt,
    Sparsegpt,
    /// Only quantises; needs --bits. With --alpha 0 it is GPTQ on GPTAQ's grids.
    Gptaq,
    Wanda,
    Magnitude,
}

impl MethodName {
    /// The method with the settings of a profile; GPTAQ has settings of its own.
    pub(super) fn method(self, profile: Profile, weight_sparsity: Sparsity) -> Method {
        let config = match profile {
            Profile::Paper => PruneConfig::paper(weight_sparsity),
            Profile::Upstream => PruneConfig::upstream(weight_sparsity),
            Profile::Default => PruneConfig { weight_sparsity, ..PruneConfig::default() },
        };
        let sparsegpt_scale = PruneConfig::sparsegpt(weight_sparsity).hessian_scale;
        match self {
            MethodName::Duogpt => Method::DuoGpt(config),
            MethodName::Sparsegpt => {
                Method::SparseGpt(PruneConfig { hessian_scale: sparsegpt_scale, ..config })
            }
            MethodName::Gptaq => Method::Gptaq(PruneConfig::gptaq()),
            MethodName::Wanda => Method::Wanda(weight_sparsity),
            MethodName::Magnitude => Method::Magnitude(weight_sparsity),
        }
    }
}

/// The settings of the second-order methods that flags start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Profile {
    /// The paper's text.
    Paper,
    /// The original code's settings.
    Upstream,
    /// The settings that measured best on the small model.
    Default,
}

/// The settings of the second-order methods.
#[derive(Args)]
pub(super) struct Settings {
    /// Settings to start from. The flags below override single settings; gptaq has its own settings.
    #[arg(long, value_enum, default_value_t = Profile::Default)]
    pub(super) profile: Profile,
    #[command(flatten)]
    overrides: Overrides,
}

#[derive(Args)]
struct Overrides {
    /// H += damping * mean(diag H) * I.
    #[arg(long, value_name = "X")]
    damping: Option<f64>,
    /// Factor on the residual correction, in score and update.
    #[arg(long, value_name = "X")]
    alpha: Option<f64>,
    /// Factor in the score alone.
    #[arg(long, value_name = "X")]
    alpha_score: Option<f64>,
    /// Factor in the update alone.
    #[arg(long, value_name = "X")]
    alpha_update: Option<f64>,
    /// Columns per block of mask selection and lazy update.
    #[arg(long, value_name = "B")]
    block_size: Option<usize>,
    /// Processing order of the columns.
    #[arg(long, value_enum)]
    column_order: Option<OrderName>,
    /// Columns per run of the interleaved order.
    #[arg(long, value_name = "N", default_value_t = 32)]
    interleave_run: usize,
    /// The weights that the residual update across blocks is computed from.
    #[arg(long, value_enum)]
    lazy_update: Option<LazyUpdateName>,
    /// Threshold of a block's scores: inclusive prunes one weight more than the fraction, and all ties.
    #[arg(long, value_enum)]
    threshold: Option<ThresholdName>,
    /// What to do with the weights of input channels that are zero in all calibration data.
    #[arg(long, value_enum)]
    dead_channels: Option<DeadChannelsName>,
    /// Factor on all statistics (by default 2 for SparseGPT and GPTAQ, 1 for DuoGPT).
    #[arg(long, value_name = "X")]
    hessian_scale: Option<f64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OrderName {
    Natural,
    Hessian,
    HessianDrift,
    Interleaved,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LazyUpdateName {
    Pruned,
    Compensated,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ThresholdName {
    Inclusive,
    Exact,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeadChannelsName {
    Zero,
    Keep,
}

impl Settings {
    /// A method with these settings.
    pub(super) fn method(&self, name: MethodName, weight_sparsity: Sparsity) -> Method {
        let mut method = name.method(self.profile, weight_sparsity);
        if let Method::DuoGpt(config) | Method::SparseGpt(config) | Method::Gptaq(config) = &mut method {
            self.overrides.apply(config);
        }
        method
    }
}

impl Overrides {
    fn apply(&self, config: &mut PruneConfig) {
        fn set<T: Copy>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }
        set(&mut config.damping, self.damping);
        set(&mut config.alpha, self.alpha.map(Alpha::both));
        set(&mut config.alpha.score, self.alpha_score);
        set(&mut config.alpha.update, self.alpha_update);
        set(&mut config.block_size, self.block_size);
        set(&mut config.hessian_scale, self.hessian_scale);
        let order = self.column_order.map(|order| match order {
            OrderName::Natural => ColumnOrder::Natural,
            OrderName::Hessian => ColumnOrder::Hessian,
            OrderName::HessianDrift => ColumnOrder::HessianDrift,
            OrderName::Interleaved => ColumnOrder::Interleaved { run: self.interleave_run },
        });
        set(&mut config.column_order, order);
        let lazy_update = self.lazy_update.map(|update| match update {
            LazyUpdateName::Pruned => LazyUpdate::Pruned,
            LazyUpdateName::Compensated => LazyUpdate::Compensated,
        });
        set(&mut config.lazy_update, lazy_update);
        let threshold = self.threshold.map(|threshold| match threshold {
            ThresholdName::Inclusive => Threshold::Inclusive,
            ThresholdName::Exact => Threshold::Exact,
        });
        set(&mut config.threshold, threshold);
        let dead = self.dead_channels.map(|dead| match dead {
            DeadChannelsName::Zero => DeadChannels::Zero,
            DeadChannelsName::Keep => DeadChannels::Keep,
        });
        set(&mut config.dead_channels, dead);
    }
}

/// Says so where the settings spoil an N:M pattern.
pub(super) fn warn_of_order(method: Method) {
    if let Method::DuoGpt(config) | Method::SparseGpt(config) = method
        && matches!(config.weight_sparsity, Sparsity::NofM { .. })
        && config.column_order != ColumnOrder::Natural
    {
        eprintln!(
            "warning: {} groups lie in processing order; with an order other than natural the result has no pattern \
             that hardware could use",
            config.weight_sparsity
        );
    }
}
