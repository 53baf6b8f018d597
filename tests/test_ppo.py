"""PPO against sums written out, numbers done by hand, and GRPO."""

import copy
import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import sample_rollout, score_rollout, step_gradient

import grpo
import ppo
import variants
from logprobs import response_logprobs, response_states
from model import Critic

F64 = dict(dtype=torch.float64)


# --- Generalized advantage estimation ---------------------------------------------------------


def gae_by_definition(rewards, values, mask, gamma, lam):
    """A_t = sum over k >= 0 of (gamma lam)^k (r_t+k + gamma V_t+k+1 - V_t+k).

    V after the end is 0."""
    A = torch.zeros_like(rewards)
    for i, T in enumerate(mask.sum(1).tolist()):
        r = rewards[i, :T].tolist()
        V = values[i, :T].tolist() + [0.0]
        for t in range(T):
            for k in range(T - t):
                A[i, t] += (gamma * lam) ** k * (r[t + k] + gamma * V[t + k + 1] - V[t + k])
    return A


def ragged(outside):
    """rewards, values (6, 9), which are `outside` after a response's end; mask"""
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 8, 2, 5])[:, None]
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(6, 9, generator=generator, **F64)
    values = torch.randn(6, 9, generator=generator, **F64)
    return torch.where(mask, rewards, outside), torch.where(mask, values, outside), mask


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_its_double_sum(gamma, lam):
    rewards, values, mask = ragged(outside=torch.nan)
    A, returns = ppo.gae(rewards, values, mask, gamma, lam)
    assert (A - gae_by_definition(rewards, values, mask, gamma, lam)).abs().max() < 1e-12
    assert torch.equal(returns, A + values.nan_to_num(0.0))
    assert A[~mask].eq(0).all() and returns[~mask].eq(0).all()


BY_HAND = [
    # lam, advantages of the three rows
    (0.0, [[0.2, 0.3, 0.0], [0.0, 0.0, 0.0], [0.4, 0.0, 0.0]]),  # V_t+1 - V_t; at the end R - V_t
    (0.5, [[0.35, 0.3, 0.0], [0.0, 0.0, 0.0], [0.4, 0.0, 0.0]]),  # 0.2 + 0.5 * 0.3
    (1.0, [[0.5, 0.3, 0.0], [0.0, 0.0, 0.0], [0.4, 0.0, 0.0]]),  # R - V_t
]


