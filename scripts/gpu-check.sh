#!/usr/bin/env bash
# Holds every kernel against the reference on this machine's CUDA device.
# usage: scripts/gpu-check.sh [TESTS]
# TESTS: the test program `gpu` built elsewhere (target/release/deps/gpu-*), for a machine without Rust.
set -euo pipefail
cd "$(dirname "$0")/.."
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv
export DUOGPT_REQUIRE_GPU=1
if [ $# -gt 0 ]; then
    "$1"
else
    cargo test --release --test gpu
fi
