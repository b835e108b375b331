//! The products with AVX2 and AVX-512.
//!
//! A kernel goes over the tiles once per [`COLUMNS`] columns, 32 rows (one word of the bitmap) at a time: it loads the sums,
//! adds one fused multiply-add per column, and stores the sums. The next columns are prefetched meanwhile, because segments are too
//! short and their places too irregular for the hardware prefetcher. A load reads at most 32 values beyond the last value of a
//! segment; the padding after the last segment (`READ_AHEAD`) allows that.

use std::arch::asm;
use std::arch::x86_64::*;

use half::{bf16, f16};

use crate::reference::spmspv::{ALIGN, Dense, Format, Selected, TILE, TileBitmap, TileIndex, Value};

/// Columns that are added to the sums at a time: more columns mean more streams to read at once and fewer loads and stores of
/// the sums.
const COLUMNS: usize = 8;

/// 32 rows of sums or weights, in an order that the type chooses.
type Wide = (__m512, __m512);

/// How values of a type become f32 in registers.
pub trait Vector: Value {
    /// 32 values, widened.
    ///
    /// # Safety
    /// 32 values can be read; the processor has AVX-512 F and BW.
    unsafe fn load_512(from: *const Self) -> Wide;

    /// The same of packed values: those of the set bits lie one after the other, the rest is zero.
    ///
    /// # Safety
    /// 32 values can be read; the processor has AVX-512 F, BW and VBMI2.
    unsafe fn expand_512(from: *const Self, bits: u32) -> Wide;

    /// The sums in the order of their rows.
    ///
    /// # Safety
    /// The processor has AVX-512 F.
    unsafe fn in_order_512(sums: Wide) -> Wide;

    /// 8 values, widened.
    ///
    /// # Safety
    /// 8 values can be read; the processor has AVX2 and F16C.
    unsafe fn load_256(from: *const Self) -> __m256;

    /// The same of packed values.
    ///
    /// # Safety
    /// As [`load_256`](Self::load_256).
    unsafe fn expand_256(from: *const Self, bits: u8) -> __m256;
}

/// 64 bytes. Not an intrinsic, which the compiler would make an operand of the expansion: expanding from memory takes twice
/// as long as loading and expanding (Zen 4).
///
/// # Safety
/// 64 bytes can be read; the processor has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_apart<V>(from: *const V) -> __m512i {
    let loaded;
    // SAFETY: as promised by the caller.
    unsafe {
        asm!("vmovdqu64 {}, [{}]", out(zmm_reg) loaded, in(reg) from, options(pure, readonly, nostack, preserves_flags));
    }
    loaded
}

impl Vector for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load_512(from: *const Self) -> Wide {
        // SAFETY: as promised by the caller, here and below.
        unsafe { (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,popcnt")]
    unsafe fn expand_512(from: *const Self, bits: u32) -> Wide {
        let (low, high) = (bits as u16, (bits >> 16) as u16);
        let second = low.count_ones() as usize;
        // SAFETY: as promised by the caller, here and below.
        let (first, second) = unsafe { (load_apart(from), load_apart(from.add(second))) };
        let expand = |bits, packed| _mm512_maskz_expand_ps(bits, _mm512_castsi512_ps(packed));
        (expand(low, first), expand(high, second))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn in_order_512(sums: Wide) -> Wide {
        sums
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load_256(from: *const Self) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn expand_256(from: *const Self, bits: u8) -> __m256 {
        // Lanes without a value take that of a byte 0x80: negative, so that the blend makes them zero.
        unsafe {
            let places = _mm_loadl_epi64(LANES_32[usize::from(bits)].as_ptr().cast());
            let places = _mm256_cvtepi8_epi32(places);
            let values = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), places);
            _mm256_blendv_ps(values, _mm256_setzero_ps(), _mm256_castsi256_ps(places))
        }
    }
}

/// The odd ones of 32 bf16 are f32 once the even ones are masked out; the even ones once they are shifted up.
#[inline]
#[target_feature(enable = "avx512f")]
fn widen_bf16(pairs: __m512i) -> Wide {
    let even = _mm512_slli_epi32::<16>(pairs);
    let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
    (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen_f16(values: __m512i) -> Wide {
    let (low, high) = (_mm512_castsi512_si256(values), _mm512_extracti64x4_epi64::<1>(values));
    (_mm512_cvtph_ps(low), _mm512_cvtph_ps(high))
}

macro_rules! half_vector {
    ($type:ident, $widen:ident, |$sums:ident| $in_order:expr, |$short:ident| $widen_256:expr) => {
        impl Vector for $type {
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw")]
            unsafe fn load_512(from: *const Self) -> Wide {
                // SAFETY: as promised by the caller, here and below.
                $widen(unsafe { _mm512_loadu_si512(from.cast()) })
            }
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
            unsafe fn expand_512(from: *const Self, bits: u32) -> Wide {
                $widen(_mm512_maskz_expand_epi16(bits, unsafe { load_apart(from) }))
            }
            #[inline]
            #[target_feature(enable = "avx512f")]
            unsafe fn in_order_512($sums: Wide) -> Wide {
                $in_order
            }
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn load_256(from: *const Self) -> __m256 {
                let $short = unsafe { _mm_loadu_si128(from.cast()) };
                $widen_256
            }
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn expand_256(from: *const Self, bits: u8) -> __m256 {
                let $short = unsafe {
                    let places = _mm_loadu_si128(LANES_16[usize::from(bits)].as_ptr().cast());
                    _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), places)
                };
                $widen_256
            }
        }
    };
}
half_vector!(
    bf16,
    widen_bf16,
    |sums| {
        let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        (_mm512_permutex2var_ps(sums.0, first, sums.1), _mm512_permutex2var_ps(sums.0, second, sums.1))
    },
    |short| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(short)))
);
half_vector!(f16, widen_f16, |sums| sums, |short| _mm256_cvtph_ps(short));

