#!/usr/bin/env bash
# The base model, from nothing: about half an hour on 2 cores.
#
# It stands for a pretrained language model: it has read documents of every style, good and bad, in two languages, and
# imitates all of them. data/pairs.py says what the corpus holds. No held-out problem is in it, and no problem of six
# numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/base}
mkdir -p "$out"

# 1. The corpus: 400,000 documents, of which 40% guess, 36% search, 12% search and check, 12% judge an equation.
python -m data.pairs 400000 "$out/corpus.jsonl"

# 2. The tokenizer: byte pairs of that corpus.
python -m data.tokenizer "$out/corpus.jsonl" "$out"

# 3. The shape: 4 layers, 128 wide, in the words of the public config.json format.
cp data/base/config.json "$out/config.json"

# 4. Next-token training: two passes, Muon on the matrices.
python sft.py --data "$out/corpus.jsonl" --init "$out" --scratch --out "$out" --epochs 2 --batch 192 --tokens 2048

# 5. What it can do before any RL.
python evaluate.py --model "$out" --task pairs
