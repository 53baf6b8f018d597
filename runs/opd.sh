#!/usr/bin/env bash
# On-policy distillation (opd.py): experts that become one model, and the student of runs/distill.sh by another way.
# About 10 minutes on one core. Run runs/r1.sh and runs/distill.sh first: the teachers and the student are theirs.
#
#   bash runs/opd.sh [FOLDER] [SEED] [FOLDER OF R1] [FOLDER OF DISTILL]     default: out/opd 0 out/r1 out/distill
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/opd}
seed=${2:-0}
r1=${3:-out/r1}
student=${4:-out/distill}/student-base
expert=4d-rule-only steps=30
if [ -n "${SMALL:-}" ]; then
    expert=4b-all steps=1
fi
if [ ! -e "$r1/$expert/model" ] || [ ! -e "$student/model.safetensors" ]; then
    echo "$r1/$expert or $student is missing: bash runs/r1.sh and bash runs/distill.sh make them" >&2
    exit 2
fi
. runs/stages.sh
opd=("${rl[@]}" --algo opd --lr 1e-3 --schedule linear --steps $steps)
reasoning=$r1/2-reasoning/model
general=$r1/$expert/model

heading "1. Two experts, one for each task, become one model: the one of R1's second SFT learns from both"
for estimate in full token; do
    train merged-$estimate "${opd[@]}" --estimate $estimate --init "$r1/3-sft" --task pairs+general \
        --teacher pairs="$reasoning" --teacher general="$general"
done

heading "2. A student a third of the teacher's size, from its base"
for estimate in full token; do
    train student-$estimate "${opd[@]}" --estimate $estimate --init "$student" --teacher "$reasoning"
done

# The student once more, for as many minutes as its SFT takes in runs/distill.sh.
if [ -z "${SMALL:-}" ]; then
    train student-long "${opd[@]}" --steps 100 --init "$student" --teacher "$reasoning"
fi

heading "3. All of them on held-out problems, the experts too"
for teacher in 2-reasoning $expert; do
    mkdir -p "$out/teacher-$teacher"
    cp "$r1/$teacher/held_out.csv" "$out/teacher-$teacher/"
done
python bench/measure.py "$out" "${judge[@]}"
python bench/table.py stages "$out"/*/
