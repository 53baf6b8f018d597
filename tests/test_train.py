"""The main job end to end on the base that ships with the repository: it learns, resumes bit for bit, and refuses bad
input with one line."""
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import evaluate
import memory
import plot
import sft
import train
from conftest import ROOT
from data import jsonl, load_task, pairs
from data.tokenizer import Tokenizer
from model import GPT

SMALL = "--init data/base --problems 2 --group_size 4 --max_new_tokens 24 --eval_problems 2 --eval_k 4 --eval_max_new_tokens 24".split()


@pytest.fixture(autouse=True)
def repository(monkeypatch):
    """Runs start in the repository root, and their signal handlers do not outlive them."""
    monkeypatch.chdir(ROOT)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    yield
    for s, handler in zip((signal.SIGINT, signal.SIGTERM), before):
        signal.signal(s, handler)


def metrics(folder):
    """metrics.csv without the columns of the clock."""
    with open(f"{folder}/metrics.csv") as f:
        return [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(f)]


def weights(folder):
    return torch.cat([p.flatten() for p in GPT.load(f"{folder}/model").parameters()])


@pytest.mark.parametrize("more", [
    [], ["--minibatches", "2", "--kl_coef", "0"], ["--minibatches", "1", "--ref_every", "3", "--kl_coef", "0.1"],
    ["--algo", "ppo", "--critic_warmup", "1", "--lam", "0.9"], ["--variant", "dapo", "--epochs", "2"]], ids=" ".join)
