//! Holding an implementation to the original's outputs, or to any other implementation's.

pub mod causes;
pub mod compare;
pub mod html;
pub mod inspect;
pub mod kind;
mod markup;
mod picture;
pub mod report;
pub mod tensors;
pub mod vectors;
