//! Keys of the cache: everything that a result depends on.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use base16ct::lower::encode_string;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::job::MethodComparison;
use crate::calibrate::report::Environment;
use crate::calibrate::windows::Windows;
use crate::evaluate::zero_shot::tasks::TaskData;
use crate::linalg::Scalar;
use crate::model::{Checkpoint, Jitter};
use crate::progress::Observer;
use crate::reference::Method;
use crate::tensors::TensorError;

/// What all results of a comparison depend on: program, machine, model and data.
pub(super) struct Keys {
    /// SHA-256 of the content of the dense model's files.
    pub dense_model: String,
    /// The program and the machine.
    pub environment: Environment,
    program: String,
    precision: &'static str,
    calibration: Option<String>,
    evaluation: Option<String>,
    tasks: Vec<String>,
}

impl Keys {
    /// Hashes the model and this program; `observer` gets the progress.
    pub fn read<T: Scalar>(
        job: &MethodComparison,
        environment: Environment,
        observer: &dyn Observer,
    ) -> Result<Self, TensorError> {
        let program = std::env::current_exe().map_err(TensorError::io(Path::new("the running program")))?;
        Ok(Keys {
            dense_model: content_of_model(job.checkpoint, observer)?,
            environment,
            program: content_of_files([program], |_| ())?,
            precision: T::NAME,
            calibration: job.calibration.map(Windows::digest),
            evaluation: job.evaluation.map(Windows::digest),
            tasks: job.tasks.iter().map(TaskData::digest).collect(),
        })
    }

    /// What a pruned model depends on; `activation_sparsity` is that of its calibration.
    pub fn model(
        &self,
        job: &MethodComparison,
        method: Option<Method>,
        activation_sparsity: f64,
        jitter: Option<Jitter>,
    ) -> Value {
        json!({
            "program": self.program,
            "environment": self.environment,
            "precision": self.precision,
            "dense": self.dense_model,
            "pruned": method.map(|method| json!({
                "method": method,
                "activation_sparsity": activation_sparsity,
                "calibration": job.calibration_of(method).and(self.calibration.as_ref()),
                "jitter": jitter,
                "report_gap": job.report_gap,
            })),
        })
    }

    /// What the report of pruning a model depends on.
    pub fn pruning(&self, model: &Value) -> Value {
        json!({"result": "pruning", "model": model})
    }

    /// What a model's perplexity depends on.
    pub fn perplexity(&self, model: &Value, activation_sparsity: f64) -> Value {
        measurement("perplexity", model, activation_sparsity, self.evaluation.as_deref())
    }

    /// What a model's accuracy on the task with this number depends on.
    pub fn accuracy(&self, model: &Value, activation_sparsity: f64, task: usize) -> Value {
        measurement("accuracy", model, activation_sparsity, Some(&self.tasks[task]))
    }
}

fn measurement(result: &str, model: &Value, activation_sparsity: f64, data: Option<&str>) -> Value {
    json!({"result": result, "model": model, "activation_sparsity": activation_sparsity, "data": data})
}

/// SHA-256 of all files of a model that a result can depend on.
fn content_of_model(checkpoint: &Checkpoint, observer: &dyn Observer) -> Result<String, TensorError> {
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
    let described =
        names.map(|name| checkpoint.directory.join(name)).into_iter().filter(|path| path.is_file());
    let weights = checkpoint.shards().iter().map(|shard| shard.path().to_path_buf());
    let bytes: usize = checkpoint.shards().iter().map(|shard| shard.identity().0).sum();
    observer.begin((bytes / CHUNK) as u64);
    content_of_files(described.chain(weights), |chunks| (0..chunks).for_each(|_| observer.advance()))
}

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// SHA-256 of the files' names, lengths and contents, in this order. `progress` hears of the chunks that were read.
fn content_of_files(
    paths: impl IntoIterator<Item = PathBuf>,
    progress: impl Fn(u64),
) -> Result<String, TensorError> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    for path in paths {
        let mut file = File::open(&path).map_err(TensorError::io(&path))?;
        let length = file.metadata().map_err(TensorError::io(&path))?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update([0]);
        hash.update(length.to_le_bytes());
        loop {
            let read = file.read(&mut chunk).map_err(TensorError::io(&path))?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            progress(u64::from(read == CHUNK));
        }
    }
    Ok(encode_string(&hash.finalize()))
}
