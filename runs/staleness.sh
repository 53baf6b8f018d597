#!/usr/bin/env bash
# Rollouts of an older policy: seven algorithms at lag 0, 4 and 16 on the main job, and GRPO at lag 16 with one choice
# changed. Three seeds each, 75 runs: about two hours on 2 cores. The learning rate is twice the usual one, so that
# the policy moves while its rollouts stay behind.
#
#   bash runs/staleness.sh [FOLDER] [SEEDS]           default: out/staleness "0 1 2"
#
# Two runs at a time with one thread each; JOBS=4 for four. Started again, it goes on where it was stopped.
# STEPS=60 makes the runs longer, SMALL=1 tests the script.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/staleness}
seeds=${2:-0 1 2}
seed=0
. runs/stages.sh

# 1. For all: only the first held-out set, and half of its problems and samples, to save time.
common="--lr 1e-3 --steps ${STEPS:-40} --eval_every 10 --eval_sets 1 --eval_problems 48 --eval_k 8"
if [ -n "${SMALL:-}" ]; then
    common="--lr 1e-3 --steps 2 --eval_every 1 --eval_sets 1 --eval_problems 2 --eval_k 2 --eval_max_new_tokens 40"
    common+=" --prompts_per_step 2 --group_size 4 --max_new_tokens 40"
fi

# 2. The algorithms at each lag. Of dapo the loss alone: as many responses as the others have, and their reward.
runs=""
for lag in 0 4 16; do
    runs+="
grpo_lag$lag       --lag $lag --algo grpo
r1_lag$lag         --lag $lag --algo r1
cispo_lag$lag      --lag $lag --algo cispo
gspo_lag$lag       --lag $lag --algo gspo
dapo_lag$lag       --lag $lag --algo dapo --dynamic_sampling 1 --overlong 0
v32_lag$lag        --lag $lag --algo v32
reinforce_lag$lag  --lag $lag --algo reinforce"
done

# 3. GRPO with one choice changed: what an algorithm owes to which of its choices.
runs+='
grpo-no_std_lag16        --lag 16 --algo custom --scale none
grpo-capped_weight_lag16 --lag 16 --algo custom --trust cispo
grpo-v32_mask_lag16      --lag 16 --algo custom --mask_threshold 0.2
grpo-token_mean_lag16    --lag 16 --algo custom --loss_aggregation token'

# 4. Every one with every seed; what a run prints goes to its .txt file.
train_all "$runs" $common

# 5. The table and the figure of results/staleness.
python bench/table.py staleness "$out"/*-?/
python bench/staleness.py "$out"/*-?/ --out "$out/staleness.png"
