"""Real tasks: Countdown solved by brute force, rows of the public formats, optional verifiers with and without their packages,
and rewards that cannot be judged or that raise."""
import csv
import importlib.util
import itertools
import json
import math
import os
import random
import threading
import time
from collections import Counter
from fractions import Fraction

import pytest

import evaluate
import outside
import rewards
import sandbox
import train
from conftest import ROOT
from data import countdown, jsonl, load_task
from data.tokenizer import Tokenizer
from test_train import SMALL, metrics, refused, repository  # noqa: F401  (a fixture)

needs = lambda package: pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.setattr(evaluate, "COUNTS", Counter())
    monkeypatch.setattr(train, "COUNTS", evaluate.COUNTS)
    return evaluate.COUNTS


# --- Countdown ------------------------------------------------------------------------------------------------------

def solutions(terms):
    """Every (text, value) that uses all of the terms [(text, value)] once: brute force."""
    if len(terms) == 1:
        yield terms[0]
    for i, j in itertools.permutations(range(len(terms)), 2):
        rest = [t for k, t in enumerate(terms) if k not in (i, j)]
        (a, x), (b, y) = terms[i], terms[j]
        for op, value in (("+", x + y), ("-", x - y), ("*", x * y), ("/", x / y if y else None)):
            if value is not None:
                yield from solutions([*rest, (f"({a}{op}{b})", value)])


def test_countdown_problems_can_be_solved_and_the_verifier_agrees_with_brute_force():
    problems, sets = load_task("countdown")
    for p in problems[:25] + [p for held_out in sets.values() for p in held_out[:10]]:
        found = list(solutions([(str(n), Fraction(n)) for n in p["numbers"]]))
        right = [text for text, value in found if value == p["target"]]
        assert right and 10 <= p["target"] <= 99 and all(1 <= n <= 99 for n in p["numbers"])
        for text in right[:5]:
            assert rewards.accuracy(p, f"<think>x</think><answer>{text}</answer>") == 1
        for text, value in random.Random(0).sample(found, 20):
            assert rewards.accuracy(p, f"<answer>{text}</answer>") == (value == p["target"])
        assert all(f" {n}" in p["prompt"] for n in p["numbers"]) and f"make {p['target']}." in p["prompt"]
        assert all(tag in p["prompt"] for tag in rewards.TAGS)


def test_countdown_holds_out_whole_problems():
    key = lambda p: (tuple(sorted(p["numbers"])), p["target"])
    (a, sets), (b, same_sets) = countdown.load(0), countdown.load(1)
    test = [key(p) for held_out in sets.values() for p in held_out]
    assert sets == same_sets and a != b and a == countdown.load(0)[0]
    assert len(test) == len(set(test)) == 256 and not set(test) & {key(p) for p in a + b}
    assert Counter(len(p["numbers"]) for p in a).keys() == {3, 4}
    assert {len(p["numbers"]) for p in sets["3 numbers"]} == {3} and {len(p["numbers"]) for p in sets["4 numbers"]} == {4}


# --- JSON lines -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row, answer", [
    ({"question": "q", "answer": "She has 9*2 = <<9*2=18>>18.\n#### 18"}, "18"),              # GSM8K
    ({"question": "q", "answer": "#### 5 or\n#### 1,234 "}, "1,234"),
    ({"problem": "q", "solution": r"So $x = \boxed{\frac{1}{\sqrt{2}}}$."}, r"\frac{1}{\sqrt{2}}"),     # MATH
    ({"problem": "q", "solution": r"\boxed{1} and then \boxed{ 2 }"}, "2"),
    ({"problem": "q", "solution": r"\boxed{\left\{ 1, \frac{2}{3} \right\}} done"}, r"\left\{ 1, \frac{2}{3} \right\}"),
    ({"problem": "q", "solution": r"\boxed{\{} }"}, r"\{"),                                    # an escaped brace is no brace
    ({"problem": "q", "solution": r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}"}, r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ({"problem": "q", "solution": "-1,234.5"}, "-1,234.5"),                                     # no worked solution
    ({"problem": "q", "solution": "worked", "answer": "x + 1"}, "x + 1"),
    ({"prompt": "q", "answer": " 391\n"}, "391"),
])
def test_the_truth_of_a_row(row, answer):
    p = jsonl.problem(row)
    assert p["answer"] == answer and p["kind"] == "math"
    assert rewards.accuracy(p, f"<answer>{answer}</answer>") == 1 and rewards.accuracy(p, "<answer>77</answer>") == 0
    if "prompt" in row:
        assert p["prompt"] == p["user"] == "q"                                                 # as it is
    else:
        assert p["prompt"].startswith("User: q\n") and "<answer>" in p["user"] and p["user"] in p["prompt"]


