"""Each published variant against its formula, written out response by response in float64."""

import itertools
import math
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from conftest import sample_rollout, score_rollout, step_gradient

import grpo
import train
import variants
from plumbing.flags import fill
from sampler import Rollout
from start.resume import parse_run
from variants import PRESETS, group_advantages, kl_estimate

F64 = dict(dtype=torch.float64)
NAN = float("nan")
N, G, T = 12, 4, 7


def setting(on_policy=False):
    """A rollout without ids; ratios from 0.1 to 7, NaN outside the mask."""
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([7, 1, 4, 6, 2, 5, 3, 7, 6, 4, 1, 5])
    mask = torch.arange(T) < lengths[:, None]
    old = -2 * torch.rand(N, T, generator=generator, **F64)
    moved = 0.8 * torch.randn(N, T, generator=generator, **F64)
    ref = old + 0.3 * torch.randn(N, T, generator=generator, **F64)
    return SimpleNamespace(
        logprobs=torch.where(mask, old if on_policy else old + moved, torch.nan),
        old_logprobs=torch.where(mask, old, torch.nan),
        ref_logprobs=torch.where(mask, ref, torch.nan),
        rewards=torch.tensor([1, 0, 0.1, 1.1, 0, 0, 1, 0, 0.5, 0.5, 0.5, 0.5], **F64),
        response_mask=mask,
        lengths=lengths.tolist(),
    )


def config(name, **changes):
    preset = dict(PRESETS[name])
    if preset.get("loss_aggregation") == "constant":
        preset["constant"] = 10
    return fill(variants.Config, dict(group_size=G) | preset | changes)


def by_our_code(hp, s, algo=variants):
    """-> advantages, weights, value of the objective, gradient to each log-prob, metrics"""
    logp = s.logprobs.clone().requires_grad_()
    ref = s.ref_logprobs if hp.kl_coef else None
    # as a rollout has them: 0 outside the mask
    rollout = SimpleNamespace(
        rewards=s.rewards,
        response_mask=s.response_mask,
        old_logprobs=s.old_logprobs.nan_to_num(0.0),
        ref_logprobs=ref if ref is None else ref.nan_to_num(0.0),
    )
    A = algo.advantages(rollout, hp)
    J, metrics = algo.objective(logp, s.old_logprobs, A, s.response_mask, hp, ref)
    weights = algo.weights(s.response_mask, hp)
    value = (J * weights).sum()
    value.backward()
    assert J[~s.response_mask].eq(0).all() and logp.grad[~s.response_mask].eq(0).all()
    return A, weights, value.item(), logp.grad, metrics


def standardized(reward, group):
    """GRPO's advantage"""
    if group.max() == group.min():
        return 0.0
    return (reward - group.mean()) / group.std(correction=0)


def clipped(r, A, low, high):
    return torch.minimum(r * A, r.clamp(1 - low, 1 + high) * A)


def k3(d):
    return (-d).exp() - 1 + d


def advantage_by_the_paper(name, i, rewards):
    """The A of response i, in the docstring of variants.py."""
    first = i // G * G
    group = rewards[first : first + G]
    if name in ("dr_grpo", "v32"):
        return rewards[i] - group.mean()
    if name == "maxrl":
        return (rewards[i] - group.mean()) / group.mean() if group.mean() > 0 else 0.0
    if name == "rloo":
        others = [rewards[j] for j in range(first, first + G) if j != i]
        return rewards[i] - sum(others) / (G - 1)
    if name == "reinforce":
        return rewards[i]
    return standardized(rewards[i], group)


