//! The checks of the kernels on a CUDA device. Where there is none, every one is skipped by name; with
//! `DUOGPT_REQUIRE_GPU` set (`make gpu`) that is a failure. With `DUOGPT_GPU_SIZES=small` shapes are as small as a device made of
//! the CPU needs them (tests/fake_cuda).

#[allow(dead_code, reason = "whole layers of many kinds are for tests/cross_backend.rs")]
mod checks;

use std::fmt::Debug;

use checks::spmspv::{
    self, SPARSITIES, empty_products_agree, product_cases, products_agree, selections_agree,
    selections_of_what_is_no_number,
};
use checks::{
    Case, activations_agree, activations_f32, layer_agrees, masks_agree, panels_agree, run, scores_agree,
    small_sums_are_kept, statistics_agree, statistics_are_accurate,
};
use duogpt::cuda::device::Buffer;
use duogpt::cuda::spmspv::Element;
use duogpt::cuda::statistics::Inputs;
use duogpt::cuda::{Cuda, DeviceError, Gpu};
use duogpt::reference::PruneConfig;
use half::{bf16, f16};
use libtest_mimic::{Arguments, Failed, Trial};

const SIZES: [usize; 14] = [1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 688, 4096, 11008];

fn small() -> bool {
    std::env::var_os("DUOGPT_GPU_SIZES").is_some_and(|sizes| sizes == "small")
}

/// The first `most` of [`SIZES`].
fn sizes(most: usize) -> &'static [usize] {
    &SIZES[..if small() { 6 } else { most }]
}

