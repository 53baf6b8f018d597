"""GRPO against numbers done by hand, exact enumeration, and autograd through the definition."""
import copy
import inspect
import itertools
import re

import pytest
import torch

import grpo
from logprobs import response_logprobs
from sampler import Rollout, sample


# --- advantages -----------------------------------------------------------------------------------------------------

def test_worked_example():
    assert grpo.group_advantages(torch.tensor([1., 0., 0., 1.]), 4).tolist() == [1, -1, -1, 1]
    two = grpo.group_advantages(torch.tensor([1., 0., 0., 0., 5., 5., 5., 9.]), 4)
    assert torch.allclose(two, torch.tensor([3, -1, -1, -1, -1, -1, -1, 3]) / 3 ** 0.5)       # sqrt((1-p)/p) for p = 1/4
    assert grpo.group_advantages(torch.tensor([1., 0., 0., 1.]), 4, "none").tolist() == [.5, -.5, -.5, .5]


def test_equal_rewards_are_exactly_zero():
    for G in (2, 3, 5, 8, 12, 16, 55):
        for value in (0.0, 0.01, 0.1, 1 / 3, 1.1, -7.7, 1e-9, 1e6):
            for scale in ("group", "batch", "none"):
                assert grpo.group_advantages(torch.full((G,), value), G, scale).eq(0).all(), (G, value, scale)


def test_definition_in_float64():
    r = torch.rand(6, 5, dtype=torch.float64)
    for row, A in zip(r, grpo.group_advantages(r.flatten(), 5).view(6, 5)):
        values = row.tolist()
        mean = sum(values) / 5
        std = (sum((v - mean) ** 2 for v in values) / 5) ** 0.5
        assert A.tolist() == pytest.approx([(v - mean) / std for v in values], abs=1e-12)


def test_groups_do_not_mix():
    r = torch.rand(12)
    together = grpo.group_advantages(r, 4)
    apart = torch.cat([grpo.group_advantages(g, 4) for g in r.view(3, 4)])
    assert torch.equal(together, apart)
    order = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7])
    assert torch.equal(grpo.group_advantages(r[order], 4), together[order])


def test_unknown_reward_takes_no_part():
    nan = float("nan")
    assert grpo.group_advantages(torch.tensor([1., nan, 0., nan]), 4).tolist() == [1, 0, -1, 0]
    assert grpo.group_advantages(torch.tensor([nan, nan, 1., nan]), 4).tolist() == [0, 0, 0, 0]
    assert grpo.group_advantages(torch.tensor([nan] * 4), 4, "batch").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("n, G", [(4, 1), (5, 2), (4, 0)])
def test_bad_groups_are_refused(n, G):
    with pytest.raises(ValueError, match="groups of"):
        grpo.group_advantages(torch.ones(n), G)
    with pytest.raises(ValueError, match="group_size 1"):
        grpo.Config(group_size=1)


# --- objective ------------------------------------------------------------------------------------------------------

def objective_of_ratio(ratio, A, hp):
    logp = torch.tensor([[ratio]]).log().requires_grad_()
    J, metrics = grpo.objective(logp, torch.zeros(1, 1), torch.tensor([[A]]), torch.ones(1, 1, dtype=torch.bool), hp)
    J.sum().backward()
    return J.item(), logp.grad.item(), metrics


@pytest.mark.parametrize("A, ratio, value, slope, low, high", [
    (+1., 0.5, 0.5, 0.5, 0, 0), (+1., 1.0, 1.0, 1.0, 0, 0), (+1., 1.5, 1.3, 0.0, 0, 1),      # A > 0: only above is cut
    (-1., 0.5, -0.8, 0.0, 1, 0), (-1., 1.0, -1.0, -1.0, 0, 0), (-1., 1.5, -1.5, -1.5, 0, 0),   # A < 0: only below
])
def test_clip_truth_table(A, ratio, value, slope, low, high):
    got, grad, metrics = objective_of_ratio(ratio, A, grpo.Config(clip_low=0.2, clip_high=0.3, kl_coef=0))
    assert (got, grad) == (pytest.approx(value, abs=1e-6), pytest.approx(slope, abs=1e-6))
    assert (metrics["clip_low"].item(), metrics["clip_high"].item()) == (low, high)


def test_far_ratios_stay_finite():
    hp = grpo.Config(kl_coef=1.0)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for kind in ("k1", "k2", "k3", "rk3"):
        hp.kl = kind
        logp = torch.tensor([[-900.0, -1e-3]], requires_grad=True)
        J, _ = grpo.objective(logp, torch.tensor([[-1e-3, -900.0]]), torch.ones(1, 2), mask, hp, torch.tensor([[-1., -900.]]))
        J.sum().backward()
        assert J.isfinite().all() and logp.grad.isfinite().all()