def response_by_the_paper(name, A, r, d, logp, kl_coef, tokens):
    """What a response with n tokens adds to the objective. r: ratios, d: log pi / pi_ref, (n,)."""
    if name == "custom":
        return (clipped(r, A, 0.2, 0.2) - kl_coef * k3(d)).mean() / N
    if name == "r1":
        return (clipped(r.prod(), A, 10, 10) - kl_coef * k3(d.sum())) / N
    if name == "dr_grpo":
        return clipped(r, A, 0.2, 0.2).sum() / 10 / N
    if name == "dapo":
        return clipped(r, A, 0.2, 0.28).sum() / tokens
    if name == "gspo":
        return clipped(r.prod() ** (1 / len(r)), A, 3e-4, 4e-4) / N
    if name == "cispo":
        return (r.clamp(max=5.0).detach() * A * logp).sum() / tokens
    if name == "v32":
        M = 0 if A < 0 and -r.log().mean() > 0.2 else 1
        return (clipped(r, A, 0.2, 0.2) * M - kl_coef * r * k3(d)).mean() / N
    if name == "tis":
        return (r.clamp(max=2.0).detach() * A * logp).mean() / N
    if name == "maxrl":
        return clipped(r, A, 0.2, 0.2).mean() / N
    return (r.detach() * A * logp).sum() / 10 / N  # rloo, reinforce; off-policy: weighted


def by_the_paper(name, s, kl_coef):
    """-> value of the objective, gradient to each log-prob: one response at a time"""
    logprobs = s.logprobs.clone().requires_grad_()
    rewards = s.rewards.clone()
    if name == "rloo":
        for i, n in enumerate(s.lengths):
            rewards[i] -= kl_coef * (s.old_logprobs[i, :n] - s.ref_logprobs[i, :n]).sum()
    total = 0.0
    for i, n in enumerate(s.lengths):
        A = advantage_by_the_paper(name, i, rewards)
        logp = logprobs[i, :n]
        r = (logp - s.old_logprobs[i, :n]).exp()
        d = logp - s.ref_logprobs[i, :n]
        total = total + response_by_the_paper(name, A, r, d, logp, kl_coef, sum(s.lengths))
    total.backward()
    return total.item(), logprobs.grad.nan_to_num(0.0)


# --- The table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_each_variant_is_its_formula(name):
    s = setting()
    with_kl = {} if "kl_coef" in PRESETS[name] else {"kl_coef": 0.07}
    hp = config(name, **with_kl)
    _, _, value, gradient, _ = by_our_code(hp, s)
    want_value, want_gradient = by_the_paper(name, s, hp.kl_coef)
    # everything is float64 but the weights, whose rounding is 6e-8 of each
    assert value == pytest.approx(want_value, abs=1e-7)
    assert torch.allclose(gradient, want_gradient, atol=1e-12, rtol=2e-7)
    assert gradient.abs().max() > 1e-3


def test_no_two_variants_are_the_same():
    gradients = [by_our_code(config(name), setting())[3] for name in PRESETS]
    for a, b in itertools.combinations(gradients, 2):
        assert not torch.allclose(a, b)


@pytest.mark.parametrize("name", PRESETS)
def test_at_ratio_1_all_have_the_reinforce_gradient(name):
    """Without KL: A over what the response is divided by, at each token.

    A ratio of a whole response counts each token fully, GSPO's root of it 1/n."""
    s = setting(on_policy=True)
    preset = PRESETS[name]
    hp = config(name, kl_coef=0.0)
    _, _, _, gradient, metrics = by_our_code(hp, s)
    A = group_advantages(s.rewards, G, hp.baseline, hp.scale)
    for i, n in enumerate(s.lengths):
        share = 1 / n / N
        if name == "r1":
            share = 1 / N
        elif preset.get("loss_aggregation") == "token":
            share = 1 / sum(s.lengths)
        elif preset.get("loss_aggregation") == "constant":
            share = 1 / 10 / N
        want = [A[i].item() * share] * n
        assert gradient[i, :n].tolist() == pytest.approx(want, rel=2e-7, abs=1e-12)
    assert metrics["clip_low"] == metrics["clip_high"] == 0


