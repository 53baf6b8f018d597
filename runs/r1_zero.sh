#!/usr/bin/env bash
# The main job with three seeds, and what happens when one thing is changed: about 40 minutes on 2 cores.
#
# The tables of R1-Zero in the README come from here. Results go to results/r1_zero (or to the folder named).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/r1_zero}
mkdir -p "$out"

# 1. The default command, three seeds.
for seed in 0 1 2; do
    python train.py --algo grpo --seed $seed --out "$out/grpo-$seed" | tee "$out/grpo-$seed.txt"
done
python plot.py "$out"/grpo-? --out "$out/curves.png"

# 2. One optimizer step a rollout and twice the rollouts: every gradient is on-policy. From there one change each.
mkdir -p "$out/ablations"
one() { python train.py --minibatches 1 --steps 80 --eval_every 20 --out "$out/ablations/$1-0" "${@:2}" | tee "$out/ablations/$1-0.txt"; }
one minibatches_1
one format_weight_1 --format_weight 1.0
one format_weight_10 --format_weight 10
one group_size_4 --group_size 4 --problems 64
one kl_off --kl_coef 0
python plot.py "$out"/ablations/{minibatches_1,format_weight_1,format_weight_10,group_size_4,kl_off}-0 --out "$out/ablations/curves.png"

# 3. Tables of all of them: four, five, six numbers.
for size in 4 5 6; do python bench/table.py "$out" "$size numbers"; python bench/table.py "$out/ablations" "$size numbers"; done
