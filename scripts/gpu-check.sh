#!/usr/bin/env bash
# On a machine with a CUDA device: says where it runs, holds every kernel, whole layers and all test vectors against the
# reference on the device, then times every kernel, beside the original's operations in PyTorch where there is PyTorch.
# usage: scripts/gpu-check.sh [--allow-no-gpu] [BENCHES...]
# BENCHES: time only those whose names contain one of these.
# --allow-no-gpu: tests that need the device are skipped by name instead of failing.
# Runs in a bundle of scripts/gpu-pack.sh without Rust; in a checkout it makes that bundle first.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -e "$root/bundle.txt" ]; then
    bundle=$root/target/duogpt-gpu
    "$root/scripts/gpu-pack.sh" --directory "$bundle"
    DUOGPT_RESULTS=${DUOGPT_RESULTS:-$root/benches/results} exec "$bundle/scripts/gpu-check.sh" "$@"
fi
cd "$root"
export DUOGPT_REQUIRE_GPU=1
if [ "${1:-}" = --allow-no-gpu ]; then
    unset DUOGPT_REQUIRE_GPU
    shift
fi
export DUOGPT_FIXTURES=$root/fixtures

# This bundle's libraries first; of CUDA's, those of a PyTorch installation last.
libraries=$root/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
python=${PYTHON:-python3}
of_python=$("$python" - 2> /dev/null <<'PYTHON' || true
import glob, sysconfig
print(":".join(sorted(glob.glob(sysconfig.get_path("purelib") + "/nvidia/*/lib"))))
PYTHON
)
export LD_LIBRARY_PATH=$libraries${of_python:+:$of_python}

name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2> /dev/null | head -n 1 | tr -s ' /' '--' || true)
results=${DUOGPT_RESULTS:-$root/benches/results}/${name:-no-gpu}
date=$(date -u +%Y-%m-%dT%H%M%SZ)
mkdir -p "$results"

environment() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit --format=csv 2> /dev/null ||
        echo "nvidia-smi: no device, or no driver"
    for library in cuda nvrtc cublas cusolver; do
        found=$( (IFS=:; for directory in $LD_LIBRARY_PATH; do ls "$directory"/lib"$library".so* 2> /dev/null; done
            ldconfig -p 2> /dev/null | awk -v name="lib$library.so" 'index($1, name) == 1 { print $NF }') | head -n 1 || true)
        echo "lib$library: ${found:-not found}"
    done
    cat bundle.txt
    bin/duogpt verify --json --vectors fixtures/vectors/v1/duogpt/one-block | sed -n '/"environment": {/,/}/p'
    uname -srm
}
environment | tee "$results/$date.txt"

failed=()
step() {
    local what=$1
    shift
    printf '\n== %s\n' "$what"
    "$@" || failed+=("$what")
}
step "kernels on the device" bin/test-gpu
step "test vectors on the device" bin/test-golden cuda
step "whole layers on the device" bin/test-cross_backend cuda
if [ -n "${DUOGPT_REQUIRE_GPU:-}" ]; then
    step "duogpt verify --backend cuda" bin/duogpt verify --backend cuda --vectors fixtures/vectors/v1
fi
if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed, nothing is timed: %s\n' "${failed[*]}" >&2
    exit 1
fi

peer=$results/$date-peer.json
if [ -n "$name" ] && "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    step "the original's operations in PyTorch" "$python" benches/peer/peer.py --case fixtures/vectors/v1/duogpt/basic \
        --output "$peer" --only "$@"
else
    printf '\nskipped: the ratios to PyTorch (%s has no PyTorch that sees a device)\n' "$python"
fi
export DUOGPT_BENCH_RESULTS=$results/$date.json DUOGPT_ENVIRONMENT=$results/$date.txt
[ ! -e "$peer" ] || export DUOGPT_PEER_RESULTS=$peer
step "benches" bin/bench-gpu --bench "$@"
if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed: %s\n' "${failed[*]}" >&2
    exit 1
fi
if [ -z "$name" ]; then
    printf '\nno device was found: nothing was checked, and nothing timed\n'
else
    printf '\nall is well; results in %s\n' "$results"
fi
