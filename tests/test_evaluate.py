"""pass@k by enumerating every draw, majority votes with ties, intervals by hand, the numbers of a
scripted model, and what is drawn of them."""

import csv
import itertools
import math
import random
from types import SimpleNamespace

import pytest
from test_train import refused

import evaluate
import plot
import rewards
from bench import journey
from evaluate import majority, mean_interval, pass_at_k


def test_pass_at_k_by_enumeration():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
                share = sum(any(draw) for draw in draws) / len(draws)
                assert pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_k_is_unbiased():
    rng = random.Random(0)
    p = 0.3
    estimates = []
    for _ in range(20_000):
        right = sum(rng.random() < p for _ in range(8))
        estimates.append(pass_at_k(8, right, 4))
    assert sum(estimates) / len(estimates) == pytest.approx(1 - (1 - p) ** 4, abs=0.01)


@pytest.mark.parametrize(
    "answers, winner",
    [
        (["1", "2", "2"], "2"),
        (["2", "1", "1", "2"], "2"),
        (["1", "2", "2", "1"], "1"),
        (["3"], "3"),
        ([None, None, "4"], "4"),
        ([None, None], None),
        ([], None),
    ],
)
def test_majority(answers, winner):
    assert majority(answers) == winner


def test_interval_by_hand():
    mean, half = mean_interval([1.0, 0.0, 1.0, 0.0])
    assert mean == 0.5 and half == pytest.approx(1.96 * (1 / 3 / 4) ** 0.5)
    assert mean_interval([0.25]) == (0.25, 0.0)
    assert mean_interval([0.25, math.nan]) == (0.25, 0.0)
    assert all(math.isnan(value) for value in mean_interval([math.nan]))


# --- A scripted model -------------------------------------------------------------------------

GOOD = "<think>\nwait x\n</think>\n<answer>{}</answer><|end|>"
BAD = "<answer>7</answer>"
BARE = "no idea"
TEXTS = {
    "a": [GOOD.format(1), GOOD.format(1), BAD, BARE],
    "b": [BAD, BAD, GOOD.format(2), BARE],
}
PROBLEMS = [
    {"prompt": "a", "kind": "math", "answer": "1"},
    {"prompt": "b", "kind": "math", "answer": "2"},
]


def scripted_metrics(monkeypatch, accuracy):
    """The metrics of a model that says TEXTS, judged by the function `accuracy`."""
    says = {}
    tokenizer = SimpleNamespace(eos_ids=[0], opening="", decode=lambda ids: says["now"])
    judge = rewards.Judge(accuracy, tokenizer)

    def scripted(model, tokenizer, judge, problems, k, *rest):
        groups = []
        for problem in problems:
            groups.append([])
            for text in TEXTS[problem["prompt"]][:k]:
                says["now"] = text
                groups[-1].append(judge(problem, [1] * 9 + [0]))
        return groups

    monkeypatch.setattr(evaluate, "sample_and_judge", scripted)
    return evaluate.evaluate(None, tokenizer, judge, PROBLEMS, k=4)[0]


def test_metrics_of_scripted_responses(monkeypatch):
    metrics = scripted_metrics(monkeypatch, rewards.accuracy)
    assert list(metrics)[:2] == ["accuracy", "accuracy_ci"]
    assert metrics["pass@1"] == metrics["accuracy"] == pytest.approx(3 / 8)
    assert metrics["pass@4"] == 1.0
    assert metrics["cons@4"] == 0.5  # "a": 1 with two votes; "b": 7 with two votes, wrong
    assert metrics["greedy"] == 0.5 and metrics["length"] == 10 and metrics["truncated"] == 0
    assert metrics["format"] == pytest.approx(3 / 8)
    assert metrics["reflection"] == pytest.approx(3 / 8)
    line = "pass@1 0.375  pass@4 1.000  cons@4 0.500  greedy 0.500  length 10.0  reflection 0.375"
    assert evaluate.summary(metrics) == line
    names = [line.split()[0] for line in evaluate.table({"now": metrics}).split("\n")[1:]]
    assert names[:4] == ["pass@1", "pass@4", "cons@4", "greedy"] and "accuracy" not in names


def test_a_graded_reward_has_a_mean_and_no_pass_at_k(monkeypatch):
    metrics = scripted_metrics(monkeypatch, lambda problem, text: -0.5 if text == BARE else 0.25)
    assert metrics["accuracy"] == pytest.approx((3 * 0.25 - 0.5) / 4)
    assert all(math.isnan(metrics[name]) for name in ("pass@1", "pass@4", "cons@4", "cons@4_ci"))
    assert metrics["greedy"] == 0.25
    assert evaluate.summary(metrics).startswith("accuracy 0.062  greedy 0.250  length 10.0")
    names = [line.split()[0] for line in evaluate.table({"now": metrics}).split("\n")[1:]]
    assert names[:3] == ["accuracy", "greedy", "format"]