@pytest.mark.parametrize("lam, by_hand", BY_HAND)
def test_gae_by_hand(lam, by_hand):
    """Rewards 1, 0.25 and 0 at the ends. Row 2 is one token long and exactly foreseen."""
    rewards = torch.tensor([[0, 0, 1.0], [0.25, 7, 7], [0, 0, 7]], **F64)
    values = torch.tensor([[0.5, 0.7, 1.0], [0.25, 7, 7], [-0.4, 0.0, 7]], **F64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    A, _ = ppo.gae(rewards, values, mask, 1.0, lam)
    assert torch.allclose(A, torch.tensor(by_hand, **F64), atol=1e-12)


def test_gae_at_095_by_hand():
    """Only the end surprises."""
    rewards = torch.tensor([[0.0, 0.0, 1.0]], **F64)
    values = torch.tensor([[0.5, 0.5, 0.5]], **F64)
    A, returns = ppo.gae(rewards, values, torch.ones(1, 3).bool(), 1.0, 0.95)
    assert A[0].tolist() == pytest.approx([0.5 * 0.95**2, 0.5 * 0.95, 0.5])
    assert returns[0].tolist() == pytest.approx([0.5 + 0.5 * 0.95**2, 0.5 + 0.5 * 0.95, 1.0])


def test_gae_leaves_its_inputs_alone():
    rewards, values, mask = ragged(outside=3.0)
    before = rewards.clone(), values.clone()
    ppo.gae(rewards, values, mask, 1.0, 0.95)
    assert torch.equal(rewards, before[0]) and torch.equal(values, before[1])


# --- Advantages -------------------------------------------------------------------------------


def scored(model, hp):
    rollout = sample_rollout(model)
    return rollout, score_rollout(ppo, model, hp, rollout)


def test_lambda_1_is_reward_minus_value(tiny):
    rollout, _ = scored(tiny(), ppo.Config(kl_coef=0.0))
    mask = rollout.response_mask
    rewards = rollout.rewards[:, None].expand(mask.shape)
    raw = (rewards - rollout.values)[mask]
    A = rollout.advantages
    assert torch.allclose(rollout.returns, torch.where(mask, rewards, 0.0), atol=1e-6)
    assert torch.allclose(A[mask], (raw - raw.mean()) / raw.std(correction=0), atol=1e-5)
    assert A[~mask].eq(0).all()


def test_the_kl_is_in_the_reward_of_each_token(tiny):
    """gamma = lam = 1: the return at t is R less the price of all tokens from t on."""
    rollout, _ = scored(tiny(), ppo.Config(kl_coef=0.3))
    d = rollout.old_logprobs - rollout.ref_logprobs
    assert d.abs().max() > 0.01
    for i, T in enumerate(rollout.lengths.tolist()):
        R = rollout.rewards[i].item()
        want = [R - 0.3 * d[i, t:T].sum().item() for t in range(T)]
        assert rollout.returns[i, :T].tolist() == pytest.approx(want, abs=1e-5)


def test_advantages_do_not_depend_on_padding_or_on_what_it_holds(tiny):
    hp = ppo.Config(lam=0.9)
    rollout, _ = scored(tiny(), hp)
    mask = rollout.response_mask
    wide = copy.copy(rollout)
    wide.response_mask = F.pad(mask, (0, 3), value=False)
    for name in ("values", "old_logprobs", "ref_logprobs"):
        junk = torch.where(mask, getattr(rollout, name), torch.nan)
        setattr(wide, name, F.pad(junk, (0, 3), value=torch.nan))
    A = ppo.advantages(wide, hp)
    T = mask.shape[1]
    assert torch.equal(A[:, :T], rollout.advantages) and A[:, T:].eq(0).all()
    assert torch.equal(wide.returns[:, :T], rollout.returns)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # of the explained variance
def test_one_token_in_all_divides_by_nothing(tiny):
    hp = ppo.Config(kl_coef=0.0)
    rollout, _ = scored(tiny(), hp)
    rollout.response_mask[:, 1:] = False
    assert ppo.advantages(rollout.select(torch.tensor([0])), hp).eq(0).all()


@pytest.mark.parametrize("tokens", [10**9, 1])
def test_a_response_whose_reward_is_unknown_is_as_if_not_sampled(tiny, tokens):
    """Gradients and metrics of policy and critic are those of the batch without these rows."""
    model = tiny().double()
    hp = ppo.Config(kl_coef=0.3)
    rollout, nets = scored(model, hp)
    rest = rollout.select(torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 10, 11]))
    rollout.rewards[[2, 9]] = torch.nan
    results = []
    for batch in (rollout, rest):
        batch.advantages = ppo.advantages(batch, hp)
        assert batch.advantages.isfinite().all() and batch.returns.isfinite().all()
        gradients, metrics = step_gradient(ppo, nets, batch, hp, tokens)
        results.append((gradients, metrics | batch.metrics))
    (with_nan, nan_metrics), (without, metrics) = results
    for name in ("policy", "critic"):
        assert without[name].norm() > 1e-3
        assert (with_nan[name] - without[name]).abs().max() < 1e-9
    assert nan_metrics == pytest.approx(metrics, abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_a_rollout_of_unknown_rewards_only_is_left_out(tiny):
    hp = ppo.Config(kl_coef=0.3)
    rollout, _ = scored(tiny(), hp)
    rollout.rewards[:] = torch.nan
    assert ppo.advantages(rollout, hp).eq(0).all() and not rollout.response_mask.any()


@pytest.mark.parametrize("factor, explained", [(1.0, 1.0), (0.0, 0.0), (2.0, 0.0), (-1.0, -3.0)])
def test_explained_variance_by_hand(tiny, factor, explained):
    """1 - var(R - V) / var(R) = 1 - (1 - factor)^2 for V = factor * R. Padding holds NaN."""
    hp = ppo.Config(kl_coef=0.0)
    rollout, _ = scored(tiny(), hp)
    values = factor * rollout.rewards[:, None]
    rollout.values = torch.where(rollout.response_mask, values, torch.nan)
    ppo.advantages(rollout, hp)
    assert rollout.metrics["explained_variance"] == pytest.approx(explained, abs=1e-5)


# --- Losses -----------------------------------------------------------------------------------


def test_value_loss_by_hand():
    """Old values 0, clip 0.2.

    0.5 is clipped to 0.2, which is further from its return 1 and counts. 0.1 is within. 0.5 would
    be clipped to 0.2, nearer to its return 0, so the unclipped one counts."""
    values = torch.tensor([[0.5, 0.1, 0.5]], requires_grad=True, **F64)
    returns = torch.tensor([[1.0, 1.0, 0.0]], **F64)
    weights = torch.full((1, 3), 0.5, **F64)
    old_values = torch.zeros(1, 3, **F64)
    loss = ppo.value_loss(values, old_values, returns, weights, ppo.Config(value_clip=0.2))
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * (0.8**2 + 0.9**2 + 0.5**2))
    assert values.grad[0].tolist() == pytest.approx([0.0, 0.5 * -0.9, 0.5 * 0.5])


