"""Group Relative Policy Optimization, on one page. Read it beside ppo.py: same names, same order.

For a problem q the old policy writes G responses o_1..o_G, which earn the rewards r_1..r_G. GRPO maximises

    A_i     = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                                                              (1)
    ratio   = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)                                                       (2)
    clip_it = min( ratio A_i, clip(ratio, 1 - clip_low, 1 + clip_high) A_i )                                      (3)
    kl_it   = pi_ref / pi - log(pi_ref / pi) - 1            the estimator "k3", never negative                    (4)
    J       = 1/G sum_i 1/|o_i| sum_t [ clip_it - kl_coef * kl_it ]                                               (5)

averaged over the problems of an optimizer step. No critic: the group is the baseline.
DeepSeekMath (arXiv 2402.03300): (1) section 4.1.2, (4) eq. 4, (5) eq. 3. DeepSeek-R1 (arXiv 2501.12948): (1) eq. 3, (4)
eq. 2, (5) eq. 1 but for point 1 below.

Differs from the paper:
 1. The ratio is per token and each response is averaged over its tokens, as in DeepSeekMath. R1 prints one ratio for a
    whole response: `--variant r1`. variants.py has the others.
 2. std is the population's, without an epsilon. Where all rewards are equal, by max == min, A is exactly 0.
 3. The clip is 0.2 to either side (R1 used 10 in its first RL stage, which for token ratios means none).
 4. A rollout is split over 4 optimizer steps (R1: 16). With `--minibatches 1` (and 1 epoch) the ratio is exactly 1 and
    nothing is ever clipped.
 5. A reward that could not be determined (NaN) is left out of the group's statistics and its response gets A = 0; it
    still counts in the mean (5) and pays its KL. PPO leaves it out altogether.
"""
import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from flags import check
from logprobs import response_logprobs
from variants import CHOICES, kl_estimate, pooled


@dataclass
class Config:
    group_size: int = 16          # G, responses per problem
    variant: str = ""             # grpo, r1, dr_grpo, dapo, gspo, cispo, rloo or reinforce: sets flags (variants.py)
    baseline: str = "group"       # subtracted from a reward: group (its mean), others (the mean of the others), none
    scale: str = "group"          # advantages are divided by their rms over the: group (its std), batch; or none
    ratio: str = "token"          # pi / pi_old of: token, sequence (GSPO: geometric mean over the response), product
    trust: str = "clip"           # a ratio is: clip (clipped as below), cap (CISPO: a weight of log pi, up to --cap)
    cap: float = 5.0              # of --trust cap: the largest weight itself, not 1 + cap; above e^20 it is no cap
    clip_low: float = 0.2         # the ratio is clipped below 1 - clip_low
    clip_high: float = 0.2        # and above 1 + clip_high
    kl_coef: float = 0.001        # weight of the KL penalty to the reference; 0: no reference network at all
    kl: str = "k3"                # its estimator: k3 (the paper), k2, rk3 (ratio * k3), k1; reward: k1 off r, unscaled
    ref_every: int = 400          # the reference becomes a copy of the policy every so many steps; 0: never
    aggregate: str = "sequence"   # each token's share: sequence (1/|o_i|, then mean), token (1/all tokens), constant
    constant: int = 160           # tokens per response that `--aggregate constant` divides by
    minibatches: int = 4          # optimizer steps per pass over a rollout
    epochs: int = 1               # passes over a rollout

    def __post_init__(self):
        check(self, ("constant", "minibatches", "epochs"), ("group_size",), **CHOICES)


def networks(policy, hp):
    """The networks of a run: the policy, and the frozen reference unless the KL is off."""
    return SimpleNamespace(policy=policy, ref=copy.deepcopy(policy).requires_grad_(False) if hp.kl_coef else None)


@torch.no_grad()
def score(nets, rollout, hp):
    """What the frozen networks say about a rollout, once: ref_logprobs (N, T)."""
    if nets.ref is not None:
        rollout.ref_logprobs = response_logprobs(nets.ref, rollout)[0]


