#!/usr/bin/env bash
# The main job with eight seeds, and what a large format reward does: about 40 minutes on 2 cores.
#
#   bash runs/r1_zero.sh [FOLDER] [SEEDS]           default: out/r1_zero "0 1 2 3 4 5 6 7"
#
# Started again, it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/r1_zero}
seeds=${2:-0 1 2 3 4 5 6 7}
seed=0
. runs/stages.sh

heading "1. The default command, with every seed"
for seed in $seeds; do
    train "grpo-$seed" --algo grpo --seed "$seed"
done
python plot.py "$out"/grpo-? --out "$out/curves.png"

heading "2. One optimizer step a rollout and twice the rollouts; the same with a format reward of weight 10"
on_policy=(--algo grpo --minibatches 1 --steps 80 --eval_every 20)
train minibatches_1-0 "${on_policy[@]}"
train format_weight_10-0 "${on_policy[@]}" --format_weight 10
python plot.py "$out"/{minibatches_1,format_weight_10}-0 --out "$out/ablations.png"

heading "3. Tables"
for set in "4 numbers" "new solutions" "5 numbers" "6 numbers"; do
    python bench/table.py final "$out"/*-?/ --set "$set"
done
