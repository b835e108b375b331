//! One test body, every backend: the reference in f64 and in f32, CUDA on the emulator, and CUDA on a device. Where there is
//! no device its tests are skipped by name; with `DUOGPT_REQUIRE_GPU` set (`make gpu`) they fail.

use std::sync::LazyLock;

use duogpt::cuda::{Cuda, Device, DeviceError, Gpu};
use libtest_mimic::{Failed, Trial};

use crate::emulator::Emulator;

/// The device of this machine.
static CUDA: LazyLock<Result<Cuda<Gpu>, DeviceError>> = LazyLock::new(|| {
    let gpu = Gpu::new(0);
    match &gpu {
        Ok(gpu) => eprintln!("{}", gpu.describe()),
        Err(error) => eprintln!("{error}"),
    }
    gpu.map(|device| Cuda { device })
});

/// The device, or why the test fails.
pub fn on_device<R>(run: impl FnOnce(&Cuda<Gpu>) -> Result<R, String>) -> Result<R, Failed> {
    Ok(run(CUDA.as_ref().map_err(ToString::to_string)?)?)
}

/// An emulated device, which must be left without allocations. The seed of the order of its threads is the name's.
pub fn on_emulator<R>(
    name: &str,
    run: impl FnOnce(&Cuda<Emulator>) -> Result<R, String>,
) -> Result<R, Failed> {
    let seed = name.bytes().fold(1, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let cuda = Cuda { device: Emulator::new(seed) };
    let outcome = run(&cuda)?;
    match cuda.device.in_use() {
        (0, 0) => Ok(outcome),
        left => Err(format!("device memory left behind: {left:?}").into()),
    }
}

/// A test that needs a device.
pub fn device_trial(name: &str, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    let skip = CUDA.is_err() && std::env::var_os("DUOGPT_REQUIRE_GPU").is_none();
    Trial::test(format!("{name}::cuda"), run).with_ignored_flag(skip)
}

/// The trials `<name>::cpu_f64`, `::cpu_f32`, `::emulated` and `::cuda`: each calls `$body::<T, _>(&backend, &case)`, which
/// returns `Result<(), String>`.
macro_rules! on_every_backend {
    ($name:expr, $case:expr, $body:ident) => {{
        let name: String = $name.to_string();
        let case = std::sync::Arc::new($case);
        let trial = |backend: &str, run: Box<dyn FnOnce() -> Result<(), libtest_mimic::Failed> + Send>| {
            libtest_mimic::Trial::test(format!("{name}::{backend}"), run)
        };
        let [of_f64, of_f32, emulated, of_device] = std::array::from_fn(|_| case.clone());
        let cpu = duogpt::backend::Cpu;
        let seed = name.clone();
        vec![
            trial("cpu_f64", Box::new(move || Ok($body::<f64, _>(&cpu, &of_f64)?))),
            trial("cpu_f32", Box::new(move || Ok($body::<f32, _>(&cpu, &of_f32)?))),
            trial(
                "emulated",
                Box::new(move || {
                    crate::backends::on_emulator(&seed, |cuda| $body::<f32, _>(cuda, &emulated))
                }),
            ),
            crate::backends::device_trial(&name, move || {
                crate::backends::on_device(|cuda| $body::<f32, _>(cuda, &of_device))
            }),
        ]
    }};
}
pub(crate) use on_every_backend;
