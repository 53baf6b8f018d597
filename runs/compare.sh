#!/usr/bin/env bash
# GRPO, PPO with its critic and the published variants on the main job, three seeds each: about an hour and a half on 2
# cores. Same base, same problems, same number of sampled responses, same optimizer settings for all.
#
# Two runs at a time with one thread each (two processes of two threads would fight for two cores). A run that was
# stopped goes on when the script is started again. Results go to results/compare (or to the folder named).
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${1:-results/compare} OMP_NUM_THREADS=1
mkdir -p "$OUT"

# 1. What is compared: a name, then flags.
rows='
grpo
ppo        --algo ppo
ppo_lam95  --algo ppo --lam 0.95
reinforce  --variant reinforce
r1         --variant r1
dr_grpo    --variant dr_grpo
dapo       --variant dapo
gspo       --variant gspo
cispo      --variant cispo
rloo       --variant rloo'

# 2. Every row with every seed.
one() {
    name=$1 seed=$2; shift 2
    folder=$OUT/$name-$seed
    [ ! -e "$folder/done" ] || return 0
    if [ -e "$folder/state.pt" ]; then set -- --resume; else set -- "$@" --seed "$seed" --eval_every 5 --eval_sets 1; fi
    python train.py "$@" --out "$folder" >> "$folder.txt" 2>&1 && touch "$folder/done"
    echo "$folder: $(tail -n 1 "$folder.txt")"
}
export -f one
for seed in 0 1 2; do
    grep . <<< "$rows" | while read -r name flags; do echo $name $seed $flags; done
done | xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$@"' one

# 3. The table and the figure of the README.
python bench/compare.py "$OUT"
python plot.py "$OUT"/*-?/ --out "$OUT/curves.png"
