"""Judges that not every run needs: a user's function, a reward model, programs in a sandbox."""

import importlib
import runpy


def add(task, flags, kinds):
    """kinds: those of the Task's problems. ValueError for a flag that does not fit."""
    if flags.reward_model and (flags.reward or "general" not in flags.task.split("+")):
        raise ValueError("--reward_model judges the task general, and not beside --reward")
    if flags.reward:
        task.judges = dict.fromkeys(kinds, user_function(flags.reward))
        return
    if flags.reward_model:
        add_reward_model(task, flags)
    if "code" in kinds or "gym" in kinds:
        importlib.import_module("verifiers.sandbox").start(flags.unsafe_code)


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
    kind = {"kind": "preferred"}
    task.train = [p | kind if p["kind"] == "general" else p for p in task.train]
    if "general" in task.held_out:
        task.held_out["general by reward model"] = [p | kind for p in task.held_out["general"]]