/// For every byte of a bitmap and each of its 8 rows, the place of the row's value among the packed ones; 0x80 where the
/// row has none.
const LANES_32: [[u8; 8]; 256] = {
    let mut table = [[0x80; 8]; 256];
    let mut bits = 0;
    while bits < 256 {
        let (mut row, mut place) = (0, 0);
        while row < 8 {
            if bits >> row & 1 == 1 {
                table[bits][row] = place;
                place += 1;
            }
            row += 1;
        }
        bits += 1;
    }
    table
};

/// The same for the two bytes of a 16-bit value, as a shuffle of bytes takes it: 0x80 makes a zero.
const LANES_16: [[u8; 16]; 256] = {
    let mut table = [[0x80; 16]; 256];
    let mut bits = 0;
    while bits < 256 {
        let mut row = 0;
        while row < 8 {
            let place = LANES_32[bits][row];
            if place != 0x80 {
                table[bits][2 * row] = 2 * place;
                table[bits][2 * row + 1] = 2 * place + 1;
            }
            row += 1;
        }
        bits += 1;
    }
    table
};

/// Bytes that come from memory together.
const CACHE_LINE: usize = 64;

/// Asks for memory that will be read soon: as much as `len` values take, wherever they begin.
#[inline]
fn prefetch<V>(from: &[V], len: usize) {
    for line in 0..len * size_of::<V>() / CACHE_LINE + 1 {
        // SAFETY: a prefetch reads nothing, and an invalid address is ignored.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().cast::<i8>().wrapping_add(line * CACHE_LINE)) };
    }
}

/// Values of a segment to ask for. What a half full one has, whatever is there: a number that varies costs more by wrong predictions
/// than it saves, and what follows a shorter segment is the next of its column.
const AHEAD: usize = TILE / 2;

/// A format that gives 8 or 32 rows of a column at a time.
pub(super) trait Rows {
    type Value: Vector;
    /// One column of one tile.
    type Segment: Copy;

    /// Words of 32 rows that the tile has.
    fn words(&self, tile: usize) -> usize;
    /// Where the segment's rows are; in `room`, if they are not in the order of the weight.
    fn segment(&self, column: usize, tile: usize, room: &mut [Self::Value; TILE]) -> Self::Segment;
    /// Asks for what a segment is made of.
    fn prefetch(&self, column: usize, tile: usize);

    /// # Safety
    /// `segment` is of this weight, its room unchanged, and `word` the next of its words; the processor has AVX-512 F, BW and
    /// VBMI2.
    unsafe fn rows_512(segment: &mut Self::Segment, word: usize) -> Wide;

    /// # Safety
    /// `segment` is of this weight, its room unchanged, and `byte` the next of its words' four each; the processor has AVX2 and
    /// F16C.
    unsafe fn rows_256(segment: &mut Self::Segment, byte: usize) -> __m256;
}

