"""Countdown, the standard task of small R1 replications: reach a target with all of the given numbers.

    Use each of the numbers 44, 19, 35 exactly once, with + - * / and parentheses, to make 98.

3 or 4 numbers from 1 to 99, a target from 10 to 99. The target is made by combining the numbers at random, so every
problem can be solved. One problem in eight (a multiset of numbers and a target) is held out, as in data/pairs.py.
"""
import random

from data.pairs import held_out
from data.prompt import ask


def make_problem(rng, size, test):
    """A problem with `size` numbers, from the held-out part (test) or the other seven eighths."""
    while True:
        numbers = [rng.randint(1, 99) for _ in range(size)]
        values = list(numbers)
        while len(values) > 1:                    # two of them become one, until one is left
            a, b = (values.pop(rng.randrange(len(values))) for _ in range(2))
            values.append(rng.choice([a + b, a - b, a * b] + ([a // b] if b and a % b == 0 else [])))
        if 10 <= values[0] <= 99 and held_out(numbers, values[0]) == test:
            return {"kind": "countdown", "numbers": numbers, "target": values[0]} | ask(
                f"Use each of the numbers {', '.join(map(str, numbers))} exactly once, with + - * / and parentheses, "
                f"to make {values[0]}.")


def load(seed=0):
    """(training problems, {name: held-out problems}). The first held-out set is the one that training reports."""
    rng = random.Random(f"countdown train {seed}")
    train = [make_problem(rng, rng.choice((3, 4)), test=False) for _ in range(8192)]
    rng = random.Random("countdown test")         # the same for every seed
    return train, {f"{size} numbers": [make_problem(rng, size, test=True) for _ in range(128)] for size in (3, 4)}
