//! Writes a LLaMA with random weights, to try memory and time on a shape without its download:
//!
//! ```text
//! cargo run --release --example make_random_checkpoint -- --output random-1.1b --shape 1.1b
//! duogpt prune --model random-1.1b --tokens random-1.1b/tokens.safetensors --samples 4 --output pruned-1.1b
//! ```
//!
//! The weights are uniform with standard deviation 0.02, in bf16, from ChaCha8 with a stream of its own for every tensor;
//! with `--weight-sparsity` the smallest of them are zero. The norms are 1. `tokens.safetensors` holds 16 windows of 128
//! random tokens.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use duogpt::model::{Checkpoint, ModelConfig};
use duogpt::tensors::{Dtype, TensorWriter};
use half::bf16;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// Directory to create.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    #[arg(long, value_enum, default_value = "1.1b")]
    shape: Shape,
    /// Of the weights and tokens.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fraction of the decoder layers' weights, the smallest, that is zero.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    weight_sparsity: f32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    /// 2 layers, hidden 768, intermediate 3072, 12 heads.
    #[value(name = "68m")]
    Small,
    /// 22 layers, hidden 2048, intermediate 5632, 32 heads, 4 key-value heads.
    #[value(name = "1.1b")]
    Medium,
    /// 32 layers, hidden 4096, intermediate 14336, 32 heads, 8 key-value heads.
    #[value(name = "8b")]
    Large,
}

const STANDARD_DEVIATION: f32 = 0.02;
const SHARD_BYTES: usize = 512 << 20;
const TOKENS: [usize; 2] = [16, 128];

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    if args.output.exists() {
        return Err(format!("{} exists already", args.output.display()).into());
    }
    // Complete, or not there.
    let mut partial = args.output.clone().into_os_string();
    partial.push(".partial");
    let partial = Path::new(&partial);
    fs::create_dir(partial)?;
    write(partial, args.shape, args.seed, args.weight_sparsity)
        .inspect_err(|_| drop(fs::remove_dir_all(partial)))?;
    fs::rename(partial, &args.output)?;
    Ok(())
}

fn write(directory: &Path, shape: Shape, seed: u64, weight_sparsity: f32) -> Result<(), Box<dyn Error>> {
    let [layers, hidden, intermediate, heads, kv_heads, vocabulary] = match shape {
        Shape::Small => [2, 768, 3072, 12, 12, 32000],
        Shape::Medium => [22, 2048, 5632, 32, 4, 32000],
        Shape::Large => [32, 4096, 14336, 32, 8, 128_256],
    };
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    let config_path = directory.join("config.json");
    fs::write(&config_path, format!("{json:#}\n"))?;
    let config = ModelConfig::read(&config_path)?;

    let shards = shards(tensors(&config));
    let bytes = |shape: &[usize]| 2 * shape.iter().product::<usize>();
    let total: usize = shards.iter().flatten().map(|(_, shape)| bytes(shape)).sum();
    let bar = ProgressBar::new(total as u64);
    bar.set_style(ProgressStyle::with_template("[{bar:32}] {bytes} of {total_bytes}, {eta} left")?);
    let mut weight_map = serde_json::Map::new();
    let mut stream = 0;
    for (number, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        let headers = shard.iter().map(|(name, shape)| (name.as_str(), Dtype::BF16, shape.as_slice()));
        let metadata = HashMap::from([("format".into(), "pt".into())]);
        let writer = TensorWriter::create(&directory.join(&file), headers, &metadata)?;
        for (name, shape) in shard {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(stream);
            stream += 1;
            let sparsity = if name.contains(".layers.") { weight_sparsity } else { 0.0 };
            writer.write(name, &values(shape, sparsity, &mut random))?;
            weight_map.insert(name.clone(), file.as_str().into());
            bar.inc(bytes(shape) as u64);
        }
        writer.sync()?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    fs::write(directory.join(Checkpoint::INDEX), format!("{index:#}\n"))?;

    let tokens = TensorWriter::create(
        &directory.join("tokens.safetensors"),
        [("tokens", Dtype::I64, &TOKENS[..])],
        &HashMap::new(),
    )?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    let ids = (0..TOKENS[0] * TOKENS[1]).map(|_| random.random_range(0..vocabulary as u64));
    tokens.write("tokens", &ids.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?;
    bar.finish();
    Ok(())
}

/// Names and shapes, in the order of the forward pass.
fn tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![("model.embed_tokens.weight".into(), vec![config.vocab_size, hidden])];
    for layer in 0..config.num_hidden_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), vec![hidden]));
        }
        for linear in config.linears() {
            let (rows, columns) = linear.shape(config);
            tensors.push((format!("model.layers.{layer}.{}.weight", linear.module), vec![rows, columns]));
        }
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    tensors.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
    tensors
}

/// Cuts before a shard would exceed its size.
fn shards(tensors: Vec<(String, Vec<usize>)>) -> Vec<Vec<(String, Vec<usize>)>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for (name, shape) in tensors {
        let bytes = 2 * shape.iter().product::<usize>();
        if filled > 0 && filled + bytes > SHARD_BYTES {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("never empty").push((name, shape));
    }
    shards
}

/// bf16, little-endian.
fn values(shape: &[usize], sparsity: f32, random: &mut ChaCha8Rng) -> Vec<u8> {
    let count = shape.iter().product();
    if shape.len() == 1 {
        return bf16::ONE.to_le_bytes().repeat(count);
    }
    let reach = 3f32.sqrt() * STANDARD_DEVIATION; // of the uniform distribution with this deviation
    let mut bytes = Vec::with_capacity(2 * count);
    for _ in 0..count {
        let weight: f32 = random.random_range(-reach..reach);
        let kept = if weight.abs() < sparsity * reach { 0.0 } else { weight };
        bytes.extend(bf16::from_f32(kept).to_le_bytes());
    }
    bytes
}
