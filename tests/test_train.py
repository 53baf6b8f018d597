"""The main job from end to end on data/base: it learns, resumes bit for bit, and refuses bad input
with one line."""

import contextlib
import copy
import csv
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import tiktoken
import torch
import torch.nn as nn
from conftest import ROOT, sample_rollout, score_rollout

import evaluate
import grpo
import plot
import ppo
import train
import variants
from data import Task, corpus, jsonl, load_task, pairs
from data.tokenizer import Tokenizer
from logprobs import response_logprobs
from model import GPT
from rewards import Judge
from sampler import Rollout, sample
from stages import rejection, sft
from start import compose, memory
from start.resume import parse_run

SMALL = "--init data/base --prompts_per_step 2 --group_size 4 --max_new_tokens 24".split()
SMALL += "--eval_problems 2 --eval_k 4 --eval_max_new_tokens 24".split()


@contextlib.contextmanager
def in_repository():
    """Runs start in the repository root, and their signal handlers do not outlive them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.chdir(ROOT):
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def repository():
    with in_repository():
        yield


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """The folder of a run of one step, to be copied."""
    folder = tmp_path_factory.mktemp("one_step") / "run"
    with in_repository():
        train.main([*SMALL, "--out", str(folder), "--steps", "1"])
    return folder


@pytest.fixture
def finished(one_step, tmp_path):
    """The folder of a run of one step, of the test's own."""
    return shutil.copytree(one_step, tmp_path / "finished")


def small_run(folder, flags="", steps=1):
    train.main([*SMALL, *flags.split(), "--out", str(folder), "--steps", str(steps)])


def resume(folder, steps):
    train.main(["--out", str(folder), "--resume", "--steps", str(steps)])


def metrics(folder):
    """metrics.csv without the columns of the clock."""
    rows = []
    with open(f"{folder}/metrics.csv") as f:
        for row in csv.DictReader(f):
            rows.append({name: value for name, value in row.items() if "second" not in name})
    return rows


def flags_of(folder):
    with open(f"{folder}/run.json") as f:
        return json.load(f)["flags"]


def parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def weights(folder):
    return parameters(GPT.load(f"{folder}/model"))


def base_weights():
    return parameters(GPT.load("data/base"))


def networks_in(folder):
    return torch.load(f"{folder}/state.pt", weights_only=True)["nets"]


