"""Real tasks: names of tasks, Countdown solved by brute force, rows of the public formats, optional
verifiers with and without their packages, and rewards that cannot be judged or that raise."""

import csv
import importlib.util
import itertools
import json
import math
import random
import shutil
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from conftest import ROOT
from test_train import SMALL, metrics, refused, repository  # noqa: F401  (a fixture)

import evaluate
import rewards
import train
from data import Task, countdown, jsonl, load_task, pairs
from data.mix import load_held_out
from data.tokenizer import Tokenizer
from sampler import Rollout
from start import task as task_flags
from verifiers import external, sandbox


def needs(package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


@pytest.fixture
def judges(monkeypatch):
    """The judges of all runs of a test."""
    made = []

    class RememberedJudge(rewards.Judge):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(train, "Judge", RememberedJudge)
    return made


def answered(text):
    return f"<think>x</think><answer>{text}</answer>"


# --- Names ----------------------------------------------------------------------------------------


def test_a_new_task_is_one_new_file(tmp_path):
    """Its own kind included; a file without load is no task."""
    shutil.copytree(f"{ROOT}/data", tmp_path / "data")
    (tmp_path / "data" / "mine.py").write_text(
        "def load(seed=0):\n"
        "    numbers = range(seed, seed + 9)\n"
        "    problems = [{'prompt': str(n), 'kind': 'mine', 'n': n} for n in numbers]\n"
        "    return problems[1:], {'one': problems[:1]}\n"
        "def verify(problem, answer):\n"
        "    return len(answer) == problem['n']\n"
    )
    script = (
        f"import sys\n"
        f"sys.path[:0] = [{str(tmp_path)!r}, {ROOT!r}]\n"
        f"from data import load_task\n"
        f"task = load_task('mine+pairs', 3)\n"
        f"print(task.train[0]['n'], list(task.held_out)[:2])\n"
        f"print(task.accuracy(task.held_out['one'][0], '<answer>abc</answer>'))\n"
        f"try: load_task('prompt')\n"
        f"except ValueError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert lines[:2] == ["4 ['one', '4 numbers']", "1.0"], run.stderr
    names = "code, countdown, general, mine, pairs, gym:NAME"
    assert lines[2].startswith("--task prompt: ") and names in lines[2]


def test_names_and_kinds_that_there_are_not(capsys, tmp_path, monkeypatch):
    out = ["--out", tmp_path / "out"]
    for name in ("mine", "prompt", "gym", "pairs+mine", "no/file", ""):
        wrong = name.removeprefix("pairs+")
        refused(capsys, train.main, ["--task", name, *out], f"--task {wrong}: choose from", "pairs")
    refused(capsys, train.main, ["--task", tmp_path / "no.jsonl", *out], "no.jsonl")
    poem = {"prompt": "q", "kind": "poem"}
    monkeypatch.setattr(pairs, "load", lambda seed: ([poem], {"one": [poem]}))
    refused(capsys, train.main, ["--task", "pairs", *out], "'poem'")


def test_the_default_task_imports_no_more_than_it_needs():
    script = (
        f"import sys\n"
        f"sys.path.insert(0, {ROOT!r})\n"
        f"from data import load_task\n"
        f"load_task('pairs')\n"
        f"print(*[name for name in sys.modules if name.startswith(('data.', 'verifiers.'))])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {"data.pairs"}


def test_a_judge_of_a_kind_replaces_its_verifier():
    problems = [{"prompt": "a", "kind": "math", "answer": "1"}]
    task = Task(problems, {"one": problems})
    assert task.problems() == problems * 2
    assert task.accuracy(problems[0], answered("1")) == 1
    task.judges["math"] = lambda problem, response: len(response)
    assert task.accuracy(problems[0], "12345") == 5
    assert Task([], {}).judges == {}


# --- Countdown ------------------------------------------------------------------------------------


def solutions(terms):
    """Every (text, value) that uses all of the terms [(text, value)] once: brute force."""
    if len(terms) == 1:
        yield terms[0]
    for i, j in itertools.permutations(range(len(terms)), 2):
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        (a, x), (b, y) = terms[i], terms[j]
        results = {"+": x + y, "-": x - y, "*": x * y}
        if y:
            results["/"] = x / y
        for sign, value in results.items():
            yield from solutions([*rest, (f"({a}{sign}{b})", value)])


def test_countdown_problems_can_be_solved_and_the_verifier_agrees_with_brute_force():
    task = load_task("countdown")
    problems = task.train[:25] + task.held_out["3 numbers"][:10] + task.held_out["4 numbers"][:10]
    for problem in problems:
        numbers, target = problem["numbers"], problem["target"]
        assert 10 <= target <= 99 and all(1 <= n <= 99 for n in numbers)
        every = list(solutions([(str(n), Fraction(n)) for n in numbers]))
        right = [text for text, value in every if value == target]
        assert right
        for text in right[:5]:
            assert rewards.accuracy(problem, answered(text)) == 1
        for text, value in random.Random(0).sample(every, 20):
            assert rewards.accuracy(problem, answered(text)) == (value == target)
        prompt = problem["prompt"]
        assert all(f" {n}" in prompt for n in numbers) and f"make {target}." in prompt
        assert all(tag in prompt for tag in rewards.TAGS)


def test_countdown_holds_out_whole_problems():
    def key(problem):
        return tuple(sorted(problem["numbers"])), problem["target"]

    train_a, held_out = countdown.load(0)
    train_b, same_held_out = countdown.load(1)
    test = [key(problem) for problems in held_out.values() for problem in problems]
    assert held_out == same_held_out and train_a != train_b and train_a == countdown.load(0)[0]
    assert len(test) == len(set(test)) == 256
    assert not set(test) & {key(problem) for problem in train_a + train_b}
    assert {len(problem["numbers"]) for problem in train_a} == {3, 4}
    assert {len(problem["numbers"]) for problem in held_out["3 numbers"]} == {3}
    assert {len(problem["numbers"]) for problem in held_out["4 numbers"]} == {4}


# --- JSON lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, answer",
    [
        ({"question": "q", "answer": "She has 9*2 = <<9*2=18>>18.\n#### 18"}, "18"),  # GSM8K
        ({"question": "q", "answer": "#### 5 or\n#### 1,234 "}, "1,234"),
        (
            {"problem": "q", "solution": r"So $x = \boxed{\frac{1}{\sqrt{2}}}$."},  # MATH
            r"\frac{1}{\sqrt{2}}",
        ),
        ({"problem": "q", "solution": r"\boxed{1} and then \boxed{ 2 }"}, "2"),
        (
            {"problem": "q", "solution": r"\boxed{\left\{ 1, \frac{2}{3} \right\}} done"},
            r"\left\{ 1, \frac{2}{3} \right\}",
        ),
        ({"problem": "q", "solution": r"\boxed{\{} }"}, r"\{"),  # an escaped brace is no brace
        (
            {"problem": "q", "solution": r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}"},
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        ),
        ({"problem": "q", "solution": "-1,234.5"}, "-1,234.5"),  # no worked solution
        ({"problem": "q", "solution": "worked", "answer": "x + 1"}, "x + 1"),
        ({"prompt": "q", "answer": " 391\n"}, "391"),
    ],
)
def test_the_truth_of_a_row(row, answer):
    problem = jsonl.to_problem(row)
    assert problem["answer"] == answer and problem["kind"] == "math"
    assert rewards.accuracy(problem, answered(answer)) == 1
    assert rewards.accuracy(problem, answered("77")) == 0
    if "prompt" in row:
        assert problem["prompt"] == problem["user"] == "q"  # as it is
    else:
        assert problem["prompt"].startswith("User: q\n") and problem["user"] in problem["prompt"]
        assert "<answer>" in problem["user"]


def countdown_row(numbers, target, **more):
    return {"question": "q", "kind": "countdown", "numbers": numbers, "target": target, **more}


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"question": "q", "solution": "and so it is"}, "no final answer in 'solution'"),
        ({"question": "q", "solution": r"\boxed{1} = \boxed{\frac{1}{2}"}, "no final answer"),
        ({"question": "q", "answer": "18 ####"}, "no final answer in 'answer'"),
        ({"question": "q", "answer": r"\boxed{}"}, "no final"),
        ({"question": "q", "answer": "  "}, "no final answer"),
        ({"question": "q", "answer": True}, "'answer' or 'solution'"),
        ({"answer": "3"}, "'prompt' or 'question' or 'problem'"),
        ({"question": ["q"], "answer": "3"}, "'question'"),
        ({"question": "q", "answer": "3", "kind": "poetry"}, "'poetry'"),
        ({"question": "q", "answer": "3", "kind": ["math"]}, "math"),
        ({"question": "q", "answer": "3", "kind": "gym"}, "'gym'"),
        ({"question": "q", "answer": "3", "kind": "general"}, "'general'"),
        ({"question": "q", "answer": "3", "language": "English"}, "'English'"),
        ({"question": "q", "answer": "3", "language": ["en"]}, "list"),
        ({"question": "q", "kind": "code", "tests": ["assert f(2) == " + "-" * 100000 + "1"]}, ""),
        ({"question": "q", "kind": "countdown", "numbers": [1, 2]}, "None"),
        (countdown_row([], 3), "[]"),
        (countdown_row(5, 3), "5"),
        (countdown_row({"1": 2}, 3), "{'1': 2}"),
        (countdown_row(["1", "2"], 3), "'1'"),
        (countdown_row([1, True], 3), "True"),
        (countdown_row([1, 2], "3"), "'3'"),
        (countdown_row([1, 2], math.nan), "nan"),
        (countdown_row([1, 2], math.inf), "inf"),
        (countdown_row([1, -math.inf], 3), "-inf"),
        (countdown_row([1, 2.5], 3), "[1, 2.5]"),
        (countdown_row([1, -2], 3), "[1, -2]"),
        (countdown_row([1, 2], 3, pick=3), "pick"),
        (countdown_row([1, 2], 3, pick=0), "pick"),
        (countdown_row([1, 2], 3, pick=-1), "pick"),
        (countdown_row([1, 2], 3, pick="2"), "pick"),
    ],
)
def test_bad_rows(capsys, tmp_path, row, reason):
    path = tmp_path / "data.jsonl"
    good = b'{"question": "1+1?", "answer": "#### 2"}\r\n'
    bad = json.dumps(row).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + bad + b"\n" + good)
    flags = ["--task", path, "--out", tmp_path / "out"]
    refused(capsys, train.main, flags, f"{path}:3: ", reason)


