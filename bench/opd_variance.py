"""How much noisier is one estimate of opd.py's gradient than the other?

The gradients of the two at the same rollouts, none of which moves the student: their mean, and how
far a rollout's gradient is from it.

    python bench/opd_variance.py --init STUDENT --teacher FOLDER --lr 1e-3      32 rollouts
"""

import os
import sys
import tempfile

import torch
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import train  # noqa: E402

ROLLOUTS = 32


def gradient(run, rollout):
    """The gradient of a rollout, of all parameters, as one vector."""
    train.score(run, rollout)
    rollout.advantages = run.algo.advantages(rollout, run.hp)
    rollout.weights = run.algo.weights(rollout.response_mask, run.hp)
    run.optimizer.zero_grad()
    everything = torch.ones(len(rollout.response_ids), dtype=torch.bool)
    train.accumulate_gradient(run, rollout, everything, {})
    return torch.cat([p.grad.flatten() for p in run.nets.policy.parameters()])


def main(flags):
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for estimate in ("full", "token"):
            place = ["--estimate", estimate, "--out", f"{folder}/{estimate}"]
            runs[estimate] = train.setup(["--algo", "opd", *flags, *place])
        gradients = {estimate: [] for estimate in runs}
        for step in tqdm(range(ROLLOUTS), disable=None):
            for estimate, run in runs.items():
                rollout, _ = train.collect_rollout(run, step)
                gradients[estimate].append(gradient(run, rollout))
    means = {}
    for estimate, vectors in gradients.items():
        vectors = torch.stack(vectors)
        means[estimate] = vectors.mean(0)
        noise = (vectors - means[estimate]).square().sum(1).sum() / (ROLLOUTS - 1)
        # the mean of n noisy vectors is longer than the true one by noise / n
        signal = means[estimate].square().sum() - noise / ROLLOUTS
        print(f"{estimate}: |mean| {signal.clamp(min=0).sqrt():.4f}, noise {noise.sqrt():.4f}")
    cosine = torch.cosine_similarity(means["full"], means["token"], dim=0)
    print(f"cosine of the two means: {cosine:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
