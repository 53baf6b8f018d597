"""Each published variant against its formula, written out response by response in float64, in value and gradient."""
import math

import pytest
import torch

import grpo
from variants import PRESETS, process_advantages

B, G, T = 3, 4, 7


def setting(on_policy=False):
    """logprobs, old, ref (N, T), rewards (N,), mask, lengths; ratios from 0.1 to 7, NaN outside the mask."""
    g = torch.Generator().manual_seed(4)
    lengths = torch.tensor([7, 1, 4, 6, 2, 5, 3, 7, 6, 4, 1, 5])
    mask = torch.arange(T) < lengths[:, None]
    old = -2 * torch.rand(B * G, T, generator=g, dtype=torch.float64)
    new = old if on_policy else old + 0.8 * torch.randn(B * G, T, generator=g, dtype=torch.float64)
    ref = old + 0.3 * torch.randn(B * G, T, generator=g, dtype=torch.float64)
    rewards = torch.tensor([1, 0, 0.1, 1.1, 0, 0, 1, 0, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    return (*(torch.where(mask, x, torch.nan) for x in (new, old, ref)), rewards, mask, lengths.tolist())


def config(variant, **changes):
    own = {k: v for k, v in PRESETS[variant].items() if k in grpo.Config.__dataclass_fields__}
    return grpo.Config(**dict(group_size=G, variant=variant, constant=10) | own | changes)


def ours(hp, new, old, ref, rewards, mask):
    """Through the code of training: value of the objective and its gradient to each token's log-prob."""
    logp = new.clone().requires_grad_()
    class rollout:
        response_mask, old_logprobs, ref_logprobs = mask, old.nan_to_num(0.0), ref.nan_to_num(0.0) if hp.kl_coef else None
    rollout.rewards = rewards
    J, metrics = grpo.objective(logp, old, grpo.advantages(rollout, hp), mask, hp, ref if hp.kl_coef else None)
    total = (J * grpo.weights(mask, hp)).sum()
    total.backward()
    assert J[~mask].eq(0).all() and logp.grad[~mask].eq(0).all()
    return total.item(), logp.grad, metrics


def by_the_paper(variant, new, old, ref, rewards, lengths, kl_coef=0.0):
    """The formula of variants.py's docstring, in Python, one response at a time."""
    logp, total = new.clone().requires_grad_(), 0.0
    if variant == "rloo":
        rewards = rewards - kl_coef * torch.stack([(old[i, :n] - ref[i, :n]).sum() for i, n in enumerate(lengths)])
    for i, n in enumerate(lengths):
        group = rewards[i // G * G:(i // G + 1) * G]
        others = torch.cat((group[:i % G], group[i % G + 1:]))
        A = {"dr_grpo": rewards[i] - group.mean(), "rloo": rewards[i] - others.mean(), "reinforce": rewards[i]}.get(
            variant, (rewards[i] - group.mean()) / group.std(correction=0) if group.max() > group.min() else 0.0)
        r, d = (logp[i, :n] - old[i, :n]).exp(), logp[i, :n] - ref[i, :n]
        cut = lambda r, low, high: torch.minimum(r * A, r.clamp(1 - low, 1 + high) * A)
        k3 = lambda d: (-d).exp() - 1 + d
        everything = sum(lengths)
        if variant == "grpo":
            total = total + (cut(r, .2, .2) - kl_coef * k3(d)).mean() / len(lengths)
        elif variant == "r1":
            total = total + (cut(r.prod(), 10, 10) - kl_coef * k3(d.sum())) / len(lengths)
        elif variant == "dr_grpo":
            total = total + cut(r, .2, .2).sum() / 10 / len(lengths)
        elif variant == "dapo":
            total = total + cut(r, .2, .28).sum() / everything
        elif variant == "gspo":
            total = total + cut(r.prod() ** (1 / n), 3e-4, 4e-4) / len(lengths)
        elif variant == "cispo":
            total = total + (r.clamp(max=5.0).detach() * A * logp[i, :n]).sum() / everything
        else:                                                     # rloo, reinforce; off-policy: importance weights
            total = total + (r.detach() * A * logp[i, :n]).sum() / 10 / len(lengths)
    total.backward()
    return total.item(), logp.grad


@pytest.mark.parametrize("variant", PRESETS)
def test_each_variant_is_its_formula(variant):
    new, old, ref, rewards, mask, lengths = setting()
    hp = config(variant, **({"kl_coef": 0.07} if "kl_coef" not in PRESETS[variant] else {}))
    value, gradient, _ = ours(hp, new, old, ref, rewards, mask)
    want, by_hand = by_the_paper(variant, new, old, ref, rewards, lengths, hp.kl_coef)
    # everything is float64 but the weights, whose rounding is 6e-8 of each
    assert value == pytest.approx(want, abs=1e-7) and torch.allclose(gradient, by_hand.nan_to_num(0.0), atol=1e-12, rtol=2e-7)
    assert gradient.abs().max() > 1e-3


def test_no_two_variants_are_the_same():
    new, old, ref, rewards, mask, _ = setting()
    gradients = {name: ours(config(name), new, old, ref, rewards, mask)[1] for name in PRESETS}
    assert all(not torch.allclose(gradients[a], gradients[b]) for a in PRESETS for b in PRESETS if a < b)


@pytest.mark.parametrize("variant", PRESETS)
def test_at_ratio_1_all_have_the_reinforce_gradient(variant):
    """Without KL: A / (what the response is divided by) at each token; a whole-response ratio r counts each token fully,
    GSPO's root of it 1/T."""
    new, old, ref, rewards, mask, lengths = setting(on_policy=True)
    hp = config(variant, kl_coef=0.0)
    _, gradient, metrics = ours(hp, new, old, ref, rewards, mask)
    A = grpo.group_advantages(rewards, G, hp.scale, hp.baseline)
    for i, n in enumerate(lengths):
        share = {"r1": 1 / 12, "grpo": 1 / n / 12, "gspo": 1 / n / 12, "dapo": 1 / sum(lengths), "cispo": 1 / sum(lengths)}
        want = [A[i].item() * share.get(variant, 1 / 10 / 12)] * n
        assert gradient[i, :n].tolist() == pytest.approx(want, rel=2e-7, abs=1e-12)
    assert metrics["clip_low"] == metrics["clip_high"] == 0


def test_rloo_is_dr_grpo_times_g_over_g_minus_1():
    for G in (2, 3, 8):
        rewards = torch.rand(4 * G, dtype=torch.float64)
        rloo, dr = (grpo.group_advantages(rewards, G, "none", baseline) for baseline in ("others", "group"))
        assert torch.allclose(rloo, dr * G / (G - 1), atol=1e-14)
    nan = float("nan")                                            # of two known rewards each is the other's baseline
    assert grpo.group_advantages(torch.tensor([1., nan, 0., nan]), 4, "none", "others").tolist() == [1, 0, -1, 0]
    assert grpo.group_advantages(torch.tensor([1., nan, nan, nan]), 4, "none", "others").tolist() == [0, 0, 0, 0]
    assert grpo.group_advantages(torch.full((8,), 0.1), 8, "none", "others").eq(0).all()


def test_kl_in_the_reward_has_a_baseline_but_no_scale():
    """A group of equal rewards learns from its KL alone, at the size of the KL: differences of rounding stay that small."""
    class rollout:
        rewards, response_mask = torch.tensor([0., 0., 1., torch.nan]), torch.ones(4, 2, dtype=torch.bool)
        old_logprobs, ref_logprobs = torch.tensor([[-1., -1.], [-1., -3.], [-1., -1.], [-1., -9.]]), -torch.ones(4, 2)
    A = grpo.advantages(rollout, grpo.Config(group_size=2, kl="reward", kl_coef=0.1))
    assert torch.allclose(A, torch.tensor([[-0.1], [0.1], [0.0], [0.0]]).expand(4, 2))        # KL 0 and -2, mean -1
    rollout.ref_logprobs = rollout.old_logprobs + 1e-6
    assert grpo.advantages(rollout, grpo.Config(group_size=2, kl="reward", kl_coef=0.1)).abs().max() < 1e-6


def test_batch_scale_is_the_rms_over_all_known():
    nan = float("nan")
    A = grpo.group_advantages(torch.tensor([1., 0., 0., 0., 2., 6., nan, nan]), 2, "batch")
    want = torch.tensor([.5, -.5, 0, 0, -2, 2, 0, 0]) / ((2 * .25 + 0 + 2 * 4) / 6) ** 0.5
    assert torch.allclose(A, want)


def test_no_baseline_pays_equal_rewards_too():
    for scale in ("none", "group", "batch"):
        assert grpo.group_advantages(torch.zeros(4), 4, scale, "none").eq(0).all()
    assert grpo.group_advantages(torch.tensor([1., 1., 0., float("nan")]), 4, "none", "none").tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("A", [1.0, -1.0])
def test_cispos_cap_is_absolute_and_drops_no_token(A):
    """At ratio 50 the weight is the cap, 5, not 1 + 5; at ratio 0.1 it is 0.1; both keep their gradient."""
    hp = config("cispo")
    logp = torch.tensor([[50.0, 0.1]], dtype=torch.float64).log().requires_grad_()
    ones = torch.ones(1, 2, dtype=torch.float64)
    J, metrics = grpo.objective(logp, 0 * ones, A * ones, ones.bool(), hp)
    J.sum().backward()
    assert logp.grad[0].tolist() == pytest.approx([5 * A, 0.1 * A])
    assert metrics["clip_low"] == 0


def test_gspo_clips_whole_responses():
    """Two tokens whose ratios cancel are left alone, although each alone is far out."""
    hp, ones = config("gspo"), torch.ones(1, 2, dtype=torch.float64)
    for ratios, clipped in (([4.0, 0.25], 0), ([1.1, 1.1], 2)):
        logp = torch.tensor([ratios], dtype=torch.float64).log().requires_grad_()
        J, metrics = grpo.objective(logp, 0 * ones, ones, ones.bool(), hp)
        J.sum().backward()
        assert metrics["clip_high"] == clipped and (logp.grad.abs().max() == 0) == bool(clipped)


def test_process_supervision_by_hand():
    """Group of two; steps end at columns 1, 3 and at 0, 2. Rewards 1, 0 and 0, 1: mean 1/2, std 1/2, so +1 -1 and -1 +1.
    A token's advantage is the sum over the steps that end at it or later."""
    nan = float("nan")
    rewards = torch.tensor([[nan, 1., nan, 0.], [0., nan, 1., nan]])
    assert process_advantages(rewards, 2).tolist() == [[0, 0, -1, -1], [0, 1, 1, 0]]


def test_process_supervision_with_unequal_step_counts():
    """Rewards 3 | 0, 0: mean over STEPS 1, variance (4 + 1 + 1) / 3 = 2."""
    nan, s = float("nan"), 1 / math.sqrt(2)
    A = process_advantages(torch.tensor([[nan, 3., nan], [0., 0., nan]]), 2)
    assert torch.allclose(A, torch.tensor([[2 * s, 2 * s, 0], [-2 * s, -s, 0]]))


def test_process_supervision_of_one_step_is_outcome_supervision():
    _, _, _, rewards, mask, lengths = setting()
    steps = torch.full(mask.shape, torch.nan, dtype=torch.float64)
    steps[range(len(lengths)), [n - 1 for n in lengths]] = rewards
    outcome = grpo.group_advantages(rewards, G)[:, None] * mask
    assert torch.allclose(process_advantages(steps, G), outcome, atol=1e-12)
    assert process_advantages(steps, G)[8:].eq(0).all()           # the last group's rewards are all equal
    equal = torch.full((7, 1), 0.7)
    assert equal.T.nanmean(1) != equal[0] and process_advantages(equal, 7).eq(0).all()       # by max == min, not by a std that rounds to 0


def test_every_preset_is_a_whole_choice():
    for name, preset in PRESETS.items():
        assert {"baseline", "scale", "ratio", "trust", "aggregate"} <= preset.keys() and {"kl", "kl_coef"} & preset.keys(), name
