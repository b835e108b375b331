//! Zero-shot accuracy on multiple-choice tasks, equal to lm-evaluation-harness 0.4.8: every choice is scored by its
//! log-likelihood after the document's context.
//!
//! [`tasks`] turns lines of a file into strings, [`requests`] strings into tokens, [`likelihood`] tokens into numbers,
//! [`metrics`] numbers into accuracies, and [`harness`] writes them as the harness does. Examples before the question
//! would be more text in a document's contexts; nothing after [`tasks`] would change.

pub mod error;
pub mod harness;
pub mod likelihood;
pub mod metrics;
pub mod requests;
pub mod tasks;
pub mod text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::calibrate::streams::Activations;
use crate::linalg::Scalar;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Checkpoint, ModelConfig};
use crate::progress::Observer;
pub use error::ZeroShotError;
use likelihood::log_likelihoods;
use metrics::{Metric, Scored};
use requests::Request;
use tasks::{Task, TaskData};

/// A task after evaluation.
#[derive(Clone, Debug)]
pub struct TaskOutcome {
    /// The task.
    pub task: Task,
    /// Its file.
    pub path: PathBuf,
    /// Documents in the file.
    pub original: usize,
    /// The documents that were evaluated, in the order of the file.
    pub documents: Vec<Scored>,
    /// Their accuracies.
    pub accuracy: Accuracy,
}

/// Accuracies of a task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Accuracy of the most likely choice.
    pub acc: Metric,
    /// Accuracy of the choice that is most likely per character.
    pub acc_norm: Option<Metric>,
}

impl Accuracy {
    /// The accuracy that the paper's averages use: per character where the task has that.
    pub fn headline(&self) -> Metric {
        self.acc_norm.unwrap_or(self.acc)
    }
}

impl TaskOutcome {
    fn new(data: &TaskData, documents: Vec<Scored>) -> Self {
        let acc = Metric::accuracy(documents.iter().map(|d| d.prediction == d.gold));
        let acc_norm = data
            .task
            .has_acc_norm()
            .then(|| Metric::accuracy(documents.iter().map(|d| d.prediction_norm == Some(d.gold))));
        TaskOutcome {
            task: data.task,
            path: data.path.clone(),
            original: data.original,
            documents,
            accuracy: Accuracy { acc, acc_norm },
        }
    }
}

/// The mean of the tasks' headline accuracies; `None` if one of the tasks has none in `of`.
pub fn average(of: impl Fn(Task) -> Option<Accuracy>, tasks: &[Task]) -> Option<Metric> {
    let each: Vec<Metric> =
        tasks.iter().map(|&task| of(task).map(|accuracy| accuracy.headline())).collect::<Option<_>>()?;
    let n = each.len() as f64;
    // The tasks' documents have nothing to do with each other: their variances add.
    let variance = each.iter().map(|metric| metric.standard_error.map(|e| e * e)).sum::<Option<f64>>();
    Some(Metric {
        mean: each.iter().map(|metric| metric.mean).sum::<f64>() / n,
        standard_error: variance.map(|variance| variance.sqrt() / n),
    })
}

/// Every document's choices in tokens, in the order of tasks and documents.
///
/// # Errors
/// [`ZeroShotError::Document`] for the first that cannot be scored.
pub fn encode(
    tasks: &[TaskData],
    tokenizer: &Tokenizer,
    config: &ModelConfig,
) -> Result<Vec<Vec<Request>>, ZeroShotError> {
    let documents = tasks.iter().flat_map(|data| data.documents.iter().map(move |document| (data, document)));
    let each = documents.map(|(data, document)| {
        let requests = document.choices.iter().map(|choice| Request::encode(choice, tokenizer, config));
        requests.collect::<Result<_, _>>().map_err(|detail| refuse(data, document.line, detail))
    });
    each.collect()
}

/// Evaluates tasks, all their documents in common batches, with `activations` at the input of every linear of a
/// decoder layer (not of lm_head).
///
/// # Errors
/// [`ZeroShotError`]: a document that cannot be scored, or a tensor that cannot be read.
pub fn evaluate<T: Scalar, B: Backend<T>>(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    tasks: &[TaskData],
    activations: Activations,
    backend: &B,
    observer: &dyn Observer,
) -> Result<Vec<TaskOutcome>, ZeroShotError> {
    let requests = encode(tasks, tokenizer, &checkpoint.config)?;
    let longest = checkpoint.config.max_position_embeddings;
    let mut of_tasks = requests.iter();
    for data in tasks {
        let documents = of_tasks.by_ref().take(data.documents.len());
        let cut = documents.filter(|choices| choices.iter().any(|choice| choice.is_cut(longest))).count();
        if cut > 0 {
            observer.warning(&format!(
                "{}: {cut} of {} documents are longer than the model's context of {longest} tokens; the beginning of each is \
                 cut off, as lm-evaluation-harness does",
                data.path.display(),
                data.documents.len()
            ));
        }
    }
    let mut likelihoods =
        log_likelihoods::<T, B>(checkpoint, &requests, activations, backend, observer)?.into_iter();
    let mut outcomes = Vec::new();
    for data in tasks {
        let mut scored = Vec::with_capacity(data.documents.len());
        for (document, likelihoods) in data.documents.iter().zip(&mut likelihoods) {
            if likelihoods.iter().any(|likelihood| !likelihood.log_likelihood.is_finite()) {
                let detail = "a log-likelihood is not finite; try --precision f64, or check the checkpoint";
                return Err(refuse(data, document.line, detail.into()));
            }
            scored.push(Scored::new(data.task, document, likelihoods));
        }
        outcomes.push(TaskOutcome::new(data, scored));
    }
    Ok(outcomes)
}

fn refuse(data: &TaskData, line: usize, detail: String) -> ZeroShotError {
    ZeroShotError::Document { path: data.path.clone(), line, detail }
}
