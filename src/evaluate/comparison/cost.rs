//! A rough cost of each step of a comparison: its share of the progress bar.

use super::job::MethodComparison;
use super::plan::PlannedModel;
use crate::calibrate::windows::Windows;
use crate::evaluate::zero_shot::{self, ZeroShotError};
use crate::model::tokenizer::Tokenizer;

/// Tokens of a forward pass in one unit of progress.
const UNIT: u64 = 256;

/// Costs in units of progress, at least 1 each.
pub(super) struct Costs {
    /// One perplexity.
    pub perplexity: u64,
    /// Each task.
    pub tasks: Vec<u64>,
}

impl Costs {
    /// # Errors
    /// [`ZeroShotError`] for the first document that cannot be encoded.
    pub fn of(job: &MethodComparison, tokenizer: Option<&Tokenizer>) -> Result<Self, ZeroShotError> {
        let config = &job.checkpoint.config;
        let longest = config.max_position_embeddings;
        let mut tasks = Vec::new();
        for (data, tokenizer) in job.tasks.iter().zip(tokenizer.into_iter().cycle()) {
            let requests = zero_shot::encode(std::slice::from_ref(data), tokenizer, config)?;
            let tokens: u64 = requests.iter().flatten().map(|r| r.input(longest).len() as u64).sum();
            tasks.push(units(tokens));
        }
        Ok(Costs { perplexity: units(tokens(job.evaluation)), tasks })
    }

    /// All missing results of a model; with `prunes`, pruning it too.
    pub fn missing(&self, job: &MethodComparison, model: &PlannedModel, prunes: bool) -> u64 {
        let perplexities = model.perplexity.iter().filter(|(_, found)| found.is_none()).count() as u64;
        let tasks = model.accuracy.iter().flat_map(|(_, found)| found.iter().zip(&self.tasks));
        let tasks: u64 = tasks.filter(|(found, _)| found.is_none()).map(|(_, cost)| cost).sum();
        u64::from(prunes) * pruning(job, model) + perplexities * self.perplexity + tasks
    }
}

/// Pruning a model: two streams, and the statistics.
pub(super) fn pruning(job: &MethodComparison, model: &PlannedModel) -> u64 {
    units(3 * tokens(model.method.and_then(|method| job.calibration_of(method))))
}

fn tokens(windows: Option<&Windows>) -> u64 {
    windows.map_or(0, |windows| windows.tokens.len() as u64)
}

fn units(tokens: u64) -> u64 {
    tokens / UNIT + 1
}
