r"""JSON-lines files. A bad row is one line that names the file, the line and the reason.

As a task a file has rows of a "prompt", which is used as it stands, or of a "question" or
"problem", which is asked as data/prompt.py does, and an "answer" or worked "solution": the final
answer is what follows the last ####, as in GSM8K, or stands in the last \boxed{...}, as in MATH.
10,100,200 is one number; several have spaces or brackets, as 10, 100, 200.
Rows of another "kind" have what data/KIND.py reads.
"""

import importlib
import itertools
import json
import os
import zlib

import regex
from tqdm import tqdm

from data.math import number
from data.prompt import ask
from plumbing.files import replacing
from plumbing.flags import Parser, one_line_errors
from rewards import language_consistency, verifier

# Braces in pairs; \{ is no brace.
BOXED = regex.compile(r"\\boxed\{((?:\\.|[^{}\\]|\{(?1)\})*+)\}", regex.DOTALL)


def read(path, keys=(), convert=None):
    """Rows of a JSON-lines file, each an object with a text under each of `keys`, converted.

    CRLF, a byte-order mark and blank lines are accepted. ValueError("path:line: reason")."""
    rows = []
    with open(path, "rb") as f:
        for line_number, line in enumerate(f, 1):
            try:
                line = line.decode("utf-8-sig" if line_number == 1 else "utf-8").strip()
                if not line:
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"an object was expected, not {type(row).__name__}")
                for key in keys:
                    first_text(row, key)
                rows.append(convert(row) if convert else row)
            except (ValueError, TypeError, RecursionError, MemoryError) as error:
                reason = str(error) or type(error).__name__
                raise ValueError(f"{path}:{line_number}: {reason}") from None
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def check_output(path, *inputs):
    """Before any work is done: ValueError or OSError if `path` is no place for a file.

    inputs: files that are read, and must not be overwritten."""
    for name in inputs:
        if os.path.realpath(path) == os.path.realpath(name):
            raise ValueError(f"{path} is read: name another file to write")
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder: name a file in it")
    with open(path + ".tmp", "w"):
        os.remove(path + ".tmp")


def write(path, rows):
    """Whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")


def generate(kinds):
    """The program `python -m MODULE KIND COUNT FILE`: COUNT rows of the generator kinds[KIND]."""
    parser = Parser()
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("count", type=int)
    parser.add_argument("file")
    with one_line_errors():
        args = parser.parse_args()
        if not 1 <= args.count < 1e12:
            raise ValueError(f"{args.count} rows: at least 1 is needed, below 1e12")
        check_output(args.file)
    rows = itertools.islice(kinds[args.kind], args.count)
    write(args.file, tqdm(rows, desc=args.kind, total=args.count, disable=None))


def first_text(row, *keys):
    """(the first of `keys` that has a text or a number in it, that as a text)."""
    for key in keys:
        value = row.get(key)
        if type(value) in (int, float):
            value = str(value)
        if isinstance(value, str) and value:
            return key, value
    raise ValueError(f"no text under {' or '.join(repr(key) for key in keys)}")


def final_answer(row):
    """The answer of a row of kind "math". ValueError if it has none."""
    key, text = first_text(row, "answer", "solution")
    answer = ""
    if "####" in text:
        answer = text.rpartition("####")[2]
    elif "\\boxed{" in text:
        box = BOXED.match(text, text.rfind("\\boxed{"))
        answer = box[1] if box else ""
    elif key == "answer" or number(text) is not None:  # no worked solution
        answer = text
    if not answer.strip():
        raise ValueError(f"no final answer in {key!r}: #### and it, or \\boxed{{it}}")
    return answer.strip()


def to_problem(row):
    """A row of a file as a task -> a problem. ValueError if it could not be judged."""
    key, question = first_text(row, "prompt", "question", "problem")
    texts = {"user": question} if key == "prompt" else ask(question)
    problem = {"kind": "math", **row, **texts}
    language_consistency("", problem.get("language", "en"))  # ValueError if it is not known
    kind = problem["kind"]
    if kind == "math":
        problem["answer"] = final_answer(row)
        return problem
    verifier(kind)  # ValueError if there is none
    module = importlib.import_module(f"data.{kind}")
    if not hasattr(module, "check"):
        raise ValueError(f"kind {kind!r}: data/{kind}.py has no function check for rows of a file")
    module.check(problem)
    return problem


def load_file(path, hold_out):
    """The task that a file is -> training problems, {name: held-out problems}.

    Equal prompts are one problem. hold_out: one in eight, by the CRC of its prompt; else none."""
    train, test = {}, {}
    for problem in read(path, convert=to_problem):
        prompt = problem["prompt"]
        is_test = hold_out and zlib.crc32(prompt.encode(errors="replace")) % 8 == 0
        (test if is_test else train)[prompt] = problem
    if hold_out and not (train and test):
        raise ValueError(f"{path}: too few rows to hold one in eight out: --eval names other ones")
    return list(train.values()), {"one in eight": list(test.values())} if hold_out else {}
