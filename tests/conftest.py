"""Small fakes that the tests share. No downloads, no GPU."""

import contextlib
import csv
import functools
import itertools
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
torch.set_num_threads(1)  # the tests share the cores: pytest -n auto

from data import pairs  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from sampler import sample  # noqa: E402

SHAPE = dict(
    vocab_size=37, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48, max_seq_len=64
)


def pytest_collection_modifyitems(items):
    """The longest test first: at the end the other workers would wait for it."""
    items.sort(key=lambda item: "the_scripts_run" not in item.name)


make_pairs = functools.cache(pairs.load)


def load_pairs(seed=0):
    train, held_out = make_pairs(seed)
    return list(train), dict(held_out)


@pytest.fixture(autouse=True)
def problems_are_made_once(request, monkeypatch):
    """Making them is a third of a tiny run. Not in the tests of tasks."""
    if request.module.__name__ != "test_tasks":
        monkeypatch.setattr(pairs, "load", load_pairs)


@pytest.fixture
def tiny():
    """tiny(**changes) -> a random model, 2 layers, grouped-query attention, steep distributions."""

    def make(seed=0, **changes):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(**SHAPE | changes))
        for p in model.parameters():
            if p.dim() == 2:
                p.data.mul_(8)
        return model

    return make


def sample_rollout(model, seed=7):
    """Four responses to each of three prompts, all of many lengths, and random rewards."""
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    rollout = sample(model, prompts, 4, 9, eos_id=1, seed=seed)
    rollout.rewards = torch.rand(12, generator=torch.Generator().manual_seed(seed))
    assert len(set(rollout.lengths.tolist())) > 2  # ragged, or the tests say nothing
    return rollout


def score_rollout(algo, model, hp, rollout):
    """Fills in a rollout up to its advantages -> the networks.

    The reference and the critic are moved away from the policy, and from 0."""
    nets = algo.networks(model, hp)
    moved = [] if nets.ref is None else list(nets.ref.parameters())
    if hasattr(nets, "critic"):
        moved += nets.critic.value_head.parameters()
    generator = torch.Generator().manual_seed(3)
    for p in moved:
        p.data += 0.05 * torch.randn(p.shape, generator=generator).to(p)
    algo.score(nets, rollout, hp)
    rollout.advantages = algo.advantages(rollout, hp)
    return nets


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_program(folder, document, name):
    """The program NAME of a page of docs/, as it stands there, becomes a file of a folder."""
    text = Path(ROOT, "docs", document).read_text("utf-8")
    (program,) = re.findall(rf"^```python\n(# {name}\n.*?)^```", text, re.M | re.S)
    (folder / name).write_text(program)


def read_csv(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


@contextlib.contextmanager
def stopped_in_step(number):
    """Ctrl-C in the optimizer step of this number, before it is taken."""
    steps = itertools.count(1)

    def clip(*arguments, real=torch.nn.utils.clip_grad_norm_):
        if next(steps) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
        yield


def flat_gradient(net):
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients])


def step_gradient(algo, nets, rollout, hp, tokens=10**9):
    """One optimizer step in micro-batches of `tokens` -> {network: gradient}, sums of metrics."""
    rollout.weights = algo.weights(rollout.response_mask, hp)
    trained = {name: net for name, net in vars(nets).items() if net is not None and name != "ref"}
    for net in trained.values():
        net.zero_grad()
    totals = {"loss": 0.0}
    for rows in rollout.micro_batches(tokens):
        loss, metrics = algo.loss(nets, rollout.select(rows), hp)
        loss.backward()
        totals["loss"] += loss.item()
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return {name: flat_gradient(net) for name, net in trained.items()}, totals
