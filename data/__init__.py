"""Tasks: `load_task(name, seed)` -> Task, the problems of a name that --task takes.

A name is a file of this folder with a function load(seed) -> (training problems, {name: held-out
problems}), gym:NAME for a generator of reasoning-gym, or a .jsonl file of questions and answers. A
new task is one new file. Names joined by + are trained on in equal shares; the first held-out set
of each is reported before any other.

A problem is a dict of data: prompt, kind, perhaps the language of the question, and what the
verifier of that kind reads. Kind "math" is verified by rewards.equal; any other kind is a file
data/KIND.py with a function verify(problem, answer) -> True, False, a float, or None for "could not
tell", and a function check(problem) if a .jsonl file may have such problems: ValueError for one
that cannot be judged. "untagged": true says that a response without <answer> tags is an answer as a
whole.
"""

import importlib
import os
import pathlib
import re
from dataclasses import dataclass, field

import rewards


@dataclass
class Task:
    """Problems and who judges them. The first held-out set is the one that training reports."""

    train: list  # problems
    held_out: dict  # {name: problems}
    judges: dict = field(default_factory=dict)  # {kind: function}, in place of rewards.accuracy

    def problems(self):
        """All of them, those of training first."""
        return self.train + [p for problems in self.held_out.values() for p in problems]

    def accuracy(self, problem, response):
        """-> a float, or None for "could not tell"."""
        judge = self.judges.get(problem["kind"], rewards.accuracy)
        return judge(problem, response)


def task_names():
    """The files of this folder that have a function load."""
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if re.search(r"(?m)^def load\(", file.read_text("utf-8"))]


def load_task(name, seed=0, hold_out=True):
    """hold_out: one row in eight of a file is held out, else none.

    ValueError if there is no such task, or nothing that verifies a kind of its problems."""
    if "+" in name and not os.path.exists(name):
        parts = {part: load_task(part, seed, hold_out) for part in name.split("+")}
        return importlib.import_module("data.mix").join(parts)
    if name.endswith(".jsonl"):
        train, held_out = importlib.import_module("data.jsonl").load_file(name, hold_out)
    elif name.startswith("gym:"):
        generator = name.removeprefix("gym:")
        train, held_out = importlib.import_module("data.gym").load_generator(generator, seed)
    elif name in task_names():
        train, held_out = importlib.import_module(f"data.{name}").load(seed)
    else:
        names = ", ".join(task_names())
        raise ValueError(f"--task {name}: choose from {names}, gym:NAME, or a file NAME.jsonl")
    task = Task(train, held_out)
    for kind in {problem["kind"] for problem in task.problems()}:
        rewards.verifier(kind)
    return task
