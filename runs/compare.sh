#!/usr/bin/env bash
# GRPO and PPO with its critic on the main job, and where the KL goes: three seeds each, about 45 minutes on 2
# cores. Same base, problems, number of sampled responses and optimizer settings for all. The published variants,
# which differ little here, are in runs/staleness.sh.
#
#   bash runs/compare.sh [FOLDER] [SEEDS]           default: out/compare "0 1 2"
#
# Two runs at a time with one thread each; JOBS=4 for four. Started again, it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/compare}
seeds=${2:-0 1 2}
seed=0
. runs/stages.sh

# 1. What is compared: a name, then flags. R1 (supplement A.3) says of PPO that its lambda matters, and that its KL,
# which is taken off the reward, holds back the length: a long response pays at each of its tokens.
runs='
grpo              --algo grpo
ppo               --algo ppo
ppo_lam95         --algo ppo --lam 0.95
ppo_no_kl         --algo ppo --kl_coef 0
grpo_kl_in_reward --algo custom --kl reward'

# 2. Every one with every seed; what a run prints goes to its .txt file.
train_all "$runs" --eval_every 5 --eval_sets 1

# 3. The table and the figure of results/compare.
python bench/table.py compare "$out"/*-?/
python plot.py "$out"/*-?/ --out "$out/curves.png"
