//! The pruning methods, each with its settings.

use serde::{Deserialize, Serialize};

use super::baseline::gptaq::GridConfig;
use super::{ConfigError, PruneConfig, Sparsity};

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
        let grids = GridConfig::new(4, crate::reference::baseline::gptaq::Symmetry::Symmetric);
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
