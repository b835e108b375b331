//! What is timed, and how, for any device that can be timed: a GPU (`benches/gpu`), or the emulator, which runs every case
//! once at small shapes (`tests/benches.rs`), so that no case fails for the first time on a GPU.
//!
//! To add a kernel: a file here with a function `cases(&mut Suite<D>)` that calls [`Suite::case`] for each shape, and a line in
//! [`all`]. Each case is checked against the reference, then timed twice (the difference is the noise), with its
//! baselines in the same run, over copies of its input that together are more than three times the L2 cache.

use std::fmt::Write as _;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use duogpt::cuda::device::{Buffer, Plain};
use duogpt::cuda::{Device, DeviceError};
use ndarray::Array2;
use rayon::prelude::*;
use serde::Serialize;

mod activation;
mod factor;
mod layer;
mod mask;
#[path = "../../common/operations.rs"]
mod operations;
mod panel;
mod score;
mod spmspv;
mod statistics;

/// All cases of all kernels, in the order of the algorithm.
pub fn all<D: Machine>(suite: &mut Suite<D>) {
    activation::cases(suite);
    statistics::cases(suite);
    factor::cases(suite);
    score::cases(suite);
    mask::cases(suite);
    panel::cases(suite);
    layer::cases(suite);
    spmspv::cases(suite);
}

/// What can be timed.
pub trait Clock {
    /// Seconds that the device takes for what `work` starts.
    fn seconds(&self, work: &mut dyn FnMut() -> Result<(), String>) -> Result<f64, String>;

    /// Bytes of the last-level cache.
    fn cache_bytes(&self) -> usize;

    /// y = W x by the vendor's library, the baseline of decoding products: W (n x k) in bf16, its columns padded to a multiple of 8,
    /// x in bf16, y in f32, by their addresses. Does nothing where there is no such library.
    fn library_product(&self, _shape: (usize, usize), _w: u64, _x: u64, _y: u64) -> Result<(), String> {
        Ok(())
    }
}

/// A device with a clock.
pub trait Machine: Device + Clock {}
impl<D: Device + Clock> Machine for D {}

/// Columns per block.
pub const BLOCK: usize = 128;

/// One linear layer.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Where it is found, such as `llama-2-7b-down`.
    pub name: &'static str,
    /// Rows.
    pub n: usize,
    /// Input channels.
    pub k: usize,
}

impl Shape {
    /// As part of a case's name.
    pub fn id(&self) -> String {
        format!("{}-{}x{}", self.name, self.n, self.k)
    }
}

/// What bounds a kernel from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Bytes, at the rate of a device-to-device copy.
    Copy,
    /// Operations, at the rate of a bf16 matrix product.
    Bf16,
    /// Operations, at the rate of an f32 matrix product.
    F32,
}

/// What a kernel cannot avoid.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Work {
    /// Bytes to move.
    pub bytes: u64,
    /// Floating-point operations, an addition and a multiplication counting as two.
    pub operations: u64,
    /// Which of the two takes longer.
    pub limit: Limit,
}

/// Rates measured on this device in this run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rates {
    /// Bytes read and written per second by a copy.
    pub copy_bytes_per_second: f64,
    /// By cuBLAS, 8192 cubed, bf16 in, f32 out.
    pub bf16_operations_per_second: f64,
    /// By cuBLAS, 8192 cubed, f32 without TF32.
    pub f32_operations_per_second: f64,
}

/// How far a result is from the reference, and how far it may be.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Checked {
    /// max |found - f64| / max |f64|
    pub error: f64,
    /// 2 error(CPU f32) + 4 eps, or 0 where bits must agree.
    pub budget: f64,
}

impl Checked {
    /// For what was compared bit by bit.
    pub const EXACT: Checked = Checked { error: 0.0, budget: 0.0 };

    /// By the rule of all backends: as close to f64 as the CPU in f32 is, within twice, plus 4 eps.
    pub fn by_rule(found: &[f32], single: &[f32], exact: &[f64]) -> Self {
        let largest = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!(largest > 0.0, "nothing to compare with");
        let error = |values: &[f32]| {
            assert_eq!(values.len(), exact.len(), "one value for each");
            let differences = values.iter().zip(exact).map(|(&a, b)| (f64::from(a) - b).abs());
            differences.fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) }) / largest
        };
        Checked { error: error(found), budget: 2.0 * error(single) + 4.0 * f64::from(f32::EPSILON) }
    }

    /// The one that uses more of its budget.
    pub fn worse(self, other: Checked) -> Checked {
        let used = |c: Checked| if c.error == 0.0 { 0.0 } else { c.error / c.budget };
        if used(other) > used(self) { other } else { self }
    }

    /// Fails where bits differ.
    pub fn same<T: PartialEq + std::fmt::Debug>(
        what: &str,
        found: &[T],
        expected: &[T],
    ) -> Result<Checked, String> {
        if found.len() != expected.len() {
            return Err(format!("{what}: {} values, expected {}", found.len(), expected.len()));
        }
        match (0..found.len()).find(|&i| found[i] != expected[i]) {
            Some(i) => Err(format!("{what}: at {i} {:?}, expected {:?}", found[i], expected[i])),
            None => Ok(Checked::EXACT),
        }
    }
}