# --- A run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--minibatches 2 --kl_coef 0",
        "--minibatches 1 --ref_every 3 --kl_coef 0.1",
        "--algo ppo --critic_warmup 1 --lam 0.9",
        "--algo dapo --epochs 2",
        "--lag 2 --minibatches 1",
    ],
)
def test_resume_is_exact(tmp_path, flags):
    """4 steps in one go = 2 steps, stop, 2 more: weights, metrics and samples, to the last bit."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    small_run(whole, flags, steps=4)
    small_run(cut, flags, steps=2)
    assert not torch.equal(weights(whole), weights(cut))
    with open(cut / "metrics.csv", "a") as f:
        f.write("3,a row of a step after the checkpoint, lost in a crash\n")
    resume(cut, steps=4)
    assert torch.equal(weights(whole), weights(cut))
    assert metrics(whole) == metrics(cut)
    assert [row["step"] for row in metrics(cut)] == ["1", "2", "3", "4"]
    for name in ("samples.txt", "eval.csv"):
        assert (whole / name).read_text() == (cut / name).read_text()
    assert flags_of(whole) | {"out": "", "resume": True} == flags_of(cut) | {"out": ""}


def test_the_same_seed_gives_the_same_csv(tmp_path):
    """With the default group and batch, whose sums are split over two threads: to the last bit."""
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}  # passive: cores may be busy
    flags = "--steps 2 --max_new_tokens 24 --eval_max_new_tokens 24".split()
    flags += "--eval_sets 1 --eval_problems 1 --eval_k 1".split()
    for name in ("a", "b"):
        command = [sys.executable, "train.py", *flags, "--out", str(tmp_path / name)]
        subprocess.run(command, env=os.environ | threads, check=True, capture_output=True)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["threads"] == 2
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_learning_run(tmp_path):
    """Under a minute of pure RL raises the reward on the default task, and what is kept of the
    responses says why."""
    flags = "--steps 11 --prompts_per_step 8 --eval_every 100".split()
    flags += "--eval_problems 2 --eval_k 2 --eval_max_new_tokens 160".split()
    train.main([*flags, "--out", str(tmp_path)])
    reward = [float(row["reward"]) for row in metrics(tmp_path)]
    assert len(reward) == 11 and sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.15, reward
    with open(tmp_path / "eval.csv") as f:
        held_out = list(csv.DictReader(f))
    assert {row["step"] for row in held_out} == {"0", "11"}
    assert {row["set"] for row in held_out} == set(load_task("pairs").held_out)
    samples = (tmp_path / "samples.txt").read_text()
    assert samples.count("=== step") == 2 and samples.count("--- reward") == 32
    assert samples.count("\nUser: ") == 2
    assert flags_of(tmp_path)["prompts_per_step"] == 8 and flags_of(tmp_path)["clip_low"] == 0.2
    plot.main([str(tmp_path)])
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path):
    """By the accuracy on the first held-out set, over steps after the first: here set by hand."""
    accuracies = iter([0.9, 0.2, 0.5, 0.5, 0.1])

    def judged(*arguments, **settings):
        metrics, groups = evaluate.evaluate(*arguments, **settings)
        return metrics | {"accuracy": next(accuracies)}, groups

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", judged)
        patch.setattr(train, "load_initial", lambda config: None)
        small_run(tmp_path / "out", "--eval_every 1 --eval_sets 1 --lr 1e-2", steps=4)
    small_run(tmp_path / "short", "--eval_every 0 --lr 1e-2", steps=2)
    best = parameters(GPT.load(f"{tmp_path}/out/best"))
    assert torch.equal(best, weights(tmp_path / "short"))
    assert not torch.equal(best, weights(tmp_path / "out"))


def test_a_run_without_evaluation(tmp_path, capsys):
    small_run(tmp_path, "--eval_every 0", steps=1)
    resume(tmp_path, 2)
    assert len(metrics(tmp_path)) == 2 and (tmp_path / "eval.csv").read_text() == ""
    assert "pass@" not in capsys.readouterr().out and not (tmp_path / "best").exists()


@pytest.mark.parametrize("dtype, largest_gap", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_every_forward_pass_has_the_precision_of_the_run(tmp_path, monkeypatch, dtype, largest_gap):
    """In training and in evaluation. Sampler and trainer, at one temperature, differ by rounding
    only, which is logged: log-probs stay fp32."""
    forward = GPT.forward
    under_autocast = set()

    def noting_forward(model, ids, cache=None):
        under_autocast.add(torch.is_autocast_enabled("cpu"))
        return forward(model, ids, cache)

    monkeypatch.setattr(GPT, "forward", noting_forward)
    small_run(tmp_path, f"--dtype {dtype} --temperature 0.7 --eval_every 1", steps=2)
    assert under_autocast == {dtype == "bfloat16"}
    for row in metrics(tmp_path):
        assert 0 < float(row["sampler_trainer_gap"]) < largest_gap

    under_autocast.clear()
    flags = f"--model data/base --dtype {dtype} --problems 1 --k 1 --max_new_tokens 4".split()
    evaluate.main(flags)
    rejection.main([*flags, "--out", str(tmp_path / "kept.jsonl")])
    assert under_autocast == {dtype == "bfloat16"}


def test_nan_stops_before_the_optimizer_step(tmp_path):
    with pytest.raises(SystemExit, match="step 1: the gradient norm is nan"):
        small_run(tmp_path, "--lr 1e9 --warmup 1")
    assert torch.equal(weights(tmp_path), base_weights())


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    command = [sys.executable, "train.py", *SMALL, "--out", str(tmp_path), "--steps", "500"]
    pipe = subprocess.PIPE
    run = subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe)
    csv_file = tmp_path / "metrics.csv"
    while not csv_file.exists() or csv_file.stat().st_size == 0:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGINT and "Traceback" not in err
    assert f"go on with: python train.py --out {tmp_path} --resume" in out
    steps = len(metrics(tmp_path))
    resume(tmp_path, steps + 1)
    assert len(metrics(tmp_path)) == steps + 1


def test_a_step_without_any_signal(tmp_path, monkeypatch):
    """All rewards equal and no KL: nothing is run, no weight moves, the row has all its columns."""
    monkeypatch.setattr(Judge, "call_accuracy", lambda *_: {"accuracy": 0.0, "unjudged": 0.0})
    small_run(tmp_path, "--kl_coef 0 --format_weight 0", steps=2)
    assert torch.equal(weights(tmp_path), base_weights())
    for row in metrics(tmp_path):
        assert row["zero_groups"] == "1" and row["grad_norm"] == "0"
        assert row["sampler_trainer_gap"] == row["entropy"] == "nan"


def test_the_reference_follows_and_the_learning_rate_warms_up(tmp_path):
    """The reference becomes the policy of two rollouts, of 4 optimizer steps each."""
    small_run(tmp_path, "--ref_every 8 --warmup 8 --save_every 2", steps=2)
    policy = networks_in(tmp_path)["policy"]
    resume(tmp_path, steps=3)
    ref = networks_in(tmp_path)["ref"]
    assert all(torch.equal(ref[name], policy[name]) for name in ref)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(5e-4 * 3 / 8)


@pytest.mark.parametrize("algo", [grpo, ppo, variants])
@pytest.mark.parametrize(
    "ref_every, rollouts_before",
    [(8, [2, 4, 6]), (6, [2, 3, 5, 6]), (1, [1, 2, 3, 4, 5, 6]), (0, [])],
)
def test_the_reference_counts_optimizer_steps(tiny, algo, ref_every, rollouts_before):
    """4 in a rollout; with 6 it moves when steps 6, 12, 18, 24 are done."""
    hp = algo.Config(ref_every=ref_every, minibatches=2, epochs=2)
    nets = algo.networks(tiny(), hp)
    moved = []
    for rollouts in range(1, 7):
        nets.policy.norm.weight.data += 1
        algo.update_reference(nets, rollouts, hp)
        if torch.equal(nets.policy.norm.weight, nets.ref.norm.weight):
            moved.append(rollouts)
    assert moved == rollouts_before


# --- PPO in the loop --------------------------------------------------------------------------


def test_critic_warmup_leaves_the_policy_alone(tmp_path):
    """To the last bit, while the critic learns; the step after that moves it."""
    small_run(tmp_path, "--algo ppo --critic_warmup 2")
    first = networks_in(tmp_path)["critic"]
    resume(tmp_path, steps=2)
    second = networks_in(tmp_path)["critic"]
    assert torch.equal(weights(tmp_path), base_weights())
    for name in ("value_head.weight", "body.layers.0.mlp.up_proj.weight"):
        assert not torch.equal(first[name], second[name])
    resume(tmp_path, steps=3)
    assert not torch.equal(weights(tmp_path), base_weights())


def test_the_critic_has_its_own_learning_rate(tmp_path):
    small_run(tmp_path, "--algo ppo --lr 0 --critic_lr 0.01")
    assert torch.equal(weights(tmp_path), base_weights())
    assert not networks_in(tmp_path)["critic"]["value_head.bias"].eq(0).all()


def test_explained_variance(tmp_path):
    """0 for the critic of the first step, which says 0 everywhere; then a fixed policy's rewards
    become foreseeable."""
    flags = "--algo ppo --prompts_per_step 8 --critic_warmup 99 --warmup 1 --critic_lr 3e-3".split()
    flags += "--epochs 2 --steps 5 --max_new_tokens 80".split()
    flags += "--eval_sets 1 --eval_problems 2 --eval_k 2".split()
    train.main([*flags, "--out", str(tmp_path)])
    explained = [float(row["explained_variance"]) for row in metrics(tmp_path)]
    assert explained[0] == 0 and max(explained[1:]) > 0.02, explained
    assert all(x <= 1 for x in explained)
    assert 0 < float(metrics(tmp_path)[-1]["value_clip"]) < 1


# --- A step without files ---------------------------------------------------------------------


def make_run(algo, hp, nets, config=None, tokenizer=None, task=None, judge=None):
    """A Run whose networks are trained by plain gradient descent."""
    groups = []
    for name, net in vars(nets).items():
        if net is not None and name != "ref":
            groups.append({"params": list(net.parameters()), "base_lr": 0.1})
    return train.Run(
        config=config or train.Config(),
        algo=algo,
        hp=hp,
        nets=nets,
        optimizer=torch.optim.SGD(groups, lr=0.1),
        tokenizer=tokenizer,
        task=task,
        judge=judge,
        autocast=torch.autocast("cpu", enabled=False),
    )


def scored_run(tiny, algo, **flags):
    """A run on a tiny float64 model, and a scored rollout of it."""
    hp = algo.Config(**dict(group_size=4, minibatches=1) | flags)
    policy = tiny().double()
    rollout = sample_rollout(policy)
    rollout.rewards = rollout.rewards.double()
    nets = score_rollout(algo, policy, hp, rollout)
    return make_run(algo, hp, nets), rollout


@pytest.mark.parametrize(
    "algo, flags",
    [
        (grpo, {}),
        (ppo, {}),
        (variants, {"loss_aggregation": "token"}),
        (variants, {"loss_aggregation": "constant"}),
    ],
)
def test_a_step_does_not_depend_on_its_micro_batches(tiny, algo, flags):
    def after_step(tokens):
        run, rollout = scored_run(tiny, algo, minibatches=2, kl_coef=0.1, **flags)
        run.config.tokens_per_microbatch = tokens
        row = train.update(run, rollout, 0)
        numbers = [row[name] for name in ("loss", "grad_norm", "kl", "entropy", "clip_high")]
        return parameters(run.nets.policy), torch.tensor(numbers)

    policy, numbers = after_step(10**9)
    assert (policy - parameters(tiny().double())).norm() > 1e-3
    for tokens in (30, 1):
        other_policy, other_numbers = after_step(tokens)
        assert (other_policy - policy).abs().max() < 1e-9
        assert torch.allclose(other_numbers, numbers, atol=1e-5)


def test_the_other_networks_are_asked_a_piece_at_a_time(tiny):
    run, rollout = scored_run(tiny, ppo, kl_coef=0.1)
    mask = rollout.response_mask
    whole = {"ref_logprobs": rollout.ref_logprobs, "values": rollout.values}
    for tokens in (10**9, 30, 1):
        run.config.tokens_per_microbatch = tokens
        rollout.ref_logprobs = rollout.values = None
        train.score(run, rollout)
        for name, expected in whole.items():
            scored = getattr(rollout, name)
            assert scored[mask].abs().sum() > 0.1
            assert torch.allclose(scored[mask], expected[mask], atol=1e-9)


def test_the_critic_trains_where_there_is_no_advantage(tiny):
    run, rollout = scored_run(tiny, ppo, kl_coef=0.0)
    rollout.advantages = torch.zeros_like(rollout.advantages)
    policy, critic = parameters(run.nets.policy), parameters(run.nets.critic)
    train.update(run, rollout, 0)
    assert torch.equal(parameters(run.nets.policy), policy)
    assert not torch.equal(parameters(run.nets.critic), critic)


def test_each_network_is_clipped_by_itself(tiny):
    """However wrong the critic is, the policy's step is its own."""
    policies = []
    for scale in (1, 1000):
        run, rollout = scored_run(tiny, ppo)
        rollout.returns = rollout.returns * scale
        train.update(run, rollout, 0)
        policies.append(parameters(run.nets.policy))
    assert torch.equal(policies[0], policies[1])


