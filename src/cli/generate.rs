//! `duogpt generate`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::eval::ActivationPruning;
use super::{BackendName, CliError, IN_F32_ONLY, Precision, Progress, fraction, open, tokenizer_of};
use crate::calibrate::streams::Activations;
use crate::calibrate::windows::check_vocabulary;
use crate::cuda::DeviceProducts;
use crate::generate::stats::Stats;
use crate::generate::{
    Decoder, Fast, FormatKind, Generation, Products, Reference, Sampler, Stopped, TextStream,
    ends_of_sequence, generate, settings_passed_over,
};
use crate::linalg::Scalar;
use crate::model::Checkpoint;
use crate::model::tokenizer::Tokenizer;

/// Arguments of `duogpt generate`.
#[derive(Args)]
pub struct GenerateArgs {
    /// The model: a Hugging Face directory, pruned or not.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    prompt: Prompt,
    #[command(flatten)]
    pruning: ActivationPruning,
    /// Leave the first fraction F of the prompt's tokens dense (TEAL's published figures: 0.5).
    #[arg(long, value_name = "F", default_value = "0", value_parser = fraction, requires = "thresholds")]
    dense_prefix: f64,
    /// Generate at most N tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Sampling temperature. 0 always takes the most probable token; higher values sample from a flatter distribution.
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample only from the most probable tokens whose probabilities add up to P.
    #[arg(long, value_name = "P", default_value = "1", value_parser = probability, allow_negative_numbers = true)]
    top_p: f64,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Continue after an end-of-sequence token.
    #[arg(long)]
    ignore_end: bool,
    /// How weights are held in memory (by default each linear takes the format with the fewest bytes).
    #[arg(long, value_enum)]
    format: Option<FormatKind>,
    /// Device that holds the weights and multiplies. Norms and attention stay on the CPU.
    #[arg(long, value_enum, default_value_t = BackendName::Cpu)]
    backend: BackendName,
    /// Arithmetic. f64 uses the slow product of the reference.
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Print speed, bytes, memory and sparsity to stderr, or with --json as the field `stats`.
    #[arg(long)]
    stats: bool,
    /// Print the complete result as JSON to stdout, and nothing else: `prompt_tokens`, `tokens` (those after the
    /// prompt), `text`, `stopped`.
    #[arg(long)]
    json: bool,
}

/// The prompt.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// Text to continue. An empty text stands for the tokenizer's beginning-of-sequence token.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Tokens to continue, such as 1,2,3.
    #[arg(long, value_name = "ID,...", value_delimiter = ',')]
    prompt_tokens: Option<Vec<u32>>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome<'a> {
    prompt_tokens: &'a [u32],
    tokens: &'a [u32],
    /// Null without a tokenizer.
    text: Option<&'a str>,
    stopped: Stopped,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Stats>,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if t.is_finite() && t >= 0.0 => Ok(t),
        _ => Err(format!("`{text}` is not a temperature: give 0, or a positive number such as 0.8")),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(p) if 0.0 < p && p <= 1.0 => Ok(p),
        _ => Err(format!("`{text}` is not a probability: give a number in (0, 1], such as 0.95")),
    }
}

/// Generates, and prints text as it is made.
///
/// # Errors
/// Whatever keeps the model from being read or run.
pub fn run(args: &GenerateArgs) -> Result<ExitCode, CliError> {
    let checkpoint = open(&args.model)?;
    let passed_over = settings_passed_over(&checkpoint.directory)?;
    if !passed_over.is_empty() {
        eprintln!(
            "warning: {}: {} would change transformers' text; this command goes by its own flags alone",
            checkpoint.directory.join("generation_config.json").display(),
            passed_over.join(", ")
        );
    }
    let (prompt, tokenizer) = args.prompt.read(&checkpoint)?;
    let tokenizer = tokenizer.as_ref();
    let gpu = args.backend.device((args.precision == Precision::F64).then_some(IN_F32_ONLY))?;
    match (&gpu, args.precision) {
        (Some(device), _) => {
            continue_prompt(args, &checkpoint, &prompt, tokenizer, DeviceProducts::new(device)?)
        }
        (None, Precision::F32) => continue_prompt(args, &checkpoint, &prompt, tokenizer, Fast),
        (None, Precision::F64) => continue_prompt::<f64, _>(args, &checkpoint, &prompt, tokenizer, Reference),
    }
}

