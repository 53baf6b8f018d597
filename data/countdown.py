"""Countdown, the standard task of small R1 replications: reach a target with all given numbers.

    Use each of the numbers 44, 19, 35 exactly once, with + - * / and parentheses, to make 98.

3 or 4 numbers from 1 to 99, a target from 10 to 99. The target is made by combining the numbers at
random, so every problem can be solved. One problem in eight (a multiset of numbers and a target) is
held out, as in data/pairs.py, which judges answers to these problems, too.
"""

import random

from data.pairs import arithmetic, check, is_held_out, verify  # noqa: F401
from data.prompt import ask

QUESTION = "Use each of the numbers {} exactly once, with + - * / and parentheses, to make {}."


def combine(rng, values):
    """Two values, at random, become their sum, ... until one is left. -> that one."""
    values = list(values)
    while len(values) > 1:
        a = values.pop(rng.randrange(len(values)))
        b = values.pop(rng.randrange(len(values)))
        results = [a + b, a - b, a * b]
        if b != 0 and a % b == 0:
            results.append(a // b)
        values.append(rng.choice(results))
    return values[0]


def make_problem(rng, size, test):
    """A problem with `size` numbers, from the held-out part (test) or the other seven eighths."""
    while True:
        numbers = [rng.randint(1, 99) for _ in range(size)]
        target = combine(rng, numbers)
        if 10 <= target <= 99 and is_held_out(numbers, target) == test:
            break
    texts = ask(QUESTION.format(", ".join(str(n) for n in numbers), target))
    return {"kind": "countdown", "numbers": numbers, "target": target, **texts}


def load(seed=0):
    """-> training problems, {name: held-out problems}."""
    rng = random.Random(f"countdown train {seed}")
    train = [make_problem(rng, rng.choice((3, 4)), test=False) for _ in range(8192)]
    rng = random.Random("countdown test")  # the same for every seed
    held_out = {}
    for size in (3, 4):
        held_out[f"{size} numbers"] = [make_problem(rng, size, test=True) for _ in range(128)]
    return train, held_out