def test_the_defaults_are_grpo(tiny):
    """The same flags, advantages, weights, value and gradient, to the bit."""
    for f in fields(grpo.Config):
        twin = variants.Config.__dataclass_fields__[f.name]
        assert (twin.default, twin.type) == (f.default, f.type), f.name
        assert twin.metadata["at_least"] == f.metadata["at_least"], f.name
    for changes in ({}, {"kl_coef": 0.1, "clip_low": 0.1, "clip_high": 0.3}, {"kl_coef": 0.0}):
        ours, theirs = (
            variants.Config(group_size=G, **changes),
            grpo.Config(group_size=G, **changes),
        )
        *tensors, metrics = by_our_code(ours, setting())
        *grpo_tensors, grpo_metrics = by_our_code(theirs, setting(), grpo)
        for a, b in zip(tensors, grpo_tensors, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        assert metrics == grpo_metrics
    steps = []
    for algo in (variants, grpo):
        model, hp = tiny(), algo.Config(group_size=G, kl_coef=0.1)
        rollout = sample_rollout(model)
        nets = score_rollout(algo, model, hp, rollout)
        steps.append(step_gradient(algo, nets, rollout, hp))
    (gradients, metrics), (grpo_gradients, grpo_metrics) = steps
    assert torch.equal(gradients["policy"], grpo_gradients["policy"]) and metrics == grpo_metrics


UNREAD = [
    ("custom", "cap", 3.0),
    ("dapo", "cap", 3.0),
    ("cispo", "clip_low", 0.1),
    ("rloo", "clip_high", 0.1),
    ("custom", "constant", 5),
    ("dapo", "constant", 5),
    ("dapo", "kl", "rk3"),
    ("tis", "clip_low", 0.1),
    ("v32", "cap", 3.0),
    ("dapo", "ref_every", 10),
]


@pytest.mark.parametrize("name, flag, value", UNREAD)
def test_a_flag_that_a_variant_does_not_read_is_refused(name, flag, value):
    argv = ["--algo", name, f"--{flag}", str(value), "--out", "not/made"]
    with pytest.raises(ValueError, match=f"--{flag} is not read"):
        parse_run(argv, "", train.Config)


READ = [("cispo", "cap", 3.0), ("tis", "cap", 3.0), ("dapo", "clip_low", 0.1)]
READ += [("dr_grpo", "constant", 5), ("v32", "kl", "k3")]


@pytest.mark.parametrize("name, flag, value", READ)
def test_a_flag_that_a_variant_reads_is_not(name, flag, value):
    argv = ["--algo", name, f"--{flag}", str(value), "--out", "not/made"]
    _, hp, algo, _ = parse_run(argv, "", train.Config)
    assert algo is variants and getattr(hp, flag) == value


# --- Its choices ------------------------------------------------------------------------------


def test_rloo_is_dr_grpo_times_g_over_g_minus_1():
    for size in (2, 3, 8):
        rewards = torch.rand(4 * size, **F64)
        rloo = group_advantages(rewards, size, "others", "none")
        dr_grpo = group_advantages(rewards, size, "group", "none")
        assert torch.allclose(rloo, dr_grpo * size / (size - 1), atol=1e-14)


@pytest.mark.parametrize(
    "rewards, by_hand",
    [
        ([1, NAN, 0, NAN], [1, 0, -1, 0]),  # of two known rewards each is the other's baseline
        ([1, NAN, NAN, NAN], [0, 0, 0, 0]),
        ([NAN, NAN, NAN, NAN], [0, 0, 0, 0]),
    ],
)
def test_rloo_leaves_unknown_rewards_out(rewards, by_hand):
    assert group_advantages(torch.tensor(rewards), 4, "others", "none").tolist() == by_hand


def test_without_scale_by_hand():
    A = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), 4, "group", "none")
    assert A.tolist() == [0.5, -0.5, -0.5, 0.5]


