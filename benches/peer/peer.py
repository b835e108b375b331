#!/usr/bin/env python3
"""The original algorithm as its user runs it: plain PyTorch, float32, TF32 off, torch.sort, a loop over columns.

Written from the equations of the paper (activation pruning, running statistics, Cholesky factor of the inverse, scores,
the column loop and the lazy update), for timing beside this crate on the same device. It checks itself against a test vector
first, then times: activation pruning, statistics, factor, and a whole layer behind its statistics, and writes JSON:

    {"environment": {...}, "checked": {...}, "seconds": {case: seconds}, "spread": {case: relative}}

The cases have the names of `cargo bench --bench gpu`, which reads the file (DUOGPT_PEER_RESULTS) for the ratios.

    python3 benches/peer/peer.py --output peer.json                       every layer of the LLaMA models, on the GPU
    python3 benches/peer/peer.py --device cpu --widths 1024 2048 --tokens 8192 --output peer-cpu.json
"""

import argparse
import json
import os
import platform
import struct
import sys
import time

import torch

# name, n, k: as benches/gpu/main.rs has them
LAYERS = [
    ("llama-2-7b-qkvo", 4096, 4096),
    ("llama-2-7b-gate-up", 11008, 4096),
    ("llama-2-7b-down", 4096, 11008),
    ("llama-3-8b-kv", 1024, 4096),
    ("llama-3-8b-gate-up", 14336, 4096),
    ("llama-3-8b-down", 4096, 14336),
    ("llama-2-13b-qkvo", 5120, 5120),
    ("llama-2-13b-gate-up", 13824, 5120),
    ("llama-2-13b-down", 5120, 13824),
    ("llama-2-70b-kv", 1024, 8192),
    ("llama-2-70b-qo", 8192, 8192),
    ("llama-2-70b-gate-up", 28672, 8192),
    ("llama-2-70b-down", 8192, 28672),
]


# The algorithm.


def prune_activations(x, sparsity):
    """Per token: what is below the value at floor(k p) of the sorted magnitudes becomes zero."""
    magnitudes = x.abs()
    index = int(x.shape[-1] * sparsity)
    threshold = torch.sort(magnitudes, dim=-1).values[..., index : index + 1]
    return torch.where(magnitudes >= threshold, x, torch.zeros_like(x))


class Statistics:
    """Running means over sequences of H = X^ X^T, dX X^T, diag(dX dX^T)."""

    def __init__(self, k, device, dtype=torch.float32):
        self.sequences = 0
        self.hessian = torch.zeros(k, k, device=device, dtype=dtype)
        self.dxxt = torch.zeros(k, k, device=device, dtype=dtype)
        self.dxdxt = torch.zeros(k, device=device, dtype=dtype)

    def update(self, dense, sparse):
        """dense, sparse: tokens x k."""
        keep = self.sequences / (self.sequences + 1)
        add = 1 / (self.sequences + 1)
        x = sparse.t()
        dx = dense.t() - x
        self.hessian *= keep
        self.hessian += add * x.matmul(x.t())
        self.dxxt *= keep
        self.dxxt += add * dx.matmul(x.t())
        self.dxdxt *= keep
        self.dxdxt += add * (dx * dx).sum(dim=1)
        self.sequences += 1


