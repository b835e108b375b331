//! The active inputs of one token, as a list.

use ndarray::{Array1, ArrayViewMut1, Axis};

use crate::linalg::Scalar;
use crate::reference::activation::prune_token;
use crate::reference::teal::prune_below;

/// The entries of a token's x (k) that activation pruning leaves, without those that are zero anyway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selected<T = f32> {
    /// Their places, ascending.
    indices: Vec<u32>,
    /// Their values.
    values: Vec<T>,
}

impl<T: Scalar> Selected<T> {
    /// All entries that are not zero.
    pub fn all(x: &[T]) -> Self {
        Self::left(x, |_| ())
    }

    /// The entries that [`prune_token`] leaves at this sparsity: exact top-k, ties at the threshold stay.
    pub fn top_k(x: &[T], sparsity: f64) -> Self {
        Self::left(x, |x| prune_token(x, sparsity))
    }

    /// The entries with |x| > t: TEAL's rule, as in [`prune_below`].
    pub fn above(x: &[T], threshold: f64) -> Self {
        Self::left(x, |x| prune_below(x.insert_axis(Axis(0)), threshold, 0))
    }

    fn left(x: &[T], prune: impl FnOnce(ArrayViewMut1<T>)) -> Self {
        let mut pruned = Array1::from(x.to_vec());
        prune(pruned.view_mut());
        let (indices, values) = (0..).zip(pruned).filter(|(_, x)| *x != T::zero()).unzip();
        Selected { indices, values }
    }

    /// Places of the selected entries, ascending.
    pub fn indices(&self) -> &[u32] {
        &self.indices
    }

    /// Their values.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// Place and value.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (usize, T)> {
        self.indices.iter().map(|&j| j as usize).zip(self.values.iter().copied())
    }

    /// How many are selected.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}
