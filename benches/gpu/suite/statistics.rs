//! The statistics of one sequence of a layer's input, and of 16 and 128 of them.

use duogpt::cuda::statistics::Statistics;
use duogpt::reference;
use duogpt::reference::activation::prune_activations;
use ndarray::Array2;

use super::{Case, Checked, Limit, Machine, Suite, Work, activations, download, text};

/// Different sequences; more of them repeat these.
const DIFFERENT: usize = 4;

/// Channels of H and dX X^T that are compared with f64: those at the beginning and at the end.
const COMPARED: usize = 8;

type Sequences = Vec<(Array2<f32>, Array2<f32>)>;

fn sequences(seed: u64, tokens: usize, k: usize) -> Sequences {
    (0..DIFFERENT as u64)
        .map(|i| {
            let dense = activations(2 * (seed * DIFFERENT as u64 + i), tokens, k);
            let mut sparse = &dense + &(activations(2 * (seed * DIFFERENT as u64 + i) + 1, tokens, k) * 0.1);
            prune_activations(sparse.view_mut(), 0.5);
            (dense, sparse)
        })
        .collect()
}

fn gather<D: Machine>(
    device: &D,
    k: usize,
    count: usize,
    sequences: &Sequences,
) -> Result<Statistics<D>, String> {
    let mut statistics = Statistics::new(device, k, true).map_err(text)?;
    for (dense, sparse) in sequences.iter().cycle().take(count) {
        statistics.update(device, dense.view(), sparse.view()).map_err(text)?;
    }
    Ok(statistics)
}

/// As [`gather`], but only rows `rows` of H and dX X^T, one under the other.
fn by_reference<T: duogpt::linalg::Scalar>(
    rows: &[usize],
    count: usize,
    sequences: &Sequences,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let k = sequences[0].0.ncols();
    let mut whole = reference::ChannelNorms::<T>::new(k); // of dX
    let (mut hessian, mut dxxt) = (Array2::<T>::zeros((rows.len(), k)), Array2::<T>::zeros((rows.len(), k)));
    for (seen, (dense, sparse)) in sequences.iter().cycle().take(count).enumerate() {
        let wide = |x: &Array2<f32>| x.mapv(|x| T::of(x.into()));
        let (dense, sparse) = (wide(dense), wide(sparse));
        let dx = dense - &sparse;
        let (keep, add) = (seen as f64 / (seen + 1) as f64, 1.0 / (seen + 1) as f64);
        let part = |x: &Array2<T>| x.select(ndarray::Axis(1), rows);
        duogpt::linalg::gemm(add, part(&sparse).t(), sparse.view(), keep, hessian.view_mut());
        duogpt::linalg::gemm(add, part(&dx).t(), sparse.view(), keep, dxxt.view_mut());
        whole.update(dx.view());
    }
    (hessian.into_iter().collect(), dxxt.into_iter().collect(), whole.square_norms.to_vec())
}

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    let tokens = suite.tokens;
    for (name, k) in suite.widths() {
        // Long calibrations at the widths of the smallest model alone: their rate differs little from that of one sequence.
        let counts: &[usize] = if name.starts_with("llama-2-7b") { &[1, 16, 128] } else { &[1] };
        for &count in counts {
            let input = |_: &D, seed| Ok(sequences(seed, tokens, k));
            let run = |device: &D, input: &mut Sequences| gather(device, k, count, input).map(drop);
            let check = |device: &D| {
                let sequences = sequences(0, tokens, k);
                let found = gather(device, k, count, &sequences)?;
                let rows: Vec<usize> =
                    (0..k).filter(|&row| row < COMPARED / 2 || row >= k - COMPARED / 2).collect();
                let (h, dxxt, dxdxt) = by_reference::<f64>(&rows, count, &sequences);
                let (h_single, dxxt_single, dxdxt_single) = by_reference::<f32>(&rows, count, &sequences);
                let part = |a: Vec<f32>| {
                    let a = Array2::from_shape_vec((k, k), a).expect("k x k");
                    a.select(ndarray::Axis(0), &rows).into_iter().collect::<Vec<_>>()
                };
                let drift = found.drift.as_ref().ok_or("no drift statistics")?;
                Ok(Checked::by_rule(&part(download(device, &found.hessian)?), &h_single, &h)
                    .worse(Checked::by_rule(&part(download(device, &drift.dxxt)?), &dxxt_single, &dxxt))
                    .worse(Checked::by_rule(&download(device, &drift.dxdxt)?, &dxdxt_single, &dxdxt)))
            };
            let tokens = (count * tokens) as u64;
            let width = k as u64;
            suite.case(Case {
                kernel: "statistics",
                shape: format!("{name}-tokens{tokens}"),
                // Both inputs once; H and dX X^T as one f32 product each.
                work: Work {
                    bytes: 8 * tokens * width,
                    operations: 4 * tokens * width * width,
                    limit: Limit::F32,
                },
                input: &input,
                run: &run,
                spoils_input: false,
                check: &check,
                baselines: &[],
            });
        }
    }
}
