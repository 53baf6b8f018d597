#!/usr/bin/env bash
# Distillation at small scale (arXiv 2501.12948v1, section 2.4 and table 6): a student a third of the teacher's
# size learns by SFT from the teacher's traces; beside it the same student learns by RL alone.
# About 15 minutes on one core. Run runs/r1.sh first: its third stage has collected the traces.
#
#   bash runs/distill.sh [FOLDER] [SEED] [FOLDER OF R1]           default: out/distill 0 out/r1
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/distill}
seed=${2:-0}
traces=${3:-out/r1}/3-sft/data.jsonl
if [ ! -e "$traces" ]; then
    echo "$traces is missing: bash runs/r1.sh makes it" >&2
    exit 2
fi
. runs/stages.sh

documents=120000 steps=80 more_steps=20
if [ -n "${SMALL:-}" ]; then
    documents=64 steps=1 more_steps=1
fi

heading "1. The student's base: 2 layers, 96 wide, the teacher's tokenizer, less of the same corpus"
make student-base/data.jsonl python -m data.corpus corpus $documents
start=$out/student-base/start
mkdir -p "$start"
cp data/student/config.json data/base/tokenizer.tiktoken "$start"
tune student-base --seed 0 --scratch --data "$out/student-base/data.jsonl" --init "$start" --epochs 2 \
    --batch 192 --tokens_per_microbatch 4096 --dtype bfloat16

heading "2. Distilled: SFT on the data of R1's second SFT"
tune student-distilled "${tune[@]}" --data "$traces" --init "$out/student-base" --epochs 4

heading "3. The same student by RL alone, for about as many minutes"
train student-rl "${rl[@]}" --steps $steps --init "$out/student-base"

heading "4. RL after distillation, at a fifth of the learning rate: the default one destroys what was taught"
train student-distilled-rl "${rl[@]}" --steps $more_steps --init "$out/student-distilled" \
    --language_weight 0.2 --lr 1e-4

heading "5. Every student on held-out problems"
python bench/measure.py "$out" "${judge[@]}"
python bench/table.py stages "$out"/*/
