//! A device that fails: wherever it does, pruning ends with an error that names what failed and what to do, and no device
//! memory is left behind.

mod emulator;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use duogpt::backend::{Backend, BackendError};
use duogpt::cuda::device::{Launch, Operand};
use duogpt::cuda::{Cuda, Device, DeviceError};
use duogpt::reference::{PruneConfig, Pruned, Sparsity, Threshold};
use emulator::{Emulator, Memory};
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An emulated device whose call number `fails_at` of one kind fails, counted from 0.
struct Failing {
    device: Emulator,
    kind: Kind,
    fails_at: usize,
    calls: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Finds no room.
    Allocation,
    /// A kernel or a library call.
    Work,
    /// An upload or a download.
    Copy,
}

impl Failing {
    fn new(kind: Kind, fails_at: usize) -> Self {
        Failing { device: Emulator::new(1), kind, fails_at, calls: AtomicUsize::new(0) }
    }

    fn is_the_one(&self, kind: Kind) -> bool {
        kind == self.kind && self.calls.fetch_add(1, Ordering::Relaxed) == self.fails_at
    }

    fn failed(&self, kind: Kind, what: &str) -> Result<(), DeviceError> {
        match self.is_the_one(kind) {
            true => Err(DeviceError::Failed { what: what.into(), detail: "injected".into() }),
            false => Ok(()),
        }
    }
}

impl Device for Failing {
    type Memory = Memory;

    fn describe(&self) -> String {
        "a failing device".into()
    }

    fn alloc(&self, bytes: usize) -> Result<Memory, DeviceError> {
        match self.is_the_one(Kind::Allocation) {
            true => Err(DeviceError::OutOfMemory { bytes, advice: "take a larger one".into() }),
            false => self.device.alloc(bytes),
        }
    }

    fn address(&self, memory: &Memory) -> u64 {
        self.device.address(memory)
    }

    fn upload(&self, from: &[u8], to: &mut Memory) -> Result<(), DeviceError> {
        self.failed(Kind::Copy, "upload")?;
        self.device.upload(from, to)
    }

    fn zero(&self, memory: &mut Memory) -> Result<(), DeviceError> {
        self.failed(Kind::Copy, "zero")?;
        self.device.zero(memory)
    }

    fn download(&self, from: &Memory, to: &mut [u8]) -> Result<(), DeviceError> {
        self.failed(Kind::Copy, "download")?;
        self.device.download(from, to)
    }

    fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        self.failed(Kind::Work, launch.kernel)?;
        self.device.launch(launch)
    }

    fn gemm(
        &self,
        shape: (usize, usize, usize),
        alpha: f32,
        a: Operand,
        b: Operand,
        beta: f32,
        c: Operand,
    ) -> Result<(), DeviceError> {
        self.failed(Kind::Work, "gemm")?;
        self.device.gemm(shape, alpha, a, b, beta, c)
    }

    fn potrf(&self, k: usize, a: Operand) -> Result<usize, DeviceError> {
        self.failed(Kind::Work, "potrf")?;
        self.device.potrf(k, a)
    }

    fn trsm(&self, k: usize, n: usize, a: Operand, b: Operand) -> Result<(), DeviceError> {
        self.failed(Kind::Work, "trsm")?;
        self.device.trsm(k, n, a, b)
    }
}

const ROWS: usize = 3;
const CHANNELS: usize = 20;

fn random(seed: u64, rows: usize) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    Array2::from_shape_simple_fn((rows, CHANNELS), || random.random_range(-1.0f32..1.0))
}

/// Every kernel of the path, and two blocks of columns.
fn configs() -> [PruneConfig; 2] {
    let exact = PruneConfig { block_size: 16, threshold: Threshold::Exact, ..PruneConfig::default() };
    let groups = Sparsity::NofM { n: 2, m: 4 };
    [exact, PruneConfig { weight_sparsity: groups, block_size: 12, ..PruneConfig::default() }]
}

fn prune<D: Device>(cuda: &Cuda<D>, config: &PruneConfig) -> Result<Pruned<f32>, BackendError> {
    let mut statistics = cuda.statistics(CHANNELS, true);
    for seed in [1, 2] {
        cuda.update(&mut statistics, random(seed, 30).view(), random(seed + 10, 30).view());
    }
    let prepared = cuda.prepare(&statistics, config, None)?;
    cuda.prune(&prepared, random(20, ROWS).view(), None)
}

/// Lets every call of a kind fail in turn; returns what the errors named.
fn each_fails(kind: Kind, check: impl Fn(&DeviceError) -> String) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for config in configs() {
        for fails_at in 0.. {
            let cuda = Cuda { device: Failing::new(kind, fails_at) };
            let outcome = prune(&cuda, &config);
            assert_eq!(cuda.device.device.in_use(), (0, 0), "{kind:?} {fails_at}: memory is left behind");
            match outcome {
                // There are no more calls of this kind.
                Ok(_) => {
                    assert!(
                        cuda.device.calls.load(Ordering::Relaxed) <= fails_at,
                        "a failure was not noticed"
                    );
                    break;
                }
                Err(BackendError::Device(error)) => named.insert(check(&error)),
                Err(error) => panic!("{kind:?} {fails_at} ended with: {error}"),
            };
        }
    }
    named
}

#[test]
fn without_room_the_size_is_said() {
    let sizes = each_fails(Kind::Allocation, |error| {
        let DeviceError::OutOfMemory { bytes, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.contains(&format!("no room for {bytes} more bytes")), "{text}");
        assert!(text.contains("take a larger one"), "{text}");
        bytes.to_string()
    });
    // H, W, the mask: k x k and n x k numbers, and n x k bytes.
    for bytes in [4 * CHANNELS * CHANNELS, 4 * ROWS * CHANNELS, ROWS * CHANNELS] {
        assert!(sizes.contains(&bytes.to_string()), "no allocation of {bytes} bytes failed: {sizes:?}");
    }
}

#[test]
fn a_failed_launch_is_named_with_what_to_do() {
    let named = each_fails(Kind::Work, |error| {
        let DeviceError::Failed { what, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.starts_with(&format!("{what} failed on the device: injected")), "{text}");
        assert!(text.contains("CUDA_LAUNCH_BLOCKING=1") && text.contains("--backend cpu"), "{text}");
        what.clone()
    });
    for what in [
        "split_f32",
        "hessian_f32",
        "drift_f32",
        "gemm",
        "potrf",
        "trsm",
        "score",
        "mask_exact",
        "panel_32",
        "strictly_upper",
        "permute_both",
    ] {
        assert!(named.contains(what), "{what} never failed: {named:?}");
    }
}

#[test]
fn a_failed_copy_is_an_error() {
    let named = each_fails(Kind::Copy, |error| {
        let DeviceError::Failed { what, .. } = error else { panic!("{error}") };
        what.clone()
    });
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["download", "upload", "zero"]);
}

#[test]
fn a_hundred_layers_leave_no_memory_behind() {
    let cuda = Cuda { device: Emulator::new(2) };
    for i in 0..100 {
        prune(&cuda, &configs()[i % 2]).unwrap();
        assert_eq!(cuda.device.in_use(), (0, 0), "after layer {i}");
    }
}