/// What a case does on the device with one copy of its input.
pub type Run<'a, D, S> = &'a dyn Fn(&D, &mut S) -> Result<(), String>;

/// One kernel at one shape.
pub struct Case<'a, D, S> {
    /// The kernel: the first half of the name.
    pub kernel: &'a str,
    /// The second half: letters, digits, `-`, `x`.
    pub shape: String,
    /// What it must do.
    pub work: Work,
    /// A fresh input; equal numbers give equal content.
    pub input: &'a dyn Fn(&D, u64) -> Result<S, String>,
    /// What is timed.
    pub run: Run<'a, D, S>,
    /// Whether a run changes its input, so that the next one needs a fresh one.
    pub spoils_input: bool,
    /// Runs on a fresh input, and compares with the reference.
    pub check: &'a dyn Fn(&D) -> Result<Checked, String>,
    /// Other ways to the same result, timed in the same run.
    pub baselines: &'a [(&'a str, Run<'a, D, S>)],
}

/// How long something takes: the median of samples, and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Median, in seconds.
    pub seconds: f64,
    /// Half the distance between the quartiles, relative to the median.
    pub spread: f64,
}

impl Timing {
    /// Of a few samples.
    ///
    /// # Panics
    /// Without samples.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |quarter: usize| {
            let place = quarter as f64 / 4.0 * (samples.len() - 1) as f64;
            let (low, high) = (samples[place.floor() as usize], samples[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Timing { seconds: at(2), spread: (at(3) - at(1)) / 2.0 / at(2) }
    }
}

/// Another way, against ours.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// What it is.
    pub baseline: String,
    /// How long it takes.
    pub seconds: f64,
    /// Its time over ours.
    pub ratio: f64,
    /// Whether the two differ by no more than the noise.
    pub ambiguous: bool,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Kernel and shape.
    pub case: String,
    /// What it must do.
    pub work: Work,
    /// How far it is from the reference.
    pub checked: Checked,
    /// How long it takes.
    pub timing: Timing,
    /// The same again, relative to the first time, minus 1: the noise.
    pub again: f64,
    /// Of the rate that bounds it.
    pub percent_of_limit: f64,
    /// Other ways.
    pub ratios: Vec<Ratio>,
    /// The command that repeats it.
    pub command: String,
}

impl Line {
    /// Bytes per second.
    pub fn bytes_per_second(&self) -> f64 {
        self.work.bytes as f64 / self.timing.seconds
    }

    /// Operations per second.
    pub fn operations_per_second(&self) -> f64 {
        self.work.operations as f64 / self.timing.seconds
    }

    /// All but the command.
    fn text(&self) -> String {
        let mut text = format!(
            "{:<44} {:>10.4} ms ±{:.1} % again {:+.1} %  {:>7.1} GB/s {:>7.2} TFLOP/s  {:>5.1} % of {:?}  error {:.1e} of {:.1e}",
            self.case,
            1e3 * self.timing.seconds,
            100.0 * self.timing.spread,
            100.0 * self.again,
            1e-9 * self.bytes_per_second(),
            1e-12 * self.operations_per_second(),
            self.percent_of_limit,
            self.work.limit,
            self.checked.error,
            self.checked.budget,
        );
        for Ratio { baseline, ratio, ambiguous, .. } in &self.ratios {
            let verdict = if *ambiguous { " AMBIGUOUS" } else { "" };
            let _ = write!(text, "  {baseline} {ratio:.2}x{verdict}");
        }
        text
    }
}

/// Times of the same operations by somebody else, by case.
pub type Peer = std::collections::BTreeMap<String, f64>;

/// Whether cases are timed.
pub enum Pace {
    /// Each is checked and run once.
    Once,
    /// By criterion, against these rates.
    Timed(Box<Criterion>, Rates),
}

