#!/usr/bin/env bash
# The main job with three seeds, and what happens when one thing is changed: about 40 minutes on 2 cores.
#
#   bash runs/r1_zero.sh [FOLDER] [SEEDS]           default: out/r1_zero "0 1 2"
#
# Started again, it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/r1_zero}
seeds=${2:-0 1 2}
seed=0
. runs/stages.sh

heading "1. The default command, with every seed"
for seed in $seeds; do
    train "grpo-$seed" --algo grpo --seed "$seed"
done
python plot.py "$out"/grpo-? --out "$out/curves.png"

heading "2. Ablations: one optimizer step a rollout and twice the rollouts; from there one change each"
on_policy=(--algo grpo --minibatches 1 --steps 80 --eval_every 20)
train minibatches_1-0 "${on_policy[@]}"
train format_weight_1-0 "${on_policy[@]}" --format_weight 1
train format_weight_10-0 "${on_policy[@]}" --format_weight 10
train group_size_4-0 "${on_policy[@]}" --group_size 4 --prompts_per_step 64
train kl_off-0 "${on_policy[@]}" --kl_coef 0
python plot.py "$out"/{minibatches_1,format_weight_1,format_weight_10,group_size_4,kl_off}-0 --out "$out/ablations.png"

heading "3. Tables for four, five and six numbers"
for size in 4 5 6; do
    python bench/table.py final "$out"/*-?/ --set "$size numbers"
done
