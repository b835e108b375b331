"""Writes fixtures/sparse-bitmask/: a small random LLaMA, dense and in the layout of the compressed-tensors package, and
what that package makes of it.

    python3 scripts/make-sparse-bitmask-fixture.py DUOGPT

DUOGPT is the program. Needs Python packages torch, transformers, safetensors and compressed-tensors 0.12.2 (later ones have
dropped the layout).

- dense/: two shards, written by the safetensors library: bf16, half of the linears' weights zero, among the others -0,
  denormals and the largest numbers; one linear without a weight, one without a zero, some rows empty.
- compressed/: `duogpt convert --format sparse-bitmask` of dense/.
- decompressed.safetensors: the package's decompression of compressed/.
- package/: the package's own compression of dense/, in one file. It takes -0 for a zero.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.model_compressors import ModelCompressor
from compressed_tensors.config import BitmaskConfig
from safetensors import safe_open
from safetensors.torch import save_file

assert version("compressed-tensors").startswith("0.12."), "another version of compressed-tensors"
OUT = Path(__file__).resolve().parent.parent / "fixtures" / "sparse-bitmask"
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS, VOCABULARY = 36, 90, 4, 2, 2, 40

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": 10,
    "hidden_act": "silu",
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def tensors():
    generator = torch.Generator().manual_seed(6)

    def random(*shape):
        return (torch.randn(*shape, generator=generator) * 0.1).to(torch.bfloat16)

    def sparse(n, k):
        weight = random(n, k)
        kind = torch.rand(n, k, generator=generator)
        weight[kind < 0.5] = 0.0
        weight[(kind >= 0.5) & (kind < 0.52)] = -0.0
        weight[(kind >= 0.52) & (kind < 0.54)] = 1e-40  # a denormal
        weight[(kind >= 0.54) & (kind < 0.55)] = 3e38
        return weight

    heads, kv_heads = HEADS * 10, KV_HEADS * 10
    all_tensors = {"model.embed_tokens.weight": random(VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (heads, HIDDEN),
            "self_attn.k_proj": (kv_heads, HIDDEN),
            "self_attn.v_proj": (kv_heads, HIDDEN),
            "self_attn.o_proj": (HIDDEN, heads),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }
        for name, shape in shapes.items():
            all_tensors[f"model.layers.{layer}.{name}.weight"] = sparse(*shape)
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            all_tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + random(HIDDEN)
    all_tensors["model.layers.0.self_attn.k_proj.weight"].zero_()
    all_tensors["model.layers.0.self_attn.v_proj.weight"] = random(kv_heads, HIDDEN) + 1
    all_tensors["model.layers.1.mlp.down_proj.weight"][::3] = 0.0
    all_tensors["model.norm.weight"] = 1 + random(HIDDEN)
    all_tensors["lm_head.weight"] = random(VOCABULARY, HIDDEN)
    return all_tensors


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def bits(tensor):
    return tensor.contiguous().view(torch.int16)


def main(program):
    dense = OUT / "dense"
    dense.mkdir(parents=True)
    all_tensors = tensors()
    write_json(dense / "config.json", CONFIG)
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    first, second = shards
    for name, tensor in all_tensors.items():
        shards[second if "layers.1" in name or name == "lm_head.weight" else first][name] = tensor
    for file, content in shards.items():
        save_file(content, dense / file, metadata={"format": "pt"})
    write_json(
        dense / "model.safetensors.index.json",
        {
            "metadata": {"total_size": sum(2 * tensor.numel() for tensor in all_tensors.values())},
            "weight_map": {name: file for file, content in shards.items() for name in content},
        },
    )

    compressed = OUT / "compressed"
    subprocess.run(
        [program, "convert", "--model", dense, "--output", compressed, "--format", "sparse-bitmask"], check=True
    )
    # As a runtime reads it: from the entry in config.json.
    entry = json.loads((compressed / "config.json").read_text())["quantization_config"]
    compressor = ModelCompressor.from_compression_config(entry)
    assert compressor.quantization_config is None, "the entry says that the model is quantised"
    decompressed = dict(compressor.sparsity_compressor.decompress(str(compressed)))
    assert decompressed.keys() == all_tensors.keys()
    for name, tensor in all_tensors.items():
        assert torch.equal(bits(decompressed[name]), bits(tensor)), name
    save_file(decompressed, OUT / "decompressed.safetensors")

    package = OUT / "package"
    package.mkdir()
    own = BaseCompressor.load_from_registry("sparse-bitmask", config=BitmaskConfig())
    targets = {name.removesuffix(".weight") for name in all_tensors if "_proj" in name}
    save_file(own.compress(all_tensors, compression_targets=targets), package / "model.safetensors")
    write_json(package / "config.json", CONFIG)
    ModelCompressor(sparsity_config=BitmaskConfig(targets=["Linear"], ignore=["lm_head"])).update_config(str(package))


main(sys.argv[1])