/// The cases that are asked for, and what became of them.
pub struct Suite<'a, D> {
    device: &'a D,
    /// The layers.
    pub shapes: Vec<Shape>,
    /// Tokens of one sequence.
    pub tokens: usize,
    /// Decoder layers of a model: LLaMA-2-7B's.
    pub layers: usize,
    pace: Pace,
    /// Case names must contain one of these, if there are any.
    filters: Vec<String>,
    peer: Peer,
    /// What was timed.
    pub lines: Vec<Line>,
    /// Cases that were run.
    pub ran: Vec<String>,
    /// Cases that failed, and why.
    pub failed: Vec<String>,
}

/// Samples of a case: criterion's fewest.
const SAMPLES: usize = 10;

impl<'a, D: Clock> Suite<'a, D> {
    /// No case has run yet.
    pub fn new(device: &'a D, shapes: Vec<Shape>, tokens: usize, pace: Pace) -> Self {
        let (filters, peer) = (Vec::new(), Peer::new());
        let (lines, ran, failed) = (Vec::new(), Vec::new(), Vec::new());
        Suite { device, shapes, tokens, layers: 32, pace, filters, peer, lines, ran, failed }
    }

    /// Only the cases whose name contains one of these.
    pub fn only(self, filters: Vec<String>) -> Self {
        Suite { filters, ..self }
    }

    /// Times to compare with.
    pub fn against(self, peer: Peer) -> Self {
        Suite { peer, ..self }
    }

    /// The different numbers of input channels, and the name of the first layer that has each.
    pub fn widths(&self) -> Vec<(String, usize)> {
        let mut widths: Vec<(String, usize)> = Vec::new();
        for shape in &self.shapes {
            if widths.iter().all(|(_, k)| *k != shape.k) {
                widths.push((format!("{}-k{}", shape.name, shape.k), shape.k));
            }
        }
        widths
    }

    /// Checks a case, then times it.
    pub fn case<S>(&mut self, case: Case<D, S>) {
        let name = format!("{}/{}", case.kernel, case.shape);
        if !self.filters.is_empty() && !self.filters.iter().any(|filter| name.contains(filter.as_str())) {
            return;
        }
        let outcome = (case.check)(self.device).and_then(|checked| {
            let within = checked.error <= checked.budget;
            if !within {
                return Err(format!("error {:.2e} of {:.2e}", checked.error, checked.budget));
            }
            self.time(&name, &case, checked)
        });
        match outcome {
            Ok(()) => self.ran.push(name),
            Err(reason) => {
                eprintln!("{name}: FAILED, not timed: {reason}");
                self.failed.push(format!("{name}: {reason}"));
            }
        }
    }

    fn time<S>(&mut self, name: &str, case: &Case<D, S>, checked: Checked) -> Result<(), String> {
        let device = self.device;
        let (criterion, rates) = match &mut self.pace {
            Pace::Once => {
                (case.run)(device, &mut (case.input)(device, 0)?)?;
                return (case.baselines.iter())
                    .try_for_each(|(_, run)| run(device, &mut (case.input)(device, 0)?));
            }
            Pace::Timed(criterion, rates) => (criterion, *rates),
        };
        // Together they are more than three times the cache: none is in it when its turn comes.
        let copies = 3 * device.cache_bytes() / case.work.bytes.max(1) as usize + 2;
        let copies = copies.clamp(2, 256);
        let inputs =
            || (0..copies as u64).map(|seed| (case.input)(device, seed)).collect::<Result<Vec<S>, _>>();
        let mut states = inputs()?;
        let mut fresh = true;
        let mut measure = |what: &str, run: Run<D, S>| -> Result<Timing, String> {
            let mut samples = Vec::new();
            let mut outcome = Ok(());
            let mut round = |count: usize| -> Result<f64, String> {
                if case.spoils_input && !fresh {
                    states.clear();
                    states = inputs()?;
                }
                fresh = false;
                device.seconds(&mut || states[..count].iter_mut().try_for_each(|state| run(device, state)))
            };
            let mut group = criterion.benchmark_group(case.kernel);
            group
                .sample_size(SAMPLES)
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_millis(500));
            let Work { bytes, operations, limit } = case.work;
            let (throughput, unit) = match limit {
                Limit::Copy => (Throughput::BytesDecimal(bytes), ""),
                Limit::Bf16 | Limit::F32 => (Throughput::Elements(operations), ", elem = FLOP"),
            };
            group.throughput(throughput);
            group.bench_function(format!("{}{what}{unit}", case.shape), |bencher| {
                bencher.iter_custom(|iterations| {
                    let (mut left, mut seconds) = (iterations as usize, 0.0);
                    while left > 0 && outcome.is_ok() {
                        let count = left.min(copies);
                        match round(count) {
                            Ok(taken) => seconds += taken,
                            Err(error) => outcome = Err(error),
                        }
                        left -= count;
                    }
                    samples.push(seconds / iterations as f64);
                    Duration::from_secs_f64(seconds.max(1e-9))
                });
            });
            group.finish();
            outcome?;
            // What came before the last samples warmed up.
            Ok(Timing::of(samples.split_off(samples.len().saturating_sub(SAMPLES))))
        };

