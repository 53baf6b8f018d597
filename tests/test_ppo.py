"""PPO against sums written out, numbers done by hand, and GRPO."""
import copy
import inspect
import re

import pytest
import torch

import grpo
import ppo
from model import Critic
from sampler import sample

F64 = dict(dtype=torch.float64)


# --- generalized advantage estimation --------------------------------------------------------------------------------

def gae_by_definition(rewards, values, mask, gamma, lam):
    """A_t = sum over k >= 0 of (gamma lam)^k (r_t+k + gamma V_t+k+1 - V_t+k), where V after the last token is 0."""
    A = torch.zeros_like(rewards)
    for i, T in enumerate(mask.sum(1).tolist()):
        r, V = rewards[i, :T].tolist(), values[i, :T].tolist() + [0.0]
        for t in range(T):
            A[i, t] = sum((gamma * lam) ** k * (r[t + k] + gamma * V[t + k + 1] - V[t + k]) for k in range(T - t))
    return A


def ragged(N=6, T=9, garbage=float("nan")):
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(T) < torch.tensor([9, 1, 4, 8, 2, 5])[:N, None]
    rewards, values = (torch.randn(N, T, generator=g, **F64) for _ in range(2))
    return torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_its_double_sum(gamma, lam):
    rewards, values, mask = ragged()                              # everything after a response's end is NaN
    A, returns = ppo.gae(rewards, values, mask, gamma, lam)
    assert (A - gae_by_definition(rewards, values, mask, gamma, lam)).abs().max() < 1e-12
    assert torch.equal(returns, A + values.nan_to_num(0.0)) and A[~mask].eq(0).all() and returns[~mask].eq(0).all()


