//! Methods compared on one model: each prunes it, perplexity and zero-shot accuracy are measured, and the differences
//! are held against the noise.
//!
//! Pruning is chaotic: one weight that falls on the other side of a threshold changes all that comes behind it, and
//! the result is another, equally good model. So each method can prune several times, every time after another small
//! [`Jitter`] of the dense weights; [`standings`] says which differences of the means are larger than that.
//!
//! Every result is kept in a [`Cache`] under the SHA-256 of what it depends on: this program (its own bytes), the
//! machine's BLAS, the content of the model's files, the method's settings, the calibration tokens, the jitter, the
//! activation sparsity, and the tokens or documents measured on. Paths and times are not part of it. A comparison that
//! was interrupted continues: finished results are read, and a half-pruned model is taken up at its first unfinished
//! layer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::cache::{Cache, CacheError, Lookup, digest};
use super::noise::{Estimate, Standing, standings};
use super::perplexity::{Perplexity, perplexity};
use super::zero_shot::tasks::{Task, TaskData};
use super::zero_shot::{self, Accuracy, ZeroShotError, average};
use crate::backend::Backend;
use crate::calibrate::report::{self, Environment, LinearReport};
use crate::calibrate::streams::Activations;
use crate::calibrate::windows::Windows;
use crate::calibrate::{CalibrateError, PruneJob};
use crate::linalg::Scalar;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Checkpoint, CheckpointError, Jitter};
use crate::progress::{Observer, Portion};
use crate::reference::{Method, Sparsity};
use crate::tensors::TensorError;

/// Why methods could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Model or output directory.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file.
    #[error(transparent)]
    File(#[from] TensorError),
    /// A method that cannot prune the model.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// A document that cannot be scored.
    #[error(transparent)]
    ZeroShot(#[from] ZeroShotError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Neither windows nor tasks.
    #[error("nothing to measure: give a text, token windows or tasks")]
    NothingToMeasure,
    /// A disturbance that rounding swallows, or that is none.
    #[error(
        "a jitter of {relative:e} is outside [{smallest:.1e}, 0.1]: smaller ones are lost in {precision} rounding"
    )]
    Jitter {
        /// What was given.
        relative: f64,
        /// Distance of two numbers of the run's arithmetic, relative.
        smallest: f64,
        /// That arithmetic.
        precision: &'static str,
    },
    /// The report of an earlier run.
    #[error("{}: not the report of a finished run ({detail}); remove its directory", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The pruned model overflows.
    #[error("{model}: its perplexity is not finite; try --precision f64, or leave this setting out")]
    NotFinite {
        /// The name of the model.
        model: String,
    },
}

/// How often each method prunes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Repeats {
    /// R, at least 1. A single run is not disturbed.
    pub count: u32,
    /// Relative disturbance of the weights, other in every repeat.
    pub jitter: f64,
    /// Seed of the disturbances.
    pub seed: u64,
}

/// Methods that are compared with each other: those of one weight and one activation sparsity.
#[derive(Clone, Debug)]
pub struct Point {
    /// Of the methods.
    pub weight_sparsity: Sparsity,
    /// p_x: during calibration, where the method sees it, and when measured.
    pub activation_sparsity: f64,
    /// Methods with this weight sparsity; `None` leaves the weights as they are.
    pub methods: Vec<Option<Method>>,
}

/// What to compare, and on what.
pub struct Comparison<'a> {
    /// The dense model.
    pub checkpoint: &'a Checkpoint,
    /// Calibration data; dense and magnitude do without.
    pub calibration: Option<&'a Windows>,
    /// What perplexity is measured on.
    pub evaluation: Option<&'a Windows>,
    /// What accuracy is measured on.
    pub tasks: &'a [TaskData],
    /// Methods and sparsities.
    pub points: Vec<Point>,
    /// How often.
    pub repeats: Repeats,
    /// Measures each pruned linear against the best weights for its mask, on so many of its rows.
    pub report_gap: Option<usize>,
    /// Directory of the results.
    pub cache: PathBuf,
    /// Directory of the pruned models that are kept, and of a directory `temporary` of the others.
    pub models: PathBuf,
    /// Keeps the pruned models; otherwise each is removed when it is measured.
    pub keep: bool,
}