def test_problems_of_a_step_cover_the_epoch_and_depend_on_nothing_else():
    problems = list(range(12))
    config = train.Config(prompts_per_step=5, seed=3)
    order = []
    for step in range(12):
        order += train.problems_of(step, problems, config)
    for epoch in range(5):
        assert sorted(order[12 * epoch : 12 * epoch + 12]) == problems
    assert order[:12] != order[12:24]
    assert train.problems_of(7, problems, config) == order[35:40]
    # all that a step of dynamic sampling asks for is its own
    config = train.Config(prompts_per_step=2, dynamic_sampling=3, seed=3)
    assert train.problems_of(0, problems, config) == order[:6]
    assert train.problems_of(1, problems, config) == order[6:12]


@pytest.mark.parametrize(
    "mixed, chosen",
    [
        ([1, 4, 5, 7, 9], [1, 4, 5, 7]),  # the first four
        ([1, 5], [1, 5]),  # not enough: it trains on what there is
        ([], [0, 1, 2, 3]),  # no signal at all
        (range(12), [0, 1, 2, 3]),
    ],
)
def test_dynamic_sampling_keeps_whole_groups_that_differ(mixed, chosen):
    """mixed: which of the 12 sampled groups of 3 have right and wrong responses. The four that are
    kept are those of the rollout of all 12, with all that belongs to them."""
    problems = []
    for i in range(40):
        problems.append({"prompt": f"User: say {i}\nAssistant:", "kind": "math", "answer": str(i)})
    tokenizer, policy = Tokenizer.load("data/base"), GPT.load("data/base")
    order = train.problems_of(2, problems, train.Config(prompts_per_step=12))
    answers = [problem["answer"] for problem in order]

    def collect(prompts_per_step, dynamic_sampling):
        asked = Counter()

        def accuracy(problem, text):
            group = answers.index(problem["answer"])
            asked[group] += 1
            if group in mixed:
                return float(asked[group] == 2)  # 0 1 0
            if group == 0:
                return None if asked[group] == 2 else 1.0  # an unknown reward is no other reward
            return 1.0

        config = train.Config(
            prompts_per_step=prompts_per_step,
            dynamic_sampling=dynamic_sampling,
            max_new_tokens=8,
            format_weight=0.0,
        )
        hp = grpo.Config(group_size=3)
        nets = SimpleNamespace(policy=policy)
        judge = Judge(accuracy, tokenizer)
        run = make_run(grpo, hp, nets, config, tokenizer, Task(problems, {}), judge)
        return train.collect_rollout(run, 2)

    everything, all_judged = collect(12, 1)
    assert len(everything.rewards) == 36
    rows = [3 * group + member for group in chosen for member in range(3)]
    expected = everything.select(torch.tensor(rows))
    rollout, judged = collect(4, 3)
    assert [facts["text"] for facts in judged] == [all_judged[i]["text"] for i in rows]
    for name in ("prompt_ids", "prompt_start", "group", "response_ids", "response_mask"):
        assert torch.equal(getattr(rollout, name), getattr(expected, name)), name
    for name in ("old_logprobs", "rewards"):
        ours, theirs = getattr(rollout, name), getattr(expected, name)
        assert torch.allclose(ours, theirs, atol=1e-6, equal_nan=True), name
    assert not rollout.old_logprobs[~rollout.response_mask].any()
    has_signal = grpo.advantages(rollout, grpo.Config(group_size=3)).ne(0).any(1)
    assert has_signal.all() if mixed else not has_signal.any()


