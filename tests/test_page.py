"""What a run records of a group, and the page that shows it: its numbers are those of the code."""

import csv
import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from test_train import SMALL, repository  # noqa: F401  (a fixture)

import grpo
import plot
import ppo
import train
import variants
from data.tokenizer import Tokenizer
from logprobs import response_logprobs
from model import GPT
from page import report
from sampler import Rollout

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def record(folder, algo):
    """The groups of a run of two steps, on few problems; a response is paid for its length."""
    folder.mkdir()
    rows = [json.dumps({"prompt": f"User: make {i}", "answer": 1}) for i in range(40)]
    (folder / "few.jsonl").write_text("\n".join(rows))
    (folder / "mine.py").write_text("def f(problem, response):\n    return len(response) % 3 / 2\n")
    flags = ["--algo", algo, "--steps", "2", "--eval_every", "2", "--inspect_every", "1"]
    flags += ["--temperature", "0.9", "--task", str(folder / "few.jsonl")]
    flags += ["--reward", f"{folder}/mine.py:f", "--out", str(folder / "run")]
    train.main([*SMALL, *flags])
    with open(folder / "run" / "groups.jsonl") as f:
        return [json.loads(line) for line in f]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{algorithm: (folder of a run, the groups that it recorded)}"""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(train.__file__.rpartition("/")[0])
        for algo in ("grpo", "ppo"):
            folder = tmp_path_factory.mktemp("page") / algo
            groups = record(folder, algo)
            made[algo] = folder / "run", groups
    return made


def padded(rows, T):
    return torch.tensor([row + [0.0] * (T - len(row)) for row in rows])


def test_the_recorded_numbers_are_those_of_the_code(runs):
    folder, groups = runs["grpo"]
    assert [group["step"] for group in groups] == [1, 2]
    tokenizer = Tokenizer.load("data/base")
    policies = {1: None, 2: GPT.load(f"{folder}/model")}
    for group in groups:
        assert [tokenizer.decode(ids) for ids in group["ids"]] == [
            r["text"] for r in group["judged"]
        ]
        assert ["".join(tokens) for tokens in group["tokens"]] == [
            r["text"] for r in group["judged"]
        ]
        rollout = Rollout.from_lists([tokenizer.encode(group["prompt"])], group["ids"], 4)
        rollout.temperature = 0.9
        mask, T = rollout.response_mask, rollout.response_ids.shape[1]
        rewards = torch.tensor([response["reward"] for response in group["judged"]])
        A = grpo.group_advantages(rewards, 4)[:, None] * mask
        assert torch.allclose(padded(group["advantages"], T), A, atol=1e-5)
        weights = grpo.weights(mask, grpo.Config())
        assert torch.allclose(padded(group["weights"], T), weights, rtol=1e-5)
        if policies[group["step"]] is not None:
            logprobs, entropy = response_logprobs(policies[group["step"]], rollout)
            assert torch.allclose(padded(group["logprobs_after"], T), logprobs, atol=1e-5)
            assert torch.allclose(padded(group["entropy_after"], T), entropy, atol=1e-5)
    base, _ = response_logprobs(GPT.load("data/base"), rollout)
    assert torch.allclose(padded(groups[1]["ref_logprobs"], T), base, atol=1e-5)


def test_what_ppo_records_is_one_recursion(runs):
    """Returns minus values are advantages before they were normalised: (2) and (3) by hand."""
    _, groups = runs["ppo"]
    for group in groups:
        for i, values in enumerate(group["values"]):
            T = len(values)
            rewards = [
                -0.001 * (group["old_logprobs"][i][t] - group["ref_logprobs"][i][t])
                for t in range(T)
            ]
            rewards[-1] += group["judged"][i]["reward"]
            V, r = torch.tensor([values]), torch.tensor([rewards])
            _, returns = ppo.gae(r, V, torch.ones(1, T, dtype=torch.bool), 1.0, 1.0)
            assert torch.allclose(returns[0], torch.tensor(group["returns"][i]), atol=1e-5)


def test_the_page_is_one_file_and_no_text_gets_out(runs, tmp_path):
    folder = shutil.copytree(runs["grpo"][0], tmp_path / "run")
    hostile = "</script><img src=x onerror=alert(1)><!--"
    lines = (folder / "groups.jsonl").read_text().splitlines()
    group = json.loads(lines[-1])
    group["judged"][0]["text"] = group["prompt"] = hostile
    (folder / "groups.jsonl").write_text("\n".join([lines[0], json.dumps(group)]))
    plot.main([str(folder)])
    page = (folder / "report.html").read_text()
    assert len(page) < 300_000 and page.count("</script>") == 2 and "<img" not in page
    assert not re.search(
        r"(src|href)\s*=|@import|url\(|fetch\(|import\(",
        page.replace(r"\u003c", "<").replace(hostile, ""),
    )
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data[0]["metrics.csv"] == (folder / "metrics.csv").read_text()
    assert hostile in data[0]["groups.jsonl"]


def test_of_many_groups_every_second_one_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "groups.jsonl").write_text("\n".join(str(i) * 10 for i in range(9)))
    monkeypatch.setattr(report, "MOST", 40)
    kept = report.read_files(tmp_path)["groups.jsonl"].splitlines()
    assert kept == ["0" * 10, "4" * 10, "8" * 10]


# --- In a browser ---------------------------------------------------------------------------------

browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
PROBE = """<script>
window.onerror = (message) => document.body.setAttribute("data-error", message);
window.onload = () =>
  document.body.setAttribute("data-width", document.documentElement.scrollWidth);