/// What a method is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// Perplexity without activation pruning.
    PerplexityDenseActivations,
    /// Perplexity with the point's activation sparsity, like everything below.
    Perplexity,
    /// The mean accuracy of the paper's main tables.
    FiveTasks,
    /// The mean accuracy of all seven tasks.
    SevenTasks,
    /// The accuracy of one task: per character where it has that.
    Task(Task),
}

impl Quantity {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::PerplexityDenseActivations => "perplexity_dense_activations",
            Quantity::Perplexity => "perplexity",
            Quantity::FiveTasks => "five_tasks",
            Quantity::SevenTasks => "seven_tasks",
            Quantity::Task(task) => task.name(),
        }
    }

    /// Whether more is better.
    pub fn is_accuracy(self) -> bool {
        !matches!(self, Quantity::PerplexityDenseActivations | Quantity::Perplexity)
    }
}

impl Serialize for Quantity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A quantity of one method, held against the others.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Over the repeats.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Difference to the dense weights with the same activation sparsity; null where those are not compared.
    pub gap_to_dense: Option<f64>,
    /// Among the methods that prune; null where there is only one, and of the dense weights.
    pub standing: Option<Standing>,
}

/// What pruning reported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pruning {
    /// Wall-clock time.
    pub seconds: f64,
    /// Fraction of zeros.
    pub sparsity: f64,
    /// One by one.
    pub linears: Vec<LinearReport>,
}

/// One repeat of a method.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its name; a kept model's directory has it.
    pub name: String,
    /// The disturbance of the dense weights, where there was one.
    pub jitter: Option<Jitter>,
    /// None of the dense model.
    pub pruning: Option<Pruning>,
    /// Without activation pruning.
    pub perplexity_dense_activations: Option<Perplexity>,
    /// With the point's.
    pub perplexity: Option<Perplexity>,
    /// With the point's.
    pub tasks: BTreeMap<Task, Accuracy>,
}

impl Run {
    /// Every quantity with its value and its sampling error.
    fn quantities(&self) -> BTreeMap<Quantity, (f64, Option<f64>)> {
        let mut all = BTreeMap::new();
        let perplexities = [
            (Quantity::PerplexityDenseActivations, &self.perplexity_dense_activations),
            (Quantity::Perplexity, &self.perplexity),
        ];
        for (quantity, found) in perplexities {
            // The windows are what it is the perplexity of, not a sample.
            all.extend(found.as_ref().map(|found| (quantity, (found.perplexity, Some(0.0)))));
        }
        let of = |task| self.tasks.get(&task).copied();
        let averages = [(Quantity::FiveTasks, &Task::FIVE[..]), (Quantity::SevenTasks, &Task::ALL)];
        let averages = averages.map(|(quantity, tasks)| (quantity, average(of, tasks)));
        let tasks = self.tasks.iter().map(|(&task, found)| (Quantity::Task(task), Some(found.headline())));
        for (quantity, metric) in averages.into_iter().chain(tasks) {
            all.extend(metric.map(|metric| (quantity, (metric.mean, metric.standard_error))));
        }
        all
    }
}

/// One method at one point.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name; `"dense"` is none.
    pub method: &'static str,
    /// Its settings; null of the dense model.
    pub settings: Option<Method>,
    /// What it achieves.
    pub quantities: BTreeMap<Quantity, Measured>,
    /// By decoder layer: the mean over its linears of error / error of the best weights for the same mask. Empty where
    /// it was not asked for, and of the dense model.
    pub optimality_gap: Vec<Estimate>,
    /// Wall-clock time of pruning; null of the dense model.
    pub seconds_to_prune: Option<Estimate>,
    /// The repeats.
    pub runs: Vec<Run>,
}

