"""Published variants of GRPO as one table of choices. Same names, same order as grpo.py.

    python train.py --algo dapo                         a row of the table
    python train.py --algo dapo --clip_high 0.3         with one choice changed
    python train.py --algo custom --ratio sequence      GRPO with one choice changed

For a response with T tokens, advantage A, r_t = pi / pi_old, and sg() for "no gradient", they are

    r1         A = (R - mean) / std     min(r A, clip(r) A), r = prod_t r_t       arXiv 2501.12948
    dr_grpo    A = R - mean             as grpo, sum / constant                   arXiv 2503.20783
    dapo       as grpo                  clipped above at 1.28, sum / all tokens   arXiv 2503.14476
    gspo       as grpo                  as r1 with r = (prod_t r_t)^(1/T)         arXiv 2507.18071
    cispo      as grpo                  sg(min(r_t, cap)) A log pi_t, all tokens  arXiv 2506.13585
    v32        A = R - mean             as grpo, KL (rk3), a mask                 arXiv 2512.02556
    tis        as grpo                  sg(min(r_t, 2)) A log pi_t                Yao et al. 2025
    maxrl      A = (R - mean) / mean    as grpo                                   arXiv 2602.02710
    rloo       A = R - mean of others   sg(r_t) A log pi_t, KL (k1) in the reward arXiv 2402.14740
    reinforce  A = R                    sg(r_t) A log pi_t, sum / constant        Williams 1992

r1 and custom keep GRPO's KL (k3), the others have none unless the row says so. dapo also samples
more problems than it trains on and lowers the reward of overlong responses (RUN_PRESETS).

v32 leaves out responses with A < 0 whose mean_t(log pi_old - log pi) is above a threshold, but not
their KL (section 3.1, eq. 7 to 9). tis makes one update a rollout. There r_t of the others is 1,
that of tis is pi / pi_sampler: the rounding of bfloat16 counts. With several updates the paper
keeps GRPO's clip beside the weight; here the weight takes its place.
"""

from dataclasses import dataclass, replace

import torch

import grpo
from grpo import METRICS, SHOWN, networks, rewards_differ, score, update_reference  # noqa: F401
from plumbing.flags import Flags, flag

REINFORCE = dict(scale="none", trust="cispo", cap=1e9, loss_aggregation="constant")
PRESETS = {
    "custom": dict(),
    "r1": dict(ratio="product", pool_kl=True, clip_low=10.0, clip_high=10.0),
    "dr_grpo": dict(scale="none", loss_aggregation="constant", kl_coef=0.0),
    "dapo": dict(clip_high=0.28, loss_aggregation="token", kl_coef=0.0),
    "gspo": dict(ratio="sequence", clip_low=3e-4, clip_high=4e-4, kl_coef=0.0),
    "cispo": dict(trust="cispo", loss_aggregation="token", kl_coef=0.0),
    "v32": dict(scale="none", kl="rk3", mask_threshold=0.2),
    "tis": dict(trust="tis", cap=2.0, minibatches=1, kl_coef=0.0),
    "maxrl": dict(scale="mean", kl_coef=0.0),
    "rloo": dict(baseline="others", kl="reward", **REINFORCE),
    "reinforce": dict(baseline="none", kl_coef=0.0, **REINFORCE),
}
RUN_PRESETS = {"dapo": dict(dynamic_sampling=3, overlong=0.2)}  # what it sets of train.py's flags

BASELINES = ("group", "others", "none")
SCALES = ("group", "mean", "none")
RATIOS = ("token", "sequence", "product")
AGGREGATIONS = ("sequence", "token", "constant")
TRUSTS = ("clip", "cispo", "tis")
KL_ESTIMATORS = ("k3", "rk3", "reward")


@dataclass
class Config(Flags):
    group_size: int = flag(16, "G, responses per problem", at_least=2, at_most=4096)
    baseline: str = flag("group", "taken off a reward: the mean of the group", choices=BASELINES)
    scale: str = flag("group", "advantages are divided by the group's std, or mean", choices=SCALES)
    ratio: str = flag("token", "pi / pi_old of a token, or of all tokens", choices=RATIOS)
    trust: str = flag("clip", "clipped, or a capped weight; tis: of pi / sampler", choices=TRUSTS)
    cap: float = flag(5.0, "with --trust cispo, tis: the largest weight; above e^20 it is no cap")
    clip_low: float = flag(0.2, "with --trust clip: the ratio is clipped below 1 - clip_low")
    clip_high: float = flag(0.2, "with --trust clip: the ratio is clipped above 1 + clip_high")
    mask_threshold: float = flag(1e9, "A < 0 is left out where mean log(pi_old / pi) is above it")
    kl_coef: float = flag(0.001, "weight of the KL to the reference; 0: no reference network")
    kl: str = flag("k3", "rk3: ratio * k3; reward: k1 taken off the reward", choices=KL_ESTIMATORS)
    pool_kl: bool = flag(False, "the KL, too, is one number a response, as the ratio")
    ref_every: int = flag(400, "optimizer steps until the reference becomes the policy; 0: never")
    loss_aggregation: str = flag("sequence", "a token's share of the loss", choices=AGGREGATIONS)
    constant: int = flag(160, "with --loss_aggregation constant: tokens of a response", at_least=1)
    minibatches: int = flag(4, "optimizer steps per pass over a rollout", at_least=1)
    epochs: int = flag(1, "passes over a rollout", at_least=1)


