//! Dual-sparse decoding: y = W (x * mask) from weights that are stored without their zeros.
//!
//! One token uses each weight once, so the product takes as long as reading W. Two things reduce the bytes. A column whose x_j
//! was pruned is not read, so columns must be contiguous: every format here is column-major. And zero weights are not
//! stored, so the format must record where the others belong:
//!
//! | format | besides the values | bytes per bf16 weight at 50 % | and with 50 % of x |
//! |---|---|---|---|
//! | [`Dense`] | nothing | 2 | 1 |
//! | [`TileIndex`] | a byte per value: its row within the tile | 1.516 | 0.758 |
//! | [`TileBitmap`] | a bit per weight, and a byte per 32 rows | 1.172 | 0.586 |
//!
//! A *tile* is [`TILE`] rows, so that a row index within it is one byte and its outputs fit in the shared memory of a thread block or
//! the registers of a core. A *segment* is one column of one tile, and begins at a multiple of [`ALIGN`] values, so that a 16-byte load may begin
//! there. Segments differ in length, so each has an offset.
//!
//! Every bit pattern except +0 is stored. So negative zero, denormals, infinities and every NaN come back unchanged, and +0
//! can mark the padding of a segment.

mod bitmap;
mod dense;
mod index;
mod selected;
mod value;

pub use bitmap::TileBitmap;
pub use dense::Dense;
pub use index::TileIndex;
pub use selected::Selected;
pub use value::Value;

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView2};

use crate::linalg::Scalar;

/// Rows of a tile.
pub const TILE: usize = 256;

/// A segment is padded to a multiple of this many values: at least 16 bytes of every type.
pub const ALIGN: usize = 8;

/// Values of padding after the last segment, so that 32 values can be loaded from any position.
pub const READ_AHEAD: usize = 32;

/// A storage format of an n x k weight.
pub trait Format<V: Value>: Sized {
    /// The format's name, for reports.
    const NAME: &'static str;

    /// Stores a dense weight (n x k); every bit pattern is kept.
    fn from_dense(weight: ArrayView2<V>) -> Self;

    /// (n, k).
    fn dim(&self) -> (usize, usize);

    /// Row and value of everything stored for column j, top to bottom, without padding.
    fn column(&self, j: usize) -> impl Iterator<Item = (usize, V)>;

    /// Bytes of all arrays.
    fn bytes(&self) -> usize;

    /// Bytes per weight of whole tiles of which a fraction `density` is stored, offsets included; padding, at most
    /// [`ALIGN`] - 1 values per segment, is not.
    fn bytes_per_weight(density: f64) -> f64;

    /// The weight (n x k) that was stored, bit by bit.
    fn to_dense(&self) -> Array2<V> {
        let mut weight = Array2::from_elem(self.dim(), V::ZERO);
        for j in 0..self.dim().1 {
            for (i, w) in self.column(j) {
                weight[(i, j)] = w;
            }
        }
        weight
    }

    /// y_i = sum over the selected j of W_ij x_j, in f64: products of an f32 and a stored value are exact in it.
    ///
    /// # Panics
    /// When an index is not below k.
    // ANCHOR: product
    fn product<T: Scalar>(&self, x: &Selected<T>) -> Array1<f64> {
        let mut y = Array1::zeros(self.dim().0);
        for (j, x) in x.iter() {
            for (i, w) in self.column(j) {
                y[i] += w.to_f64() * x.widen();
            }
        }
        y
    }
    // ANCHOR_END: product
}

/// Where the values of each column of each tile lie: column by column, within a column tile by tile.
#[derive(Clone, Debug)]
pub struct Segments {
    n: usize,
    k: usize,
    offsets: Vec<u32>,
}

impl Segments {
    fn new((n, k): (usize, usize)) -> Self {
        let mut offsets = Vec::with_capacity(n.div_ceil(TILE) * k + 1);
        offsets.push(0);
        Segments { n, k, offsets }
    }

    /// A vector with the capacity for all values of a weight in segments, so that it is never reallocated.
    fn room<V: Value>(&self, weight: &ArrayView2<V>) -> Vec<V> {
        let stored = weight.fold(0, |stored, w| stored + usize::from(!w.is_zero()));
        Vec::with_capacity(stored + self.tiles() * self.k * (ALIGN - 1) + READ_AHEAD)
    }

    /// Pads the segment at the end of `values` with +0 and records where the next begins.
    fn finish<V: Value>(&mut self, values: &mut Vec<V>) {
        values.resize(values.len().next_multiple_of(ALIGN), V::ZERO);
        let end = values.len() / ALIGN;
        self.offsets.push(u32::try_from(end).expect("a weight has less than 2^35 values"));
    }

    /// Tiles of a column.
    pub fn tiles(&self) -> usize {
        self.n.div_ceil(TILE)
    }

    /// Where each segment begins, in units of [`ALIGN`] values: that of column j and tile t at j * tiles + t; and the end
    /// of the last.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// The place of a segment among the values.
    pub fn range(&self, column: usize, tile: usize) -> Range<usize> {
        let segment = column * self.tiles() + tile;
        self.offsets[segment] as usize * ALIGN..self.offsets[segment + 1] as usize * ALIGN
    }
}