/// All methods at one point.
#[derive(Clone, Debug, Serialize)]
pub struct PointResult {
    /// Of the methods that prune.
    pub weight_sparsity: Sparsity,
    /// Of all.
    pub activation_sparsity: f64,
    /// In the order in which the methods were given.
    pub rows: Vec<Row>,
}

/// Windows, in a report.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// Where they came from.
    pub source: String,
    /// How many.
    pub windows: usize,
    /// Tokens in each.
    pub sequence_length: usize,
    /// Of the tokens.
    pub sha256: String,
}

impl Data {
    fn of(windows: &Windows) -> Self {
        Data {
            source: windows.source.clone(),
            windows: windows.len(),
            sequence_length: windows.length(),
            sha256: windows.digest(),
        }
    }
}

/// How much was computed, and how much was there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Models pruned.
    pub pruned: usize,
    /// Perplexities and task accuracies measured.
    pub measured: usize,
    /// Results of either kind read from the cache.
    pub from_cache: usize,
}

/// The whole outcome.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Directory of the dense model.
    pub model: PathBuf,
    /// Of its files' content.
    pub model_sha256: String,
    /// Calibration data.
    pub calibration: Option<Data>,
    /// What perplexity was measured on.
    pub evaluation: Option<Data>,
    /// Documents per task.
    pub documents: BTreeMap<Task, usize>,
    /// Arithmetic of the runs.
    pub precision: &'static str,
    /// How often each method pruned.
    pub repeats: Repeats,
    /// What this comparison had to compute.
    pub steps: Steps,
    /// The outcome.
    pub points: Vec<PointResult>,
    /// Where it took place.
    pub environment: Environment,
}

/// One model that is to be measured, and what is known of it. Whatever is `None` has still to be computed.
struct Plan {
    method: Option<Method>,
    /// p_x during calibration.
    activation_sparsity: f64,
    jitter: Option<Jitter>,
    /// All that the model depends on.
    key: Value,
    name: String,
    pruning: Option<Pruning>,
    /// By activation sparsity.
    perplexity: Vec<(f64, Option<Perplexity>)>,
    /// By activation sparsity, in the order of the tasks.
    accuracy: Vec<(f64, Vec<Option<Accuracy>>)>,
}

impl Plan {
    fn pruning_key(&self) -> Value {
        json!({"result": "pruning", "model": self.key})
    }

    fn key_of(&self, result: &str, activation_sparsity: f64, data: &str) -> Value {
        json!({
            "result": result, "model": self.key, "activation_sparsity": activation_sparsity, "data": data
        })
    }

    fn lacks_pruning(&self) -> bool {
        self.method.is_some() && self.pruning.is_none()
    }

    fn lacks_measurement(&self) -> bool {
        self.perplexity.iter().any(|(_, found)| found.is_none())
            || self.accuracy.iter().any(|(_, found)| found.iter().any(Option::is_none))
    }
}

/// For every method of a point the places of its repeats among the plans.
type Repeated = Vec<Vec<usize>>;

/// What all steps of a comparison need.
struct Workplace<'a, B> {
    backend: &'a B,
    observer: &'a dyn Observer,
    cache: Cache,
    tokenizer: Option<Tokenizer>,
    evaluation_digest: String,
    /// One per task.
    task_digests: Vec<String>,
    /// Tokens per task.
    task_tokens: Vec<u64>,
    steps: Steps,
}

