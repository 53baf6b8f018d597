"""Byte pairs of a corpus become the ranks of a tokenizer (data/tokenizer.py).

python -m bench.learn_tokenizer CORPUS.jsonl FOLDER
"""

from collections import Counter
from itertools import pairwise

import regex

from data.jsonl import read
from data.tokenizer import PATTERN, Tokenizer
from plumbing.flags import Parser, one_line_errors


def learn(text, size=639):
    """The ranks of a text's byte pairs, `size` of them or fewer.

    The most frequent pair within a piece becomes the next token, until no pair is left."""
    counts = Counter(regex.findall(PATTERN, text))
    tokens = {piece: [bytes([b]) for b in piece.encode()] for piece in counts}
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < size:
        pairs = Counter()
        for piece, parts in tokens.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[piece]
        if not pairs:
            break
        left, right = max(pairs, key=pairs.get)
        ranks[left + right] = len(ranks)
        for parts in tokens.values():
            for i in range(len(parts) - 2, -1, -1):
                if parts[i : i + 2] == [left, right]:
                    parts[i : i + 2] = [left + right]
    return ranks


if __name__ == "__main__":
    parser = Parser(description="Learn a tokenizer from the texts of a corpus.")
    parser.add_argument("corpus", help="a JSON-lines file of rows with a prompt and a response")
    parser.add_argument("folder", help="where tokenizer.tiktoken is written")
    with one_line_errors():
        args = parser.parse_args()
        rows = read(args.corpus, ("prompt", "response"))
        text = "\n".join(row["prompt"] + row["response"] for row in rows)
        Tokenizer(learn(text)).save(args.folder)
