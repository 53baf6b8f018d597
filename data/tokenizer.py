"""The tokenizer: a tiktoken.Encoding over the rank table of a checkpoint folder, and the model's chat format.

    tokenizer.tiktoken    ours: one line a token, base64 and rank, as tiktoken's own files; all 256 bytes are in it
    tokenizer.json        public: a byte-level BPE (Llama 3, Qwen, SmolLM2), reproduced exactly or refused by name

Our pattern keeps numbers of up to three digits apart from spaces (a number is the same token in the prompt and in the
answer), and joins a word or a tag with the space or line end around it.

    python -m data.tokenizer CORPUS.jsonl FOLDER        learn the ranks from the texts of a corpus
"""
import base64
import json
import os
import sys
import unicodedata
from collections import Counter

import regex
import tiktoken

PATTERN = r"</?[a-z]+>\n?|\p{N}{1,3}| ?\p{L}+[ \n:]?|[^\s\p{L}\p{N}]|\s+"
END = "<|end|>"
OPEN = "<think>\n"
BOS = "<|begin_of_text|>"         # Llama 3 was never trained without it; the other families have none
# Chat formats by the token that opens a turn: a turn up to its text, and what follows it.
CHATS = {"<|im_start|>": (["<|im_start|>", "{role}\n{text}"], ["<|im_end|>", "\n"]),
         "<|start_header_id|>": (["<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n{text}"], ["<|eot_id|>"])}


class Tokenizer:
    """ranks {bytes: id}, special {text: id}. Those of `plain` may be made from text; those of eos_ids end a response.

    Each of the patterns splits the pieces of the one before. files: what `save` writes of a public tokenizer."""
    chat, system, think = False, "", False        # how `prompt` puts a problem to the model: the flags of these names

    def __init__(self, ranks, special=None, plain=(), eos_ids=None, nfc=False, patterns=(PATTERN,), files=None):
        self.ranks, self.nfc, self.files = ranks, nfc, files
        self.special, self.eos_ids = special or {END: len(ranks)}, eos_ids or [len(ranks)]
        self.eos_id = self.eos_ids[0]             # the one to end a text with
        self.encoding = tiktoken.Encoding("pocket-r1", pat_str=".", mergeable_ranks=ranks, special_tokens=self.special)
        self.known = {*ranks.values(), *self.special.values()}
        self.vocab_size = max(self.known) + 1
        self.missing = bytes(b for b in range(256) if bytes([b]) not in ranks)
        self.patterns = [regex.compile(pattern) for pattern in patterns]
        self.plain = regex.compile(f"({'|'.join(map(regex.escape, sorted(plain, key=len, reverse=True))) or '(?!)'})")

    def encode(self, text):
        """text -> list of ids. Special tokens are never made from text, whatever it says; `prompt` makes them.

        The text is split here, tiktoken merges: one pattern, which is all that it knows, is not enough for all."""
        ids = []
        for i, part in enumerate(self.plain.split(text)):
            if i % 2:
                ids.append(self.special[part])
                continue
            pieces = [unicodedata.normalize("NFC", part) if self.nfc else part]
            for pattern in self.patterns:
                pieces = [m[0] for piece in pieces for m in pattern.finditer(piece)]
            for piece in pieces:                  # bytes without a token are dropped before anything is merged
                left = piece.encode(errors="replace").translate(None, self.missing)
                ids += self.encoding._encode_single_piece(left) if left else []
        return ids

    def decode(self, ids):
        """ids -> text; an end token at the end as <|end|>, whatever its name; bytes that are no UTF-8 as U+FFFD."""
        ended = len(ids) > 0 and ids[-1] in self.eos_ids
        return self.encoding.decode([i for i in ids[:len(ids) - ended] if i in self.known]) + END * ended

    def prompt(self, problem):
        """The ids that a response continues: problem["prompt"] as it stands; with `chat` the turns of the model's chat
        format, the user's with problem["user"] where it has one, one before it if there is a `system` text. With
        `think` they end in OPEN."""
        think, start = OPEN * self.think, [self.special[BOS]] if BOS in self.special else []
        if not self.chat and self.system:
            raise ValueError("--system needs --chat")
        if not self.chat:
            return start + self.encode(problem["prompt"] + think)
        for name, (opening, closing) in CHATS.items():
            if name in self.special:
                turn = lambda role, text: [part.format(role=role, text=text) for part in opening]
                parts = turn("system", self.system) + closing if self.system else []
                parts += turn("user", problem.get("user", problem["prompt"])) + closing + turn("assistant", think)
                return start + sum(([self.special[p]] if p in self.special else self.encode(p) for p in parts), [])
        raise ValueError(f"--chat: the tokenizer has no chat format: none of {', '.join(CHATS)} is a token")

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        lines = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in self.ranks.items())
        for name, data in (self.files or {"tokenizer.tiktoken": lines.encode()}).items():
            with open(os.path.join(folder, name), "wb") as f:
                f.write(data)

    @classmethod
    def load(cls, folder):
        """The tokenizer of a checkpoint folder, ours or public. ValueError names the file and what is wrong with it."""
        path = os.path.join(folder, "tokenizer.tiktoken")
        if not os.path.exists(path):
            return read_public(folder)
        ranks = {}
        with open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                try:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
                except ValueError:
                    raise ValueError(f"{path}:{number}: not a base64 token and a rank") from None
        if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
            raise ValueError(f"{path}: ranks must be 0 to {len(ranks) - 1}, all 256 single bytes among them")
        return cls(ranks)


