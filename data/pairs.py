"""The default task: make a target from two of the given numbers.

    User: make 11 from 9 7 10 1                       User: forma 11 con 9 7 10 1
    Assistant:<think>                                 Assistant:<think>
    9+7=16 no                                         9+7=16 mal
    9-7=2 no                                          9-7=2 mal
    ...                                               ...
    10+1=11 yes                                       10+1=11 bien
    wait check 10+1=11 right                          espera reviso 10+1=11 correcto
    </think>                                          </think>
    <answer>10+1</answer>                             <answer>10+1</answer>

Numbers are distinct, 1 to 12; an answer is a sum, a positive difference or a product of two of
them. Four numbers give 18 candidates, of which 1.3 fit on average, so the problem is a search:
patience and verification are what pays. Half of all questions are in English, half in Spanish.

Held out, from the base corpus (data/corpus.py) and from RL, are
- one problem (a set of numbers and a target) in eight, by its CRC;
- one expression (a sum, difference or product) in eight, by its CRC: no problem that it solves is
  in a document or trained on. "new solutions" are problems that only such expressions solve.

The corpus has documents of 3 to 5 numbers, RL trains on 3 and 4: five numbers are new to RL, six to
both. An answer is any arithmetic that has the right value: `verify` judges Countdown's, too.
"""

import ast
import random
import re
import zlib
from collections import Counter
from fractions import Fraction
from operator import add, mul, sub, truediv

from rewards import MAX_ANSWER

BIGGEST = 12
OPERATIONS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}
QUESTION = {"en": "make {} from {}", "es": "forma {} con {}"}


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
        raise ValueError(f"whole numbers are needed, not {numbers!r} to make {target!r}")
    pick = problem.get("pick", len(numbers))
    if type(pick) is not int or not 1 <= pick <= len(numbers):
        raise ValueError(f"pick {pick!r} of {numbers!r}")


def candidates(numbers):
    """[(text, value)]: every sum, difference and product of two numbers, in the prompt's order."""
    texts_and_values = []
    for i, a in enumerate(numbers):
        for b in numbers[i + 1 :]:
            texts_and_values.append((f"{a}+{b}", a + b))
            texts_and_values.append((f"{max(a, b)}-{min(a, b)}", abs(a - b)))
            texts_and_values.append((f"{a}*{b}", a * b))
    return texts_and_values


def is_held_out(numbers, target):
    return zlib.crc32(f"{sorted(numbers)} {target}".encode()) % 8 == 0


def part(numbers, target):
    """-> "train", "test" (a held-out problem), "new solutions", or "" (in no part)."""
    numbers = sorted(numbers)
    solutions = [text for text, value in candidates(numbers) if value == target]
    held_out = [zlib.crc32(text.encode()) % 8 == 0 for text in solutions]
    if any(held_out):
        return "new solutions" if all(held_out) else ""
    return "test" if is_held_out(numbers, target) else "train"


def make_problem(rng, size, of="train"):
    """A problem with `size` numbers, from one of the parts."""
    while True:
        numbers = rng.sample(range(1, BIGGEST + 1), size)
        _, target = rng.choice(candidates(numbers))
        if part(numbers, target) == of:
            break
    language = rng.choice(("en", "es"))
    question = QUESTION[language].format(target, " ".join(str(n) for n in numbers))
    text = {"prompt": f"User: {question}\nAssistant:", "language": language}
    return {"kind": "pairs", "numbers": numbers, "target": target, "pick": 2, **text}


def load(seed=0):
    """-> training problems, {name: held-out problems}, the ones with four numbers first."""
    rng = random.Random(f"pairs train {seed}")
    train = [make_problem(rng, rng.choice((3, 4))) for _ in range(8192)]
    rng = random.Random("pairs test")  # the same for every seed
    sets = {"4 numbers": (4, "test"), "new solutions": (4, "new solutions")}
    sets |= {"5 numbers": (5, "test"), "6 numbers": (6, "test")}
    held_out = {}
    for name, size_and_part in sets.items():
        problems = [make_problem(rng, *size_and_part) for _ in range(400)]
        unique = {problem["prompt"]: problem for problem in problems}
        held_out[name] = list(unique.values())[:128]
    return train, held_out
