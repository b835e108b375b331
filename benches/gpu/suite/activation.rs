//! Activation pruning to 50 % of the tokens of one sequence, with the list of kept columns.

use duogpt::cuda::activation::{ActivationType, activation};
use duogpt::cuda::device::Buffer;
use duogpt::reference::activation::prune_activations;
use half::bf16;

use super::{Case, Checked, Limit, Machine, Suite, Work, activations, download, text};

pub fn cases<D: Machine>(suite: &mut Suite<D>) {
    for (name, k) in suite.widths() {
        case::<f32, D>(suite, &name, k, |x| x, |x| x);
        case::<bf16, D>(suite, &name, k, bf16::from_f32, bf16::to_f32);
    }
}

fn case<T: ActivationType, D: Machine>(
    suite: &mut Suite<D>,
    name: &str,
    k: usize,
    of: fn(f32) -> T,
    widen: fn(T) -> f32,
) {
    let tokens = suite.tokens;
    let host = |seed| activations(seed, tokens, k).mapv(of);
    let input =
        |device: &D, seed| Buffer::from_host(device, host(seed).as_slice().expect("row-major")).map_err(text);
    let run =
        |device: &D, x: &mut Buffer<T, D>| activation(device, x, (tokens, k), 0.5).map(drop).map_err(text);
    let check = |device: &D| {
        let kept = activation(device, &input(device, 0)?, (tokens, k), 0.5).map_err(text)?;
        let mut expected = host(0).mapv(widen);
        prune_activations(expected.view_mut(), 0.5);
        let found: Vec<f32> = download(device, &kept.x)?.into_iter().map(widen).collect();
        Checked::same("pruned activations", &found, expected.as_slice().expect("row-major"))?;
        let (columns, counts) = (download(device, &kept.columns)?, download(device, &kept.count)?);
        for (token, (row, &count)) in expected.rows().into_iter().zip(&counts).enumerate() {
            let kept: Vec<u32> = (0..k as u32).filter(|&j| row[j as usize] != 0.0).collect();
            let found = &columns[token * k..][..count as usize];
            Checked::same(&format!("kept columns of token {token}"), found, &kept)?;
        }
        Ok(Checked::EXACT)
    };
    // Read once, written once, and an index for the half that stays.
    let bytes = (tokens * (2 * k * size_of::<T>() + 4 * (k - k / 2))) as u64;
    suite.case(Case {
        kernel: "activation",
        shape: format!("{name}-{}", T::SUFFIX),
        work: Work { bytes, operations: 0, limit: Limit::Copy },
        input: &input,
        run: &run,
        spoils_input: false,
        check: &check,
        baselines: &[],
    });
}
