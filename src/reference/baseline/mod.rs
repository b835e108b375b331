//! The methods DuoGPT is compared with, on the same inputs.

pub mod gptaq;
pub mod magnitude;
pub mod sparsegpt;
pub mod teal;
pub mod wanda;