def test_value_clip_only_adds():
    generator = torch.Generator().manual_seed(1)
    values, old_values, returns = torch.randn(3, 4, 5, generator=generator)
    weights = torch.rand(4, 5, generator=generator)
    plain = ((values - returns) ** 2 * weights).sum() / 2
    clipped = ppo.value_loss(values, old_values, returns, weights, ppo.Config(value_clip=0.2))
    loose = ppo.value_loss(values, old_values, returns, weights, ppo.Config(value_clip=99.0))
    assert clipped > plain + 1e-3
    assert torch.allclose(loose, plain)


def move_policy(rollout, size=0.2):
    """As if the policy had moved since it sampled: other old log-probs."""
    generator = torch.Generator().manual_seed(5)
    moved = size * torch.randn(rollout.old_logprobs.shape, generator=generator)
    rollout.old_logprobs = rollout.old_logprobs + moved * rollout.response_mask


@pytest.mark.parametrize("minibatches, epochs", [(1, 1), (4, 1), (1, 2)])
def test_ppo_with_grpos_advantages_is_grpo(tiny, minibatches, epochs):
    """Fed GRPO's advantages, without KL, off-policy: the same gradient, to the bit."""
    model = tiny().double()
    rollout, nets = scored(model, ppo.Config(kl_coef=0.0))
    rollout.advantages = grpo.advantages(rollout, grpo.Config(group_size=4))
    rollout.returns = rollout.values  # no value loss
    move_policy(rollout)
    flags = dict(minibatches=minibatches, epochs=epochs, kl_coef=0.0)
    of_ppo, ppo_metrics = step_gradient(ppo, nets, rollout, ppo.Config(**flags))
    hp = grpo.Config(**flags)
    of_grpo, grpo_metrics = step_gradient(grpo, grpo.networks(model, hp), rollout, hp)
    assert torch.equal(of_ppo["policy"], of_grpo["policy"]) and of_grpo["policy"].norm() > 1e-3
    assert of_ppo["critic"].abs().max() < 1e-9  # it says what it said
    assert ppo_metrics == pytest.approx(grpo_metrics | {"value_clip": 0})
    clipped = grpo_metrics["clip_low"] + grpo_metrics["clip_high"]
    assert (clipped > 0) == (minibatches * epochs > 1)


def test_the_critics_loss_does_not_reach_the_policy(tiny):
    """The policy's gradient does not depend on the returns, the critic's not on the advantages."""
    hp = ppo.Config(kl_coef=0.0)
    rollout, nets = scored(tiny().double(), hp)
    before, _ = step_gradient(ppo, nets, rollout, hp)
    assert before["critic"].norm() > 1e-3
    rollout.returns = rollout.returns + 3
    other_returns, _ = step_gradient(ppo, nets, rollout, hp)
    assert torch.equal(other_returns["policy"], before["policy"])
    assert not torch.allclose(other_returns["critic"], before["critic"])
    rollout.advantages = -2 * rollout.advantages
    other_advantages, _ = step_gradient(ppo, nets, rollout, hp)
    assert torch.equal(other_advantages["critic"], other_returns["critic"])
    assert not torch.allclose(other_advantages["policy"], before["policy"])


@pytest.mark.parametrize("tokens", [10**9, 30])
def test_critic_warmup_trains_the_critic_only(tiny, tokens):
    """In the rollouts before critic_warmup the policy has no gradient, and the critic its own."""
    model = tiny().double()
    rollout, nets = scored(model, ppo.Config())
    usual, metrics = step_gradient(ppo, nets, rollout, ppo.Config(), tokens)
    assert usual["policy"].norm() > 1e-3
    hp = ppo.Config(critic_warmup=2)
    for step, warm in ((0, True), (1, True), (2, False), (3, False)):
        rollout.step = step
        gradients, sums = step_gradient(ppo, nets, rollout, hp, tokens)
        want = torch.zeros_like(usual["policy"]) if warm else usual["policy"]
        assert torch.equal(gradients["policy"], want)
        assert torch.equal(gradients["critic"], usual["critic"]) and sums == metrics


