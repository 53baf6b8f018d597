#!/usr/bin/env bash
# Distillation in small (arXiv 2501.12948v1, section 2.4 and table 6): a student a third of the teacher's size, taught by SFT on the teacher's
# traces, beside the same student that learns by RL alone. Run runs/r1.sh first: its third stage has collected the traces.
#
#   bash runs/distill.sh [FOLDER] [SEED] [FOLDER OF R1]           default: out/distill 0 out/r1
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/distill} seed=${2:-0} traces=${3:-out/r1}/3-sft/data.jsonl
[ -e "$traces" ] || { echo "$traces is missing: bash runs/r1.sh makes it" >&2; exit 2; }
. runs/stages.sh

documents=120000 steps=80 more=20
[ -z "${SMALL:-}" ] || documents=64 steps=1 more=1

# 1. The student's base: 2 layers, 96 wide, the teacher's tokenizer, read less of the same corpus.
make student-base/data.jsonl python -m data.pairs corpus $documents
mkdir -p "$out/student-base/start" && cp data/student/config.json data/base/tokenizer.tiktoken "$out/student-base/start"
tune student-base --seed 0 --scratch --data "$out/student-base/data.jsonl" --init "$out/student-base/start" --epochs 2 --batch 192 --tokens 4096

# 2. Distilled: the data of R1's second SFT, and nothing else.
tune student-distilled "${tune[@]}" --data "$traces" --init "$out/student-base" --epochs 4

# 3. The same student by RL alone, for about as many minutes (the table prints them).
train student-rl "${rl[@]}" --steps $steps --init "$out/student-base"

# 4. RL after distillation, which the paper leaves to others. At the default learning rate it destroys what was taught.
train student-distilled-rl "${rl[@]}" --steps $more --init "$out/student-distilled" --language_weight 0.2 --lr 1e-4

python bench/stages.py "$out" "${judge[@]}"
