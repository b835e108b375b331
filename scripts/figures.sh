#!/usr/bin/env bash
# The comparisons behind the book's pictures, on the small model: every method at five sparsities, and two methods under
# five sizes of disturbance. Finished runs are not repeated.
# Usage: scripts/figures.sh [binary] [folder]      (about 8 minutes on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/.."
duogpt=${1:-target/release/duogpt}
results=${2:-target/figures}
model=fixtures/tiny-llama
mkdir -p "$results"
compare=("$duogpt" compare --model $model
    --calibration $model/tokens-sampled-calibration.safetensors --samples 32
    --evaluation $model/tokens-sampled-evaluation.safetensors --repeats 4)

"${compare[@]}" --weight-sparsity 0.3,0.4,0.5,0.6,0.7 --output "$results/sparsities"
# 2e-7 is about the smallest relative change that an f32 weight can undergo.
for jitter in 2e-7 1e-6 1e-5 1e-4 1e-3; do
    "${compare[@]}" --methods sparsegpt,duogpt --jitter $jitter --output "$results/jitter-$jitter"
done