impl Comparison<'_> {
    /// Computes, in the arithmetic `T`, what the cache does not hold. `finished` hears of every point as soon as all of
    /// its methods are measured.
    ///
    /// # Errors
    /// [`CompareError`]. What was finished before stays in the cache.
    pub fn run<T: Scalar, B: Backend<T>>(
        &self,
        backend: &B,
        observer: &dyn Observer,
        mut finished: impl FnMut(&PointResult),
    ) -> Result<Report, CompareError> {
        self.check::<T>()?;
        let config = &self.checkpoint.config;
        let tokenizer = match self.tasks {
            [] => None,
            _ => Some(Tokenizer::of(self.checkpoint)?),
        };
        let mut task_tokens = Vec::new();
        for (data, tokenizer) in self.tasks.iter().zip(tokenizer.iter().cycle()) {
            let requests = zero_shot::encode(std::slice::from_ref(data), tokenizer, config)?;
            let longest = config.max_position_embeddings;
            task_tokens.push(requests.iter().flatten().map(|r| r.input(longest).len() as u64).sum());
        }
        let mut work = Workplace {
            backend,
            observer,
            cache: Cache::open(&self.cache)?,
            tokenizer,
            evaluation_digest: self.evaluation.map(Windows::digest).unwrap_or_default(),
            task_digests: self.tasks.iter().map(TaskData::digest).collect(),
            task_tokens,
            steps: Steps::default(),
        };

        observer.stage("reading the model");
        let model_sha256 = content_of_model(self.checkpoint, observer)?;
        let environment = Environment::here(backend.describe());
        let (mut plans, of_point) = self.plans::<T>(&model_sha256, &environment)?;
        plans.iter_mut().for_each(|plan| work.look_up(plan));
        observer.begin(plans.iter().map(|plan| self.cost(&work, plan)).sum());
        let mut points = Vec::new();
        for (point, of_methods) in self.points.iter().zip(&of_point) {
            for &plan in of_methods.iter().flatten() {
                self.carry_out::<T, B>(&mut work, &mut plans[plan])?;
            }
            points.push(self.result(point, of_methods, &plans));
            finished(&points[points.len() - 1]);
        }
        for empty in [self.models.join(TEMPORARY), self.models.clone()] {
            let _ = fs::remove_dir(empty); // refused where it is not
        }
        Ok(Report {
            model: self.checkpoint.directory.clone(),
            model_sha256,
            calibration: self.calibration.map(Data::of),
            evaluation: self.evaluation.map(Data::of),
            documents: self.tasks.iter().map(|data| (data.task, data.documents.len())).collect(),
            precision: T::NAME,
            repeats: self.repeats,
            steps: work.steps,
            points,
            environment,
        })
    }

    /// Everything that can be known to fail before hours of work.
    fn check<T: Scalar>(&self) -> Result<(), CompareError> {
        if self.evaluation.is_none() && self.tasks.is_empty() {
            return Err(CompareError::NothingToMeasure);
        }
        let (relative, smallest) = (self.repeats.jitter, 2.0 * T::UNIT_ROUNDOFF);
        if self.repeats.count > 1 && !(smallest..=0.1).contains(&relative) {
            return Err(CompareError::Jitter { relative, smallest, precision: T::NAME });
        }
        for point in &self.points {
            for &method in point.methods.iter().flatten() {
                self.job(self.checkpoint, method, point.activation_sparsity, &self.models).check()?;
            }
        }
        Ok(())
    }

    /// Without data magnitude takes no time; but its gap is measured on data.
    fn calibration_of(&self, method: Method) -> Option<&Windows> {
        self.calibration.filter(|_| !matches!(method, Method::Magnitude(_)) || self.report_gap.is_some())
    }

    fn job<'a>(
        &'a self,
        checkpoint: &'a Checkpoint,
        method: Method,
        activation_sparsity: f64,
        output: &'a Path,
    ) -> PruneJob<'a> {
        PruneJob {
            windows: self.calibration_of(method),
            activation_sparsity,
            report_gap: self.report_gap,
            resume: true,
            ..PruneJob::new(checkpoint, method, output)
        }
    }

    /// The models that are to be measured, each once, and per point and method the numbers of its repeats.
    fn plans<T: Scalar>(
        &self,
        model_sha256: &str,
        environment: &Environment,
    ) -> Result<(Vec<Plan>, Vec<Repeated>), CompareError> {
        let program = std::env::current_exe().map_err(TensorError::io(Path::new("the running program")))?;
        let program = content_of_files([program], |_| ())?;
        let digest_of_calibration = self.calibration.map(Windows::digest);
        let mut plans: Vec<Plan> = Vec::new();
        let mut plan = |point: &Point, method: Option<Method>, jitter: Option<Jitter>| {
            let sees = method.is_some_and(|method| method.sees_sparse_activations());
            let activation_sparsity = if sees { point.activation_sparsity } else { 0.0 };
            let key = json!({
                "program": program,
                "environment": environment,
                "precision": T::NAME,
                "dense": model_sha256,
                "pruned": method.map(|method| json!({
                    "method": method,
                    "activation_sparsity": activation_sparsity,
                    "calibration": self.calibration_of(method).and(digest_of_calibration.as_ref()),
                    "jitter": jitter,
                    "report_gap": self.report_gap,
                })),
            });
            let number = plans.iter().position(|plan| plan.key == key).unwrap_or_else(|| {
                let name = match method {
                    None => "dense".into(),
                    Some(method) => format!(
                        "{}-{}-{activation_sparsity}-{}-{}",
                        method.name(),
                        method.weight_sparsity().to_string().replace(':', "of"),
                        jitter.map_or(0, |jitter| jitter.repeat),
                        &digest(&key)[..12]
                    ),
                };
                plans.push(Plan {
                    method,
                    activation_sparsity,
                    jitter,
                    key,
                    name,
                    pruning: None,
                    perplexity: Vec::new(),
                    accuracy: Vec::new(),
                });
                plans.len() - 1
            });
            let plan = &mut plans[number];
            for p in [0.0, point.activation_sparsity] {
                if self.evaluation.is_some() && plan.perplexity.iter().all(|(other, _)| *other != p) {
                    plan.perplexity.push((p, None));
                }
            }
            let p = point.activation_sparsity;
            if plan.accuracy.iter().all(|(other, _)| *other != p) {
                plan.accuracy.push((p, vec![None; self.tasks.len()]));
            }
            number
        };
        let Repeats { count, jitter: relative, seed } = self.repeats;
        let repeat_of = |method: Option<Method>| match method {
            Some(_) if count > 1 => {
                (0..count).map(|repeat| Some(Jitter { relative, seed, repeat })).collect()
            }
            _ => vec![None],
        };
        let of_point = (self.points.iter())
            .map(|point| {
                let methods = point.methods.iter();
                let each = methods.map(|&method| {
                    repeat_of(method).into_iter().map(|jitter| plan(point, method, jitter)).collect()
                });
                each.collect()
            })
            .collect();
        Ok((plans, of_point))
    }

    /// Rough cost of what is still to be computed, in tokens through the model.
    fn costs<B>(&self, work: &Workplace<B>, plan: &Plan) -> (u64, u64, Vec<u64>) {
        let tokens = |windows: Option<&Windows>| windows.map_or(0, |windows| windows.tokens.len() as u64);
        // Two streams and the statistics.
        let pruning = 3 * tokens(plan.method.and_then(|method| self.calibration_of(method)));
        (
            pruning / UNIT + 1,
            tokens(self.evaluation) / UNIT + 1,
            work.task_tokens.iter().map(|t| t / UNIT + 1).collect(),
        )
    }

    fn cost<B>(&self, work: &Workplace<B>, plan: &Plan) -> u64 {
        let (pruning, perplexity, tasks) = self.costs(work, plan);
        let perplexities = plan.perplexity.iter().filter(|(_, found)| found.is_none()).count() as u64;
        let missing = plan.accuracy.iter().flat_map(|(_, found)| found.iter().zip(&tasks));
        let tasks: u64 = missing.filter(|(found, _)| found.is_none()).map(|(_, cost)| cost).sum();
        u64::from(self.must_prune(plan)) * pruning + perplexities * perplexity + tasks
    }

    /// Where the pruned model is, or will be.
    fn directory(&self, plan: &Plan) -> PathBuf {
        let kept = self.models.join(&plan.name);
        if self.keep || kept.is_dir() { kept } else { self.models.join(TEMPORARY).join(&plan.name) }
    }

    fn must_prune(&self, plan: &Plan) -> bool {
        plan.method.is_some()
            && !self.directory(plan).is_dir()
            && (self.keep || plan.lacks_pruning() || plan.lacks_measurement())
    }

    /// Prunes and measures, as far as that is still to be done.
    fn carry_out<T: Scalar, B: Backend<T>>(
        &self,
        work: &mut Workplace<B>,
        plan: &mut Plan,
    ) -> Result<(), CompareError> {
        let Some(method) = plan.method else {
            return self.measure::<T, B>(work, plan, self.checkpoint);
        };
        let directory = self.directory(plan);
        if self.must_prune(plan) {
            work.observer.stage(&format!("pruning {}", plan.name));
            let parent = directory.parent().expect("it was joined");
            fs::create_dir_all(parent).map_err(TensorError::io(parent))?;
            let mut dense = Checkpoint::open(&self.checkpoint.directory)?;
            dense.jitter = plan.jitter;
            let portion = Portion::new(work.observer, self.costs(work, plan).0);
            let job = self.job(&dense, method, plan.activation_sparsity, &directory);
            job.run::<T, B>(work.backend, &portion)?;
            work.steps.pruned += 1;
        }
        if !plan.lacks_pruning() && !plan.lacks_measurement() {
            return Ok(());
        }
        let _removed = directory.starts_with(self.models.join(TEMPORARY)).then(|| Temporary(&directory));
        if plan.lacks_pruning() {
            let pruning = read_report(&directory)?;
            work.cache.put(&plan.pruning_key(), &pruning)?;
            plan.pruning = Some(pruning);
        }
        self.measure::<T, B>(work, plan, &Checkpoint::open(&directory)?)
    }

    fn measure<T: Scalar, B: Backend<T>>(
        &self,
        work: &mut Workplace<B>,
        plan: &mut Plan,
        model: &Checkpoint,
    ) -> Result<(), CompareError> {
        let (_, perplexity_cost, task_costs) = self.costs(work, plan);
        let (observer, name) = (work.observer, plan.name.clone());
        for i in 0..plan.perplexity.len() {
            let (sparsity, None) = plan.perplexity[i] else { continue };
            let Some(windows) = self.evaluation else { continue };
            observer.stage(&format!("perplexity of {name}"));
            let activations = Activations { sparsity, ..Activations::default() };
            let portion = Portion::new(observer, perplexity_cost);
            let found = perplexity::<T, B>(model, windows, activations, work.backend, &portion)?;
            if !found.perplexity.is_finite() {
                return Err(CompareError::NotFinite { model: name });
            }
            work.cache.put(&plan.key_of("perplexity", sparsity, &work.evaluation_digest), &found)?;
            work.steps.measured += 1;
            plan.perplexity[i].1 = Some(found);
        }
        for i in 0..plan.accuracy.len() {
            let (sparsity, found) = &plan.accuracy[i];
            let missing: Vec<usize> = (0..found.len()).filter(|&task| found[task].is_none()).collect();
            let Some(tokenizer) = work.tokenizer.as_ref().filter(|_| !missing.is_empty()) else { continue };
            observer.stage(&format!("tasks of {name}"));
            let activations = Activations { sparsity: *sparsity, ..Activations::default() };
            let portion = Portion::new(observer, missing.iter().map(|&task| task_costs[task]).sum());
            let tasks: Vec<TaskData> = missing.iter().map(|&task| self.tasks[task].clone()).collect();
            let outcomes =
                zero_shot::evaluate::<T, B>(model, tokenizer, &tasks, activations, work.backend, &portion)?;
            for (task, outcome) in missing.into_iter().zip(outcomes) {
                let key = plan.key_of("accuracy", plan.accuracy[i].0, &work.task_digests[task]);
                work.cache.put(&key, &outcome.accuracy)?;
                work.steps.measured += 1;
                plan.accuracy[i].1[task] = Some(outcome.accuracy);
            }
        }
        Ok(())
    }

    fn result(&self, point: &Point, of_methods: &Repeated, plans: &[Plan]) -> PointResult {
        let p = point.activation_sparsity;
        let run = |&number: &usize| {
            let plan: &Plan = &plans[number];
            let perplexity_at = |p: f64| plan.perplexity.iter().find(|(at, _)| *at == p)?.1.clone();
            let accuracies = plan.accuracy.iter().filter(|(at, _)| *at == p).flat_map(|(_, found)| found);
            let tasks = self.tasks.iter().map(|data| data.task).zip(accuracies);
            Run {
                name: plan.name.clone(),
                jitter: plan.jitter,
                pruning: plan.pruning.clone(),
                perplexity_dense_activations: perplexity_at(0.0),
                perplexity: perplexity_at(p),
                tasks: tasks.filter_map(|(task, found)| Some((task, (*found)?))).collect(),
            }
        };
        let rows = point.methods.iter().zip(of_methods).map(|(&method, numbers)| {
            let runs: Vec<Run> = numbers.iter().map(run).collect();
            let seconds: Vec<f64> = runs.iter().flat_map(|run| &run.pruning).map(|p| p.seconds).collect();
            Row {
                method: method.map_or("dense", |method| method.name()),
                settings: method,
                quantities: measured(&runs),
                optimality_gap: gap_by_layer(&runs),
                seconds_to_prune: method.map(|_| Estimate::new(seconds, Some(0.0))),
                runs,
            }
        });
        let mut rows: Vec<Row> = rows.collect();
        hold_against_each_other(&mut rows);
        PointResult { weight_sparsity: point.weight_sparsity, activation_sparsity: p, rows }
    }
}