fn main() {
    // One at a time: two of them look at the memory of the whole process.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let gpu = Gpu::new(0);
    match &gpu {
        Ok(gpu) => eprintln!("{}", duogpt::cuda::Device::describe(gpu)),
        Err(error) => eprintln!("{error}"),
    }
    let skip = gpu.is_err() && std::env::var_os("DUOGPT_REQUIRE_GPU").is_none();
    // Lives as long as the process: trials must be 'static.
    let cuda: &'static Result<Cuda<Gpu>, _> = Box::leak(Box::new(gpu.map(|device| Cuda { device })));
    let trial = |name: &str, check: fn(&Cuda<Gpu>) -> Result<(), String>| {
        let check = move || -> Result<(), Failed> {
            let cuda = cuda.as_ref().map_err(ToString::to_string)?;
            check(cuda).map_err(Failed::from)
        };
        Trial::test(format!("gpu::{name}"), check).with_ignored_flag(skip)
    };
    let trials = vec![
        trial("activation_f32", |cuda| activations_f32(&cuda.device, sizes(14))),
        trial("activation_bf16", |cuda| {
            activations_agree::<bf16, _>(&cuda.device, bf16::from_f32, bf16::to_f32, sizes(14))
        }),
        trial("activation_f16", |cuda| {
            activations_agree::<f16, _>(&cuda.device, f16::from_f32, f16::to_f32, sizes(14))
        }),
        trial("select_f32", |cuda| select::<f32>(&cuda.device)),
        trial("select_bf16", |cuda| select::<bf16>(&cuda.device)),
        trial("select_f16", |cuda| select::<f16>(&cuda.device)),
        trial("products_f32", |cuda| products::<f32>(&cuda.device)),
        trial("products_bf16", |cuda| products::<bf16>(&cuda.device)),
        trial("products_f16", |cuda| products::<f16>(&cuda.device)),
        trial("score", |cuda| scores_agree(&cuda.device, sizes(12))),
        trial("mask", |cuda| masks_agree(&cuda.device, sizes(12))),
        trial("panel", |cuda| panels_agree(&cuda.device, sizes(10))),
        trial("statistics", |cuda| statistics_agree(&cuda.device, sizes(12))),
        trial("statistics_of_random_numbers", |cuda| {
            let shapes = [(1, 33), (100, 129), (2048, 300), (20000, 1000)];
            statistics_are_accurate(&cuda.device, &shapes[..if small() { 2 } else { 4 }])
        }),
        trial("small_sums_are_kept", |cuda| small_sums_are_kept(&cuda.device)),
        trial("a_wide_layer", |cuda| layer_agrees(cuda, &wide())),
        trial("the_same_bits_again", the_same_bits_again),
        trial("a_hundred_layers_leave_no_memory_behind", no_memory_left_behind),
        trial("without_room_the_size_is_said", without_room),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn select<T: Element + PartialEq + Debug>(gpu: &Gpu) -> Result<(), String> {
    selections_of_what_is_no_number::<T, _>(gpu)?;
    selections_agree::<T, _>(gpu, &[sizes(14), &[14336, 32768]].concat())
}

/// All small sizes, and every shape of LLaMA-2-7B and 13B and LLaMA-3-8B, q, k, v and gate, up as one, with sparsities in turn.
fn products<T: Element + Debug>(gpu: &Gpu) -> Result<(), String> {
    empty_products_agree::<T, _>(gpu)?;
    products_agree::<T, _>(gpu, &product_cases(sizes(12)))?;
    let shapes = LLAMA_SHAPES.iter().enumerate();
    let cases: Vec<_> = shapes
        .map(|(i, &(n, k))| spmspv::Case {
            n: n / if small() { 64 } else { 1 },
            k: k / if small() { 64 } else { 1 },
            weight_sparsity: SPARSITIES[(i + 2) % 5],
            sparsity: SPARSITIES[(2 * i + 2) % 5],
        })
        .collect();
    products_agree::<T, _>(gpu, &cases)
}

/// n x k of the linears of LLaMA-2-7B, LLaMA-2-13B and LLaMA-3-8B: q, k, v together; o; gate, up together; down.
const LLAMA_SHAPES: [(usize, usize); 12] = [
    (12288, 4096),
    (4096, 4096),
    (22016, 4096),
    (4096, 11008),
    (15360, 5120),
    (5120, 5120),
    (27648, 5120),
    (5120, 13824),
    (6144, 4096),
    (1024, 4096),
    (28672, 4096),
    (4096, 14336),
];

fn wide() -> Case {
    let (n, k) = if small() { (24, 160) } else { (512, 2048) };
    Case { n, k, config: PruneConfig::default(), residual: true, dead: &[7], inputs: Inputs::Bf16 }
}

fn the_same_bits_again(cuda: &Cuda<Gpu>) -> Result<(), String> {
    let case = wide();
    let once = || run::<f32, _>(cuda, &case, None, None).map_err(|error| error.to_string());
    let (a, b) = (once()?, once()?);
    if a == b { Ok(()) } else { Err("two runs differ".into()) }
}

fn no_memory_left_behind(cuda: &Cuda<Gpu>) -> Result<(), String> {
    let (n, k) = if small() { (8, 32) } else { (256, 256) };
    let case = Case { n, k, config: PruneConfig::default(), residual: true, dead: &[], inputs: Inputs::Bf16 };
    let prune = || run::<f32, _>(cuda, &case, None, None).map(drop).map_err(|error| error.to_string());
    let memory = || cuda.device.memory().map_err(|error| error.to_string());
    // What is loaded and kept for later at the first use is no leak.
    (0..3).try_for_each(|_| prune())?;
    let (free_before, used_before) = memory()?;
    (0..100).try_for_each(|_| prune())?;
    let (free, used) = memory()?;
    if used == used_before && free >= free_before {
        return Ok(());
    }
    Err(format!("{free} bytes free and {used} used after 100 layers, {free_before} and {used_before} before"))
}

/// And the device goes on working.
fn without_room(cuda: &Cuda<Gpu>) -> Result<(), String> {
    const BYTES: usize = 1 << 46;
    match Buffer::<u8, _>::new(&cuda.device, BYTES).err() {
        Some(error @ DeviceError::OutOfMemory { bytes: BYTES, .. })
            if error.to_string().contains("MiB are free") => {}
        Some(error) => return Err(error.to_string()),
        None => return Err("64 TiB were allocated".into()),
    }
    scores_agree(&cuda.device, &[33])
}
