"""pass@k by enumerating every draw, majority votes with ties, intervals by hand, and the numbers of a scripted model."""
import itertools
import random
from types import SimpleNamespace

import pytest

import evaluate
from evaluate import majority, mean_interval, pass_at_k


def test_pass_at_k_by_enumeration():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased():
    rng, p = random.Random(0), 0.3
    estimates = [pass_at_k(8, sum(rng.random() < p for _ in range(8)), 4) for _ in range(20_000)]
    assert sum(estimates) / len(estimates) == pytest.approx(1 - (1 - p) ** 4, abs=0.01)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_nonsense(n, c, k):
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)


@pytest.mark.parametrize("answers, winner", [
    (["1", "2", "2"], "2"), (["2", "1", "1", "2"], "2"), (["1", "2", "2", "1"], "1"), (["3"], "3"),
    ([None, None, "4"], "4"), ([None, None], None), ([], None)])
def test_majority(answers, winner):
    assert majority(answers) == winner


def test_interval_by_hand():
    mean, half = mean_interval([1.0, 0.0, 1.0, 0.0])
    assert mean == 0.5 and half == pytest.approx(1.96 * (1 / 3 / 4) ** 0.5)
    assert mean_interval([0.25]) == (0.25, 0.0)


def test_metrics_of_scripted_responses(monkeypatch):
    good, bad, bare = "<think>\nwait x\n</think>\n<answer>{}</answer><|end|>", "<answer>7</answer>", "no idea"
    texts = {"a": [good.format(1), good.format(1), bad, bare], "b": [bad, bad, good.format(2), bare]}
    problems = [{"prompt": "a", "kind": "math", "answer": "1"}, {"prompt": "b", "kind": "math", "answer": "2"}]
    def scripted(model, tokenizer, problems, k, *rest):
        says = lambda text: SimpleNamespace(eos_ids=[0], think=False, decode=lambda ids: text)
        return [[evaluate.judge(p, [1] * 9 + [0], says(text)) for text in texts[p["prompt"]][:k]] for p in problems]
    monkeypatch.setattr(evaluate, "responses", scripted)
    metrics, _ = evaluate.evaluate(None, None, problems, k=4)
    assert metrics["pass@1"] == pytest.approx(3 / 8) and metrics["pass@4"] == 1.0
    assert metrics["cons@4"] == 0.5               # "a": 1 with two votes; "b": 7 with two votes, wrong
    assert metrics["greedy"] == 0.5 and metrics["length"] == 10 and metrics["truncated"] == 0
    assert metrics["format"] == pytest.approx(3 / 8) and metrics["reflection"] == pytest.approx(3 / 8)
