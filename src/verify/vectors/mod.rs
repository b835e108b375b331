//! The test vectors: one linear layer per case, every intermediate result, as the original tools computed them.

pub mod bounds;
mod budgets;
pub mod case;
pub mod check;
pub mod compute;
mod cuts;
pub mod judge;
pub mod lint;
pub mod make;
mod settings;
mod stages;
pub mod tensor;

pub use case::{Case, CaseError, NegativeCase, case_folders, sequence_rows};
pub use check::{
    failed_call, judge_negative, judge_results, load_all, missing_results, unreadable_results, verify_case,
};
pub use compute::{Computed, Followed, VectorError, compute, layer_stages};
pub(super) use cuts::Cuts;
pub use judge::{Verdict, judge};
pub(super) use stages::{CALL, FILE, REFUSED, STAGES};
pub use tensor::{CaseTensor, CaseTensors, read_case_tensors, read_results, write_case_tensors};