@pytest.mark.parametrize(
    "rewards, by_hand",
    [
        ([1, 0, 0, 0], [3, -1, -1, -1]),  # one in four: the mean is 1/4
        ([1, 1, 1, 0], [1 / 3, 1 / 3, 1 / 3, -1]),
        ([2, NAN, 0, NAN], [1, 0, -1, 0]),  # the mean of what is known
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, -1, 0, 0], [0, 0, 0, 0]),  # a mean of 0
        ([1, -3, 0, 0], [0, 0, 0, 0]),  # below 0: the sign would turn
    ],
)
def test_maxrl_divides_by_the_mean(rewards, by_hand):
    A = group_advantages(torch.tensor(rewards, **F64), 4, "group", "mean")
    assert A.tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("N", [2, 3, 6])
def test_maxrl_climbs_pass_at_1_to_n_minus_1(N):
    """The expected gradient of maxrl is that of sum_k pass@k / k for k below N (Tajwar et al.).

    A policy of one decision, right with probability p: every group of N is summed over."""
    logit = torch.tensor(-1.2, requires_grad=True, **F64)
    p = logit.sigmoid()
    expected = 0.0
    for group in itertools.product((0.0, 1.0), repeat=N):
        A = group_advantages(torch.tensor(group, **F64), N, "group", "mean")
        logp = torch.stack([p.log() if right else (1 - p).log() for right in group])
        expected = expected + logp.detach().sum().exp() * (A * logp).mean()
    (ours,) = torch.autograd.grad(expected, logit, retain_graph=True)
    pass_at = sum((1 - (1 - p) ** k) / k for k in range(1, N))
    (theirs,) = torch.autograd.grad(pass_at, logit)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


@pytest.mark.parametrize("scale", variants.SCALES)
def test_no_baseline_pays_equal_rewards_too(scale):
    assert group_advantages(torch.zeros(4), 4, "none", scale).eq(0).all()
    A = group_advantages(torch.tensor([2.0, 2.0, 2.0, NAN]), 4, "none", scale)
    paid = 2 if scale == "none" else 1
    assert A.tolist() == [paid, paid, paid, 0]


def test_kl_in_the_reward_has_a_baseline_but_no_scale():
    """A group of equal rewards learns from its KL alone, at the size of the KL.

    Differences of rounding stay that small."""
    rollout = SimpleNamespace(
        rewards=torch.tensor([0.0, 0.0, 1.0, NAN]),
        response_mask=torch.ones(4, 2, dtype=torch.bool),
        old_logprobs=torch.tensor([[-1.0, -1.0], [-1.0, -3.0], [-1.0, -1.0], [-1.0, -9.0]]),
        ref_logprobs=-torch.ones(4, 2),
    )
    hp = variants.Config(group_size=2, kl="reward", kl_coef=0.1)
    want = torch.tensor([[-0.1], [0.1], [0.0], [0.0]]).expand(4, 2)  # KL 0 and -2, mean -1
    assert torch.allclose(variants.advantages(rollout, hp), want)
    rollout.ref_logprobs = rollout.old_logprobs + 1e-6
    assert variants.advantages(rollout, hp).abs().max() < 1e-6


@pytest.mark.parametrize("A", [1.0, -1.0])
def test_cispos_cap_is_absolute_and_drops_no_token(A):
    """At ratio 50 the weight is the cap, 5, not 1 + 5; at 0.1 it is 0.1."""
    logp = torch.tensor([[50.0, 0.1]], **F64).log().requires_grad_()
    ones = torch.ones(1, 2, **F64)
    J, metrics = variants.objective(logp, 0 * ones, A * ones, ones.bool(), config("cispo"))
    J.sum().backward()
    assert logp.grad[0].tolist() == pytest.approx([5 * A, 0.1 * A])
    assert metrics["clip_low"] == 0
    assert metrics["clip_high"] == (1 if A > 0 else 0)


