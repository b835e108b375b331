//! From the statistics to L, D and the score's factor.

use duogpt::cuda::factor::{Prepared, prepare};
use duogpt::cuda::statistics::Statistics;
use duogpt::linalg::Scalar;
use duogpt::reference::activation::prune_activations;
use duogpt::reference::{self, PruneConfig, PruneError, ResidualStatistics};
use ndarray::Array2;

use super::{Case, Checked, Limit, Machine, Suite, Work, activations, download, operations, text};

/// Wider layers are not repeated on the CPU: in f64 that would take minutes and tens of gigabytes. There only the
/// factor is checked, by its residual on one vector.
const REPEATED: usize = 11008;

/// Statistics of one sequence of `tokens`.
pub fn gathered<D: Machine>(device: &D, seed: u64, tokens: usize, k: usize) -> Result<Statistics<D>, String> {
    let dense = activations(2 * seed, tokens, k);
    let mut sparse = &dense + &(activations(2 * seed + 1, tokens, k) * 0.1);
    prune_activations(sparse.view_mut(), 0.5);
    let mut statistics = Statistics::new(device, k, true).map_err(text)?;
    statistics.update(device, dense.view(), sparse.view()).map_err(text)?;
    Ok(statistics)
}

/// Fewer tokens than channels, as the widest layers have here, need some damping.
pub fn config() -> PruneConfig {
    PruneConfig { block_size: super::BLOCK, ..PruneConfig::default() }
}

/// The device's statistics in the arithmetic `T`.
fn copied<T: Scalar, D: Machine>(
    device: &D,
    found: &Statistics<D>,
) -> Result<reference::Statistics<T>, String> {
    let reference::Statistics { sequences, hessian, residual } = found.to_host(device).map_err(text)?;
    let wide = |x: f32| T::of(x.into());
    let residual = residual.map(|residual| ResidualStatistics {
        dxxt: residual.dxxt.mapv(wide),
        square_norms: residual.square_norms.mapv(wide),
    });
    Ok(reference::Statistics { sequences, hessian: hessian.mapv(wide), residual })
}

fn by_reference<T: Scalar, D: Machine>(
    device: &D,
    statistics: &Statistics<D>,
) -> Result<[Vec<T>; 3], String> {
    let statistics = copied::<T, D>(device, statistics)?;
    let prepared =
        reference::prune::prepare(&statistics, &config(), None).map_err(|e: PruneError| text(e))?;
    let correction = prepared.correction.ok_or("no correction")?;
    let flat = |a: Array2<T>| a.into_iter().collect::<Vec<_>>();
    Ok([flat(prepared.lt), flat(correction.d), prepared.score_scale.to_vec()])
}

/// |L^T H L x - x| / |x| in f64, for H damped as the factor had it.
fn residual<D: Machine>(
    device: &D,
    statistics: &Statistics<D>,
    prepared: &Prepared<D>,
) -> Result<f64, String> {
    let k = statistics.k;
    let hessian = download(device, &statistics.hessian(device).map_err(text)?)?;
    let lt = download(device, &prepared.lt)?;
    let shift = config().damping * (0..k).map(|i| f64::from(hessian[i * k + i])).sum::<f64>() / k as f64;
    let x: Vec<f64> = super::values(9, 1, k).iter().map(|&x| x.into()).collect();
    let mut lx = vec![0.0; k]; // L x: column sums of L^T weighted by x
    for (row, x) in lt.chunks_exact(k).zip(&x) {
        lx.iter_mut().zip(row).for_each(|(sum, &l)| *sum += f64::from(l) * x);
    }
    let dot = |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum::<f64>();
    let hlx: Vec<f64> =
        hessian.chunks_exact(k).zip(&lx).map(|(row, &own)| dot(row, &lx) + shift * own).collect();
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let back: Vec<f64> = lt.chunks_exact(k).zip(&x).map(|(row, x)| dot(row, &hlx) - x).collect();
    Ok(norm(&back) / norm(&x))
}

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    let tokens = suite.tokens;
    for (name, k) in suite.widths() {
        let input = |device: &D, seed| gathered(device, seed, tokens, k);
        let run = |device: &D, statistics: &mut Statistics<D>| {
            prepare(device, statistics, &config(), None).map(drop).map_err(text)
        };
        let check = |device: &D| {
            let statistics = input(device, 0)?;
            let prepared = prepare(device, &statistics, &config(), None).map_err(text)?;
            if k > REPEATED {
                // k + 3 k roundings, as for a stage behind the factor, and a condition of at most 1 / damping + 1.
                let budget = 4.0 * k as f64 * f32::UNIT_ROUNDOFF * (1.0 / config().damping + 1.0);
                return Ok(Checked { error: residual(device, &statistics, &prepared)?, budget });
            }
            let exact = by_reference::<f64, D>(device, &statistics)?;
            let single = by_reference::<f32, D>(device, &statistics)?;
            let d = prepared.d.as_ref().ok_or("no correction")?;
            let found =
                [download(device, &prepared.lt)?, download(device, d)?, download(device, &prepared.scale)?];
            let each = found.iter().zip(&single).zip(&exact);
            Ok(each
                .map(|((found, single), exact)| Checked::by_rule(found, single, exact))
                .fold(Checked::EXACT, Checked::worse))
        };
        suite.case(Case {
            kernel: "factor",
            shape: name,
            work: Work { bytes: 16 * (k * k) as u64, operations: operations::prepare(k), limit: Limit::F32 },
            input: &input,
            run: &run,
            spoils_input: false,
            check: &check,
            baselines: &[],
        });
    }
}
