//! What a case computes.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The algorithms of the test vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum Kind {
    /// Second-order pruning with the output residual.
    DuoGpt,
    /// Second-order pruning.
    SparseGpt,
    /// Weight magnitude times input norm.
    Wanda,
    /// Weight magnitude.
    Magnitude,
    /// Second-order quantisation.
    Gptq,
    /// Second-order quantisation with the output residual.
    Gptaq,
    /// Activation pruning, a threshold per token.
    Activation,
    /// Activation pruning, a threshold per tensor.
    Teal,
}

impl Kind {
    /// Its name in the vectors.
    pub fn name(self) -> &'static str {
        match self {
            Kind::DuoGpt => "duogpt",
            Kind::SparseGpt => "sparsegpt",
            Kind::Wanda => "wanda",
            Kind::Magnitude => "magnitude",
            Kind::Gptq => "gptq",
            Kind::Gptaq => "gptaq",
            Kind::Activation => "activation",
            Kind::Teal => "teal",
        }
    }
}
