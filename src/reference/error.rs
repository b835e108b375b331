//! Errors: settings that are refused, and layers that cannot be pruned.

use super::FactorError;

/// Settings outside their range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A sparsity outside \[0, 1).
    #[error("{what} {value} is outside [0, 1)")]
    Fraction {
        /// Which sparsity.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// N:M needs 0 <= N < M.
    #[error("sparsity {n}:{m}: N must be smaller than M (N of every M weights are pruned)")]
    NotNofM {
        /// Zeros per group.
        n: usize,
        /// Columns per group.
        m: usize,
    },
    /// M must divide the block size and the number of input channels.
    #[error(
        "sparsity {n}:{m}: groups of {m} columns do not divide a width of {width} (M must divide the block size and the input channels)"
    )]
    Group {
        /// Zeros per group.
        n: usize,
        /// Columns per group.
        m: usize,
        /// The block size or number of input channels that M does not divide.
        width: usize,
    },
    /// The interleaved order's run must divide the block size.
    #[error("the interleaved order's runs of {run} columns do not divide the block size {block_size}")]
    Run {
        /// Columns per run.
        run: usize,
        /// B.
        block_size: usize,
    },
    /// Zero, negative or not a number.
    #[error("{what} {value} must be positive")]
    NotPositive {
        /// Which setting.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// Negative or not a number.
    #[error("{what} {value} must be a number that is not negative")]
    Negative {
        /// Which setting.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// Too few or too many bits for a grid.
    #[error("grids of {bits} bits are not supported (2 to 16)")]
    Bits {
        /// Bits per weight.
        bits: u32,
    },
    /// Too few bins for a histogram with outliers.
    #[error("a histogram of {bins} bins has none between its outliers: give three or more")]
    Bins {
        /// Bins asked for.
        bins: usize,
    },
    /// A grid's group of columns must fill blocks, or blocks groups.
    #[error(
        "grids of {group_size} columns neither divide the block size {block_size} nor are a multiple of it"
    )]
    GridGroup {
        /// Columns per grid.
        group_size: usize,
        /// B.
        block_size: usize,
    },
    /// GPTAQ without grids.
    #[error("gptaq rounds every weight to a grid and needs one: give the bits per weight (--bits)")]
    NoGrid,
    /// Grids for a method that has no column loop.
    #[error("{method} has no column loop to quantise in; quantise with duogpt, sparsegpt or gptaq")]
    NotQuantised {
        /// The method.
        method: &'static str,
    },
    /// An allocation whose steps cannot add up to the target.
    #[error("steps of {step} of the weights are too coarse to reach a sparsity of {target}")]
    Step {
        /// A step, as a fraction of all weights.
        step: f64,
        /// The sparsity asked for.
        target: f64,
    },
    /// A share of the scores' sum that is smaller than the smallest score.
    #[error("no score of row {row} is as small as {alpha} of the row's sum: ask for a higher sparsity")]
    Share {
        /// The row.
        row: usize,
        /// The share.
        alpha: f64,
    },
    /// A replayed order that is none.
    #[error("the given column order is not a permutation of {k} columns")]
    NotAPermutation {
        /// Input channels.
        k: usize,
    },
}

/// Why a layer could not be pruned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PruneError {
    /// Settings outside their range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The Hessian has no factor.
    #[error(transparent)]
    Factor(#[from] FactorError),
    /// Two inputs do not fit each other.
    #[error("the {what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// Rows and columns that would fit.
        expected: (usize, usize),
        /// Rows and columns that were given.
        found: (usize, usize),
    },
    /// NaN or an infinity.
    #[error("the {what} has a value that is not finite at row {row}, column {column}")]
    NotFinite {
        /// Which matrix.
        what: &'static str,
        /// Row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
    },
}
