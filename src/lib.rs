pub mod backend;
pub mod linalg;
pub mod reference;
pub mod tensors;
pub mod verify;
