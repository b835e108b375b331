//! Holding an implementation to the original's outputs, or to any other implementation's.

pub mod compare;
pub mod golden;
pub mod html;
pub mod inspect;
pub mod kind;
pub mod report;
pub mod tensors;