def test_what_is_outside_the_mask_has_no_influence():
    hp, mask = grpo.Config(kl_coef=0.1), torch.tensor([[True, True, False]])
    def run(garbage):
        tensors = [torch.tensor([[-.5, -1., garbage]], requires_grad=True), torch.tensor([[-.4, -1.2, garbage]]),
                   torch.tensor([[1., 1., garbage]]), torch.tensor([[-.6, -1., garbage]])]
        J, _ = grpo.objective(tensors[0], tensors[1], tensors[2], mask, hp, tensors[3])
        (J * grpo.weights(mask, hp)).sum().backward()
        return J.detach(), tensors[0].grad
    for a, b in zip(run(0.0), run(float("nan"))):
        assert torch.equal(a, b)


def test_no_token_at_all_is_no_loss():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for aggregate in ("sequence", "token", "constant"):
        logp = torch.zeros(2, 3, requires_grad=True)
        J, _ = grpo.objective(logp, logp.detach(), torch.ones(2, 3), mask, grpo.Config())
        loss = -(J * grpo.weights(mask, grpo.Config(aggregate=aggregate))).sum()
        loss.backward()
        assert loss.item() == 0 and logp.grad.eq(0).all()


def test_weights_by_hand():
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    by_hand = {"sequence": [1 / 12, 1 / 3, 1 / 6], "token": [1 / 7] * 3, "constant": [1 / 30] * 3}
    for aggregate, share in by_hand.items():
        got = grpo.weights(mask, grpo.Config(aggregate=aggregate, constant=10))
        assert torch.allclose(got, mask * torch.tensor(share)[:, None])


# --- KL: which gradient does each estimator have? --------------------------------------------------------------------
# A vocabulary small enough to sum over: the expectation over sampled tokens is exact.

def kl_setting():
    torch.manual_seed(1)
    theta = torch.randn(6, dtype=torch.float64)
    return theta, torch.randn(6, dtype=torch.float64).log_softmax(-1), torch.randn(6, dtype=torch.float64).log_softmax(-1)


def kl(p, q):
    return (p.exp() * (p - q)).sum()


def gradient(f, theta):
    theta = theta.clone().requires_grad_()
    f(theta.log_softmax(-1)).backward()
    return theta.grad


def expected_gradient(kind, theta, ref, behaviour):
    """Exact E over y ~ behaviour of the gradient of the estimator at y."""
    def loss(logp):
        ratio = (logp - behaviour).exp()
        return (behaviour.exp() * grpo.kl_estimate(logp - ref, kind, ratio)).sum()
    return gradient(loss, theta)


def test_kl_values_in_expectation():
    theta, ref, _ = kl_setting()
    pi = theta.log_softmax(-1)
    mean = {k: (pi.exp() * grpo.kl_estimate(pi - ref, k)).sum() for k in ("k1", "k2", "k3")}
    assert torch.allclose(mean["k1"], kl(pi, ref)) and torch.allclose(mean["k3"], kl(pi, ref))       # unbiased
    assert not torch.allclose(mean["k2"], kl(pi, ref), rtol=1e-2)                                   # biased
    by_hand = grpo.kl_estimate(torch.tensor(1.0))
    assert by_hand.item() == pytest.approx(2.718281828 ** -1 + 1 - 1)                               # d = 1


def test_kl_gradients_on_policy():
    theta, ref, _ = kl_setting()
    pi = theta.log_softmax(-1)
    forward, reverse = gradient(lambda p: kl(p, ref), theta), gradient(lambda p: kl(ref, p), theta)
    got = {k: expected_gradient(k, theta, ref, pi) for k in ("k1", "k2", "k3", "rk3")}
    assert torch.allclose(got["k2"], forward) and torch.allclose(got["rk3"], forward)      # grad KL(pi || ref)
    assert torch.allclose(got["k3"], reverse)                                              # grad KL(ref || pi)
    assert not torch.allclose(got["k3"], forward, rtol=0.1)
    assert got["k1"].abs().max() < 1e-12                                                   # nothing but noise


def test_only_ratio_k3_is_right_off_policy():
    theta, ref, behaviour = kl_setting()
    forward = gradient(lambda p: kl(p, ref), theta)
    assert torch.allclose(expected_gradient("rk3", theta, ref, behaviour), forward)
    assert not torch.allclose(expected_gradient("k2", theta, ref, behaviour), forward, rtol=0.1)


# --- one optimizer step ---------------------------------------------------------------------------------------------

def rollout_of(model, G=4, seed=3, eos=1):
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    rollout = sample(model, prompts, G, 9, eos_id=eos, seed=seed)
    rollout.rewards = torch.rand(len(prompts) * G, generator=torch.Generator().manual_seed(seed))
    return rollout


