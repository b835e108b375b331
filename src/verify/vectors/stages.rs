//! The stages of the test vectors.

use super::case::SliceBy;

/// The stages of every algorithm in computing order, with the tensors that show them.
pub(in crate::verify) const STAGES: [(&str, SliceBy, &[&str]); 18] = [
    ("statistics", SliceBy::Whole, &["stats.hessian", "stats.dxxt", "stats.dxdxt", "stats.scaler_row"]),
    ("dead", SliceBy::Whole, &["trace.dead"]),
    ("permutation", SliceBy::Whole, &["trace.perm"]),
    ("damping", SliceBy::Whole, &["trace.damping"]),
    ("factor", SliceBy::Whole, &["trace.hinv_chol"]),
    ("drift", SliceBy::Whole, &["trace.q_matrix", "trace.p_matrix"]),
    ("coefficients", SliceBy::Whole, &["trace.coef_a", "trace.coef_b", "trace.coef_2c"]),
    ("histogram", SliceBy::Whole, &["trace.centers", "trace.counts"]),
    ("metric", SliceBy::Whole, &["trace.metric"]),
    ("search", SliceBy::Whole, &["trace.alphas", "trace.sparsities"]),
    ("threshold", SliceBy::Whole, &["trace.threshold", "trace.thresholds"]),
    ("score", SliceBy::Columns, &["trace.score"]),
    ("mask", SliceBy::Columns, &["trace.mask"]),
    ("grid", SliceBy::Columns, &["trace.scale", "trace.zero"]),
    ("codes", SliceBy::Columns, &["trace.codes"]),
    ("err", SliceBy::Columns, &["trace.err"]),
    ("block_weight", SliceBy::Block, &["trace.block_weight"]),
    ("output", SliceBy::Whole, &["output.weight", "output.activations", "output.error"]),
];

/// Where a result fails that cannot be read, or is not there.
pub(in crate::verify) const FILE: &str = "file";

/// Where a function fails that raises, or returns no arrays.
pub(in crate::verify) const CALL: &str = "call";

/// Where a case fails that the algorithm refuses.
pub(in crate::verify) const REFUSED: &str = "refused";

/// Whether the schema has a stage of this name.
pub(super) fn is_stage(name: &str) -> bool {
    STAGES.iter().any(|(stage, ..)| *stage == name)
}