def test_a_file_as_a_task(tmp_path):
    rows = []
    for i in range(80):
        row = {"question": f"{i}+1?\ud800", "answer": f"so\n#### {i + 1}", "source": i}
        rows.append(json.dumps(row | {"reward": 1.0, "user": "alice"}))
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows + rows).encode() + b"\r\n\r\n")
    task = load_task(str(path))
    problems, test = task.train, task.held_out["one in eight"]
    assert len(problems) + len(test) == 80 and 2 < len(test) < 25
    assert not {problem["prompt"] for problem in problems} & {p["prompt"] for p in test}
    whole = load_task(str(path), hold_out=False)
    assert len(whole.train) == 80 and not whole.held_out
    for problem in problems:  # other columns stay, and change nothing
        assert problem["answer"] == str(problem["source"] + 1)
    assert task.accuracy(problems[0], answered(problems[0]["source"] + 1)) == 1
    assert task.accuracy(problems[0], answered("x")) == 0
    assert "alice" not in problems[0]["user"]


@pytest.mark.parametrize("answer, right", [(42, "42"), (0.5, "1/2"), (-3, "-3")])
def test_an_answer_may_be_a_json_number(tmp_path, answer, right):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": answer}))
    [problem] = load_task(str(path), hold_out=False).train
    assert rewards.accuracy(problem, answered(right)) == 1
    assert rewards.accuracy(problem, answered("7")) == 0


