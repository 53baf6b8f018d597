"""JSON-lines files. A bad row is one line that names the file, the line and the reason."""
import argparse
import itertools
import json
import os

import regex
from tqdm import tqdm

from data.prompt import ask
from rewards import language, number
from sandbox import jobs

BOXED = regex.compile(r"\\boxed\{((?:\\.|[^{}\\]|\{(?1)\})*+)\}", regex.DOTALL)        # braces in pairs; \{ is no brace


def read(path, keys=(), convert=lambda row: row):
    """Rows of a JSON-lines file, each an object with a non-empty string under every one of `keys`, converted.

    CRLF, a byte-order mark and blank lines are accepted; anything else raises ValueError("path:line: reason")."""
    rows = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                line = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not line:
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"an object was expected, not {type(row).__name__}")
                for key in keys:
                    text(row, key)
                rows.append(convert(row))
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                raise ValueError(f"{path}:{number}: {str(error) or type(error).__name__}") from None
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def write(path, rows):
    """Whole or not at all."""
    with open(path + ".tmp", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(path + ".tmp", path)


def generate(kinds):
    """The program `python -m MODULE KIND COUNT FILE`: COUNT rows of kinds[KIND], a generator, into FILE."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("count", type=int)
    parser.add_argument("file")
    args = parser.parse_args()
    write(args.file, tqdm(itertools.islice(kinds[args.kind], args.count), desc=args.kind, total=args.count))


def text(row, *keys):
    """(the first of `keys` that has a text in it, the text)."""
    for key in keys:
        if isinstance(row.get(key), str) and row[key]:
            return key, row[key]
    raise ValueError(f"no text under {' or '.join(map(repr, keys))}")


def truth(key, text):
    r"""The final answer: after GSM8K's last ####, in the last \boxed{...}, or all of what is no worked solution."""
    found = text if key == "answer" or number(text) is not None else ""
    if "####" in text:
        found = text.rpartition("####")[2]
    elif "\\boxed{" in text:
        found = box[1] if (box := BOXED.match(text, text.rfind("\\boxed{"))) else ""
    if not found.strip():
        raise ValueError(f"no final answer in {key!r}: #### and it, or \\boxed{{it}}")
    return found.strip()


def problem(row):
    """A row -> a problem. A "prompt" is used as it is, a "question" or "problem" is asked (data/prompt.py)."""
    key, asked = text(row, "prompt", "question", "problem")
    row = {"kind": "math"} | row | (ask(asked) if key != "prompt" else {"user": asked})
    language("", row.get("language", "en"))       # ValueError if it is none that is known
    if row["kind"] == "math":
        return row | {"answer": truth(*text(row, "answer", "solution"))}
    if row["kind"] == "code":
        jobs(row.get("tests"))                    # ValueError if they cannot be judged
    elif row["kind"] != "countdown" or not {*map(type, [*row.get("numbers", "?"), row.get("target")])} <= {int, float}:
        raise ValueError(f"kind {row['kind']!r}: math (answer), code (tests) or countdown (numbers and a target)")
    return row
