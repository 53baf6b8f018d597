"""Group Relative Policy Optimization, on one page. Read it beside ppo.py: same names, same order.

For a problem q the old policy writes G responses o_1..o_G, which earn the rewards r_1..r_G.
GRPO maximises J, averaged over the problems of an optimizer step:

    A_i     = (r_i - mean(r_1..r_G)) / std(r_1..r_G)                                     (1)
    ratio   = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)                              (2)
    clip_it = min( ratio A_i, clip(ratio, 1 - clip_low, 1 + clip_high) A_i )             (3)
    kl_it   = pi_ref / pi - log(pi_ref / pi) - 1           the estimator k3, never < 0   (4)
    J       = 1/G sum_i 1/|o_i| sum_t [ clip_it - kl_coef * kl_it ]                      (5)

No critic: the group is the baseline. DeepSeekMath (arXiv 2402.03300): (1) section 4.1.2, (4) eq. 4,
(5) eq. 3. DeepSeek-R1 (arXiv 2501.12948): (1) eq. 3, (4) eq. 2, (5) eq. 1 but for point 1 below.

Differs from the paper:
 1. The ratio is per token and each response is averaged over its tokens, as in DeepSeekMath. R1
    prints one ratio for a whole response: `--algo r1`. variants.py has the others.
 2. std is the population's, without an epsilon. Where all rewards of a group are equal A is 0.
 3. The clip is 0.2 to either side (R1: 10 in its first RL stage).
 4. A rollout is split over 4 optimizer steps (R1: 16). With `--minibatches 1` and one epoch the
    ratio is exactly 1 and nothing is clipped (unless `--lag` makes the rollout an older one).
 5. A response whose reward is NaN (could not be determined) takes no part in the group's
    statistics and has A = 0; it still counts in the mean (5) and pays its KL.
"""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from logprobs import response_logprobs
from plumbing.flags import Flags, flag

# columns of metrics.csv, and those of them that the line of a step shows
METRICS = "kl entropy clip_low clip_high mean_abs_log_ratio".split()
SHOWN = "kl entropy".split()


@dataclass
class Config(Flags):
    group_size: int = flag(16, "G, responses per problem", at_least=2, at_most=4096)
    clip_low: float = flag(0.2, "the ratio is clipped below 1 - clip_low")
    clip_high: float = flag(0.2, "the ratio is clipped above 1 + clip_high")
    kl_coef: float = flag(0.001, "weight of the KL to the reference; 0: no reference network")
    ref_every: int = flag(400, "optimizer steps until the reference becomes the policy; 0: never")
    minibatches: int = flag(4, "optimizer steps per pass over a rollout", at_least=1)
    epochs: int = flag(1, "passes over a rollout", at_least=1)


def networks(policy, hp):
    """The networks of a run: the policy, and a frozen reference unless the KL is off."""
    ref = copy.deepcopy(policy).requires_grad_(False) if hp.kl_coef else None
    return SimpleNamespace(policy=policy, ref=ref)


def update_reference(nets, rollouts, hp):
    """pi_ref <- pi after every ref_every optimizer steps, when the next rollout begins."""
    steps = hp.minibatches * hp.epochs  # of a rollout
    if nets.ref is not None and hp.ref_every and rollouts * steps % hp.ref_every < steps:
        nets.ref.load_state_dict(nets.policy.state_dict())


@torch.no_grad()
def score(nets, rollout, hp):
    """Fills in what the frozen networks say, once a rollout: ref_logprobs (N, T)."""
    if nets.ref is not None:
        rollout.ref_logprobs, _ = response_logprobs(nets.ref, rollout)


def rewards_differ(rewards):
    """rewards (B, G) -> (B,) bool: has the group a signal? NaN takes no part."""
    highest = rewards.nan_to_num(-torch.inf).amax(1)
    lowest = rewards.nan_to_num(torch.inf).amin(1)
    return highest > lowest


def group_advantages(rewards, group_size):
    """rewards (N,), the G of a group adjacent -> advantages (N,). Equal rewards -> exactly 0.

    (1, 0, 0, 1) -> (1, -1, -1, 1). A NaN reward takes no part and gets 0."""
    if group_size < 2 or len(rewards) % group_size != 0:
        raise ValueError(f"{len(rewards)} rewards do not make groups of {group_size} (at least 2)")
    r = rewards.view(-1, group_size)  # (B, G)
    A = r - r.nanmean(1, keepdim=True)
    A = A / A.square().nanmean(1, keepdim=True).sqrt()  # (1); 0/0 of equal rewards is replaced
    return torch.where(rewards_differ(r)[:, None] & ~r.isnan(), A, 0.0).flatten()


def advantages(rollout, hp):
    """(N, T): one advantage a response, the same at each of its tokens."""
    A = group_advantages(rollout.rewards, hp.group_size)
    return A[:, None] * rollout.response_mask


def weights(mask, hp):
    """mask (N, T) of an optimizer step -> each token's share of its loss, 0 outside the mask."""
    responses = mask.any(1).sum().clamp(min=1)
    return mask / mask.sum(1, keepdim=True).clamp(min=1) / responses  # (5)


def objective(logprobs, old_logprobs, advantages, mask, hp, ref_logprobs=None):
    """All (N, T), mask bool -> objective per token (N, T), and metrics as sums over tokens.

    Padding is ignored, even if it is NaN."""
    logprobs = torch.where(mask, logprobs, 0.0)
    old_logprobs = torch.where(mask, old_logprobs, 0.0)
    A = torch.where(mask, advantages, 0.0)
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()  # (2), without overflow
    clipped = ratio.clamp(1 - hp.clip_low, 1 + hp.clip_high)
    J = torch.minimum(ratio * A, clipped * A)  # (3)
    metrics = {"clip_low": ((ratio < clipped) & (A < 0)).sum()}
    metrics["clip_high"] = ((ratio > clipped) & (A > 0)).sum()
    if ref_logprobs is not None:
        d = logprobs - torch.where(mask, ref_logprobs, 0.0)
        kl = (-d).clamp(max=20).exp() + d.clamp(min=-20) - 1  # (4)
        J = J - hp.kl_coef * kl * mask
        metrics["kl"] = kl.detach().sum()
    return J, metrics


def loss(nets, batch, hp, objective=objective):
    """A micro-batch of an optimizer step -> its part of -J, a scalar, and metrics as above."""
    logprobs, entropy = response_logprobs(nets.policy, batch)
    old_logprobs = batch.old_logprobs
    # pi is pi_old: the ratio is 1, but has a gradient
    if hp.minibatches * hp.epochs == 1 and not batch.lag:
        old_logprobs = logprobs.detach()
    mask = batch.response_mask
    J, metrics = objective(logprobs, old_logprobs, batch.advantages, mask, hp, batch.ref_logprobs)
    metrics["entropy"] = entropy.detach().sum()
    metrics["mean_abs_log_ratio"] = (logprobs.detach() - batch.old_logprobs).abs().sum()
    return -(J * batch.weights).sum(), metrics  # (5)
