"""GRPO against numbers done by hand and autograd through the definition.

What ppo.py and variants.py have in common with it is tested here for all three."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import flat_gradient, sample_rollout, score_rollout, step_gradient

import grpo
import ppo
import variants
from logprobs import response_logprobs

NAN = float("nan")
each_algorithm = pytest.mark.parametrize("algo", [grpo, ppo, variants], ids=lambda m: m.__name__)


# --- Advantages -------------------------------------------------------------------------------


def test_worked_example():
    assert grpo.group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), 4).tolist() == [1, -1, -1, 1]
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 5.0, 5.0, 5.0, 9.0])
    by_hand = torch.tensor([3, -1, -1, -1, -1, -1, -1, 3]) / 3**0.5  # sqrt((1 - p) / p), p = 1/4
    assert torch.allclose(grpo.group_advantages(rewards, 4), by_hand)


@pytest.mark.parametrize("G", [2, 3, 5, 8, 12, 16, 55])
def test_equal_rewards_are_exactly_zero(G):
    for value in (0.0, 0.01, 0.1, 1 / 3, 1.1, -7.7, 1e-9, 1e6):
        rewards = torch.full((G,), value)
        assert grpo.group_advantages(rewards, G).eq(0).all(), value
        for baseline in ("group", "others"):
            for scale in variants.SCALES:
                A = variants.group_advantages(rewards, G, baseline, scale)
                assert A.eq(0).all(), (value, baseline, scale)


def test_definition_in_float64():
    rewards = torch.rand(6, 5, dtype=torch.float64)
    advantages = grpo.group_advantages(rewards.flatten(), 5).view(6, 5)
    for group, A in zip(rewards.tolist(), advantages.tolist(), strict=True):
        mean = sum(group) / 5
        std = (sum((r - mean) ** 2 for r in group) / 5) ** 0.5
        assert A == pytest.approx([(r - mean) / std for r in group], abs=1e-12)


def test_groups_do_not_mix():
    rewards = torch.rand(12)
    together = grpo.group_advantages(rewards, 4)
    apart = torch.cat([grpo.group_advantages(group, 4) for group in rewards.view(3, 4)])
    assert torch.equal(together, apart)
    order = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7])
    assert torch.equal(grpo.group_advantages(rewards[order], 4), together[order])


def test_unknown_reward_takes_no_part():
    assert grpo.group_advantages(torch.tensor([1.0, NAN, 0.0, NAN]), 4).tolist() == [1, 0, -1, 0]
    assert grpo.group_advantages(torch.tensor([NAN, NAN, 1.0, NAN]), 4).tolist() == [0, 0, 0, 0]
    assert grpo.group_advantages(torch.tensor([NAN] * 4), 4).tolist() == [0, 0, 0, 0]
    groups = torch.tensor([[1.0, NAN, 0.0], [1.0, NAN, 1.0], [NAN, NAN, 1.0], [NAN, NAN, NAN]])
    assert grpo.rewards_differ(groups).tolist() == [True, False, False, False]


@pytest.mark.parametrize("n, G", [(4, 1), (5, 2), (4, 0)])
def test_bad_groups_are_refused(n, G):
    with pytest.raises(ValueError, match="groups of"):
        grpo.group_advantages(torch.ones(n), G)


@pytest.mark.parametrize("algo", [grpo, variants])
def test_a_group_of_one_is_refused(algo):
    with pytest.raises(ValueError, match="group_size 1"):
        algo.Config(group_size=1)


# --- The objective ----------------------------------------------------------------------------

# A > 0: only a ratio above 1.3 is cut; A < 0: only one below 0.8
CLIPPING = [
    # A, ratio, value, slope, clip_low, clip_high
    (+1.0, 0.5, 0.5, 0.5, 0, 0),
    (+1.0, 1.0, 1.0, 1.0, 0, 0),
    (+1.0, 1.5, 1.3, 0.0, 0, 1),
    (-1.0, 0.5, -0.8, 0.0, 1, 0),
    (-1.0, 1.0, -1.0, -1.0, 0, 0),
    (-1.0, 1.5, -1.5, -1.5, 0, 0),
]


@each_algorithm
@pytest.mark.parametrize("A, ratio, value, slope, low, high", CLIPPING)
def test_clip_truth_table(algo, A, ratio, value, slope, low, high):
    hp = algo.Config(clip_low=0.2, clip_high=0.3, kl_coef=0.0)
    logp = torch.tensor([[ratio]]).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    J, metrics = algo.objective(logp, torch.zeros(1, 1), torch.tensor([[A]]), mask, hp)
    J.sum().backward()
    assert J.item() == pytest.approx(value, abs=1e-6)
    assert logp.grad.item() == pytest.approx(slope, abs=1e-6)
    assert (metrics["clip_low"].item(), metrics["clip_high"].item()) == (low, high)


EVERY_KL = [(variants, {"kl": kind}) for kind in ("k3", "rk3")]


@pytest.mark.parametrize("algo, kl", [(grpo, {}), (ppo, {}), *EVERY_KL])
def test_far_ratios_stay_finite(algo, kl):
    old = torch.tensor([[-1e-3, -900.0]])
    logp = torch.tensor([[-900.0, -1e-3]], requires_grad=True)
    ref = torch.tensor([[-1.0, -900.0]])
    hp = algo.Config(kl_coef=1.0, **kl)
    J, metrics = algo.objective(logp, old, torch.ones(1, 2), torch.ones(1, 2).bool(), hp, ref)
    J.sum().backward()
    assert J.isfinite().all() and logp.grad.isfinite().all() and metrics["kl"].isfinite()


@each_algorithm
def test_what_is_outside_the_mask_has_no_influence(algo):
    hp = algo.Config(kl_coef=0.1)
    mask = torch.tensor([[True, True, False]])

    def run(outside):
        logp = torch.tensor([[-0.5, -1.0, outside]], requires_grad=True)
        old = torch.tensor([[-0.4, -1.2, outside]])
        A = torch.tensor([[1.0, 1.0, outside]])
        ref = torch.tensor([[-0.6, -1.0, outside]])
        J, metrics = algo.objective(logp, old, A, mask, hp, ref)
        (J * algo.weights(mask, hp)).sum().backward()
        return J.detach(), logp.grad, metrics["kl"]

    for nothing, junk in zip(run(0.0), run(NAN), strict=True):
        assert torch.equal(nothing, junk)


AGGREGATIONS = [(variants, {"loss_aggregation": kind}) for kind in ("sequence", "token")]
AGGREGATIONS += [(variants, {"loss_aggregation": "constant", "constant": 10})]


@pytest.mark.parametrize("algo, aggregation", [(grpo, {}), (ppo, {}), *AGGREGATIONS])
def test_no_token_at_all_is_no_loss(algo, aggregation):
    hp = algo.Config(**aggregation)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    logp = torch.zeros(2, 3, requires_grad=True)
    J, _ = algo.objective(logp, logp.detach(), torch.ones(2, 3), mask, hp)
    loss = -(J * algo.weights(mask, hp)).sum()
    loss.backward()
    assert loss.item() == 0 and logp.grad.eq(0).all()


@pytest.mark.parametrize("algo, aggregation", [(grpo, {}), (ppo, {}), *AGGREGATIONS])
def test_weights_by_hand(algo, aggregation):
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    by_hand = {
        "sequence": [1 / 12, 1 / 3, 1 / 6, 0],
        "token": [1 / 7, 1 / 7, 1 / 7, 0],
        "constant": [1 / 30, 1 / 30, 1 / 30, 0],
    }
    share = torch.tensor(by_hand[aggregation.get("loss_aggregation", "sequence")])
    weights = algo.weights(mask, algo.Config(**aggregation))
    assert torch.allclose(weights, mask * share[:, None])


@each_algorithm
def test_the_kl_metric_is_k3(algo):
    """0.5 and -1 nats above the reference: e^-0.5 + 0.5 - 1 and e^1 - 1 - 1."""
    logp = torch.tensor([[-1.0, -2.0, -7.0]])
    ref = torch.tensor([[-1.5, -1.0, NAN]])
    mask = torch.tensor([[True, True, False]])
    A = torch.ones(1, 3)
    J, metrics = algo.objective(logp, logp, A, mask, algo.Config(kl_coef=0.1), ref)
    assert metrics["kl"].item() == pytest.approx(0.1065307 + 0.7182818, abs=1e-5)
    price = [0.0, 0.0] if algo is ppo else [0.01065307, 0.07182818]  # PPO's is in the reward
    assert J[0].tolist() == pytest.approx([1 - price[0], 1 - price[1], 0.0], abs=1e-6)


# --- One optimizer step -----------------------------------------------------------------------

STEPS = [
    (grpo, {"kl_coef": 0.0}),
    (grpo, {"kl_coef": 0.1}),
    (ppo, {"kl_coef": 0.1, "lam": 0.9}),
    (variants, {"kl_coef": 0.1, "loss_aggregation": "token"}),
    (variants, {"kl_coef": 0.0, "loss_aggregation": "constant"}),
    (variants, {"kl_coef": 0.1, "ratio": "sequence"}),
]


@pytest.mark.parametrize("algo, flags", STEPS)
def test_gradient_does_not_depend_on_how_a_step_is_cut(tiny, algo, flags):
    hp = algo.Config(group_size=4, **flags)
    model = tiny().double()
    rollout = sample_rollout(model)
    nets = score_rollout(algo, model, hp, rollout)
    whole, metrics = step_gradient(algo, nets, rollout, hp)
    assert all(gradient.norm() > 1e-3 for gradient in whole.values())
    shuffled = rollout.select(torch.randperm(12))
    for batch, tokens in ((rollout, 1), (rollout, 30), (shuffled, 10**9), (shuffled, 30)):
        cut, sums = step_gradient(algo, nets, batch, hp, tokens)
        for name in whole:
            assert (cut[name] - whole[name]).abs().max() < 1e-10, (name, tokens)
        assert sums == pytest.approx(metrics, abs=1e-9)


def pad(rollout, columns):
    """The rollout with more columns, full of nonsense, left of prompts and right of responses."""
    wide = copy.copy(rollout)
    wide.prompt_ids = F.pad(rollout.prompt_ids, (columns, 0), value=17)
    wide.prompt_start = rollout.prompt_start + columns
    wide.response_ids = F.pad(rollout.response_ids, (0, columns), value=19)
    wide.response_mask = F.pad(rollout.response_mask, (0, columns), value=False)
    wide.old_logprobs = F.pad(rollout.old_logprobs, (0, columns))
    return wide


@pytest.mark.parametrize("algo, flags", STEPS)
def test_padding_changes_no_gradient(tiny, algo, flags):
    hp = algo.Config(group_size=4, **flags)
    model = tiny().double()
    results = []
    for columns in (0, 5):
        rollout = pad(sample_rollout(model), columns)
        nets = score_rollout(algo, model, hp, rollout)
        rollout.weights = algo.weights(rollout.response_mask, hp)
        model.zero_grad()
        loss, metrics = algo.loss(nets, rollout, hp)
        loss.backward()
        results.append((loss.item(), flat_gradient(model), {k: float(metrics[k]) for k in metrics}))
    (narrow_loss, narrow, narrow_metrics), (wide_loss, wide, wide_metrics) = results
    assert narrow.norm() > 1e-3 and (wide - narrow).abs().max() < 1e-10
    assert abs(wide_loss - narrow_loss) < 1e-10
    assert wide_metrics == pytest.approx(narrow_metrics, abs=1e-9)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_first_pass_is_reinforce(tiny, minibatches):
    """Ratio 1, nothing clipped, and the gradient of sum A log pi.

    With recorded old log-probs (2 minibatches) as without."""
    hp = grpo.Config(group_size=4, kl_coef=0.0, minibatches=minibatches)
    model = tiny().double()
    rollout = sample_rollout(model)
    nets = score_rollout(grpo, model, hp, rollout)
    gradients, metrics = step_gradient(grpo, nets, rollout, hp)
    model.zero_grad()
    logprobs, _ = response_logprobs(model, rollout)
    by_hand = 0.0
    for i, n in enumerate(rollout.lengths.tolist()):
        by_hand -= (logprobs[i, :n] * rollout.advantages[i, 0]).sum() / n / 12
    by_hand.backward()
    want = flat_gradient(model)
    assert want.norm() > 1e-3
    assert torch.allclose(gradients["policy"], want, rtol=1e-4, atol=1e-7)
    assert metrics["clip_low"] + metrics["clip_high"] == 0
    assert metrics["mean_abs_log_ratio"] / rollout.lengths.sum() < 1e-5
    assert abs(metrics["loss"]) < 0.2  # the value says nothing: advantages sum to 0


@each_algorithm
def test_a_step_fills_the_columns_of_metrics(tiny, algo):
    hp = algo.Config(group_size=4)
    model = tiny()
    rollout = sample_rollout(model)
    nets = score_rollout(algo, model, hp, rollout)
    _, metrics = step_gradient(algo, nets, rollout, hp)
    assert set(algo.METRICS) == (metrics.keys() - {"loss"}) | rollout.metrics.keys()
    assert set(algo.SHOWN) <= set(algo.METRICS)


# --- The reference ----------------------------------------------------------------------------


@pytest.mark.parametrize("algo", [grpo, ppo])
def test_score_changes_nothing_it_reads(tiny, algo):
    model, hp = tiny(), algo.Config(group_size=4)
    rollout = sample_rollout(model)
    before = copy.deepcopy(vars(rollout))
    algo.score(algo.networks(model, hp), rollout, hp)
    for name in ("prompt_ids", "response_ids", "response_mask", "old_logprobs", "rewards"):
        assert torch.equal(before[name], getattr(rollout, name)), name
    # the reference is the policy still
    assert torch.allclose(rollout.ref_logprobs, rollout.old_logprobs, atol=1e-4)
    assert not rollout.ref_logprobs.requires_grad


@pytest.mark.parametrize("algo", [grpo, ppo])
def test_no_kl_no_reference(tiny, algo):
    assert algo.networks(tiny(), algo.Config(kl_coef=0.0)).ref is None
    nets = algo.networks(tiny(), algo.Config())
    assert nets.ref is not nets.policy
    assert not any(p.requires_grad for p in nets.ref.parameters())
    assert all(p.requires_grad for p in nets.policy.parameters())


REFERENCE = [
    # ref_every, minibatches, epochs
    (1, 1, 1),
    (4, 4, 1),
    (8, 4, 1),
    (8, 2, 2),
    (6, 4, 1),
    (5, 1, 1),
    (7, 3, 1),
    (3, 4, 2),
    (13, 2, 3),
    (10**6, 4, 1),
    (0, 4, 1),
]


@pytest.mark.parametrize("algo", [grpo, ppo])
@pytest.mark.parametrize("ref_every, minibatches, epochs", REFERENCE)
def test_the_reference_follows_every_so_many_optimizer_steps(algo, ref_every, minibatches, epochs):
    """Counted one by one: it becomes the policy at the first rollout after each of them."""
    hp = algo.Config(ref_every=ref_every, minibatches=minibatches, epochs=epochs)
    policy = torch.nn.Linear(1, 1, bias=False)
    nets = SimpleNamespace(policy=policy, ref=copy.deepcopy(policy))
    reference = policy.weight.item()
    steps = 0
    for rollouts in range(30):
        algo.update_reference(nets, rollouts, hp)
        assert nets.ref.weight.item() == reference, rollouts
        due = False
        for _ in range(minibatches * epochs):
            policy.weight.data += 1
            steps += 1
            due = due or (ref_every > 0 and steps % ref_every == 0)
        if due:
            reference = policy.weight.item()


def test_without_a_reference_there_is_nothing_to_follow():
    nets = SimpleNamespace(policy=None, ref=None)
    grpo.update_reference(nets, 1, grpo.Config(kl_coef=0.0, ref_every=1))
