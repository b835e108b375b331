"""Writes the seed corpora fuzz/corpus/<target>/ from the fixtures. Needs Python 3 and nothing else. Run: python3 fuzz/seeds.py

The fixtures are too large to mutate well. So test vectors are cut to the leading corner of each tensor, the tokenizer
to its first merges, and the checkpoints are made anew: one layer, random weights, one file or two.
"""

import itertools
import json
import math
import random
import struct
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
SEPARATOR = b"\n%%%%\n"  # as in src/lib.rs
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}


def safetensors(tensors, metadata=None):
    """tensors: name -> (dtype, shape, bytes)."""
    header, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def write(target, name, *files):
    directory = HERE / "corpus" / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(SEPARATOR.join(files))


def corner(data, dtype, shape, largest):
    """The entries whose every index is below `largest`."""
    size = BYTES[dtype]
    strides = [math.prod(shape[i + 1:]) for i in range(len(shape))]
    cut = [min(length, largest) for length in shape]
    places = (sum(i * s for i, s in zip(index, strides)) for index in itertools.product(*map(range, cut)))
    return dtype, cut, b"".join(data[at * size:(at + 1) * size] for at in places)


def golden():
    """Test vectors cut to the leading corner of each tensor: one call, one slice."""
    most = 8
    for path in sorted((FIXTURES / "vectors/v1").glob("[!n]*/*/tensors.safetensors")):
        content, case = path.read_bytes(), json.loads((path.parent / "case.json").read_text())
        start = 8 + struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        tensors = {}
        case["stages"] = [stage for stage in case["stages"] if stage["by"] != "block"]
        for name, info in header.items():
            if "trace.block_weight" in name:
                case["tensors"].pop(name, None)
                continue
            begin, end = info["data_offsets"]
            tensors[name] = corner(content[start + begin:start + end], info["dtype"], info["shape"], most)
            if name.endswith("trace.perm"):
                tensors[name] = ("I64", [most], struct.pack("<8q", *range(most)))
            if name == "input.calls":
                tensors[name] = ("I64", [1, 2], struct.pack("<2q", 1, most))
            if name in case["tensors"]:
                case["tensors"][name]["shape"] = tensors[name][1]
        case["shape"] = {side: min(length, most) for side, length in case["shape"].items()}
        case["slices"] = [[0, case["shape"]["k"], 0]] if case["slices"] else []
        name = f"{path.parent.parent.name}-{path.parent.name}"
        write("golden", name, json.dumps(case).encode(), safetensors(tensors))


def config():
    for model in ["tiny-llama", "nano-llama", "llama3"]:
        write("config", model, (FIXTURES / model / "config.json").read_bytes())
    for file in (FIXTURES / "architectures").glob("*/config.json"):
        write("config", file.parent.name, file.read_bytes())


def tokenizer():
    directory = FIXTURES / "tiny-llama"
    json_file = json.loads((directory / "tokenizer.json").read_bytes())
    model = json_file["model"]
    model["merges"] = model["merges"][:20]
    kept = set(token for merge in model["merges"] for token in (*merge, "".join(merge)))
    model["vocab"] = {token: i for token, i in model["vocab"].items() if len(token) == 1 or i < 2 or token in kept}
    beside = [(directory / name).read_bytes() for name in ("tokenizer_config.json", "special_tokens_map.json")]
    write("tokenizer", "byte_level_bpe", json.dumps(json_file).encode(), *beside)
    small = dict(json_file, model=dict(model, vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, merges=[["a", "b"]]))
    write("tokenizer", "five_tokens", json.dumps(small).encode(), *beside)
    pieces = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -2.0]], "byte_fallback": False}
    words = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
             "vocab": {"[UNK]": 0, "a": 1, "##b": 2}}
    level = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "fox": 1}}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
    split = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}"}, "behavior": "Isolated", "invert": False},
                                                   {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]}
    normal = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]}
    for name, model in [("unigram", pieces), ("word_piece", words), ("word_level", level)]:
        write("tokenizer", name, json.dumps(dict(small, model=model, post_processor=template, pre_tokenizer=split,
                                                 normalizer=normal)).encode())


