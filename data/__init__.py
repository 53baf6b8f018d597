"""Tasks: `load_task(name, seed)` -> (training problems, {name: held-out problems}).

A problem is a dict: prompt, kind (which verifier of rewards.py judges it), and what that verifier needs: answer for
"math"; numbers, target and perhaps pick for "countdown"; tests for "code". A name that ends in .jsonl is a file of rows
with prompt and answer; about one problem in eight of it, by the CRC of its prompt, is held out."""
import importlib
import zlib

from data.jsonl import read
from rewards import VERIFIERS

TASKS = ("pairs", "code")         # modules of this folder, imported when asked for


def load_task(name, seed=0):
    if name.endswith(".jsonl"):
        parts = {True: {}, False: {}}          # by prompt: a row that stands twice is one problem
        for row in read(name, ("prompt", "answer")):
            parts[zlib.crc32(row["prompt"].encode()) % 8 == 0][row["prompt"]] = {"kind": "math"} | row
        if not all(parts.values()):
            raise ValueError(f"{name}: too few rows to hold one in eight out")
        for problem in [*parts[True].values(), *parts[False].values()]:
            if problem["kind"] not in VERIFIERS:
                raise ValueError(f"{name}: rewards.py judges no kind {problem['kind']!r}")
        return list(parts[False].values()), {"held out": list(parts[True].values())}
    if name not in TASKS:
        raise ValueError(f"--task {name}: choose from {', '.join(TASKS)}, or a file that ends in .jsonl")
    return importlib.import_module(f"data.{name}").load(seed)
