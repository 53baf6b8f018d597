"""On-policy distillation, against the enumeration of all responses of a tiny model."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, flat_gradient

import logprobs
import opd
import train
from data import Task, load_task
from data.mix import join
from fast.kl import kl_divergence
from sampler import Rollout

PROMPTS = [[1, 2], [0]]
V, T = 3, 3
EVERY = [list(ids) for ids in itertools.product(range(V), repeat=T)]


@pytest.fixture
def nets(tiny):
    """A student and its teacher."""
    teacher = tiny(seed=1, vocab_size=V).requires_grad_(False)
    return SimpleNamespace(
        policy=tiny(seed=0, vocab_size=V), teachers=torch.nn.ModuleList([teacher])
    )


def config(**changes):
    return opd.Config(teacher=("here",), **changes)


def every_response(policy, temperature=1.0):
    """All responses to all prompts; weights: the chance of each, at each of its tokens."""
    prompts = [prompt for prompt in PROMPTS for _ in EVERY]
    rollout = Rollout.from_lists(prompts, EVERY * len(PROMPTS))
    rollout.temperature = temperature
    rollout.problems = [{} for _ in prompts]
    with torch.no_grad():
        rollout.old_logprobs, _ = logprobs.response_logprobs(policy, rollout)
    chances = rollout.old_logprobs.sum(1, keepdim=True).exp()
    rollout.weights = chances * rollout.response_mask
    return rollout


def next_logprobs(model, ids, temperature):
    return (model.logits(model(torch.tensor([ids])))[0, -1] / temperature).double().log_softmax(-1)


def expected_kl(policy, teacher, temperature):
    """sum over all beginnings of their chance, which has no gradient, times KL(pi || q) there."""
    total = 0.0
    for prompt in PROMPTS:
        beginnings = {(): 1.0}
        for _ in range(T):
            longer = {}
            for beginning, chance in beginnings.items():
                logp = next_logprobs(policy, prompt + list(beginning), temperature)
                logq = next_logprobs(teacher, prompt + list(beginning), temperature)
                total = total + chance * sum(logp[v].exp() * (logp[v] - logq[v]) for v in range(V))
                for v in range(V):
                    longer[(*beginning, v)] = chance * float(logp[v].detach().exp())
            beginnings = longer
    return total


@pytest.mark.parametrize("estimate", ["full", "token"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_gradient_is_that_of_the_expected_kl(nets, estimate, temperature, minibatches):
    rollout = every_response(nets.policy, temperature)
    hp = config(estimate=estimate, minibatches=minibatches)
    weights = rollout.weights
    opd.score(nets, rollout, hp)
    rollout.advantages = opd.advantages(rollout, hp)
    loss, metrics = opd.loss(nets, rollout, hp)
    loss.backward()
    gradient = flat_gradient(nets.policy)
    nets.policy.zero_grad()
    expected = expected_kl(nets.policy, nets.teachers[0], temperature)
    expected.backward()
    assert torch.allclose(gradient, flat_gradient(nets.policy), rtol=1e-4, atol=1e-5)
    assert gradient.norm() > 0.1
    if estimate == "full":
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    else:
        value = -(rollout.advantages * weights).sum().item()
        assert value == pytest.approx(expected.item(), rel=1e-4)
    assert math.isfinite(metrics["kl"])


@pytest.mark.parametrize("estimate", ["full", "token"])
def test_a_student_that_is_its_teacher_does_not_move(nets, estimate):
    nets.teachers = torch.nn.ModuleList([copy.deepcopy(nets.policy).requires_grad_(False)])
    rollout = every_response(nets.policy)
    hp = config(estimate=estimate)
    opd.score(nets, rollout, hp)
    rollout.advantages = opd.advantages(rollout, hp)
    loss, _ = opd.loss(nets, rollout, hp)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and flat_gradient(nets.policy).abs().max() < 1e-6


def test_the_kl_in_pieces_is_its_definition(monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    hidden, weight = random(17, 8), random(50, 8)
    other_hidden, other_weight = random(17, 5).detach(), random(50, 5).detach()
    results = []
    for table in (1 << 24, 100, 1):  # logits: all rows, two, one at a time
        monkeypatch.setattr("fast.kl.TABLE", table)
        kl = kl_divergence(hidden, weight, other_hidden, other_weight, 0.7)
        gradients = torch.autograd.grad((kl * torch.arange(17)).sum(), (hidden, weight))
        results.append([kl, *gradients])
    logp = (hidden @ weight.T / 0.7).double().log_softmax(-1)
    logq = (other_hidden @ other_weight.T / 0.7).double().log_softmax(-1)
    kl = torch.nn.functional.kl_div(logq, logp, log_target=True, reduction="none").sum(-1)
    gradients = torch.autograd.grad((kl * torch.arange(17)).sum(), (hidden, weight))
    for result in results:
        for mine, theirs in zip(result, [kl, *gradients], strict=True):
            assert torch.allclose(mine.double(), theirs.double(), rtol=1e-4, atol=1e-4)


def test_half_precision_enters_the_kl_as_it_is_and_leaves_it_in_float32():
    hidden, weight = torch.randn(4, 8).bfloat16(), torch.randn(9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        kl = kl_divergence(hidden, weight, hidden, 1.2 * weight)
    assert kl.dtype == torch.float32 and (kl > 0).all()


@pytest.mark.parametrize("estimate", ["full", "token"])
def test_each_task_has_its_teacher(nets, tiny, estimate):
    first, second = nets.teachers[0], tiny(seed=2, vocab_size=V).requires_grad_(False)
    rollout = every_response(nets.policy)
    tasks = ["a", "b", "b"] * (len(rollout.group) // 3)
    rollout.problems = [{"task": task} for task in tasks]

    def gradient(hp, teachers, rows):
        nets.teachers = torch.nn.ModuleList(teachers)
        nets.policy.zero_grad()
        part = rollout.select(rows)
        opd.score(nets, part, hp)
        part.advantages = opd.advantages(part, hp)
        opd.loss(nets, part, hp)[0].backward()
        return flat_gradient(nets.policy).clone()

    both = opd.Config(teacher=("a=here", "b=there"), estimate=estimate)
    of_a = torch.tensor([i for i, task in enumerate(tasks) if task == "a"])
    of_b = torch.tensor([i for i, task in enumerate(tasks) if task == "b"])
    together = gradient(both, [first, second], torch.arange(len(tasks)))
    apart = gradient(config(estimate=estimate), [first], of_a)
    apart += gradient(config(estimate=estimate), [second], of_b)
    assert torch.allclose(together, apart, atol=1e-5)

    lacks_one = opd.Config(teacher=("a=here",), estimate=estimate)
    with pytest.raises(SystemExit, match="not one for each of the tasks"):
        gradient(lacks_one, [first], torch.arange(len(tasks)))


def test_a_joined_task_tells_where_its_problems_are_from():
    tasks = {"a": Task([{"n": 1}], {}), "b": Task([{"n": 2}, {"n": 3}], {})}
    assert [(p["task"], p["n"]) for p in join(tasks).train] == [
        ("a", 1),
        ("b", 2),
        ("a", 1),
        ("b", 3),
    ]
    assert "task" not in load_task("pairs").train[0]


def run(tmp_path, *flags):
    short = "--steps 2 --prompts_per_step 2 --eval_problems 2 --eval_k 2 --eval_sets 1"
    short += f" --max_new_tokens 16 --eval_max_new_tokens 16 --out {tmp_path}/run"
    train.main(["--algo", "opd", *short.split(), *flags])
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("estimate", ["full", "token"])
def test_a_run_with_its_own_base_as_the_teacher_begins_at_zero(tmp_path, estimate):
    rows = run(tmp_path, "--teacher", f"{ROOT}/data/base", "--estimate", estimate)
    assert abs(float(rows[0]["kl"])) < 1e-5
    assert float(rows[0]["sampler_trainer_gap"]) < 1e-4
    assert float(rows[0]["grad_norm"]) < 1e-3


def test_a_teacher_that_does_not_fit_is_refused(tmp_path, capsys, tiny):
    other = tmp_path / "other"
    model = tiny()
    model.save(other)
    (other / "tokenizer.tiktoken").write_bytes(b"YQ== 0\n")
    for flags in ([], ["--teacher", f"{tmp_path}/nowhere"], ["--teacher", f"pairs={other}"]):
        with pytest.raises(SystemExit) as stop:
            run(tmp_path, *flags)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "--teacher" in error or str(tmp_path) in error
    assert f"{other} has another tokenizer" in error