        let timing = measure("", case.run)?;
        let again = measure(" again", case.run)?.seconds / timing.seconds - 1.0;
        let noise = again.abs().max(timing.spread);
        let mut others = Vec::new();
        for (baseline, run) in case.baselines {
            others.push((baseline.to_string(), measure(&format!(" {baseline}"), *run)?.seconds));
        }
        others.extend(self.peer.get(name).map(|&seconds| ("PyTorch".into(), seconds)));
        let ratios = others.into_iter().map(|(baseline, seconds)| {
            let ratio = seconds / timing.seconds;
            Ratio { baseline, seconds, ratio, ambiguous: (ratio - 1.0).abs() <= noise }
        });
        let needed = match case.work.limit {
            Limit::Copy => case.work.bytes as f64 / rates.copy_bytes_per_second,
            Limit::Bf16 => case.work.operations as f64 / rates.bf16_operations_per_second,
            Limit::F32 => case.work.operations as f64 / rates.f32_operations_per_second,
        };
        let line = Line {
            case: name.to_string(),
            work: case.work,
            checked,
            timing,
            again,
            percent_of_limit: 100.0 * needed / timing.seconds,
            ratios: ratios.collect(),
            command: rerun(name),
        };
        println!("{}\n{:<44} {}", line.text(), "", line.command);
        self.lines.push(line);
        Ok(())
    }

    /// A Markdown table of what was timed.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| case | ms | spread | again | GB/s | TFLOP/s | of the limit | error, of its budget | against |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for line in &self.lines {
            let ratios: Vec<String> = line
                .ratios
                .iter()
                .map(|r| {
                    format!("{} {:.2}x{}", r.baseline, r.ratio, if r.ambiguous { " AMBIGUOUS" } else { "" })
                })
                .collect();
            let _ = writeln!(
                text,
                "| {} | {:.4} | {:.1} % | {:+.1} % | {:.1} | {:.2} | {:.1} % {:?} | {:.1e} of {:.1e} | {} |",
                line.case,
                1e3 * line.timing.seconds,
                100.0 * line.timing.spread,
                100.0 * line.again,
                1e-9 * line.bytes_per_second(),
                1e-12 * line.operations_per_second(),
                line.percent_of_limit,
                line.work.limit,
                line.checked.error,
                line.checked.budget,
                ratios.join(", "),
            );
        }
        text
    }
}

/// The command that times one case again.
fn rerun(case: &str) -> String {
    match std::env::var_os("CARGO") {
        Some(_) => format!("cargo bench --bench gpu -- {case}"),
        None => format!("{} --bench {case}", std::env::args().next().unwrap_or_default()),
    }
}

/// An error as the cases take it.
pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Numbers in [-1, 1), from a hash of their place: as random as a timing needs, and fast in any number.
pub fn values(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    let value = |i: usize| {
        let mut x = (i as u64 + 1).wrapping_add(seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let numbers: Vec<f32> = (0..rows * columns).into_par_iter().map(value).collect();
    Array2::from_shape_vec((rows, columns), numbers).expect("as many as asked for")
}

/// Inputs of a layer (tokens x k), with a few strong channels as activations have.
pub fn activations(seed: u64, tokens: usize, k: usize) -> Array2<f32> {
    let mut x = values(seed, tokens, k);
    x.columns_mut().into_iter().step_by(61).for_each(|mut column| column *= 8.0);
    x
}

/// A matrix on the device.
pub fn upload<D: Device>(device: &D, a: &Array2<f32>) -> Result<Buffer<f32, D>, String> {
    Buffer::from_host(device, a.as_slice().expect("row-major")).map_err(text)
}

/// What is on the device.
pub fn download<T: Plain, D: Device>(device: &D, buffer: &Buffer<T, D>) -> Result<Vec<T>, String> {
    buffer.to_host(device).map_err(|error: DeviceError| text(error))
}