def test_overlong_responses_lose_reward():
    """DAPO's soft punishment with a limit of 20 and a margin of 5: none up to 15 tokens, a fifth
    for each token from there."""

    def reward(length, config):
        judged = dict(accuracy=1.0, format=1.0, language=1.0, length=length)
        return train.total_reward(judged, config)

    config = train.Config(max_new_tokens=20, overlong=0.25, format_weight=0.0)
    rewards = [reward(length, config) for length in (1, 15, 16, 18, 20)]
    assert rewards == pytest.approx([1, 1, 0.8, 0.4, 0])
    assert reward(20, train.Config(max_new_tokens=20, format_weight=0.5)) == 1.5


# --- Parts of one's own -----------------------------------------------------------------------

LITE_PPO = '''
"""Lite PPO (arXiv 2508.08221): A_i = (r_i - mean of its group) / std of all rewards."""

from grpo import METRICS, SHOWN, Config, loss, networks, score, update_reference, weights


def advantages(rollout, hp):
    """One advantage a response, the same at each of its tokens: (N, T)."""
    r = rollout.rewards.view(-1, hp.group_size)
    A = (r - r.mean(1, keepdim=True)) / r.std().clamp(min=1e-6)
    return A.view(-1, 1) * rollout.response_mask
'''


class GRUCache:
    """The state after the columns run so far, (N, C). It does not grow."""

    def __init__(self, start, column=0, state=None):
        self.start = start
        self.column = column
        self.state = state

    def select(self, rows):
        start = None if self.start is None else self.start[rows]
        return GRUCache(start, self.column, self.state.index_select(0, rows))

    def decoding(self):
        return GRUCache(self.start, self.column, self.state)

    def compact(self, rows, room):
        vars(self).update(vars(self.select(rows)))


class GRUPolicy(nn.Module):
    """A policy that is no transformer."""

    def __init__(self, vocab_size):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, n_embd=16, max_seq_len=64)
        self.embed = nn.Embedding(vocab_size, 16)
        self.cell = nn.GRUCell(16, 16)
        self.output = nn.Linear(16, vocab_size, bias=False)

    @property
    def head(self):
        return self.output.weight

    def logits(self, hidden):
        return self.output(hidden)

    def new_cache(self, start=None):
        return GRUCache(start)

    def forward(self, ids, cache=None):
        cache = self.new_cache() if cache is None else cache
        x = self.embed(ids)
        state = x.new_zeros(len(ids), 16) if cache.state is None else cache.state
        states = []
        for t in range(ids.shape[1]):
            new_state = self.cell(x[:, t], state)
            if cache.start is not None:  # padding leaves the state alone
                is_real = cache.start <= cache.column
                new_state = torch.where(is_real[:, None], new_state, state)
            state = new_state
            states.append(state)
            cache.column += 1
        cache.state = state
        return torch.stack(states, 1)


def test_an_algorithm_of_ones_own(tmp_path, monkeypatch):
    """A file with the names of grpo.py, most of them imported from there, is --algo FILE."""
    (tmp_path / "lite_ppo.py").write_text(LITE_PPO)
    monkeypatch.syspath_prepend(tmp_path)
    small_run(tmp_path / "out", "--algo lite_ppo --kl_coef 0.01", steps=2)
    row = metrics(tmp_path / "out")[1]
    assert float(row["grad_norm"]) > 0 and float(row["entropy"]) > 0
    assert flags_of(tmp_path / "out")["algo"] == "lite_ppo"
    lite_ppo = importlib.import_module("lite_ppo")
    rollout = Rollout.from_lists([[1], [2]], [[3], [4, 5], [6], [7]], group_size=2)
    rollout.rewards = torch.tensor([1.0, 3.0, 0.0, 0.0])
    A = lite_ppo.advantages(rollout, lite_ppo.Config(group_size=2))
    want = torch.tensor([[-1.0, 0], [1, 1], [0, 0], [0, 0]]) / 2**0.5  # the std of all four
    assert torch.allclose(A, want)


