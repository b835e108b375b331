//! The column loop of every block of a layer, and the lazy updates behind them, each alone.

use duogpt::cuda::device::Buffer;
use duogpt::cuda::panel::{Factors, Panel, PanelLayer, PanelVersion, lazy_update, panel};
use duogpt::cuda::score::BlockColumns;
use duogpt::linalg::{Scalar, gemm};
use duogpt::reference::score::{Coefficients, Correction};
use duogpt::reference::{LazyUpdate, Prepared, PruneConfig};
use ndarray::{Array1, Array2, ArrayView2, s};

use super::score::blocks;
use super::{BLOCK, Case, Checked, Limit, Machine, Shape, Suite, Work, download, text, upload, values};

const ALPHA: f32 = 0.25;

/// A layer in the middle of being pruned.
struct Input<D: Machine> {
    w: Buffer<f32, D>,
    mask: Buffer<u8, D>,
    s: Buffer<f32, D>,
    lt: Buffer<f32, D>,
    d: Buffer<f32, D>,
    scale: Buffer<f32, D>,
    /// E and W before pruning, of any block but a shorter last one.
    panel: Panel<D>,
}

impl<D: Machine> Input<D> {
    fn factors(&self) -> Factors<'_, D> {
        Factors { lt: &self.lt, d: Some(&self.d), alpha: ALPHA, scale: &self.scale }
    }

    fn layer(&self) -> PanelLayer<'_, D> {
        PanelLayer { w: &self.w, mask: &self.mask, s: &self.s }
    }
}

/// Weights; L^T with a diagonal near 1; D; a mask of half the weights.
struct Host {
    w: Array2<f32>,
    lt: Array2<f32>,
    d: Array2<f32>,
    mask: Array2<bool>,
}

impl Host {
    fn new(seed: u64, n: usize, k: usize) -> Self {
        let mut lt = values(seed + 100, k, k) * 0.1;
        let mut d = values(seed + 200, k, k) * 0.1;
        for i in 0..k {
            lt.slice_mut(s![i, ..i]).fill(0.0);
            d.slice_mut(s![i, ..=i]).fill(0.0);
            lt[(i, i)] += 1.0;
        }
        Host { w: values(seed, n, k), lt, d, mask: values(seed + 300, n, k).mapv(|x| x < 0.0) }
    }
}

fn input<D: Machine>(device: &D, seed: u64, n: usize, k: usize) -> Result<Input<D>, String> {
    let host = Host::new(seed, n, k);
    let half = |seed| upload(device, &values(seed, n, BLOCK.min(k)));
    Ok(Input {
        w: upload(device, &host.w)?,
        mask: Buffer::from_host(device, host.mask.mapv(u8::from).as_slice().expect("row-major"))
            .map_err(text)?,
        s: Buffer::new(device, n * k).map_err(text)?,
        lt: upload(device, &host.lt)?,
        d: upload(device, &host.d)?,
        scale: upload(device, &values(seed + 400, 1, k))?,
        panel: Panel { e: half(seed + 401)?, before: half(seed + 402)? },
    })
}

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    for shape in suite.shapes.clone() {
        panels(suite, &shape);
        lazy_updates(suite, &shape);
    }
}

