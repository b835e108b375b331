//! The mask of every block of a layer, half of it pruned, by either threshold.

use duogpt::cuda::device::Buffer;
use duogpt::cuda::mask::mask;
use duogpt::reference::Threshold;
use ndarray::s;

use super::score::blocks;
use super::{Case, Checked, Limit, Machine, Suite, Work, download, text, upload, values};

struct Input<D: Machine> {
    s: Buffer<f32, D>,
    mask: Buffer<u8, D>,
}

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    for shape in suite.shapes.clone() {
        for (name, threshold) in [("inclusive", Threshold::Inclusive), ("exact", Threshold::Exact)] {
            let (n, k) = (shape.n, shape.k);
            let input = |device: &D, seed| {
                let mask = Buffer::new(device, n * k).map_err(text)?;
                Ok(Input { s: upload(device, &values(seed, n, k))?, mask })
            };
            let run = |device: &D, input: &mut Input<D>| {
                blocks(n, k)
                    .try_for_each(|block| mask(device, block, &input.s, threshold, 0.5, &input.mask))
                    .map_err(text)
            };
            let check = |device: &D| {
                let scores = values(0, n, k);
                let mut on_device = input(device, 0)?;
                run(device, &mut on_device)?;
                let mut expected = ndarray::Array2::default((n, k));
                for block in blocks(n, k) {
                    let columns = s![.., block.first..block.first + block.width];
                    let of_block = threshold.select(scores.slice(columns), 0.5).mapv(u8::from);
                    expected.slice_mut(columns).assign(&of_block);
                }
                let expected = expected.as_slice().expect("row-major");
                Checked::same("mask", &download(device, &on_device.mask)?, expected)
            };
            suite.case(Case {
                kernel: "mask",
                shape: format!("{}-{name}", shape.id()),
                work: Work { bytes: 5 * (n * k) as u64, operations: 0, limit: Limit::Copy },
                input: &input,
                run: &run,
                spoils_input: false,
                check: &check,
                baselines: &[],
            });
        }
    }
}