def unread(hp):
    """The flags that these choices never read. Whoever gives one is told so."""
    names = ["clip_low", "clip_high"] if hp.trust != "clip" else ["cap"]
    if hp.loss_aggregation != "constant":
        names.append("constant")
    if hp.kl_coef == 0:
        names += ["kl", "pool_kl", "ref_every"]
    return names


def group_advantages(rewards, group_size, baseline="group", scale="group"):
    """rewards (N,), the G of a group adjacent -> advantages (N,). A NaN reward gets 0."""
    r = rewards.view(-1, group_size)  # (B, G)
    known = ~r.isnan()
    informative = rewards_differ(r)[:, None]
    mean = r.nanmean(1, keepdim=True)
    A = r - mean
    if baseline == "none":
        A = r
        informative = r != 0
    if baseline == "others":  # r - mean of the n - 1 others = n / (n - 1) (r - mean)
        n = known.sum(1, keepdim=True)
        A = A * n / (n - 1)
    if scale == "group":
        A = A / A.square().nanmean(1, keepdim=True).sqrt()
    if scale == "mean":
        A = torch.where(mean > 0, A / mean, 0.0)
    return torch.where(known & informative, A, 0.0).flatten()


def advantages(rollout, hp):
    """(N, T): one advantage a response, the same at each of its tokens."""
    A = group_advantages(rollout.rewards, hp.group_size, hp.baseline, hp.scale)
    if hp.kl == "reward" and rollout.ref_logprobs is not None:
        kl = (rollout.old_logprobs - rollout.ref_logprobs).sum(1)
        price = torch.where(rollout.rewards.isnan(), torch.nan, hp.kl_coef * kl)
        A = A - group_advantages(price, hp.group_size, hp.baseline, scale="none")
    return A[:, None] * rollout.response_mask


def weights(mask, hp):
    """mask (N, T) of an optimizer step -> each token's share of its loss, 0 outside the mask."""
    if hp.loss_aggregation == "token":
        return mask / mask.sum().clamp(min=1)
    if hp.loss_aggregation == "constant":
        return mask / (mask.any(1).sum().clamp(min=1) * hp.constant)
    return grpo.weights(mask, hp)


def pooled(log_ratio, mask, kind):
    """Log-ratios per token (N, T), 0 outside the mask -> those that `kind` of ratio compares.

    token: as they are; product: the sum over the response at each token; sequence: the mean."""
    if kind == "token":
        return log_ratio
    total = log_ratio.sum(1, keepdim=True)
    if kind == "sequence":
        total = total / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, total, 0.0)


def kl_estimate(d, kind="k3", ratio=1.0):
    """d = log pi - log pi_ref of sampled tokens -> estimate of KL(pi || pi_ref) (Schulman 2020).

    As a loss, where pi = pi_old, k3 has the gradient of KL(pi_ref || pi), the other direction. rk3
    has that of KL(pi || pi_ref), whichever policy sampled."""
    if kind == "reward":  # it has been taken off the reward
        return torch.zeros_like(d)
    k3 = (-d).clamp(max=20).exp() + d.clamp(min=-20) - 1
    return ratio * k3 if kind == "rk3" else k3


def objective(logprobs, old_logprobs, advantages, mask, hp, ref_logprobs=None):
    """All (N, T), mask bool -> objective per token (N, T), and metrics as sums over tokens."""
    logprobs = torch.where(mask, logprobs, 0.0)
    old_logprobs = torch.where(mask, old_logprobs, 0.0)
    A = torch.where(mask, advantages, 0.0)
    ratio = pooled(logprobs - old_logprobs, mask, hp.ratio).clamp(-20, 20).exp()
    if hp.trust == "clip":
        clipped = ratio.clamp(1 - hp.clip_low, 1 + hp.clip_high)
        J = torch.minimum(ratio * A, clipped * A)
    else:
        clipped = ratio.clamp(max=hp.cap)
        J = clipped.detach() * A * logprobs
    masked = (A < 0) & (pooled(old_logprobs - logprobs, mask, "sequence") > hp.mask_threshold)
    J = J.masked_fill(masked, 0.0)
    metrics = {"clip_low": ((ratio < clipped) & (A < 0) | masked).sum()}
    metrics["clip_high"] = ((ratio > clipped) & (A > 0)).sum()
    if ref_logprobs is not None:
        d = logprobs - torch.where(mask, ref_logprobs, 0.0)
        metrics["kl"] = kl_estimate(d.detach()).sum()
        d = pooled(d, mask, hp.ratio if hp.pool_kl else "token")
        J = J - hp.kl_coef * kl_estimate(d, hp.kl, ratio) * mask
    return J, metrics


def loss(nets, batch, hp):
    """A micro-batch of an optimizer step -> its part of -J, a scalar, and metrics as above."""
    if hp.trust == "tis":  # also at one update a rollout: rounding makes the ratio
        batch = replace(batch, lag=1)
    return grpo.loss(nets, batch, hp, objective)
