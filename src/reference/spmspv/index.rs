//! Packed values, each with a byte for its row within the tile.

use ndarray::{ArrayView2, Axis};

use super::{ALIGN, Format, Segments, TILE, Value};

/// A weight (n x k) as packed values with 8-bit row indices.
///
/// Segments lie column by column, within a column tile by tile, and within a segment row by row. So any 32 neighbouring
/// values of a segment, one step of a warp, are of one column and have 32 different rows: no two of them are added to
/// the same output in one step. That holds for padding too: +0 with a row of the tile that has no value.
#[derive(Clone, Debug)]
pub struct TileIndex<V> {
    segments: Segments,
    values: Vec<V>,
    rows: Vec<u8>,
}

impl<V: Value> TileIndex<V> {
    /// Where its segments lie.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Packed values, segments padded with +0.
    pub fn values(&self) -> &[V] {
        &self.values
    }

    /// The row within the tile of each of the values.
    pub fn rows(&self) -> &[u8] {
        &self.rows
    }
}

impl<V: Value> Format<V> for TileIndex<V> {
    const NAME: &'static str = "index";

    fn from_dense(weight: ArrayView2<V>) -> Self {
        let mut segments = Segments::new(weight.dim());
        let mut values = segments.room(&weight);
        let mut rows = Vec::with_capacity(values.capacity());
        for column in weight.columns() {
            for tile in column.axis_chunks_iter(Axis(0), TILE) {
                let taken = (0..=u8::MAX).zip(tile).filter(|(_, w)| !w.is_zero());
                for (row, &w) in taken {
                    values.push(w);
                    rows.push(row);
                }
                // A segment that needs padding has enough rows without a value: TILE is a multiple of ALIGN.
                let filling = values.len().next_multiple_of(ALIGN) - values.len();
                let free = (0..=u8::MAX).filter(|&row| tile.get(row as usize).is_none_or(|w| w.is_zero()));
                rows.extend(free.take(filling));
                segments.finish(&mut values);
            }
        }
        TileIndex { segments, values, rows }
    }

    fn dim(&self) -> (usize, usize) {
        (self.segments.n, self.segments.k)
    }

    fn column(&self, j: usize) -> impl Iterator<Item = (usize, V)> {
        (0..self.segments.tiles()).flat_map(move |tile| {
            let segment = self.segments.range(j, tile);
            let entries = self.rows[segment.clone()].iter().zip(&self.values[segment]);
            entries.filter(|(_, w)| !w.is_zero()).map(move |(&row, &w)| (tile * TILE + usize::from(row), w))
        })
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.values[..]) + self.rows.len() + size_of_val(self.segments.offsets())
    }

    fn bytes_per_weight(density: f64) -> f64 {
        density * (size_of::<V>() as f64 + 1.0) + size_of::<u32>() as f64 / TILE as f64
    }
}
