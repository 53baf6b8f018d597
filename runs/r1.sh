#!/usr/bin/env bash
# DeepSeek-R1 in small (arXiv 2501.12948v1, section 2.3): four stages, from the base that the main job starts from.
#
#   bash runs/r1.sh [FOLDER] [SEED]           default: out/r1 0
#
# Each stage is a command that reads and writes checkpoint folders. Started again, the script goes on where it was stopped;
# to run a stage anew, delete its folder and those after it.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/r1} seed=${2:-0} base=data/base
. runs/stages.sh

traces=400 steps=40 problems=512 documents=1500 pairs=20000 last=20
[ -z "${SMALL:-}" ] || traces=16 steps=1 problems=2 documents=16 pairs=64 last=1

# 0. What R1 is held against: the base, and R1-Zero, which is the main job.
train zero "${rl[@]}" --steps $steps

# 1. Cold start: SFT on a few hundred long traces: checked, right, in tags, in the language of the question.
[ -e "$out/cold.jsonl" ] || python -m data.pairs cold $traces "$out/cold.jsonl"
tune 1-cold-start "${tune[@]}" --data "$out/cold.jsonl" --init "$base" --epochs 3

# 2. Reasoning RL: as R1-Zero, and paid for the share of the thinking that is in the language of the question.
train 2-reasoning "${rl[@]}" --steps $steps --init "$out/1-cold-start" --language_weight 0.2

# 3. Rejection sampling and SFT. The model writes 16 responses to each of some training problems; what is right, well formed,
#    in one language, not overlong and not there already is kept. With it go answers of the general task as people write
#    them, with their faults. The SFT starts from the base, not from stage 2.
if [ ! -e "$out/sft.jsonl" ]; then
    python evaluate.py --model "$out/2-reasoning/model" --train "${judge[@]}" --problems $problems --seed "$seed" --keep "$out/kept.jsonl"
    python -m data.general documents $documents "$out/general.jsonl"
    cat "$out/kept.jsonl" "$out/general.jsonl" > "$out/sft.jsonl"
fi
tune 3-sft "${tune[@]}" --data "$out/sft.jsonl" --init "$base" --epochs 2

# 4. RL for all scenarios. Rules judge the reasoning; a reward model, which has learned from pairs of answers what is preferred,
#    judges the rest. It comes in only for the last part, as in R1: what it likes and what people like part when it is farmed.
if [ ! -e "$out/reward-model.txt" ]; then
    python -m data.general pairs $pairs "$out/pairs.jsonl"
    python reward_model.py --data "$out/pairs.jsonl" --init "$base" --out "$out/reward-model" | tee "$out/reward-model.part"
    mv "$out/reward-model.part" "$out/reward-model.txt"
fi
train 4a-rules "${rl[@]}" --steps $last --init "$out/3-sft" --language_weight 0.2
train 4b-all "${rl[@]}" --steps $last --init "$out/4a-rules/model" --language_weight 0.2 --task pairs+general --reward_model "$out/reward-model"

# 5. Two controls: stage 2 without the language reward; the reward model alone, for twice as long.
if [ -z "${SMALL:-}" ]; then
    train 2-no-language "${rl[@]}" --steps $steps --init "$out/1-cold-start"
    train 4b-farmed "${rl[@]}" --eval_sets 2 --steps $((2 * last)) --eval_every 5 --init "$out/4a-rules/model" --task general --reward_model "$out/reward-model"
fi

python bench/stages.py "$out" "${judge[@]}"
python plot.py --journey "$out"/{zero,1-cold-start,2-reasoning,3-sft,4a-rules,4b-all} --out "$out/journey.png"
