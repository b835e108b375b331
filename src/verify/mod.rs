//! Holding an implementation to the original's outputs.

pub mod compare;
pub mod golden;