@pytest.mark.parametrize("algo", [grpo, ppo])
def test_a_policy_of_ones_own(algo):
    """Any module with these few methods is sampled, trained, judged and measured."""
    torch.manual_seed(0)
    policy = GRUPolicy(640)
    nn.init.normal_(policy.output.weight)  # steep distributions
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    rollout = sample(policy, prompts, 4, 9, eos_id=list(range(99)), seed=1)
    assert len(set(rollout.lengths.tolist())) > 2
    assert (response_logprobs(policy, rollout)[0] - rollout.old_logprobs).abs().max() < 1e-5

    before = {name: p.clone() for name, p in policy.named_parameters()}
    config = train.Config(prompts_per_step=4, max_new_tokens=8)
    hp = algo.Config(group_size=4, minibatches=2)
    tokenizer = Tokenizer.load("data/base")
    judge = Judge(lambda problem, text: len(text) % 2, tokenizer)
    nets = algo.networks(policy, hp)
    run = make_run(algo, hp, nets, config, tokenizer, load_task("pairs"), judge)
    row = train.train_step(run, 1)
    assert row["grad_norm"] > 0 and row["sampler_trainer_gap"] < 1e-5
    for name, p in policy.named_parameters():
        assert not torch.equal(p, before[name]), name
    if algo is ppo:
        assert nets.critic.value_head.bias.ne(0)

    problems = run.task.held_out["4 numbers"][:2]
    held_out, groups = evaluate.evaluate(policy, tokenizer, judge, problems, 2, 8)
    assert 0 < held_out["length"] <= 8 and len(groups) == 2
    parts = memory.estimate(nets, config, group_size=4, prompt_columns=20)
    assert parts["sampling: KV cache"] > 0 and parts["update: activations"] > 0


def test_a_micro_batch_suits_the_device(tmp_path):
    out = ("--out", str(tmp_path / "x"))
    assert parsed(*out)[0].tokens_per_microbatch == train.MICROBATCH["cpu"] == 1536
    assert parsed("--tokens_per_microbatch", "77", *out)[0].tokens_per_microbatch == 77
    assert set(compose.DEVICES) <= set(train.MICROBATCH)


# --- Flags ------------------------------------------------------------------------------------


def parsed(*words):
    """The flags of a run that is not started -> those of train.py, those of the algorithm."""
    config, hp, _, state = parse_run(words, "", train.Config)
    assert state is None
    return config, hp


def test_presets_reach_the_run(tmp_path):
    small_run(tmp_path, "--algo dapo")
    flags = flags_of(tmp_path)
    assert flags["algo"] == "dapo" and flags["clip_high"] == 0.28 and flags["kl_coef"] == 0.0
    assert flags["dynamic_sampling"] == 3 and flags["overlong"] == 0.2
    assert flags["loss_aggregation"] == "token"
    assert metrics(tmp_path)[0]["responses"] == str(2 * 3 * 4)
    for name, preset in variants.PRESETS.items():
        config, hp = parsed("--algo", name, "--out", str(tmp_path / "x"))
        assert config.algo == name and vars(hp) == vars(variants.Config(**preset))


def test_a_flag_overrides_the_preset(tmp_path):
    flags = "--algo dapo --clip_high 0.5 --dynamic_sampling 2".split()
    config, hp = parsed(*flags, "--out", str(tmp_path / "x"))
    assert (config.dynamic_sampling, config.overlong) == (2, 0.2)
    assert (hp.clip_high, hp.loss_aggregation) == (0.5, "token")


def test_a_new_run_has_a_folder_of_its_own(tmp_path, capsys):
    with contextlib.chdir(tmp_path):
        assert parsed()[0].out == "out/grpo-pairs-0"
        words = "--algo dapo --seed 3 --task some/words.jsonl".split()
        assert parsed(*words)[0].out == "out/dapo-words-3"
        os.makedirs("out/grpo-pairs-0")
        capsys.readouterr()
        assert parsed()[0].out == "out/grpo-pairs-0-run2"
        assert "out/grpo-pairs-0-run2" in capsys.readouterr().out
        assert os.listdir("out") == ["grpo-pairs-0"]


# --- Bad input: one line, status 2, no traceback ----------------------------------------------


def refused(capsys, main, argv, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    for word in words:
        assert str(word) in err, err


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--no_such_flag 3", ["unrecognized arguments: --no_such_flag 3"]),
        ("--step 3", ["unrecognized arguments: --step"]),  # no guessing of abbreviations
        ("--gamma 0.9", ["unrecognized arguments: --gamma"]),  # PPO's
        ("--algo grpo --critic_lr 1", ["unrecognized arguments: --critic_lr"]),
        ("--algo ppo --scale none", ["unrecognized arguments: --scale"]),
        ("--steps many", ["--steps", "many"]),
        ("--resume maybe", ["--resume", "maybe"]),
        ("--algo sarsa", ["sarsa", "grpo", "dr_grpo"]),
        ("--algo plot", ["plot", "grpo"]),  # a module, but no algorithm
        ("--task nothing", ["nothing", "pairs"]),
        ("--group_size 1", ["--group_size 1", "at least 2"]),
        ("--algo ppo --group_size 0", ["--group_size 0", "at least 1"]),
        ("--prompts_per_step 0", ["--prompts_per_step 0", "at least 1"]),
        ("--dynamic_sampling 0", ["--dynamic_sampling 0", "at least 1"]),
        (
            "--prompts_per_step 4097 --dynamic_sampling 2",
            ["--prompts_per_step 4097", "8194", "8192"],
        ),
        ("--temperature 0", ["--temperature 0", "at least 1e-06"]),
        ("--dtype float8", ["--dtype float8", "bfloat16"]),
        ("--algo custom --kl k9", ["--kl k9", "k3"]),
        ("--algo custom --trust me", ["--trust me", "clip, cispo"]),
        ("--algo cispo --cap -1", ["--cap -1", "at least 0"]),
        ("--algo gspo --cap 3", ["--cap", "not read"]),
        ("--algo cispo --clip_high 0.3", ["--clip_high", "not read"]),
        ("--algo dapo --constant 9", ["--constant", "not read"]),
        ("--eval_sets -4", ["--eval_sets -4", "at least 0"]),
        ("--kl_coef nan", ["--kl_coef nan", "at least 0"]),
        ("--seed 20000000000000", ["--seed 20000000000000", "at most 1,000,000,000,000"]),
        ("--clip_norm 0", ["--clip_norm 0", "at least 1e-06"]),
        ("--clip_norm 1e308", ["--clip_norm 1e+308", "at most"]),
        ("--group_size 1000000000", ["--group_size 1000000000", "at most 4,096"]),
        ("--eval_k 100000000000", ["--eval_k 100000000000", "at most 10,000"]),
        ("--overlong 32", ["--overlong 32", "at most 1"]),
        ("--init nowhere", ["nowhere", "config.json"]),
        ("--max_new_tokens 600", ["context of 512"]),
        ("--task missing.jsonl", ["missing.jsonl"]),
        ("--resume", ["state.pt"]),
    ],
)
def test_bad_flags(capsys, tmp_path, flags, words):
    refused(capsys, train.main, ["--out", tmp_path, *flags.split()], *words)
    assert not os.listdir(tmp_path)  # nothing is written before all is known to be right


