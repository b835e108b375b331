//! Pruning a whole checkpoint: two streams, layer by layer, group by group.
//!
//! For each group of linears with one input, in this order: gather statistics over all sequences, prune every linear
//! of the group with the same statistics, advance both streams over the group, the sparse one with the weights as they
//! will be stored. A group's input depends only on groups already pruned, so each linear runs exactly once per
//! sequence and stream.
//!
//! Memory: one layer's weights and statistics, and per sequence and stream the hidden state and the input of the
//! current group.

mod chunks;
pub mod convert;
mod directory;
pub mod error;
pub mod gap;
mod group;
pub mod import;
pub mod job;
pub mod method;
pub mod output;
pub mod report;
pub mod streams;
mod text;
pub mod thresholds;
pub mod windows;

pub use error::CalibrateError;
pub use job::PruneJob;
