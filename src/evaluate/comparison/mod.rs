//! Methods compared on one model: each prunes it, perplexity and zero-shot accuracy are measured, and the differences
//! are compared with the noise.
//!
//! Pruning is chaotic: one weight on the other side of a threshold changes everything after it, and the result is
//! another, equally good model. So each method can prune several times, every time after another small
//! [`Jitter`](crate::model::Jitter) of the dense weights; [`standings`](super::noise::standings) says which differences
//! of the means are larger than that.
//!
//! Every result is kept in a [`cache`] under the SHA-256 of what it depends on: this program (its own bytes), the
//! machine's BLAS, the content of the model's files, the method's settings, the calibration tokens, the jitter, the
//! activation sparsity, and the tokens or documents measured on. Paths and times are not part of it. A comparison that
//! was interrupted continues: finished results are read from the cache, and a half-pruned model is continued at its
//! first unfinished layer.
//!
//! | file | what |
//! |---|---|
//! | `job` | what to compare, and on what |
//! | `keys` | what a result depends on |
//! | `plan` | the models to be measured, each once, with what the cache holds of them |
//! | `cost` | how much of the work each step is |
//! | `models` | the pruned models' directories |
//! | `run` | prunes and measures what is missing |
//! | `summary` | from runs to means, gaps and standings |
//! | `report` | the outcome |

pub mod cache;
mod cost;
mod error;
mod job;
mod keys;
mod models;
mod plan;
mod report;
mod run;
mod summary;

pub use error::ComparisonError;
pub use job::{MethodComparison, Point, Repeats};
pub use report::{
    ComparisonReport, Measured, MethodResult, MethodRun, PointResult, Pruning, Quantity, Steps,
    WindowsSummary,
};
