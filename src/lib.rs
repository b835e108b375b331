//! A reference and verification suite for DuoGPT (arXiv 2506.20194), an algorithm that prunes the weights of a large
//! language model while taking into account that its activations will be sparse too when it runs.
//!
//! Start with [`mod@reference`]: the algorithm, every equation once, in reading order, with the notation table. The rest
//! runs it on real models and holds implementations against it.
//!
//! | module | what |
//! |---|---|
//! | [`mod@reference`] | the algorithm and the baselines it is compared with, over `f32` and `f64` |
//! | [`backend`] | what a device must offer to run it |
//! | [`cuda`] | the same steps on a GPU: the host side of `kernels/` |
//! | [`model`] | checkpoints of LLaMA and its relatives, and their forward pass, cut into groups of linears with one input |
//! | [`calibrate`] | the two streams, the layer loop, the pruned checkpoint; optimality gaps; activation thresholds |
//! | [`evaluate`] | perplexity, zero-shot accuracy, and which of several methods is better |
//! | [`mod@generate`] | text from a model whose weights stay compressed in memory |
//! | [`verify`] | golden files of the original code, and measures of error |
//! | [`spmspv`] | y = W (x * mask) from compressed weights, fast, on a CPU |
//! | [`tensors`] | safetensors files |
//! | [`progress`] | how far a long computation is |
//! | [`linalg`] | the dense operations, over BLAS and LAPACK |
//! | [`cli`] | the `duogpt` command |
//!
//! # One layer
//!
//! ```
//! use duogpt::reference::{PruneConfig, Sparsity, Statistics, activation, prune};
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
//! // The update pays: the output on sparse inputs is closer to the dense one than with the same weights just zeroed.
//! let mut zeroed = weight.clone();
//! zeroed.zip_mut_with(&pruned.mask, |w, &gone| if gone { *w = 0.0 });
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
