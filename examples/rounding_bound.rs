//! One element of H in three types, held to the bound on rounding errors that `docs/bounds.md` derives:
//!
//! ```text
//! cargo run --release --example rounding_bound
//! ```
//!
//! Sums in f32 stay within the bound forwards and backwards. Sums that are held in bf16 or f16 do not.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use duogpt::tensors::FloatType;
use duogpt::verify::vectors::{Case, bounds};

fn main() -> Result<(), Box<dyn Error>> {
    print!("{}", table()?);
    Ok(())
}

/// A line per type of the inputs and of the sums; `!` where an error is not explained by rounding.
pub fn table() -> Result<String, Box<dyn Error>> {
    let case = Case::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors/v1/duogpt/wide"))?;
    let (name, at) = ("stats.hessian", (65, 65));
    let expected = &case.tensors[name];
    let x = &case.tensors["input.sparse_activations"].values;
    let sequences = case.tensors["input.calls"].values.column(0).sum();
    let (tokens, reference) = (x.nrows(), expected.values[at]);
    let mut table = String::new();
    writeln!(table, "H[{}, {}] of {}: {tokens} products, reference {reference:.4}", at.0, at.1, case.name())?;
    writeln!(table, "type  sums in  r    t       c      bnd  allowed  forwards  backwards")?;

    // Rounds inputs to a type, sums in another, rounds the mean per sequence to the first.
    let error = |kind: FloatType, sums: FloatType, tokens: &mut dyn Iterator<Item = usize>| {
        let product = |t: usize| sums.round(kind.round(x[(t, at.0)]) * kind.round(x[(t, at.1)]));
        let sum = tokens.fold(0.0, |sum, t| sums.round(sum + product(t)));
        (kind.round(sums.round(sum / sequences)) - reference).abs()
    };
    for (kind, sums) in [
        (FloatType::F32, FloatType::F32),
        (FloatType::Bf16, FloatType::F32),
        (FloatType::F16, FloatType::F32),
        (FloatType::Bf16, FloatType::Bf16),
        (FloatType::F16, FloatType::F16),
    ] {
        let bound = bounds::bound(&case, name, expected, kind.smallest_normal()).ok_or("no bound")?;
        let allowed = bounds::allowed(&case, name, expected, kind).ok_or("no bound")?[at];
        let errors = [error(kind, sums, &mut (0..tokens)), error(kind, sums, &mut (0..tokens).rev())];
        let [forwards, backwards] =
            errors.map(|error| format!("{error:.1e}{}", if error <= allowed { " " } else { "!" }));
        let [kind_name, sums] = [kind, sums].map(|kind| format!("{kind:?}").to_lowercase());
        let (roundings, terms, bnd) = (bound.roundings, bound.terms, bound.sums[at]);
        let c = bound.relative(kind) / kind.unit_roundoff();
        let line = format!(
            "{kind_name:5} {sums:7} {roundings:2} {terms:4} {c:7.2} {bnd:8.2} {allowed:8.1e} {forwards:>9} {backwards:>10}"
        );
        writeln!(table, "{}", line.trim_end())?;
    }
    Ok(table)
}
