"""Would the tests notice? Each row breaks one thing in a copy of the repository and expects the named test to fail."""
import os
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT

MUTATIONS = {
    "the clip sign": ("grpo.py", "torch.minimum(ratio * A, clipped * A)", "torch.maximum(ratio * A, clipped * A)", "grpo", "clip"),
    "the mask shift": ("logprobs.py", "model(rollout.response_ids[:, :-1], cache.select(group))",
                       "model(rollout.response_ids[:, 1:], cache.select(group))", "logprobs", "shift"),
    "the std": ("grpo.py", "A / A.square().nanmean(1, keepdim=True).sqrt()", "A / r.std(1, keepdim=True)", "grpo", "worked or definition"),
    "the EOS bit": ("sampler.py", "token * alive, logprob * alive, alive\n", "token * alive, logprob * alive, alive & ~ends[token]\n",
                    "sampler", "eos"),
    "equal rewards": ("grpo.py", "torch.where(known & signal, A, 0.0)", "torch.where(known, A, 0.0)", "grpo", "equal"),
    "temperature": ("logprobs.py", "if logits.dtype.itemsize < 4 else logits) / temperature", "if logits.dtype.itemsize < 4 else logits)",
                    "sampler", "agree"),
    "lambda": ("ppo.py", "A[:, t] += gamma * lam * A[:, t + 1]", "A[:, t] += gamma * A[:, t + 1]", "ppo", "gae"),
    "the state after the end": ("ppo.py", "(torch.where(mask, x, 0.0) for x in (rewards, values))", "(rewards, values)", "ppo", "gae"),
    "whitening": ("ppo.py", "torch.std_mean(A[mask], correction=0)", "torch.std_mean(A, correction=0)", "ppo", "lambda_1 or padding"),
    "the value clip": ("ppo.py", "torch.maximum((values", "torch.minimum((values", "ppo", "value"),
    "where the KL goes": ("ppo.py", "rewards = -hp.kl_coef", "rewards = hp.kl_coef", "ppo", "kl"),
    "an unknown reward": ("ppo.py", " & ~rollout.rewards.isnan()[:, None]", "", "ppo", "unknown"),
    "CISPO's weight": ("grpo.py", "clipped.detach() * A * logprobs", "clipped * A * logprobs", "variants", "formula"),
    "GSPO's root": ("variants.py", 'if kind == "sequence" else 1', 'if kind == "product" else 1', "variants", "formula"),
    "the target of a tile": ("logprobs.py", "d[inside, y[inside]] += known[1, inside]", "d[inside, y[inside]] += 1", "logprobs", "definition"),
    "a kept tile": ("logprobs.py", "z = TokenLogprobs.logits(hidden, weight, r, v, ctx.temperature) if z is None else z",
                    "z = TokenLogprobs.logits(hidden, weight, r, v, 1.0) if z is None else z", "logprobs", "definition"),
    "a maximum of tiles": ("logprobs.py", "state[1] * old + p.sum(1)", "state[1] + p.sum(1)", "logprobs", "definition"),
    "the draw": ("sampler.py", "u[:, None].double() * cdf[:, -1:], right=True", "u[:, None].double() * cdf[:, -1:], right=False", "sampler", "distribution"),
    "the draw in pieces": ("sampler.py", "logits.split(rows), u.split(rows)", "logits.split(rows), u.flip(0).split(rows)", "sampler", "pieces"),
    "the future": ("model.py", "attend = key <= column[:, None]", "attend = key <= column[:, None] + 1", "sampler", "cached or future"),
    "padding": ("model.py", "real = key >= start[:, None, None]", "real = key >= 0 * start[:, None, None]", "sampler", "padding"),
    "a cache row": ("model.py", "tuple(x.index_select(0, rows) for x in pair) for pair in", "tuple(x.index_select(0, rows.flip(0)) for x in pair) for pair in",
                    "sampler", "agree"),
    "a shared prompt": ("model.py", "index_select(0, self.place)", "index_select(0, self.place.flip(0))", "sampler", "agree"),
    "the frozen networks": ("train.py", "getattr(rollout, name)[piece, :found.shape[1]] = found", "getattr(rollout, name)[:len(piece), :found.shape[1]] = found",
                            "train", "frozen_networks"),
    "the better answer": ("reward_model.py", "return better - worse", "return worse - better", "r1", "preference_and_is"),
    "the last token": ("reward_model.py", "batch.lengths[:, None] - 1", "batch.lengths[:, None] - 2", "r1", "score"),
    "rejection": ("evaluate.py", 'row["accuracy"] == row["format"] == row["language"] == 1', 'row["accuracy"] == row["format"] == 1', "r1", "rejection"),
    "the normaliser": ("grpo.py", "mask.sum(1, keepdim=True).clamp(min=1) / rows", "mask.shape[1] / rows", "grpo", "weights or cut"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_line_is_noticed(name, tmp_path):
    path, right, wrong, where, which = MUTATIONS[name]
    for entry in os.listdir(ROOT):
        if entry.endswith(".py"):
            shutil.copy(os.path.join(ROOT, entry), tmp_path)
    os.symlink(os.path.join(ROOT, "data"), tmp_path / "data")
    shutil.copytree(os.path.join(ROOT, "tests"), tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    source = (tmp_path / path).read_text()
    assert source.count(right) == 1, "the mutation no longer applies"
    (tmp_path / path).write_text(source.replace(right, wrong))
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/test_{where}.py", "-k", which],
                         cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and " failed" in run.stdout, run.stdout + run.stderr
