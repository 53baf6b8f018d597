"""Our tokenizer: byte pairs, a tiktoken.Encoding over the rank table of a checkpoint folder.

    tokenizer.tiktoken    one line a token, base64 and rank, as tiktoken's own files

PATTERN splits a text before pairs are merged. It keeps numbers of up to three digits apart from
spaces (a number is the same token in the prompt and in the answer), and joins a word or a tag with
the space or line end around it. bench/learn_tokenizer.py makes such a table; public tokenizers are
in public/tokenizer.py.
"""

import base64
import os

import tiktoken

from plumbing.files import write_file
from rewards import END

PATTERN = r"</?[a-z]+>\n?|\p{N}{1,3}| ?\p{L}+[ \n:]?|[^\s\p{L}\p{N}]|\s+"
OPEN = "<think>\n"  # what --think puts behind a prompt


class Tokenizer:
    """ranks: {bytes of a token: id}, all 256 single bytes among them. END has the id after them.

    opening: what a prompt holds of its response already, OPEN or nothing."""

    def __init__(self, ranks, think=False):
        self.ranks = ranks
        self.opening = OPEN if think else ""
        self.eos_id = len(ranks)
        self.eos_ids = [self.eos_id]
        self.vocab_size = len(ranks) + 1
        settings = {"pat_str": PATTERN, "special_tokens": {END: self.eos_id}}
        self.encoding = tiktoken.Encoding("pocket-r1", mergeable_ranks=ranks, **settings)

    @classmethod
    def load(cls, folder, chat=False, system="", think=False):
        """The tokenizer of a checkpoint folder; the rest are the flags of these names.

        ValueError names the line that is damaged, or the flag that has no meaning here."""
        if chat:
            raise ValueError(f"--chat: the tokenizer of {folder} has no chat format")
        path = os.path.join(folder, "tokenizer.tiktoken")
        ranks = {}
        with open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                try:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
                except ValueError:
                    raise ValueError(f"{path}:{number}: not a base64 token and a rank") from None
        has_bytes = all(bytes([b]) in ranks for b in range(256))
        if not has_bytes or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError(f"{path}: ranks must be 0, 1, ..., and have all 256 single bytes")
        return cls(ranks, think)

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        lines = [b"%s %d\n" % (base64.b64encode(token), i) for token, i in self.ranks.items()]
        write_file(os.path.join(folder, "tokenizer.tiktoken"), b"".join(lines))

    def encode(self, text):
        """text -> list of ids. The end token is never made from text. A lone surrogate reads ?"""
        return self.encoding.encode_ordinary(text.encode(errors="replace").decode())

    def decode(self, ids):
        """ids -> text; the end token as <|end|>, bytes that are no UTF-8 as U+FFFD.

        A model may have more ids than its tokenizer: those are left out."""
        return self.encoding.decode([i for i in ids if i < self.vocab_size])

    def prompt(self, problem):
        """The ids that a response continues."""
        return self.encode(problem["prompt"] + self.opening)