def step_gradient(model, rollout, hp, tokens=10 ** 9, order=None):
    model.zero_grad()
    nets = grpo.networks(model, hp)
    if nets.ref is not None:
        for p in nets.ref.parameters():
            p.data.mul_(1.01)
    rollout = copy.copy(rollout)
    grpo.score(nets, rollout, hp)
    rollout.advantages = grpo.advantages(rollout, hp)
    if order is not None:
        rollout = rollout.rows(order)
    rollout.weights = grpo.weights(rollout.response_mask, hp)
    total = 0.0
    for piece in rollout.micro_batches(tokens):
        loss, _ = grpo.loss(nets, rollout.rows(piece), hp)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def pad(rollout, columns):
    """The same rollout with more padding: on the left of prompts and on the right of responses, full of nonsense."""
    wide = copy.copy(rollout)
    N = len(rollout.group)
    wide.prompt_ids = torch.cat((torch.full((N, columns), 17), rollout.prompt_ids), 1)
    wide.prompt_start = rollout.prompt_start + columns
    wide.response_ids = torch.cat((rollout.response_ids, torch.full((N, columns), 19)), 1)
    wide.response_mask = torch.cat((rollout.response_mask, torch.zeros(N, columns, dtype=torch.bool)), 1)
    wide.old_logprobs = torch.cat((rollout.old_logprobs, torch.zeros(N, columns)), 1)
    return wide


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_gradient_does_not_depend_on_how_a_step_is_cut(tiny, aggregate, kl_coef):
    model, hp = tiny().double(), grpo.Config(group_size=4, aggregate=aggregate, kl_coef=kl_coef)
    rollout = rollout_of(model)
    assert len(set(rollout.lengths.tolist())) > 2                # ragged, or the test says nothing
    value, whole = step_gradient(model, rollout, hp)
    assert whole.norm() > 1e-3
    for changed in (dict(tokens=1), dict(tokens=30), dict(order=torch.randperm(12)), dict(tokens=30, order=torch.randperm(12))):
        v, g = step_gradient(model, rollout, hp, **changed)
        assert abs(v - value) < 1e-10 and (g - whole).abs().max() < 1e-10, changed
    v, g = step_gradient(model, pad(rollout, 5), hp, tokens=40)
    assert abs(v - value) < 1e-10 and (g - whole).abs().max() < 1e-10


@pytest.mark.parametrize("minibatches", [1, 2])
def test_first_pass_is_reinforce(tiny, minibatches):
    """Ratio 1, nothing clipped, and the gradient of sum A log pi, with recorded old log-probs as without."""
    model, hp = tiny().double(), grpo.Config(group_size=4, kl_coef=0, minibatches=minibatches)
    rollout = rollout_of(model)
    rollout.advantages = grpo.advantages(rollout, hp)
    rollout.weights = grpo.weights(rollout.response_mask, hp)
    loss, metrics = grpo.loss(grpo.networks(model, hp), rollout, hp)
    loss.backward()
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    logprobs, _ = response_logprobs(model, rollout)
    lengths = rollout.lengths
    by_hand = -sum((logprobs[i, :n] * rollout.advantages[i, 0]).sum() / n for i, n in enumerate(lengths.tolist())) / len(lengths)
    by_hand.backward()
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-7) and want.norm() > 1e-3
    assert metrics["clip_low"] + metrics["clip_high"] == 0 and metrics["drift"] / lengths.sum() < 1e-5
    assert abs(loss.item()) < 0.2                                # the value says nothing: advantages sum to 0


def test_score_changes_nothing_it_reads(tiny):
    model, hp = tiny(), grpo.Config(group_size=4)
    rollout = rollout_of(model)
    before = [rollout.response_ids.clone(), rollout.response_mask.clone(), rollout.prompt_ids.clone()]
    grpo.score(grpo.networks(model, hp), rollout, hp)
    assert all(map(torch.equal, before, [rollout.response_ids, rollout.response_mask, rollout.prompt_ids]))
    assert torch.allclose(rollout.ref_logprobs, rollout.old_logprobs, atol=1e-4)       # the reference is the policy still


def test_no_kl_no_reference(tiny):
    assert grpo.networks(tiny(), grpo.Config(kl_coef=0)).ref is None
    nets = grpo.networks(tiny(), grpo.Config())
    assert nets.ref is not nets.policy and not any(p.requires_grad for p in nets.ref.parameters())


def test_the_numbers_in_the_code_are_those_of_the_docstring():
    stated = set(re.findall(r"\((\d)\)\n", grpo.__doc__))
    code = inspect.getsource(grpo).split('"""', 2)[2]
    assert stated == set(re.findall(r"# \((\d)\)", code)) == {"1", "2", "3", "4", "5"}


@pytest.mark.parametrize("prompt", [[5, 6, 7], [5]])
def test_activation_checkpointing_changes_no_gradient(tiny, prompt):
    """Prompts run once and feed the responses through the cache: the gradient goes through what is run again."""
    model, found = tiny(), []
    rollout = sample(model, [prompt, [8, 9, 10, 11]], 4, 9, eos_id=1, seed=3)
    for model.recompute in (False, True):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
            logprobs, entropy = response_logprobs(model, rollout)
        grads = torch.autograd.grad(logprobs.sum() + entropy.square().sum(), list(model.parameters()))
        found.append((torch.cat([g.flatten() for g in grads]), sum(saved)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5) and found[0][0].norm() > 1 and found[1][1] < 0.5 * found[0][1]