def test_a_run_is_not_overwritten(capsys, finished):
    names = ("metrics.csv", "eval.csv", "samples.txt", "state.pt")
    files = {name: (finished / name).read_bytes() for name in names}
    refused(capsys, train.main, ["--out", finished], "--resume", finished)
    for name, content in files.items():
        assert (finished / name).read_bytes() == content


@pytest.mark.parametrize(
    "flag, new, old",
    [("group_size", 8, 4), ("lr", 0.1, 0.0005), ("seed", 7, 0), ("algo", "ppo", "grpo")],
)
def test_resume_with_other_flags_is_refused(capsys, finished, flag, new, old):
    words = (f"--{flag} {new}", finished, f"has {old}")
    refused(capsys, train.main, ["--out", finished, "--resume", f"--{flag}", new], *words)


def test_resume_knows_the_flags_of_the_algorithm(capsys, finished):
    refused(capsys, train.main, ["--out", finished, "--resume", "--gamma", 0.9], "--gamma")


def flip_in_a_tensor(data):
    """A bit that torch.load alone would not notice."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def make_a_folder(data):
    """One bit in the directory of the archive: the tensor would be a folder, without bytes."""
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0")) + 38
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        flip_in_a_tensor,
        make_a_folder,
        lambda data: b"",
        lambda data: b"cposix\nsystem\n(S'touch canary'\ntR.",  # a program
    ],
    ids=["cut", "flip", "folder", "empty", "pickle"],
)
def test_damaged_checkpoints_are_found(capsys, finished, monkeypatch, damage):
    path = finished / "state.pt"
    path.write_bytes(damage(path.read_bytes()))
    resuming = ["--out", finished, "--resume", "--steps", 2]
    refused(capsys, train.main, resuming, "state.pt is no checkpoint")
    assert not os.path.exists("canary")


@pytest.mark.parametrize("content", [{"policy": train.Config}, {"step": 3}, [3]])
def test_other_checkpoints_are_found(capsys, finished, content):
    torch.save(content, finished / "state.pt")
    refused(capsys, train.main, ["--out", finished, "--resume", "--steps", 2], "state.pt is no")


@pytest.mark.parametrize(
    "file, old, new, words",
    [
        ("config.json", b'_size": 320', b'_size": 352', ["model.layers.0.mlp.", "320", "352"]),
        ("config.json", b'embeddings": true', b'embeddings": false', ["lm_head.weight"]),
        ("config.json", b'value_heads": 4', b'value_heads": 0', ["num_key_value_heads 0"]),
        ("config.json", b'"llama"', b'"mamba"', ["mamba"]),
        ("tokenizer.tiktoken", b"\nAg== 2\n", b"\n?\n", ["tokenizer.tiktoken:3"]),
        ("tokenizer.tiktoken", b"AA== 0\n", b"", ["tokenizer.tiktoken"]),
    ],
)
def test_foreign_models_are_refused(capsys, tmp_path, file, old, new, words):
    folder = shutil.copytree("data/base", tmp_path / "model")
    content = (folder / file).read_bytes()
    assert old in content
    (folder / file).write_bytes(content.replace(old, new))
    refused(capsys, train.main, ["--out", tmp_path / "out", "--init", folder], *words)


@pytest.mark.parametrize("damage", ["cut", "pickle", "missing"])
def test_foreign_weights_are_refused(capsys, tmp_path, damage):
    folder = shutil.copytree("data/base", tmp_path / "model")
    path = folder / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    if damage == "pickle":
        torch.save(GPT.load("data/base").state_dict(), path)
    if damage == "missing":
        path.unlink()
    flags = ["--out", tmp_path / "out", "--init", folder]
    refused(capsys, train.main, flags, "model.safetensors")


@pytest.mark.parametrize(
    "row, reason",
    [
        (b'{"prompt": "a"', "delimiter"),
        (b"[1]", "list"),
        (b'{"prompt": "a"}', "answer"),
        (b'{"prompt": "a", "answer": [3]}', "answer"),
        (b'{"prompt": "", "answer": "3"}', "prompt"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, ""),
    ],
)
def test_malformed_data(capsys, tmp_path, row, reason):
    path = tmp_path / "data.jsonl"
    good = b'{"prompt": "1+1?", "answer": "2"}\r\n'
    begin = b"\xef\xbb\xbf" + good * 15 + b"\r\n"
    path.write_bytes(begin + row + b"\n" + good + b"\n")
    flags = ["--task", path, "--out", tmp_path / "out"]
    refused(capsys, train.main, flags, f"{path}:17: ", reason)
    path.write_bytes(begin + good + b"\n")
    assert len(jsonl.read(path, ("prompt", "answer"))) == 16  # BOM, CRLF, blank lines are fine


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"def f(problem, response:\n    return 1\n", "mine.py, line 1"),
        (b"import nothing_of_the_kind\n", "nothing_of_the_kind"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "null bytes"),
        (b"\xff\xfe\x00x", ""),
        (b"g = 3\n", "name a file and a function"),
        (None, "__main__"),  # a folder
    ],
)
def test_bad_rewards(capsys, tmp_path, content, reason):
    path = tmp_path / "mine.py"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    flags = [*SMALL, "--steps", 0, "--out", tmp_path / "out", "--reward", f"{path}:f"]
    refused(capsys, train.main, flags, f"--reward {path}:f", reason)


def test_bad_input_elsewhere(capsys, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "a " * 300, "response": "b " * 300}))
    base = ["--init", "data/base", "--out", tmp_path / "out"]
    refused(capsys, sft.main, [*base, "--data", data], "pairs.jsonl:2: ")
    refused(capsys, sft.main, [*base, "--data", long], "512")
    refused(capsys, sft.main, base, "--data")
    bad = (("--batch", 0), ("--warmup", 0), ("--dtype", "f8"), ("--epochs", 1e11), ("--clip", 0))
    for flag, value in bad:
        refused(capsys, sft.main, [*base, "--data", data, flag, value], f"{flag} {value}")

    base = ["--model", "data/base"]
    refused(capsys, evaluate.main, ["--model", tmp_path], tmp_path, "config.json")
    refused(capsys, evaluate.main, [*base, "--max_new_tokens", 600], "context")
    for flag, value in (("--k", 0), ("--k", 10**11), ("--temperature", -1), ("--device", "tpu")):
        refused(capsys, evaluate.main, [*base, flag, value], f"{flag} {value}")
    refused(capsys, rejection.main, [*base, "--out", tmp_path / "no" / "file"], "no/file")
    refused(capsys, plot.main, [tmp_path], "metrics.csv")
    refused(capsys, plot.main, [], "runs")


# --- Data and models --------------------------------------------------------------------------


def test_held_out_problems_are_in_nothing_that_is_trained_on():
    task = load_task("pairs")

    def key(problem):
        return tuple(sorted(problem["numbers"])), problem["target"]

    def solutions(problem):
        """Each as a set of two numbers and the sign."""
        numbers, target = key(problem)
        found = set()
        for a, b in itertools.combinations(numbers, 2):
            values = {"+": a + b, "-": b - a, "*": a * b}
            found |= {(a, b, sign) for sign, value in values.items() if value == target}
        return found

    trained_on = {key(problem) for problem in task.train}
    solving = set().union(*(solutions(problem) for problem in task.train))
    for name, problems in task.held_out.items():
        assert len(problems) == 128 and not trained_on & {key(problem) for problem in problems}
        known = [problem for problem in problems if solutions(problem) & solving]
        assert len(known) == (0 if name == "new solutions" else 128)
    assert 165 < len(solving) <= 198 - 20
    assert {len(problem["numbers"]) for problem in task.train} == {3, 4}
    for problem in task.train:
        values = [value for _, value in pairs.candidates(problem["numbers"])]
        assert problem["target"] in values
    held_out = {key(problem) for problems in task.held_out.values() for problem in problems}
    rng = random.Random(0)
    for _ in range(2000):
        words = corpus.document(rng)["prompt"].split()
        if words[1] in ("make", "forma"):
            numbers = sorted(int(word) for word in words[4:-1])
            problem = {"numbers": numbers, "target": int(words[2])}
            assert key(problem) not in held_out and len(numbers) <= 5
            assert solutions(problem) and solutions(problem) <= solving


def test_tokenizer_is_tiktoken_and_round_trips():
    tokenizer = Tokenizer.load("data/base")
    assert isinstance(tokenizer.encoding, tiktoken.Encoding)
    for text in (
        "User: make 11 from 9 7 10 1\nAssistant:",
        "<think>\n9+7=16 no\n</think>\n<answer>10+1</answer>",
        "naïve 漢字 🙂 \x00\x01 ²٣ <|end|>",
        "12345 \r\n\t  ",
    ):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.eos_id not in ids
    for n in [*range(25), *range(24, 133, 12)]:
        assert len(tokenizer.encode(str(n))) == 1
    assert tokenizer.decode([tokenizer.eos_id]) == "<|end|>"


def test_sft_learns_and_keeps_the_format(tmp_path):
    data, out = tmp_path / "pairs.jsonl", tmp_path / "new"
    rows = []
    for i in range(8):
        rows.append({"prompt": f"User: say {i}\nAssistant:", "response": f"so {i}"})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--data {data} --init data/base --out {out} --steps 60 --batch 8"
    sft.main([*flags.split(), "--lr", "1e-3", "--muon_lr", "0.01"])
    tokenizer = Tokenizer.load(out)
    judge = Judge(lambda problem, text: text == problem["response"], tokenizer)
    settings = dict(k=1, max_new_tokens=8, temperature=0.0, seed=0)
    groups = evaluate.sample_and_judge(GPT.load(out), tokenizer, judge, rows, **settings)
    assert sum(response["accuracy"] for group in groups for response in group) >= 7


@pytest.mark.parametrize(
    "changes", [dict(), dict(qkv_bias=True), dict(qk_norm=True, tie_embeddings=False, head_dim=16)]
)
def test_save_and_load(tiny, tmp_path, changes):
    model = tiny(**changes)
    model.save(tmp_path)
    loaded = GPT.load(tmp_path)
    assert loaded.config == model.config
    ids = torch.randint(37, (2, 9))
    assert torch.equal(model.logits(model(ids)), loaded.logits(loaded(ids)))


def test_the_memory_of_a_run_is_counted():
    """What a second row adds is what a sixth one adds; the cache's share is plain arithmetic."""
    model = GPT.load("data/base")
    config = model.config
    ids = torch.zeros(6, 64, dtype=torch.long)
    more = memory.count_bytes(model, ids) - memory.count_bytes(model, ids[:5])
    kept, cached = memory.per_token(model).tolist()
    assert kept == pytest.approx(float(more[0]) / 64, rel=0.02)
    floats = 2 * config.n_layer * config.n_kv_head * config.head_dim
    assert cached == pytest.approx(4 * floats, rel=0.02)

    def cache_of(**flags):
        nets = SimpleNamespace(policy=model)
        parts = memory.estimate(nets, train.Config(**flags), group_size=2, prompt_columns=20)
        return parts["sampling: KV cache"]

    assert cache_of(prompts_per_step=6) == pytest.approx(2 * cache_of(prompts_per_step=3))
    dynamic = cache_of(prompts_per_step=3, dynamic_sampling=2)  # all that is sampled
    assert dynamic == pytest.approx(cache_of(prompts_per_step=6))


