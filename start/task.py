"""Flags that name a task and its judge -> the Task, and with a model all that sampling needs.

What most runs do not need is imported here when a flag asks for it: the reward model, the sandbox.
"""

import importlib
import runpy
from dataclasses import dataclass

from data import load_task
from plumbing.flags import flag
from rewards import Judge
from start.compose import ModelFlags, load_model, load_tokenizer


@dataclass
class TaskFlags(ModelFlags):
    """What is asked, and how it is judged."""

    task: str = flag("pairs", "a file of data/, gym:NAME or a .jsonl file; several joined by +")
    reward: str = flag("", "file.py:function that judges instead of the task's own rule")
    reward_model: str = flag("", "folder of a reward model that judges the task general")
    unsafe_code: bool = flag(False, "run the model's programs even where no sandbox isolates them")


def build_task(flags, seed):
    """The Task that the flags name, with the judges that they name.

    flags: TaskFlags. seed: of the problems. ValueError for a flag that does not fit."""
    general = "general" in flags.task.split("+")
    if flags.reward_model and (flags.reward or not general):
        raise ValueError("--reward_model judges the task general, and not beside --reward")
    task = load_task(flags.task, seed)
    kinds = {problem["kind"] for problem in task.problems()}
    if flags.reward:
        task.judges = dict.fromkeys(kinds, user_function(flags.reward))
        return task
    if flags.reward_model:
        add_reward_model(task, flags)
    if "code" in kinds or "gym" in kinds:
        importlib.import_module("verifiers.sandbox").start(flags.unsafe_code)
    return task


def load_for_sampling(flags):
    """-> the model, its tokenizer, the Task, the Judge. flags: TaskFlags and `model`, a folder."""
    model = load_model(flags.model, flags)
    tokenizer = load_tokenizer(flags.model, flags, model)
    task = build_task(flags, seed=0)
    return model, tokenizer, task, Judge(task.accuracy, tokenizer)


def user_function(name):
    """The function that --reward names. Its file is the user's own program, and is run."""
    path, _, function_name = name.partition(":")
    try:
        function = runpy.run_path(path).get(function_name)
    except (SyntaxError, ImportError, ValueError, OSError) as error:
        raise ValueError(f"--reward {name}: {error}") from None
    if not callable(function):
        raise ValueError(f"--reward {name}: name a file and a function in it, as in mine.py:reward")
    return function


def add_reward_model(task, flags):
    """The reward model judges general problems in training, and held-out ones a second time."""
    reward_model = importlib.import_module("stages.reward_model")
    task.judges["preferred"] = reward_model.as_reward(flags.reward_model, flags)
    task.train = [preferred(p) if p["kind"] == "general" else p for p in task.train]
    held_out = task.held_out["general"]
    task.held_out["general by reward model"] = [preferred(p) for p in held_out]


def preferred(problem):
    """The same problem, of the kind that the reward model judges."""
    return problem | {"kind": "preferred"}