/// Rows of a segment that lie one after the other.
macro_rules! contiguous_rows {
    () => {
        type Value = V;
        type Segment = *const V;

        fn words(&self, tile: usize) -> usize {
            (self.dim().0 - tile * TILE).min(TILE).div_ceil(32)
        }
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
        unsafe fn rows_512(segment: &mut *const V, word: usize) -> Wide {
            // SAFETY: 32 values can be read where a word begins: of a buffer or of a column, with READ_AHEAD values after the last.
            unsafe { V::load_512(segment.add(word * 32)) }
        }
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn rows_256(segment: &mut *const V, byte: usize) -> __m256 {
            // SAFETY: as above.
            unsafe { V::load_256(segment.add(byte * 8)) }
        }
    };
}

impl<V: Vector> Rows for &Dense<V> {
    contiguous_rows!();

    #[inline]
    fn segment(&self, column: usize, tile: usize, _: &mut [V; TILE]) -> *const V {
        self.values()[column * self.stride() + tile * TILE..].as_ptr()
    }
    /// A dense column is long enough for the processor to foresee.
    #[inline]
    fn prefetch(&self, _: usize, _: usize) {}
}

impl<V: Vector> Rows for &TileIndex<V> {
    contiguous_rows!();

    /// Values are put in their places as they are: this takes fewer instructions for each than a multiply-add, and no conversion.
    #[inline]
    fn segment(&self, column: usize, tile: usize, room: &mut [V; TILE]) -> *const V {
        let segment = self.segments().range(column, tile);
        room.fill(V::ZERO);
        for (&row, &w) in self.rows()[segment.clone()].iter().zip(&self.values()[segment]) {
            room[usize::from(row)] = w;
        }
        room.as_ptr()
    }
    #[inline]
    fn prefetch(&self, column: usize, tile: usize) {
        let segment = self.segments().range(column, tile);
        prefetch(&self.rows()[segment.start..], AHEAD);
        prefetch(&self.values()[segment.start..], AHEAD);
    }
}

/// What is left of a segment of a bitmap. The values of a word are found by counting bits: the stored prefixes would be one more
/// place of memory to read.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a, V> {
    values: *const V,
    bitmap: &'a [u32; TILE / 32],
}

impl<'a, V: Vector> Rows for &'a TileBitmap<V> {
    type Value = V;
    type Segment = Packed<'a, V>;

    fn words(&self, _: usize) -> usize {
        TILE / 32
    }
    #[inline]
    fn segment(&self, column: usize, tile: usize, _: &mut [V; TILE]) -> Packed<'a, V> {
        let segment = column * self.segments().tiles() + tile;
        let first = self.segments().offsets()[segment] as usize * ALIGN;
        Packed { values: self.values()[first..].as_ptr(), bitmap: &self.bitmap()[segment] }
    }
    #[inline]
    fn prefetch(&self, column: usize, tile: usize) {
        let segment = column * self.segments().tiles() + tile;
        prefetch(&self.values()[self.segments().offsets()[segment] as usize * ALIGN..], AHEAD);
        prefetch(&self.bitmap()[segment], 1);
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
    unsafe fn rows_512(segment: &mut Packed<'a, V>, word: usize) -> Wide {
        let bits = segment.bitmap[word];
        // SAFETY: there is a value for every bit, and READ_AHEAD values follow the last.
        unsafe {
            let rows = V::expand_512(segment.values, bits);
            segment.values = segment.values.add(bits.count_ones() as usize);
            rows
        }
    }
    #[inline]
    #[target_feature(enable = "avx2,f16c,popcnt")]
    unsafe fn rows_256(segment: &mut Packed<'a, V>, byte: usize) -> __m256 {
        let bits = (segment.bitmap[byte / 4] >> (8 * (byte % 4))) as u8;
        // SAFETY: as above.
        unsafe {
            let rows = V::expand_256(segment.values, bits);
            segment.values = segment.values.add(bits.count_ones() as usize);
            rows
        }
    }
}

/// The segments of some columns in one tile. A loop, because the compiler does not inline `array::from_fn` here.
#[inline(always)]
fn segments_of<R: Rows, const C: usize>(
    weight: &R,
    columns: &[u32; C],
    tile: usize,
    rooms: &mut [[R::Value; TILE]; C],
) -> [R::Segment; C] {
    let mut segments = [weight.segment(columns[0] as usize, tile, &mut rooms[0]); C];
    for c in 1..C {
        segments[c] = weight.segment(columns[c] as usize, tile, &mut rooms[c]);
    }
    segments
}

