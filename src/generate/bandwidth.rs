//! How fast memory can be read here, as the yardstick of a decoder.

use std::time::{Duration, Instant};

use rayon::prelude::*;

/// Much more than a cache holds.
const BYTES: usize = 256 << 20;
const PASSES: usize = 5;

/// Bytes per second that all threads together read from memory: the best of several passes over 256 MiB.
pub fn measure() -> f64 {
    let words: Vec<u64> = (0..(BYTES / size_of::<u64>()) as u64).collect();
    let per_thread = words.len().div_ceil(rayon::current_num_threads());
    let pass = || {
        let start = Instant::now();
        let sum: u64 = words.par_chunks(per_thread).map(sum).reduce(|| 0, u64::wrapping_add);
        std::hint::black_box(sum);
        start.elapsed()
    };
    let best = (0..PASSES).map(|_| pass()).min().unwrap_or(Duration::MAX);
    BYTES as f64 / best.as_secs_f64()
}

/// Eight sums at a time, so that no addition waits for the one before.
fn sum(words: &[u64]) -> u64 {
    let (eights, rest) = words.as_chunks::<8>();
    let mut sums = [0u64; 8];
    for eight in eights {
        sums.iter_mut().zip(eight).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
    }
    sums.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}
