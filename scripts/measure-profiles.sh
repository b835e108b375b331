#!/usr/bin/env bash
# Measures what every switch of the pruning configuration does to perplexity at 50 % activation sparsity. Prints a CSV: setting,
# calibration seed, perplexity with dense and with sparse activations.
# Usage: scripts/measure-profiles.sh [binary] > benches/results/profiles.csv
#            on the small model: 4 sets of 32 windows of 256 tokens (about 15 minutes on 2 cores)
#        scripts/measure-profiles.sh binary model calibration.txt evaluation.txt > benches/results/profiles-MODEL.csv
#            on another: 3 sets of 8 windows of 512 tokens; measured on 12 windows (a model of 135 million parameters: 2 hours)
set -euo pipefail
cd "$(dirname "$0")/.."
duogpt=${1:-target/release/duogpt}
model=${2:-fixtures/tiny-llama}
if [ $# -gt 1 ]; then
    seeds=(0 1 2)
    calibration=(--text "$3" --samples 8 --sequence-length 512)
    evaluation=(--text "$4" --limit 12 --sequence-length 512)
else
    seeds=(0 1 2 3)
    calibration=(--text $model/sampled-calibration.txt --samples 32 --sequence-length 256)
    evaluation=(--tokens $model/tokens-sampled-evaluation.safetensors)
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

measure() { # name, flags...
    local name=$1 seed
    shift
    for seed in "${seeds[@]}"; do
        "$duogpt" prune --model "$model" --output "$scratch/pruned" "${calibration[@]}" --seed $seed "$@" > /dev/null
        local result=()
        for activations in 0 0.5; do
            result+=("$("$duogpt" eval perplexity --model "$scratch/pruned" --json --activation-sparsity $activations \
                "${evaluation[@]}" | grep '"perplexity"' | tr -dc '0-9.')")
        done
        rm -rf "$scratch/pruned"
        echo "$name,$seed,${result[0]},${result[1]}"
    done
}

echo "setting,seed,perplexity_dense_activations,perplexity_sparse_activations"
# Of a flag given twice the last one counts.
measure magnitude --method magnitude
measure wanda --method wanda
measure sparsegpt --method sparsegpt --column-order natural --damping 0.01
measure paper --profile paper
measure upstream --profile upstream
base=(--profile upstream --column-order natural --damping 0.01)
measure natural "${base[@]}"
measure natural+damping-0.05 "${base[@]}" --damping 0.05
measure natural+damping-0.1 "${base[@]}" --damping 0.1
measure natural+alpha-0.25 "${base[@]}" --alpha 0.25
measure natural+alpha-0.5 "${base[@]}" --alpha 0.5
measure natural+alpha-1 "${base[@]}" --alpha 1
measure natural+alpha-update-0.25-score-0 "${base[@]}" --alpha-update 0.25 --alpha-score 0
measure natural+compensated "${base[@]}" --lazy-update compensated
measure natural+compensated+alpha-0.25 "${base[@]}" --lazy-update compensated --alpha 0.25
measure natural+exact "${base[@]}" --threshold exact
measure hessian "${base[@]}" --column-order hessian
measure hessian-drift "${base[@]}" --column-order hessian-drift
measure interleaved "${base[@]}" --column-order interleaved
measure natural+block-64 "${base[@]}" --block-size 64
measure natural+block-256 "${base[@]}" --block-size 256
measure upstream+alpha-0.25 --profile upstream --alpha 0.25
measure interleaved+alpha-0.25 "${base[@]}" --column-order interleaved --alpha 0.25
measure interleaved+damping-0.05 "${base[@]}" --column-order interleaved --damping 0.05
measure interleaved+damping-0.05+alpha-0.25 "${base[@]}" --column-order interleaved --damping 0.05 --alpha 0.25
measure natural+damping-0.05+alpha-0.25 "${base[@]}" --damping 0.05 --alpha 0.25
