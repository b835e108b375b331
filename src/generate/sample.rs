//! The next token, from the logits.

use ndarray::ArrayView1;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::linalg::Scalar;

/// Chooses tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    random: ChaCha8Rng,
}

impl Sampler {
    /// From the distribution softmax(logits / temperature), restricted to the most probable tokens whose probabilities
    /// add up to `top_p`; from ChaCha8 with this seed. Temperature 0 is [`greedy`](Self::greedy).
    ///
    /// # Panics
    /// When the temperature is negative, or `top_p` outside (0, 1].
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Self {
        assert!(temperature >= 0.0 && temperature.is_finite(), "temperature {temperature}");
        assert!(0.0 < top_p && top_p <= 1.0, "top-p {top_p}");
        Sampler { temperature, top_p, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Always the most probable token; of equal ones the first.
    pub fn greedy() -> Self {
        Sampler::new(0.0, 1.0, 0)
    }

    /// The next token; `None` when the logits are not all finite.
    pub fn next<T: Scalar>(&mut self, logits: ArrayView1<T>) -> Option<u32> {
        let mut best = 0;
        for (token, &logit) in logits.iter().enumerate() {
            if !logit.is_finite() {
                return None;
            }
            if logit > logits[best] {
                best = token;
            }
        }
        let largest = logits.get(best)?.widen();
        if self.temperature == 0.0 {
            return Some(best as u32);
        }
        let weight = |logit: T| ((logit.widen() - largest) / self.temperature).exp();
        let mut kept: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&logit| weight(logit))).collect();
        let mut total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        if self.top_p < 1.0 {
            kept.sort_by(|(_, a), (_, b)| b.total_cmp(a)); // stable: of equal ones the first
            let enough = self.top_p * total;
            total = 0.0;
            let mut count = 0;
            while count < kept.len() && total < enough {
                total += kept[count].1;
                count += 1;
            }
            kept.truncate(count);
        }
        let mut left = self.random.random::<f64>() * total;
        let drawn = kept.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        // Rounding can leave a remainder after the last token.
        drawn.or(kept.last()).map(|&(token, _)| token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;
    use ndarray::array;

    const DRAWS: usize = 20_000;

    /// How often each token is drawn.
    fn shares(sampler: &mut Sampler, logits: &[f64]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.next(ArrayView1::from(logits)).unwrap() as usize] += 1.0 / DRAWS as f64;
        }
        counts
    }

    fn probabilities(weights: [f64; 4]) -> [f64; 4] {
        weights.map(|weight| weight / weights.iter().sum::<f64>())
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        let weights = [1.0, 4.0, 2.0, 3.0];
        let logits = weights.map(f64::ln);
        for (temperature, top_p, expected) in [
            (1.0, 1.0, probabilities(weights)),
            (0.5, 1.0, probabilities(weights.map(|w| w * w))),
            (2.0, 1.0, probabilities(weights.map(f64::sqrt))),
            // 0.4, 0.3, 0.2, 0.1: what reaches the share, the token that crosses it included.
            (1.0, 0.65, probabilities([0.0, 4.0, 0.0, 3.0])),
            (1.0, 0.75, probabilities([0.0, 4.0, 2.0, 3.0])),
            (1.0, 0.35, probabilities([0.0, 4.0, 0.0, 0.0])),
        ] {
            let found = shares(&mut Sampler::new(temperature, top_p, 5), &logits);
            for (found, expected) in found.iter().zip(expected) {
                // Hoeffding: beyond this with probability 2 exp(-2 n e^2) = 1e-6.
                let e = ((2e6f64).ln() / (2.0 * DRAWS as f64)).sqrt();
                assert!(
                    abs_diff_eq!(*found, expected, epsilon = e) && (*found == 0.0) == (expected == 0.0),
                    "{temperature} {top_p}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn a_seed_means_the_same_tokens() {
        let logits: Vec<f64> = (0..100).map(|i| f64::from(i % 7)).collect();
        let draw = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(1.0, 0.9, seed);
            (0..50).map(|_| sampler.next(ArrayView1::from(&logits)).unwrap()).collect()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn greedy_takes_the_first_of_the_most_probable() {
        assert_eq!(Sampler::greedy().next(array![0.0, 3.0, -1.0, 3.0].view()), Some(1));
        // Ever colder, sampling becomes the same.
        assert_eq!(Sampler::new(1e-300, 0.5, 0).next(array![0.0f32, 2.0, 3.0].view()), Some(2));
    }

    #[test]
    fn what_is_no_number_is_not_chosen_from() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(Sampler::greedy().next(array![1.0, bad, 0.0].view()), None);
            assert_eq!(Sampler::new(1.0, 1.0, 0).next(array![1.0, bad].view()), None);
        }
    }
}
