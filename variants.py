"""Published variants of GRPO as choices on five axes, and the formulas that a choice can need.

    python train.py --variant dapo             the preset; a flag that contradicts it is refused
    python train.py --ratio sequence           or any axis by its own flag

For one response with T tokens, advantage A, r_t = pi / pi_old, and sg() for "no gradient here", what differs is

    grpo       A = (R - mean) / std     min(r_t A, clip(r_t) A)                   mean over T          arXiv 2402.03300
    r1         the same                 the same with r = prod_t r_t, clip 10     (one number)         arXiv 2501.12948
    dr_grpo    A = R - mean             as grpo                                   sum / constant       arXiv 2503.20783
    dapo       as grpo                  as grpo, clipped above at 1.28            sum / all tokens     arXiv 2503.14476
    gspo       as grpo                  as grpo with r = (prod_t r_t)^(1/T)       (one number)         arXiv 2507.18071
    cispo      as grpo                  sg(min(r_t, cap)) A log pi_t              sum / all tokens     arXiv 2506.13585
    rloo       A = R - mean of others   sg(r_t) A log pi_t, KL (k1) in the reward sum / constant       arXiv 2402.14740
    reinforce  A = R                    sg(r_t) A log pi_t                        sum / constant       Williams 1992

grpo and r1 keep the KL penalty (k3), the others have none unless the row says so. dapo also replaces groups without a
signal by groups of new problems (at most 3 samplings a step) and lowers the reward of responses in the last fifth
before the limit. With one optimizer step a rollout r_t is 1. What a preset does not name (clip 0.2 of grpo and
dr_grpo, say) is free.
"""
import torch

CHOICES = dict(baseline=("group", "others", "none"), scale=("group", "batch", "none"),
               ratio=("token", "sequence", "product"), trust=("clip", "cap"),
               aggregate=("sequence", "token", "constant"), kl=("k1", "k2", "k3", "rk3", "reward"))
PRESETS = {name: dict(zip(CHOICES, axes.split())) | more for name, axes, more in [
    # name        baseline scale ratio  trust aggregate
    ("grpo",      "group  group token    clip sequence", dict(kl="k3")),
    ("r1",        "group  group product  clip sequence", dict(kl="k3", clip_low=10.0, clip_high=10.0)),
    ("dr_grpo",   "group  none  token    clip constant", dict(kl_coef=0.0)),
    ("dapo",      "group  group token    clip token", dict(kl_coef=0.0, clip_high=0.28, resample=3, overlong=0.2)),
    ("gspo",      "group  group sequence clip sequence", dict(kl_coef=0.0, clip_low=3e-4, clip_high=4e-4)),
    ("cispo",     "group  group token    cap  token", dict(kl_coef=0.0, cap=5.0)),
    ("rloo",      "others none  token    cap  constant", dict(kl="reward", cap=1e9)),
    ("reinforce", "none   none  token    cap  constant", dict(kl_coef=0.0, cap=1e9))]}
CHOICES["variant"] = ("", *PRESETS)


def kl_estimate(d, kind="k3", ratio=1.0):
    """d = log pi - log pi_ref of sampled tokens -> estimate of KL(pi || pi_ref) at each (Schulman 2020).

    As a loss, where pi = pi_old, k3 has the gradient of KL(pi_ref || pi), the other direction; k2 that of
    KL(pi || pi_ref); k1 none at all in expectation. ratio * k3 has that of KL(pi || pi_ref) wherever pi is.
    tests/test_grpo.py shows it by enumeration."""
    if kind in ("k1", "k2"):
        return d if kind == "k1" else d.square() / 2
    if kind == "reward":                           # it has been taken off the reward
        return torch.zeros_like(d)
    k3 = (-d).clamp(max=20).exp() + d.clamp(min=-20) - 1                                                           # (4)
    return ratio * k3 if kind == "rk3" else k3


def pooled(x, mask, kind):
    """Log-ratios per token (N, T), 0 outside the mask -> of what `kind` compares: each token, or the whole response,
    the same number at all its tokens: their product, or (sequence) its T-th root."""
    if kind == "token":
        return x
    total = x.sum(1, keepdim=True) / (mask.sum(1, keepdim=True).clamp(min=1) if kind == "sequence" else 1)
    return torch.where(mask, total, 0.0)


def process_advantages(rewards, group_size):
    """Process supervision (DeepSeekMath, section 4.1.3): a reward at the end of each step of a response.

    rewards (N, T), NaN where no step ends -> advantages (N, T): rewards are normalised over all steps of the group, as
    those of whole responses are, and a token's advantage is the sum over the steps that end at it or after it."""
    from grpo import group_advantages              # here, since grpo.py imports this file
    z = group_advantages(rewards.flatten(), group_size * rewards.shape[1])
    return z.view_as(rewards).flip(1).cumsum(1).flip(1)
