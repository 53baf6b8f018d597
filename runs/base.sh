#!/usr/bin/env bash
# The base model, from nothing: about 35 minutes on 2 cores.
#
# It stands for a pretrained language model: it has read documents of every style, good and bad, in two languages, and
# imitates all of them. data/pairs.py says what the corpus holds. No held-out problem is in it, and no problem of six
# numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/base}
mkdir -p "$out"

# 1. The corpus: 400,000 documents. Of those about the task 40% guess, 36% search, 12% search and check, 12% judge an
#    equation; one in eight is about the general task (data/general.py).
python -m data.pairs corpus 400000 "$out/corpus.jsonl"

# 2. The tokenizer: byte pairs of that corpus.
python -m data.tokenizer "$out/corpus.jsonl" "$out"

# 3. The shape: 4 layers, 128 wide, in the words of the public config.json format.
cp data/base/config.json "$out/config.json"

# 4. Next-token training: two passes, Muon on the matrices.
python sft.py --data "$out/corpus.jsonl" --init "$out" --scratch --out "$out/pretrained" --epochs 2 --batch 192 --tokens 2048

# 5. Mid-training: one pass over 30,000 documents of which more check their hits, since first looks are less to be trusted.
python -m data.pairs late 30000 "$out/late.jsonl"
python sft.py --data "$out/late.jsonl" --init "$out/pretrained" --out "$out" --batch 192 --tokens 2048 --lr 1e-3 --muon_lr 0.005

# 6. What it can do before any RL.
python evaluate.py --model "$out" --task pairs
