"""Direct Preference Optimization: its equation written out, and the program."""

import copy
import math
import random
import shutil

import pytest
import torch
from conftest import flat_gradient, read_csv, stopped_in_step, write_rows
from test_train import refused, repository  # noqa: F401

from data import general
from data.tokenizer import Tokenizer
from model import GPT, Critic
from stages import dpo, reward_model

RESPONSES = ("red", "two red dogs", "a long response of many more tokens", "blue dogs", "no", "so")
PLAN = "<think>\n2 dogs\n</think>\n"
TAGGED = PLAN + "<answer>{}</answer>"
SIDES = ("better", "worse")


@pytest.fixture
def init(tiny, tmp_path):
    """The folder of a tiny random model."""
    folder = tmp_path / "init"
    shutil.copytree("data/base", folder)
    size = Tokenizer.load(folder).vocab_size
    tiny(vocab_size=size, max_seq_len=128).save(folder)
    return folder


def some_pairs(count):
    """Pairs of many lengths."""
    pairs = []
    for i in range(count):
        better, worse = RESPONSES[i % 6], RESPONSES[(i * i + 1) % 6]
        prompt = f"User: list {i}{' dogs' * (i % 3)}\nAssistant:"
        pairs.append({"prompt": prompt, "better": better, "worse": worse})
    return pairs


# --- Equation 7, written out ------------------------------------------------------------------


def wide(model):
    """A copy in float64."""
    model = copy.deepcopy(model).double()
    model.zero_grad()
    return model


def log_pi(model, tokenizer, pair, side):
    """The log of the probability of one whole response, with the softmax of all logits."""
    prompt = tokenizer.encode(pair["prompt"])
    ids = prompt + tokenizer.encode(pair[side]) + [tokenizer.eos_id]
    probabilities = model.logits(model(torch.tensor([ids])))[0].softmax(-1)
    total = 0.0
    for t in range(len(prompt), len(ids)):
        total = total + probabilities[t - 1, ids[t]].log()
    return total


def differences(policy, reference, tokenizer, pairs):
    """log pi(better) / pi_ref(better) - log pi(worse) / pi_ref(worse) of each pair."""
    values = []
    for pair in pairs:
        ratios = []
        for side in SIDES:
            log_pi_ref = log_pi(reference, tokenizer, pair, side).detach()
            ratios.append(log_pi(policy, tokenizer, pair, side) - log_pi_ref)
        values.append(ratios[0] - ratios[1])
    return torch.stack(values)


class OneStep:
    """In place of stages.sft.fit: what the program does with one batch of all training pairs.

    The policy is moved away from --init first."""

    def __init__(self, distance):
        self.distance = distance

    def __call__(self, config, model, tokenizer, pairs, loss):
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.data += self.distance * torch.randn(p.shape, generator=generator)
        self.metrics = loss(pairs)
        self.gradient = flat_gradient(model)
        self.policy = wide(model)
        self.pairs = pairs


def one_step(monkeypatch, init, distance, *flags):
    step = OneStep(distance)
    monkeypatch.setattr(reward_model, "fit", step)
    data = write_rows(init.parent / "pairs.jsonl", some_pairs(30))
    words = ["--data", data, "--init", init, "--out", init.parent / "out", *flags]
    dpo.main([str(word) for word in words])
    return step


def close(a, b):
    return (a - b).norm() < 1e-4 * b.norm()


def test_the_loss_is_equation_7(init, monkeypatch):
    beta = 0.3
    step = one_step(monkeypatch, init, 0.05, "--beta", beta)
    reference, tokenizer = wide(GPT.load(init)), Tokenizer.load(init)
    margin = beta * differences(step.policy, reference, tokenizer, step.pairs)
    assert margin.min() < -0.1 and margin.max() > 0.1
    loss = -torch.log(1 / (1 + torch.exp(-margin))).mean()
    loss.backward()
    assert close(step.gradient, flat_gradient(step.policy))
    expected = {"nll": loss, "accuracy": (margin > 0).double().mean(), "margin": margin.mean()}
    for name, value in expected.items():
        assert step.metrics[name] == pytest.approx(float(value.detach()), rel=1e-4)

    held_out = [pair for pair in some_pairs(30) if pair not in step.pairs]
    assert len(held_out) == 4
    right = differences(step.policy, reference, tokenizer, held_out) > 0
    [row] = read_csv(init.parent / "out" / "eval.csv")
    assert row["set"] == "held-out pairs"
    assert float(row["accuracy"]) == pytest.approx(float(right.double().mean()), abs=1e-5)


def test_at_the_reference(init, monkeypatch):
    """The loss is log 2, and the better responses are trained as much as the worse against."""
    beta = 0.3
    step = one_step(monkeypatch, init, 0.0, "--beta", beta)
    assert step.metrics == {"nll": pytest.approx(math.log(2)), "accuracy": 0, "margin": 0}
    total = 0.0
    for pair in step.pairs:
        for side, sign in (("better", 1), ("worse", -1)):
            total = total + sign * log_pi(step.policy, Tokenizer.load(init), pair, side)
    (-beta / 2 * total / len(step.pairs)).backward()
    assert close(step.gradient, flat_gradient(step.policy))


@pytest.fixture
def policy(init):
    """A policy that has moved away from its reference."""
    policy = GPT.load(init)
    generator = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return policy


def test_swapping_better_and_worse_flips_the_margin(init, policy):
    reference, tokenizer = GPT.load(init), Tokenizer.load(init)
    pairs = some_pairs(6)
    swapped = [pair | {"better": pair["worse"], "worse": pair["better"]} for pair in pairs]
    margins = dpo.margins(policy, reference, tokenizer, 0.1, pairs)
    assert margins.abs().min() > 1e-3
    flipped = dpo.margins(policy, reference, tokenizer, 0.1, swapped)
    assert torch.allclose(margins, -flipped, atol=1e-4)


