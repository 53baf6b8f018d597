"""The tokenizer: a tiktoken.Encoding over a rank table of our own, kept in the checkpoint folder as tokenizer.tiktoken.

One line a token, base64 and rank, as tiktoken's own files. All 256 bytes are in the table, so that any text encodes.
The pattern keeps numbers of up to three digits apart from spaces (a number is the same token in the prompt and in the
answer), and joins a word or a tag with the space or line end around it.

    python -m data.tokenizer CORPUS.jsonl FOLDER        learn the ranks from the texts of a corpus
"""
import base64
import os
import sys
from collections import Counter

import regex
import tiktoken

PATTERN = r"</?[a-z]+>\n?|\p{N}{1,3}| ?\p{L}+[ \n:]?|[^\s\p{L}\p{N}]|\s+"
END = "<|end|>"


class Tokenizer:
    def __init__(self, ranks):
        self.ranks = ranks
        self.encoding = tiktoken.Encoding("pocket-r1", pat_str=PATTERN, mergeable_ranks=ranks,
                                          special_tokens={END: len(ranks)})
        self.eos_id = len(ranks)
        self.vocab_size = len(ranks) + 1

    def encode(self, text):
        """text -> list of ids. The end token is never made from text: whoever wants it appends eos_id."""
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        """ids -> text, the end token included as <|end|>, bytes that are no UTF-8 as U+FFFD."""
        return self.encoding.decode([i for i in ids if i < self.vocab_size])

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "tokenizer.tiktoken"), "w") as f:
            for token, rank in self.ranks.items():
                f.write(f"{base64.b64encode(token).decode()} {rank}\n")

    @classmethod
    def load(cls, folder):
        path = os.path.join(folder, "tokenizer.tiktoken")
        if not os.path.exists(path):
            raise ValueError(f"{folder} holds no tokenizer.tiktoken")
        ranks = {}
        with open(path) as f:
            for number, line in enumerate(f, 1):
                try:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
                except ValueError:
                    raise ValueError(f"{path}:{number}: not a base64 token and a rank") from None
        if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
            raise ValueError(f"{path}: ranks must be 0 to {len(ranks) - 1}, all 256 single bytes among them")
        return cls(ranks)


def learn(text, size=512):
    """Byte-pair ranks of a text: the most frequent pair within a piece becomes the next token, until none is left.

    (tiktoken's educational trainer does the same, but recounts repeated words and fails when no pair is left.)"""
    ranks = {bytes([b]): b for b in range(256)}
    pieces = {p: [bytes([b]) for b in p.encode()] for p in regex.findall(PATTERN, text)}
    counts = Counter(regex.findall(PATTERN, text))
    while len(ranks) < size:
        pairs = Counter()
        for piece, parts in pieces.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[piece]
        if not pairs:
            break
        best = max(pairs, key=pairs.get)
        ranks[best[0] + best[1]] = len(ranks)
        for parts in pieces.values():
            for i in range(len(parts) - 2, -1, -1):
                if tuple(parts[i:i + 2]) == best:
                    parts[i:i + 2] = [best[0] + best[1]]
    return ranks


if __name__ == "__main__":
    from data.jsonl import read
    corpus, folder = sys.argv[1:]
    rows = read(corpus, ("prompt", "response"))
    Tokenizer(learn("\n".join(row["prompt"] + row["response"] for row in rows))).save(folder)
