//! A GPU with a clock, and the rates that bound what runs on it.

use duogpt::cuda::device::{Buffer, Operand};
use duogpt::cuda::{Device, Gpu};
use half::bf16;

use crate::suite::{Clock, Rates, text, values};

impl Clock for Gpu {
    fn seconds(&self, work: &mut dyn FnMut() -> Result<(), String>) -> Result<f64, String> {
        let begin = self.mark().map_err(text)?;
        work()?;
        let end = self.mark().map_err(text)?;
        begin.seconds_until(&end).map_err(text)
    }

    fn cache_bytes(&self) -> usize {
        Gpu::cache_bytes(self)
    }

    fn library_product(&self, (n, k): (usize, usize), w: u64, x: u64, y: u64) -> Result<(), String> {
        let operand = |address, leading| Operand { address, leading, transposed: false };
        let w = operand(w, n.next_multiple_of(8));
        self.product((n, 1, k), w, operand(x, k), operand(y, n), true).map_err(text)
    }
}

/// The median of a few runs, after one to warm up.
fn median(gpu: &Gpu, mut work: impl FnMut() -> Result<(), String>) -> Result<f64, String> {
    work()?;
    let samples = (0..9).map(|_| gpu.seconds(&mut work)).collect::<Result<Vec<f64>, _>>()?;
    Ok(crate::suite::Timing::of(samples).seconds)
}

/// Measures the rates of this device: of a copy of so many bytes, and of a product of square matrices of this side.
pub fn rates(gpu: &Gpu, bytes: usize, side: usize) -> Result<Rates, String> {
    let copy = {
        let from = gpu.alloc(bytes).map_err(text)?;
        let mut to = gpu.alloc(bytes).map_err(text)?;
        median(gpu, || gpu.copy(&from, &mut to).map_err(text))?
    };

    let numbers = values(1, side, side);
    let singles: Vec<f32> = numbers.iter().copied().collect();
    let halves: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
    let singles = Buffer::from_host(gpu, &singles).map_err(text)?;
    let halves = Buffer::from_host(gpu, &halves).map_err(text)?;
    let product = Buffer::<f32, Gpu>::new(gpu, side * side).map_err(text)?;
    let multiply = |a: u64, bf16: bool| {
        let operand = |address, transposed| Operand { address, leading: side, transposed };
        let c = operand(product.address(gpu, 0), false);
        gpu.product((side, side, side), operand(a, true), operand(a, false), c, bf16).map_err(text)
    };
    let bf16 = median(gpu, || multiply(halves.address(gpu, 0), true))?;
    let f32 = median(gpu, || multiply(singles.address(gpu, 0), false))?;
    let operations = 2.0 * (side as f64).powi(3);
    Ok(Rates {
        copy_bytes_per_second: 2.0 * bytes as f64 / copy,
        bf16_operations_per_second: operations / bf16,
        f32_operations_per_second: operations / f32,
    })
}