@pytest.mark.parametrize("row, reason", [
    ({"question": "q", "solution": "and so it is"}, "no final answer in 'solution'"),
    ({"question": "q", "solution": r"\boxed{1} = \boxed{\frac{1}{2}"}, "no final answer in 'solution'"),
    ({"question": "q", "answer": "18 ####"}, "no final answer in 'answer'"), ({"question": "q", "answer": r"\boxed{}"}, "no final"),
    ({"question": "q", "answer": "  "}, "no final answer"), ({"question": "q", "answer": 3}, "'answer' or 'solution'"),
    ({"answer": "3"}, "'prompt' or 'question' or 'problem'"), ({"question": ["q"], "answer": "3"}, "'question'"),
    ({"question": "q", "answer": "3", "kind": "poetry"}, "'poetry'"), ({"question": "q", "answer": "3", "kind": ["math"]}, "math"),
    ({"question": "q", "kind": "countdown", "numbers": [1, 2]}, "a target"), ({"question": "q", "kind": "gym", "answer": "3"}, "'gym'"),
    ({"question": "q", "kind": "countdown", "numbers": ["1", "2"], "target": 3}, "a target"), ({"question": "q", "kind": "countdown", "numbers": 5, "target": 3}, "int"),
    ({"question": "q", "kind": "countdown", "numbers": [1, 2], "target": "3"}, "a target"),
    ({"question": "q", "answer": "3", "language": "English"}, "'English'"), ({"question": "q", "answer": "3", "language": ["en"]}, "list"),
    ({"question": "q", "kind": "code", "tests": ["assert f(2) == " + "-" * 100000 + "1"]}, "")])
def test_bad_rows(capsys, tmp_path, row, reason):
    path = tmp_path / "data.jsonl"
    good = b'{"question": "1+1?", "answer": "#### 2"}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + json.dumps(row).encode() + b"\n" + good)
    refused(capsys, train.main, ["--task", path, "--out", tmp_path / "out"], f"{path}:3: ", reason)


def test_a_file_as_a_task(tmp_path):
    rows = [{"question": f"{i}+1?\ud800", "answer": f"so\n#### {i + 1}", "source": i, "reward": 1.0, "user": "alice"} for i in range(80)]
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows + rows)).encode() + b"\r\n\r\n")
    problems, sets = load_task(str(tmp_path / "data.jsonl"))
    assert len(problems) + len(sets["held out"]) == 80 and 2 < len(sets["held out"]) < 25
    assert not {p["prompt"] for p in problems} & {p["prompt"] for p in sets["held out"]}
    assert all(p["answer"] == str(p["source"] + 1) for p in problems)                          # other columns stay, and change nothing
    assert [rewards.accuracy(problems[0], f"<answer>{n}</answer>") for n in (problems[0]["source"] + 1, "x")] == [1, 0]
    assert "alice" not in problems[0]["user"]


# --- math-verify ----------------------------------------------------------------------------------------------------

