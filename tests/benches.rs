//! The cases of the GPU benches, each run once at small shapes on the emulator: what they check, holds, and what they time,
//! runs.

mod emulator;
#[path = "../benches/gpu/suite/mod.rs"]
mod suite;

use std::cell::Cell;
use std::collections::BTreeSet;

use approx::abs_diff_eq;
use criterion::Criterion;
use emulator::Emulator;
use suite::{Case, Checked, Clock, Limit, Pace, Peer, Rates, Shape, Suite, Timing, Work};

impl Clock for Emulator {
    fn seconds(&self, work: &mut dyn FnMut() -> Result<(), String>) -> Result<f64, String> {
        let begin = std::time::Instant::now();
        work()?;
        Ok(begin.elapsed().as_secs_f64())
    }

    fn cache_bytes(&self) -> usize {
        1 << 10
    }
}

/// With a tail behind the first block, and one below the block.
fn shapes() -> Vec<Shape> {
    vec![Shape { name: "tail", n: 9, k: 160 }, Shape { name: "small", n: 3, k: 96 }]
}

#[test]
fn every_case_runs_and_holds() {
    let device = Emulator::new(1);
    let mut suite = Suite::new(&device, shapes(), 20, Pace::Once);
    suite.layers = 2;
    suite::all(&mut suite);
    assert_eq!(suite.failed, Vec::<String>::new());
    let kernels: BTreeSet<&str> = suite.ran.iter().map(|name| name.split('/').next().unwrap()).collect();
    let expected = [
        "activation",
        "bitmap",
        "factor",
        "gemv",
        "index",
        "layer",
        "lazy-update",
        "mask",
        "panel",
        "score",
        "select",
        "skip",
        "statistics",
        "token",
    ];
    assert_eq!(kernels.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(device.in_use(), (0, 0));
}

#[test]
fn a_wrong_kernel_is_not_timed() {
    let device = Emulator::with_fault(1, "score.cu", "s[at] = square * scale[column];", "s[at] = square;");
    let mut suite = Suite::new(&device, shapes(), 20, Pace::Once).only(vec!["score/".into()]);
    suite::all(&mut suite);
    assert_eq!((suite.ran.len(), suite.failed.len()), (0, 2), "{:?}", suite.failed);
    assert!(suite.failed[0].starts_with("score/tail-9x160: score: at 0 "), "{:?}", suite.failed);
}

/// A clock that goes on by what work adds to it, in seconds.
#[derive(Default)]
struct Pretended(Cell<f64>);

impl Clock for Pretended {
    fn seconds(&self, work: &mut dyn FnMut() -> Result<(), String>) -> Result<f64, String> {
        self.0.set(0.0);
        work()?;
        Ok(self.0.get())
    }

    fn cache_bytes(&self) -> usize {
        10_000_000
    }
}

/// A case that pretends to take a millisecond.
fn idle(suite: &mut Suite<Pretended>, error: f64) {
    let run = |clock: &Pretended, seconds: &mut f64| {
        clock.0.set(clock.0.get() + *seconds);
        Ok(())
    };
    let slow = |clock: &Pretended, seconds: &mut f64| run(clock, &mut (3.0 * *seconds));
    suite.case(Case {
        kernel: "idle",
        shape: "any".into(),
        work: Work { bytes: 1_000_000, operations: 2_000_000, limit: Limit::F32 },
        input: &|_: &Pretended, _| Ok(1e-3),
        run: &run,
        spoils_input: true,
        check: &|_: &Pretended| Ok(Checked { error, budget: 1e-6 }),
        baselines: &[("slow", &slow)],
    });
}

#[test]
fn a_line_says_what_was_measured() {
    let directory = tempfile::tempdir().unwrap();
    let criterion = || Criterion::default().without_plots().output_directory(directory.path());
    let rates = Rates {
        copy_bytes_per_second: 1e12,
        bf16_operations_per_second: 1e13,
        f32_operations_per_second: 4e9,
    };
    let clock = Pretended::default();
    let suite = || Suite::new(&clock, shapes(), 20, Pace::Timed(Box::new(criterion()), rates));
    let mut timed = suite().against(Peer::from([("idle/any".into(), 0.005), ("other/any".into(), 1.0)]));
    idle(&mut timed, 1e-7);
    let [line] = &timed.lines[..] else { panic!("{:?}", timed.failed) };
    let near = |a: f64, b: f64| abs_diff_eq!(a / b, 1.0, epsilon = 1e-9);
    assert!(
        near(line.timing.seconds, 1e-3) && line.timing.spread < 1e-9 && line.again.abs() < 1e-9,
        "{line:?}"
    );
    assert!(near(line.bytes_per_second(), 1e9) && near(line.operations_per_second(), 2e9), "{line:?}");
    assert!(near(line.percent_of_limit, 50.0), "{line:?}");
    let ratios: Vec<(&str, f64)> = line.ratios.iter().map(|r| (r.baseline.as_str(), r.ratio)).collect();
    assert_eq!((ratios[0].0, ratios[1].0), ("slow", "PyTorch"));
    assert!(near(ratios[0].1, 3.0) && near(ratios[1].1, 5.0), "{ratios:?}");
    assert!(line.command.ends_with("idle/any"), "{}", line.command);
    assert!(timed.table().contains("| idle/any | 1.0000 |"), "{}", timed.table());

    let mut beyond = suite();
    idle(&mut beyond, 1e-5);
    assert_eq!((beyond.lines.len(), beyond.failed.len()), (0, 1));
}

#[test]
fn a_timing_is_the_median_and_half_the_distance_of_the_quartiles() {
    let timing = Timing::of(vec![5.0, 1.0, 2.0, 4.0, 3.0]);
    assert_eq!((timing.seconds, timing.spread), (3.0, 1.0 / 3.0));
    assert_eq!(Timing::of(vec![7.0]).seconds, 7.0);
}