@pytest.mark.parametrize("ratios, cut", [([4.0, 0.25], False), ([1.1, 1.1], True)])
def test_gspo_clips_whole_responses(ratios, cut):
    """Two tokens whose ratios cancel are left alone, although each alone is far out."""
    logp = torch.tensor([ratios], **F64).log().requires_grad_()
    ones = torch.ones(1, 2, **F64)
    J, metrics = variants.objective(logp, 0 * ones, ones, ones.bool(), config("gspo"))
    J.sum().backward()
    assert metrics["clip_high"] == (2 if cut else 0)
    assert logp.grad.eq(0).all() == cut


MASKED = [
    # A, log ratios of a response of two tokens, is it left out at a threshold of 0.2?
    (-1.0, [-0.5, 0.0], True),  # mean -0.25
    (-1.0, [-0.3, 0.0], False),  # mean -0.15
    (-1.0, [-0.9, 0.9], False),  # one token far out, but they cancel
    (-1.0, [0.5, 0.5], False),  # more probable than it was
    (+1.0, [-0.5, -0.5], False),  # what is learned from is kept
]


@pytest.mark.parametrize("A, log_ratios, left_out", MASKED)
def test_v32_leaves_out_responses_that_have_become_improbable(A, log_ratios, left_out):
    """All of their tokens, but not their KL; they count as clipped. A threshold d masks where A < 0
    and the geometric mean of the ratios is below e^-d."""
    logp = torch.tensor([[*log_ratios, NAN]], requires_grad=True, **F64)
    old, ref = torch.zeros(1, 3, **F64), torch.tensor([[0.3, -0.4, NAN]], **F64)
    mask = torch.tensor([[True, True, False]])
    advantages = torch.full((1, 3), A, **F64)
    ratios = logp[0, :2].detach().exp()
    assert left_out == (A < 0 and ratios.prod().sqrt().item() < math.exp(-0.2))

    hp = config("v32", kl_coef=0.5, clip_low=9.0, clip_high=9.0)
    J, metrics = variants.objective(logp, old, advantages, mask, hp, ref)
    price = 0.5 * ratios * k3(logp[0, :2].detach() - ref[0, :2])
    surrogate = 0.0 if left_out else A * ratios
    assert J[0, :2].tolist() == pytest.approx((surrogate - price).tolist())
    assert metrics["clip_low"] == (2 if left_out else 0)

    logp.grad = None
    J, _ = variants.objective(logp, old, advantages, mask, hp)
    J.sum().backward()
    assert logp.grad[0, :2].tolist() == pytest.approx([0, 0] if left_out else (A * ratios).tolist())


# --- The sampler is not the trainer ------------------------------------------------------------


def loss_of(name, gap, lag=0, **changes):
    """The gradient of log pi, of one update whose sampler gave each token e^-gap of its pi."""
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), **F64)
    logprobs = logits.log_softmax(-1)[..., 0].requires_grad_()
    batch = Rollout(None, None, None, None, torch.ones(2, 3, dtype=torch.bool), lag=lag)
    batch.old_logprobs = logprobs.detach() - gap
    batch.advantages = torch.tensor([[2.0], [-1.0]], **F64).expand(2, 3)
    batch.weights = torch.ones(2, 3, **F64)
    hp = config(name, minibatches=1, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo, "response_logprobs", lambda policy, batch: (logprobs, 0 * logprobs))
        loss, _ = variants.loss(SimpleNamespace(policy=None), batch, hp)
    loss.backward()
    return -logprobs.grad / batch.advantages


GAP = torch.tensor([[0.0, 0.1, 1.0], [-0.1, -1.0, 3.0]], **F64)  # log pi / pi_sampler
TRUNCATED = GAP.exp().clamp(max=2.0)


@pytest.mark.parametrize("name", ["custom", "cispo", "maxrl"])
def test_at_one_update_the_ratio_is_1(name):
    assert torch.equal(loss_of(name, GAP), torch.ones(2, 3, **F64))


def test_tis_weighs_a_token_by_the_sampler_at_one_update_too():
    """sg(min(pi / pi_sampler, 2)) A grad log pi: the gap counts. It is the paper's formula where
    its pi_old is pi."""
    assert PRESETS["tis"]["minibatches"] == 1
    assert torch.allclose(loss_of("tis", GAP), TRUNCATED)


