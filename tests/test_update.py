"""The whole update of a rollout against a naive one, and small tests of what no other test holds.

The naive update is written from the equations of grpo.py, ppo.py and variants.py, and calls none of
their functions: one response at a time, no padding, no cache, the whole softmax, all in float64,
with a loop over the optimizer steps of its own."""

import contextlib
import copy
import itertools
import json
import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, flat_gradient

import evaluate
import grpo
import logprobs
import ppo
import sampler
import train
import variants
from fast import tiles
from plumbing.flags import fill
from stages import sft


@contextlib.contextmanager
def float64():
    """New tensors are float64: shares of a loss, advantages, and what is added up."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


# --- The settings -----------------------------------------------------------------------------

NAN = math.nan
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [14, 15, 16, 17, 18, 19, 20]]
REWARDS = [1.0, 0.0, NAN, 0.4]  # one group a line
REWARDS += [0.3, 0.3, NAN, 0.3]
REWARDS += [0.1, 1.1, 0.2, 0.0]
REWARDS += [NAN, NAN, NAN, NAN]
STEP = 2  # the update is that of the third rollout
FLAGS = dict(group_size=4, seed=5, lr=2e-3, critic_lr=1e-2)
# narrow, so that a few small steps get to what is clipped
FLAGS |= dict(clip_low=0.03, clip_high=0.05, cap=1.04, value_clip=0.03, constant=7)
FLAGS |= dict(gamma=0.97, lam=0.9)

OF_A_STEP = {
    "minibatches, epochs": [(1, 1), (4, 1), (1, 2), (3, 2)],
    "lag": [0, 2],
    "temperature": [1.0, 0.7],
    # 40: each prompt's rows by themselves; 120: all prompts shared by several micro-batches
    "tokens_per_microbatch": [1, 40, 120, 10**9],
    "clip_norm": [0.02, 1e9],
}
AXES = {
    grpo: OF_A_STEP | {"kl": [None, "k3"]},
    ppo: OF_A_STEP | {"kl": [None, "reward"], "critic_warmup": [0, STEP + 1]},
    variants: {
        "kl": [None, *variants.KL_ESTIMATORS],
        "pool_kl": [False, True],
        "ratio": variants.RATIOS,
        "trust": variants.TRUSTS,
        "mask_threshold": [1e9, 0.01],
        "baseline": variants.BASELINES,
        "scale": variants.SCALES,
        "loss_aggregation": variants.AGGREGATIONS,
    }
    | OF_A_STEP,
}


def pairs_of(setting):
    return set(itertools.combinations(setting.items(), 2))


def covering(axes):
    """Few settings, {axis: value}, such that any two values of two axes meet in one of them."""
    rng = random.Random(0)
    wanted = set()
    for a, b in itertools.combinations(axes, 2):
        for x, y in itertools.product(axes[a], axes[b]):
            wanted.add(((a, x), (b, y)))
    settings = []
    while wanted:
        drawn = [{name: rng.choice(axes[name]) for name in axes} for _ in range(50)]
        best = max(drawn, key=lambda setting: len(pairs_of(setting) & wanted))
        if pairs_of(best) & wanted:
            settings.append(best)
            wanted -= pairs_of(best)
    return settings


def flags_of(setting):
    minibatches, epochs = setting["minibatches, epochs"]
    flags = FLAGS | setting | {"minibatches": minibatches, "epochs": epochs, "kl_coef": 0.3}
    if setting["kl"] is None:
        flags |= {"kl": "k3", "kl_coef": 0.0}
    return flags


def all_settings():
    parameters = []
    for algo, axes in AXES.items():
        for setting in covering(axes):
            name = "-".join(str(value) for value in setting.values())
            parameters.append(pytest.param(algo, setting, id=f"{algo.__name__}-{name}"))
    return parameters


# --- The naive update -------------------------------------------------------------------------


@dataclass
class Response:
    """One response without padding. T tokens: all tensors are (T,)."""

    prompt: list
    ids: list
    reward: float
    old: torch.Tensor  # log pi_old
    ref: torch.Tensor = None  # log pi_ref
    A: torch.Tensor = None  # advantages
    values: torch.Tensor = None  # the critic's, before it learns
    returns: torch.Tensor = None
    lag: int = 0  # of its rollout


def unpadded(rollout):
    responses = []
    for i in range(len(rollout.rewards)):
        prompt = rollout.prompt_ids[i, rollout.prompt_start[i] :].tolist()
        T = int(rollout.response_mask[i].sum())
        ids = rollout.response_ids[i, :T].tolist()
        old = rollout.old_logprobs[i, :T].clone()
        response = Response(prompt, ids, float(rollout.rewards[i]), old, lag=rollout.lag)
        responses.append(response)
    return responses


def states(net, response):
    """The state before each token of the response: (T, C)."""
    hidden = net(torch.tensor([response.prompt + response.ids]))[0]
    return hidden[len(response.prompt) - 1 : -1]


def log_pi(policy, response, temperature):
    """log pi of each token, and the entropy there."""
    logits = states(policy, response) @ policy.head.T / temperature
    table = logits.log_softmax(-1)
    tokens = torch.arange(len(response.ids))
    return table[tokens, response.ids], -(table.exp() * table).sum(-1)


def value(critic, response):
    return states(critic, response) @ critic.value_head.weight[0] + critic.value_head.bias


def compared(rewards, baseline, scale):
    """Rewards of groups of 4, some NaN -> advantages: grpo.py (1) and the choices beside it."""
    advantages = []
    for first in range(0, len(rewards), 4):
        group = rewards[first : first + 4]
        judged = [r for r in group if not math.isnan(r)]
        A = []
        for r in group:
            if math.isnan(r):
                A.append(0.0)
            elif baseline == "none":
                A.append(r)
            elif len(set(judged)) == 1:
                A.append(0.0)
            elif baseline == "others":
                A.append(r - (sum(judged) - r) / (len(judged) - 1))
            else:
                A.append(r - sum(judged) / len(judged))
        if scale == "group" and any(A):
            rms = math.sqrt(sum(a * a for a in A) / len(judged))
            A = [a / rms for a in A]
        if scale == "mean":
            A = [a * len(judged) / sum(judged) if sum(judged) > 0 else 0.0 for a in A]
        advantages += A
    return advantages


def set_group_advantages(responses, hp):
    rewards = [response.reward for response in responses]
    advantages = compared(rewards, hp.baseline, hp.scale)
    prices = [0.0] * len(responses)
    if hp.kl_coef and hp.kl == "reward":
        for i, response in enumerate(responses):
            prices[i] = hp.kl_coef * float((response.old - response.ref).sum())
            if math.isnan(response.reward):
                prices[i] = NAN
        prices = compared(prices, hp.baseline, "none")
    for response, A, price in zip(responses, advantages, prices, strict=True):
        response.A = torch.full((len(response.ids),), A - price)


def set_ppo_advantages(responses, hp):
    """ppo.py (1) to (3) -> the explained variance"""
    judged = [response for response in responses if not math.isnan(response.reward)]
    for response in judged:
        T = len(response.ids)
        pay = torch.zeros(T)
        if hp.kl_coef:
            pay -= hp.kl_coef * (response.old - response.ref)  # (1)
        pay[-1] += response.reward
        response.A = torch.zeros(T)
        A = next_value = 0.0
        for t in reversed(range(T)):
            delta = pay[t] + hp.gamma * next_value - response.values[t]  # (2)
            A = delta + hp.gamma * hp.lam * A  # (3)
            response.A[t] = A
            next_value = response.values[t]
        response.returns = response.A + response.values
    every = torch.cat([response.A for response in judged])
    for response in judged:
        response.A = (response.A - every.mean()) / every.std(correction=0)
    returns = torch.cat([response.returns for response in judged])
    values = torch.cat([response.values for response in judged])
    return float(1 - (returns - values).var() / returns.var())


def pooled(log_ratio, kind):
    if kind == "token":
        return log_ratio
    one = log_ratio.sum() if kind == "product" else log_ratio.mean()
    return one.expand(len(log_ratio))


def objective(logp, response, hp, sums):
    """grpo.py (2) to (4), with the choices of variants.py -> J of each token."""
    A = response.A
    old = response.old
    if hp.minibatches * hp.epochs == 1 and response.lag == 0 and hp.trust != "tis":
        old = logp.detach()
    ratio = pooled(logp - old, hp.ratio).exp()
    if hp.trust == "clip":
        near = ratio.clamp(1 - hp.clip_low, 1 + hp.clip_high)
        J = torch.minimum(ratio * A, near * A)
        low = (ratio < 1 - hp.clip_low) & (A < 0)
        sums["clip_high"] += int(((ratio > 1 + hp.clip_high) & (A > 0)).sum())
    else:
        low = torch.zeros_like(A) > 0
        J = ratio.detach().clamp(max=hp.cap) * A * logp
        sums["clip_high"] += int(((ratio > hp.cap) & (A > 0)).sum())
    masked = (A < 0) & (float((old - logp).detach().mean()) > hp.mask_threshold)
    sums["clip_low"] += int((low | masked).sum())
    J = torch.where(masked, 0.0, J)
    if hp.kl_coef:
        d = logp - response.ref
        if hp.pool_kl:
            d = pooled(d, hp.ratio)
        k3 = (-d).exp() + d - 1
        kl = {"k3": k3, "rk3": ratio * k3, "reward": 0 * d}
        J = J - hp.kl_coef * kl[hp.kl]
    return J


def value_loss(V, response, value_clip):
    """ppo.py (7)"""
    moved = (V - response.values).clamp(-value_clip, value_clip)
    clipped = response.values + moved
    return torch.maximum((V - response.returns) ** 2, (clipped - response.returns) ** 2) / 2


def naive_loss(nets, batch, hp, choices, temperature, sums):
    """What an optimizer step minimises, a number; adds to the sums that become metrics."""
    critic = getattr(nets, "critic", None)
    if critic is not None:  # a response without a reward is as if not sampled
        batch = [response for response in batch if not math.isnan(response.reward)]
    tokens = sum(len(response.ids) for response in batch)
    loss = 0.0
    for response in batch:
        if nets.ref is None and critic is None and not response.A.any():
            continue  # no gradient: it counts in the mean, and nobody asks for its log-probs
        T = len(response.ids)
        if choices.loss_aggregation == "token":
            share = 1 / tokens
        elif choices.loss_aggregation == "constant":
            share = 1 / choices.constant / len(batch)
        else:
            share = 1 / T / len(batch)
        logp, entropy = log_pi(nets.policy, response, temperature)
        J = objective(logp, response, choices, sums)
        if critic is not None:
            V = value(critic, response)
            loss = loss + share * value_loss(V, response, hp.value_clip).sum()
            sums["value_clip"] += int(((V - response.values).abs() > hp.value_clip).sum())
            if hp.critic_warmup > STEP:
                J = J.detach()
        loss = loss - share * J.sum()
        logp = logp.detach()
        sums["tokens"] += T
        sums["entropy"] += float(entropy.detach().sum())
        sums["mean_abs_log_ratio"] += float((logp - response.old).abs().sum())
        if nets.ref is not None:
            d = logp - response.ref
            assert d.abs().max() < 20  # beyond that the code bounds its exponential
            sums["kl"] += float(((-d).exp() + d - 1).sum())
    if torch.is_tensor(loss):
        sums["loss"] += float(loss.detach())
    return loss


def naive_scores(algo, nets, responses, hp, choices, temperature):
    """Fills in ref, values, A and returns -> PPO's explained variance."""
    with torch.no_grad():
        for response in responses:
            if nets.ref is not None:
                response.ref, _ = log_pi(nets.ref, response, temperature)
            if algo is ppo:
                response.values = value(nets.critic, response)
    if algo is ppo:
        return set_ppo_advantages(responses, hp)
    set_group_advantages(responses, choices)
    return None