impl Prompt {
    /// Its tokens, at least one and not too many; and the tokenizer, where there is one.
    fn read(&self, checkpoint: &Checkpoint) -> Result<(Vec<u32>, Option<Tokenizer>), CliError> {
        let (tokens, tokenizer) = match (&self.prompt, &self.prompt_tokens) {
            (Some(text), _) => {
                let tokenizer = tokenizer_of(checkpoint)?;
                let mut tokens = tokenizer.encode(text)?;
                for character in tokenizer.unknown(text)? {
                    eprintln!(
                        "warning: the model does not see {character:?}: the tokenizer has no token for it"
                    );
                }
                if tokens.is_empty() {
                    tokens.push(tokenizer.prefix_token()?);
                }
                (tokens, Some(tokenizer))
            }
            (None, tokens) => {
                let there = checkpoint.directory.join(Tokenizer::FILE).is_file();
                let tokenizer = there.then(|| tokenizer_of(checkpoint)).transpose()?;
                (tokens.clone().unwrap_or_default(), tokenizer)
            }
        };
        if tokens.is_empty() {
            return Err(
                "the prompt has no token; give at least one, such as the one for the beginning of a text"
                    .into(),
            );
        }
        check_vocabulary(tokens.iter().map(|&token| i64::from(token)), &checkpoint.config)
            .map_err(|detail| format!("the prompt: {detail}"))?;
        let context = checkpoint.config.max_position_embeddings;
        if tokens.len() > context {
            return Err(format!(
                "the prompt has {} tokens, and the model's context is {context}; shorten the prompt",
                tokens.len()
            )
            .into());
        }
        Ok((tokens, tokenizer))
    }
}

fn continue_prompt<T: Scalar, P: Products<T>>(
    args: &GenerateArgs,
    checkpoint: &Checkpoint,
    prompt: &[u32],
    tokenizer: Option<&Tokenizer>,
    products: P,
) -> Result<ExitCode, CliError> {
    let config = &checkpoint.config;
    let ends = if args.ignore_end { Vec::new() } else { ends_of_sequence(&checkpoint.directory)? };
    let dense_tokens = (prompt.len() as f64 * args.dense_prefix).floor() as usize;
    let thresholds = args.pruning.thresholds(config, dense_tokens)?;
    let activations = Activations {
        sparsity: args.pruning.activation_sparsity,
        thresholds: thresholds.as_ref(),
        ..Activations::default()
    };
    let capacity = prompt.len().saturating_add(args.max_tokens).min(config.max_position_embeddings);
    let progress = Progress::new("loading", false);
    let decoder = Decoder::load(checkpoint, products, args.format, activations, capacity, &progress)?;
    drop(progress);

    let mut sampler = Sampler::new(args.temperature, args.top_p, args.seed);
    let mut output = Output::new(tokenizer, prompt, !args.json);
    let generation =
        generate(&decoder, prompt, args.max_tokens, &ends, &mut sampler, |token| output.push(token))?;
    let text = output.finish()?;
    let stats = args.stats.then(|| Stats::new(&decoder, prompt.len(), &generation));
    let Generation { tokens, stopped, .. } = &generation;
    if args.json {
        let text = tokenizer.map(|_| text.as_str());
        let outcome = Outcome { prompt_tokens: prompt, tokens, text, stopped: *stopped, stats };
        println!("{}", serde_json::to_string_pretty(&outcome)?);
        return Ok(ExitCode::SUCCESS);
    }
    if *stopped == Stopped::Context {
        eprintln!("the model's context of {} tokens is full", config.max_position_embeddings);
    }
    if let Some(stats) = stats {
        eprint!("{stats}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Where tokens go as they are made: stdout, as text, or as numbers where there is no tokenizer.
struct Output<'a> {
    stream: Option<TextStream<'a>>,
    text: String,
    print: bool,
}

impl<'a> Output<'a> {
    fn new(tokenizer: Option<&'a Tokenizer>, prompt: &[u32], print: bool) -> Self {
        let stream = tokenizer.map(|tokenizer| TextStream::after(tokenizer, prompt));
        Output { stream, text: String::new(), print }
    }

    fn push(&mut self, token: u32) -> io::Result<()> {
        let chunk = match &mut self.stream {
            Some(stream) => stream.push(token).map_err(io::Error::other)?,
            None if self.text.is_empty() => token.to_string(),
            None => format!(",{token}"),
        };
        self.write(&chunk)
    }

    fn write(&mut self, chunk: &str) -> io::Result<()> {
        self.text += chunk;
        if self.print {
            let mut stdout = io::stdout().lock();
            stdout.write_all(chunk.as_bytes())?;
            stdout.flush()?;
        }
        Ok(())
    }

    /// What still waits, and the end of the line; returns all that was written before it.
    fn finish(mut self) -> io::Result<String> {
        if let Some(stream) = self.stream.take() {
            let rest = stream.finish().map_err(io::Error::other)?;
            self.write(&rest)?;
        }
        let text = std::mem::take(&mut self.text);
        self.write("\n")?;
        Ok(text)
    }
}
