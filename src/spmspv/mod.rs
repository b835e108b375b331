//! y = W (x * mask) on a CPU, close to the speed at which memory delivers W.
//!
//! The storage formats are those of [`reference::spmspv`](crate::reference::spmspv), and the result is the same but for
//! rounding (the reference adds in f64). In addition, tiles of rows are distributed over rayon's threads; eight columns at a
//! time are added to the sums of a tile, which stay
//! in the first-level cache; packed values are expanded by the processor's own instructions where it has them.
//!
//! Every output is the sum over the selected columns in ascending order, in f32, each step one fused multiply-add. So
//! the result depends neither on the number of threads, nor on the instructions, nor on the format.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use rayon::prelude::*;

use crate::reference::spmspv::{Dense, Format, Segments, Selected, TILE, TileBitmap, TileIndex};

#[cfg(not(target_arch = "x86_64"))]
pub use crate::reference::spmspv::Value as Vector;
#[cfg(target_arch = "x86_64")]
pub use x86::Vector;

/// A stored weight (n x k) that can be multiplied by selected activations.
pub trait Multiply: Send + Sync {
    /// (n, k).
    fn shape(&self) -> (usize, usize);

    /// y = W x, with y (n) overwritten. `x` must be finite: where a weight is zero, an infinity may or may not make a NaN.
    ///
    /// # Panics
    /// When y is not of n values, or an index of x not below k.
    fn multiply(&self, x: &Selected, y: &mut [f32]) {
        self.multiply_with(Instructions::best(), x, y);
    }

    /// The same with given instructions.
    ///
    /// # Panics
    /// As [`multiply`](Self::multiply), and when the processor does not have them.
    fn multiply_with(&self, instructions: Instructions, x: &Selected, y: &mut [f32]);

    /// Bytes of the stored weight.
    fn stored_bytes(&self) -> usize;

    /// Bytes of it that a product reads for these columns.
    fn bytes_read(&self, columns: &[u32]) -> usize;
}

/// The instruction set of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// Portable code.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and VBMI2, which can expand packed 16-bit values.
    Avx512,
}

impl Instructions {
    /// The instruction sets of this processor, the best last.
    pub fn supported() -> Vec<Self> {
        let all = [Instructions::Portable, Instructions::Avx2, Instructions::Avx512];
        all.into_iter().filter(|instructions| instructions.are_supported()).collect()
    }

    /// The best that this processor has.
    pub fn best() -> Self {
        let best_first = [Instructions::Avx512, Instructions::Avx2];
        best_first.into_iter().find(|i| i.are_supported()).unwrap_or(Instructions::Portable)
    }