def clip_gradient(net, limit):
    """-> the norm before"""
    norm = flat_gradient(net).norm()
    for p in net.parameters():
        if p.grad is not None:
            p.grad *= min(1.0, limit / (norm + 1e-6))
    return float(norm)


def naive_update(algo, nets, responses, hp, config):
    """-> the gradients (policy, critic) of each optimizer step, metrics. Moves the networks."""
    choices = fill(variants.Config, vars(hp))  # GRPO is their defaults
    trained = {nets.policy: config.lr}
    if algo is ppo:
        choices.kl_coef = 0.0  # its KL is in the reward
        trained[nets.critic] = hp.critic_lr
    explained_variance = naive_scores(algo, nets, responses, hp, choices, config.temperature)
    optimizers = []
    for net, lr in trained.items():
        optimizers.append(torch.optim.AdamW(net.parameters(), lr, (0.9, 0.95), weight_decay=0.0))
    names = "tokens loss kl entropy clip_low clip_high value_clip mean_abs_log_ratio"
    sums = dict.fromkeys(names.split(), 0.0)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + STEP)
    steps = []
    norms = []
    for _ in range(hp.epochs):
        order = torch.arange(len(responses))
        if hp.minibatches > 1:
            order = torch.randperm(len(responses), generator=generator)
        for rows in order.tensor_split(hp.minibatches):
            batch = [responses[i] for i in rows.tolist()]
            loss = naive_loss(nets, batch, hp, choices, config.temperature, sums)
            if torch.is_tensor(loss):
                loss.backward()
            norms.append([clip_gradient(net, config.clip_norm) for net in trained])
            steps.append([flat_gradient(net) for net in trained])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if len(steps) == 1:
                gap = sums["mean_abs_log_ratio"] / sums["tokens"]
    metrics = {name: total / sums["tokens"] for name, total in sums.items()}
    if nets.ref is None:
        metrics["kl"] = NAN
    metrics["loss"] = sums["loss"] / len(steps)
    metrics["grad_norm"] = sum(of_policy for of_policy, *_ in norms) / len(steps)
    metrics["sampler_trainer_gap"] = gap
    metrics["explained_variance"] = explained_variance
    return steps, metrics


