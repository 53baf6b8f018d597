"""Any generator of reasoning-gym (optional) as a task, with its own scorer:    --task gym:chain_sum

Generator and scorer run in the process of outside.py, which remembers the items; a problem holds their numbers.
"""
import importlib.util

from tqdm import tqdm

import outside
from data.prompt import ask


def load(seed, name):
    """(training problems, {name: held-out problems}); no question that is held out is trained on."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(f"--task gym:{name} needs the package reasoning-gym: pip install reasoning-gym")

    def problems(first, count):
        items = [(name, first, i) for i in range(count)]
        asked = ((item, outside.ask("reasoning_gym", *item)) for item in tqdm(items, desc=name, leave=False))
        return [ask(question) | {"kind": "gym", "item": item} for item, question in asked if question]

    try:
        test = problems(0, 128)
        seen = {p["prompt"] for p in test}
        train = [p for p in problems(10_000 * (seed + 1), 1024) if p["prompt"] not in seen]
    except RuntimeError as error:
        raise ValueError(f"--task gym:{name}: {str(error).splitlines()[-1]}") from None
    return train, {"held out": test}