fn panels<D: Machine>(suite: &mut Suite<D>, shape: &Shape) {
    let (n, k) = (shape.n, shape.k);
    let all = |device: &D, input: &mut Input<D>, version| {
        blocks(n, k)
            .try_for_each(|block| {
                panel(device, block, &input.layer(), &input.factors(), None, version).map(drop)
            })
            .map_err(text)
    };
    let run = |device: &D, input: &mut Input<D>| all(device, input, PanelVersion::WarpPerRow);
    let thread_per_row = |device: &D, input: &mut Input<D>| all(device, input, PanelVersion::Any);
    let check = |device: &D| {
        let host = Host::new(0, n, k);
        let mut on_device = input(device, 0, n, k)?;
        run(device, &mut on_device)?;
        let found = Array2::from_shape_vec((n, k), download(device, &on_device.w)?).map_err(text)?;
        // Blocks do not touch each other here, so each is a layer of its own, and rounds where the reference rounds.
        for block in blocks(n, k) {
            let range = block.first..block.first + block.width;
            let square = s![range.clone(), range.clone()];
            let columns = s![.., range.clone()];
            let nothing = Array1::zeros(block.width);
            let config = PruneConfig {
                block_size: block.width,
                alpha: duogpt::reference::Alpha::both(ALPHA.into()),
                ..PruneConfig::default()
            };
            let prepared = Prepared {
                config,
                order: (0..block.width).collect(),
                dead: vec![false; block.width],
                lt: host.lt.slice(square).to_owned(),
                correction: Some(Correction {
                    d: host.d.slice(square).to_owned(),
                    coefficients: Coefficients { a: nothing.clone(), b: nothing.clone(), c: nothing },
                }),
                score_scale: Array1::ones(block.width),
            };
            let pruned =
                prepared.prune(host.w.slice(columns), Some(host.mask.slice(columns))).map_err(text)?;
            let bits = |a: ArrayView2<f32>| a.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let what = format!("block from column {}", block.first);
            Checked::same(&what, &bits(found.slice(columns)), &bits(pruned.weight.view()))?;
        }
        Ok(Checked::EXACT)
    };
    let (entries, width) = ((n * k) as u64, BLOCK as u64);
    suite.case(Case {
        kernel: "panel",
        shape: shape.id(),
        // W read and written, the mask read, E and W_j written; two products for each pair of columns.
        work: Work { bytes: 17 * entries, operations: 2 * entries * width, limit: Limit::Copy },
        input: &|device: &D, seed| input(device, seed, n, k),
        run: &run,
        spoils_input: true,
        check: &check,
        baselines: &[("a-thread-per-row", &thread_per_row)],
    });
}

fn lazy_updates<D: Machine>(suite: &mut Suite<D>, shape: &Shape) {
    let (n, k) = (shape.n, shape.k);
    let run = |device: &D, input: &mut Input<D>| {
        blocks(n, k)
            .filter(|block| block.first + block.width < k) // the last has nothing to its right
            .try_for_each(|block| {
                let which = LazyUpdate::Compensated;
                lazy_update(device, block, &input.layer(), &input.panel, &input.factors(), which)
            })
            .map_err(text)
    };
    /// Rows that are compared.
    const ROWS: usize = 64;
    let check = |device: &D| {
        fn by_reference<T: Scalar>(n: usize, k: usize) -> Vec<T> {
            let host = Host::new(0, n, k);
            let wide = |a: ArrayView2<f32>| a.mapv(|x| T::of(x.into()));
            let width = BLOCK.min(k);
            let rows = s![..n.min(ROWS), ..];
            let (e, before) = (values(401, n, width), values(402, n, width));
            let (e, before) = (wide(e.slice(rows)), wide(before.slice(rows)));
            let mut w = wide(host.w.slice(rows));
            for block in blocks(n, k) {
                let end = block.first + block.width;
                let right = s![block.first..end, end..];
                let (lt, d) = (wide(host.lt.slice(right)), wide(host.d.slice(right)));
                let mut rest = w.slice_mut(s![.., end..]);
                gemm(-1.0, e.slice(s![.., ..block.width]), lt.view(), 1.0, rest.view_mut());
                gemm(ALPHA.into(), before.slice(s![.., ..block.width]), d.view(), 1.0, rest);
            }
            w.into_iter().collect()
        }
        let mut on_device = input(device, 0, n, k)?;
        run(device, &mut on_device)?;
        let mut found = download(device, &on_device.w)?;
        found.truncate(n.min(ROWS) * k);
        Ok(Checked::by_rule(&found, &by_reference::<f32>(n, k), &by_reference::<f64>(n, k)))
    };
    let right = |block: BlockColumns| (k - block.first - block.width) as u64;
    // W right of each block read and written; two products with each column there for each of the block.
    let (bytes, operations) = blocks(n, k).fold((0, 0), |(bytes, operations), block| {
        let entries = n as u64 * right(block);
        (bytes + 8 * entries, operations + 4 * entries * block.width as u64)
    });
    suite.case(Case {
        kernel: "lazy-update",
        shape: shape.id(),
        work: Work { bytes, operations, limit: Limit::F32 },
        input: &|device: &D, seed| input(device, seed, n, k),
        run: &run,
        spoils_input: true,
        check: &check,
        baselines: &[],
    });
}
