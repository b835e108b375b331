//! The statistics of one sequence of a layer's input, and of 16 and 128 of them.

use duogpt::cuda::device::Buffer;
use duogpt::cuda::statistics::{Entry, Statistics};
use duogpt::reference;
use duogpt::reference::activation::prune_activations;
use half::bf16;
use ndarray::{Array2, Axis};

use super::{Case, Checked, Limit, Machine, Suite, Work, activations, text};

/// Different sequences; more of them repeat these.
const DIFFERENT: usize = 4;

/// Channels of H and dX X^T that are compared with f64: those at the beginning and at the end.
const COMPARED: usize = 8;

type Sequences = Vec<(Array2<f32>, Array2<f32>)>;

/// They lie on the device, as they do for the original.
type OnDevice<T, D> = Vec<(Buffer<T, D>, Buffer<T, D>)>;

/// Inputs that are numbers of type `T`.
fn sequences<T: Entry + Into<f32>>(seed: u64, tokens: usize, k: usize) -> Sequences {
    (0..DIFFERENT as u64)
        .map(|i| {
            let dense = activations(2 * (seed * DIFFERENT as u64 + i), tokens, k);
            let mut sparse = &dense + &(activations(2 * (seed * DIFFERENT as u64 + i) + 1, tokens, k) * 0.1);
            prune_activations(sparse.view_mut(), 0.5);
            let rounded = |x: Array2<f32>| x.mapv(|x| T::nearest(x).into());
            (rounded(dense), rounded(sparse))
        })
        .collect()
}

fn upload<T: Entry, D: Machine>(device: &D, sequences: &Sequences) -> Result<OnDevice<T, D>, String> {
    let upload = |x: &Array2<f32>| {
        let x: Vec<T> = x.iter().map(|&x| T::nearest(x)).collect();
        Buffer::from_host(device, &x).map_err(text)
    };
    sequences.iter().map(|(dense, sparse)| Ok((upload(dense)?, upload(sparse)?))).collect()
}

fn gather<T: Entry, D: Machine>(
    device: &D,
    k: usize,
    count: usize,
    sequences: &OnDevice<T, D>,
) -> Result<Statistics<D>, String> {
    let mut statistics = Statistics::new(device, k, true).map_err(text)?;
    for (dense, sparse) in sequences.iter().cycle().take(count) {
        statistics.update_on_device(device, dense, sparse).map_err(text)?;
    }
    statistics.flush(device).map_err(text)?;
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
        let part = |x: &Array2<T>| x.select(Axis(1), rows);
        duogpt::linalg::gemm(add, part(&sparse).t(), sparse.view(), keep, hessian.view_mut());
        duogpt::linalg::gemm(add, part(&dx).t(), sparse.view(), keep, dxxt.view_mut());
        whole.update(dx.view());
    }
    (hessian.into_iter().collect(), dxxt.into_iter().collect(), whole.square_norms.to_vec())
}

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    for (name, k) in suite.widths() {
        // Long calibrations at the widths of the smallest model alone: their rate differs little from that of one sequence.
        let counts: &[usize] = if name.starts_with("llama-2-7b") { &[1, 16, 128] } else { &[1] };
        for &count in counts {
            // H, half of it, and dX X^T once per split of dX.
            case::<bf16, D>(suite, &name, "", k, count, 1 + 4);
        }
        // Six products each.
        case::<f32, D>(suite, &name, "-f32", k, 1, 6 + 12);
    }
}

/// `operations`: per token and entry of a k x k matrix.
fn case<T: Entry + Into<f32>, D: Machine>(
    suite: &mut Suite<D>,
    name: &str,
    suffix: &str,
    k: usize,
    count: usize,
    operations: u64,
) {
    let tokens = suite.tokens;
    let input = |device: &D, seed| upload::<T, D>(device, &sequences::<T>(seed, tokens, k));
    let run = |device: &D, input: &mut OnDevice<T, D>| gather(device, k, count, input).map(drop);
    let check = |device: &D| {
        let sequences = sequences::<T>(0, tokens, k);
        let found = gather(device, k, count, &upload::<T, D>(device, &sequences)?)?;
        let rows: Vec<usize> = (0..k).filter(|&row| row < COMPARED / 2 || row >= k - COMPARED / 2).collect();
        let (h, dxxt, dxdxt) = by_reference::<f64>(&rows, count, &sequences);
        let (h_single, dxxt_single, dxdxt_single) = by_reference::<f32>(&rows, count, &sequences);
        let found = found.to_host(device).map_err(text)?;
        let part = |a: Array2<f32>| a.select(Axis(0), &rows).into_iter().collect::<Vec<_>>();
        let residual = found.residual.ok_or("no residual statistics")?;
        Ok(Checked::by_rule(&part(found.hessian), &h_single, &h)
            .worse(Checked::by_rule(&part(residual.dxxt), &dxxt_single, &dxxt))
            .worse(Checked::by_rule(&residual.square_norms.to_vec(), &dxdxt_single, &dxdxt)))
    };
    let (tokens, width) = ((count * tokens) as u64, k as u64);
    suite.case(Case {
        kernel: "statistics",
        shape: format!("{name}-tokens{tokens}{suffix}"),
        work: Work {
            bytes: 2 * size_of::<T>() as u64 * tokens * width,
            operations: operations * tokens * width * width,
            limit: Limit::Bf16,
        },
        input: &input,
        run: &run,
        spoils_input: false,
        check: &check,
        baselines: &[],
    });
}
