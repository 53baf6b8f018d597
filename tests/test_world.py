"""Several processes: the same responses, gradients and metrics as one; they stop together."""

import os
import signal
import subprocess
import sys
import time

import one_step
import pytest
import torch
from conftest import ROOT, write_program
from test_train import repository  # noqa: F401
from torch.testing import assert_close as close

import train
from plot import read_rows

SMALL = "--prompts_per_step 2 --group_size 4 --max_new_tokens 24 --eval_problems 1 --eval_k 2"
SMALL += " --eval_max_new_tokens 24 --eval_every 2"


def torchrun(count, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={count}", *[str(word) for word in words]]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)


def test_three_processes_take_the_step_of_one(tmp_path):
    """Five prompts, so that no share is like another; not one judges what another has judged."""
    run = torchrun(3, "tests/one_step.py", tmp_path)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    (tmp_path / "alone").mkdir()
    for algo in ("grpo", "ppo"):
        one_step.take_step(algo, tmp_path / "alone")
        one = torch.load(tmp_path / "alone" / f"{algo}-0.pt", weights_only=True)
        processes = [torch.load(tmp_path / f"{algo}-{i}.pt", weights_only=True) for i in range(3)]
        assert one["judged"] == 30 and [kept["judged"] for kept in processes] == [10, 10, 10]
        for kept in processes:
            assert kept["rollout"].keys() == one["rollout"].keys()
            for name, x in one["rollout"].items():
                tolerance = 2e-5 if x.is_floating_point() else 0
                close(kept["rollout"][name], x, atol=tolerance, rtol=0, equal_nan=True)
            assert len(one["gradients"]) == 2
            for ours, theirs in zip(one["gradients"], kept["gradients"], strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    assert (a - b).abs().max() < 1e-6
            assert kept["row"] == pytest.approx(one["row"], abs=1e-4, nan_ok=True)
            assert kept["gradients"][0][0].equal(processes[0]["gradients"][0][0])


def test_a_run_goes_on_with_other_processes(tmp_path):
    """Two processes and one held-out problem: nothing to do for one of them in an evaluation."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.main([*SMALL.split(), "--steps", "3", "--out", str(whole)])
    train.main([*SMALL.split(), "--steps", "1", "--out", str(cut)])
    run = torchrun(2, "train.py", "--out", cut, "--resume", "--steps", 3)
    out, errors = run.communicate()
    assert run.returncode == 0, errors
    assert out.count("RL starts") == out.count("held-out 6 numbers") == 1
    for name in ("metrics.csv", "eval.csv"):
        a, b = read_rows(whole / name), read_rows(cut / name)
        assert len(a) == len(b)
        for ours, theirs in zip(a, b, strict=True):
            for column, value in ours.items():
                if column != "set" and "second" not in column:
                    value = pytest.approx(float(value), abs=2e-4, nan_ok=True)
                    assert float(theirs[column]) == value, column
    assert (whole / "samples.txt").read_text() == (cut / "samples.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_together(tmp_path, number):
    """A stop that one of them hears: all end after the same step, which is saved. One is killed:
    the others end."""
    flags = [*SMALL.split(), "--steps", 9999, "--eval_every", 0, "--save_every", 9999]
    run = torchrun(2, "train.py", *flags, "--out", tmp_path / "run")
    for line in run.stdout:
        if line.split()[:1] == ["3"]:
            break
    with open(f"/proc/{run.pid}/task/{run.pid}/children") as f:
        ranks = [int(pid) for pid in f.read().split()]
    os.kill(ranks[1], number)
    start = time.time()
    run.communicate(timeout=60)
    assert time.time() - start < 30 and run.returncode != 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in ranks)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    steps = len(read_rows(tmp_path / "run" / "metrics.csv"))
    assert state["step"] == (steps if number == signal.SIGTERM else 0)
    assert steps >= 3


# --- The spread optimizer of docs/scaling.md, as it stands there ----------------------------------

SPREAD = """
import copy, sys, torch
from plumbing import world
from spread import Spread

world.join("cpu")
torch.manual_seed(0)
weights = [torch.nn.Parameter(torch.randn(n, 2)) for n in (3, 5, 1, 4, 2)]
groups = [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:]}]
optimizer = Spread(groups, lr=0.01, fused=True)

def take_steps(count):
    for _ in range(count):
        for p in weights[:-1]:  # the last one has never a gradient
            p.grad = torch.randn(p.shape)
        optimizer.step()
        optimizer.zero_grad()

take_steps(3)
held = len(optimizer.state)
state = optimizer.state_dict()
saved = copy.deepcopy(state["state"])
optimizer = Spread(groups, lr=0.01, fused=True)
optimizer.load_state_dict(state)
take_steps(2)
kept = {"weights": weights, "state": saved, "held": [held, len(optimizer.state)]}
torch.save(kept, f"{sys.argv[1]}/{world.SIZE}-{world.RANK}.pt")
"""


def test_moments_are_spread_and_the_steps_are_those_of_one_process(tmp_path, monkeypatch):
    """Also after a save, which has the moments of all."""
    write_program(tmp_path, "scaling.md", "spread.py")
    (tmp_path / "steps.py").write_text(SPREAD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    for count in (1, 3):
        run = torchrun(count, tmp_path / "steps.py", tmp_path)
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    one = torch.load(tmp_path / "1-0.pt", weights_only=True)
    three = [torch.load(tmp_path / f"3-{i}.pt", weights_only=True) for i in range(3)]
    assert one["held"] == [4, 4]
    assert [kept["held"] for kept in three] == [[2, 2], [1, 1], [1, 1]]
    for kept in three:
        for a, b in zip(kept["weights"], one["weights"], strict=True):
            assert torch.equal(a, b)
    assert three[0]["state"].keys() == one["state"].keys() == {0, 1, 2, 3}
    for i, moments in one["state"].items():
        for name, x in moments.items():
            assert torch.equal(three[0]["state"][i][name], x)
