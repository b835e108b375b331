//! How good a model is.

pub mod perplexity;
