"""Any generator of reasoning-gym (optional) as a task, with its own scorer:    --task gym:chain_sum

Generator and scorer run in the process of outside.py, which remembers the items; a problem holds their numbers.
"""
from tqdm import tqdm

import outside
from data.prompt import ask


def load(seed, name):
    """(training problems, {name: held-out problems}); no question that is held out is trained on. ValueError names
    the generator, or the package, that there is not."""
    items = [(name, 0, i) for i in range(128)] + [(name, 10_000 * (seed + 1), i) for i in range(1024)]
    try:
        asked = [outside.ask("reasoning_gym", *item) for item in tqdm(items, desc=name, leave=False)]
    except RuntimeError as error:
        raise ValueError(f"--task gym:{name}: {str(error).splitlines()[-1]}") from None
    made = [ask(question) | {"kind": "gym", "item": item} for item, question in zip(items, asked) if question]
    test = {p["prompt"]: p for p in made if p["item"][1] == 0}
    return [p for p in made if p["prompt"] not in test], {"held out": list(test.values())}