def test_resume_is_exact(tmp_path, more):
    """4 steps in one go = 2 steps, stop, 2 more: weights, metrics and samples, to the last bit."""
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    train.main([*SMALL, *more, "--out", whole, "--steps", "4"])
    train.main([*SMALL, *more, "--out", cut, "--steps", "2"])
    assert not torch.equal(weights(whole), weights(cut))
    with open(f"{cut}/metrics.csv", "a") as f:
        f.write("3,a row of a step after the checkpoint, lost in a crash\n")
    train.main(["--out", cut, "--resume", "--steps", "4"])
    assert torch.equal(weights(whole), weights(cut))
    assert metrics(whole) == metrics(cut) and [r["step"] for r in metrics(cut)] == ["1", "2", "3", "4"]
    assert open(f"{whole}/samples.txt").read() == open(f"{cut}/samples.txt").read()


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_same_seed_gives_the_same_csv(tmp_path, two_threads):
    """At the default batch, where sums are split over threads: to the last bit."""
    for name in ("a", "b"):
        train.main(["--out", str(tmp_path / name), "--steps", "2", "--eval_problems", "2", "--eval_k", "2",
                    "--eval_max_new_tokens", "64", "--eval_sets", "1"])
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_learning_run(tmp_path):
    """Under a minute of pure RL raises the reward on the default task, and the responses that were seen say why."""
    train.main(["--out", str(tmp_path), "--steps", "11", "--problems", "8", "--eval_every", "100", "--eval_problems", "4",
                "--eval_k", "4", "--eval_max_new_tokens", "160"])
    reward = [float(row["reward"]) for row in metrics(tmp_path)]
    assert len(reward) == 11 and sum(reward[-3:]) / 3 > sum(reward[:3]) / 3 + 0.15, reward
    rows = list(csv.DictReader(open(tmp_path / "eval.csv")))
    assert {r["step"] for r in rows} == {"0", "11"} and {r["set"] for r in rows} == set(load_task("pairs")[1])
    samples = open(tmp_path / "samples.txt").read()
    assert samples.count("=== step") == 2 and samples.count("--- reward") == 32 and "User: make" in samples
    flags = json.load(open(tmp_path / "config.json"))["flags"]
    assert flags["problems"] == 8 and flags["clip_low"] == 0.2
    plot.main([str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<details>") == 2 and "data:image/png;base64," in page and "&lt;answer&gt;" in page and "<answer>" not in page
    assert page.count("<tr>") == 1 + len(rows) and "<td>6 numbers</td>" in page


def test_bfloat16_learns_from_the_same_responses_nearly(tmp_path):
    """Log-probs stay fp32; the sampler and the trainer still differ by rounding, which is logged as `gap`."""
    train.main([*SMALL, "--out", str(tmp_path), "--steps", "2", "--dtype", "bfloat16"])
    gap = [float(row["gap"]) for row in metrics(tmp_path)]
    assert all(0 < g < 0.05 for g in gap), gap


def test_nan_stops_before_the_optimizer_step(tmp_path):
    folder = str(tmp_path / "model")
    shutil.copytree("data/base", folder)
    model = GPT.load(folder)
    model.norm.weight.data[0] = float("inf")
    model.save(folder)
    with pytest.raises(SystemExit, match="step 1: the gradient norm is nan"):
        train.main([*SMALL, "--init", folder, "--out", str(tmp_path / "out"), "--steps", "2"])


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    run = subprocess.Popen([sys.executable, "train.py", *SMALL, "--out", str(tmp_path), "--steps", "500"], text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "metrics.csv").exists() or (tmp_path / "metrics.csv").stat().st_size == 0:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err
    assert f"go on with: python train.py --out {tmp_path} --resume" in out
    steps = len(metrics(tmp_path))
    train.main(["--out", str(tmp_path), "--resume", "--steps", str(steps + 1)])
    assert len(metrics(tmp_path)) == steps + 1


# --- PPO and the variants in the loop ----------------------------------------------------------------------------------

def critic_of(folder):
    return torch.load(f"{folder}/state.pt", weights_only=True)["nets"]["critic"]


def test_critic_warmup_leaves_the_policy_alone(tmp_path):
    """To the last bit, while the critic learns; the step after that moves it."""
    base = torch.cat([p.flatten() for p in GPT.load("data/base").parameters()])
    train.main([*SMALL, "--algo", "ppo", "--critic_warmup", "2", "--out", str(tmp_path), "--steps", "1"])
    first = critic_of(tmp_path)
    train.main(["--out", str(tmp_path), "--resume", "--steps", "2"])
    assert torch.equal(weights(tmp_path), base) and not torch.equal(first["value_head.weight"], critic_of(tmp_path)["value_head.weight"])
    assert not torch.equal(first["layers.0.mlp.up_proj.weight"], critic_of(tmp_path)["layers.0.mlp.up_proj.weight"])
    train.main(["--out", str(tmp_path), "--resume", "--steps", "3"])
    assert not torch.equal(weights(tmp_path), base)


def test_the_critic_has_its_own_learning_rate(tmp_path):
    train.main([*SMALL, "--algo", "ppo", "--lr", "0", "--critic_lr", "0.01", "--out", str(tmp_path), "--steps", "1"])
    assert torch.equal(weights(tmp_path), torch.cat([p.flatten() for p in GPT.load("data/base").parameters()]))
    assert not critic_of(tmp_path)["value_head.bias"].eq(0).all()


def test_explained_variance(tmp_path):
    """0 for the critic of the first step, which says 0 everywhere, and a fixed policy's rewards become foreseeable."""
    flags = "--algo ppo --problems 8 --critic_warmup 99 --warmup 1 --critic_lr 3e-3 --epochs 2 --steps 5 --max_new_tokens 80 --eval_sets 1 --eval_problems 2 --eval_k 2".split()
    train.main([*flags, "--out", str(tmp_path)])
    found = [float(row["explained_variance"]) for row in metrics(tmp_path)]
    assert found[0] == 0 and all(x <= 1 for x in found) and max(found[1:]) > 0.02, found
    assert 0 < float(metrics(tmp_path)[-1]["value_clip"]) < 1


def a_run(tiny, algo, rollout_seed=0, **flags):
    """A run on a tiny float64 model with plain gradient descent, and a scored rollout of it."""
    hp = algo.Config(**dict(group_size=4, kl_coef=0.0, minibatches=1) | flags)
    nets = algo.networks(tiny().double(), hp)
    trained = [net for name, net in vars(nets).items() if net is not None and name != "ref"]
    run = train.SimpleNamespace(algo=algo, hp=hp, nets=nets, config=train.Config(), precision=torch.autocast("cpu", enabled=False),
                                optimizer=torch.optim.SGD([{"params": list(net.parameters())} for net in trained], lr=0.1))
    rollout = train.sample(nets.policy, [[5, 6, 7], [8, 9, 10, 11, 12], [13]], 4, 9, eos_id=1, seed=3)
    rollout.rewards = torch.rand(12, generator=torch.Generator().manual_seed(rollout_seed)).double()
    algo.score(nets, rollout, hp)
    rollout.advantages = algo.advantages(rollout, hp)
    return run, rollout


def parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("algo", [train.grpo, train.ppo], ids=["grpo", "ppo"])
@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_a_step_does_not_depend_on_its_micro_batches(tiny, algo, aggregate):
    after = []
    for tokens in (10 ** 9, 30, 1):
        run, rollout = a_run(tiny, algo, aggregate=aggregate, minibatches=2)
        before = parameters(run.nets.policy)
        run.config.tokens = tokens
        metrics = train.update(run, rollout, 0)
        after.append((parameters(run.nets.policy), torch.tensor([metrics[n] for n in ("loss", "grad_norm", "entropy", "drift")])))
    assert (after[0][0] - before).norm() > 1e-3
    for other in after[1:]:
        assert (other[0] - after[0][0]).abs().max() < 1e-9 and torch.allclose(other[1], after[0][1], atol=1e-5)


def test_the_frozen_networks_are_asked_a_piece_at_a_time(tiny):
    run, rollout = a_run(tiny, train.ppo, kl_coef=0.1)
    for p in run.nets.ref.parameters():                           # so that it is not the policy, nor the critic 0
        p.data *= 1.1
    torch.nn.init.normal_(run.nets.critic.value_head.weight)
    run.algo.score(run.nets, rollout, run.hp)
    whole = rollout.ref_logprobs, rollout.values
    for tokens in (10 ** 9, 30, 1):
        run.config.tokens, rollout.ref_logprobs, rollout.values = tokens, None, None
        train.score(run, rollout)
        for a, b in zip((rollout.ref_logprobs, rollout.values), whole):
            a, b = a * rollout.response_mask, b * rollout.response_mask
            assert a.abs().sum() > 0.1 and torch.allclose(a, b, atol=1e-9)


def test_the_critic_trains_where_no_advantage_is_and_is_clipped_by_itself(tiny):
    run, rollout = a_run(tiny, train.ppo)
    before = parameters(run.nets.policy), parameters(run.nets.critic)
    rollout.advantages = torch.zeros_like(rollout.advantages)
    train.update(run, rollout, 0)
    assert torch.equal(parameters(run.nets.policy), before[0]) and not torch.equal(parameters(run.nets.critic), before[1])
    moved = []
    for scale in (1, 1000):                                       # however wrong the critic, the policy's step is its own
        run, rollout = a_run(tiny, train.ppo)
        rollout.returns = rollout.returns * scale
        train.update(run, rollout, 0)
        moved.append(parameters(run.nets.policy))
    assert torch.equal(*moved)


def test_the_rollout_carries_the_temperature(tmp_path):
    """Sampled at 0.7 and trained at 0.7: at the first step sampler and trainer agree."""
    train.main([*SMALL, "--temperature", "0.7", "--out", str(tmp_path), "--steps", "1"])
    assert float(metrics(tmp_path)[0]["gap"]) < 1e-5


def test_the_reference_follows_and_the_learning_rate_warms_up(tmp_path):
    base = GPT.load("data/base").state_dict()
    for every, moved in (("2", True), ("0", False)):
        train.main([*SMALL, "--ref_every", every, "--warmup", "8", "--out", str(tmp_path / every), "--steps", "3", "--save_every", "2"])
        state = torch.load(tmp_path / every / "state.pt", weights_only=True)
        assert any(not torch.equal(base[name], p) for name, p in state["nets"]["ref"].items()) == moved
        assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(5e-4 * 3 / 8)


def test_dynamic_sampling_trades_groups_without_a_signal(monkeypatch):
    """Only groups whose rewards differ are kept; new problems fill their place until the cap; then it trains on what there is."""
    tokenizer, policy = Tokenizer.load("data/base"), GPT.load("data/base")
    problems, right = [{"prompt": f"User: say {i}\nAssistant:", "answer": str(i)} for i in range(40)], {}
    monkeypatch.setattr(evaluate.rewards, "accuracy", lambda p, text: right[p["answer"]].pop())
    def explore(useful, resample, step=0, B=4):
        right.update({str(i): [1.0, 0.0] if i in useful else [1.0, 1.0] for i in range(40)})
        config = train.Config(problems=B, resample=resample, max_new_tokens=8, format_weight=0)
        run = train.SimpleNamespace(config=config, hp=train.grpo.Config(group_size=2), train=problems, tokenizer=tokenizer,
                                    nets=train.SimpleNamespace(policy=policy), precision=torch.autocast("cpu", enabled=False))
        return train.explore(run, step)
    order = [int(p["answer"]) for step in range(3) for p in train.problems_of(step, problems, train.Config(problems=4))]
    rollout, rows, sampled = explore({order[1], order[4], order[5]}, 3)
    said = [tokenizer.decode(row["prompt"]) for row in rows[::2]]
    assert said == [f"User: say {order[i]}\nAssistant:" for i in (1, 4, 5)] and sampled == 8 + 6 + 2        # 4, then 3, then 1 problem
    assert len(rollout.rewards) == 6 and rollout.rewards.tolist() == [0, 1] * 3 and rollout.group.tolist() == [0, 0, 1, 1, 2, 2]
    assert (rollout.old_logprobs < 0).eq(rollout.response_mask).all()
    assert [ids[:n] for ids, n in zip(rollout.response_ids.tolist(), rollout.lengths.tolist())] == [row["ids"] for row in rows]
    _, rows, sampled = explore(set(order), 3)
    assert (len(rows), sampled) == (8, 8)                         # the first sampling was enough
    rollout, rows, sampled = explore(set(), 3)
    assert (len(rows), sampled) == (8, 24) and train.grpo.advantages(rollout, train.grpo.Config(group_size=2)).eq(0).all()
    assert len(explore(set(), 1)[1]) == 8                         # off, nothing is left out


def test_overlong_responses_lose_reward():
    """DAPO's soft punishment with a limit of 20 and a margin of 5: none up to 15 tokens, a fifth for each token from there."""
    row = lambda n: dict(accuracy=1.0, format=1.0, language=1.0, length=n)
    config = train.Config(max_new_tokens=20, overlong=0.25, format_weight=0)
    assert [train.reward(row(n), config) for n in (1, 15, 16, 18, 20)] == pytest.approx([1, 1, 0.8, 0.4, 0])
    assert train.reward(row(20), train.Config(max_new_tokens=20, format_weight=0.5)) == 1.5


def test_the_readmes_algorithm_of_20_lines(tmp_path, monkeypatch):
    """The block of "Add an algorithm in 20 lines", as it stands there."""
    block, = re.findall(r"```python\n(# maxrl.py\n.*?)```", open("README.md").read(), re.S)
    assert len(block.splitlines()) <= 20
    (tmp_path / "maxrl.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    import maxrl
    monkeypatch.setitem(train.ALGORITHMS, "maxrl", maxrl)
    train.main([*SMALL, "--algo", "maxrl", "--kl_coef", "0.01", "--out", str(tmp_path / "out"), "--steps", "1"])
    assert float(metrics(tmp_path / "out")[0]["grad_norm"]) > 0
    rollout = train.Rollout.pack([[1], [2]], [[3], [4, 5], [6], [7]], 2)
    rollout.rewards = torch.tensor([1.0, 3.0, 0.0, 0.0])
    assert maxrl.advantages(rollout, maxrl.Config(group_size=2)).tolist() == [[-.5, 0], [.5, .5], [0, 0], [0, 0]]


def test_presets_reach_the_run(tmp_path):
    train.main([*SMALL, "--variant", "dapo", "--out", str(tmp_path), "--steps", "1"])
    flags = json.load(open(tmp_path / "config.json"))["flags"]
    assert (flags["clip_high"], flags["resample"], flags["overlong"], flags["kl_coef"], flags["aggregate"]) == (0.28, 3, 0.2, 0.0, "token")


# --- bad input: one line, status 2, no traceback ----------------------------------------------------------------------

def refused(capsys, main, argv, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "Traceback" not in err, err
    for word in words:
        assert str(word) in err, err


@pytest.mark.parametrize("argv, words", [
    (["--no_such_flag", 3], ["--no_such_flag"]),
    (["--step", 3], ["--step"]),                                 # no guessing of abbreviations
    (["--steps", "many"], ["--steps", "many"]),
    (["--resume", "maybe"], ["--resume", "maybe"]),
    (["--algo", "sarsa"], ["sarsa", "grpo"]),
    (["--task", "nothing"], ["nothing", "pairs"]),
    (["--group_size", 1], ["group_size 1"]),
    (["--problems", 0], ["problems 0", "at least 1"]),
    (["--temperature", 0], ["temperature 0", "above 0"]),
    (["--kl", "k9"], ["k9", "k3"]),
    (["--dtype", "float8"], ["float8", "bfloat16"]),
    (["--gamma", 0.9], ["--gamma", "--algo ppo", "this run is --algo grpo"]),
    (["--algo", "grpo", "--critic_lr", 1], ["--critic_lr", "--algo ppo"]),
    (["--algo", "ppo", "--scale", "none"], ["--scale", "--algo grpo", "this run is --algo ppo"]),
    (["--algo", "ppo", "--variant", "dapo"], ["--variant", "--algo grpo"]),
    (["--variant", "dapo", "--clip_high", 0.2], ["--clip_high 0.2", "--variant dapo", "0.28"]),
    (["--variant", "gspo", "--ratio", "token"], ["--ratio token", "--variant gspo", "sequence"]),
    (["--variant", "dpo"], ["dpo", "dr_grpo"]),
    (["--trust", "me"], ["--trust me", "clip, cap"]),
    (["--cap", -1], ["--cap -1", "0 or more"]),
    (["--eval_sets", -4], ["--eval_sets -4", "0 or more"]),
    (["--kl_coef", "nan"], ["--kl_coef nan", "0 or more"]),
    (["--seed", 20_000_000_000_000], ["--seed 20000000000000", "below 1e12"]),
    (["--overlong", 32], ["--overlong 32", "at most 1"]),
    (["--algo", "ppo", "--group_size", 0], ["--group_size 0", "at least 1"]),
    (["--init", "nowhere"], ["nowhere", "config.json"]),
    (["--max_new_tokens", 600], ["context of 512"]),
    (["--task", "missing.jsonl"], ["missing.jsonl"]),
    (["--out", "nowhere", "--resume"], ["nowhere", "state.pt"]),
])
def test_bad_flags(capsys, tmp_path, argv, words):
    refused(capsys, train.main, ["--out", tmp_path, *argv] if "--out" not in argv else argv, *words)
    assert not os.listdir(tmp_path)               # nothing is written before all is known to be right


def test_a_run_is_not_overwritten(capsys, tmp_path):
    train.main([*SMALL, "--out", str(tmp_path), "--steps", "1"])
    files = {f: (tmp_path / f).read_bytes() for f in ("metrics.csv", "eval.csv", "samples.txt", "state.pt")}
    capsys.readouterr()
    refused(capsys, train.main, ["--out", tmp_path], "--resume", tmp_path)
    assert all((tmp_path / f).read_bytes() == data for f, data in files.items())


def test_resume_with_other_flags_is_refused(capsys, tmp_path):
    train.main([*SMALL, "--out", str(tmp_path), "--steps", "1"])
    capsys.readouterr()
    refused(capsys, train.main, ["--out", tmp_path, "--resume", "--gamma", 0.9], "--gamma", "--algo ppo")
    for flag, new, old in (("--group_size", 8, 4), ("--lr", 0.1, 0.0005), ("--seed", 7, 0), ("--kl", "k2", "k3")):
        capsys.readouterr()
        refused(capsys, train.main, ["--out", tmp_path, "--resume", flag, new], flag, new, old)


def test_a_step_without_any_signal(tmp_path, monkeypatch):
    """All rewards equal and no KL: nothing is run, no weight moves, the row has all its columns."""
    monkeypatch.setattr(evaluate.rewards, "accuracy", lambda *_: 0.0)
    train.main([*SMALL, "--out", str(tmp_path), "--steps", "2", "--kl_coef", "0", "--format_weight", "0"])
    assert torch.equal(weights(tmp_path), torch.cat([p.flatten() for p in GPT.load("data/base").parameters()]))
    assert [(r["zero_groups"], r["grad_norm"], r["gap"]) for r in metrics(tmp_path)] == [("1", "0", "nan")] * 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "pickle", "pickle in a zip", "other", "list", "folder"])
def test_damaged_checkpoints_are_found(capsys, tmp_path, damage):
    train.main([*SMALL, "--out", str(tmp_path), "--steps", "1"])
    capsys.readouterr()
    path = tmp_path / "state.pt"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1                 # inside a tensor: torch.load alone would not notice
    if damage == "folder":        # one bit in the directory of the archive: the tensor would be a folder, without bytes
        data[data.rindex(b"PK\x01\x02", 0, data.rindex(b"/data/0")) + 38] ^= 16
    canary = tmp_path / "canary"
    if damage == "pickle in a zip":
        torch.save({"policy": train.Config}, path)
    elif damage == "other":
        torch.save({"step": 3}, path)
    elif damage == "list":
        torch.save([3], path)
    else:
        path.write_bytes({"cut": data[:len(data) // 2], "flip": data, "folder": data, "empty": b"", "pickle":
                          b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."}[damage])
    refused(capsys, train.main, ["--out", tmp_path, "--resume", "--steps", 2], "state.pt")
    assert not canary.exists()


@pytest.mark.parametrize("damage, words", [
    ("cut", ["model.safetensors"]), ("pickle", ["model.safetensors"]), ("missing", ["model.safetensors"]),
    ("shape", ["layers.0.mlp.down_proj.weight", "320", "352"]), ("extra", ["lm_head.weight"]), ("foreign", ["mamba"]),
    ("heads", ["num_key_value_heads 0"]), ("ranks", ["tokenizer.tiktoken:3"]), ("bytes", ["tokenizer.tiktoken"])])
def test_foreign_models_are_refused(capsys, tmp_path, damage, words):
    model = tmp_path / "model"
    shutil.copytree("data/base", model)
    weights, config = model / "model.safetensors", model / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "pickle":
        torch.save(GPT.load("data/base").state_dict(), weights)
    elif damage == "missing":
        weights.unlink()
    elif damage == "shape":
        config.write_text(config.read_text().replace('"intermediate_size": 320', '"intermediate_size": 352'))
    elif damage == "extra":
        config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    elif damage == "heads":
        config.write_text(config.read_text().replace('"num_key_value_heads": 4', '"num_key_value_heads": 0'))
    elif damage == "foreign":
        config.write_text(config.read_text().replace('"llama"', '"mamba"'))
    else:
        lines = (model / "tokenizer.tiktoken").read_text().splitlines()
        lines = lines[:2] + ["?"] + lines[3:] if damage == "ranks" else lines[1:]
        (model / "tokenizer.tiktoken").write_text("\n".join(lines))
    refused(capsys, train.main, ["--out", tmp_path / "out", "--init", model], *words)


@pytest.mark.parametrize("row, reason", [
    (b'{"prompt": "a"', "delimiter"), (b"[1]", "list"), (b'{"prompt": "a"}', "answer"), (b'{"prompt": "a", "answer": 3}', "answer"),
    (b'{"prompt": "", "answer": "3"}', "prompt"), (b"\xff\xfe", "utf-8"), (b"[" * 100_000, "")])
def test_malformed_data(capsys, tmp_path, row, reason):
    path = tmp_path / "data.jsonl"
    good = b'{"prompt": "1+1?", "answer": "2"}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + good * 15 + b"\r\n" + row + b"\n" + good + b"\n")
    refused(capsys, train.main, ["--task", path, "--out", tmp_path / "out"], f"{path}:17: ", reason)
    path.write_bytes(b"\xef\xbb\xbf" + good * 15 + b"\r\n" + good + b"\n")
    assert len(jsonl.read(str(path), ("prompt", "answer"))) == 16        # BOM, CRLF and blank lines are fine


def test_bad_input_elsewhere(capsys, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    refused(capsys, sft.main, ["--data", tmp_path / "pairs.jsonl", "--init", "data/base", "--out", tmp_path], "pairs.jsonl:2: ")
    refused(capsys, sft.main, ["--init", "data/base", "--out", tmp_path], "--data")
    refused(capsys, evaluate.main, ["--model", tmp_path], tmp_path, "config.json")
    refused(capsys, plot.main, [tmp_path], "metrics.csv")
    refused(capsys, plot.main, [], "runs")
    for argv, word in ((["--k", 0], "--k 0"), (["--temperature", -1], "--temperature"), (["--device", "tpu"], "tpu"),
                       (["--max_new_tokens", 600], "context"), (["--keep", tmp_path / "no" / "file"], "no/file")):
        refused(capsys, evaluate.main, ["--model", "data/base", *argv], word)
    for argv, word in ((["--batch", 0], "--batch 0"), (["--warmup", 0], "--warmup 0"), (["--dtype", "f8"], "f8")):
        refused(capsys, sft.main, ["--data", "x", "--init", "data/base", "--out", tmp_path, *argv], word)
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "a " * 300, "response": "b " * 300}))
    refused(capsys, sft.main, ["--data", tmp_path / "long.jsonl", "--init", "data/base", "--out", tmp_path], "512")


# --- data -----------------------------------------------------------------------------------------------------------

def test_held_out_problems_are_in_nothing_that_is_trained_on():
    import random
    key = lambda p: (tuple(sorted(p["numbers"])), p["target"])
    problems, sets = load_task("pairs")
    test = {key(p) for held_out in sets.values() for p in held_out}
    assert len(test) > 300 and not test & {key(p) for p in problems}
    assert all(pairs.held_out(*k) for k in test) and not any(pairs.held_out(*key(p)) for p in problems)
    assert {len(p["numbers"]) for p in problems} == {3, 4}
    rng = random.Random(0)
    for _ in range(2000):
        words = pairs.document(rng)["prompt"].split()
        if words[1] in ("make", "forma"):
            numbers = [int(n) for n in words[4:-1]]
            assert not pairs.held_out(numbers, int(words[2])) and len(numbers) <= 5
    assert all(any(v == p["target"] for _, v in pairs.candidates(p["numbers"])) for p in problems)


def test_problems_of_a_step_cover_the_epoch_and_depend_on_nothing_else():
    config, data = train.Config(problems=5, seed=3), list(range(12))
    seen = [x for step in range(12) for x in train.problems_of(step, data, config)]
    assert all(sorted(seen[i:i + 12]) == data for i in range(0, 60, 12)) and seen[:12] != seen[12:24]
    assert train.problems_of(7, data, config) == seen[35:40]


def test_tokenizer_is_tiktoken_and_round_trips():
    tokenizer = Tokenizer.load("data/base")
    import tiktoken
    assert isinstance(tokenizer.encoding, tiktoken.Encoding)
    for text in ("User: make 11 from 9 7 10 1\nAssistant:", "<think>\n9+7=16 no\n</think>\n<answer>10+1</answer>",
                 "naïve 漢字 🙂 \x00\x01 ²٣ <|end|>", "12345 \r\n\t  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer.eos_id not in tokenizer.encode(text)
    assert [len(tokenizer.encode(str(n))) for n in range(133) if n < 25 or n % 12 == 0] == [1] * 34
    assert tokenizer.decode([tokenizer.eos_id]) == "<|end|>"


def test_sft_learns_and_keeps_the_format(tmp_path):
    rows = [{"prompt": f"User: say {i}\nAssistant:", "response": f"so {i}"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sft.main(["--data", str(tmp_path / "pairs.jsonl"), "--init", "data/base", "--out", str(tmp_path / "new"), "--steps", "60",
              "--batch", "8", "--lr", "1e-3", "--muon_lr", "0.01"])
    model, tokenizer = GPT.load(str(tmp_path / "new")), Tokenizer.load(str(tmp_path / "new"))
    problems = [r | {"kind": "math", "answer": "0"} for r in rows]
    groups = evaluate.responses(model, tokenizer, problems, 1, 8, temperature=0.0)
    assert sum(group[0]["text"] == r["response"] + "<|end|>" for group, r in zip(groups, rows)) >= 7


def test_save_and_load(tiny, tmp_path):
    for changes in (dict(), dict(qkv_bias=True), dict(qk_norm=True, tie_embeddings=False, head_dim=16)):
        model = tiny(**changes)
        model.save(tmp_path)
        back = GPT.load(tmp_path)
        assert back.config == model.config
        ids = torch.randint(37, (2, 9))
        assert torch.equal(model.logits(model(ids)), back.logits(back(ids)))


def test_the_memory_of_a_backward_pass_is_counted(tmp_path, capsys):
    """Counted from one and two layers and one and two rows, it holds for four layers and five rows; --dry_run prints it."""
    config, seen = GPT.load(os.path.join(ROOT, "data", "base")).config, [{}, {}]
    model = GPT(config)
    for rows, found in zip((5, 6), seen):
        with torch.autograd.graph.saved_tensors_hooks(
                lambda x: found.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) and x, lambda x: x):
            hidden = model(torch.zeros(rows, 64, dtype=torch.long))
    want = (sum(seen[1].values()) - sum(seen[0].values())) / 64
    assert abs(memory.saved_bytes(config, torch.autocast("cpu", enabled=False), "cpu") / want - 1) < 0.02
    with pytest.raises(SystemExit) as stopped:
        train.main(["--dry-run", f"--out={tmp_path}/a-b"])
    assert not stopped.value.code and "peak" in capsys.readouterr().out and not os.listdir(tmp_path)
