//! Predictions, accuracies and their standard errors.

use serde::{Deserialize, Serialize};

use super::likelihood::Likelihood;
use super::tasks::{Document, Task};

/// A document after evaluation.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Index of the right choice.
    pub gold: usize,
    /// Index of the most likely choice.
    pub prediction: usize,
    /// Index of the choice that is most likely per character, for tasks that report it.
    pub prediction_norm: Option<usize>,
    /// One score per choice.
    pub likelihoods: Vec<Likelihood>,
}

impl Scored {
    /// Of equal scores the first wins.
    pub fn new(task: Task, document: &Document, likelihoods: Vec<Likelihood>) -> Self {
        let scores = likelihoods.iter().map(|likelihood| likelihood.log_likelihood);
        // A choice without characters divides by zero: minus infinity.
        let per_character =
            scores.clone().zip(&document.choices).map(|(score, choice)| score / choice.characters as f64);
        Scored {
            gold: document.gold,
            prediction: first_largest(scores),
            prediction_norm: task.has_acc_norm().then(|| first_largest(per_character)),
            likelihoods,
        }
    }
}

fn first_largest(scores: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, score) in scores.enumerate() {
        if score > best.1 {
            best = (i, score);
        }
    }
    best.0
}

/// A mean over documents.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// The mean.
    pub mean: f64,
    /// sqrt(sum (x - mean)^2 / (n - 1)) / sqrt(n); none for one document.
    pub standard_error: Option<f64>,
}

impl Metric {
    /// The fraction of right answers.
    pub fn accuracy(right: impl Iterator<Item = bool>) -> Self {
        let values: Vec<f64> = right.map(|right| if right { 1.0 } else { 0.0 }).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        let standard_error = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
        Metric { mean, standard_error }
    }
}
