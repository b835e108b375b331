//! A LLaMA with random weights and nothing to say, in the shape of a real one: for measuring time and memory.
//!
//! ```text
//! cargo run --release --example make_random_checkpoint -- random-1.1b
//! cargo run --release -- prune --model random-1.1b --tokens random-1.1b/tokens.safetensors --output pruned
//! ```
//!
//! Without options it has the shape of TinyLlama 1.1B, in bf16 (2.2 GB in three shards). Beside the model lie token
//! windows to calibrate on, so that no tokenizer is needed. Everything comes from ChaCha8 with the given seed.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use duogpt::files::write_atomically;
use duogpt::tensors::{Dtype, FloatType, TensorWriter};
use indicatif::{ProgressBar, ProgressStyle};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Parser)]
struct Args {
    /// Directory to create.
    output: PathBuf,
    #[arg(long, default_value_t = 22)]
    layers: usize,
    #[arg(long, default_value_t = 2048)]
    hidden_size: usize,
    #[arg(long, default_value_t = 5632)]
    intermediate_size: usize,
    #[arg(long, default_value_t = 32)]
    heads: usize,
    #[arg(long, default_value_t = 4)]
    kv_heads: usize,
    #[arg(long, default_value_t = 32000)]
    vocabulary: usize,
    /// Token windows for calibration.
    #[arg(long, default_value_t = 4)]
    windows: usize,
    /// Tokens in each.
    #[arg(long, default_value_t = 128)]
    sequence_length: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Bytes after which a new shard begins.
const SHARD: usize = 1 << 30;

/// As published models are initialised.
const STANDARD_DEVIATION: f32 = 0.02;

/// Name and shape of every tensor, in the order of the forward pass.
fn tensors(args: &Args) -> Vec<(String, Vec<usize>)> {
    let (hidden, mlp) = (args.hidden_size, args.intermediate_size);
    let key_value = hidden / args.heads * args.kv_heads;
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![args.vocabulary, hidden])];
    for layer in 0..args.layers {
        let of_layer = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![key_value, hidden]),
            ("self_attn.v_proj", vec![key_value, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![mlp, hidden]),
            ("mlp.up_proj", vec![mlp, hidden]),
            ("mlp.down_proj", vec![hidden, mlp]),
        ];
        tensors.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    tensors.push(("lm_head.weight".into(), vec![args.vocabulary, hidden]));
    tensors
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if args.heads == 0
        || args.kv_heads == 0
        || args.hidden_size % (2 * args.heads) != 0
        || args.heads % args.kv_heads != 0
    {
        return Err(
            "the heads must divide the hidden size into even widths, and the kv heads the heads".into()
        );
    }
    fs::create_dir(&args.output).map_err(|error| format!("{}: {error}", args.output.display()))?;
    let mut random = ChaCha8Rng::seed_from_u64(args.seed);
    write_weights(&args, &mut random)?;
    write_tokens(&args, &mut random)?;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": args.hidden_size,
        "intermediate_size": args.intermediate_size,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "vocab_size": args.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
    });
    // Last: without it the directory is no checkpoint.
    write_atomically(&args.output.join("config.json"), format!("{config:#}\n").as_bytes())?;
    Ok(())
}

fn write_weights(args: &Args, random: &mut ChaCha8Rng) -> Result<(), Box<dyn Error>> {
    let bytes = |shape: &[usize]| shape.iter().product::<usize>() * FloatType::Bf16.size();
    let mut shards: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, shape) in tensors(args) {
        if filled >= SHARD {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes(&shape);
        shards.last_mut().expect("there is one").push((name, shape));
    }
    let total: usize = shards.iter().flatten().map(|(_, shape)| bytes(shape)).sum();
    let bar = ProgressBar::new(total as u64).with_style(ProgressStyle::with_template(
        "[{bar:32}] {bytes} of {total_bytes}, {elapsed} elapsed, {eta} left",
    )?);

    let mut place = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let headers = shard.iter().map(|(name, shape)| (name.as_str(), Dtype::BF16, shape.as_slice()));
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let writer = TensorWriter::create(&args.output.join(&file), headers, &metadata)?;
        for (name, shape) in shard {
            let columns = shape[shape.len() - 1];
            let rows = shape.iter().product::<usize>() / columns;
            let weight = match shape.len() {
                1 => Array2::ones((rows, columns)),
                // Uniform with this standard deviation.
                _ => Array2::from_shape_simple_fn((rows, columns), || {
                    STANDARD_DEVIATION * 12f32.sqrt() * (random.random::<f32>() - 0.5)
                }),
            };
            writer.write(name, &FloatType::Bf16.encode(weight.view()))?;
            place.insert(name.clone(), file.clone());
            bar.inc(bytes(shape) as u64);
        }
        writer.sync()?;
    }
    bar.finish_and_clear();
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": place });
    let path = args.output.join("model.safetensors.index.json");
    Ok(write_atomically(&path, format!("{index:#}\n").as_bytes())?)
}

fn write_tokens(args: &Args, random: &mut ChaCha8Rng) -> Result<(), Box<dyn Error>> {
    let path: &Path = &args.output.join("tokens.safetensors");
    let shape = [args.windows, args.sequence_length];
    let writer = TensorWriter::create(path, [("tokens", Dtype::I64, &shape[..])], &HashMap::new())?;
    let tokens =
        (0..args.windows * args.sequence_length).map(|_| random.random_range(0..args.vocabulary) as i64);
    writer.write("tokens", &tokens.flat_map(i64::to_le_bytes).collect::<Vec<_>>())?;
    writer.sync()?;
    Ok(())
}