LATEX = [(r"\frac12", "1/2", 1), (r"\frac{\sqrt{3}}{2}", r"\sqrt3/2", 1), (r"\frac{\sqrt{3}}{2}", r"$\dfrac{\sqrt{3}}{2}$.", 1),
         ("x+1", "1+x", 1), ("(x-1)(x+1)", "x^2-1", 1), (r"\{1,2\}", r"\{2,1\}", 1), (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)", 1),
         (r"5\text{ cm}", "5", 1), (r"90^\circ", "90", 1), (r"11\sqrt{2}", r"\boxed{11\sqrt2}", 1), (r"\frac{1}{x}", "x^{-1}", 1),
         # hostile
         ("[1,2)", "(1,2)", 0), (r"2\pi", "6.28", 0), (r"\sqrt{2}", "1.414213", 0), (r"\sqrt{2}", r"\sqrt{2} or \sqrt{3}", 0),
         (r"\sqrt{2}", r"\sqrt{3}$ $\sqrt{2}", 0), (r"\sqrt{2}", r"\sqrt{2}, \sqrt{3}", 0), (r"\sqrt{2}", r"not \sqrt{2}", 0),
         (r"\sqrt{2}", r"\sqrt{2}i", 0), (r"\sqrt{2}", r"-\sqrt{2}", 0), (r"\sqrt{2}", "", 0), (r"\sqrt{2}", "}", 0),
         ("x=3", "x=3 or x=4", 0), (r"\text{Monday}", "Tuesday", 0), ("391", "17*23", 0), ("391", r"17\cdot 23", 0)]


@needs("math_verify")
@pytest.mark.parametrize("truth, answer, same", LATEX)
def test_latex_is_compared_by_value(truth, answer, same):
    assert rewards.equal(answer, truth) is bool(same)


def test_without_math_verify_text_is_compared_and_the_run_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outside.latex.cache_clear()
    for truth, answer, _ in LATEX:
        normal = lambda text: " ".join(rewards.unboxed(text).split())
        number = rewards.number(truth)
        assert rewards.equal(answer, truth) is (normal(answer) == normal(truth) if number is None else rewards.number(answer) == number)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "math-verify is not installed" in out
    outside.latex.cache_clear()


@needs("math_verify")
@pytest.mark.parametrize("text", ["9^{9^{9^9}}", r"\binom{999999999}{499999999}"])
def test_the_time_limit_holds_in_any_thread_and_leaves_no_process(text):
    problem, said = {"kind": "math", "answer": r"\sqrt{2}"}, []
    ask = lambda: said.append(rewards.accuracy(problem, f"<answer>{text}</answer>"))
    assert rewards.accuracy(problem, r"<answer>\sqrt2</answer>") == 1                          # it has started
    first, start = outside.children["math_verify"], time.time()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert time.time() - start < outside.SECONDS + 2 and said[0] != said[0]                    # NaN: could not be judged
    assert first.poll() is not None                                                            # it is gone
    assert rewards.accuracy(problem, r"<answer>\sqrt2</answer>") == 1                          # and there is another


def test_a_broken_package_is_no_wrong_answer(counts, capsys):
    """Where the package cannot be imported, or the child is killed from outside, asking raises."""
    if importlib.util.find_spec("math_verify") is None:
        with pytest.raises(RuntimeError, match="No module named 'math_verify'"):
            outside.ask("math_verify", "x", "y")
    else:
        outside.ask("math_verify", "x", "y")
    outside.children["math_verify"].kill()
    with pytest.raises((RuntimeError, OSError)):
        outside.ask("math_verify", "x", "y")
        outside.ask("math_verify", "x", "y")


# --- reasoning-gym --------------------------------------------------------------------------------------------------

@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is not None, reason="reasoning_gym is installed")
def test_gym_without_the_package(capsys, tmp_path):
    refused(capsys, train.main, ["--task", "gym:chain_sum", "--out", tmp_path], "--task gym:chain_sum", "No module named 'reasoning_gym'")


@needs("reasoning_gym")
def test_gym_tasks():
    problems, sets = load_task("gym:chain_sum", 0)
    other, same_sets = load_task("gym:chain_sum", 1)
    assert sets == same_sets and problems == load_task("gym:chain_sum", 0)[0]
    asked = lambda rows: {p["prompt"] for p in rows}
    assert len(sets["held out"]) == 128 and len(problems) > 1000
    assert not asked(sets["held out"]) & asked(problems + other) and len(asked(problems) & asked(other)) < 10
    for p in problems[:20]:
        total = eval(p["user"].split(":")[1].split("=")[0])                                    # of the generator, not of a model
        assert rewards.accuracy(p, f"<think>x</think><answer>{total}</answer>") == 1
        assert rewards.accuracy(p, f"<answer>{total + 1}</answer>") == 0 and rewards.accuracy(p, "no answer") == 0
    assert all(type(rewards.accuracy(problems[0], f"<answer>{text}</answer>")) is float for text in ("", "\ud800", "x" * 9999))


