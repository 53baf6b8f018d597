"""Functions from examples: the model sees four values of f and writes f.

    User: f(5)=17 f(0)=2 f(12)=38 f(3)=11
    Assistant: ... <answer>def f(x): return 3*x+2</answer>

A problem is judged by these values and six more on other inputs, so a table of the examples fails.
The examples fit only one function of all below, so whoever knows the forms can find it. Held out is
every function (a form with its two constants) whose CRC is 0 modulo 8; functions with two cases are
never trained on.
"""

import random
import zlib

from data.prompt import ask
from verifiers import sandbox

INPUTS = range(20)
FORMS = [
    "{a}*x+{b}",
    "{a}*x-{b}",
    "x*x+{b}*x+{a}",
    "x//{a}+{b}",
    "x%{a}*{b}",
    "abs(x-{a})*{b}",
    "max(x,{a})+{b}",
    "min(x,{a})*{b}",
    "x+{a} if x%2 else x*{b}",
    "x-{a} if x>{b} else x",
]


def verify(problem, answer):
    """The program in the answer passes the tests: its last ```python block, else its last block."""
    blocks = answer.split("```")[1:-1:2] or ["\n" + answer]
    blocks = [block for block in blocks if block.lower().startswith("py")] or blocks
    return sandbox.run(blocks[-1].partition("\n")[2], problem["tests"])


def check(problem):
    """ValueError if the tests of a problem that was read from a file cannot be judged."""
    sandbox.jobs(problem.get("tests"))


def functions():
    """{values at INPUTS: text} of every form. Two texts of one function are one function."""
    texts = {}
    for form in FORMS:
        for a in range(2, 10):
            for b in range(2, 10):
                text = form.format(a=a, b=b)
                values = tuple(eval(text, {"x": x}) for x in INPUTS)
                texts.setdefault(values, text)
    return texts


def make_problem(rng, choices, texts):
    """A problem about one of the `choices`: four examples that fit no other of all functions (the
    keys of `texts`), six inputs more."""
    while True:
        values = rng.choice(choices)
        inputs = rng.sample(INPUTS, 10)
        given = inputs[:4]
        if sum(all(other[x] == values[x] for x in given) for other in texts) == 1:
            break
    examples = " ".join(f"f({x})={values[x]}" for x in given)
    problem = ask(f"Write f in Python: {examples}")
    problem["prompt"] = f"User: {examples}\nAssistant:"  # shorter, for data/base
    tests = [f"assert f({x}) == {values[x]}" for x in inputs]
    solution = f"def f(x): return {texts[values]}"
    return {"kind": "code", "tests": tests, "solution": solution, **problem}


def load(seed=0):
    """-> training problems, {name: held-out problems}."""
    texts = functions()
    parts = {"train": [], "new functions": [], "two cases": []}
    for values, text in texts.items():
        if " if " in text:
            parts["two cases"].append(values)
        elif zlib.crc32(text.encode()) % 8 == 0:
            parts["new functions"].append(values)
        else:
            parts["train"].append(values)
    rng = random.Random(f"code train {seed}")
    train = [make_problem(rng, parts["train"], texts) for _ in range(2048)]
    rng = random.Random("code test")  # the same for every seed
    held_out = {}
    for name in ("new functions", "two cases"):
        held_out[name] = [make_problem(rng, parts[name], texts) for _ in range(128)]
    return train, held_out
