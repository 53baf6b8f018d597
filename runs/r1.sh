#!/usr/bin/env bash
# DeepSeek-R1 in small (arXiv 2501.12948v1, section 2.3): four stages, from the base that the main job starts from.
#
#   bash runs/r1.sh [FOLDER] [SEED]           default: out/r1 0       (FOLDER as seen from the root of the repository)
#
# Each stage is a command that reads and writes checkpoint folders. Started again, the script goes on where it was stopped;
# to run a stage anew, delete its folder and those after it.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/r1} seed=${2:-0} base=data/base
. runs/stages.sh

traces=400 steps=40 problems=512 documents=1500 pairs=60000 last=20
[ -z "${SMALL:-}" ] || traces=16 steps=1 problems=2 documents=16 pairs=64 last=1

# 0. What R1 is held against: the base, and R1-Zero, which is the main job.
train 0-zero "${rl[@]}" --steps $steps

# 1. Cold start: SFT on a few hundred long traces: checked, right, in tags, in the language of the question.
make 1-cold-start/data.jsonl python -m data.pairs cold $traces
tune 1-cold-start "${tune[@]}" --data "$out/1-cold-start/data.jsonl" --init "$base" --epochs 3

# 2. Reasoning RL: as R1-Zero, and paid for the share of the thinking that is in the language of the question.
train 2-reasoning "${rl[@]}" --steps $steps --init "$out/1-cold-start" --language_weight 0.2

# 3. Rejection sampling and SFT. The model writes 16 responses to each of some training problems; what is right, well formed,
#    in one language, not overlong and not there already is kept. With it go answers of the general task, the best
#    of four authors each. The SFT starts from the base, not from stage 2.
make 3-sft/kept.jsonl python evaluate.py --model "$out/2-reasoning/model" --train "${judge[@]}" --problems $problems --seed "$seed" --keep
make 3-sft/general.jsonl python -m data.general documents $documents
cat "$out"/3-sft/{kept,general}.jsonl > "$out/3-sft/data.jsonl"
tune 3-sft "${tune[@]}" --data "$out/3-sft/data.jsonl" --init "$base" --epochs 2

# 4. RL for all scenarios. Rules judge the reasoning; a reward model, which has learned from pairs of answers what is preferred,
#    judges the rest. It comes in only for the last part, as in R1: what it likes and what people like part when it is farmed.
make reward-model/pairs.jsonl python -m data.general pairs $pairs
stage reward_model.py reward-model --data "$out/reward-model/pairs.jsonl" --init "$base"
train 4a-rules "${rl[@]}" --steps $last --init "$out/3-sft" --language_weight 0.2
train 4b-all "${rl[@]}" --steps $last --init "$out/4a-rules/model" --language_weight 0.2 --task pairs+general --reward_model "$out/reward-model"

# 5. Three controls: stage 2 without the language reward; the reward model without the rules, for twice as long; and as long the
#    rule of the general task itself, which stage 4 does not see.
if [ -z "${SMALL:-}" ]; then
    train 2b-no-language "${rl[@]}" --steps $steps --init "$out/1-cold-start"
    train 4c-farmed "${rl[@]}" --eval_sets 2 --steps $((2 * last)) --eval_every 5 --init "$out/4a-rules/model" --task general --reward_model "$out/reward-model"
    train 4d-by-rule "${rl[@]}" --steps $((2 * last)) --eval_every 5 --init "$out/4a-rules/model" --task general
    python bench/faults.py "$out/reward-model"
fi

python bench/stages.py "$out" --base "$base" "${judge[@]}"
python plot.py --journey "$out"/{0-zero,1-cold-start,2-reasoning,3-sft,4a-rules,4b-all} --out "$out/journey.png"
