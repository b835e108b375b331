//! What several test files share.
#![allow(dead_code)] // each test file uses its part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use approx::abs_diff_ne;
use duogpt::backend::Cpu;
use duogpt::calibrate::PruneJob;
use duogpt::calibrate::streams::Activations;
use duogpt::calibrate::windows::Windows;
use duogpt::evaluate::perplexity::perplexity;
use duogpt::linalg::Scalar;
use duogpt::model::Checkpoint;
use duogpt::progress::Silent;
use duogpt::reference::{Alpha, ColumnOrder, LazyUpdate, Method, PruneConfig, Sparsity, Threshold};
use duogpt::tensors::FloatType;
use libtest_mimic::Failed;
use serde_json::Value;

/// The models of `fixtures/architectures`; its `make.py` says what each of them covers.
pub const ARCHITECTURE_MODELS: [&str; 10] = [
    "llama-biased",
    "mistral",
    "mistral-full",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "qwen3-window",
    "opt",
    "opt-post-norm",
    "opt-plain",
];

/// A file or directory under `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Runs the command-line program.
pub fn duogpt(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_duogpt")).args(arguments).output().expect("the program starts")
}

/// What `eval perplexity --json` says of a model on the first `limit` windows of a token file.
pub fn eval_perplexity(model: &Path, tokens: &Path, limit: &str, flags: &[&str]) -> Value {
    let (model, tokens) = (model.to_str().unwrap(), tokens.to_str().unwrap());
    let arguments = ["eval", "perplexity", "--model", model, "--tokens", tokens, "--limit", limit, "--json"];
    let outcome = duogpt(&[&arguments, flags].concat());
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    serde_json::from_slice(&outcome.stdout).unwrap()
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Where the data of a tensor begin in a safetensors file.
pub fn position(file: &[u8], tensor: &str) -> usize {
    let end = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..end]).unwrap();
    end + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

/// Every file of a directory; the report without times and environment.
pub fn content(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            if name != "prune-report.json" {
                return (name, std::fs::read(&path).unwrap());
            }
            let mut report = read_json(&path);
            report["environment"] = Value::Null;
            report["totals"]["seconds"] = Value::Null;
            for linear in report["linears"].as_array_mut().unwrap() {
                linear["seconds"] = Value::Null;
            }
            (name, report.to_string().into_bytes())
        })
        .collect();
    files.sort();
    files
}

/// The settings of a run of an `upstream*.json`.
pub fn method(run: &Value) -> Option<Method> {
    let config = &run["config"];
    let sparsity = || match &config["weight_sparsity"] {
        Value::String(text) => text.parse().unwrap(),
        number => Sparsity::Unstructured(number.as_f64().unwrap()),
    };
    let second_order = || PruneConfig {
        block_size: config["block_size"].as_u64().unwrap() as usize,
        damping: config["damping"].as_f64().unwrap(),
        alpha: Alpha::both(config["alpha"].as_f64().unwrap()),
        column_order: match config["column_order"].as_str().unwrap() {
            "natural" => ColumnOrder::Natural,
            "hessian" => ColumnOrder::Hessian,
            other => panic!("column order {other}"),
        },
        threshold: match config["threshold"].as_str().unwrap() {
            "inclusive" => Threshold::Inclusive,
            other => panic!("threshold {other}"),
        },
        lazy_update: match config["lazy_update"].as_str().unwrap() {
            "pruned" => LazyUpdate::Pruned,
            other => panic!("lazy update {other}"),
        },
        ..PruneConfig::upstream(sparsity())
    };
    match run["method"].as_str().unwrap() {
        "dense" => None,
        "magnitude" => Some(Method::Magnitude(sparsity())),
        "wanda" => Some(Method::Wanda(sparsity())),
        "sparsegpt" => Some(Method::SparseGpt(second_order())),
        "duogpt" => Some(Method::DuoGpt(second_order())),
        other => panic!("method {other}"),
    }
}

/// A whole-model run of the original to compare with: `<model>/<file>`, calibrated and measured on 32 windows.
pub struct Published<'a> {
    pub model: PathBuf,
    pub runs: &'a Value,
    pub calibration: PathBuf,
    pub evaluation: PathBuf,
}

impl Published<'_> {
    /// Repeats one run in the arithmetic `T`, weights kept in that type as the original kept them; returns perplexity
    /// with dense and with sparse activations.
    pub fn repeat<T: Scalar>(&self, name: &str) -> Result<(f64, f64), Failed> {
        let run = &self.runs[name];
        let dense = Checkpoint::open(&self.model)?;
        let windows = |path: &Path| Windows::from_tokens(path, &dense.config, None, Some(32));
        let (calibration, evaluation) = (windows(&self.calibration)?, windows(&self.evaluation)?);
        let activation_sparsity = run["activation_sparsity"].as_f64().unwrap();
        let directory = tempfile::tempdir()?;
        let output = directory.path().join("pruned");
        let model = match method(run) {
            None => dense,
            Some(method) => {
                let job = PruneJob {
                    windows: Some(&calibration),
                    activation_sparsity,
                    dtype: Some(if T::NAME == "f64" { FloatType::F64 } else { FloatType::F32 }),
                    ..PruneJob::new(&dense, method, &output)
                };
                job.run::<T, _>(&Cpu, &Silent)?;
                Checkpoint::open(&output)?
            }
        };
        let measure = |sparsity| -> Result<f64, Failed> {
            let activations = Activations { sparsity, ..Activations::default() };
            Ok(perplexity::<T, _>(&model, &evaluation, activations, &Cpu, &Silent)?.perplexity)
        };
        Ok((measure(0.0)?, measure(activation_sparsity)?))
    }

    /// Holds one run to the published perplexities within 3 %: the noise floor of a model with exact ties, where one
    /// tie broken differently moves the final perplexity by up to 1 %.
    pub fn holds<T: Scalar>(&self, name: &str) -> Result<(), Failed> {
        let (dense, sparse) = self.repeat::<T>(name)?;
        let run = &self.runs[name];
        for (found, key) in
            [(dense, "perplexity_dense_activations"), (sparse, "perplexity_sparse_activations")]
        {
            let published = run[key].as_f64().unwrap();
            if abs_diff_ne!(found / published, 1.0, epsilon = 0.03) {
                return Err(format!("{key}: {found}, the original has {published}").into());
            }
        }
        Ok(())
    }

    /// With sparse activations DuoGPT is better than SparseGPT, and SparseGPT better than magnitude and Wanda.
    pub fn keeps_the_order<T: Scalar>(&self, duogpt: &str, sparsegpt: &str) -> Result<(), Failed> {
        let sparse = |name| self.repeat::<T>(name).map(|(_, sparse)| sparse);
        let (duogpt, sparsegpt) = (sparse(duogpt)?, sparse(sparsegpt)?);
        let (magnitude, wanda) = (sparse("magnitude")?, sparse("wanda")?);
        if duogpt < sparsegpt && sparsegpt < magnitude && sparsegpt < wanda {
            return Ok(());
        }
        Err(format!("duogpt {duogpt}, sparsegpt {sparsegpt}, magnitude {magnitude}, wanda {wanda}").into())
    }
}
