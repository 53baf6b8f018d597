#!/usr/bin/env bash
# DeepSeek-R1 at small scale (arXiv 2501.12948v2): four stages, from the base of the main job.
# About 45 minutes on one core.
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

traces=400 steps=40 problems=512 documents=1500 pairs=10000 requests=400 rule_steps=30 all_steps=10
if [ -n "${SMALL:-}" ]; then
    traces=16 steps=1 problems=2 documents=16 pairs=64 requests=2 rule_steps=1 all_steps=1
fi
# As in the paper: the share of the language is added without a weight, and stage 4 samples at 0.7.
language=(--language_weight 1)
last=("${language[@]}" --temperature 0.7)

heading "0. R1-Zero, for comparison: RL from the base, as the main job does it"
train 0-zero "${rl[@]}" --steps $steps

heading "1. Cold start: SFT on $traces long traces, right, checked, tagged, in the language of the question"
make 1-cold-start/data.jsonl python -m data.corpus cold $traces
tune 1-cold-start "${tune[@]}" --data "$out/1-cold-start/data.jsonl" --init $base --epochs 3

heading "2. Reasoning RL: with a reward for the language of the question"
train 2-reasoning "${rl[@]}" "${language[@]}" --steps $steps --init "$out/1-cold-start"

heading "3. Rejection sampling and SFT: 16 responses to each of $problems problems, the good ones; from the base"
# With them go answers of the general task, the best of four authors each.
make 3-sft/kept.jsonl python -m stages.rejection --model "$out/2-reasoning/model" "${judge[@]}" \
    --problems $problems --seed "$seed" --out
make 3-sft/general.jsonl python -m data.general documents $documents
cat "$out"/3-sft/{kept,general}.jsonl > "$out/3-sft/data.jsonl"
tune 3-sft "${tune[@]}" --data "$out/3-sft/data.jsonl" --init $base --epochs 2

heading "4. RL for all scenarios: rules first, then rules and a reward model in the last quarter of the steps"
# A reward model learns which of two answers is preferred: pairs of authors' answers and of the model's own. It judges
# the general task, and only in the last part, as in R1: a policy that is trained on it for long exploits it.
# The first one has not seen what its policy will do to please it. The second has, and the last part is run again.
train 4a-rules "${rl[@]}" "${last[@]}" --steps $rule_steps --init "$out/3-sft"
make pairs/authors.jsonl python -m data.general pairs $pairs
own_pairs=(python -m stages.rejection --task general --pairs --problems $requests --seed "$seed" "${judge[@]}" --k 64)
judges() { stage "-m stages.reward_model" $1-reward-model --data "$out/pairs/$1.jsonl" --init $base "${@:2}"; }
preferred=("${rl[@]}" "${last[@]}" --steps $all_steps --init "$out/4a-rules/model" --task pairs+general)

make pairs/own.jsonl "${own_pairs[@]}" --model "$out/3-sft" --out
cat "$out"/pairs/{authors,own}.jsonl > "$out/pairs/first.jsonl"
judges first
train 4b-first "${preferred[@]}" --reward_model "$out/first-reward-model"

make pairs/farmed.jsonl "${own_pairs[@]}" --model "$out/4b-first/model" --out
cat "$out"/pairs/{authors,own,farmed}.jsonl > "$out/pairs/second.jsonl"
judges second --epochs 2
train 4b-all "${preferred[@]}" --reward_model "$out/second-reward-model"

if [ -z "${SMALL:-}" ]; then
    heading "5. Controls"
    # a cold start on what R1-Zero wrote itself: right, well formed, its words put into the question's language
    make 1b-cold-start-zero/mixed.jsonl python -m stages.rejection --model "$out/0-zero/model" --any_language \
        --problems 512 --k 1 --seed "$seed" --out
    make 1b-cold-start-zero/all.jsonl python bench/translate.py "$out/1b-cold-start-zero/mixed.jsonl"
    head -n $traces "$out/1b-cold-start-zero/all.jsonl" > "$out/1b-cold-start-zero/data.jsonl"
    tune 1b-cold-start-zero "${tune[@]}" --data "$out/1b-cold-start-zero/data.jsonl" --init $base --epochs 3
    # no language reward
    train 2b-no-language "${rl[@]}" --steps $steps --init "$out/1-cold-start"
    # the same pairs without a reward model
    stage "-m stages.dpo" 4e-dpo --data "$out/pairs/second.jsonl" --init "$out/4a-rules/model" \
        --seed "$seed" --steps 500 --lr 3e-4 --muon_lr 1.5e-3
    # the rule alone; either of the reward models that stand for it, alone
    alone=("${rl[@]}" --eval_sets 2 --steps 40 --eval_every 5 --init "$out/4a-rules/model" --task general)
    train 4d-rule-only "${alone[@]}"
    for model in first second; do
        train 4c-$model-model-only "${alone[@]}" --reward_model "$out/$model-reward-model"
    done
    python bench/faults.py "$out"/{first,second}-reward-model
fi

heading "6. Every stage on held-out problems"
python bench/measure.py "$out" --base $base "${judge[@]}"
python bench/table.py stages "$out"/*/
if [ -z "${SMALL:-}" ]; then
    python bench/table.py reward_hacking "$out"/*/
fi
python bench/journey.py "$out"/{0-zero,1-cold-start,2-reasoning,3-sft,4a-rules,4b-all} --out "$out/journey.png"