def test_with_lag_the_ratio_counts_at_one_update():
    assert torch.allclose(loss_of("cispo", GAP, lag=3, cap=2.0), TRUNCATED)
    assert torch.allclose(loss_of("tis", GAP, lag=3), TRUNCATED)


# --- KL: which gradient does each estimator have? ---------------------------------------------
# The vocabulary is small enough to sum over: an expectation over sampled tokens is exact.


@pytest.fixture
def policies():
    """logits of the policy, log-probs of the reference and of an older policy, over 6 tokens"""
    torch.manual_seed(1)
    logits, ref, behaviour = torch.randn(3, 6, **F64)
    return logits, ref.log_softmax(-1), behaviour.log_softmax(-1)


def kl(p, q):
    return (p.exp() * (p - q)).sum()


def gradient(function, logits):
    """d function(log-probs) / d logits"""
    logits = logits.clone().requires_grad_()
    function(logits.log_softmax(-1)).backward()
    return logits.grad


def expected_gradient(kind, logits, ref, behaviour):
    """Exact expectation over tokens of `behaviour` of the gradient of the estimator."""

    def expectation(logp):
        ratio = (logp - behaviour).exp()
        return (behaviour.exp() * kl_estimate(logp - ref, kind, ratio)).sum()

    return gradient(expectation, logits)


def test_kl_values_in_expectation(policies):
    logits, ref, _ = policies
    pi = logits.log_softmax(-1)

    def mean(kind):
        return (pi.exp() * kl_estimate(pi - ref, kind)).sum()

    assert torch.allclose(mean("k3"), kl(pi, ref))
    assert kl_estimate(torch.tensor(1.0)).item() == pytest.approx(1 / 2.718281828 + 1 - 1)
    assert kl_estimate(torch.tensor(1.0), "reward") == 0


def test_kl_gradients_on_policy(policies):
    logits, ref, _ = policies
    pi = logits.log_softmax(-1)
    forward = gradient(lambda p: kl(p, ref), logits)
    reverse = gradient(lambda p: kl(ref, p), logits)
    assert torch.allclose(expected_gradient("rk3", logits, ref, pi), forward)
    assert torch.allclose(expected_gradient("k3", logits, ref, pi), reverse)
    assert not torch.allclose(reverse, forward, rtol=0.1)


def test_only_ratio_k3_is_right_off_policy(policies):
    logits, ref, behaviour = policies
    forward = gradient(lambda p: kl(p, ref), logits)
    assert torch.allclose(expected_gradient("rk3", logits, ref, behaviour), forward)
    assert not torch.allclose(expected_gradient("k3", logits, ref, behaviour), forward, rtol=0.1)


@pytest.mark.parametrize("kind", variants.KL_ESTIMATORS)
@pytest.mark.parametrize("pool_kl", [False, True])
def test_the_kl_that_is_paid_is_the_one_chosen(kind, pool_kl):
    """Ratio 2 and 1/2, log pi - log pi_ref 0.5 and -1: each token pays, or the whole response."""
    old = torch.tensor([[-1.0, -1.0]], **F64)
    logp = old + torch.tensor([[2.0, 0.5]], **F64).log()
    d = torch.tensor([[0.5, -1.0]], **F64)
    ones = torch.ones(1, 2, **F64)
    hp = variants.Config(kl=kind, kl_coef=0.1, ratio="product", pool_kl=pool_kl)
    J, metrics = variants.objective(logp, old, ones, ones.bool(), hp, logp - d)
    paid = torch.tensor([[-0.5, -0.5]], **F64) if pool_kl else d
    by_hand = {"k3": k3(paid), "rk3": k3(paid), "reward": 0 * paid}
    assert torch.allclose(J, 1 - 0.1 * by_hand[kind])  # the product of the ratios is 1
    assert torch.allclose(metrics["kl"], k3(d).sum())  # the same column whatever is paid