    #[cfg(target_arch = "x86_64")]
    fn are_supported(self) -> bool {
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("popcnt")
        };
        let avx512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi2")
        };
        match self {
            Instructions::Portable => true,
            Instructions::Avx2 => avx2(),
            Instructions::Avx512 => avx2() && avx512(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn are_supported(self) -> bool {
        self == Instructions::Portable
    }
}

/// A format that has kernels. Each adds the products of the selected columns to `sums`, those of the tiles from `first` on,
/// [`TILE`] each.
trait Kernels: Send + Sync {
    fn size(&self) -> (usize, usize);
    fn all_bytes(&self) -> usize;
    fn column_bytes(&self, columns: &[u32]) -> usize;

    fn portable(&self, x: &Selected, first: usize, sums: &mut [f32]);

    /// # Safety
    /// The processor has [`Instructions::Avx2`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx2(&self, x: &Selected, first: usize, sums: &mut [f32]);

    /// # Safety
    /// The processor has [`Instructions::Avx512`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn avx512(&self, x: &Selected, first: usize, sums: &mut [f32]);
}

/// Most tiles of one task: their sums take 8 kB of the first-level cache.
const TILES_PER_TASK: usize = 8;

impl<F: Kernels> Multiply for F {
    fn shape(&self) -> (usize, usize) {
        self.size()
    }

    fn multiply_with(&self, instructions: Instructions, x: &Selected, y: &mut [f32]) {
        let (n, k) = self.size();
        assert!(instructions.are_supported(), "{instructions:?} are not supported by this processor");
        assert_eq!(y.len(), n, "the product does not fit its place");
        assert!(x.indices().last().is_none_or(|&j| (j as usize) < k), "a selected activation has no column");
        let tiles = n.div_ceil(TILE).div_ceil(rayon::current_num_threads()).clamp(1, TILES_PER_TASK);
        y.par_chunks_mut(tiles * TILE).enumerate().for_each(|(task, y)| {
            let mut sums = [0.0; TILES_PER_TASK * TILE];
            let (first, of_task) = (task * tiles, &mut sums[..y.len().next_multiple_of(TILE)]);
            match instructions {
                Instructions::Portable => self.portable(x, first, of_task),
                // SAFETY: the processor has them.
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => unsafe { self.avx2(x, first, of_task) },
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => unsafe { self.avx512(x, first, of_task) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("not supported"),
            }
            y.copy_from_slice(&sums[..y.len()]);
        });
    }

    fn stored_bytes(&self) -> usize {
        self.all_bytes()
    }

    fn bytes_read(&self, columns: &[u32]) -> usize {
        self.column_bytes(columns)
    }
}

/// Bytes of the segments of the selected columns, whose values take `per_value` bytes, and `per_segment` bytes besides.
fn bytes_of_segments(segments: &Segments, columns: &[u32], per_value: usize, per_segment: usize) -> usize {
    let tiles = segments.tiles();
    let of_segment = |j, tile| segments.range(j, tile).len() * per_value + per_segment;
    columns.iter().map(|&j| (0..tiles).map(|tile| of_segment(j as usize, tile)).sum::<usize>()).sum()
}

/// With registers that hold rows of one column.
macro_rules! by_rows {
    () => {
        #[cfg(target_arch = "x86_64")]
        unsafe fn avx2(&self, x: &Selected, first: usize, sums: &mut [f32]) {
            // SAFETY: as promised by the caller.
            unsafe { x86::multiply_256(self, x, first, sums) }
        }
        #[cfg(target_arch = "x86_64")]
        unsafe fn avx512(&self, x: &Selected, first: usize, sums: &mut [f32]) {
            // SAFETY: as promised by the caller.
            unsafe { x86::multiply_512(self, x, first, sums) }
        }
    };
}

impl<V: Vector> Kernels for Dense<V> {
    fn size(&self) -> (usize, usize) {
        self.dim()
    }
    fn all_bytes(&self) -> usize {
        Format::bytes(self)
    }
    fn column_bytes(&self, columns: &[u32]) -> usize {
        columns.len() * self.stride() * size_of::<V>()
    }
    fn portable(&self, x: &Selected, first: usize, sums: &mut [f32]) {
        portable::dense(self, x, first, sums);
    }
    by_rows!();
}

impl<V: Vector> Kernels for TileIndex<V> {
    fn size(&self) -> (usize, usize) {
        self.dim()
    }
    fn all_bytes(&self) -> usize {
        Format::bytes(self)
    }
    fn column_bytes(&self, columns: &[u32]) -> usize {
        bytes_of_segments(self.segments(), columns, size_of::<V>() + 1, size_of::<u32>())
    }
    fn portable(&self, x: &Selected, first: usize, sums: &mut [f32]) {
        portable::index(self, x, first, sums);
    }
    by_rows!();
}

impl<V: Vector> Kernels for TileBitmap<V> {
    fn size(&self) -> (usize, usize) {
        self.dim()
    }
    fn all_bytes(&self) -> usize {
        Format::bytes(self)
    }
    fn column_bytes(&self, columns: &[u32]) -> usize {
        // Offset and bitmap. Values are found by counting bits, not by the prefixes.
        bytes_of_segments(self.segments(), columns, size_of::<V>(), size_of::<u32>() + TILE / 8)
    }
    fn portable(&self, x: &Selected, first: usize, sums: &mut [f32]) {
        portable::bitmap(self, x, first, sums);
    }
    by_rows!();
}
