"""Tasks: `load_task(name, seed, reward, unsafe_code)` -> (training problems, {name: held-out problems}).

A problem is a dict: prompt, kind (which verifier of rewards.py judges it), and what that verifier needs: answer for
"math"; numbers, target and perhaps pick for "countdown"; tests for "code"; item for "gym". A name that ends in .jsonl
is a file of questions and answers (data/jsonl.py); about one problem in eight of it, by the CRC of its prompt, is held
out. A name gym:NAME is a generator of reasoning-gym. A reward "file.py:function" replaces the verifiers: the function
is called with the problem and the response and returns a float, or None for "could not judge". What may run text of the
model as a program ("code", "gym") raises ValueError where the system has no sandbox for it, unless `unsafe_code`."""
import importlib
import runpy
import zlib
from dataclasses import dataclass

import sandbox
from data.jsonl import problem, read

TASKS = ("pairs", "countdown", "code")        # modules of this folder, imported when asked for


@dataclass
class Task:
    """What is asked, how, and how it is judged: flags of train.py and evaluate.py."""
    task: str = "pairs"           # pairs, countdown, code, gym:NAME or a .jsonl file
    reward: str = ""              # file.py:function, to judge instead of the task's verifier
    unsafe_code: bool = False     # run programs of the model even where the sandbox cannot isolate them
    chat: bool = False            # put the problems in the chat format of the model
    system: str = ""              # with --chat: text of the system's turn
    think: bool = False           # the prompt opens the <think> block


def load_task(name, seed=0, reward="", unsafe_code=False):
    if name.endswith(".jsonl"):
        parts = {True: {}, False: {}}          # by prompt: a row that stands twice is one problem
        for row in read(name, convert=problem):
            parts[zlib.crc32(row["prompt"].encode()) % 8 == 0][row["prompt"]] = row
        if not all(parts.values()):
            raise ValueError(f"{name}: too few rows to hold one in eight out")
        train, sets = list(parts[False].values()), {"held out": list(parts[True].values())}
    elif name.startswith("gym:"):
        train, sets = importlib.import_module("data.gym").load(seed, name.removeprefix("gym:"))
    elif name in TASKS:
        train, sets = importlib.import_module(f"data.{name}").load(seed)
    else:
        raise ValueError(f"--task {name}: choose from {', '.join(TASKS)}, gym:NAME, or a file that ends in .jsonl")
    rows = sum(sets.values(), train)
    if reward:
        path, _, function = reward.rpartition(":")
        found = runpy.run_path(path).get(function) if path else None       # the user's own program
        if not callable(found):
            raise ValueError(f"--reward {reward}: a file and a function in it are needed, as in rewards.py:accuracy")
        for row in rows:
            row["reward"] = found
    elif any(row["kind"] in ("code", "gym") for row in rows):
        sandbox.start(unsafe_code)
    return train, sets