def write_sums(path, rows):
    lines = [json.dumps({"question": f"{i}+1?", "answer": i + 1}) for i in range(rows)]
    path.write_text("\n".join(lines))
    return str(path)


def test_a_test_set_of_ones_own_is_judged_whole(tmp_path, capsys):
    """And then all rows of the training file are trained on."""
    learn, test = write_sums(tmp_path / "learn.jsonl", 60), write_sums(tmp_path / "test.jsonl", 40)
    few = ["--eval_problems", "0", "--eval_k", "1", "--eval_max_new_tokens", "2", "--steps", "1"]
    flags = ["--task", learn, "--eval", f"{test}+pairs", "--eval_sets", "1"]
    train.main([*SMALL, *few, *flags, "--out", str(tmp_path / "out")])
    assert "60 training problems; held out: test.jsonl (40 of 40)\n" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "eval.csv").open()))
    assert [(row["step"], row["set"]) for row in rows] == [("0", "test.jsonl"), ("1", "test.jsonl")]
    short = ["--k", "1", "--max_new_tokens", "2", "--model", "data/base"]
    evaluate.main([*short, "--task", test])
    assert "test.jsonl: 40 of 40 problems" in capsys.readouterr().out
    both = load_held_out(f"{test}+pairs")
    assert [len(problems) for problems in both.values()] == [40, *[128] * 4]


# --- The servers of other packages ----------------------------------------------------------------

# A package that evaluates what it is handed, as some scorers of reasoning-gym do.
STAND_IN = """
import os, time

class Generator:
    def __init__(self, name, seed, size, step):
        self.step = step
        if name == "noisy":  # no answer can do this: a server's own end of its pipe
            for number in range(3, 64):
                try:
                    os.write(number, b"[1.0, nul\\\\n")
                except OSError:
                    pass
        if name == "silent":
            time.sleep(100)
        if name == "nothing":
            raise ValueError("nothing of that name")

    def __getitem__(self, index):
        return {"question": f"{index} + {self.step}", "answer": str(index + self.step)}

    def score_answer(self, answer, entry):
        print("scored")
        return float(eval(answer) == eval(entry["answer"]))

def create_dataset(name, seed, size, step=1):
    return Generator(name, seed, size, step)
"""
WRITE = """
import os
for number in range(64):
    try: os.write(number, TEXT)
    except OSError: pass
"""
ATTACKS = {
    "half a line, for ever": WRITE.replace("TEXT", "b'[1.0'") + "while True: pass",
    "no alarm, and silence": "import signal, time\nsignal.alarm(0)\nsignal.setitimer(0, 0)\n"
    "signal.signal(15, signal.SIG_IGN)\ntime.sleep(100)",
    "a forged line": WRITE.replace("TEXT", r"b'[1.0, null]\n'"),
    "forged lines and the end": WRITE.replace("TEXT", r"b'[1.0, null]\n' * 9") + "os._exit(0)",
    "through objects": "import gc\nfor thing in gc.get_objects():\n"
    "    if hasattr(thing, 'write'):\n"
    "        try: thing.write('[1.0, null]\\n'), thing.flush()\n"
    "        except Exception: pass",
    "more than all": WRITE.replace("TEXT", "b'7.0'"),
    "infinity": WRITE.replace("TEXT", "b'inf'"),
    "no number": WRITE.replace("TEXT", "b'nan'"),
    "a long reply": WRITE.replace("TEXT", "b'1' * 60_000"),
    "the scorer": "import reasoning_gym as r\nr.Generator.score_answer = lambda *_: 1.0",
    "the server's functions": "import sys\nm = sys.modules['__main__']\n"
    "m.in_fork = m.score = m.item = lambda *_: 1.0",
    "what it is made of": "import builtins, json, os, select\n"
    "json.dumps = lambda *_: '[1.0, null]'\n"
    "os.fork = lambda: 1\nos.read = lambda *_: b'1.0'\nselect.select = None\nbuiltins.str = repr",
    "no exit": "import os\nos._exit = print\nraise SystemExit",
    "an exit": "import os\nos._exit(0)",
    "an error": "1 / 0",
    "an exit by exception": "raise SystemExit",
    "an interrupt": "raise KeyboardInterrupt",
    "depth": "def f(): f()\nf()",
    "a fault": "import ctypes\nctypes.string_at(0)",
    "memory": "bytearray(10 ** 11)",
    "a child": "import os\nif os.fork() == 0:\n    while True: pass",
    "the parent": "import os\nos.kill(os.getppid(), 9)",
    "closed": "import os\nos.closerange(0, 64)",
    "its file": "import reasoning_gym as r\nopen(r.__file__, 'a').write('x = 1')",
}