def compressed(tensors):
    """The linears of F16 tensors in the sparse-bitmask layout, each without every second column."""
    stored = {}
    for name, (dtype, shape, data) in tensors.items():
        module, is_linear = name.removesuffix(".weight"), "_proj" in name
        if not is_linear:
            stored[name] = (dtype, shape, data)
            continue
        n, k = shape
        values = b"".join(data[2 * at:2 * at + 2] for at in range(0, n * k, 2))
        mask = bytes([0b01010101] * (k // 8) + [0b0101] * (k % 8 != 0)) * n
        offsets = struct.pack(f"<{n}q", *range(0, n * k // 2, k // 2))
        stored |= {f"{module}.shape": ("I64", [2], struct.pack("<2q", n, k)), f"{module}.row_offsets": ("I64", [n], offsets),
                   f"{module}.compressed": (dtype, [n * k // 2], values), f"{module}.bitmask": ("U8", [n, -(-k // 8)], mask)}
    return stored


def checkpoint():
    random.seed(0)
    hidden, intermediate, vocabulary = 8, 12, 6
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    layer = "model.layers.0."
    for name, shape in [("self_attn.q_proj", [8, 8]), ("self_attn.k_proj", [4, 8]), ("self_attn.v_proj", [4, 8]),
                        ("self_attn.o_proj", [8, 8]), ("mlp.gate_proj", [12, 8]), ("mlp.up_proj", [12, 8]),
                        ("mlp.down_proj", [8, 12]), ("input_layernorm", [8]), ("post_attention_layernorm", [8])]:
        shapes[f"{layer}{name}.weight"] = shape
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": intermediate,
              "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": vocabulary,
              "max_position_embeddings": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}

    def tensor(shape, dtype):
        values = [random.gauss(0, 0.5) for _ in range(math.prod(shape))]
        if dtype == "F16":
            return dtype, shape, struct.pack(f"<{len(values)}e", *values)
        wide = [struct.pack("<f", x) for x in values]
        return dtype, shape, b"".join(x[2:] if dtype == "BF16" else x for x in wide)

    text = json.dumps(config).encode()
    for dtype in ["F32", "BF16", "F16"]:
        tensors = {name: tensor(shape, dtype) for name, shape in shapes.items()}
        write("checkpoint", f"one_file_{dtype}", text, b"", safetensors(tensors, {"format": "pt"}))
    halves = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    place = {name: halves["mlp" in name] for name in tensors}
    index = json.dumps({"metadata": {}, "weight_map": place}).encode()
    shards = [safetensors({n: t for n, t in tensors.items() if place[n] == half}) for half in halves]
    write("checkpoint", "two_shards", text, index, b"", *shards)
    untied = json.dumps(dict(config, tie_word_embeddings=False)).encode()
    tensors["lm_head.weight"] = tensor([vocabulary, hidden], "F16")
    write("checkpoint", "lm_head", untied, b"", safetensors(tensors))

    entry = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}
    stored = json.dumps(dict(config, quantization_config=entry)).encode()
    write("checkpoint", "sparse_bitmask", stored, b"", safetensors(compressed(tensors)))

    windowed = dict(config, architectures=["MistralForCausalLM"], sliding_window=2)
    write("checkpoint", "mistral", json.dumps(windowed).encode(), b"", safetensors(tensors))
    biased = dict(config, architectures=["Qwen2ForCausalLM"], use_sliding_window=True, max_window_layers=0, sliding_window=3)
    biases = {f"{layer}self_attn.{name}_proj.bias": tensor([size], "F16") for name, size in [("q", 8), ("k", 4), ("v", 4)]}
    write("checkpoint", "qwen2", json.dumps(biased).encode(), b"", safetensors(tensors | biases))

    narrow = 4
    opt = {"architectures": ["OPTForCausalLM"], "hidden_size": hidden, "ffn_dim": intermediate, "num_attention_heads": 2,
           "num_hidden_layers": 1, "vocab_size": vocabulary, "max_position_embeddings": 8}
    shapes = {"embed_tokens.weight": [vocabulary, hidden], "embed_positions.weight": [10, hidden]}
    for name, shape in [("self_attn.q_proj", [8, 8]), ("self_attn.k_proj", [8, 8]), ("self_attn.v_proj", [8, 8]),
                        ("self_attn.out_proj", [8, 8]), ("fc1", [12, 8]), ("fc2", [8, 12]),
                        ("self_attn_layer_norm", [8]), ("final_layer_norm", [8])]:
        shapes |= {f"layers.0.{name}.weight": shape, f"layers.0.{name}.bias": shape[:1]}
    last = {"final_layer_norm.weight": [hidden], "final_layer_norm.bias": [hidden]}
    whole = {f"decoder.{name}": tensor(shape, "F16") for name, shape in (shapes | last).items()}
    write("checkpoint", "opt", json.dumps(opt).encode(), b"", safetensors(whole))
    post_norm = dict(opt, do_layer_norm_before=False, word_embed_proj_dim=narrow)
    shapes |= {"embed_tokens.weight": [vocabulary, narrow], "project_in.weight": [hidden, narrow],
               "project_out.weight": [narrow, hidden]}
    whole = {f"model.decoder.{name}": tensor(shape, "F16") for name, shape in shapes.items()}
    write("checkpoint", "opt_post_norm", json.dumps(post_norm).encode(), b"", safetensors(whole))


golden()
config()
tokenizer()
checkpoint()
