"""Countdown, the standard task of small R1 replications: reach a target with all given numbers.

    Use each of the numbers 44, 19, 35 exactly once, with + - * / and parentheses, to make 98.

3 or 4 numbers from 1 to 99, a target from 10 to 99. The target is made by combining the numbers at
random, so every problem can be solved. One problem in eight (a multiset of numbers and a target) is
held out, as in data/pairs.py, whose problems are of this kind too: with "pick", exactly so many of
the numbers are used.
"""

import ast
import random
import re
from collections import Counter
from fractions import Fraction
from operator import add, mul, sub, truediv

from data.pairs import is_held_out
from data.prompt import ask
from rewards import MAX_ANSWER

QUESTION = "Use each of the numbers {} exactly once, with + - * / and parentheses, to make {}."
OPERATIONS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}


def value_of(node, used):
    """A node of a syntax tree -> its exact value. Appends the numbers in it to `used`."""
    if type(node) is ast.Constant and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if type(node) is ast.BinOp and type(node.op) in OPERATIONS:
        left, right = value_of(node.left, used), value_of(node.right, used)
        return OPERATIONS[type(node.op)](left, right)
    raise ValueError("not arithmetic: **, //, a unary minus, a call or a tuple")


def arithmetic(text):
    """(exact value, numbers used) of an expression with + - * / ( ) and whole numbers, else None.

    "(1+2)*3" -> 9, [1, 2, 3]    "7//2", "2**3", "-1+2", "1.2*5", "1/0" -> None
    It is parsed and never evaluated as Python: 9**9**9**9 is refused."""
    if len(text) > MAX_ANSWER or not re.fullmatch(r"[0-9+\-*/() \t\r\n]+", text):
        return None
    used = []
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval")
        return value_of(tree.body, used), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def verify(problem, answer):
    """Is the value of the answer the target, with each number used once?

    With "pick", so many numbers are used, each at most as often as it is given."""
    result = arithmetic(answer)
    if result is None:
        return False
    value, used = result
    numbers = problem["numbers"]
    size = problem.get("pick", len(numbers))
    return value == problem["target"] and len(used) == size and Counter(used) <= Counter(numbers)


def check(problem):
    """ValueError if no answer to a problem that was read from a file could be right."""
    numbers, target = problem.get("numbers"), problem.get("target")
    whole = isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
    if not whole or type(target) is not int:
        raise ValueError(f"countdown: whole numbers are needed, not {numbers!r} to make {target!r}")
    pick = problem.get("pick", len(numbers))
    if type(pick) is not int or not 1 <= pick <= len(numbers):
        raise ValueError(f"countdown: pick {pick!r} of {numbers!r}")


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
    listed = ", ".join(str(n) for n in numbers)
    texts = ask(QUESTION.format(listed, target))
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