def group_advantages(rewards, group_size, scale="group", baseline="group"):
    """rewards (N,), the G of a group adjacent -> advantages (N,).

    (1, 0, 0, 1) -> (1, -1, -1, 1).  A group of equal rewards -> exactly 0, if there is a baseline.
    A NaN reward takes no part and gets 0."""
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards do not make groups of {group_size} (at least 2)")
    r = rewards.view(-1, group_size)                                                                            # (B, G)
    known = ~r.isnan()
    signal = r.nan_to_num(-torch.inf).amax(1, keepdim=True) != r.nan_to_num(torch.inf).amin(1, keepdim=True)    # (B, 1)
    A = r - r.nanmean(1, keepdim=True)
    if baseline == "none":
        A, signal = r, r != 0
    elif baseline == "others":                     # r - mean of the others = G / (G - 1) (r - mean)
        A = A * known.sum(1, keepdim=True) / (known.sum(1, keepdim=True) - 1)
    if scale == "group":
        A = A / A.square().nanmean(1, keepdim=True).sqrt()                                                      # (1)
    A = torch.where(known & signal, A, 0.0)
    if scale == "batch" and A.any():
        A = A / A[known].square().mean().sqrt()
    return A.flatten()


def advantages(rollout, hp):
    """One advantage a response, the same at each of its tokens: (N, T)."""
    A = group_advantages(rollout.rewards, hp.group_size, hp.scale, hp.baseline)
    if hp.kl == "reward" and rollout.ref_logprobs is not None:       # 0 * reward: NaN stays NaN
        price = hp.kl_coef * (rollout.old_logprobs - rollout.ref_logprobs).sum(1) + 0 * rollout.rewards
        A = A - group_advantages(price, hp.group_size, "none", hp.baseline)
    return A[:, None] * rollout.response_mask


def weights(mask, hp):
    """mask (N, T) of one optimizer step -> each token's share of its loss (N, T), 0 outside the mask."""
    rows = mask.any(1).sum().clamp(min=1)
    if hp.aggregate == "sequence":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / rows                                             # (5)
    return mask / (mask.sum().clamp(min=1) if hp.aggregate == "token" else rows * hp.constant)


def objective(logprobs, old_logprobs, advantages, mask, hp, ref_logprobs=None):
    """All (N, T), mask bool -> objective per token (N, T), 0 outside the mask, and metrics as sums over tokens.

    What stands outside the mask has no influence, not even NaN."""
    logprobs, old_logprobs, A = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
    ratio = pooled(logprobs - old_logprobs, mask, hp.ratio).clamp(-20, 20).exp()                                # (2)
    low, high = (1 - hp.clip_low, 1 + hp.clip_high) if hp.trust == "clip" else (0.0, hp.cap)
    clipped = ratio.clamp(low, high)
    J = torch.minimum(ratio * A, clipped * A) if hp.trust == "clip" else clipped.detach() * A * logprobs        # (3)
    metrics = dict(clip_low=((ratio < low) & (A < 0)).sum(), clip_high=((ratio > high) & (A > 0)).sum())
    if ref_logprobs is not None:
        d = logprobs - torch.where(mask, ref_logprobs, 0.0)
        metrics["kl"] = kl_estimate(d.detach()).sum()
        J = J - hp.kl_coef * kl_estimate(pooled(d, mask, hp.ratio), hp.kl, ratio) * mask                        # (4)
    return J, metrics


def loss(nets, batch, hp):
    """A micro-batch of an optimizer step -> (its part of minus J, a scalar; metrics as sums over tokens)."""
    logprobs, entropy = response_logprobs(nets.policy, batch)
    # One update: pi is pi_old, the ratio is 1 exactly, and only its gradient counts.
    old_logprobs = logprobs.detach() if hp.minibatches * hp.epochs == 1 else batch.old_logprobs
    J, metrics = objective(logprobs, old_logprobs, batch.advantages, batch.response_mask, hp, batch.ref_logprobs)
    metrics |= dict(entropy=entropy.detach().sum(), drift=(logprobs.detach() - batch.old_logprobs).abs().sum())
    return -(J * batch.weights).sum(), metrics                                                                  # (5)
