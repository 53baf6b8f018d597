#!/usr/bin/env bash
# The base model, from nothing: about 50 minutes on one core. docs/corpus.md says what it reads.
#
#   bash runs/base.sh [FOLDER]           default: out/base
#
# It stands for a pretrained language model. No held-out problem is in its corpus, and none of six numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/base}
seed=0
. runs/stages.sh

heading "1. The corpus: 440,000 documents"
make corpus.jsonl python -m data.corpus corpus 440000

heading "2. The tokenizer: byte pairs of that corpus"
python -m bench.learn_tokenizer "$out/corpus.jsonl" "$out"

heading "3. Next-token training: two passes, from random weights of the shape in data/base/config.json"
cp data/base/config.json "$out/config.json"
tune pretrained --data "$out/corpus.jsonl" --init "$out" --scratch --epochs 2 --batch 192 \
    --tokens_per_microbatch 2048 --dtype bfloat16

heading "4. Mid-training: one pass over 30,000 documents of which more check their hits"
make late.jsonl python -m data.corpus late 30000
tune final --data "$out/late.jsonl" --init "$out/pretrained" --batch 192 --tokens_per_microbatch 2048 --dtype bfloat16 \
    --lr 1e-3 --muon_lr 0.005

heading "5. What it can do before any RL"
python evaluate.py --model "$out/final" --task pairs