# --- The update -------------------------------------------------------------------------------


class RecordingOptimizer:
    """The run's own optimizer, which notes the gradients that it is handed."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.gradients = []  # of each step: a vector for each network
        self.policies = []  # after each step
        for group in self.param_groups:
            group["lr"] = group["base_lr"]

    def step(self):
        vectors = []
        for group in self.param_groups:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
            vectors.append(torch.cat([grad.flatten() for grad in grads]))
        self.gradients.append(vectors)
        self.optimizer.step()
        policy = self.param_groups[0]["params"]
        self.policies.append(torch.cat([p.detach().flatten() for p in policy]))

    def zero_grad(self, set_to_none):
        self.optimizer.zero_grad(set_to_none=set_to_none)


def make_run(algo, policy, flags):
    """What train.update needs of a run. The reference and the critic have moved."""
    config, hp = fill(train.Config, flags), fill(algo.Config, flags)
    nets = algo.networks(policy, hp)
    generator = torch.Generator().manual_seed(1)
    others = [net for net in vars(nets).values() if net is not None and net is not policy]
    for net in others:
        for p in net.parameters():
            p.data += 0.03 * torch.randn(p.shape, generator=generator).to(p)
    optimizer = RecordingOptimizer(train.make_optimizer(nets, hp, config.lr))
    autocast = contextlib.nullcontext()
    return SimpleNamespace(
        algo=algo, config=config, hp=hp, nets=nets, optimizer=optimizer, autocast=autocast
    )


def make_rollout(policy, temperature=1.0, lag=0):
    if lag:
        policy = copy.deepcopy(policy)
        generator = torch.Generator().manual_seed(2)
        for p in policy.parameters():
            p.data += 0.002 * torch.randn(p.shape, generator=generator).to(p)
    rollout = sampler.sample(policy, PROMPTS, 4, 9, temperature, eos_id=[1, 2, 3], seed=9)
    assert len(set(rollout.lengths.tolist())) > 3
    rollout.old_logprobs = rollout.old_logprobs.double()
    rollout.rewards = torch.tensor(REWARDS, dtype=torch.float64)
    rollout.step, rollout.lag = STEP, lag
    return rollout


def update(run, rollout):
    train.score(run, rollout)
    rollout.advantages = run.algo.advantages(rollout, run.hp)
    return train.update(run, rollout, STEP)


def check_against_naive(algo, policy, setting):
    """-> the metrics of an update whose every optimizer step got the naive gradients."""
    run = make_run(algo, policy, flags_of(setting))
    rollout = make_rollout(policy, run.config.temperature, setting.get("lag", 0))
    naive_nets = copy.deepcopy(run.nets)
    responses = unpadded(rollout)

    with float64():
        metrics = update(run, rollout)
        naive_steps, naive_metrics = naive_update(algo, naive_nets, responses, run.hp, run.config)

    assert len(run.optimizer.gradients) == run.hp.minibatches * run.hp.epochs
    for ours, naive in zip(run.optimizer.gradients, naive_steps, strict=True):
        for gradient, expected in zip(ours, naive, strict=True):
            assert (gradient - expected).norm() <= 1e-9 * expected.norm()
    for name, number in metrics.items():
        assert number == pytest.approx(naive_metrics[name], rel=1e-9, abs=1e-12, nan_ok=True), name
    gap = metrics["sampler_trainer_gap"]
    assert gap > 1e-3 if rollout.lag else gap < 1e-6
    return metrics


@pytest.mark.parametrize("algo, setting", all_settings())
def test_every_optimizer_step_gets_the_naive_gradients(tiny, algo, setting):
    metrics = check_against_naive(algo, tiny().double(), setting)
    several = setting["minibatches, epochs"] != (1, 1)
    off_policy = several or setting["lag"] > 0
    if setting.get("critic_warmup"):
        assert metrics["grad_norm"] == 0
    else:
        assert metrics["grad_norm"] > 0.1
        if setting.get("trust", "clip") == "clip":
            assert (metrics["clip_low"] + metrics["clip_high"] > 0) == off_policy
    if algo is ppo:
        assert (metrics["value_clip"] > 0) == several


@pytest.mark.parametrize("algo", [grpo, ppo])
def test_so_it_does_with_another_model_and_in_tiles(tiny, monkeypatch, algo):
    monkeypatch.setattr(logprobs, "SMALL_TABLE", 0)
    monkeypatch.setitem(tiles.TILE, "cpu", (5, 8))
    model = tiny(qkv_bias=True, qk_norm=True, tie_embeddings=False).double()
    setting = {"minibatches, epochs": (3, 2), "temperature": 0.7, "kl": "k3"}
    check_against_naive(algo, model, setting | {"tokens_per_microbatch": 60, "clip_norm": 1.0})


@pytest.mark.parametrize("algo, prompts", [(grpo, 2), (ppo, 2 * 3)])
@pytest.mark.parametrize("tokens", [1, 56, 120, 10**9])
def test_each_prompt_runs_once_an_optimizer_step(tiny, monkeypatch, algo, prompts, tokens):
    """Of a group with a signal, in each network; at once what fits a quarter of a micro-batch."""
    policy = tiny()
    flags = FLAGS | {"tokens_per_microbatch": tokens, "minibatches": 1, "kl_coef": 0.0}
    run = make_run(algo, policy, flags)
    rollout = make_rollout(policy)
    train.score(run, rollout)
    rollout.advantages = algo.advantages(rollout, run.hp)
    counts = []

    def run_prompts(model, ids, start):
        counts.append(len(ids))
        return sampler.run_prompts(model, ids, start)

    monkeypatch.setattr(logprobs, "run_prompts", run_prompts)
    train.update(run, rollout, STEP)
    assert sum(counts) == prompts and max(counts) <= max(1, tokens // 28)
    assert rollout.prompts is None


def test_an_optimizer_step_without_a_trained_row_moves_nothing(tiny):
    """More minibatches than rows: one row each, 9 of 16 without an advantage. AdamW, which would go
    on by its averages, has no gradient there; the next step is as usual."""
    flags = FLAGS | {"minibatches": 99, "kl_coef": 0.0, "clip_low": 1e9, "clip_high": 1e9}
    run = make_run(grpo, tiny(), flags)
    policies = [torch.cat([p.detach().flatten() for p in run.nets.policy.parameters()])]
    rollout = make_rollout(run.nets.policy)
    metrics = update(run, rollout)
    policies += run.optimizer.policies
    moved = [not torch.equal(old, new) for old, new in itertools.pairwise(policies)]
    has_gradient = [bool(policy.any()) for (policy,) in run.optimizer.gradients]
    assert len(moved) == 16 and moved == has_gradient
    assert sum(moved) == int(rollout.advantages.any(1).sum()) == 7
    first = moved.index(True)
    assert False in moved[first:] and True in moved[moved.index(False, first) :]
    assert all(math.isfinite(metrics[name]) for name in ("loss", "grad_norm", "entropy"))


# --- What is drawn ----------------------------------------------------------------------------


def test_the_order_of_problems_is_the_seeds():
    orders = set()
    for seed in range(4):
        config = train.Config(prompts_per_step=12, seed=seed)
        orders.add(tuple(train.problems_of(0, range(12), config)))
    assert len(orders) == 4


def test_uniforms_depend_on_seed_prompt_and_place():
    """On each of them: no two of 2 seeds x 3 prompts x 2 places are the same."""
    prompts = [[5, 6], [7], [5, 7]]
    u = torch.cat([sampler.uniforms(prompts, 2, 5, seed) for seed in (0, 1)])
    assert len({tuple(row) for row in u.tolist()}) == 12
    assert torch.equal(sampler.uniforms([[7]], 2, 5, 1), u[8:10])


def test_a_rare_token_at_the_end_of_a_large_vocabulary_keeps_its_probability():
    """In fp32, steps of the distribution function are 6e-8 wide where it is close to 1."""
    V, p = 151_936, 1e-8
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0))
    logits[0, -1] = logits[0, :-1].logsumexp(0) + math.log(p)
    from_the_end = (torch.arange(20, dtype=torch.float64) + 0.5) / 20 * 2 * p
    token, logp = sampler.draw(logits.expand(20, V), 1 - from_the_end, 1.0)
    assert (token == V - 1).tolist() == [True] * 10 + [False] * 10
    assert logp[:10].exp().tolist() == pytest.approx([p] * 10, rel=1e-4)


# --- Evaluation -------------------------------------------------------------------------------


def test_each_problem_is_judged_on_its_own_responses(tiny):
    """Several batches of problems; then the greedy response to each. No answer, no vote."""
    model = tiny()
    tokenizer = SimpleNamespace(prompt=lambda problem: problem, eos_ids=[1, 2])
    judged = []

    def judge(problem, ids):
        judged.append((problem, ids))
        return dict.fromkeys(("length", "unjudged"), 0.0) | {"text": "no idea", "accuracy": 1.0}

    settings = dict(k=200, max_new_tokens=5, temperature=0.7, seed=8)
    metrics, groups = evaluate.evaluate(model, tokenizer, judge, PROMPTS, **settings)
    expected = []
    for k, temperature in ((200, 0.7), (1, 0.0)):
        for prompt in PROMPTS:
            alone = sampler.sample(model, [prompt], k, 5, temperature, [1, 2], seed=8)
            for ids, T in zip(alone.response_ids.tolist(), alone.lengths.tolist(), strict=True):
                expected.append((prompt, ids[:T]))
    assert judged == expected
    assert [len(group) for group in groups] == [200] * 4
    assert metrics["cons@200"] == 0.0 and metrics["pass@1"] == 1.0


def test_the_program_evaluates_with_its_seed(monkeypatch):
    class Asked(Exception):
        pass

    def note(model, tokenizer, judge, problems, k, max_new_tokens, temperature, seed):
        raise Asked(len(problems), k, max_new_tokens, temperature, seed)

    monkeypatch.setattr(evaluate, "evaluate", note)
    flags = "--problems 3 --k 5 --max_new_tokens 7 --temperature 0.5 --seed 9".split()
    with pytest.raises(Asked) as asked:
        evaluate.main(["--model", f"{ROOT}/data/base", *flags])
    assert asked.value.args == (3, 5, 7, 0.5, 9)


# --- SFT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 10**6])
def test_the_loss_of_sft_is_the_mean_over_the_tokens_of_the_step(tmp_path, monkeypatch, tokens):
    rows = []
    for response in ("red", "one two three four five", "a longer one, and then " * 3):
        rows.append({"prompt": f"User: say {len(rows)}\nAssistant:", "response": response})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = []

    def one_step(config, model, tokenizer, pairs, loss):
        metrics = loss(pairs)
        results.append((metrics["nll"], flat_gradient(model)))
        model.zero_grad()
        count = sum(len(response) for _, response in pairs)
        mean = 0.0
        for prompt, ids in pairs:
            assert ids[-1] == tokenizer.eos_id
            logp, _ = log_pi(model, Response(prompt, ids, NAN, None), 1.0)
            mean = mean - logp.sum() / count
        mean.backward()
        results.append((float(mean.detach()), flat_gradient(model)))

    monkeypatch.setattr(sft, "fit", one_step)
    flags = f"--data {data} --init {ROOT}/data/base --out {tmp_path}/out"
    sft.main([*flags.split(), "--tokens_per_microbatch", str(tokens)])
    (nll, gradient), (naive_nll, naive) = results
    assert nll == pytest.approx(naive_nll, rel=1e-5)
    assert (gradient - naive).norm() < 1e-4 * naive.norm()


def fit(model, folder, **flags):
    """Three steps of SFT over 6 rows, 2 a step -> the rows in the order they were asked for."""
    data = folder / "rows.jsonl"
    data.write_text("")
    config = sft.Config(data=str(data), init="", batch=2, **flags)
    asked = []

    def loss(rows):
        asked.extend(rows)
        model.logits(model(torch.tensor([[3, 4, 5]])))[..., 7].sum().backward()
        return {"nll": 0.0}

    sft.fit(config, model, SimpleNamespace(save=lambda folder: None), range(6), loss)
    return asked


def test_sft_shuffles_its_rows_by_the_seed(tiny, tmp_path):
    orders = []
    for seed in range(3):
        order = fit(tiny(), tmp_path, out=f"{tmp_path}/{seed}", seed=seed)
        assert sorted(order) == list(range(6)) and order != sorted(order)
        orders.append(tuple(order))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("rates, moves", [((0.1, 0.0), "embedding"), ((0.0, 0.1), "matrix")])
def test_muon_and_adamw_have_their_own_rates(tiny, tmp_path, rates, moves):
    model, before = tiny(), tiny()
    lr, muon_lr = rates
    fit(model, tmp_path, out=f"{tmp_path}/out", lr=lr, muon_lr=muon_lr)
    is_still = torch.equal(model.embed_tokens.weight, before.embed_tokens.weight)
    assert is_still == (moves != "embedding")
    is_still = torch.equal(model.layers[0].mlp.up_proj.weight, before.layers[0].mlp.up_proj.weight)
    assert is_still == (moves != "matrix")


# --- Numbers ----------------------------------------------------------------------------------


def test_every_norm_has_the_eps_of_the_config(tiny):
    """Those of queries and keys, too. So large that all digits depend on it."""
    model = tiny(qk_norm=True, norm_eps=0.5)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.RMSNorm)]
    assert len(norms) == 2 * 4 + 1
    for norm in norms:
        x = torch.randn(3, len(norm.weight))
        expected = x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt()
        assert torch.allclose(norm(x), expected, atol=1e-6)


def test_the_gradient_of_the_states_is_summed_wide(monkeypatch):
    """Over 400 tiles of the vocabulary, and rounded to bfloat16 once."""
    monkeypatch.setitem(tiles.TILE, "cpu", (8, 16))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(6400, 16, generator=generator).bfloat16()
    targets = torch.arange(8)
    logprobs.token_logprobs(hidden, weight, targets)[0].sum().backward()
    wide = hidden.detach().double().requires_grad_()
    logprobs.reference_logprobs(wide, weight.double(), targets)[0].sum().backward()
    assert (hidden.grad - wide.grad).norm() < 6e-3 * wide.grad.norm()
