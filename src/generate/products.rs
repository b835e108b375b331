//! The products of a decoder: the part that runs on a device.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use super::bandwidth;
use super::weight::Weight;
use crate::device_error::DeviceError;
use crate::linalg::{Scalar, matmul};
use crate::reference::activation::prune_activations;
use crate::reference::spmspv::Selected;
use crate::reference::teal::prune_below;

/// Which entries of a linear's input stay active.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// All but this fraction of each token's smallest; ties stay.
    Largest(f64),
    /// Those with |x| above a threshold.
    Above(f64),
}

impl Keep {
    /// Nothing is pruned.
    pub const ALL: Keep = Keep::Largest(0.0);

    /// The active entries of one token (k).
    pub fn select<T: Scalar>(self, x: &[T]) -> Selected<T> {
        match self {
            Keep::ALL => Selected::all(x),
            Keep::Largest(sparsity) => Selected::top_k(x, sparsity),
            Keep::Above(threshold) => Selected::above(x, threshold),
        }
    }

    /// Sets the other entries of every token to zero (tokens x k).
    pub fn prune<T: Scalar>(self, x: ArrayViewMut2<T>) {
        match self {
            Keep::Largest(sparsity) => prune_activations(x, sparsity),
            Keep::Above(threshold) => prune_below(x, threshold, 0),
        }
    }
}

/// The output of one linear, with what it cost.
#[derive(Clone, Debug)]
pub struct Product<T> {
    /// W (x * mask) (tokens x out).
    pub output: Array2<T>,
    /// Active entries of the input, over all tokens.
    pub kept: usize,
    /// Bytes of the weight that were read.
    pub bytes: usize,
}

/// Products with weights held by a device.
pub trait Products<T: Scalar>: Sync {
    /// A weight as the device holds it.
    type Weight: Send + Sync;

    /// The device that multiplies, for reports; by default the processor of this machine.
    fn describe(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }

    /// Bytes per second at which the weights can be read, measured now; `None` if unknown. By default the bandwidth of this
    /// machine's memory.
    fn bandwidth(&self) -> Option<f64> {
        Some(bandwidth::measure())
    }

    /// Moves a weight to the device.
    ///
    /// # Errors
    /// [`DeviceError`] when there is no room for it.
    fn hold(&self, weight: Weight) -> Result<Self::Weight, DeviceError>;

    /// Multiplies each of several weights by their common input `x` (tokens x in), each with its own rule `keep`.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn multiply(
        &self,
        weights: &[Self::Weight],
        keep: &[Keep],
        x: ArrayView2<T>,
    ) -> Result<Vec<Product<T>>, DeviceError>;
}

/// The reference's product for a few tokens. More share a decompressed copy of each weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl<T: Scalar> Products<T> for Reference {
    type Weight = Weight;

    fn hold(&self, weight: Weight) -> Result<Weight, DeviceError> {
        Ok(weight)
    }

    fn multiply(
        &self,
        weights: &[Weight],
        keep: &[Keep],
        x: ArrayView2<T>,
    ) -> Result<Vec<Product<T>>, DeviceError> {
        on_the_host(weights, keep, x, Weight::product)
    }
}

/// The [fast product](crate::spmspv) for a few tokens; more as with [`Reference`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Fast;

impl Products<f32> for Fast {
    type Weight = Weight;

    fn hold(&self, weight: Weight) -> Result<Weight, DeviceError> {
        Ok(weight)
    }

    fn multiply(
        &self,
        weights: &[Weight],
        keep: &[Keep],
        x: ArrayView2<f32>,
    ) -> Result<Vec<Product<f32>>, DeviceError> {
        on_the_host(weights, keep, x, Weight::fast_product)
    }
}

/// Tokens that are faster one by one from the compressed weight than together from a decompressed one.
const ONE_BY_ONE: usize = 4;

/// A few tokens by `product`, more by a decompressed weight.
fn on_the_host<T: Scalar>(
    weights: &[Weight],
    keep: &[Keep],
    x: ArrayView2<T>,
    product: impl Fn(&Weight, &Selected<T>) -> Array1<T>,
) -> Result<Vec<Product<T>>, DeviceError> {
    if x.nrows() <= ONE_BY_ONE {
        let select = |keep: Keep| -> Result<Vec<Selected<T>>, DeviceError> {
            Ok(x.outer_iter().map(|token| keep.select(&token.to_vec())).collect())
        };
        return each(weights, keep, select, |weight, tokens| {
            let mut output = Array2::zeros((tokens.len(), weight.dim().0));
            for (selected, mut y) in tokens.iter().zip(output.outer_iter_mut()) {
                y.assign(&product(weight, selected));
            }
            Ok(Product {
                output,
                kept: tokens.iter().map(Selected::len).sum(),
                bytes: tokens.iter().map(|selected| weight.bytes_read(selected.indices())).sum(),
            })
        });
    }
    let prune = |keep: Keep| {
        let mut pruned = x.to_owned();
        keep.prune(pruned.view_mut());
        Ok(pruned)
    };
    each(weights, keep, prune, |weight, pruned| {
        Ok(Product {
            output: matmul(pruned.view(), weight.decompress().t()),
            kept: pruned.iter().filter(|x| **x != T::zero()).count(),
            bytes: weight.bytes(),
        })
    })
}

/// Calls `each` with every weight and its pruned input; neighbours with the same rule share that input.
pub(crate) fn each<W, X, T>(
    weights: &[W],
    keep: &[Keep],
    treat: impl Fn(Keep) -> Result<X, DeviceError>,
    product: impl Fn(&W, &X) -> Result<Product<T>, DeviceError>,
) -> Result<Vec<Product<T>>, DeviceError> {
    let mut treated: Option<(Keep, X)> = None;
    let mut products = Vec::with_capacity(weights.len());
    for (weight, &keep) in weights.iter().zip(keep) {
        let (_, x) = match treated.take().filter(|(of, _)| *of == keep) {
            Some(same) => treated.insert(same),
            None => treated.insert((keep, treat(keep)?)),
        };
        products.push(product(weight, x)?);
    }
    Ok(products)
}
