#!/usr/bin/env python3
"""Writes the cases of the first golden files in the form of fixtures/vectors/v1.

    python scripts/make-golden-vectors.py GOLDEN_DIR fixtures/vectors/v1

GOLDEN_DIR holds the 22 safetensors files that the original Python code left: a DuoGPT layer each, or several runs on one
layer. Every number is copied; added are the dead channels and the damping, which follow from the recorded Hessian, and
the codes and column order of a quantised weight, which follow from its grid. Needs numpy.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "I64": "<i8", "U8": "u1"}
NAMES = {"float64": "F64", "int64": "I64", "uint8": "U8"}
DUOGPT = {"repository": "https://github.com/hsa1as/SEDL_Project", "file": "better_prune/pruner/obc.py",
          "commit": "39b7f70ee0e8c67a53c0e3c1af6d89cbe93e5c43",
          "note": "third-party copy of the DuoGPT class of RuokaiYin/DuoGPT"}
SPARSEGPT = {"repository": "https://github.com/IST-DASLab/sparsegpt", "file": "sparsegpt.py",
             "commit": "147d2159dc4f3e9f73e47b32c04d7b3708f44436"}
WANDA = {"repository": "https://github.com/locuslab/wanda", "file": "lib/prune.py, lib/layerwrapper.py",
         "commit": "8e8fc87b4a2f9955baa7e76e64d5fce7fa8724a6"}
GPTAQ = {"repository": "https://github.com/Intelligent-Computing-Lab-Yale/GPTAQ",
         "file": "fake_quant/gptaq_utils.py, fake_quant/quant_utils.py",
         "commit": "883afc64f40ac061a59ef8cbe5bd794c01377e37"}
SOURCE = {"python": "3.11.7", "torch": "2.4.0+cu121", "numpy": "1.26.4", "arithmetic": "float64",
          "how": "the original code on a CPU, every .float() evaluated in float64; trace.dead and trace.damping from "
                 "the recorded Hessian by scripts/make-golden-vectors.py"}
MEANING = {
    "input.weight": "W, one row per output channel",
    "input.activations": "inputs of the layer, one row per token",
    "input.dense_activations": "dense inputs X~, one row per token",
    "input.sparse_activations": "sparse inputs X^, one row per token",
    "input.calls": "one row per call of the statistics hook: [sequences in the call, tokens per sequence]",
    "stats.hessian": "H, running mean over sequences, before dead-channel handling and damping",
    "stats.dxxt": "dX X^T, running mean over sequences",
    "stats.dxdxt": "diag(dX dX^T), running mean over sequences",
    "stats.scaler_row": "mean over sequences of the sum of x^2",
    "trace.dead": "1 = channel treated as dead (diagonal of H was 0)",
    "trace.perm": "new position -> original column",
    "trace.damping": "[1] the amount added to every diagonal entry of H",
    "trace.hinv_chol": "U = L^T, upper, H^-1 = U^T U, H damped",
    "trace.q_matrix": "Q = dX X^T L",
    "trace.p_matrix": "alpha D",
    "trace.coef_a": "a = diag(dX dX^T)",
    "trace.coef_b": "b_p = sum of the squares right of the diagonal of row p of Q",
    "trace.coef_2c": "2c = 2 diag(Q) / diag(L)",
    "trace.score": "score as compared, on the weights of that moment",
    "trace.mask": "1 = pruned",
    "trace.scale": "scale of the grid of every weight",
    "trace.zero": "code of zero of the grid of every weight",
    "trace.codes": "integer codes",
    "trace.threshold": "smallest magnitude kept in each token",
    "output.weight": "result (dequantised where quantised)",
    "output.activations": "pruned activations",
}
STAGES = [("statistics", "whole", ["stats.hessian", "stats.dxxt", "stats.dxdxt", "stats.scaler_row"]),
          ("dead", "whole", ["trace.dead"]), ("permutation", "whole", ["trace.perm"]),
          ("damping", "whole", ["trace.damping"]), ("factor", "whole", ["trace.hinv_chol"]),
          ("drift", "whole", ["trace.q_matrix", "trace.p_matrix"]),
          ("coefficients", "whole", ["trace.coef_a", "trace.coef_b", "trace.coef_2c"]),
          ("threshold", "whole", ["trace.threshold"]), ("score", "columns", ["trace.score"]),
          ("mask", "columns", ["trace.mask"]), ("grid", "columns", ["trace.scale", "trace.zero"]),
          ("codes", "columns", ["trace.codes"]), ("output", "whole", ["output.weight", "output.activations"])]
WHY = {
    "basic": "the plain algorithm: half of each block, half of the activations, two blocks",
    "act-order-k64": "columns sorted by diag(H), descending",
    "block-act-order": "the interleaved column order",
    "dxxt-order": "columns sorted by diag(H) + |diag(dX X^T)|; with activation pruning alone the second term is 0",
    "dead-columns": "input channels that are never active",
    "drifted-stream": "the sparse stream differs from the dense one by more than activation pruning",
    "wide": "a layer of 192 channels, recorded without traces",
}


def read(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + at for at in entry["data_offsets"])
        tensors[name] = np.frombuffer(raw[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def stable_order(tensors, in_processing_order):
    """The same result with columns of equal diag(H) in their natural order, where the original's sort left another: the
    tensors in processing order, their columns (and rows, if they are square) moved."""
    perm, hessian = tensors["trace.perm"], np.diag(tensors["stats.hessian"])
    hessian = np.where(hessian == 0, 1.0, hessian)
    stable = np.array(sorted(range(len(perm)), key=lambda at: (np.flatnonzero(hessian[perm] == hessian[perm[at]])[0], perm[at])))
    if (stable == np.arange(len(perm))).all():
        return {}
    moved = {name: tensors[name][..., stable] for name in in_processing_order if tensors[name].shape[-1] == len(perm)}
    square = ("trace.hinv_chol", "trace.q_matrix", "trace.p_matrix")
    return {name: values[stable] if name in square else values for name, values in moved.items()}


def write(root, algorithm, case_id, settings, source, tensors, in_processing_order, slices, flags, seed=0):
    folder = root / algorithm / case_id
    folder.mkdir(parents=True, exist_ok=True)
    stages = []
    for stage, by, names in STAGES:
        names = [name for name in names if name in tensors]
        if names:
            stages.append({"name": stage, "tensors": names, "by": by if slices else "whole"})
    # Without a loop there are no slices: a trace is compared at once.
    entries = {}
    for name, values in tensors.items():
        role = {"input": "input", "stats": "statistics", "trace": "trace", "output": "output"}[name.split(".")[0]]
        order = "processing" if name in in_processing_order else "original"
        entries[name] = {"shape": list(values.shape), "dtype": NAMES[str(values.dtype)], "meaning": MEANING[name],
                         "order": order, "role": role}
    shape = {"k": int(next(iter(tensors.values())).shape[-1])}
    if "input.weight" in tensors:
        shape = dict(zip("nk", map(int, tensors["input.weight"].shape)))
    exact = any(values.dtype.kind in "iu" for name, values in tensors.items() if not name.startswith("input"))
    document = {
        "schema_version": 1, "id": case_id, "algorithm": algorithm, "dialect": "original",
        "source": {**source, **SOURCE}, "seed": seed, "settings": settings, "shape": shape, "tensors": entries,
        "stages": stages, "slices": slices, "flags": [{"id": i, "reason": r} for i, r in flags],
        "tolerance": {"class": "exact-mask" if exact else "relative", "value": 1e-9,
                      "why": "float64 on both sides; only the order of summation may differ"}, "accept": []}
    other = stable_order(tensors, in_processing_order) if "trace.perm" in tensors else {}
    if other:
        document["accept"] = [{
            "id": "tied-columns-stable", "reason": "columns with equal diag(H) tie; a stable sort keeps their order",
            "origin": "the recorded tensors, the tied columns moved", "tensors": sorted(other)}]
        tensors = {**tensors, **{f"accept.tied-columns-stable.{name}": values for name, values in other.items()}}
    (folder / "case.json").write_text(json.dumps(document, indent=1) + "\n")
    header, data = {}, b""
    # Longer elements first, so that all lie aligned.
    for name, values in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        blob = np.ascontiguousarray(values).tobytes()
        header[name] = {"dtype": NAMES[str(values.dtype)], "shape": list(values.shape),
                        "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "tensors.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def inputs(tensors):
    """Activations as rows, and the calls: one sequence each."""
    dense = tensors["input.dense_activations"]
    sequences, tokens, k = dense.shape
    calls = np.tile(np.array([[1, tokens]], np.int64), (sequences, 1))
    out = {"input.weight": tensors["input.weight"]}
    if "input.sparse_activations" in tensors:
        out["input.dense_activations"] = dense.reshape(-1, k)
        out["input.sparse_activations"] = tensors["input.sparse_activations"].reshape(-1, k)
    else:
        out["input.activations"] = dense.reshape(-1, k)
    return {**out, "input.calls": calls}


def marks(hessian, damping):
    dead = np.diag(hessian) == 0
    diagonal = np.where(dead, 1.0, np.diag(hessian))
    return {"trace.dead": dead.astype(np.uint8), "trace.damping": np.array([damping * diagonal.mean()])}


def slices(k, block, group=None):
    step = group or block
    return [[at, min(at + step, start + block, k), start // block]
            for start in range(0, k, block) for at in range(start, min(start + block, k), step)]


def groups(n, m):
    return {"n": n, "m": m, "counts": "pruned"}


def duogpt(root, name, tensors, metadata):
    yes = lambda key: metadata[key] == "True"
    n, m = int(metadata["prunen"]), int(metadata["prunem"])
    block, k = int(metadata["blocksize"]), tensors["input.weight"].shape[1]
    order = "natural"
    if yes("act_order"):
        order = "interleaved" if yes("block_act") else "hessian_drift" if yes("dxxt_permutation") else "hessian"
    settings = {"weight_sparsity": groups(n, m) if n else float(metadata["sparsity"]),
                "mask_rule": "per-group-count" if n else "per-block-threshold-inclusive", "block_size": block,
                "damping": float(metadata["percdamp"]), "column_order": order, "hessian_factor": 1,
                "alpha": float(metadata["scale_alpha"]), "activation_sparsity": float(metadata["a_sparsity"])}
    if order == "interleaved":
        settings["order_run"] = int(metadata["act_blocksize"])
    traces = {key: value for key, value in tensors.items() if key.split(".")[0] in ("stats", "trace", "output")}
    all_tensors = {**inputs(tensors), **traces, **marks(tensors["stats.hessian"], settings["damping"])}
    case_id = name.replace("_", "-") + ("-k64" if name == "act_order" else "")
    processing = [key for key in all_tensors if key.startswith("trace.") and key != "trace.dead"]
    flags = [(case_id, WHY.get(case_id, "settings: " + name.replace("_", " ")))]
    write(root, "duogpt", case_id, settings, DUOGPT, all_tensors, processing, slices(k, block, m if n else None), flags,
          int(metadata["seed"]))


def pattern(run):
    """`unstructured50`, `nm24` -> weight sparsity."""
    if run.startswith("nm"):
        return groups(int(run[2]), int(run[3]))
    return int(run.removeprefix("unstructured").split("_")[0]) / 100


def sparsegpt(root, tensors):
    for run in ("unstructured50", "unstructured70_damp10", "nm24"):
        sparsity, damping = pattern(run), 0.1 if run.endswith("damp10") else 0.01
        grouped = isinstance(sparsity, dict)
        settings = {"weight_sparsity": sparsity,
                    "mask_rule": "per-group-count" if grouped else "per-block-threshold-inclusive", "block_size": 32,
                    "damping": damping, "column_order": "natural", "hessian_factor": 2}
        case = {**inputs(tensors), "stats.hessian": tensors["stats.hessian"],
                **marks(tensors["stats.hessian"], damping), "trace.mask": tensors[run + ".mask"],
                "output.weight": tensors[run + ".weight"]}
        write(root, "sparsegpt", "layer-" + run.replace("_", "-"), settings, SPARSEGPT, case, ["trace.mask"],
              slices(64, 32, 4 if grouped else None), [("plain", "SparseGPT with " + run.replace("_", ", "))])


def wanda(root, tensors):
    for run in ("unstructured50", "unstructured65", "nm24", "nm48"):
        sparsity = pattern(run)
        settings = {"weight_sparsity": sparsity,
                    "mask_rule": "per-group-count" if isinstance(sparsity, dict) else "per-row-count"}
        case = {**inputs(tensors), "stats.scaler_row": tensors["stats.scaler_row"], "trace.mask": tensors[run + ".mask"],
                "output.weight": tensors[run + ".weight"]}
        write(root, "wanda", "layer-" + run, settings, WANDA, case, [], [], [("plain", "Wanda with " + run)])


def gptaq(root, tensors):
    for run in ("sym4", "asym4_mse", "sym3_act_order", "sym4_alpha0_gptq"):
        symmetric, act_order = run.startswith("sym"), "act_order" in run
        settings = {"bits": int(run.removeprefix("a").removeprefix("sym")[0]), "group_size": None,
                    "static_groups": False, "symmetric": symmetric, "mse": "mse" in run, "grid": "signed",
                    "block_size": 32, "damping": 0.01, "column_order": "hessian" if act_order else "natural",
                    "hessian_factor": 2, "alpha": 0.0 if "alpha0" in run else 0.25, "activation_sparsity": 0.5}
        scale, zero, weight = (tensors[f"{run}.{what}"] for what in ("scale", "zero", "weight"))
        hessian = tensors["stats.hessian"]
        perm = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(weight.shape[1])
        codes = np.round(weight / scale + zero).astype(np.int64)[:, perm]
        case = {**inputs(tensors), "stats.hessian": hessian, "stats.dxxt": tensors["stats.dxxt"],
                **marks(hessian, 0.01), "trace.scale": np.broadcast_to(scale, weight.shape).copy(),
                "trace.zero": np.broadcast_to(zero, weight.shape).copy(), "trace.codes": codes, "output.weight": weight}
        if act_order:
            case["trace.perm"] = perm
        write(root, "gptaq", "layer-" + run.replace("_", "-"), settings, GPTAQ, case,
              ["trace.scale", "trace.zero", "trace.codes", "trace.perm", "trace.damping"], slices(64, 32),
              [("plain", "GPTAQ with " + run.replace("_", ", "))])


def activation(root, tensors):
    for name, values in tensors.items():
        if ".s" not in name:
            continue
        case, percent = name.split(".s")
        x, k = tensors[case + ".input"], values.shape[-1]
        tensors_of_case = {"input.activations": x.reshape(-1, k), "output.activations": values.reshape(-1, k)}
        write(root, "activation", f"{case}-s{percent}",
              {"activation_sparsity": int(percent) / 100, "mask_rule": "per-token-threshold-kept-inclusive"}, DUOGPT,
              tensors_of_case, [], [], [(case, f"{case} activations, {percent} % of each token")])


def main(golden, root):
    golden, root = Path(golden), Path(root)
    for path in sorted(golden.glob("*.safetensors")):
        tensors, metadata = read(path)
        if metadata.get("algorithm") == "DuoGPT":
            duogpt(root, path.stem, tensors, metadata)
        else:
            {"sparsegpt": sparsegpt, "wanda": wanda, "gptaq": gptaq, "activation_prune": activation}[path.stem](root, tensors)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