def test_loss_equals_the_formulas_written_out(tiny):
    """Equations (4) to (7), token by token, in float64."""
    hp = ppo.Config(lam=0.9, clip_low=0.1, clip_high=0.15, value_clip=0.05)
    rollout, nets = scored(tiny().double(), hp)
    move_policy(rollout)
    generator = torch.Generator().manual_seed(7)
    rollout.values = rollout.values + 0.2 * torch.randn(rollout.values.shape, generator=generator)
    _, metrics = step_gradient(ppo, nets, rollout, hp)
    with torch.no_grad():
        logprobs, _ = response_logprobs(nets.policy, rollout)
        values = nets.critic.value(response_states(nets.critic, rollout))
    want = 0.0
    for i, T in enumerate(rollout.lengths.tolist()):
        for t in range(T):
            ratio = (logprobs[i, t] - rollout.old_logprobs[i, t]).exp().item()
            A = rollout.advantages[i, t].item()
            clip = min(ratio * A, max(min(ratio, 1.15), 0.9) * A)
            V, V_old = values[i, t].item(), rollout.values[i, t].item()
            target = rollout.returns[i, t].item()
            near = V_old + max(-0.05, min(0.05, V - V_old))
            value_loss = max((V - target) ** 2, (near - target) ** 2) / 2
            want += (value_loss - clip) / T / 12
    # old_logprobs and advantages hold fp32 numbers
    assert metrics["loss"] == pytest.approx(want, rel=1e-6)
    moved = (values - rollout.values).abs() > 0.05
    assert metrics["value_clip"] == (moved & rollout.response_mask).sum()


# --- The critic -------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"qk_norm": True}])
def test_critic_is_as_large_as_the_policy_and_starts_at_0(tiny, changes):
    policy = tiny(**changes)
    critic = Critic(policy)
    size = sum(p.numel() for p in policy.parameters())
    if policy.lm_head is not None:
        size -= policy.lm_head.weight.numel()
    assert sum(p.numel() for p in critic.parameters()) == size + policy.config.n_embd + 1
    ids = torch.randint(37, (2, 9))
    assert torch.equal(critic(ids), policy(ids)) and critic.value(critic(ids)).eq(0).all()
    memory_of_policy = {p.data_ptr() for p in policy.parameters()}
    assert not any(p.data_ptr() in memory_of_policy for p in critic.parameters())


def test_values_see_only_what_came_before(tiny):
    """V at column t is of the state before token t: neither that token nor a later one counts."""
    hp = ppo.Config(kl_coef=0.0)
    rollout, nets = scored(tiny(), hp)
    other = copy.copy(rollout)
    other.response_ids = rollout.response_ids.clone()
    other.response_ids[:, 3:] = 5
    ppo.score(nets, other, hp)
    long = rollout.lengths > 4
    assert long.any()
    assert torch.allclose(other.values[long, :4], rollout.values[long, :4], atol=1e-5)
    assert not torch.allclose(other.values[long, 4], rollout.values[long, 4], atol=1e-5)


# --- The pair ---------------------------------------------------------------------------------

NAMES = "Config networks update_reference score advantages weights objective loss".split()


@pytest.mark.parametrize("algo", [grpo, ppo, variants], ids=lambda module: module.__name__)
def test_every_page_has_the_same_names_in_the_same_order(algo):
    """Some may be another page's."""
    defined = re.findall(r"^(?:def|class) (\w+)", inspect.getsource(algo), re.MULTILINE)
    own = [name for name in NAMES if getattr(algo, name).__module__ == algo.__name__]
    assert [name for name in defined if name in NAMES] == own
    for name in NAMES[1:]:
        ours, theirs = [inspect.signature(getattr(page, name)) for page in (algo, grpo)]
        assert list(ours.parameters) == list(theirs.parameters)[: len(ours.parameters)], name


@pytest.mark.parametrize("algo, numbers", [(grpo, "12345"), (ppo, "1234567")])
def test_the_numbers_in_the_code_are_those_of_the_docstring(algo, numbers):
    stated = set(re.findall(r"\((\d)\)\n", algo.__doc__))
    code = inspect.getsource(algo).split('"""', 2)[2]
    assert stated == set(re.findall(r"# .*\((\d)\)", code)) == set(numbers)