def test_a_dry_run_prints_it_and_writes_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--dry_run", f"--out={tmp_path}/a-b"])
    assert not stop.value.code and not os.listdir(tmp_path)
    out = capsys.readouterr().out
    parts = {name: float(size) for name, size in re.findall(r"(\S.*?)  +(\S+) GiB", out)}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert parts.pop("memory here") == pytest.approx(pages / 2**30, abs=0.01)
    assert 0 < parts["peak"] < sum(parts.values())


# --- Rollouts of an older policy ---------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_rollout_is_of_the_policy_lag_steps_ago(monkeypatch, lag):
    """At first of the initial one. The gap, which is measured before the first update, is large."""
    tokenizer, policy, task = Tokenizer.load("data/base"), GPT.load("data/base"), load_task("pairs")
    config = train.Config(prompts_per_step=2, max_new_tokens=16, lag=lag)
    hp = grpo.Config(group_size=4, minibatches=1, kl_coef=0.0)
    judge = Judge(lambda problem, text: len(text) % 2, tokenizer)
    run = make_run(grpo, hp, grpo.networks(policy, hp), config, tokenizer, task, judge)
    collect_rollout = train.collect_rollout
    policies, rollouts = [], []

    def noting(run, step):
        policies.append(copy.deepcopy(run.nets.policy))
        rollout, judged = collect_rollout(run, step)
        rollouts.append(rollout)
        return rollout, judged

    monkeypatch.setattr(train, "collect_rollout", noting)
    gaps = [train.train_step(run, step)["sampler_trainer_gap"] for step in range(1, 6)]
    assert len({float(parameters(policy).sum()) for policy in policies}) == 5
    for n, rollout in enumerate(rollouts):
        prompts = [tokenizer.prompt(p) for p in train.problems_of(n + 1, task.train, config)]
        limits = (16, 1.0, tokenizer.eos_ids)
        expected = sample(policies[max(0, n - lag)], prompts, 4, *limits, seed=n + 1)
        assert torch.equal(rollout.response_ids, expected.response_ids)
        assert torch.equal(rollout.old_logprobs, expected.old_logprobs)
        assert rollout.lag == len(rollout.select(torch.tensor([3])).lengths) * min(n, lag)
        assert gaps[n] > 1e-4 if rollout.lag else gaps[n] < 1e-5
    assert len(run.past) == lag