def test_what_both_responses_begin_with_cancels(init, policy):
    """It may as well be a part of the prompt; as <think> is with --think."""
    reference = GPT.load(init)
    in_response, in_prompt = [], []
    for pair in some_pairs(6):
        responses = {side: TAGGED.format(pair[side]) for side in SIDES}
        answers = {side: response.removeprefix(PLAN) for side, response in responses.items()}
        in_response.append({"prompt": pair["prompt"]} | responses)
        in_prompt.append({"prompt": pair["prompt"] + PLAN} | answers)
    results = []
    for pairs, think in ((in_prompt, False), (in_response, False), (in_response, True)):
        tokenizer = Tokenizer.load(init, think=think)
        results.append(dpo.margins(policy, reference, tokenizer, 0.1, pairs))
    assert results[0].abs().min() > 1e-3
    assert torch.allclose(results[0], results[1], atol=1e-4)
    assert torch.allclose(results[0], results[2], atol=1e-4)


def test_the_reward_model_reads_the_answers_of_the_same_pairs(policy, init):
    torch.manual_seed(0)
    critic = Critic(policy)
    torch.nn.init.normal_(critic.value_head.weight)
    tagged = [pair | {side: TAGGED.format(pair[side]) for side in SIDES} for pair in some_pairs(6)]
    margins = reward_model.margins(critic, Tokenizer.load(init), tagged)
    assert margins.abs().min() > 1e-3
    bare = reward_model.margins(critic, Tokenizer.load(init), some_pairs(6))
    assert torch.equal(margins, bare)


# --- The program ------------------------------------------------------------------------------


def test_bad_files_and_flags(init, tmp_path, capsys):
    pairs = some_pairs(30)
    good = write_rows(tmp_path / "good.jsonl", pairs)
    base = ["--init", init, "--out", tmp_path / "out"]
    files = {
        "part.jsonl:2: no text under 'worse'": [pairs[0], {"prompt": "a", "better": "b"}],
        "few.jsonl: too few pairs": pairs[:1],
        "long.jsonl: the longest": [pair | {"worse": "red " * 150} for pair in pairs],
    }
    for reason, rows in files.items():
        data = write_rows(tmp_path / reason.partition(":")[0], rows)
        refused(capsys, dpo.main, [*base, "--data", data], reason)
    refused(capsys, dpo.main, [*base, "--data", tmp_path / "none.jsonl"], "none.jsonl")
    refused(capsys, dpo.main, base, "--data")
    refused(capsys, dpo.main, ["--data", good, "--init", tmp_path, *base[2:]], "config.json")
    for flag, value in (("--beta", 0.0), ("--batch", 0)):
        refused(capsys, dpo.main, [*base, "--data", good, flag, value], f"{flag} {value}")
    assert not (tmp_path / "out").exists()


def test_dpo_resumes_to_the_same_weights(init, tmp_path, capsys):
    data = write_rows(tmp_path / "pairs.jsonl", some_pairs(30))
    flags = ["--data", data, "--init", init, "--steps", 5, "--batch", 4, "--save_every", 2]

    def run(name, *more):
        dpo.main([str(word) for word in (*flags, "--out", tmp_path / name, *more)])

    run("whole")
    for number, more in ((2, []), (4, ["--resume"])):
        with stopped_in_step(number):
            run("parts", *more)
    other = [*flags, "--out", tmp_path / "parts", "--resume", "--beta", 0.2]
    refused(capsys, dpo.main, other, "state.pt is of a run with other flags, data or init\n")

    run("parts", "--resume")
    whole, parts = GPT.load(tmp_path / "whole"), GPT.load(tmp_path / "parts")
    for p, q, first in zip(*[m.parameters() for m in (whole, parts, GPT.load(init))], strict=True):
        assert torch.equal(p, q) and not torch.equal(p, first)
    logs = {}
    for name in ("whole", "parts"):
        rows = read_csv(tmp_path / name / "metrics.csv")
        evaluation = (tmp_path / name / "eval.csv").read_text()
        logs[name] = [row | {"seconds": 0} for row in rows], evaluation
    assert logs["whole"] == logs["parts"] and len(logs["whole"][0]) == 5


def colours_before_animals(count):
    """One word of three differs: a colour is better than an animal."""
    rng = random.Random(0)
    colours, animals = (general.TOPICS["en"][topic] for topic in ("colours", "animals"))
    pairs = []
    for i in range(count):
        better = rng.sample(colours, 3)
        worse = list(better)
        worse[rng.randrange(3)] = rng.choice(animals)
        texts = {"better": " ".join(better), "worse": " ".join(worse)}
        pairs.append({"prompt": f"User: list {i}\nAssistant:"} | texts)
    return pairs


def test_dpo_learns_what_is_better_in_held_out_pairs(tmp_path):
    pairs = colours_before_animals(300)
    data, out = write_rows(tmp_path / "pairs.jsonl", pairs), tmp_path / "out"
    flags = f"--data {data} --init data/base --out {out} --lr 1e-3 --muon_lr 5e-3 --warmup 1"
    dpo.main(flags.split())
    held_out = [pair for pair in pairs if reward_model.is_held_out(pair)]
    policy, reference, tokenizer = GPT.load(out), GPT.load("data/base"), Tokenizer.load(out)
    right = (differences(policy, reference, tokenizer, held_out) > 0).float().mean()
    assert len(held_out) > 20 and right > 0.8
    [row] = read_csv(out / "eval.csv")
    assert float(row["accuracy"]) == pytest.approx(float(right), abs=0.05)
    assert float(row["nll"]) < math.log(2)
