//! Prunes and measures what the cache does not hold.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cache::{Cache, Lookup};
use super::cost::{self, Costs};
use super::error::ComparisonError;
use super::job::MethodComparison;
use super::keys::Keys;
use super::models::{self, ModelDirectory};
use super::plan::{Plan, PlannedModel};
use super::report::{ComparisonReport, PointResult, Steps, WindowsSummary};
use super::summary::summarise;
use crate::backend::Backend;
use crate::calibrate::report::Environment;
use crate::calibrate::streams::Activations;
use crate::evaluate::perplexity::perplexity;
use crate::evaluate::zero_shot;
use crate::evaluate::zero_shot::tasks::TaskData;
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::tokenizer::Tokenizer;
use crate::progress::{Observer, Portion};

impl MethodComparison<'_> {
    /// Computes, in the arithmetic `T`, what the cache does not hold. `finished` is called with every point as soon as
    /// all of its methods are measured.
    ///
    /// # Errors
    /// [`ComparisonError`]. What was finished before stays in the cache.
    pub fn run<T: Scalar, B: Backend<T>>(
        &self,
        backend: &B,
        observer: &dyn Observer,
        mut finished: impl FnMut(&PointResult),
    ) -> Result<ComparisonReport, ComparisonError> {
        self.check::<T>()?;
        let mut runner = Runner::<T, B>::new(self, backend, observer)?;
        let mut plan = Plan::new(self, &runner.keys);
        plan.models.iter_mut().for_each(|model| runner.look_up(model));
        observer.begin(plan.models.iter().map(|model| runner.cost(model)).sum());
        let mut points = Vec::new();
        for (number, point) in self.points.iter().enumerate() {
            for &model in plan.numbers[number].iter().flatten() {
                runner.carry_out(&mut plan.models[model])?;
            }
            points.push(summarise(point, plan.runs(self, number)));
            finished(&points[number]);
        }
        models::remove_empty(self);
        Ok(ComparisonReport {
            model: self.checkpoint.directory.clone(),
            model_sha256: runner.keys.dense_model,
            calibration: self.calibration.map(WindowsSummary::of),
            evaluation: self.evaluation.map(WindowsSummary::of),
            documents: self.tasks.iter().map(|data| (data.task, data.documents.len())).collect(),
            precision: T::NAME,
            repeats: self.repeats,
            steps: runner.steps,
            points,
            environment: runner.keys.environment,
        })
    }
}

/// The state that all steps of a comparison share.
struct Runner<'a, T, B> {
    job: &'a MethodComparison<'a>,
    backend: &'a B,
    observer: &'a dyn Observer,
    cache: Cache,
    keys: Keys,
    tokenizer: Option<Tokenizer>,
    costs: Costs,
    steps: Steps,
    arithmetic: PhantomData<T>,
}

impl<'a, T: Scalar, B: Backend<T>> Runner<'a, T, B> {
    fn new(
        job: &'a MethodComparison<'a>,
        backend: &'a B,
        observer: &'a dyn Observer,
    ) -> Result<Self, ComparisonError> {
        let tokenizer = match job.tasks {
            [] => None,
            _ => Some(Tokenizer::of(job.checkpoint)?),
        };
        let costs = Costs::of(job, tokenizer.as_ref())?;
        let cache = Cache::open(&job.cache)?;
        observer.stage("reading the model");
        let keys = Keys::read::<T>(job, Environment::here(backend.describe()), observer)?;
        let (steps, arithmetic) = (Steps::default(), PhantomData);
        Ok(Runner { job, backend, observer, cache, keys, tokenizer, costs, steps, arithmetic })
    }

    /// Fills in what the cache holds of a model.
    fn look_up(&mut self, model: &mut PlannedModel) {
        if model.method.is_some() {
            model.pruning = self.get(&self.keys.pruning(&model.key));
        }
        for (sparsity, found) in &mut model.perplexity {
            *found = self.get(&self.keys.perplexity(&model.key, *sparsity));
        }
        for (sparsity, found) in &mut model.accuracy {
            for (task, found) in found.iter_mut().enumerate() {
                *found = self.get(&self.keys.accuracy(&model.key, *sparsity, task));
            }
        }
    }

    fn get<R: DeserializeOwned>(&mut self, key: &Value) -> Option<R> {
        match self.cache.get(key) {
            Lookup::Found(result) => {
                self.steps.from_cache += 1;
                Some(result)
            }
            Lookup::Absent => None,
            Lookup::Damaged { path, detail } => {
                self.observer.warning(&format!("{}: {detail}; it is computed again", path.display()));
                None
            }
        }
    }

