"""Functions from examples: the model sees four values of f and writes f.

    User: f(5)=17 f(0)=2 f(12)=38 f(3)=11
    Assistant: ... <answer>def f(x): return 3*x+2</answer>

A problem is judged by these values and six more on other inputs, so a table of the examples fails. The examples fit
only one function of all below, so whoever knows the forms can find it. Held out is every function (a form with its two
constants) whose CRC is 0 modulo 8; functions with two cases are never trained on.
"""
import itertools
import random
import zlib

from data.prompt import ask

INPUTS = range(20)
FORMS = ("{a}*x+{b}", "{a}*x-{b}", "x*x+{b}*x+{a}", "x//{a}+{b}", "x%{a}*{b}", "abs(x-{a})*{b}", "max(x,{a})+{b}",
         "min(x,{a})*{b}", "x+{a} if x%2 else x*{b}", "x-{a} if x>{b} else x")
TEXTS = {}                        # {values at INPUTS: text}: two texts of one function are one function
for form, a, b in itertools.product(FORMS, range(2, 10), range(2, 10)):
    text = form.format(a=a, b=b)
    TEXTS.setdefault(tuple(map(eval(f"lambda x: {text}"), INPUTS)), text)        # a text of ours


def make_problem(rng, functions):
    """A problem about one of the `functions`: four examples that fit no other of all functions, six inputs more."""
    while True:
        values, inputs = rng.choice(functions), rng.sample(INPUTS, 10)
        if sum(all(other[x] == values[x] for x in inputs[:4]) for other in TEXTS) == 1:
            examples = " ".join(f"f({x})={values[x]}" for x in inputs[:4])
            return {"prompt": f"User: {examples}\nAssistant:", "user": ask(f"Write f in Python: {examples}")["user"],
                    "kind": "code", "tests": [f"assert f({x}) == {values[x]}" for x in inputs],
                    "solution": f"def f(x): return {TEXTS[values]}"}


def load(seed=0):
    """(training problems, {name: held-out problems})."""
    parts = {"train": [], "new functions": [], "two cases": []}
    for values, text in TEXTS.items():
        part = "new functions" if zlib.crc32(text.encode()) % 8 == 0 else "train"
        parts["two cases" if " if " in text else part].append(values)
    known, rng = parts.pop("train"), random.Random(f"code train {seed}")
    train = [make_problem(rng, known) for _ in range(2048)]
    rng = random.Random("code test")              # the same for every seed
    return train, {name: [make_problem(rng, part) for _ in range(128)] for name, part in parts.items()}
