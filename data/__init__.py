"""Tasks: `load_task(name, seed)` -> (training problems, {name: held-out problems}).

A problem is a dict: prompt, kind (which verifier of rewards.py judges it), and what that verifier needs: answer for
"math"; numbers, target and perhaps pick for "countdown". A name that ends in .jsonl is a file of rows with prompt and
answer; every eighth row of it is held out."""
from data import pairs
from data.jsonl import read

TASKS = {"pairs": pairs.load}


def load_task(name, seed=0):
    if name.endswith(".jsonl"):
        problems = [{"kind": "math"} | row for row in read(name, ("prompt", "answer"))]
        test = problems[7::8] or problems
        return [p for i, p in enumerate(problems) if i % 8 != 7], {"held out": test}
    if name not in TASKS:
        raise ValueError(f"--task {name}: choose from {', '.join(TASKS)}, or a file that ends in .jsonl")
    return TASKS[name](seed)