/// The mean gap of each layer's linears over the repeats; nothing where it was not measured.
fn gap_by_layer(runs: &[Run]) -> Vec<Estimate> {
    let linears = || runs.iter().flat_map(|run| &run.pruning).map(|pruning| &pruning.linears);
    let layers = linears().flatten().map(|linear| linear.layer + 1).max().unwrap_or(0);
    let of_layer = |layer: usize| -> Option<Estimate> {
        let mean = |of_run: &Vec<LinearReport>| -> Option<f64> {
            let gaps = of_run.iter().filter(|linear| linear.layer == layer);
            let gaps: Vec<f64> = gaps.filter_map(|linear| linear.optimality?.gap).collect();
            (!gaps.is_empty()).then(|| gaps.iter().sum::<f64>() / gaps.len() as f64)
        };
        Some(Estimate::new(linears().map(mean).collect::<Option<_>>()?, None))
    };
    (0..layers).map(of_layer).collect::<Option<_>>().unwrap_or_default()
}

/// Every quantity over the repeats.
fn measured(runs: &[Run]) -> BTreeMap<Quantity, Measured> {
    let mut all: BTreeMap<Quantity, Vec<(f64, Option<f64>)>> = BTreeMap::new();
    for run in runs {
        for (quantity, value) in run.quantities() {
            all.entry(quantity).or_default().push(value);
        }
    }
    let estimate = |values: Vec<(f64, Option<f64>)>| {
        let errors: Option<Vec<f64>> = values.iter().map(|(_, error)| *error).collect();
        let sampling_error = errors.map(|errors| errors.iter().sum::<f64>() / errors.len() as f64);
        let estimate = Estimate::new(values.into_iter().map(|(value, _)| value).collect(), sampling_error);
        Measured { estimate, gap_to_dense: None, standing: None }
    };
    all.into_iter().map(|(quantity, values)| (quantity, estimate(values))).collect()
}