@needs("reasoning_gym")
def test_gym_scores_in_part_and_what_it_cannot_read_is_wrong():
    item = ("game_of_life", 0, 0)
    board = json.loads(outside.ask("reasoning_gym", *item).rpartition("\n\n")[2].rstrip("."))
    scores = {rewards.accuracy({"kind": "gym", "item": item}, f"<answer>{json.dumps(b)}</answer>")
              for b in (board, [[1 - x for x in row] for row in board])}
    assert any(0 < s < 1 for s in scores) and all(0 <= s <= 1 for s in scores)
    assert outside.ask("reasoning_gym", "prime_factorization", 0, 0, "not a number") == 0      # its scorer raises there


@needs("reasoning_gym")
def test_gym_items_do_not_depend_on_the_process():
    items = [(name, 5, i) for name in ("codeio", "word_ladder", "ransom_note") for i in (0, 1)]   # random state, order of sets
    before = [outside.ask("reasoning_gym", *item) for item in items]
    outside.children["reasoning_gym"].kill()
    outside.children["reasoning_gym"].wait()
    assert [outside.ask("reasoning_gym", *item) for item in reversed(items)] == before[::-1]


@needs("reasoning_gym")
def test_scorers_that_evaluate_text(tmp_path, monkeypatch):
    """n_queens has an eval() in its scorer: no program, no file, no endless power."""
    item, canary = ("n_queens", 0, 0), tmp_path / "canary"
    for text in (f"__import__('os').system('touch {canary}')", f"open('{canary}', 'w')", f"__import__('subprocess').run(['touch', '{canary}'])",
                 f"__import__('ctypes').CDLL(None).system(b'touch {canary}')", f"__import__('os').mkdir('{canary}')"):
        assert outside.ask("reasoning_gym", *item, text) == 0 and not canary.exists()
    assert outside.ask("reasoning_gym", *item, "9**9**9**9") is None
    assert outside.ask("reasoning_gym", *item, "exit()") == 0 == outside.ask("reasoning_gym", *item, "x")
    wait = outside.select.select                  # not the minute that it waits for a child without its alarm
    monkeypatch.setattr(outside.select, "select", lambda r, w, x, _: wait(r, w, x, outside.SECONDS + 3))
    assert outside.ask("reasoning_gym", *item, "__import__('signal').setitimer(0, 0) and [0 for _ in iter(int, 1)]") is None
    assert outside.ask("reasoning_gym", *item, "x") == 0


@needs("reasoning_gym")
@needs("math_verify")
def test_both_packages_in_one_run():
    for _ in range(2):
        assert outside.ask("reasoning_gym", "n_queens", 0, 0, "x") == 0 and outside.ask("math_verify", "x+1", "1+x") is True


@needs("reasoning_gym")
def test_no_such_generator(capsys, tmp_path):
    refused(capsys, train.main, ["--task", "gym:nothing", "--out", tmp_path], "--task gym:nothing", "not registered")


@needs("reasoning_gym")
def test_a_gym_run(tmp_path):
    train.main([*SMALL, "--task", "gym:number_sequence", "--eval_max_new_tokens", "8", "--out", str(tmp_path / "out"), "--steps", "1"])
    assert metrics(tmp_path / "out")[0]["unjudged"] == "0"


# --- rewards that cannot be judged, and a reward of one's own ---------------------------------------------------------