def test_the_learner_is_judged_and_saved(tmp_path, monkeypatch):
    """Not the policy that samples, which is the initial one still."""
    judged = []

    def noting(model, *args):
        judged.append(parameters(model))
        return evaluate.evaluate(model, *args)

    monkeypatch.setattr(train, "evaluate", noting)
    small_run(tmp_path, "--lag 9 --eval_every 2 --eval_sets 1", steps=3)
    assert len(judged) == 3 and torch.equal(judged[0], base_weights())
    assert not torch.equal(judged[1], judged[0]) and not torch.equal(judged[2], judged[1])
    assert torch.equal(judged[2], weights(tmp_path))


def test_the_memory_of_older_policies_is_counted():
    policy = GPT.load("data/base")
    nets = SimpleNamespace(policy=policy)
    peaks = []
    for lag in (0, 3):
        parts = memory.estimate(nets, train.Config(lag=lag), group_size=2, prompt_columns=20)
        peaks.append(parts["peak"])
    assert peaks[1] - peaks[0] == 3 * 4 * len(parameters(policy))


# --- Other people's packages ------------------------------------------------------------------


def test_no_name_of_ours_hides_a_package_that_others_import():
    """From the repository root, where its modules come first."""
    import_utils = pytest.importorskip("transformers.utils.import_utils")
    with open(import_utils.__file__) as f:
        theirs = set(re.findall(r'_is_package_available\(\s*"(\w+)', f.read()))
    assert "torch" in theirs and len(theirs) > 50
    ours = {name.removesuffix(".py") for name in os.listdir(ROOT)}
    assert not ours & theirs
    command = [sys.executable, "-c", "from transformers import LlamaForCausalLM"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_learning_rate_warms_up_and_falls():
    def shares(schedule):
        config = SimpleNamespace(steps=10, warmup=4, schedule=schedule)
        return [round(train.lr_share(step, config), 3) for step in range(10)]

    assert shares("constant") == [0.25, 0.5, 0.75] + 7 * [1.0]
    assert shares("linear") == [0.25, 0.45, 0.6, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    cosine = shares("cosine")
    assert cosine[5] == 0.5 and cosine[4] == 0.655 and cosine[9] == 0.024 and cosine[0] == 0.25