/// Sets gaps and standings of the methods of one point.
fn hold_against_each_other(rows: &mut [Row]) {
    let quantities: Vec<Quantity> = rows.iter().flat_map(|row| row.quantities.keys().copied()).collect();
    for quantity in quantities {
        let of = |row: &Row| row.quantities[&quantity].estimate.clone();
        let dense = rows.iter().find(|row| row.settings.is_none()).map(of);
        let pruned: Vec<Estimate> = rows.iter().filter(|row| row.settings.is_some()).map(of).collect();
        let mut standings = match pruned.len() {
            0 | 1 => Vec::new(),
            _ => standings(&pruned, quantity.is_accuracy()),
        }
        .into_iter();
        for row in rows.iter_mut() {
            let is_pruned = row.settings.is_some();
            let measured = row.quantities.get_mut(&quantity).expect("every row is measured by the same");
            measured.gap_to_dense = dense.as_ref().map(|dense| measured.estimate.mean - dense.mean);
            measured.standing = if is_pruned { standings.next() } else { None };
        }
    }
}

impl<B> Workplace<'_, B> {
    /// Fills a plan with what the cache holds.
    fn look_up(&mut self, plan: &mut Plan) {
        if plan.method.is_some() {
            plan.pruning = self.get(&plan.pruning_key());
        }
        for i in 0..plan.perplexity.len() {
            let key = plan.key_of("perplexity", plan.perplexity[i].0, &self.evaluation_digest);
            plan.perplexity[i].1 = self.get(&key);
        }
        for i in 0..plan.accuracy.len() {
            for task in 0..self.task_digests.len() {
                let key = plan.key_of("accuracy", plan.accuracy[i].0, &self.task_digests[task]);
                plan.accuracy[i].1[task] = self.get(&key);
            }
        }
    }

    fn get<R: serde::de::DeserializeOwned>(&mut self, key: &Value) -> Option<R> {
        match self.cache.get(key) {
            Lookup::Found(result) => {
                self.steps.from_cache += 1;
                Some(result)
            }
            Lookup::Absent => None,
            Lookup::Damaged { path, detail } => {
                self.observer.warning(&format!("{}: {detail}; computed again", path.display()));
                None
            }
        }
    }
}