def test_a_response_that_cannot_be_judged_takes_no_part(monkeypatch):
    def accuracy(problem, text):
        return None if text == BAD else rewards.accuracy(problem, text)

    metrics = scripted_metrics(monkeypatch, accuracy)
    assert metrics["accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["pass@4"] == metrics["cons@4"] == 1.0
    assert metrics["unjudged"] == pytest.approx(3 / 8)
    assert metrics["greedy"] == 1.0  # of "a" only


# --- The curves -------------------------------------------------------------------------------


def write_csv(path, header, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([header.split(","), *[line.split(",") for line in lines]])


def drawn(*folders):
    return plot.draw(plot.read_runs([str(folder) for folder in folders]))


def points(line):
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_seeds_are_averaged_by_step_and_negative_values_are_seen(tmp_path):
    write_csv(
        tmp_path / "x-0" / "metrics.csv", "step,reward,entropy", "1,-1,nan", "2,0,", "3,2,0.5"
    )
    write_csv(tmp_path / "x-1" / "metrics.csv", "step,reward", "2,1", "3,3")
    write_csv(tmp_path / "x-0" / "eval.csv", "step,set,accuracy,cons@4,cons@4_ci", "0,a,0.5,1,9")
    figure = drawn(tmp_path / "x-0", tmp_path / "x-1")
    held_out, reward, entropy = figure.axes[0], figure.axes[3], figure.axes[4]
    assert points(reward.lines[0]) == [(1, -1), (2, 0.5), (3, 2.5)]
    assert reward.get_ylim()[0] < -1
    assert points(entropy.lines[0]) == [(3, 0.5)] and entropy.get_ylim()[0] == 0
    assert [line.get_label() for line in held_out.lines] == ["accuracy", "cons@k"]
    assert "2 seeds" in figure.get_suptitle()


def test_a_study_is_drawn_like_the_folders_of_its_runs(tmp_path):
    header = "run,seed,step,reward"
    lines = ("a,0,1,1", "a,0,2,2", "a,1,1,3", "a,1,2,4", "b,0,1,7", "reward-model,0,,")
    write_csv(tmp_path / "metrics.csv", header, *lines)
    header = "run,seed,step,set,accuracy,pass@1"
    lines = ("a,0,0,one,0.25,nan", "a,0,0,two,1,1", "a,1,0,one,0.75,nan")
    write_csv(tmp_path / "eval.csv", header, *lines)
    figure = drawn(tmp_path)
    assert [points(line) for line in figure.axes[3].lines] == [[(1, 2), (2, 3)], [(1, 7)]]
    assert points(figure.axes[0].lines[0]) == [(0, 0.5)]  # the first held-out set


def test_a_seventh_panel_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "PANELS", [*plot.PANELS, ("mine", "metrics", ["mine"])])
    write_csv(tmp_path / "metrics.csv", "step,mine", "1,5", "4,6")
    figure = drawn(tmp_path)
    assert points(figure.axes[6].lines[0]) == [(1, 5), (4, 6)]
    assert len(figure.axes) == 7


def test_the_stages_of_a_journey_are_equally_wide(tmp_path):
    write_csv(tmp_path / "a" / "metrics.csv", "step,reward", "1,5", "4,6")
    write_csv(tmp_path / "b" / "metrics.csv", "step,reward", "1,7", "2,8")
    write_csv(tmp_path / "b" / "eval.csv", "step,set,accuracy", "0,x,0.5", "2,x,1")
    figure = journey.draw([str(tmp_path / "a"), str(tmp_path / "b")])
    assert points(figure.axes[3].lines[0]) == [(0.25, 5), (1, 6)]
    assert points(figure.axes[3].lines[1]) == [(1.5, 7), (2, 8)]
    assert points(figure.axes[0].lines[0]) == [(1, 0.5), (2, 1)]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "b"]


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\xff\xfe", b"step,reward\n1,high\n"])
def test_a_table_that_is_none_is_one_line(capsys, tmp_path, content):
    write_csv(tmp_path / "metrics.csv", "step,reward", "1,2")
    (tmp_path / "eval.csv").write_bytes(content.replace(b"reward", b"accuracy"))
    refused(capsys, plot.main, [tmp_path], "eval.csv" if b"PNG" in content else "'high'")


def test_a_row_may_have_more_or_fewer_cells_than_the_header(tmp_path):
    """As the last one of a run that is at work."""
    (tmp_path / "metrics.csv").write_text("step,reward,entropy\n1,2,3,4\n2,5")
    figure = drawn(tmp_path)
    assert points(figure.axes[3].lines[0]) == [(1, 2), (2, 5)]
    assert points(figure.axes[4].lines[0]) == [(1, 3)]


def test_a_picture_is_a_png_file(capsys, tmp_path):
    write_csv(tmp_path / "metrics.csv", "step,reward", "1,2", "2,inf")
    (tmp_path / "folder.png").mkdir()
    for name in ("curves", "curves.pdf", "", "folder.png", "no/curves.png"):
        out = tmp_path / name
        refused(capsys, plot.main, [tmp_path, "--out", out], out)
    assert len(list(tmp_path.iterdir())) == 2
    plot.main([str(tmp_path), "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