</script><main id="page">"""


def dump(folder, hash="", width=1280):
    """The page after its program has run, as text."""
    report.write_page([str(folder)], str(folder / "report.html"))
    page = (folder / "report.html").read_text().replace('<main id="page">', PROBE)
    (folder / "probe.html").write_text(page)
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},1000"]
    command = [BROWSER, *flags, "--dump-dom", f"file://{folder}/probe.html#{hash}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert 'data-error="' not in done.stdout and "data-width" in done.stdout
    return done.stdout


def values(page):
    """{name of a line of the equations: its number}"""
    return {
        name: float(x) for name, x in re.findall(r'data-name="(\w+)" data-value="([^"]+)"', page)
    }


@browser
@pytest.mark.parametrize(
    "preset", ["as recorded", *sorted({"grpo", "dr_grpo", "dapo", "maxrl", "rloo", "reinforce"})]
)
def test_the_page_computes_what_the_code_computes(runs, preset):
    folder, groups = runs["grpo"]
    group, i, t = groups[1], 2, 3
    page = dump(folder, f"group=1&response={i}&token={t}&preset={preset.replace(' ', '+')}")
    rewards = torch.tensor([response["reward"] for response in group["judged"]])
    mask = Rollout.from_lists([[1]], group["ids"], 4).response_mask
    if preset in ("as recorded", "grpo"):
        A, w = grpo.group_advantages(rewards, 4), grpo.weights(mask, grpo.Config())
    else:
        hp = variants.Config(**variants.PRESETS[preset])
        A = variants.group_advantages(rewards, 4, hp.baseline, hp.scale)
        w = variants.weights(mask, hp)
    shown = [float(x) for x in re.findall(r'data-advantage="([^"]+)"', page)]
    assert shown == pytest.approx(A.tolist(), abs=1e-5)
    old, new, ref = (
        torch.tensor([[group[name][i][t]]])
        for name in ("old_logprobs", "logprobs_after", "ref_logprobs")
    )
    hp = grpo.Config()
    J, metrics = grpo.objective(
        new, old, A[i].view(1, 1), torch.ones(1, 1, dtype=torch.bool), hp, ref
    )
    got = values(page)
    assert got["weights"] == pytest.approx(float(w[i, t]), abs=1e-7)
    assert got["loss"] == pytest.approx(float(J * w[i, t]), abs=1e-5)


@browser
def test_the_page_of_ppo_shows_its_returns(runs):
    folder, groups = runs["ppo"]
    got = values(dump(folder, "group=1&response=1&token=0"))
    assert got["value_loss"] == pytest.approx(groups[1]["returns"][1][0], abs=1e-5)


@browser
def test_held_out_responses_before_and_after(runs):
    folder, _ = runs["grpo"]
    lines = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert [step for step, _ in lines] == [0, 2]
    before, after = (samples for _, samples in lines)
    assert [prompt for prompt, _ in before] == [prompt for prompt, _ in after]
    page = re.sub(r"</?mark>", "", html.unescape(dump(folder)))
    page = page[page.index("Before and after") : page.index("One group")]
    for (prompt, old), (_, new) in zip(before, after, strict=True):
        assert page.index(prompt) < page.index(old) < page.rindex(new)


@browser
@pytest.mark.parametrize("width", [500, 1280])
def test_nothing_is_wider_than_the_page(runs, width):
    page = dump(runs["grpo"][0], width=width)
    assert int(re.search(r'data-width="(\d+)"', page)[1]) <= width


@browser
def test_a_study_has_curves_and_no_group(tmp_path):
    """results/r1_zero: eight seeds, one line and its band."""
    folder = shutil.copytree("results/r1_zero", tmp_path / "study")
    page = dump(folder)
    assert page.count("<svg") == 3 and ">One group<" not in page
    with open(folder / "metrics.csv") as f:
        assert len({row["seed"] for row in csv.DictReader(f)}) == 8
