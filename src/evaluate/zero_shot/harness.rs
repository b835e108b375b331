//! Results in the layout of lm-evaluation-harness 0.4.8, for the tools that read it.
//!
//! Entries about the harness's own run (its model class, seeds, versions of its libraries) are left out; `config` describes
//! this program's run.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::TaskOutcome;
use super::metrics::Metric;
use super::tasks::Task;

/// The settings of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The model directory.
    pub model: &'a Path,
    /// `"f32"` or `"f64"`.
    pub precision: &'a str,
    /// Fraction of activations pruned.
    pub activation_sparsity: f64,
    /// The file with thresholds that prune them instead.
    pub thresholds: Option<&'a Path>,
    /// Upper limit of the documents per task.
    pub limit: Option<usize>,
    /// Longest input of the model.
    pub max_length: usize,
}

/// The report: an object per kind of fact, in it an entry per task, sorted by name.
pub fn report(outcomes: &[TaskOutcome], run: &Run) -> Value {
    let mut sorted: Vec<&TaskOutcome> = outcomes.iter().collect();
    sorted.sort_by_key(|outcome| outcome.task.name());
    let per_task = |value: &dyn Fn(&TaskOutcome) -> Value| -> Value {
        sorted.iter().map(|outcome| (outcome.task.name().to_string(), value(outcome))).collect()
    };
    let args = format!(
        "pretrained={},dtype={},{}",
        run.model.display(),
        match run.precision {
            "f64" => "float64",
            _ => "float32",
        },
        match run.thresholds {
            Some(path) => format!("thresholds={}", path.display()),
            None => format!("activation_sparsity={}", run.activation_sparsity),
        }
    );
    json!({
        "results": per_task(&results),
        "group_subtasks": per_task(&|_| json!([])),
        "configs": per_task(&|outcome| config(outcome.task, &outcome.path)),
        "versions": per_task(&|outcome| version(outcome.task).into()),
        "n-shot": per_task(&|_| 0.into()),
        "higher_is_better": per_task(&|outcome| metrics(outcome.task).map(|metric| (metric, true)).collect()),
        "n-samples": per_task(&|outcome| json!({
            "original": outcome.original,
            "effective": outcome.documents.len(),
        })),
        "config": {
            "model": concat!("duogpt ", env!("CARGO_PKG_VERSION")),
            "model_args": args,
            "device": "cpu",
            "limit": run.limit,
        },
        "max_length": run.max_length,
    })
}

fn metrics(task: Task) -> impl Iterator<Item = &'static str> {
    ["acc"].into_iter().chain(task.has_acc_norm().then_some("acc_norm"))
}

fn results(outcome: &TaskOutcome) -> Value {
    let mut entry = Map::new();
    entry.insert("alias".into(), outcome.task.name().into());
    let mut put = |name: &str, metric: Metric| {
        entry.insert(format!("{name},none"), metric.mean.into());
        let error = metric.standard_error.map_or("N/A".into(), Value::from);
        entry.insert(format!("{name}_stderr,none"), error);
    };
    put("acc", outcome.accuracy.acc);
    if let Some(metric) = outcome.accuracy.acc_norm {
        put("acc_norm", metric);
    }
    entry.into()
}

fn version(task: Task) -> f64 {
    if task == Task::Boolq { 2.0 } else { 1.0 }
}

/// How the harness describes a task whose documents come from a local file.
fn config(task: Task, path: &Path) -> Value {
    let file = path.display().to_string();
    let tag = match task {
        Task::ArcEasy | Task::ArcChallenge => Some("ai2_arc"),
        Task::Hellaswag => Some("multiple_choice"),
        Task::Boolq => Some("super-glue-lm-eval-v1"),
        Task::Piqa | Task::Winogrande | Task::Openbookqa => None,
    };
    let has_test_split = matches!(task, Task::ArcEasy | Task::ArcChallenge | Task::Openbookqa);
    let arc = "Question: {{question}}\nAnswer:";
    let (text, target, choice, query) = match task {
        Task::Piqa => ("Question: {{goal}}\nAnswer:", "label", json!("{{[sol1, sol2]}}"), Some("goal")),
        Task::Hellaswag => ("{{query}}", "{{label}}", json!("choices"), None),
        Task::Winogrande => (
            "<function doc_to_text>",
            "<function doc_to_target>",
            json!("<function doc_to_choice>"),
            Some("sentence"),
        ),
        Task::ArcEasy | Task::ArcChallenge => {
            (arc, "{{choices.label.index(answerKey)}}", json!("{{choices.text}}"), Some(arc))
        }
        Task::Openbookqa => (
            "question_stem",
            "{{choices.label.index(answerKey.lstrip())}}",
            json!("{{choices.text}}"),
            Some("question_stem"),
        ),
        Task::Boolq => {
            ("{{passage}}\nQuestion: {{question}}?\nAnswer:", "label", json!(["no", "yes"]), Some("passage"))
        }
    };
    // The definition of boolq leaves out what goes without saying.
    let metric = |name| match task {
        Task::Boolq => json!({"metric": name}),
        _ => json!({"metric": name, "aggregation": "mean", "higher_is_better": true}),
    };

    let mut config = Map::new();
    let mut put = |key: &str, value: Value| config.insert(key.into(), value);
    put("task", task.name().into());
    if let Some(tag) = tag {
        put("tag", json!([tag]));
    }
    put("dataset_path", "json".into());
    put("dataset_kwargs", json!({"data_files": {"train": file, "validation": file, "test": file}}));
    put("training_split", "train".into());
    put("validation_split", "validation".into());
    if has_test_split {
        put("test_split", "test".into());
    }
    if task == Task::Hellaswag {
        put("process_docs", "<function process_docs>".into());
    }
    put("doc_to_text", text.into());
    put("doc_to_target", target.into());
    put("unsafe_code", false.into());
    put("doc_to_choice", choice);
    put("description", "".into());
    put("target_delimiter", " ".into());
    put("fewshot_delimiter", "\n\n".into());
    put("num_fewshot", 0.into());
    put("metric_list", metrics(task).map(metric).collect());
    put("output_type", "multiple_choice".into());
    put("repeats", 1.into());
    put("should_decontaminate", query.is_some().into());
    if let Some(query) = query {
        put("doc_to_decontamination_query", query.into());
    }
    put("metadata", json!({"version": version(task)}));
    config.into()
}