@pytest.fixture
def gym(tmp_path, monkeypatch):
    """A server of the package above, in place of reasoning-gym's."""
    (tmp_path / "reasoning_gym").mkdir()
    (tmp_path / "reasoning_gym" / "__init__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = external.Server()
    monkeypatch.setattr(external, "REASONING_GYM", server)
    yield server
    server.process.kill()
    server.process.communicate()


linux = pytest.mark.skipif(sys.platform != "linux", reason="answers are confined on Linux only")


@linux
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_answer_is_paid_for_itself_at_most(gym, attack):
    """0 for it, in bounded time; and the answers after it are judged as if it had not been."""
    judge = rewards.Judge(rewards.accuracy, tokenizer=None)

    def accuracy(index, text):
        problem = {"kind": "gym", "item": ("sum", 0, index)}
        return judge.call_accuracy(problem, answered(text))["accuracy"]

    assert accuracy(1, "2") == 1
    server = gym.process
    start = time.time()
    for _ in range(1 if "while" in attack or "sleep" in attack else 6):
        assert accuracy(1, f"exec({attack!r})") == 0
    assert time.time() - start < external.SECONDS + 2
    for index in range(4):  # nothing is shifted, nothing is patched
        assert accuracy(index, str(index + 1)) == 1
        assert accuracy(index, "7") == accuracy(index, "exec('')") == 0
    assert judge.errors == 0 and gym.process is server and server.poll() is None
    assert children(server.pid) == []


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return f.read().split()


@linux
def test_an_answer_has_a_second_and_four_gigabytes(gym):
    gym.ask("sum", 0, 1)
    for text in ("9**9**9**9", "[0 for _ in iter(int, 1)]"):
        start = time.time()
        assert gym.ask("sum", 0, 1, text) == 0
        assert time.time() - start < 2.5
    for gigabytes, paid in ((1, 1), (5, 0)):
        text = f"2 * bool(__import__('mmap').mmap(-1, {gigabytes} << 30))"
        assert gym.ask("sum", 0, 1, text) == paid


def test_a_server_that_ends_or_says_nonsense_is_replaced(gym, monkeypatch):
    monkeypatch.setattr(external, "SERVER_SECONDS", 1.5)
    assert gym.ask("sum", 0, 1) == "1 + 1"
    for name in ("noisy", "silent"):
        server = gym.process
        start = time.time()
        assert gym.ask(name, 0, 1) is None
        assert time.time() - start < 3 and server.poll() is not None
        assert gym.ask("sum", 0, 1, "2") == 1 and gym.process is not server
    gym.process.kill()  # by somebody else
    assert gym.ask("sum", 0, 1, "2") in (None, 1)
    assert gym.ask("sum", 0, 1, "2") == 1
    with pytest.raises(RuntimeError, match="nothing of that name"):
        gym.ask("nothing", 0, 1)


def test_a_generator_has_parameters(gym):
    assert gym.ask("sum,step=30", 0, 4) == "4 + 30"
    assert gym.ask("sum,step=30", 0, 4, "34") == 1 and gym.ask("sum", 0, 4, "34") == 0
    task = load_task("gym:sum,step=7")
    assert all("+ 7" in problem["prompt"] for problem in task.problems())
    problem = task.train[5]
    assert rewards.accuracy(problem, answered(str(problem["item"][2] + 7))) == 1
    for name, reason in (("sum,stop=7", "unexpected keyword.* 'stop'"), ("sum,step", "JSON")):
        with pytest.raises(ValueError, match=f"--task gym:{name}: .*{reason}"):
            load_task(f"gym:{name}")


def test_a_package_that_is_not_there_or_broken_is_no_wrong_answer(gym, tmp_path):
    (tmp_path / "reasoning_gym" / "__init__.py").write_text("import os\nos._exit(3)")
    with pytest.raises(ValueError, match="--task gym:sum: the package does not start"):
        load_task("gym:sum")
    (tmp_path / "reasoning_gym" / "__init__.py").write_text("import no_such_package")
    with pytest.raises(RuntimeError, match="No module named 'no_such_package'"):
        gym.ask("sum", 0, 1)


# --- LaTeX ----------------------------------------------------------------------------------------

# truth, answer, are they equal?
LATEX = [
    ("A, B, C", "A,B,C", True),
    (r"\{1,2\}", r"\left\{ 2, 1, \right\}", False),
    ("[1,2)", "[1, 2)", True),
    (r"(-\infty,1]\cup\{2\}", r"(-\infty, 1] \cup \{2\}", True),
    (r"4\text{ hours}", "4 hours", True),
    (r"4\text{ hours}", "4", True),
    (r"4\mathrm{\ hours}", "4", True),
    (r"5\text{ cm}^2", "5 cm^2", True),
    (r"5\text{ cm}", "5.0", True),
    (r"90^\circ", "90", True),
    (r"90^\circ", "90°", True),
    (r"\text{Monday}", "Monday", True),
    (r"\text{(C)}", "(C)", True),
    ("2516_8", "2516_8", True),
    (r"1\leq x<2", r"1 \le x < 2", True),
    # hostile
    ("A, B, C", "C, A, B", False),
    ("A, B, C", "A, B", False),
    ("1, 2", "2, 1", False),
    ("(3,4)", "(4,3)", False),
    ("(3,4)", r"\{3,4\}", False),
    (r"\{3,4\}", "(3,4)", False),
    (r"\{3,4\}", "3,4", False),
    (r"\{3\}", "3", False),
    (r"\{x<1\}", r"\{1<x\}", False),
    ("(3,4)", "3,4", False),
    ("[1,2)", "(1,2)", False),
    ("[1,2)", "[1,2]", False),
    (r"\{1,1\}", r"\{1,2\}", False),
    (r"\{1,2\}", r"\{1,1\}", False),
    (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2]", False),
    ("EAST", "SEAT", False),
    ("ab", "ba", False),
    (r"\text{listen}", r"\text{silent}", False),
    ("2516_8", "2516", False),
    ("2516_8", "2516_9", False),
    ("2x+10_2", "2x+10_3", False),
    ("4 hours", "4 days", False),
    (r"4\text{ hours}", "4 days", False),
    (r"5\text{ cm}", "5 km", False),
    (r"5\text{ cm}", "5 m", False),
    (r"5\text{ cm}", r"5\text{ cm}^2", False),
    (r"5\text{ cm}^2", "5 cm", False),
    (r"\sqrt{2}", r"\sqrt{2} metres", False),
    (r"90^\circ", r"91^\circ", False),
    (r"\sqrt{2}", r"\sqrt{2}^\circ", False),
    ("x=5", "x=4=5", False),
    (r"\sqrt{2}", r"\sqrt{3}=\sqrt{2}", False),
    (r"\sqrt{2}", r"x = \sqrt{3} = \sqrt{2}", False),
    (r"x=\sqrt{2}", r"y=\sqrt{2}", False),
    ("x>3", "x<3", False),
    ("1<x<2", "1<x", False),
    (r"1\pm\sqrt2", r"1\mp\sqrt2", False),
    ("2:3", "3:2", False),
    (r"\sqrt{2}", r"\sqrt{2}, \sqrt{3}", False),
    (r"\sqrt{2}", r"\sqrt{2} or \sqrt{3}", False),
    (r"\sqrt{2}", r"\sqrt{3}$ $\sqrt{2}", False),
    (r"\sqrt{2}", r"\sqrt{3}\) \(\sqrt{2}", False),
    (r"\sqrt{2}", r"\boxed{\sqrt{2}} \sqrt{3}", False),
    (r"\sqrt{2}", r"\sqrt{2}}, {3", False),
    (r"\sqrt{2}", r"(\sqrt{2}", False),
    (r"\sqrt{2}", r"not \sqrt{2}", False),
    (r"\sqrt{2}", "", False),
    (r"\sqrt{2}", "}", False),
    ("x=3", "x=3 or x=4", False),
    (r"\text{Monday}", "Tuesday", False),
    ("391", "17*23", False),
    ("391", r"17\cdot 23", False),
    (r"11\sqrt{2}", r"\boxed{11\sqrt2}", True),
    (r"11\sqrt{2}\text{ cm}", r"11\sqrt2", True),
    (r"1\pm\sqrt2", r"1 \pm \sqrt{2}", True),
    (r"x=11\sqrt{2}", r"11\sqrt2", True),
    (r"\frac12\pi", r"\dfrac{1}{2}\pi", True),
    # another form of the same value is another text
    ("x+1", "1+x", False),
    (r"\frac{\sqrt{3}}{2}", r"$\dfrac{\sqrt{3}}{2}$.", True),
    (r"\frac{\sqrt{3}}{2}", r"So it is \boxed{\frac{\sqrt{3}}{2}}.", True),
    (r"2\pi", "6.28", False),
    (r"\sqrt{2}", "1.414213", False),
    (r"\sqrt{2}", r"\sqrt{2}i", False),
    (r"\sqrt{2}", r"-\sqrt{2}", False),
    (r"\sqrt{2}", r"\sqrt{2}\%", False),
    (r"10^{-20}\sqrt2", r"10^{-20}\sqrt3", False),
    ("10^{-20}x", "10^{-21}x", False),
    (r"(10^{-20}\sqrt2, 1)", r"(10^{-20}\sqrt3, 1)", False),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", False),
    (
        r"\begin{pmatrix} 1 \\ 10^{-20}\sqrt2 \end{pmatrix}",
        r"\begin{pmatrix} 1 \\ 10^{-20}\sqrt3 \end{pmatrix}",
        False,
    ),
    ("x+1", r"x+1 \\ x+2", False),
    ("|x|", "x", False),
    (r"\sqrt{2}", r"\sqrt{2}m", False),
    ("2h", "2", False),
]


@pytest.mark.parametrize("truth, answer, right", LATEX)
def test_latex_is_compared_as_text(truth, answer, right):
    assert rewards.equal(answer, truth) is right


# --- reasoning-gym --------------------------------------------------------------------------------

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None


@pytest.mark.skipif(INSTALLED, reason="reasoning_gym is installed")
def test_gym_without_the_package(capsys, tmp_path):
    flags = ["--task", "gym:chain_sum", "--out", tmp_path]
    words = ["--task gym:chain_sum", "No module named 'reasoning_gym'"]
    refused(capsys, train.main, flags, *words)


@needs("reasoning_gym")
def test_gym_tasks():
    def prompts(problems):
        return {problem["prompt"] for problem in problems}

    task, other = load_task("gym:chain_sum", 0), load_task("gym:chain_sum", 1)
    problems, test = task.train, task.held_out["held out"]
    assert task.held_out == other.held_out and problems == load_task("gym:chain_sum", 0).train
    assert len(test) == 128 and len(problems) > 1000
    assert not prompts(test) & prompts(problems + other.train)
    assert len(prompts(problems) & prompts(other.train)) < 10
    for problem in problems[:20]:
        total = eval(problem["user"].split(":")[1].split("=")[0])  # of the generator, not a model
        assert rewards.accuracy(problem, answered(total)) == 1
        assert rewards.accuracy(problem, answered(total + 1)) == 0
        assert rewards.accuracy(problem, "no answer") == 0
    for text in ("", "\ud800", "x" * 9999):
        assert type(rewards.accuracy(problems[0], answered(text))) is float


@needs("reasoning_gym")
def test_gym_scores_in_part_and_what_it_cannot_read_is_wrong():
    item = ("game_of_life", 0, 0)
    question = external.REASONING_GYM.ask(*item)
    board = json.loads(question.rpartition("\n\n")[2].rstrip("."))
    inverse = [[1 - cell for cell in row] for row in board]
    problem = {"kind": "gym", "item": item}
    scores = [rewards.accuracy(problem, answered(json.dumps(b))) for b in (board, inverse)]
    assert any(0 < score < 1 for score in scores) and all(0 <= score <= 1 for score in scores)
    # the scorer raises there
    assert external.REASONING_GYM.ask("prime_factorization", 0, 0, "not a number") == 0


@needs("reasoning_gym")
def test_gym_items_do_not_depend_on_the_process():
    """Some generators draw from the global random state, some depend on the order of sets."""
    items = list(itertools.product(("codeio", "word_ladder", "ransom_note"), (5,), (0, 1)))
    before = [external.REASONING_GYM.ask(*item) for item in items]
    external.REASONING_GYM.process.kill()
    external.REASONING_GYM.process.wait()
    after = [external.REASONING_GYM.ask(*item) for item in reversed(items)]
    assert after == before[::-1]


@needs("reasoning_gym")
def test_scorers_that_evaluate_text(tmp_path):
    """n_queens has an eval() in its scorer: no program, no file, no endless power, and no answer
    after it notices."""
    canary = tmp_path / "canary"

    def ask(answer):
        return external.REASONING_GYM.ask("n_queens", 0, 0, answer)

    for text in (
        f"__import__('os').system('touch {canary}')",
        f"open('{canary}', 'w')",
        f"__import__('subprocess').run(['touch', '{canary}'])",
        f"__import__('ctypes').CDLL(None).system(b'touch {canary}')",
        f"__import__('os').mkdir('{canary}')",
    ):
        assert ask(text) == 0 and not canary.exists()
    board = [["_", "Q", "_", "_"]] * 4
    for text in (
        "9**9**9**9",
        "exit()",
        "x",
        repr(board),
        *[f"exec({a!r})" for a in ATTACKS.values()],
    ):
        assert ask(text) == 0
        assert ask("x") == 0


@needs("reasoning_gym")
def test_no_such_generator(capsys, tmp_path):
    flags = ["--task", "gym:nothing", "--out", tmp_path]
    refused(capsys, train.main, flags, "--task gym:nothing", "not registered")


@needs("reasoning_gym")
def test_a_gym_run(tmp_path):
    flags = ["--task", "gym:number_sequence", "--eval_max_new_tokens", "8", "--steps", "1"]
    train.main([*SMALL, *flags, "--out", str(tmp_path / "out")])
    assert metrics(tmp_path / "out")[0]["unjudged"] == "0"


# --- Rewards that cannot be judged, and a reward of one's own -------------------------------------

OWN = """
import time
calls = 0

def half(problem, response):
    return 0.5 if problem["target"] % 2 else 0

def unsure(problem, response):
    return None if problem["target"] % 2 else float(len(response) % 2)

def never(problem, response):
    return None

def sometimes(problem, response):
    global calls
    calls += 1
    if calls % 150 == 7:
        raise KeyError("out of luck")
    return calls % 2

def slow(problem, response):
    time.sleep(0.2)
    return len(response)

def always(problem, response):
    raise KeyError("out of luck")

def named(problem, response):
    if problem["target"] % 2:
        return None
    return {"accuracy": 1, "reward_even": 0.25, "reward_odd": -0.5, "letters": len(response)}

def nameless(problem, response):
    return {"reward_even": 0.25}

def endless(problem, response):
    return {"accuracy": 1, "reward_even": 1e300}
"""


@pytest.fixture
def own(tmp_path):
    """own(name): the --reward of a function above."""
    (tmp_path / "own.py").write_text(OWN)
    return lambda name: f"{tmp_path}/own.py:{name}"


def test_a_reward_of_ones_own_may_return_none(own):
    task = task_flags.build_task(task_flags.TaskFlags(reward=own("unsure")), seed=0)
    for problem in task.problems():
        if problem["target"] % 2:
            assert task.accuracy(problem, "x") is None
        else:
            assert task.accuracy(problem, "x") == 1 and task.accuracy(problem, "xx") == 0


@pytest.mark.parametrize("name, algo", [("half", "grpo"), ("unsure", "grpo"), ("unsure", "ppo")])
def test_a_reward_of_ones_own(tmp_path, own, algo, name):
    flags = ["--algo", algo, "--prompts_per_step", "16", "--reward", own(name), "--steps", "2"]
    train.main([*SMALL, *flags, "--out", str(tmp_path / "out")])
    config = train.Config(prompts_per_step=16)
    problems = load_task("pairs").train
    for step, row in enumerate(metrics(tmp_path / "out")):
        asked = train.problems_of(step, problems, config)
        odd = sum(problem["target"] % 2 for problem in asked) / 16
        unjudged = float(row["unjudged"])
        assert unjudged == {"half": 0, "unsure": odd}[name]
        assert row["reward_errors"] == "0"
        if name == "half":
            assert float(row["accuracy"]) == odd / 2
        assert math.isfinite(float(row["grad_norm"]))
    with open(tmp_path / "out" / "eval.csv", newline="") as f:
        shares = [float(row["unjudged"]) for row in csv.DictReader(f)]
    assert (max(shares) > 0) == (name != "half")


def test_several_rewards_of_ones_own(tmp_path, own):
    """What is named reward_... is paid, and a column; so is anything else a column."""
    flags = ["--reward", own("named"), "--format_weight", "0", "--prompts_per_step", "8"]
    train.main([*SMALL, *flags, "--steps", "1", "--out", str(tmp_path / "out")])
    (row,) = metrics(tmp_path / "out")
    assert 0 < float(row["unjudged"]) < 1
    expected = {"accuracy": 1, "reward": 0.75, "reward_even": 0.25, "reward_odd": -0.5}
    assert {name: float(row[name]) for name in expected} == expected
    assert float(row["letters"]) > 3
    with open(tmp_path / "out" / "eval.csv", newline="") as f:
        assert {row["reward_odd"] for row in csv.DictReader(f)} <= {"-0.5", "nan"}
    for name, words in (("nameless", "raised for 6 of 6"), ("endless", "a reward of 1e[+]300 for")):
        with pytest.raises(SystemExit, match=words):
            train.main([*SMALL, "--reward", own(name), "--out", str(tmp_path / name)])


def test_judges_that_wait_do_so_together(own):
    """8 responses, 0.2 s each, by 8 threads: in the same order, with the same verdicts."""
    task = task_flags.build_task(task_flags.TaskFlags(reward=own("slow")), seed=0)
    tokenizer = Tokenizer.load("data/base")
    responses = [tokenizer.encode("x" * n) for n in (3, 1, 2, 5, 4, 2, 1, 3)]
    rollout = Rollout.from_lists([[1], [1]], responses, group_size=4)
    judged = {}
    for workers in (1, 8):
        began = time.time()
        judge = rewards.Judge(task.accuracy, tokenizer, workers)
        judged[workers] = evaluate.judge_all(judge, task.train[:2], rollout)
        assert (time.time() - began < 1) == (workers == 8)
    assert judged[1] == judged[8]
    assert [facts["accuracy"] for facts in judged[8]] == [3, 1, 2, 5, 4, 2, 1, 3]


def test_a_reward_that_is_never_sure_stops_the_run(tmp_path, own):
    flags = ["--algo", "ppo", "--prompts_per_step", "4", "--reward", own("never")]
    with pytest.raises(SystemExit, match="step 1: no response could be judged"):
        train.main([*SMALL, *flags, "--out", str(tmp_path / "out")])


def test_a_reward_that_sometimes_raises_is_counted(tmp_path, judges, capfd, own):
    flags = ["--prompts_per_step", "16", "--reward", own("sometimes"), "--steps", "6"]
    train.main([*SMALL, *flags, "--out", str(tmp_path / "out")])
    rows = metrics(tmp_path / "out")
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1 and "KeyError: 'out of luck'" in err and "own.py" in err
    in_steps = sum(int(row["reward_errors"]) for row in rows)
    assert in_steps == sum(round(float(row["unjudged"]) * 64) for row in rows) >= 2
    (judge,) = judges
    raising = [n for n in range(1, judge.judged + 1) if n % 150 == 7]
    assert judge.errors == len(raising)
    assert all(0.3 < float(row["accuracy"]) < 0.7 for row in rows)  # of those that were judged


def test_a_reward_that_always_raises_stops_the_run(tmp_path, capfd, own):
    with pytest.raises(SystemExit, match="the reward raised for 6 of 6 responses, over 1%"):
        train.main([*SMALL, "--reward", own("always"), "--out", str(tmp_path / "out")])
    assert capfd.readouterr().err.count("Traceback") == 1


def test_one_in_a_hundred_is_the_limit(capfd):
    judge = rewards.Judge(lambda problem, text: 1 / int(text), tokenizer=None)
    for i in range(2000):
        bad = i % 100 == 99
        facts = judge.call_accuracy({}, "0" if bad else "1")
        assert facts["unjudged"] == bad
        assert math.isnan(facts["accuracy"]) if bad else facts["accuracy"] == 1
    with pytest.raises(SystemExit, match="21 of 2001"):
        judge.call_accuracy({}, "0")


def test_bad_rewards(capsys, tmp_path, own):
    for reward, words in (
        (own("nothing"), ["own.py:nothing", "mine.py:reward"]),
        (own("").removesuffix(":"), ["own.py"]),
        (own("calls"), ["calls"]),
        (f"{tmp_path}/no.py:f", ["no.py"]),
    ):
        flags = ["--reward", reward]
        refused(capsys, train.main, [*flags, "--out", tmp_path / "out"], *words)
        refused(capsys, evaluate.main, [*flags, "--model", f"{ROOT}/data/base"], *words)


def test_evaluation_leaves_out_what_was_not_judged(monkeypatch):
    """By hand: a has 1 of 2 judged ones right, b 0 of 1, c none judged. pass@1 is (1/2 + 0) / 2."""
    verdicts = {"a": [1.0, 0.0, None], "b": [None, 0.0, None], "c": [None, None, None]}
    same = {"length": 1, "reflection": 0.0, "reflections": 0, "format": 1.0}
    same |= {"language": 1.0, "truncated": 0.0}

    def judged(i, verdict):
        accuracy = math.nan if verdict is None else verdict
        text = f"<answer>{i}</answer>"
        return {"text": text, "accuracy": accuracy, "unjudged": float(verdict is None), **same}

    def sample_and_judge(model, tokenizer, judge, problems, k, *rest):
        groups = []
        for problem in problems:
            groups.append([judged(i, verdict) for i, verdict in enumerate(verdicts[problem][:k])])
        return groups

    monkeypatch.setattr(evaluate, "sample_and_judge", sample_and_judge)
    results, _ = evaluate.evaluate(None, None, None, "abc", k=3)
    assert results["pass@1"] == results["accuracy"] == 0.25 and results["pass@3"] == 0.5
    assert results["cons@3"] == 0.5 and results["greedy"] == 1.0
    assert results["unjudged"] == pytest.approx(2 / 3)
    assert results["pass@1_ci"] == pytest.approx(1.96 * (0.125 / 2) ** 0.5)
    results, _ = evaluate.evaluate(None, None, None, "c", k=3)
    assert math.isnan(results["pass@1"]) and results["unjudged"] == 1


# --- From a problem to a prompt, and programs in files --------------------------------------------


def test_a_think_block_that_the_prompt_opened(tmp_path):
    """Its tag is part of the judged text: an answer inside the open block is no answer, a second
    tag is malformed."""
    problem = {"kind": "math", "answer": "4", "prompt": "q"}

    def judged(text, think):
        tokenizer = Tokenizer.load(f"{ROOT}/data/base", think=think)
        judge = rewards.Judge(rewards.accuracy, tokenizer)
        return judge(problem, tokenizer.encode(text) + [tokenizer.eos_id])

    text = "2+2</think>\n<answer>4</answer>"
    plain, opened = judged(text, think=False), judged(text, think=True)
    assert (plain["format"], opened["format"], opened["accuracy"]) == (0, 1, 1)
    assert opened["length"] == plain["length"]
    assert judged("so <answer>4</answer>", think=True)["accuracy"] == 0
    assert judged("<think>2+2</think>\n<answer>4</answer>", think=True)["format"] == 0
    train.main([*SMALL, "--think", "--steps", "1", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "samples.txt").read_text().count("<think>\n") >= 4


def test_prompt_flags_that_do_not_fit(capsys, tmp_path):
    for flags, words in ((["--chat"], "no chat format"), (["--system", "x"], "--system needs")):
        refused(capsys, train.main, [*flags, "--out", tmp_path / "out"], words)
        refused(capsys, evaluate.main, [*flags, "--model", f"{ROOT}/data/base"], words)


def write_tests(path, tests, count=40):
    with open(path, "w") as f:
        for i in range(count):
            row = {"question": f"q{i}", "kind": "code", "tests": tests}
            f.write(json.dumps(row) + "\n")


def test_programs_in_a_file(tmp_path, monkeypatch):
    path = tmp_path / "code.jsonl"
    asked = []
    monkeypatch.setattr(sandbox, "start", asked.append)
    for tests in (["assert f(2) == 4", "assert not g(1)"], [["1 2", "3"], ["", "0"]]):
        write_tests(path, tests)
        flags = task_flags.TaskFlags(task=str(path), unsafe_code=True)
        task = task_flags.build_task(flags, seed=0)
        assert len(task.problems()) == 40 and task.train[0]["tests"] == tests
        assert asked.pop() is True
    own = task_flags.TaskFlags(task=str(path), reward=f"{ROOT}/rewards.py:format_reward")
    task_flags.build_task(own, seed=0)
    assert not asked  # nothing is run
    monkeypatch.setattr(sandbox, "run", lambda *_: 1 / 0)
    judge = rewards.Judge(task.accuracy, tokenizer=None)
    assert judge.call_accuracy(task.train[0], answered("x"))["unjudged"] and judge.errors == 1


@pytest.mark.parametrize(
    "tests, words",
    [
        ([], "at least one"),
        (None, "at least one"),
        ("assert f(2) == 4", "at least one"),
        ([3], "all of them"),
        ([["1", 2]], "all of them"),
        (["assert f(2) == 4", "assert f(2) < 5"], "assert f(2) < 5"),
        (["assert f(2) == 4", ["1", "2"]], "cannot judge"),
    ],
)
def test_tests_that_cannot_be_judged(capsys, tmp_path, tests, words):
    path = tmp_path / "code.jsonl"
    write_tests(path, ["assert f(2) == 4"])
    with open(path, "a") as f:
        f.write(json.dumps({"question": "q", "kind": "code", "tests": tests}) + "\n")
    flags = ["--task", path, "--out", tmp_path / "out"]
    refused(capsys, train.main, flags, f"{path}:41: ", words)
