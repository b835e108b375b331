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
    /// Write a fresh case, computed by the reference in f64: a port that is tuned to the published cases fails on it.
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
    /// Fraction of the weights to prune, or N:M (N of every M).
    #[arg(long, value_name = "P", default_value = "0.5")]
    weight_sparsity: Sparsity,
    /// Fraction of each token's activations to zero.
    #[arg(long, value_name = "P", default_value_t = 0.5)]
    activation_sparsity: f64,
    /// Columns per block.
    #[arg(long, value_name = "B", default_value_t = 32)]
    block_size: usize,
    /// Damping as a fraction of the mean of the diagonal of H.
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    damping: f64,
    /// Order of the columns.
    #[arg(long, value_enum, default_value_t = OrderKind::Natural)]
    column_order: OrderKind,
    /// Columns per run of the interleaved order.
    #[arg(long, value_name = "N", default_value_t = 8)]
    order_run: usize,
    /// Factor on the output residual.
    #[arg(long, value_name = "X", default_value_t = 0.25)]
    alpha: f64,
    /// Quantise to grids of so many bits (gptq, gptaq; with sparsegpt and duogpt, prune and quantise).
    #[arg(long, value_name = "B")]
    bits: Option<u32>,
    /// Columns per grid.
    #[arg(long, value_name = "G")]
    group_size: Option<usize>,
    /// Find the grids of groups before the loop.
    #[arg(long)]
    static_groups: bool,
    /// Asymmetric grids.
    #[arg(long)]
    asymmetric: bool,
    /// Search the range of each grid.
    #[arg(long)]
    mse: bool,
    /// Wanda's variant that prunes each row by its share of the scores.
    #[arg(long)]
    cumulative: bool,
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
        settings: settings(args),
        command: format!("duogpt {}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")),
    }
    .make()?;
    write_case(&case, &args.output)?;
    println!("{}", args.output.join(case.name()).display());
    Ok(ExitCode::SUCCESS)
}

/// The settings that the algorithm has.
fn settings(args: &MakeArgs) -> CaseSettings {
    let algorithm = args.algorithm;
    let mut settings = CaseSettings::default();
    let prunes_weights = !matches!(algorithm, Kind::Gptq | Kind::Gptaq | Kind::Activation | Kind::Teal);
    let mut rule = None;
    if prunes_weights {
        let (sparsity, by_group) = match args.weight_sparsity {
            Sparsity::Unstructured(p) => (CaseSparsity::Fraction(p), false),
            Sparsity::NofM { n, m } => (CaseSparsity::Groups { n, m, counts: CountsPruned::Pruned }, true),
        };
        settings.weight_sparsity = Some(sparsity);
        rule = Some(match algorithm {
            _ if by_group => "per-group-count",
            Kind::Wanda if args.cumulative => "cumulative-share",
            Kind::Wanda => "per-row-count",
            Kind::Magnitude => "per-layer-threshold-inclusive",
            _ => "per-block-threshold-inclusive",
        });
    }
    if algorithm == Kind::Wanda && args.cumulative {
        settings.variant = Some(WandaVariant::Cumulative);
    }
    if matches!(algorithm, Kind::DuoGpt | Kind::SparseGpt | Kind::Gptq | Kind::Gptaq) {
        settings.block_size = Some(args.block_size);
        settings.damping = Some(args.damping);
        settings.column_order = Some(args.column_order);
        settings.order_run = (args.column_order == OrderKind::Interleaved).then_some(args.order_run);
        settings.hessian_factor = Some(if algorithm == Kind::DuoGpt { 1 } else { 2 });
    }
    if matches!(algorithm, Kind::DuoGpt | Kind::Gptaq) {
        settings.alpha = Some(args.alpha);
        settings.activation_sparsity = Some(ActivationSparsity::One(args.activation_sparsity));
    }
    if matches!(algorithm, Kind::Gptq | Kind::Gptaq) || (prunes_weights && args.bits.is_some()) {
        settings.bits = Some(args.bits.unwrap_or(4));
        settings.group_size = args.group_size;
        settings.static_groups = Some(args.static_groups);
        settings.symmetric = Some(!args.asymmetric);
        settings.mse = Some(args.mse);
        settings.grid = Some(if algorithm == Kind::Gptaq { GridKind::Signed } else { GridKind::Offset });
    }
    if algorithm == Kind::Activation {
        rule = Some("per-token-threshold-kept-inclusive");
        settings.activation_sparsity = Some(ActivationSparsity::One(args.activation_sparsity));
    }
    if algorithm == Kind::Teal {
        settings.activation_sparsity = Some(ActivationSparsity::Several(vec![args.activation_sparsity]));
        settings.bins = Some(200);
        settings.outlier_threshold = Some(0.01);
        settings.apply_prefill = Some(true);
    }
    settings.mask_rule = rule.map(String::from);
    settings
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