OWN = """
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
def always(problem, response):
    raise KeyError("out of luck")
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return lambda name: f"{tmp_path}/own.py:{name}"


def test_accuracy_is_nan_where_the_verdict_is_none(own):
    problems, sets = load_task("pairs", 0, own("unsure"))
    odd, even = ([p for p in problems + sets["4 numbers"] if p["target"] % 2 == r] for r in (1, 0))
    assert all(rewards.accuracy(p, "x") != rewards.accuracy(p, "x") for p in odd)
    assert {rewards.accuracy(p, text) for p in even for text in ("x", "xx")} == {0.0, 1.0}


@pytest.mark.parametrize("name, algo", [("half", "grpo"), ("unsure", "grpo"), ("unsure", "ppo"), ("never", "ppo")])
def test_a_reward_of_ones_own(tmp_path, counts, own, algo, name):
    flags = [*SMALL, "--algo", algo, "--problems", "4", "--reward", own(name), "--out", str(tmp_path / "out"), "--steps", "2"]
    train.main(flags)
    config, rows = train.Config(problems=4), metrics(tmp_path / "out")
    problems, sets = load_task("pairs")
    for step, row in enumerate(rows):
        odd = sum(p["target"] % 2 for p in train.problems_of(step, problems, config)) / 4
        assert float(row["unjudged"]) == {"half": 0, "unsure": odd, "never": 1}[name] and row["reward_errors"] == "0"
        if name == "half":
            assert float(row["accuracy"]) == odd / 2
        assert (row["accuracy"] == "nan") == (float(row["unjudged"]) == 1) and float(row["grad_norm"]) == float(row["grad_norm"])
    shares = [float(r["unjudged"]) for r in csv.DictReader(open(tmp_path / "out" / "eval.csv"))]
    assert (max(shares) > 0) == (name != "half") and (min(shares) == 1) == (name == "never")


def test_a_reward_that_sometimes_raises_is_counted(tmp_path, counts, capfd, own):
    train.main([*SMALL, "--problems", "16", "--reward", own("sometimes"), "--out", str(tmp_path / "out"), "--steps", "6"])
    rows, err = metrics(tmp_path / "out"), capfd.readouterr().err
    assert err.count("Traceback") == 1 and "KeyError: 'out of luck'" in err and "own.py" in err
    in_steps = sum(int(r["reward_errors"]) for r in rows)
    assert in_steps == sum(round(float(r["unjudged"]) * 64) for r in rows) >= 2
    assert counts["reward_errors"] == len([n for n in range(1, counts["judged"] + 1) if n % 150 == 7])
    assert all(0.3 < float(r["accuracy"]) < 0.7 for r in rows)                                 # of those that were judged


def test_a_reward_that_always_raises_stops_the_run(tmp_path, counts, capfd, own):
    with pytest.raises(SystemExit, match="the reward raised for 6 of 6 responses, over 1%"):
        train.main([*SMALL, "--reward", own("always"), "--out", str(tmp_path / "out")])
    assert capfd.readouterr().err.count("Traceback") == 1


def test_one_in_a_hundred_is_the_limit(counts, capfd):
    problem = {"kind": "math", "answer": "1", "reward": lambda p, text: 1 / int(text)}
    for i in range(2000):
        assert (evaluate.accuracy(problem, "0" if i % 100 == 99 else "1") == 1) == (i % 100 != 99)
    with pytest.raises(SystemExit, match="21 of 2001"):
        evaluate.accuracy(problem, "0")


def test_bad_rewards(capsys, tmp_path, own):
    for reward, words in ((own("nothing"), ["own.py:nothing", "rewards.py:accuracy"]), ("own.py", ["own.py"]), (own("calls"), ["calls"]),
                          (f"{tmp_path}/no.py:f", ["no.py"])):
        refused(capsys, train.main, ["--reward", reward, "--out", tmp_path / "out"], *words)
    refused(capsys, evaluate.main, ["--model", f"{ROOT}/data/base", "--reward", reward], *words)


def test_evaluation_leaves_out_what_was_not_judged(monkeypatch):
    """By hand: a has 1 of 2 judged ones right, b 0 of 1, c none judged. pass@1 is (1/2 + 0) / 2."""
    known = {"a": [1, 0, None], "b": [None, 0, None], "c": [None, None, None]}
    def responses(model, tokenizer, problems, k, *rest):
        row = lambda i, x: dict(text=f"<answer>{i}</answer>", accuracy=float("nan") if x is None else float(x), unjudged=float(x is None),
                                length=1, reflection=0.0, reflections=0, format=1.0, language=1.0, truncated=0.0)
        return [[row(i, x) for i, x in enumerate(known[p][:k])] for p in problems]
    monkeypatch.setattr(evaluate, "responses", responses)
    m, _ = evaluate.evaluate(None, None, "abc", k=3)
    assert (m["pass@1"], m["pass@3"], m["cons@3"], m["greedy"]) == (0.25, 0.5, 0.5, 1.0) and m["unjudged"] == pytest.approx(2 / 3)
    assert m["pass@1_ci"] == pytest.approx(1.96 * (0.125 / 2) ** 0.5)
    m, _ = evaluate.evaluate(None, None, "c", k=3)
    assert m["pass@1"] != m["pass@1"] and m["unjudged"] == 1


# --- From a problem to a prompt, and programs in files ----------------------------------------------------------------

def test_a_think_block_that_the_prompt_opened(tmp_path):
    """Its tag is part of the judged text: an answer inside the open block is no answer, a second tag is malformed."""
    tokenizer, problem = Tokenizer.load(f"{ROOT}/data/base"), {"kind": "math", "answer": "4", "prompt": "q"}
    said = lambda text: evaluate.judge(problem, tokenizer.encode(text) + [tokenizer.eos_id], tokenizer)
    plain = said("2+2</think>\n<answer>4</answer>")
    tokenizer.think = True
    opened = said("2+2</think>\n<answer>4</answer>")
    assert (plain["format"], opened["format"], opened["accuracy"]) == (0, 1, 1) and opened["length"] == plain["length"]
    assert said("so <answer>4</answer>")["accuracy"] == 0 and said("<think>2+2</think>\n<answer>4</answer>")["format"] == 0
    train.main([*SMALL, "--think", "--steps", "1", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "samples.txt").read_text().count("<think>\n") >= 4


def test_prompt_flags_that_do_not_fit(capsys, tmp_path):
    for flags, words in ((["--chat"], "no chat format"), (["--system", "x"], "--system needs --chat")):
        refused(capsys, train.main, [*flags, "--out", tmp_path / "out"], words)
        refused(capsys, evaluate.main, [*flags, "--model", f"{ROOT}/data/base"], words)


def test_programs_in_a_file(tmp_path, monkeypatch, capsys, counts):
    path, asked = tmp_path / "code.jsonl", []
    monkeypatch.setattr(sandbox, "start", asked.append)
    for tests in (["assert f(2) == 4", "assert not g(1)"], [["1 2", "3"], ["", "0"]]):
        path.write_text("".join(json.dumps({"question": f"q{i}", "kind": "code", "tests": tests}) + "\n" for i in range(40)))
        problems, sets = load_task(str(path), unsafe_code=True)
        assert len(problems) + len(sets["held out"]) == 40 and problems[0]["tests"] == tests and asked.pop() is True
    load_task(str(path), reward=f"{ROOT}/rewards.py:format")
    assert not asked                              # nothing is run
    monkeypatch.setattr(sandbox, "run", lambda *_: 1 / 0)
    assert math.isnan(evaluate.accuracy(problems[0], "<answer>x</answer>")) and counts["reward_errors"] == 1
    good, _ = path.read_text(), capsys.readouterr()
    for tests, words in (([], "at least one"), (None, "at least one"), ("assert f(2) == 4", "at least one"), ([3], "all of them"), ([["1", 2]], "all of them"),
                         (["assert f(2) == 4", "assert f(2) < 5"], "assert f(2) < 5"), (["assert f(2) == 4", ["1", "2"]], "cannot judge")):
        path.write_text(good + json.dumps({"question": "q", "kind": "code", "tests": tests}) + "\n")
        refused(capsys, train.main, ["--task", path, "--out", tmp_path / "out"], f"{path}:41: ", words)
