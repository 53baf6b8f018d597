#!/usr/bin/env bash
# The main job with three seeds, and what happens when one thing is changed: about 40 minutes on 2 cores.
#
# Everything the README quotes about R1-Zero comes from here. Results go to results/r1_zero (or to the folder named).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-results/r1_zero}
mkdir -p "$out"

# 1. The default command, three seeds.
for seed in 0 1 2; do
    python train.py --algo grpo --seed $seed --out "$out/grpo-$seed" | tee "$out/grpo-$seed.txt"
done
python plot.py "$out"/grpo-? --out "$out/curves.png"

# 2. One change each, the same number of sampled responses.
python train.py --format_weight 1.0 --out "$out/format_weight_1-0" | tee "$out/format_weight_1-0.txt"
python train.py --format_weight 10 --out "$out/format_weight_10-0" | tee "$out/format_weight_10-0.txt"
python train.py --group_size 4 --problems 64 --out "$out/group_size_4-0" | tee "$out/group_size_4-0.txt"
python train.py --kl_coef 0 --out "$out/kl_off-0" | tee "$out/kl_off-0.txt"

# 3. One optimizer step a rollout, every gradient on-policy, and twice the rollouts.
python train.py --minibatches 1 --steps 80 --eval_every 20 --out "$out/minibatches_1-0" | tee "$out/minibatches_1-0.txt"
python plot.py "$out"/*-0/ --out "$out/ablations.png"

# 4. One table of all of them.
for size in 4 5 6; do python bench/table.py "$out" "$size numbers"; done