    /// The cost of a model's missing results.
    fn cost(&self, model: &PlannedModel) -> u64 {
        let prunes = ModelDirectory::of(self.job, model).must_prune(self.job, model);
        self.costs.missing(self.job, model, prunes)
    }

    /// Prunes the model and measures it, where results are missing.
    fn carry_out(&mut self, model: &mut PlannedModel) -> Result<(), ComparisonError> {
        let Some(method) = model.method else {
            return self.measure(model, self.job.checkpoint);
        };
        let directory = ModelDirectory::of(self.job, model);
        if directory.must_prune(self.job, model) {
            directory.create_parent()?;
            let mut dense = Checkpoint::open(&self.job.checkpoint.directory)?;
            dense.jitter = model.jitter;
            let units = cost::pruning(self.job, model);
            let portion = Portion::new(self.observer, units, format!("pruning {}", model.label));
            let job = self.job.prune_job(&dense, method, model.activation_sparsity, &directory.path);
            job.run::<T, B>(self.backend, &portion)?;
            self.steps.pruned += 1;
            portion.finish();
        }
        if !model.lacks_pruning() && !model.lacks_measurement() {
            return Ok(());
        }
        let _removed = directory.remove_when_measured();
        if model.lacks_pruning() {
            let pruning = directory.read_report()?;
            self.cache.put(&self.keys.pruning(&model.key), &pruning)?;
            model.pruning = Some(pruning);
        }
        self.measure(model, &Checkpoint::open(&directory.path)?)
    }

    /// Measures what is missing, on the model's checkpoint.
    fn measure(&mut self, model: &mut PlannedModel, checkpoint: &Checkpoint) -> Result<(), ComparisonError> {
        for number in 0..model.perplexity.len() {
            self.measure_perplexity(model, number, checkpoint)?;
        }
        for number in 0..model.accuracy.len() {
            self.measure_tasks(model, number, checkpoint)?;
        }
        Ok(())
    }

    /// The perplexity at the activation sparsity with this number, where it is missing.
    fn measure_perplexity(
        &mut self,
        model: &mut PlannedModel,
        number: usize,
        checkpoint: &Checkpoint,
    ) -> Result<(), ComparisonError> {
        let ((sparsity, None), Some(windows)) = (&model.perplexity[number], self.job.evaluation) else {
            return Ok(());
        };
        let activations = Activations { sparsity: *sparsity, ..Activations::default() };
        let name = format!("perplexity of {} at activation sparsity {sparsity}", model.label);
        let portion = Portion::new(self.observer, self.costs.perplexity, name);
        let found = perplexity::<T, B>(checkpoint, windows, activations, self.backend, &portion)?;
        if !found.perplexity.is_finite() {
            return Err(ComparisonError::NotFinite { model: model.name() });
        }
        self.cache.put(&self.keys.perplexity(&model.key, *sparsity), &found)?;
        self.steps.measured += 1;
        model.perplexity[number].1 = Some(found);
        portion.finish();
        Ok(())
    }

    /// The accuracies at the activation sparsity with this number that are missing, all in common batches.
    fn measure_tasks(
        &mut self,
        model: &mut PlannedModel,
        number: usize,
        checkpoint: &Checkpoint,
    ) -> Result<(), ComparisonError> {
        let (sparsity, found) = &mut model.accuracy[number];
        let missing: Vec<usize> = (0..found.len()).filter(|&task| found[task].is_none()).collect();
        let Some(tokenizer) = self.tokenizer.as_ref().filter(|_| !missing.is_empty()) else {
            return Ok(());
        };
        let activations = Activations { sparsity: *sparsity, ..Activations::default() };
        let units = missing.iter().map(|&task| self.costs.tasks[task]).sum();
        let name = format!("tasks of {} at activation sparsity {sparsity}", model.label);
        let portion = Portion::new(self.observer, units, name);
        let tasks: Vec<TaskData> = missing.iter().map(|&task| self.job.tasks[task].clone()).collect();
        let outcomes =
            zero_shot::evaluate::<T, B>(checkpoint, tokenizer, &tasks, activations, self.backend, &portion)?;
        for (task, outcome) in missing.into_iter().zip(outcomes) {
            self.cache.put(&self.keys.accuracy(&model.key, *sparsity, task), &outcome.accuracy)?;
            self.steps.measured += 1;
            found[task] = Some(outcome.accuracy);
        }
        portion.finish();
        Ok(())
    }
}
