//! The products in plain Rust, column by column.

use crate::reference::spmspv::{Dense, Format, Selected, TILE, TileBitmap, TileIndex, Value};

pub(super) fn dense<V: Value>(weight: &Dense<V>, x: &Selected, first: usize, sums: &mut [f32]) {
    let top = first * TILE;
    let rows = (weight.dim().0 - top).min(sums.len());
    for (j, x) in x.iter() {
        let column = &weight.values()[j * weight.stride() + top..][..rows];
        for (sum, w) in sums.iter_mut().zip(column) {
            *sum = w.to_f32().mul_add(x, *sum);
        }
    }
}

pub(super) fn index<V: Value>(weight: &TileIndex<V>, x: &Selected, first: usize, sums: &mut [f32]) {
    let (tiles, _) = sums.as_chunks_mut::<TILE>();
    for (j, x) in x.iter() {
        for (tile, sums) in tiles.iter_mut().enumerate() {
            let segment = weight.segments().range(j, first + tile);
            for (&row, w) in weight.rows()[segment.clone()].iter().zip(&weight.values()[segment]) {
                let sum = &mut sums[usize::from(row)];
                *sum = w.to_f32().mul_add(x, *sum);
            }
        }
    }
}

pub(super) fn bitmap<V: Value>(weight: &TileBitmap<V>, x: &Selected, first: usize, sums: &mut [f32]) {
    let (tiles, _) = sums.as_chunks_mut::<TILE>();
    for (j, x) in x.iter() {
        for (tile, sums) in tiles.iter_mut().enumerate() {
            let (segments, tile) = (weight.segments(), first + tile);
            let mut values = weight.values()[segments.range(j, tile)].iter();
            let words = &weight.bitmap()[j * segments.tiles() + tile];
            for (&word, sums) in words.iter().zip(sums.as_chunks_mut::<32>().0) {
                let mut left = word;
                while left != 0 {
                    let sum = &mut sums[left.trailing_zeros() as usize];
                    let w = values.next().expect("a value for every bit");
                    *sum = w.to_f32().mul_add(x, *sum);
                    left &= left - 1;
                }
            }
        }
    }
}
