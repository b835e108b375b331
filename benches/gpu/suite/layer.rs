//! A whole layer pruned to 50 %, everything behind the statistics; the weights lie on the device, as they do for the original.

use duogpt::cuda::device::Buffer;
use duogpt::cuda::factor::prepare;
use duogpt::cuda::prune::prune_on_device;
use duogpt::cuda::statistics::Statistics;
use duogpt::linalg::Scalar;
use duogpt::reference::Prepared;
use duogpt::reference::score::{Coefficients, Correction};
use ndarray::{Array1, Array2, Axis, s};

use super::factor::{config, gathered};
use super::{BLOCK, Case, Checked, Limit, Machine, Suite, Work, download, operations, text, upload, values};

struct Input<D: Machine> {
    statistics: Statistics<D>,
    w: Array2<f32>,
    on_device: Option<Buffer<f32, D>>,
}

/// Rows that are repeated on the CPU.
const ROWS: usize = 16;

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    let tokens = suite.tokens;
    for shape in suite.shapes.clone() {
        let (n, k) = (shape.n, shape.k);
        let input = |device: &D, seed| {
            let w = values(seed, n, k);
            let on_device = Some(upload(device, &w)?);
            Ok(Input { statistics: gathered(device, seed, tokens, k)?, w, on_device })
        };
        let run = |device: &D, input: &mut Input<D>| {
            let prepared = prepare(device, &input.statistics, &config(), None).map_err(text)?;
            let w = input.on_device.take().ok_or("an input was used twice")?;
            prune_on_device(device, &prepared, w, None).map(drop).map_err(text)
        };
        // The device's factors and mask, repeated on the CPU for a few rows: the factors have their own check.
        let check = |device: &D| {
            let Input { statistics, w, on_device } = input(device, 0)?;
            let prepared = prepare(device, &statistics, &config(), None).map_err(text)?;
            let on_device = on_device.ok_or("no weights")?;
            let found = prune_on_device(device, &prepared, on_device, None).map_err(text)?;
            let mask = Array2::from_shape_vec((n, k), download(device, &found.mask)?).map_err(text)?;
            let mask = mask.mapv(|m| m != 0);
            let score = Array2::from_shape_vec((n, k), download(device, &found.score)?).map_err(text)?;
            for first in (0..k).step_by(BLOCK) {
                let columns = s![.., first..(first + BLOCK).min(k)];
                let expected = config().threshold.select(score.slice(columns), 0.5);
                let decided: Vec<bool> = mask.slice(columns).iter().copied().collect();
                let expected: Vec<bool> = expected.into_iter().collect();
                Checked::same(&format!("mask of the block from column {first}"), &decided, &expected)?;
            }
            let rows: Vec<usize> = (0..n.min(ROWS)).collect();
            let factors = Factors {
                lt: download(device, &prepared.lt)?,
                d: download(device, prepared.d.as_ref().ok_or("no correction")?)?,
                scale: download(device, &prepared.scale)?,
            };
            let (w, mask) = (w.select(Axis(0), &rows), mask.select(Axis(0), &rows));
            let weight = download(device, &found.weight)?[..rows.len() * k].to_vec();
            Ok(Checked::by_rule(
                &weight,
                &factors.prune::<f32>(&w, &mask)?,
                &factors.prune::<f64>(&w, &mask)?,
            ))
        };
        let (rows, width) = (n as u64, k as u64);
        suite.case(Case {
            kernel: "layer",
            shape: shape.id(),
            work: Work {
                bytes: 8 * rows * width + 8 * width * width,
                operations: operations::prepare(k) + operations::update(n, k),
                limit: Limit::F32,
            },
            input: &input,
            run: &run,
            spoils_input: true,
            check: &check,
            baselines: &[],
        });
    }
}

/// What the device prepared, natural order.
struct Factors {
    lt: Vec<f32>,
    d: Vec<f32>,
    scale: Vec<f32>,
}

impl Factors {
    fn prune<T: Scalar>(&self, w: &Array2<f32>, mask: &Array2<bool>) -> Result<Vec<T>, String> {
        let k = self.scale.len();
        let wide = |a: &[f32]| a.iter().map(|&x| T::of(x.into())).collect::<Vec<T>>();
        let square = |a: &[f32]| Array2::from_shape_vec((k, k), wide(a)).expect("k x k");
        let nothing = Array1::zeros(k);
        let prepared = Prepared {
            config: config(),
            order: (0..k).collect(),
            dead: vec![false; k],
            lt: square(&self.lt),
            correction: Some(Correction {
                d: square(&self.d),
                coefficients: Coefficients { a: nothing.clone(), b: nothing.clone(), c: nothing },
            }),
            score_scale: Array1::from(wide(&self.scale)),
        };
        let w = w.mapv(|x| T::of(x.into()));
        let pruned = prepared.prune(w.view(), Some(mask.view())).map_err(text)?;
        Ok(pruned.weight.into_iter().collect())
    }
}
