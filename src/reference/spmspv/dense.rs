//! Every weight, column by column: saves only the columns that are skipped.

use ndarray::ArrayView2;

use super::{ALIGN, Format, READ_AHEAD, Value};

/// A dense weight (n x k) whose columns are contiguous and begin at multiples of [`ALIGN`] values.
#[derive(Clone, Debug)]
pub struct Dense<V> {
    n: usize,
    k: usize,
    /// k columns of [`stride`](Self::stride) values, padded with +0.
    values: Vec<V>,
}

impl<V: Value> Dense<V> {
    /// Values from one column to the next.
    pub fn stride(&self) -> usize {
        self.n.next_multiple_of(ALIGN)
    }

    /// The columns, one after the other, then [`READ_AHEAD`] values of padding.
    pub fn values(&self) -> &[V] {
        &self.values
    }
}

impl<V: Value> Format<V> for Dense<V> {
    const NAME: &'static str = "dense";

    fn from_dense(weight: ArrayView2<V>) -> Self {
        let (n, k) = weight.dim();
        let filling = n.next_multiple_of(ALIGN) - n;
        let mut values = Vec::with_capacity((n + filling) * k);
        for column in weight.columns() {
            values.extend(column);
            values.extend(std::iter::repeat_n(V::ZERO, filling));
        }
        values.resize(values.len() + READ_AHEAD, V::ZERO);
        Dense { n, k, values }
    }

    fn dim(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    fn column(&self, j: usize) -> impl Iterator<Item = (usize, V)> {
        self.values[j * self.stride()..][..self.n].iter().copied().enumerate()
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.values[..])
    }

    fn bytes_per_weight(_: f64) -> f64 {
        size_of::<V>() as f64
    }
}
