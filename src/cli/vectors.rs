//! `duogpt vectors`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::CliError;
use crate::reference::Sparsity;
use crate::verify::kind::Kind;
use crate::verify::vectors::case::{
    ActivationSparsity, CaseSettings, CaseSparsity, CountsPruned, GridKind, OrderKind, WandaVariant,
};
use crate::verify::vectors::lint::{lint_case, lint_negative};
use crate::verify::vectors::make::{NewCase, write_case};
use crate::verify::vectors::{Case, CaseError, case_folders};

/// Test vectors: make new ones, or check a folder of them.
#[derive(Subcommand)]
pub enum VectorsCommand {
    /// Write a fresh case, computed by the reference in f64: a port that is tuned to the published cases fails on it. Refused
    /// is one whose results depend on the order of summation.
    Make(Box<MakeArgs>),
    /// Check a folder of cases against the schema (fixtures/vectors/v1/SCHEMA.md).
    Check(CheckArgs),
}

/// Arguments of `duogpt vectors make`.
#[derive(Args)]
pub struct MakeArgs {
    /// What the case computes.
    #[arg(long, value_enum)]
    algorithm: Kind,
    /// Seed of the inputs.
    #[arg(long, value_name = "S")]
    seed: u64,
    /// Output and input channels, such as 16x64.
    #[arg(long, value_name = "NxK", value_parser = shape)]
    shape: (usize, usize),
    /// Folder in which the case is written, as `<algorithm>/<id>`.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Name of the case (by default `seed-<S>`).
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Calibration sequences.
    #[arg(long, value_name = "N", default_value_t = 4)]
    sequences: usize,
    /// Tokens of each.
    #[arg(long, value_name = "N", default_value_t = 48)]
    tokens: usize,
    /// Make channels 0 and 1 equal and alone in their tokens, and damp nothing: H is singular in any arithmetic. The case
    /// stops with `output.error`, or shows the fallback where --identity-fallback is given.
    #[arg(long)]
    singular: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// Settings of the schema, by its names. What is not given has the algorithm's default.
#[derive(Args, Default)]
struct SettingArgs {
    /// Fraction of the weights to prune, or N:M (N of every M) [default: 0.5].
    #[arg(long, value_name = "P")]
    weight_sparsity: Option<Sparsity>,
    /// Fraction of each token's activations to zero; of TEAL, one or several, such as 0.3,0.5 [default: 0.5].
    #[arg(long, value_name = "P", value_delimiter = ',')]
    activation_sparsity: Vec<f64>,
    /// Columns per block [default: 32].
    #[arg(long, value_name = "B")]
    block_size: Option<usize>,
    /// Damping as a fraction of the mean of the diagonal of H [default: 0.01].
    #[arg(long, value_name = "X")]
    damping: Option<f64>,
    /// Order of the columns [default: natural].
    #[arg(long, value_enum)]
    column_order: Option<OrderKind>,
    /// Columns per run of the interleaved order [default: 8].
    #[arg(long, value_name = "N")]
    order_run: Option<usize>,
    /// Factor of H and the statistics of dX, 1 or 2 [default: 1 of duogpt, else 2].
    #[arg(long, value_name = "F", value_parser = clap::value_parser!(u32).range(1..=2))]
    hessian_factor: Option<u32>,
    /// Factor on the output residual [default: 0.25].
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// Quantise to grids of so many bits (gptq, gptaq; with sparsegpt and duogpt, prune and quantise) [default: 4 of gptq and
    /// gptaq].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(2..=8))]
    bits: Option<u32>,
    /// Symmetric grids [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    symmetric: Option<bool>,
    /// Search the range of each grid [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    mse: Option<bool>,
    /// Columns per grid [default: all].
    #[arg(long, value_name = "G")]
    group_size: Option<usize>,
    /// Find the grids of groups before the loop [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    static_groups: Option<bool>,
    /// Codes of the grids [default: signed of gptaq, else offset].
    #[arg(long, value_enum)]
    grid: Option<GridKind>,
    /// Position of the linear among those that worked on one H in place [default: 0].
    #[arg(long, value_name = "N")]
    group_member: Option<usize>,
    /// Leave an N:M group of at most N columns at the end of a block dense [default: true of duogpt, else false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_narrow_group: Option<bool>,
    /// Go on with the identity where H has no Cholesky factor [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    identity_fallback: Option<bool>,
    /// Zeros of the weight stay, and count as pruned; the weight gets some [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    preserve_mask: Option<bool>,
    /// Wanda's variant that prunes each row by its share of the scores.
    #[arg(long, value_enum)]
    variant: Option<WandaVariant>,
    /// Bins of TEAL's histogram [default: 200].
    #[arg(long, value_name = "N")]
    bins: Option<usize>,
    /// Fraction of the values on either side that share TEAL's outermost bins [default: 0.01].
    #[arg(long, value_name = "P")]
    outlier_threshold: Option<f64>,
    /// Prune the second half of a prompt's tokens [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    apply_prefill: Option<bool>,
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let wrong = || format!("`{text}` is no shape: give output x input channels such as 16x64");
    let (n, k) = text.split_once('x').ok_or_else(wrong)?;
    let number = |text: &str| text.parse().ok().filter(|&number| number > 0).ok_or_else(wrong);
    Ok((number(n)?, number(k)?))
}

/// Arguments of `duogpt vectors check`.
#[derive(Args)]
pub struct CheckArgs {
    /// Folder of cases.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Makes or checks. Exit code 1 when a case breaks a rule of the schema, 2 when one cannot be used at all.
///
/// # Errors
/// Settings that make no sense; a folder that holds no case.
pub fn run(command: &VectorsCommand) -> Result<ExitCode, CliError> {
    match command {
        VectorsCommand::Make(args) => make(args),
        VectorsCommand::Check(args) => check(args),
    }
}

fn make(args: &MakeArgs) -> Result<ExitCode, CliError> {
    let case = NewCase {
        id: args.id.clone().unwrap_or(format!("seed-{}", args.seed)),
        algorithm: args.algorithm,
        seed: args.seed,
        n: args.shape.0,
        k: args.shape.1,
        sequences: args.sequences,
        tokens: args.tokens,
        settings: args.settings.given().completed(args.algorithm)?,
        singular: args.singular,
        command: format!("duogpt {}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
    }
    .make()?;
    write_case(&case, &args.output)?;
    println!("{}", args.output.join(case.name()).display());
    Ok(ExitCode::SUCCESS)
}

impl SettingArgs {
    /// What was given, and nothing else.
    fn given(&self) -> CaseSettings {
        CaseSettings {
            weight_sparsity: self.weight_sparsity.map(|sparsity| match sparsity {
                Sparsity::Unstructured(p) => CaseSparsity::Fraction(p),
                Sparsity::NofM { n, m } => CaseSparsity::Groups { n, m, counts: CountsPruned::Pruned },
            }),
            mask_rule: None,
            bits: self.bits,
            group_size: self.group_size,
            static_groups: self.static_groups,
            symmetric: self.symmetric,
            mse: self.mse,
            grid: self.grid,
            block_size: self.block_size,
            damping: self.damping,
            column_order: self.column_order,
            order_run: self.order_run,
            hessian_factor: self.hessian_factor,
            alpha: self.alpha,
            activation_sparsity: match self.activation_sparsity[..] {
                [] => None,
                [p] => Some(ActivationSparsity::One(p)),
                _ => Some(ActivationSparsity::Several(self.activation_sparsity.clone())),
            },
            group_member: self.group_member,
            skip_narrow_group: self.skip_narrow_group,
            identity_fallback: self.identity_fallback,
            preserve_mask: self.preserve_mask,
            variant: self.variant,
            bins: self.bins,
            outlier_threshold: self.outlier_threshold,
            apply_prefill: self.apply_prefill,
        }
    }
}

fn check(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let (cases, negatives) = case_folders(&args.folder)?;
    if cases.is_empty() && negatives.is_empty() {
        return Err(format!("{}: no cases (folders with a case.json)", args.folder.display()).into());
    }
    let mut names = Vec::new();
    let (mut wrong, mut unusable) = (0, 0);
    let mut say = |folder: &PathBuf, found: Result<Vec<String>, CaseError>| match found {
        Ok(found) => {
            wrong += found.len();
            found.iter().for_each(|detail| println!("{}: {detail}", folder.join("case.json").display()));
        }
        Err(error) => {
            unusable += 1;
            eprintln!("error: {error}");
        }
    };
    for folder in &cases {
        let case = Case::load(folder);
        names.extend(case.as_ref().ok().map(Case::name));
        say(folder, case.and_then(|case| lint_case(&case)));
    }
    for folder in &negatives {
        say(folder, lint_negative(folder, &names));
    }
    let (cases, negatives) = (cases.len(), negatives.len());
    println!("{cases} cases, {negatives} wrong results, {wrong} breaches of the schema, {unusable} unusable");
    Ok(match (unusable, wrong) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(1),
        _ => ExitCode::from(2),
    })
}
