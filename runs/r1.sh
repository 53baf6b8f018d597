#!/usr/bin/env bash
# DeepSeek-R1 at small scale (arXiv 2501.12948v1, section 2.3): four stages, from the base of the main job.
# About 20 minutes on one core.
#
#   bash runs/r1.sh [FOLDER] [SEED]           default: out/r1 0
#
# Each stage is a command that reads and writes checkpoint folders. Started again, the script goes on where it
# was stopped. To run a stage anew, delete its folder and those after it.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/r1}
seed=${2:-0}
base=data/base
. runs/stages.sh

traces=400 steps=40 problems=512 documents=1500 pairs=60000 last_steps=20
if [ -n "${SMALL:-}" ]; then
    traces=16 steps=1 problems=2 documents=16 pairs=64 last_steps=1
fi

heading "0. R1-Zero, for comparison: RL from the base, as the main job does it"
train 0-zero "${rl[@]}" --steps $steps

heading "1. Cold start: SFT on $traces long traces, right, checked, tagged, in the language of the question"
make 1-cold-start/data.jsonl python -m data.corpus cold $traces
tune 1-cold-start "${tune[@]}" --data "$out/1-cold-start/data.jsonl" --init $base --epochs 3

heading "2. Reasoning RL: with a reward for the language of the question"
train 2-reasoning "${rl[@]}" --steps $steps --init "$out/1-cold-start" --language_weight 0.2

heading "3. Rejection sampling and SFT: 16 responses to each of $problems problems, the good ones; from the base"
# With them go answers of the general task, the best of four authors each.
make 3-sft/kept.jsonl python -m stages.rejection --model "$out/2-reasoning/model" "${judge[@]}" \
    --problems $problems --seed "$seed" --out
make 3-sft/general.jsonl python -m data.general documents $documents
cat "$out"/3-sft/{kept,general}.jsonl > "$out/3-sft/data.jsonl"
tune 3-sft "${tune[@]}" --data "$out/3-sft/data.jsonl" --init $base --epochs 2

heading "4. RL for all scenarios: rules first, then rules and a reward model"
# The reward model learns from pairs of answers which one is preferred. It judges the general task, and only in
# the last part, as in R1: a policy that is trained on it for long exploits it.
make reward-model/pairs.jsonl python -m data.general pairs $pairs
stage "-m stages.reward_model" reward-model --data "$out/reward-model/pairs.jsonl" --init $base
train 4a-rules "${rl[@]}" --steps $last_steps --init "$out/3-sft" --language_weight 0.2
train 4b-all "${rl[@]}" --steps $last_steps --init "$out/4a-rules/model" --language_weight 0.2 \
    --task pairs+general --reward_model "$out/reward-model"

if [ -z "${SMALL:-}" ]; then
    heading "5. Controls: no language reward; the reward model alone; the rule that it stands for, alone"
    more_steps=$((2 * last_steps))
    train 2b-no-language "${rl[@]}" --steps $steps --init "$out/1-cold-start"
    train 4c-reward-model-only "${rl[@]}" --eval_sets 2 --steps $more_steps --eval_every 5 \
        --init "$out/4a-rules/model" --task general --reward_model "$out/reward-model"
    train 4d-rule-only "${rl[@]}" --steps $more_steps --eval_every 5 --init "$out/4a-rules/model" --task general
    python bench/faults.py "$out/reward-model"
fi

heading "6. Every stage on held-out problems"
python bench/measure.py "$out" --base $base "${judge[@]}"
python bench/table.py stages "$out"/*/
if [ -z "${SMALL:-}" ]; then
    python bench/table.py reward_hacking "$out"/*/
fi
python plot.py --journey "$out"/{0-zero,1-cold-start,2-reasoning,3-sft,4a-rules,4b-all} --out "$out/journey.png"
