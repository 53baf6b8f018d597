"""Group Relative Policy Optimization, on one page.

For a problem q the old policy writes G responses o_1..o_G, which earn the rewards r_1..r_G. GRPO maximises

    A_i     = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                                                              (1)
    ratio   = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)                                                       (2)
    clip_it = min( ratio A_i, clip(ratio, 1 - clip_low, 1 + clip_high) A_i )                                      (3)
    kl_it   = pi_ref / pi - log(pi_ref / pi) - 1            the estimator "k3", never negative                    (4)
    J       = 1/G sum_i 1/|o_i| sum_t [ clip_it - kl_coef * kl_it ]                                               (5)

(1) is section 4.1.2 of DeepSeekMath (arXiv 2402.03300) and eq. 3 of DeepSeek-R1 (arXiv 2501.12948); (4) is eq. 4 there
and eq. 2 of R1; (5) is eq. 3 there and, but for point 1 below, eq. 1 of R1. No critic: the group is the baseline.

Differs from the paper:
 1. The ratio is per token and each response is averaged over its tokens, as in DeepSeekMath. R1 prints one ratio for a
    whole response. With one update per rollout, the default here, both ratios are 1; the clip terms' gradients then
    differ by 1/|o_i|.
 2. std is the population's, without an epsilon. Where all rewards are equal, by max == min, A is exactly 0.
 3. The clip is 0.2 to either side (R1 used 10 in its first RL stage, which for token ratios means none).
 4. One optimizer step a rollout (R1 splits one rollout over 16), so that every gradient is on-policy.
 5. A reward that could not be determined (NaN) is left out of the group's statistics and its response gets A = 0.
"""
import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from flags import check
from logprobs import response_logprobs


@dataclass
class Config:
    group_size: int = 16          # G, responses per problem
    scale: str = "group"          # advantages are divided by: group (the group's std), batch (their rms over all), none
    clip_low: float = 0.2         # the ratio is clipped below 1 - clip_low
    clip_high: float = 0.2        # and above 1 + clip_high
    kl_coef: float = 0.001        # weight of the KL penalty to the reference; 0: no reference network at all
    kl: str = "k3"                # estimator of that KL: k3 (the paper), k2, rk3 (ratio * k3), k1
    ref_every: int = 400          # the reference becomes a copy of the policy every so many steps; 0: never
    aggregate: str = "sequence"   # each token's share: sequence (1/|o_i|, then mean), token (1/all tokens), constant
    constant: int = 160           # tokens per response that `--aggregate constant` divides by
    minibatches: int = 1          # optimizer steps per pass over a rollout
    epochs: int = 1               # passes over a rollout

    def __post_init__(self):
        check(self, ("constant", "minibatches", "epochs"), scale=("group", "batch", "none"),
              kl=("k1", "k2", "k3", "rk3"), aggregate=("sequence", "token", "constant"))
        if self.group_size < 2:
            raise ValueError(f"--group_size {self.group_size}: a group needs at least 2 responses to compare")


def networks(policy, hp):
    """The networks of a run: the policy, and the frozen reference unless the KL is off."""
    return SimpleNamespace(policy=policy, ref=copy.deepcopy(policy).requires_grad_(False) if hp.kl_coef else None)


@torch.no_grad()
def score(nets, rollout, hp):
    """What the frozen networks say about a rollout, once: ref_logprobs (N, T)."""
    if nets.ref is not None:
        rollout.ref_logprobs = response_logprobs(nets.ref, rollout)[0]


def group_advantages(rewards, group_size, scale="group"):
    """rewards (N,), the G of a group adjacent -> advantages (N,).

    (1, 0, 0, 1) -> (1, -1, -1, 1).  A group of equal rewards -> exactly 0. A NaN reward takes no part and gets 0."""
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not make groups of {group_size} (at least 2)")
    known = ~rewards.isnan().view(-1, group_size)                                                               # (B, G)
    r = rewards.view(-1, group_size).nan_to_num(0.0)
    mean = (r * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    differ = r.masked_fill(~known, -torch.inf).amax(1) != r.masked_fill(~known, torch.inf).amin(1)              # (B,)
    A = torch.where(known & differ[:, None], r - mean, 0.0)
    if scale == "group":
        std = (A.square().sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)).sqrt()
        A = torch.where(A != 0, A / std, 0.0)                                                                   # (1)
    elif scale == "batch" and A.any():
        A = A / A[known].square().mean().sqrt()
    return A.flatten()


def advantages(rollout, hp):
    """One advantage a response, the same at each of its tokens: (N, T)."""
    return group_advantages(rollout.rewards, hp.group_size, hp.scale)[:, None] * rollout.response_mask


def weights(mask, hp):
    """mask (N, T) of one optimizer step -> each token's share of its loss (N, T), 0 outside the mask."""
    rows = mask.any(1).sum().clamp(min=1)
    if hp.aggregate == "sequence":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / rows                                             # (5)
    return mask / (mask.sum().clamp(min=1) if hp.aggregate == "token" else rows * hp.constant)


def kl_estimate(logprobs, ref_logprobs, ratio, kind):
    """Per-token estimate of KL(pi || pi_ref) from the sampled token (Schulman 2020). Shapes as `logprobs`.

    As a loss, k3 has the gradient of KL(pi_ref || pi), the other direction; k2 and ratio * k3 that of KL(pi || pi_ref);
    k1 none at all in expectation. tests/test_grpo.py shows it by enumeration."""
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    k3 = (-d).clamp(max=20).exp() + d - 1                                                                       # (4)
    return ratio * k3 if kind == "rk3" else k3


def objective(logprobs, old_logprobs, advantages, mask, hp, ref_logprobs=None):
    """All (N, T), mask bool -> objective per token (N, T), 0 outside the mask, and metrics as sums over tokens.

    What stands outside the mask has no influence, not even NaN."""
    logprobs, old_logprobs, A = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()                                                      # (2)
    clipped = ratio.clamp(1 - hp.clip_low, 1 + hp.clip_high)
    J = torch.minimum(ratio * A, clipped * A)                                                                   # (3)
    metrics = dict(clip_low=((ratio < 1 - hp.clip_low) & (A < 0)).sum(),
                   clip_high=((ratio > 1 + hp.clip_high) & (A > 0)).sum())
    if ref_logprobs is not None:
        ref_logprobs = torch.where(mask, ref_logprobs, 0.0)
        J = J - hp.kl_coef * kl_estimate(logprobs, ref_logprobs, ratio, hp.kl)                                  # (5)
        metrics["kl"] = kl_estimate(logprobs.detach(), ref_logprobs, ratio.detach(), "k3").sum()
    return J, metrics


def loss(nets, batch, hp):
    """A micro-batch of an optimizer step -> (its part of minus J, a scalar; metrics as sums over tokens)."""
    logprobs, entropy = response_logprobs(nets.policy, batch)
    on_policy = hp.minibatches * hp.epochs == 1   # pi is pi_old: the ratio is 1 exactly, its gradient is what counts
    old_logprobs = logprobs.detach() if on_policy else batch.old_logprobs
    J, metrics = objective(logprobs, old_logprobs, batch.advantages, batch.response_mask, hp, batch.ref_logprobs)
    metrics["entropy"] = entropy.detach().sum()
    metrics["gap"] = (logprobs.detach() - batch.old_logprobs).abs().sum()        # sampler against trainer
    return -(J * batch.weights).sum(), metrics                                                                  # (5)
