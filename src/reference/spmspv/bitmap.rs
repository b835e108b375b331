//! Packed values, and a bit per weight that says which are stored.

use ndarray::{ArrayView2, Axis};

use super::{Format, READ_AHEAD, Segments, TILE, Value};

/// Words of a segment's bitmap.
const WORDS: usize = TILE / u32::BITS as usize;

/// A weight (n x k) as packed values with a bitmap per segment.
///
/// Segments lie column by column, within a column tile by tile, and within a segment row by row. Row i of a tile is bit i mod 32
/// of word i / 32. The position of the value at a set bit is the word's prefix plus the number of set bits below it in its
/// word: a row finds its value without reading other words.
#[derive(Clone, Debug)]
pub struct TileBitmap<V> {
    segments: Segments,
    values: Vec<V>,
    bitmap: Vec<[u32; WORDS]>,
    prefix: Vec<[u8; WORDS]>,
}

impl<V: Value> TileBitmap<V> {
    /// Where its segments lie.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// Packed values, segments padded with +0, then [`READ_AHEAD`] values of padding.
    pub fn values(&self) -> &[V] {
        &self.values
    }

    /// Which rows have a value: the words of column j and tile t at index j * tiles + t.
    pub fn bitmap(&self) -> &[[u32; WORDS]] {
        &self.bitmap
    }

    /// For each word, the number of values of its segment that come before.
    pub fn prefix(&self) -> &[[u8; WORDS]] {
        &self.prefix
    }
}

impl<V: Value> Format<V> for TileBitmap<V> {
    const NAME: &'static str = "bitmap";

    fn from_dense(weight: ArrayView2<V>) -> Self {
        let mut segments = Segments::new(weight.dim());
        let (mut values, mut bitmap, mut prefix) = (segments.room(&weight), Vec::new(), Vec::new());
        for column in weight.columns() {
            for tile in column.axis_chunks_iter(Axis(0), TILE) {
                let (mut words, mut before) = ([0u32; WORDS], [0u8; WORDS]);
                let start = values.len();
                for word in 0..WORDS {
                    // At most 224: seven words come before the last.
                    before[word] = (values.len() - start) as u8;
                    let rows = tile.iter().skip(word * 32).take(32);
                    for (bit, &w) in rows.enumerate().filter(|(_, w)| !w.is_zero()) {
                        words[word] |= 1 << bit;
                        values.push(w);
                    }
                }
                segments.finish(&mut values);
                bitmap.push(words);
                prefix.push(before);
            }
        }
        values.resize(values.len() + READ_AHEAD, V::ZERO);
        TileBitmap { segments, values, bitmap, prefix }
    }

    fn dim(&self) -> (usize, usize) {
        (self.segments.n, self.segments.k)
    }

    fn column(&self, j: usize) -> impl Iterator<Item = (usize, V)> {
        (0..self.segments.tiles()).flat_map(move |tile| {
            let (values, segment) =
                (&self.values[self.segments.range(j, tile)], j * self.segments.tiles() + tile);
            let (words, before) = (self.bitmap[segment], self.prefix[segment]);
            (0..WORDS).flat_map(move |word| {
                let values = &values[usize::from(before[word])..];
                set_bits(words[word])
                    .map(move |bit| tile * TILE + word * 32 + bit)
                    .zip(values.iter().copied())
            })
        })
    }

    fn bytes(&self) -> usize {
        size_of_val(&self.values[..])
            + size_of_val(&self.bitmap[..])
            + size_of_val(&self.prefix[..])
            + size_of_val(self.segments.offsets())
    }

    fn bytes_per_weight(density: f64) -> f64 {
        let of_segment = WORDS * (size_of::<u32>() + size_of::<u8>()) + size_of::<u32>();
        density * size_of::<V>() as f64 + of_segment as f64 / TILE as f64
    }
}

/// Places of the bits that are set, ascending.
fn set_bits(mut word: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = word.trailing_zeros() as usize;
        let found = word != 0;
        word &= word.wrapping_sub(1);
        found.then_some(place)
    })
}
