//! One group of linears: gather statistics of their common input, prepare, prune, measure, and advance both streams.

use std::time::Instant;

use ndarray::Array2;

use super::error::CalibrateError;
use super::gap::GapMeter;
use super::method::{MethodPruner, MethodStatistics};
use super::output::OutputDirectory;
use super::report::{GridRounding, LinearReport};
use super::streams::Streams;
use crate::backend::{Backend, BackendError};
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::forward::{Group, Layer, Linear};
use crate::progress::Observer;
use crate::reference::baseline::gptaq::GridConfig;
use crate::reference::{Method, PruneConfig, Pruned};

/// The settings that all groups of a run share.
pub(super) struct GroupPruner<'a, B> {
    pub backend: &'a B,
    pub observer: &'a dyn Observer,
    pub checkpoint: &'a Checkpoint,
    pub output: &'a OutputDirectory,
    pub method: Method,
    pub grids: Option<GridConfig>,
    pub damping_retry: bool,
    pub report_gap: Option<usize>,
}

/// The pruned linears of a group, in their order.
struct GroupOutcome<T> {
    /// The new weights (each n x k), as stored.
    weights: Vec<Array2<T>>,
    /// `true` = pruned (each n x k).
    masks: Vec<Array2<bool>>,
    reports: Vec<LinearReport>,
}

/// The statistics of a method, and what the optimality gap needs besides.
type Gathered<T, B> = (MethodStatistics<T, B>, Option<GapMeter<T>>);

impl<B> GroupPruner<'_, B> {
    /// Prunes the linears of `group` in layer `number` and advances both streams over it. All of them are pruned with the
    /// same statistics.
    ///
    /// # Errors
    /// [`CalibrateError`], with the linear at fault.
    pub fn prune_group<T: Scalar>(
        &self,
        number: usize,
        layer: &Layer<T>,
        group: Group,
        mut streams: Option<&mut Streams<T, B>>,
    ) -> Result<Vec<LinearReport>, CalibrateError>
    where
        B: Backend<T>,
    {
        let linears = group.linears(&self.checkpoint.config);
        let start = Instant::now();
        let (statistics, meter) = self.gather(number, layer, group, streams.as_deref())?;
        let (pruner, damping_retry) = statistics
            .prepare(self.backend, self.damping_retry)
            .map_err(|error| self.refused(number, linears[0], error))?;
        let shared_seconds = start.elapsed().as_secs_f64() / linears.len() as f64;

        let mut outcome = self.prune_linears(number, layer, linears, &pruner)?;
        for report in &mut outcome.reports {
            report.seconds += shared_seconds;
            report.damping_retry = damping_retry;
        }
        if let Some(meter) = meter {
            // A method without damping of its own is measured with the default's.
            let damping = pruner.damping().unwrap_or(PruneConfig::default().damping);
            drop(pruner); // both hold a matrix of the size of H
            let measured = meter.measure(damping, outcome.weights.iter().zip(&outcome.masks));
            let measured = measured.map_err(|error| self.refused(number, linears[0], error.into()))?;
            for (report, optimality) in outcome.reports.iter_mut().zip(measured) {
                report.optimality = Some(optimality);
            }
        }
        if let Some(streams) = &mut streams {
            let errors = streams.advance(layer, group, &outcome.weights, || self.observer.advance());
            for ((&linear, error), report) in linears.iter().zip(errors).zip(&mut outcome.reports) {
                if let Some(stream) = error.not_finite() {
                    return Err(CalibrateError::NotFinite { layer: number, linear, side: "output", stream });
                }
                report.relative_output_error = error.relative();
            }
        }
        outcome.reports.iter().for_each(|report| report.tell(self.observer));
        Ok(outcome.reports)
    }

    /// The statistics of the group's input over all sequences, and what the optimality gap needs besides.
    fn gather<T: Scalar>(
        &self,
        number: usize,
        layer: &Layer<T>,
        group: Group,
        streams: Option<&Streams<T, B>>,
    ) -> Result<Gathered<T, B>, CalibrateError>
    where
        B: Backend<T>,
    {
        let config = &self.checkpoint.config;
        let mut statistics = MethodStatistics::new(self.backend, &self.method, group.channels(config));
        let mut meter = self.report_gap.map(|rows| GapMeter::new(layer.group(group), rows));
        let Some(streams) = streams else { return Ok((statistics, meter)) };
        if let Some(stream) = streams.not_finite() {
            let linear = group.linears(config)[0];
            return Err(CalibrateError::NotFinite { layer: number, linear, side: "input", stream });
        }
        for (dense, sparse) in streams.dense.states.iter().zip(&streams.sparse.states) {
            statistics.update(self.backend, dense.input.view(), sparse.input.view());
            if let Some(meter) = &mut meter {
                meter.update(dense.input.view(), sparse.input.view());
            }
            self.observer.advance();
        }
        Ok((statistics, meter))
    }

    /// Prunes and stores each linear. The weights of the outcome are those that the output directory holds.
    fn prune_linears<T: Scalar>(
        &self,
        number: usize,
        layer: &Layer<T>,
        linears: &[Linear],
        pruner: &MethodPruner<T, B>,
    ) -> Result<GroupOutcome<T>, CalibrateError>
    where
        B: Backend<T>,
    {
        let mut outcome = GroupOutcome { weights: Vec::new(), masks: Vec::new(), reports: Vec::new() };
        for &linear in linears {
            let start = Instant::now();
            let tensor = self.checkpoint.tensor(number, linear);
            let (Pruned { mut weight, mask, .. }, steps) = pruner
                .prune(self.backend, layer.linear(linear).view(), self.grids.as_ref())
                .map_err(|error| self.refused(number, linear, error))?;
            let points = steps.as_ref().map(|_| weight.clone());
            self.output.write(&tensor, &mut weight)?;
            outcome.reports.push(LinearReport {
                tensor,
                layer: number,
                weights: weight.len(),
                zeros: weight.iter().filter(|w| **w == T::zero()).count(),
                relative_output_error: None,
                optimality: None,
                grid_rounding: points
                    .zip(steps)
                    .map(|(points, steps)| GridRounding::of(&points, &weight, &steps)),
                damping_retry: None,
                seconds: start.elapsed().as_secs_f64(),
            });
            outcome.weights.push(weight);
            outcome.masks.push(mask);
            self.observer.advance();
        }
        Ok(outcome)
    }

    fn refused(&self, number: usize, linear: Linear, source: BackendError) -> CalibrateError {
        CalibrateError::Linear { tensor: self.checkpoint.tensor(number, linear), source }
    }
}
