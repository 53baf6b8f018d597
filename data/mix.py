"""Several tasks at a time, and held-out problems from elsewhere."""

import os
from collections import Counter

import data


def join(tasks):
    """{name: Task} -> one Task of all, in turns. A short one starts again until all have ended.

    A training problem has the name of its task as "task"."""
    train = []
    held_out = {}
    for i in range(max(len(task.train) for task in tasks.values())):
        for name, task in tasks.items():
            train.append(task.train[i % len(task.train)] | {"task": name})
    uses = Counter(set_name for task in tasks.values() for set_name in task.held_out)
    for turn in range(max(len(task.held_out) for task in tasks.values())):
        for name, task in tasks.items():
            for set_name in list(task.held_out)[turn : turn + 1]:
                unique = set_name if uses[set_name] == 1 else f"{name}: {set_name}"
                held_out[unique] = task.held_out[set_name]
    return data.Task(train, held_out)


def load_held_out(name):
    """{set: problems} of names as --task takes: all rows of a file, the held-out sets of a task."""
    tasks = {part: data.load_task(part, hold_out=False) for part in name.split("+")}
    for part, task in tasks.items():
        task.held_out = task.held_out or {os.path.basename(part): task.train}
    return join(tasks).held_out
