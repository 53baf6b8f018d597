"""The LoRA of docs/your_model.md, as it stands there: what it leaves alone, what it can reach."""

import importlib
import sys

import pytest
import torch
from conftest import ROOT, flat_gradient, write_program

import train
from model import GPT
from start import compose, memory


@pytest.fixture
def lora(tmp_path, monkeypatch):
    write_program(tmp_path, "your_model.md", "lora.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    monkeypatch.delitem(sys.modules, "lora", raising=False)  # that of another test
    return importlib.import_module("lora")


def make_nets(lora, **flags):
    config = train.Config()
    policy = compose.load_model(config.init, config)
    return lora.networks(policy, lora.Config(**flags))


def adapted(lora, model):
    return [layer for layer in model.modules() if isinstance(layer, lora.Adapted)]


IDS = torch.arange(24).view(2, 12)


def test_new_adapters_change_nothing_and_only_they_learn(lora):
    nets = make_nets(lora, rank=4, kl_coef=0)  # with a reference: the next test
    whole = GPT.load("data/base")
    assert len(adapted(lora, nets.policy)) == 7 * len(whole.layers)
    assert torch.equal(nets.policy(IDS), whole(IDS))
    nets.policy(IDS).square().sum().backward()
    for name, p in nets.policy.named_parameters():
        assert p.requires_grad == (name[-2:] in (".A", ".B")), name
        assert (p.grad is not None) == p.requires_grad, name
    assert flat_gradient(nets.policy).norm() > 0


def test_the_reference_shares_the_weights_and_not_the_adapters(lora):
    nets = make_nets(lora, rank=4)
    pairs = zip(nets.policy.named_parameters(), nets.ref.parameters(), strict=True)
    for (name, ours), theirs in pairs:
        assert (ours is theirs) == (name[-2:] not in (".A", ".B")), name
    config = train.Config(prompts_per_step=4)
    parts = memory.estimate(nets, config, group_size=4, prompt_columns=20)
    frozen = sum(p.numel() for p in GPT.load("data/base").parameters())
    adapters = sum(p.numel() for p in nets.policy.parameters()) - frozen
    assert parts["weights, gradients, AdamW"] == 4 * frozen + (16 + 4) * adapters


def test_full_rank_reaches_any_matrix_and_what_is_saved_is_the_same_model(lora, tmp_path):
    nets = make_nets(lora, rank=320)
    whole = GPT.load("data/base")
    torch.manual_seed(1)
    for ours, theirs in zip(adapted(lora, nets.policy), linears(whole), strict=True):
        change = 0.05 * torch.randn(theirs.weight.shape)
        ours.B.data = change @ torch.linalg.pinv(ours.A.data)
        theirs.weight.data += change
    assert (whole(IDS) - GPT.load("data/base")(IDS)).abs().max() > 0.1
    assert torch.allclose(nets.policy(IDS), whole(IDS), atol=1e-4)
    nets.policy.save(tmp_path / "saved")
    assert torch.allclose(GPT.load(tmp_path / "saved")(IDS), nets.policy(IDS), atol=1e-4)


def linears(model):
    return [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]


def test_a_run_goes_on_bit_for_bit(lora, tmp_path):
    small = "--prompts_per_step 2 --group_size 4 --max_new_tokens 12 --eval_every 0 --seed 3"
    argv = ["--algo", "lora", "--rank", "4", "--lr", "0.01", *small.split(), "--out"]
    train.main([*argv, str(tmp_path / "whole"), "--steps", "4"])
    train.main([*argv, str(tmp_path / "cut"), "--steps", "2"])
    train.main(["--out", str(tmp_path / "cut"), "--resume", "--steps", "4"])
    ids = torch.arange(12).view(1, 12)
    whole, cut = (GPT.load(tmp_path / name / "model")(ids) for name in ("whole", "cut"))
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, GPT.load("data/base")(ids))