def prepare(statistics, damping, alpha, act_order):
    """Dead channels, order, damping, L^T (upper), alpha D, and the factor of W^2 in the score."""
    hessian = statistics.hessian.clone()
    dxxt, a = statistics.dxxt.clone(), statistics.dxdxt.clone()
    dead = torch.diag(hessian) == 0
    hessian[dead, dead] = 1
    if act_order:
        order = torch.argsort(torch.diag(hessian), descending=True, stable=True)
        hessian, dxxt, a, = hessian[order][:, order], dxxt[order][:, order], a[order]
    else:
        order = torch.arange(hessian.shape[0], device=hessian.device)
    diagonal = torch.arange(hessian.shape[0], device=hessian.device)
    hessian[diagonal, diagonal] += damping * torch.mean(torch.diag(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    lt = torch.linalg.cholesky(inverse, upper=True)
    q = dxxt.matmul(lt.t())
    u = torch.triu(q, diagonal=1)
    b = (u * u).sum(dim=1)
    c = torch.diag(q) / torch.diag(lt)
    scale = 1 / torch.diag(lt) ** 2 + alpha * (a - b + 2 * c)
    return order, dead, lt, alpha * u.matmul(lt), scale


def prune(weight, prepared, sparsity, block_size):
    """A block of columns at a time: scores, threshold by sorting, then column by column, then the columns to the right."""
    order, dead, lt, d, scale = prepared
    n, k = weight.shape
    w = weight.clone()
    w[:, dead] = 0
    w = w[:, order]
    for first in range(0, k, block_size):
        end = min(first + block_size, k)
        block = w[:, first:end].clone()
        pruned, errors = torch.zeros_like(block), torch.zeros_like(block)
        lt_block, d_block = lt[first:end, first:end], d[first:end, first:end]
        score = block**2 * scale[first:end]
        threshold = torch.sort(score.flatten())[0][int(score.numel() * sparsity)]
        mask = score <= threshold
        for j in range(end - first):
            column = block[:, j]
            kept = column.clone()
            kept[mask[:, j]] = 0
            pruned[:, j] = kept
            error = (column - kept) / lt_block[j, j]
            residual = column.unsqueeze(1).matmul(d_block[j, j:].unsqueeze(0))
            block[:, j:] -= error.unsqueeze(1).matmul(lt_block[j, j:].unsqueeze(0)) - residual
            errors[:, j] = error
        w[:, first:end] = pruned
        w[:, end:] -= errors.matmul(lt[first:end, end:]) - pruned.matmul(d[first:end, end:])
    return w[:, torch.argsort(order)]


# The check.


def read_safetensors(path):
    """Tensors and metadata of a safetensors file, without a library."""
    types = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        content = bytearray(file.read())
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        data = torch.frombuffer(content[begin:end], dtype=types[info["dtype"]])
        tensors[name] = data.reshape(info["shape"])
    return tensors, metadata


def check(folder, device):
    """Repeats a test vector in float64. Returns the largest relative errors of statistics and weight."""
    with open(os.path.join(folder, "case.json")) as file:
        settings = json.load(file)["settings"]
    tensors, _ = read_safetensors(os.path.join(folder, "tensors.safetensors"))
    read = lambda name: tensors[name].to(device=device, dtype=torch.float64)
    weight, dense = read("input.weight"), read("input.dense_activations")
    sparse = prune_activations(dense, settings["activation_sparsity"])
    statistics = Statistics(weight.shape[1], device, torch.float64)
    row = 0
    for sequences, tokens in tensors["input.calls"].tolist():
        for _ in range(sequences):
            statistics.update(dense[row:row + tokens], sparse[row:row + tokens])
            row += tokens
    prepared = prepare(
        statistics,
        settings["damping"],
        settings["alpha"],
        settings["column_order"] == "hessian",
    )
    found = prune(weight, prepared, settings["weight_sparsity"], settings["block_size"])
    error = lambda a, b: float((a - b).abs().max() / b.abs().max())
    errors = {
        "activations": error(sparse, read("input.sparse_activations")),
        "hessian": error(statistics.hessian, read("stats.hessian")),
        "dxxt": error(statistics.dxxt, read("stats.dxxt")),
        "weight": error(found, read("output.weight")),
    }
    wrong = {name: e for name, e in errors.items() if not e <= 1e-9}
    if wrong:
        sys.exit(f"error: {folder}: this script does not repeat it: {wrong}; nothing was timed")
    return errors


# The clock.


class Clock:
    """Times by device events on a GPU, by the wall clock on a CPU."""

    def __init__(self, device, least_seconds):
        self.device = device
        self.least_seconds = least_seconds

    def once(self, run):
        if self.device.type == "cuda":
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            return 1e-3 * begin.elapsed_time(end)
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    def measure(self, run):
        """Median and relative spread (half the distance of the quartiles) of at least three runs after one to warm up."""
        self.once(run)
        samples = []
        while len(samples) < 3 or (sum(samples) < self.least_seconds and len(samples) < 50):
            samples.append(self.once(run))
        quartiles = torch.quantile(torch.tensor(samples, dtype=torch.float64), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        low, middle, high = quartiles.tolist()
        return middle, (high - low) / 2 / middle


def activations(generator, tokens, k, device):
    """Random, with a few strong channels."""
    x = torch.rand(tokens, k, generator=generator, device=device) * 2 - 1
    x[:, ::61] *= 8
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", default=os.path.join(os.path.dirname(__file__), "../../fixtures/vectors/v1/duogpt/basic"))
    parser.add_argument("--output", help="the JSON file to write")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of one sequence")
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 16, 128], help="for the statistics of the smallest model")
    parser.add_argument("--widths", type=int, nargs="*", help="square layers of these sizes instead of the models'")
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="time only the cases whose name contains one of these")
    parser.add_argument("--least-seconds", type=float, default=1.0, help="to repeat each operation for")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    checked = check(arguments.case, device)
    print("repeats", arguments.case, {name: f"{error:.1e}" for name, error in checked.items()})
    environment = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "command": " ".join(sys.argv),
    }
    layers = LAYERS
    if arguments.widths:
        layers = [("square", k, k) for k in arguments.widths]
    clock = Clock(device, arguments.least_seconds)
    generator = torch.Generator(device=device)
    generator.manual_seed(0)
    seconds, spread = {}, {}

    def measure(case, run):
        if arguments.only and not any(text in case for text in arguments.only):
            return
        try:
            seconds[case], spread[case] = clock.measure(run)
        except torch.cuda.OutOfMemoryError:
            print(f"{case:<56} no room on this device")
            torch.cuda.empty_cache()
            return
        print(f"{case:<56} {1e3 * seconds[case]:12.4f} ms ±{100 * spread[case]:.1f} %", flush=True)

    done = set()
    for name, n, k in layers:
        tokens = arguments.tokens
        dense = activations(generator, tokens, k, device)
        sparse = prune_activations(dense + 0.1 * activations(generator, tokens, k, device), 0.5)
        if k not in done:
            done.add(k)
            width = f"{name}-k{k}"
            measure(f"activation/{width}-f32", lambda: prune_activations(dense, 0.5))
            half = dense.to(torch.bfloat16)
            measure(f"activation/{width}-bf16", lambda: prune_activations(half, 0.5))
            counts = arguments.sequences if name.startswith(("llama-2-7b", "square")) else [1]


            def gather(dense, sparse, count):
                """As the original: inputs of any type are widened to float32, and so are the sums."""
                statistics = Statistics(k, device)
                for _ in range(count):
                    statistics.update(dense.float(), sparse.float())

            sparse_half = sparse.to(torch.bfloat16)
            for count in counts:
                measure(f"statistics/{width}-tokens{count * tokens}", lambda: gather(half, sparse_half, count))
            measure(f"statistics/{width}-tokens{tokens}-f32", lambda: gather(dense, sparse, 1))
        statistics = Statistics(k, device)
        statistics.update(dense, sparse)
        if f"factor/{name}-k{k}" not in seconds and f"{name}-k{k}" == width:
            measure(f"factor/{width}", lambda: prepare(statistics, 0.01, 0.25, False))
        weight = torch.rand(n, k, generator=generator, device=device) * 2 - 1
        measure(f"layer/{name}-{n}x{k}", lambda: prune(weight, prepare(statistics, 0.01, 0.25, False), 0.5, 128))

    results = {"environment": environment, "checked": checked, "seconds": seconds, "spread": spread}
    if arguments.output:
        partial = arguments.output + ".partial"
        with open(partial, "w") as file:
            json.dump(results, file, indent=2)
            file.write("\n")
        os.replace(partial, arguments.output)
        print("written:", arguments.output)


if __name__ == "__main__":
    main()
