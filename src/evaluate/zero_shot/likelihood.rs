//! Log-likelihoods of requests.

use std::ops::Range;

use ndarray::{Array2, ArrayView1, Axis};

use super::requests::Request;
use crate::backend::Backend;
use crate::calibrate::streams::{Activations, Stream};
use crate::evaluate::{log_sum_exp, through_the_model};
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::forward::{Forward, Layout, State};
use crate::progress::{Observer, Portion};
use crate::tensors::TensorError;

/// The score of one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// ln p(continuation | context), in nats.
    pub log_likelihood: f64,
    /// Whether every token of the continuation is the model's first choice.
    pub is_greedy: bool,
}

/// Upper limit of the rows of hidden state in memory at a time.
const ROWS_PER_BATCH: usize = 1 << 15;

/// Scores the requests of every document, with `activations` at the input of every linear of a decoder layer (not of
/// lm_head). The common beginning of a document's requests is computed once.
///
/// # Errors
/// [`TensorError`] when a tensor cannot be read.
pub fn log_likelihoods<T: Scalar, B: Backend<T>>(
    checkpoint: &Checkpoint,
    documents: &[Vec<Request>],
    activations: Activations,
    backend: &B,
    observer: &dyn Observer,
) -> Result<Vec<Vec<Likelihood>>, TensorError> {
    let config = &checkpoint.config;
    let units = |documents: usize| (documents * (config.num_hidden_layers + 1)) as u64;
    observer.begin(units(documents.len()));
    let shared: Vec<Shared> =
        documents.iter().map(|requests| Shared::new(requests, config.max_position_embeddings)).collect();
    let longest = shared.iter().flat_map(|shared| &shared.requests).map(|request| request.length).max();
    let forward = Forward::<T>::new(config, longest.unwrap_or(0));
    let mut likelihoods = Vec::with_capacity(documents.len());
    let batches = batches(&shared);
    for (number, batch) in batches.iter().enumerate() {
        let name = format!("batch {} of {}", number + 1, batches.len());
        let portion = Portion::new(observer, units(batch.len()), name);
        portion.begin(units(batch.len()));
        let (shared, documents) = (&shared[batch.clone()], &documents[batch.clone()]);
        let embedding = checkpoint.embedding::<T>()?;
        let states = shared.iter().map(|shared| {
            let tokens = ArrayView1::from(&shared.tokens);
            State::embed_branches(&embedding, tokens, shared.layout.clone())
        });
        let stream = Stream::of(&forward, backend, states.collect(), activations);
        drop(embedding);
        likelihoods.extend(through_the_model(checkpoint, stream, &portion, |i, state, head| {
            let each = shared[i].requests.iter().zip(&documents[i]);
            each.map(|(placed, request)| {
                placed.score(&request.continuation, state, |hidden| forward.logits(head, hidden))
            })
            .collect()
        })?);
        portion.finish();
    }
    Ok(likelihoods)
}

/// Runs of documents that fit in memory together; at least one document each.
fn batches(shared: &[Shared]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut rows = 0;
    for (i, shared) in shared.iter().enumerate() {
        rows += shared.tokens.len();
        match batches.last_mut() {
            Some(batch) if rows <= ROWS_PER_BATCH => batch.end = i + 1,
            _ => {
                rows = shared.tokens.len();
                batches.push(i..i + 1);
            }
        }
    }
    batches
}

/// A document's requests with their common beginning.
struct Shared {
    /// Trunk and branches.
    tokens: Vec<u32>,
    layout: Layout,
    requests: Vec<Placed>,
}

/// One request in them.
struct Placed {
    branch: usize,
    /// Tokens of the model's input.
    length: usize,
}

impl Shared {
    /// The trunk is what the inputs themselves have in common, position by position. So it is also right if
    /// they were cut on the left at different places: it is then short or empty.
    fn new(requests: &[Request], longest: usize) -> Self {
        let inputs: Vec<Vec<u32>> = requests.iter().map(|request| request.input(longest)).collect();
        let first = inputs.first().map_or(&[][..], |input| input);
        let trunk = inputs.iter().fold(first.len(), |trunk, input| {
            first.iter().zip(input).take(trunk).take_while(|(a, b)| a == b).count()
        });
        // Equal inputs share a branch, so equal requests tie exactly.
        let mut branches: Vec<&[u32]> = Vec::new();
        let mut placed = Vec::new();
        for input in &inputs {
            let own = &input[trunk..];
            let branch = branches.iter().position(|&branch| branch == own).unwrap_or_else(|| {
                branches.push(own);
                branches.len() - 1
            });
            placed.push(Placed { branch, length: input.len() });
        }
        Shared {
            tokens: [&first[..trunk]]
                .iter()
                .chain(&branches)
                .flat_map(|tokens| tokens.iter().copied())
                .collect(),
            layout: Layout::new(trunk, branches.iter().map(|branch| branch.len())),
            requests: placed,
        }
    }
}

impl Placed {
    fn score<T: Scalar>(
        &self,
        continuation: &[u32],
        state: &State<T>,
        logits: impl Fn(&Array2<T>) -> Array2<T>,
    ) -> Likelihood {
        let rows: Vec<usize> = (self.length - continuation.len()..self.length)
            .map(|position| state.layout.row(self.branch, position))
            .collect();
        let logits = logits(&state.hidden.select(Axis(0), &rows));
        let mut likelihood = Likelihood { log_likelihood: 0.0, is_greedy: true };
        for (logits, &token) in logits.axis_iter(Axis(0)).zip(continuation) {
            let token = token as usize;
            likelihood.log_likelihood += logits[token].widen() - log_sum_exp(logits);
            // Of equal logits the first is the model's choice.
            let (before, after) = logits.split_at(Axis(0), token);
            likelihood.is_greedy &=
                before.iter().all(|&x| x < logits[token]) && after.iter().all(|&x| x <= logits[token]);
        }
        likelihood
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(context: &[u32], continuation: &[u32]) -> Request {
        Request { context: context.into(), continuation: continuation.into() }
    }

    /// The tokens of a placed request, read back row by row.
    fn read_back(shared: &Shared, i: usize) -> Vec<u32> {
        let Placed { branch, length } = shared.requests[i];
        (0..length).map(|position| shared.tokens[shared.layout.row(branch, position)]).collect()
    }

    #[test]
    fn every_request_finds_its_tokens_and_common_ones_are_there_once() {
        for (requests, longest, rows) in [
            // The last token of a continuation is never seen.
            (vec![request(&[1, 2, 3], &[4]), request(&[1, 2, 3], &[5, 6])], 9, 4),
            (
                vec![
                    request(&[1, 2], &[3, 4, 5]),
                    request(&[1, 2], &[3, 9, 5]),
                    request(&[1, 2], &[3, 4, 5]),
                ],
                9,
                5,
            ),
            (vec![request(&[1, 2], &[3]), request(&[4], &[5, 6])], 9, 4),
            (vec![request(&[7; 5], &[8, 9])], 3, 3),
            // Cut at different places: nothing is shared although the contexts are equal.
            (vec![request(&[1, 2, 3, 4], &[5]), request(&[1, 2, 3, 4], &[5, 6])], 3, 6),
        ] {
            let shared = Shared::new(&requests, longest);
            assert_eq!((shared.tokens.len(), shared.layout.rows()), (rows, rows), "{requests:?}");
            for (i, request) in requests.iter().enumerate() {
                assert_eq!(read_back(&shared, i), request.input(longest), "{requests:?}");
            }
        }
    }
}