# --- Public tokenizers ----------------------------------------------------------------------------------------------

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]        # bytes that are written as themselves
ALPHABET = {chr(b): b for b in SHOWN} | {chr(256 + i): b for i, b in enumerate(sorted({*range(256)} - {*SHOWN}))}
# Settings of a model or an added token that would change the ids.
ODD = ("dropout", "unk_token", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "lstrip", "rstrip",
       "single_word")


def split_patterns(step):
    """The regular expressions of a pre-tokenizer of the public format, in the order in which they split.

    They are read by the package regex: to the letter as elsewhere for the patterns of the families above."""
    patterns, (*steps, last) = [], step["pretokenizers"] if step["type"] == "Sequence" else [step]
    for step in steps:
        if step["type"] == "Digits":
            patterns.append(r"\p{N}" if step["individual_digits"] else r"\p{N}+")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            patterns.append(step["pattern"].get("Regex") or regex.escape(step["pattern"]["String"]))
        else:
            raise ValueError(f"pre_tokenizer {step} is not known here")
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise ValueError(f"pre_tokenizer {last} is not known here, at the end")
    patterns += [GPT2] if last.get("use_regex", True) else []
    return [f"{p}|(?:(?!{p})[\\s\\S])+" for p in patterns] or [r"[\s\S]+"]         # what lies between is a piece too


def last_parts(token, ranks):
    """The parts of a token before the merge that makes it: two, or more where no merge does."""
    parts = [token[i:i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(a + b, ranks[token]), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
        if rank == ranks[token]:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


def read_public(folder):
    """The Tokenizer of a folder with tokenizer.json; ValueError names what would not give the same ids."""
    files, configs = {}, []
    try:
        for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"):
            path = os.path.join(folder, name)
            if os.path.exists(path) or name == "tokenizer.json":
                with open(path, "rb") as f:
                    files[name] = f.read()
            configs.append(json.loads(files.get(name, b"{}")))
        config, generation, about, spec = configs
        model, added = spec["model"], spec["added_tokens"]
        special = {token["content"]: token["id"] for token in added}
        raw = lambda token: bytes(ALPHABET[c] for c in token)
        ranks = {raw(token): id for token, id in model["vocab"].items() if token not in special}
        merges = [tuple(map(raw, pair.split(" ") if isinstance(pair, str) else pair)) for pair in model["merges"]]
        order, pairs = [ranks[a + b] for a, b in merges], {*merges}
        fine = lambda parts: parts in pairs or len(parts) == 1 or (len(parts) > 2 and model["ignore_merges"])
        odd = [f"model type {model['type']}"] * (model["type"] != "BPE")
        odd += [f"{name} {model[name]!r}" for name in ODD if model.get(name)]
        odd += [f"normalizer {spec['normalizer']}"] * (spec["normalizer"] not in (None, {"type": "NFC"}))
        odd += [f"added token {t['content']!r} with {name}" for t in added for name in ODD if t.get(name)]
        ids = {id for id in (*ranks.values(), *special.values()) if type(id) is int and 0 <= id < 2 ** 31}
        odd += ["an id that is no number, or of two tokens"] * (len(ids) < len(ranks) + len(special))
        odd += ["an order of merges that is not that of the ids"] * (order != sorted(order))
        odd += [f"a token {token} that no merge makes from {p}" for token in ranks
                if not fine(p := last_parts(token, ranks))]
        begins = about.get("add_bos_token") or '"SpecialToken"' in json.dumps(spec.get("post_processor"))
        odd += [f"a token that begins every text, other than {BOS},"] * bool(begins and BOS not in special)
        if odd:
            raise ValueError(f"{odd[0]} is not known here")
        end = about.get("eos_token")
        ends = [special.get(end["content"] if isinstance(end, dict) else end)]
        for found in (generation.get("eos_token_id"), config.get("eos_token_id")):
            ends += found if isinstance(found, list) else [found]
        ends += [special.get(closing[0]) for _, closing in CHATS.values()]
        ends = [id for id in dict.fromkeys(ends) if id in ids]
        if not ends:
            raise ValueError("no end token: eos_token_id is in none of the folder's files")
        files["generation_config.json"] = json.dumps(generation | {"eos_token_id": ends}, indent=1).encode()
        files.pop("config.json", None)            # GPT.save writes that one
        return Tokenizer(ranks, special, [t["content"] for t in added if not t["special"]], ends,
                         bool(spec["normalizer"]), split_patterns(spec["pre_tokenizer"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, regex.error) as error:
        raise ValueError(f"{path}: {type(error).__name__} {' '.join(str(error).split())}") from None


def learn(text, size=639):
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
