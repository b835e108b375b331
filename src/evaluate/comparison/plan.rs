//! The models to measure, each once, and the measurements of each.

use serde_json::Value;

use super::cache::digest;
use super::job::{MethodComparison, Point, Repeats};
use super::keys::Keys;
use super::report::{MethodRun, Pruning};
use crate::evaluate::perplexity::Perplexity;
use crate::evaluate::zero_shot::Accuracy;
use crate::model::Jitter;
use crate::reference::Method;

/// One model to measure, with its known results; a result that is `None` has still to be computed.
pub(super) struct PlannedModel {
    pub method: Option<Method>,
    /// p_x during calibration.
    pub activation_sparsity: f64,
    pub jitter: Option<Jitter>,
    /// Everything that the model depends on.
    pub key: Value,
    /// Method, sparsities and repeat, to show.
    pub label: String,
    pub pruning: Option<Pruning>,
    /// By activation sparsity.
    pub perplexity: Vec<(f64, Option<Perplexity>)>,
    /// By activation sparsity, in the order of the tasks.
    pub accuracy: Vec<(f64, Vec<Option<Accuracy>>)>,
}

impl PlannedModel {
    fn new(
        job: &MethodComparison,
        keys: &Keys,
        method: Option<Method>,
        p: f64,
        jitter: Option<Jitter>,
    ) -> Self {
        let sees = method.is_some_and(|method| method.sees_sparse_activations());
        let activation_sparsity = if sees { p } else { 0.0 };
        let label = match method {
            None => "dense".into(),
            Some(method) => format!(
                "{}-{}-{activation_sparsity}-{}",
                method.name(),
                method.weight_sparsity().to_string().replace(':', "of"),
                jitter.map_or(0, |jitter| jitter.repeat)
            ),
        };
        PlannedModel {
            method,
            activation_sparsity,
            jitter,
            key: keys.model(job, method, activation_sparsity, jitter),
            label,
            pruning: None,
            perplexity: Vec::new(),
            accuracy: Vec::new(),
        }
    }

    /// The name of its directory: no other model has it.
    pub fn name(&self) -> String {
        match self.method {
            None => self.label.clone(),
            Some(_) => format!("{}-{}", self.label, &digest(&self.key)[..12]),
        }
    }

    /// Adds the measurements that a point with this activation sparsity needs, unless another point has added them.
    fn measure_at(&mut self, job: &MethodComparison, p: f64) {
        for p in [0.0, p] {
            if job.evaluation.is_some() && self.perplexity.iter().all(|(other, _)| *other != p) {
                self.perplexity.push((p, None));
            }
        }
        if self.accuracy.iter().all(|(other, _)| *other != p) {
            self.accuracy.push((p, vec![None; job.tasks.len()]));
        }
    }

    pub fn lacks_pruning(&self) -> bool {
        self.method.is_some() && self.pruning.is_none()
    }

    pub fn lacks_measurement(&self) -> bool {
        self.perplexity.iter().any(|(_, found)| found.is_none())
            || self.accuracy.iter().any(|(_, found)| found.iter().any(Option::is_none))
    }

    /// Its results at one activation sparsity.
    fn run_at(&self, job: &MethodComparison, p: f64) -> MethodRun {
        let perplexity_at = |p: f64| self.perplexity.iter().find(|(at, _)| *at == p)?.1.clone();
        let accuracies = self.accuracy.iter().filter(|(at, _)| *at == p).flat_map(|(_, found)| found);
        let tasks = job.tasks.iter().map(|data| data.task).zip(accuracies);
        MethodRun {
            name: self.name(),
            jitter: self.jitter,
            pruning: self.pruning.clone(),
            perplexity_dense_activations: perplexity_at(0.0),
            perplexity: perplexity_at(p),
            tasks: tasks.filter_map(|(task, found)| Some((task, (*found)?))).collect(),
        }
    }
}

/// All models of a comparison, each once: a method that does not see the activation sparsity has one model for all of them.
pub(super) struct Plan {
    pub models: Vec<PlannedModel>,
    /// The number of the model, by point, method and repeat.
    pub numbers: Vec<Vec<Vec<usize>>>,
}

impl Plan {
    pub fn new(job: &MethodComparison, keys: &Keys) -> Self {
        let mut models: Vec<PlannedModel> = Vec::new();
        let mut number = |point: &Point, method: Option<Method>, jitter: Option<Jitter>| -> usize {
            let p = point.activation_sparsity;
            let model = PlannedModel::new(job, keys, method, p, jitter);
            let number = models.iter().position(|other| other.key == model.key).unwrap_or(models.len());
            if number == models.len() {
                models.push(model);
            }
            models[number].measure_at(job, p);
            number
        };
        let mut numbers = Vec::new();
        for point in &job.points {
            let of_point = point.methods.iter().map(|&method| {
                let each = jitters(&job.repeats, method).into_iter();
                each.map(|jitter| number(point, method, jitter)).collect()
            });
            numbers.push(of_point.collect());
        }
        Plan { models, numbers }
    }

    /// The results of every method and repeat of the point with this number.
    pub fn runs(&self, job: &MethodComparison, point: usize) -> Vec<Vec<MethodRun>> {
        let p = job.points[point].activation_sparsity;
        let run = |&number: &usize| self.models[number].run_at(job, p);
        self.numbers[point].iter().map(|repeats| repeats.iter().map(run).collect()).collect()
    }
}

/// The jitter of every repeat. A single run has none, nor have dense weights.
fn jitters(repeats: &Repeats, method: Option<Method>) -> Vec<Option<Jitter>> {
    let &Repeats { count, jitter: relative, seed } = repeats;
    match method {
        Some(_) if count > 1 => (0..count).map(|repeat| Some(Jitter { relative, seed, repeat })).collect(),
        _ => vec![None],
    }
}
