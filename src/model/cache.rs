//! The KV cache: keys and values of the tokens computed so far, so that the next token costs one row instead of the whole
//! sequence again.

use ndarray::{Array2, ArrayView2, s};

use super::ModelConfig;
use crate::linalg::Scalar;

/// Keys, with their rotary embedding applied, and values of one layer (tokens x kv heads * head_dim).
#[derive(Clone, Debug)]
pub struct KeyValues<T> {
    length: usize,
    /// Rows from `length` on are free.
    keys: Array2<T>,
    values: Array2<T>,
}

impl<T: Scalar> KeyValues<T> {
    /// Room for `capacity` tokens. The system provides memory only for rows that are written.
    pub fn new(config: &ModelConfig, capacity: usize) -> Self {
        let room = || Array2::zeros((capacity, config.key_value_size()));
        KeyValues { length: 0, keys: room(), values: room() }
    }

    /// Appends the keys and values of the next tokens.
    ///
    /// # Panics
    /// When they exceed the capacity.
    pub fn append(&mut self, keys: ArrayView2<T>, values: ArrayView2<T>) {
        let rows = self.length..self.length + keys.nrows();
        self.keys.slice_mut(s![rows.clone(), ..]).assign(&keys);
        self.values.slice_mut(s![rows.clone(), ..]).assign(&values);
        self.length = rows.end;
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes of the keys and values of all tokens.
    pub fn bytes(&self) -> usize {
        2 * self.length * self.keys.ncols() * size_of::<T>()
    }

    /// Of all tokens held.
    pub fn keys(&self) -> ArrayView2<'_, T> {
        self.keys.slice(s![..self.length, ..])
    }

    /// Of all tokens held.
    pub fn values(&self) -> ArrayView2<'_, T> {
        self.values.slice(s![..self.length, ..])
    }
}

#[cfg(test)]
mod tests {
    use approx::abs_diff_eq;
    use std::path::Path;

    use ndarray::Array1;

    use super::*;
    use crate::model::Checkpoint;
    use crate::model::forward::{Forward, Group, Layer, Layout, State, apply};

    #[test]
    fn a_sequence_in_chunks_gives_what_it_gives_as_a_whole() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/nano-llama");
        let checkpoint = Checkpoint::open(&model).unwrap();
        let embedding = checkpoint.embedding::<f64>().unwrap();
        let layers: Vec<Layer<f64>> =
            (0..checkpoint.config.num_hidden_layers).map(|i| checkpoint.layer(i).unwrap()).collect();
        let tokens = Array1::from_iter((0..300).map(|i| i * 7 % 320)); // longer than a strip of the attention
        let forward = Forward::new(&checkpoint.config, tokens.len());
        let through = |layer: &Layer<f64>, state: &mut State<f64>| {
            forward.enter(layer, state);
            for group in Group::ALL {
                let outputs = apply(layer.group(group), state.input.view());
                forward.advance(layer, group, outputs, state);
            }
        };

        let mut whole = State::embed(&embedding, tokens.view());
        layers.iter().for_each(|layer| through(layer, &mut whole));

        let mut kept: Vec<_> =
            layers.iter().map(|_| Some(KeyValues::new(&checkpoint.config, tokens.len()))).collect();
        let mut before = 0;
        for chunk in [1, 1, 130, 5, 129, 33, 1] {
            let places = before..before + chunk;
            let layout = Layout::after(before, chunk);
            let mut state = State::embed_branches(&embedding, tokens.slice(s![places.clone()]), layout);
            for (layer, kept) in layers.iter().zip(&mut kept) {
                state.kept = kept.take();
                through(layer, &mut state);
                *kept = state.kept.take();
            }
            before += chunk;
            assert!(kept.iter().flatten().all(|kept| kept.len() == before));
            let expected = whole.hidden.slice(s![places, ..]);
            let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            // The same sums in another order: the class of the f64 model tests.
            assert!(
                abs_diff_eq!(state.hidden, expected, epsilon = 1e-11 * largest),
                "after {before}: {:e}",
                (&state.hidden - &expected).iter().fold(0.0, |m: f64, e| m.max(e.abs()))
            );
        }
        assert_eq!(before, tokens.len());
    }
}
