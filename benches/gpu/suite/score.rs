//! The score of every block of a layer.

use duogpt::cuda::device::Buffer;
use duogpt::cuda::score::{BlockColumns, score};
use duogpt::reference;

use super::{Case, Checked, Limit, Machine, Suite, Work, download, text, upload, values};

/// The blocks of a layer, from the left.
pub fn blocks(n: usize, k: usize) -> impl Iterator<Item = BlockColumns> {
    (0..k).step_by(super::BLOCK).map(move |first| BlockColumns {
        n,
        k,
        first,
        width: super::BLOCK.min(k - first),
    })
}

struct Input<D: Machine> {
    w: Buffer<f32, D>,
    scale: Buffer<f32, D>,
    s: Buffer<f32, D>,
}

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    for shape in suite.shapes.clone() {
        let (n, k) = (shape.n, shape.k);
        let host = |seed| (values(seed, n, k), values(seed + 500, 1, k));
        let input = |device: &D, seed| {
            let (w, scale) = host(seed);
            let s = Buffer::new(device, n * k).map_err(text)?;
            Ok(Input { w: upload(device, &w)?, scale: upload(device, &scale)?, s })
        };
        let run = |device: &D, input: &mut Input<D>| {
            blocks(n, k)
                .try_for_each(|block| score(device, block, &input.w, &input.scale, &input.s))
                .map_err(text)
        };
        let check = |device: &D| {
            let (w, scale) = host(0);
            let mut on_device = input(device, 0)?;
            run(device, &mut on_device)?;
            let expected = reference::score::score(w.view(), scale.row(0));
            let expected = expected.as_slice().expect("row-major");
            Checked::same("score", &download(device, &on_device.s)?, expected)
        };
        suite.case(Case {
            kernel: "score",
            shape: shape.id(),
            work: Work { bytes: 8 * (n * k) as u64, operations: 2 * (n * k) as u64, limit: Limit::Copy },
            input: &input,
            run: &run,
            spoils_input: false,
            check: &check,
            baselines: &[],
        });
    }
}
