//! A reference and verification suite for DuoGPT (arXiv 2506.20194), an algorithm that prunes the weights of a large
//! language model and takes into account that its activations will be sparse too at run time.
//!
//! Start with [`mod@reference`]: the algorithm, every equation once, in reading order, with the notation table. The other
//! modules run it on real models and compare implementations with it. `tests/structure.rs` states which module may import
//! which.
//!
//! | module | what |
//! |---|---|
//! | [`mod@reference`] | the algorithm and the baselines it is compared with, over `f32` and `f64` |
//! | [`backend`] | the trait of what a device computes in calibration, and the CPU |
//! | [`cuda`] | the same steps on a GPU: the host side of `kernels/` |
//! | [`model`] | checkpoints of LLaMA and its relatives, and their forward pass in groups of linears with one input |
//! | [`calibrate`] | the two streams, the loop over layers, the pruned checkpoint; optimality gaps; activation thresholds |
//! | [`evaluate`] | perplexity, zero-shot accuracy, the comparison of methods |
//! | [`mod@generate`] | text from a model whose weights stay compressed in memory |
//! | [`verify`] | test vectors, judges and measures of error |
//! | [`spmspv`] | y = W (x * mask) from compressed weights, fast, on a CPU |
//! | [`tensors`], [`files`] | safetensors and other files |
//! | [`progress`] | the progress of a long computation |
//! | [`device_error`] | the errors of a device |
//! | [`linalg`] | the dense operations, over BLAS and LAPACK |
//! | [`cli`] | the `duogpt` command |
//!
//! # One layer
//!
//! ```
//! use duogpt::reference::{PruneConfig, Sparsity, Statistics, activation, mask, prune};
//! use ndarray::Array2;
//!
//! // A layer of 8 outputs and 32 inputs, and the input of 64 tokens: any numbers will do.
//! let number = |i: usize, j: usize| ((i * 31 + j * 17) as f64 * 0.7).sin();
//! let weight = Array2::from_shape_fn((8, 32), |(i, j)| number(i, j));
//! let dense = Array2::from_shape_fn((64, 32), |(token, j)| number(token + 100, j));
//!
//! // At run time half of each token's entries will be zero.
//! let mut sparse = dense.clone();
//! activation::prune_activations(sparse.view_mut(), 0.5);
//!
//! let mut statistics = Statistics::with_residual(32);
//! statistics.update(dense.view(), sparse.view());
//!
//! let config = PruneConfig { block_size: 16, ..PruneConfig::paper(Sparsity::Unstructured(0.5)) };
//! let pruned = prune::prune(weight.view(), &statistics, &config)?;
//! let zeros = pruned.weight.iter().filter(|w| **w == 0.0).count();
//! assert_eq!(zeros, 2 * (8 * 16 / 2 + 1)); // per block one more than half: the original's inclusive threshold
//!
//! // The update helps: the output on sparse inputs is closer to the dense one than if the same weights were only zeroed.
//! let zeroed = mask::zero_pruned(weight.view(), pruned.mask.view());
//! let error = |w: &Array2<f64>| (sparse.dot(&w.t()) - dense.dot(&weight.t())).mapv(|x| x * x).sum();
//! assert!(error(&pruned.weight) < error(&zeroed));
//! # Ok::<(), duogpt::reference::PruneError>(())
//! ```

pub mod backend;
pub mod calibrate;
pub mod cli;
pub mod cuda;
pub mod device_error;
pub mod evaluate;
pub mod files;
pub mod generate;
pub mod linalg;
pub mod model;
pub mod progress;
pub mod reference;
pub mod spmspv;
mod tensor_error;
pub mod tensors;
pub mod verify;

/// The examples of the book, for `cargo test --doc`. Building the book fails on a page whose example is not among them.
#[cfg(doctest)]
mod book {
    macro_rules! book_pages {
        ($($page:ident),* $(,)?) => {
            $(#[doc = include_str!(concat!("../docs/", stringify!($page), ".md"))] mod $page {})*
        };
    }
    book_pages!(
        pruning,
        obc,
        sparsegpt,
        activation_pruning,
        residual,
        exact,
        split,
        update,
        coefficients,
        score,
        mask,
        algorithm1,
        streams,
        teal,
        gptaq,
        decoding,
    );
}