/// Removes a pruned model when it is measured, or could not be.
struct Temporary<'a>(&'a Path);

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // What cannot be removed is in the user's own output directory, under a name that says what it is.
        let _ = fs::remove_dir_all(self.0);
    }
}

/// Inside the directory of models: those that go when they are measured.
const TEMPORARY: &str = "temporary";

/// What a finished pruning run says of itself.
fn read_report(directory: &Path) -> Result<Pruning, CompareError> {
    #[derive(Deserialize)]
    struct Totals {
        seconds: f64,
        sparsity: f64,
    }
    #[derive(Deserialize)]
    struct Whole {
        totals: Totals,
        linears: Vec<LinearReport>,
    }
    let path = directory.join(report::FILE_NAME);
    let text = fs::read_to_string(&path).map_err(TensorError::io(&path))?;
    let Whole { totals, linears } = serde_json::from_str(&text)
        .map_err(|error| CompareError::Report { path, detail: error.to_string() })?;
    Ok(Pruning { seconds: totals.seconds, sparsity: totals.sparsity, linears })
}

/// SHA-256 of all files of a model that a result can depend on.
fn content_of_model(checkpoint: &Checkpoint, observer: &dyn Observer) -> Result<String, TensorError> {
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
    let described =
        names.map(|name| checkpoint.directory.join(name)).into_iter().filter(|path| path.is_file());
    let weights = checkpoint.shards().iter().map(|shard| shard.path().to_path_buf());
    let bytes: usize = checkpoint.shards().iter().map(|shard| shard.identity().0).sum();
    observer.begin((bytes / PIECE) as u64);
    content_of_files(described.chain(weights), |pieces| (0..pieces).for_each(|_| observer.advance()))
}

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// SHA-256 of the files' names, lengths and contents, in this order; `progress` hears how many pieces each had.
fn content_of_files(
    paths: impl IntoIterator<Item = PathBuf>,
    progress: impl Fn(u64),
) -> Result<String, TensorError> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    for path in paths {
        let mut file = File::open(&path).map_err(TensorError::io(&path))?;
        let length = file.metadata().map_err(TensorError::io(&path))?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update([0]);
        hash.update(length.to_le_bytes());
        loop {
            let read = file.read(&mut piece).map_err(TensorError::io(&path))?;
            if read == 0 {
                break;
            }
            hash.update(&piece[..read]);
            progress(u64::from(read == PIECE));
        }
    }
    Ok(base16ct::lower::encode_string(&hash.finalize()))
}

/// Tokens in one unit of progress.
const UNIT: u64 = 256;
