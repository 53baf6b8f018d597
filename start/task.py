"""Flags that name a task and its judge -> the Task, and with a model all that sampling needs."""

import importlib
from dataclasses import dataclass

from data import load_task
from plumbing.flags import flag
from rewards import Judge
from start.compose import ModelFlags, check_context, load_model, load_tokenizer


@dataclass
class TaskFlags(ModelFlags):
    """What is asked, and how it is judged."""

    task: str = flag("pairs", "a file of data/, gym:NAME or a .jsonl file; several joined by +")
    reward: str = flag("", "file.py:function that judges instead of the task's own rule")
    reward_workers: int = flag(1, "threads that call it, for a judge that waits", at_least=1)
    reward_model: str = flag("", "folder of a reward model that judges the task general")
    unsafe_code: bool = flag(False, "run the model's programs even where no sandbox isolates them")


def build_task(flags, seed, held_out=""):
    """The Task that the flags name, with the judges that they name. flags: TaskFlags.

    seed: of the problems. held_out: names of held-out problems, if not the task's own: then all
    rows of a file are trained on. ValueError for a flag that does not fit."""
    task = load_task(flags.task, seed, hold_out=not held_out)
    if held_out:
        task.held_out = importlib.import_module("data.mix").load_held_out(held_out)
    return add_judges(task, flags)


def add_judges(task, flags):
    """The same Task, judged as the flags say, where they or its problems ask for it."""
    kinds = {problem["kind"] for problem in task.problems()}
    if flags.reward or flags.reward_model or kinds & {"code", "gym"}:
        importlib.import_module("start.judges").add(task, flags, kinds)
    return task


def check_task(config, task, tokenizer, policy):
    """Cuts the held-out sets to what train.py's flags ask for -> tokens of the longest prompt.

    ValueError if the task has too few problems for a step, or too long ones for the model."""
    if config.prompts_sampled > len(task.train):
        counts = f"{config.prompts_sampled} problems, {config.task} has {len(task.train)}"
        raise ValueError(f"--prompts_per_step {config.prompts_per_step}: a step takes {counts}")
    longest_response = max(config.max_new_tokens, config.eval_max_new_tokens)
    prompts = [tokenizer.prompt(problem) for problem in task.problems()]
    sets = list(task.held_out.items())[: config.eval_sets or None]
    task.held_out = {name: problems[: config.eval_problems or None] for name, problems in sets}
    counts = [f"{name} ({len(task.held_out[name])} of {len(all)})" for name, all in sets]
    print(f"{len(task.train)} training problems; held out: {', '.join(counts)}")
    return check_context(config.task, prompts, longest_response, policy)


def load_for_sampling(flags, task):
    """-> the model, its tokenizer, the Judge of a task. flags: evaluate.Config.

    ValueError if a problem and a response do not fit into the model's context."""
    model = load_model(flags.model, flags)
    tokenizer = load_tokenizer(flags.model, flags, model)
    judge = Judge(add_judges(task, flags).accuracy, tokenizer, flags.reward_workers)
    prompts = [tokenizer.prompt(problem) for problem in task.problems()]
    check_context(flags.task, prompts, flags.max_new_tokens, model)
    return model, tokenizer, judge