/// # Safety
/// The processor has [`Instructions::Avx512`](super::Instructions::Avx512).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
unsafe fn add_columns_512<R: Rows, const C: usize>(
    weight: &R,
    columns: &[u32; C],
    x: &[f32; C],
    next: &[u32],
    first: usize,
    tiles: &mut [[f32; TILE]],
) {
    let x = x.map(|x| _mm512_set1_ps(x));
    let mut rooms = [[R::Value::ZERO; TILE]; C];
    for (tile, sums) in (first..).zip(tiles) {
        let mut segments = segments_of(weight, columns, tile, &mut rooms);
        for (word, sums) in sums.as_chunks_mut::<32>().0.iter_mut().enumerate().take(weight.words(tile)) {
            next.get(word).inspect(|&&j| weight.prefetch(j as usize, tile));
            let at = sums.as_mut_ptr();
            // SAFETY: 32 sums are loaded and stored; the words are those of the segments.
            unsafe {
                let mut sum = (_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16)));
                for (segment, x) in segments.iter_mut().zip(x) {
                    let rows = R::rows_512(segment, word);
                    sum.0 = _mm512_fmadd_ps(rows.0, x, sum.0);
                    sum.1 = _mm512_fmadd_ps(rows.1, x, sum.1);
                }
                _mm512_storeu_ps(at, sum.0);
                _mm512_storeu_ps(at.add(16), sum.1);
            }
        }
    }
}

/// # Safety
/// The processor has [`Instructions::Avx512`](super::Instructions::Avx512).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
pub(super) unsafe fn multiply_512<R: Rows>(weight: R, x: &Selected, first: usize, sums: &mut [f32]) {
    let (columns, columns_left) = x.indices().as_chunks::<COLUMNS>();
    let (values, values_left) = x.values().as_chunks::<COLUMNS>();
    let (tiles, _) = sums.as_chunks_mut();
    // SAFETY: as promised by the caller; 32 sums are loaded and stored.
    unsafe {
        for (group, (eight, x)) in columns.iter().zip(values).enumerate() {
            let next = columns.get(group + 1).map_or(columns_left, |next| next);
            add_columns_512(&weight, eight, x, next, first, tiles);
        }
        for (&column, &x) in columns_left.iter().zip(values_left) {
            add_columns_512(&weight, &[column], &[x], &[], first, tiles);
        }
        for sums in sums.as_chunks_mut::<32>().0 {
            let at = sums.as_mut_ptr();
            let sum = R::Value::in_order_512((_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(16))));
            _mm512_storeu_ps(at, sum.0);
            _mm512_storeu_ps(at.add(16), sum.1);
        }
    }
}

/// # Safety
/// The processor has [`Instructions::Avx2`](super::Instructions::Avx2).
#[inline]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
unsafe fn add_columns_256<R: Rows, const C: usize>(
    weight: &R,
    columns: &[u32; C],
    x: &[f32; C],
    next: &[u32],
    first: usize,
    tiles: &mut [[f32; TILE]],
) {
    let x = x.map(|x| _mm256_set1_ps(x));
    let mut rooms = [[R::Value::ZERO; TILE]; C];
    for (tile, sums) in (first..).zip(tiles) {
        let mut segments = segments_of(weight, columns, tile, &mut rooms);
        for (word, sums) in sums.as_chunks_mut::<32>().0.iter_mut().enumerate().take(weight.words(tile)) {
            next.get(word).inspect(|&&j| weight.prefetch(j as usize, tile));
            for (byte, sums) in sums.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                // SAFETY: 8 sums are loaded and stored; the words are those of the segments.
                unsafe {
                    let mut sum = _mm256_loadu_ps(sums.as_ptr());
                    for (segment, x) in segments.iter_mut().zip(x) {
                        sum = _mm256_fmadd_ps(R::rows_256(segment, word * 4 + byte), x, sum);
                    }
                    _mm256_storeu_ps(sums.as_mut_ptr(), sum);
                }
            }
        }
    }
}

/// # Safety
/// The processor has [`Instructions::Avx2`](super::Instructions::Avx2).
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
pub(super) unsafe fn multiply_256<R: Rows>(weight: R, x: &Selected, first: usize, sums: &mut [f32]) {
    let (columns, columns_left) = x.indices().as_chunks::<COLUMNS>();
    let (values, values_left) = x.values().as_chunks::<COLUMNS>();
    let (tiles, _) = sums.as_chunks_mut();
    // SAFETY: as promised by the caller.
    unsafe {
        for (group, (eight, x)) in columns.iter().zip(values).enumerate() {
            let next = columns.get(group + 1).map_or(columns_left, |next| next);
            add_columns_256(&weight, eight, x, next, first, tiles);
        }
        for (&column, &x) in columns_left.iter().zip(values_left) {
            add_columns_256(&weight, &[column], &[x], &[], first, tiles);
        }
    }
}