@pytest.mark.parametrize("lam, first, second, third", [
    (0.0, [0.2, 0.3, 0.0], [0.0], [0.4, 0.0]),                    # one step: V_t+1 - V_t, and at the end R - V_t
    (0.5, [0.35, 0.3, 0.0], [0.0], [0.4, 0.0]),                   # 0.2 + 0.5 * 0.3
    (1.0, [0.5, 0.3, 0.0], [0.0], [0.4, 0.0]),                    # R - V_t
])
def test_gae_by_hand(lam, first, second, third):
    """Rewards 1, 0.25 and 0 at the ends; V as below. Row 2 is one token long and exactly foreseen."""
    rewards = torch.tensor([[0, 0, 1.0], [0.25, 7, 7], [0, 0, 7]], **F64)
    values = torch.tensor([[0.5, 0.7, 1.0], [0.25, 7, 7], [-0.4, 0.0, 7]], **F64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    A, _ = ppo.gae(rewards, values, mask, 1.0, lam)
    for row, want in zip(A, (first, second, third)):
        assert row[:len(want)].tolist() == pytest.approx(want, abs=1e-12) and row[len(want):].eq(0).all()


def test_gae_at_095_by_hand():
    A, returns = ppo.gae(torch.tensor([[0., 0., 1.]], **F64), torch.tensor([[.5, .5, .5]], **F64), torch.ones(1, 3).bool(), 1.0, 0.95)
    assert A[0].tolist() == pytest.approx([0.5 * 0.95 ** 2, 0.5 * 0.95, 0.5])                  # only the end surprises
    assert returns[0].tolist() == pytest.approx([0.5 + 0.5 * 0.95 ** 2, 0.5 + 0.5 * 0.95, 1.0])


def test_gae_leaves_its_inputs_alone():
    rewards, values, mask = ragged(garbage=3.0)
    before = rewards.clone(), values.clone()
    ppo.gae(rewards, values, mask, 1.0, 0.95)
    assert torch.equal(rewards, before[0]) and torch.equal(values, before[1])


# --- advantages -----------------------------------------------------------------------------------------------------

def rollout_of(model, G=4, seed=3):
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    rollout = sample(model, prompts, G, 9, eos_id=1, seed=seed)
    rollout.rewards = torch.rand(len(prompts) * G, generator=torch.Generator().manual_seed(seed)).to(rollout.old_logprobs.dtype)
    assert len(set(rollout.lengths.tolist())) > 2
    return rollout


def scored(model, hp, seed=3):
    rollout, nets = rollout_of(model, seed=seed), ppo.networks(model, hp)
    g = torch.Generator().manual_seed(seed)
    for net in (nets.critic.value_head, nets.ref):
        for p in net.parameters() if net is not None else ():
            p.data += 0.05 * torch.randn(p.shape, generator=g).to(p)
    ppo.score(nets, rollout, hp)
    return rollout, nets


def test_lambda_1_is_reward_minus_value(tiny):
    rollout, _ = scored(tiny(), ppo.Config(group_size=4, kl_coef=0))
    A = ppo.advantages(rollout, ppo.Config(group_size=4, kl_coef=0))
    mask = rollout.response_mask
    raw = torch.where(mask, rollout.rewards[:, None] - rollout.values, 0.0)
    assert torch.allclose(rollout.returns, torch.where(mask, rollout.rewards[:, None], 0.0), atol=1e-6)
    assert torch.allclose(A[mask], (raw[mask] - raw[mask].mean()) / raw[mask].std(correction=0), atol=1e-5)
    assert abs(A[mask].mean()) < 1e-6 and A[mask].std(correction=0).item() == pytest.approx(1, abs=1e-5) and A[~mask].eq(0).all()


def test_the_kl_is_in_the_reward_of_each_token(tiny):
    """gamma = lam = 1: the return at t is R less the price of all tokens from t on."""
    hp = ppo.Config(group_size=4, kl_coef=0.3)
    rollout, _ = scored(tiny(), hp)
    ppo.advantages(rollout, hp)
    d = rollout.old_logprobs - rollout.ref_logprobs
    assert d.abs().max() > 0.01
    for i, T in enumerate(rollout.lengths.tolist()):
        want = [rollout.rewards[i].item() - 0.3 * sum(d[i, t:T].tolist()) for t in range(T)]
        assert rollout.returns[i, :T].tolist() == pytest.approx(want, abs=1e-5)


def test_advantages_do_not_depend_on_padding_or_on_what_it_holds(tiny):
    hp = ppo.Config(group_size=4, lam=0.9)
    rollout, _ = scored(tiny(), hp)
    A, wide = ppo.advantages(rollout, hp), copy.copy(rollout)
    for name, junk in (("values", torch.nan), ("old_logprobs", torch.nan), ("ref_logprobs", torch.nan), ("response_mask", False)):
        x = getattr(rollout, name).clone()
        if x.dtype != torch.bool:
            x[~rollout.response_mask] = junk
        setattr(wide, name, torch.nn.functional.pad(x, (0, 3), value=junk))
    assert torch.equal(ppo.advantages(wide, hp)[:, :A.shape[1]], A) and torch.equal(wide.returns[:, :A.shape[1]], rollout.returns)


def test_one_token_in_all_divides_by_nothing(tiny):
    rollout, nets = scored(tiny(), ppo.Config(kl_coef=0))
    rollout = rollout.rows(torch.tensor([0]))
    for name in ("response_ids", "response_mask", "old_logprobs", "values"):
        setattr(rollout, name, getattr(rollout, name)[:, :1])
    assert ppo.advantages(rollout, ppo.Config(kl_coef=0)).eq(0).all()


def test_a_response_whose_reward_is_unknown_is_as_if_not_sampled(tiny):
    """NaN rewards: the gradients of policy and critic are those of the batch without these rows, however it is cut."""
    model, hp, gradients = tiny().double(), ppo.Config(group_size=4, kl_coef=0.3), []
    for cut in (False, True):
        rollout, nets = scored(model, hp)
        rollout.rewards[[2, 9]] = torch.nan
        rollout = rollout.rows(torch.tensor([i for i in range(12) if i not in (2, 9)])) if cut else rollout
        rollout.advantages = ppo.advantages(rollout, hp)
        assert rollout.advantages.isfinite().all() and rollout.returns.isfinite().all()
        gradients += [step_gradient(ppo, nets, rollout, hp, tokens)[0] for tokens in (10 ** 9, 1)]
    for name, first in gradients[0].items():
        assert first.norm() > 1e-3 and all((g[name] - first).abs().max() < 1e-9 for g in gradients[1:])
    rollout.rewards[:] = torch.nan
    assert ppo.advantages(rollout, hp).eq(0).all() and not rollout.response_mask.any()


# --- losses ---------------------------------------------------------------------------------------------------------

def test_value_loss_by_hand():
    """Targets 1, 1, 0; old values 0; clip 0.2. New values 0.5 (clipped: .2, further away, counts), 0.1 (within), 0.5 (the
    clipped value is nearer to 0, so the unclipped one counts)."""
    values = torch.tensor([[0.5, 0.1, 0.5]], requires_grad=True, **F64)
    weights, old = torch.full((1, 3), 0.5, **F64), torch.zeros(1, 3, **F64)
    loss = ppo.value_loss(values, old, torch.tensor([[1.0, 1.0, 0.0]], **F64), weights, ppo.Config(value_clip=0.2))
    loss.backward()
    assert loss.item() == pytest.approx(0.25 * (0.8 ** 2 + 0.9 ** 2 + 0.5 ** 2))
    assert values.grad[0].tolist() == pytest.approx([0.0, 0.5 * -0.9, 0.5 * 0.5])                # clipped: no gradient


def test_value_clip_only_adds():
    g = torch.Generator().manual_seed(1)
    values, old, returns = (torch.randn(4, 5, generator=g) for _ in range(3))
    weights = torch.rand(4, 5, generator=g)
    plain = ((values - returns) ** 2 * weights).sum() / 2
    clipped = ppo.value_loss(values, old, returns, weights, ppo.Config(value_clip=0.2))
    assert clipped > plain + 1e-3
    assert torch.allclose(ppo.value_loss(values, old, returns, weights, ppo.Config(value_clip=99.0)), plain)


@pytest.mark.parametrize("A, ratio, value, slope, low, high", [
    (+1., 0.5, 0.5, 0.5, 0, 0), (+1., 1.0, 1.0, 1.0, 0, 0), (+1., 1.5, 1.3, 0.0, 0, 1),      # A > 0: only above is cut
    (-1., 0.5, -0.8, 0.0, 1, 0), (-1., 1.0, -1.0, -1.0, 0, 0), (-1., 1.5, -1.5, -1.5, 0, 0),   # A < 0: only below
])
def test_clip_truth_table(A, ratio, value, slope, low, high):
    logp = torch.tensor([[ratio]]).log().requires_grad_()
    J, metrics = ppo.objective(logp, torch.zeros(1, 1), torch.tensor([[A]]), torch.ones(1, 1).bool(), ppo.Config(clip_low=0.2, clip_high=0.3))
    J.sum().backward()
    assert (J.item(), logp.grad.item()) == (pytest.approx(value, abs=1e-6), pytest.approx(slope, abs=1e-6))
    assert (metrics["clip_low"].item(), metrics["clip_high"].item()) == (low, high)


def step_gradient(algo, nets, rollout, hp, tokens=10 ** 9):
    rollout = copy.copy(rollout)
    rollout.weights = algo.weights(rollout.response_mask, hp)
    for net in vars(nets).values():
        net and net.zero_grad()
    metrics = {}
    for piece in rollout.micro_batches(tokens):
        loss, sums = algo.loss(nets, rollout.rows(piece), hp)
        loss.backward()
        metrics = {name: metrics.get(name, 0) + value for name, value in sums.items()}
    return {name: torch.cat([p.grad.flatten() for p in net.parameters()]) for name, net in vars(nets).items()
            if net is not None and name != "ref"}, metrics


@pytest.mark.parametrize("minibatches, epochs", [(1, 1), (4, 1), (1, 2)])
@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_ppo_with_grpos_advantages_is_grpo(tiny, aggregate, minibatches, epochs):
    """Fed GRPO's advantages, without KL, with a policy that has moved since it sampled: the same gradient, to the bit."""
    model = tiny().double()
    rollout, nets = scored(model, ppo.Config(kl_coef=0))
    rollout.advantages = grpo.advantages(rollout, grpo.Config(group_size=4))
    rollout.returns = rollout.values                                                            # no value loss
    rollout.old_logprobs = rollout.old_logprobs + 0.2 * torch.randn(rollout.old_logprobs.shape, generator=torch.Generator().manual_seed(5))
    common = dict(aggregate=aggregate, minibatches=minibatches, epochs=epochs, kl_coef=0)
    of_ppo, ppo_metrics = step_gradient(ppo, nets, rollout, ppo.Config(**common))
    of_grpo, grpo_metrics = step_gradient(grpo, grpo.networks(model, grpo.Config(**common)), rollout, grpo.Config(**common))
    assert torch.equal(of_ppo["policy"], of_grpo["policy"]) and of_grpo["policy"].norm() > 1e-3
    assert of_ppo["critic"].abs().max() < 1e-9                                                  # it says what it said
    assert {k: ppo_metrics[k] for k in grpo_metrics} == grpo_metrics
    assert (grpo_metrics["clip_low"] + grpo_metrics["clip_high"] > 0) == (minibatches * epochs > 1)


def test_the_critics_loss_does_not_reach_the_policy(tiny):
    """The policy's gradient is the same whatever the returns are, and the critic's whatever the advantages are."""
    model, hp = tiny().double(), ppo.Config(kl_coef=0)
    rollout, nets = scored(model, hp)
    rollout.advantages = ppo.advantages(rollout, hp)
    before, _ = step_gradient(ppo, nets, rollout, hp)
    rollout.returns = rollout.returns + 3
    returns, _ = step_gradient(ppo, nets, rollout, hp)
    assert torch.equal(before["policy"], returns["policy"]) and not torch.allclose(before["critic"], returns["critic"])
    rollout.advantages = -2 * rollout.advantages
    changed, _ = step_gradient(ppo, nets, rollout, hp)
    assert torch.equal(changed["critic"], returns["critic"]) and not torch.allclose(changed["policy"], before["policy"])
    assert before["critic"].norm() > 1e-3
    shared = {p.data_ptr() for p in nets.policy.parameters()} & {p.data_ptr() for p in nets.critic.parameters()}
    assert not shared


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_gradient_does_not_depend_on_how_a_step_is_cut(tiny, aggregate):
    hp = ppo.Config(group_size=4, aggregate=aggregate, lam=0.9)
    rollout, nets = scored(tiny().double(), hp)
    rollout.advantages = ppo.advantages(rollout, hp)
    whole, metrics = step_gradient(ppo, nets, rollout, hp)
    for tokens in (1, 30):
        cut, sums = step_gradient(ppo, nets, rollout, hp, tokens)
        assert all((cut[n] - whole[n]).abs().max() < 1e-10 for n in whole) and whole["critic"].norm() > 1e-3
        assert all(float(sums[n]) == pytest.approx(float(metrics[n]), abs=1e-4) for n in metrics)


def test_loss_equals_the_formulas_written_out(tiny):
    """Equations (4) to (7), token by token, in float64."""
    hp = ppo.Config(group_size=4, lam=0.9, clip_low=0.1, clip_high=0.15, value_clip=0.05)
    rollout, nets = scored(tiny().double(), hp)
    rollout.advantages = ppo.advantages(rollout, hp)
    g = torch.Generator().manual_seed(7)
    rollout.old_logprobs = rollout.old_logprobs + 0.2 * torch.randn(rollout.old_logprobs.shape, generator=g)
    rollout.values = rollout.values + 0.2 * torch.randn(rollout.values.shape, generator=g)
    rollout.weights = ppo.weights(rollout.response_mask, hp)
    from logprobs import response_logprobs, response_states
    with torch.no_grad():
        logp, V = response_logprobs(nets.policy, rollout)[0], nets.critic.value(response_states(nets.critic, rollout))
        got = ppo.loss(nets, rollout, hp)[0].item()
    want = 0.0
    for i, T in enumerate(rollout.lengths.tolist()):
        for t in range(T):
            ratio, A = (logp[i, t] - rollout.old_logprobs[i, t]).exp().item(), rollout.advantages[i, t].item()
            clip = min(ratio * A, max(min(ratio, 1.15), 0.9) * A)
            old, target, v = rollout.values[i, t].item(), rollout.returns[i, t].item(), V[i, t].item()
            near = old + max(-0.05, min(0.05, v - old))
            want += (max((v - target) ** 2, (near - target) ** 2) / 2 - clip) / T / len(rollout.rewards)
    assert got == pytest.approx(want, rel=1e-6)                   # old_logprobs and advantages hold fp32 numbers


# --- the critic -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [dict(), dict(tie_embeddings=False), dict(qk_norm=True)])
def test_critic_is_as_large_as_the_policy_and_starts_at_0(tiny, changes):
    policy = tiny(**changes)
    critic = Critic(policy)
    body = sum(p.numel() for p in policy.parameters()) - (0 if policy.lm_head is None else policy.lm_head.weight.numel())
    assert sum(p.numel() for p in critic.parameters()) == body + policy.config.n_embd + 1
    ids = torch.randint(37, (2, 9))
    assert critic.value(critic(ids)).eq(0).all() and torch.equal(critic(ids), policy(ids))


def test_values_see_only_what_came_before(tiny):
    """V at column t is about the state before token t: it does not change with token t or a later one."""
    hp = ppo.Config(kl_coef=0)
    rollout, nets = scored(tiny(), hp)
    other = copy.copy(rollout)
    other.response_ids = rollout.response_ids.clone()
    other.response_ids[:, 3:] = 5
    ppo.score(nets, other, hp)
    full = rollout.lengths > 4
    assert full.any() and torch.allclose(other.values[full, :4], rollout.values[full, :4], atol=1e-5)
    assert not torch.allclose(other.values[full, 4], rollout.values[full, 4], atol=1e-5)


# --- the pair -------------------------------------------------------------------------------------------------------

def test_the_kl_metric_is_k3(tiny):
    """0.5 and -1 nats above the reference: e^-0.5 + 0.5 - 1 and e^1 - 1 - 1, in both."""
    logp, mask = torch.tensor([[-1.0, -2.0, -7.0]]), torch.tensor([[True, True, False]])
    for algo in (grpo, ppo):
        _, metrics = algo.objective(logp, logp, mask * 1.0, mask, algo.Config(), torch.tensor([[-1.5, -1.0, torch.nan]]))
        assert metrics["kl"].item() == pytest.approx(0.1065307 + 0.7182818, abs=1e-5)


def test_both_pages_have_the_same_names_in_the_same_order():
    pair = "Config networks score advantages weights objective loss".split()
    for name in pair[1:]:
        assert str(inspect.signature(getattr(grpo, name))) == str(inspect.signature(getattr(ppo, name)))
    order = lambda module: [n for n in re.findall(r"^(?:def|class) (\w+)", inspect.getsource(module), re.M) if n in pair]
    assert order(grpo) == pair and order(ppo) == [n for n in pair if n != "weights"] and ppo.weights is grpo.weights


def test_the_numbers_in_the_code_are_those_of_the_docstring():
    stated = set(re.findall(r"\((\d)\)\n", ppo.__doc__))
    code = inspect.getsource(ppo).split('"""', 2)[2]
    assert stated == set(re.findall(r"# .*\((\d)\)", code)) == set("1234567")
