"""Proximal Policy Optimization with a critic, on one page. Read it beside grpo.py: same order.

The policy writes a response o_1..o_T to a problem q, which earns R. PPO pays token by token, and a
critic V, as large as the policy, learns what is still to come. PPO maximises J and minimises L:

    r_t     = -kl_coef (log pi_old(o_t) - log pi_ref(o_t)),  + R if t = T     KL estimator k1    (1)
    delta_t = r_t + gamma V_t+1 - V_t           V_T+1 = 0, also if the length limit cut o        (2)
    A_t     = delta_t + gamma lam A_t+1                 then normalised over the rollout         (3)
    ratio   = pi(o_t | q, o_<t) / pi_old(o_t | q, o_<t)                                          (4)
    clip_t  = min( ratio A_t, clip(ratio, 1 - clip_low, 1 + clip_high) A_t )                     (5)
    J       = mean over responses of 1/T sum_t clip_t                                            (6)
    L       = same mean of 1/2 max( (V - ret)^2, (V_old + clip(V - V_old, +-value_clip) - ret)^2 )
                                                        ret_t = A_t + V_t before normalising     (7)

(1) is eq. 2 of DeepSeekMath (arXiv 2402.03300), with pi_old for its pi; (2), (3) are eq. 12, 11 of
PPO (arXiv 1707.06347), whose lambda is of generalized advantage estimation (arXiv 1506.02438);
(5) is eq. 7 of PPO; (7) is in its authors' code, not in the paper.

Differs from common practice:
 1. lam is 1, not 0.95: the reward comes at the end, and 0.95^100 = .006 of it reaches a token 100
    earlier. DeepSeek-R1 (arXiv 2501.12948v2, supplement A.3) found 0.95 considerably worse.
 2. The critic is a network of its own, with its own learning rate: (7) does not touch the policy.
 3. The mean (6) is that of DeepSeekMath's eq. 1 and of grpo.py. What differs from grpo.py is the
    advantage (3), the KL (k1 in the reward, not k3 in the loss), and the critic (7).
 4. A response whose reward is NaN (could not be determined) is left out as if it had not been
    sampled.
"""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from grpo import update_reference, weights  # noqa: F401  (6); train.py calls ppo.weights
from logprobs import response_logprobs, response_states
from model import Critic
from plumbing.flags import Flags, flag

# columns of metrics.csv, and those of them that the line of a step shows
METRICS = "kl entropy clip_low clip_high mean_abs_log_ratio value_clip explained_variance".split()
SHOWN = "kl entropy explained_variance".split()


@dataclass
class Config(Flags):
    group_size: int = flag(16, "G, responses per problem", at_least=1, at_most=4096)
    gamma: float = flag(1.0, "discount per token")
    lam: float = flag(1.0, "lambda of GAE: 1 looks to the end, 0 one token ahead")
    critic_lr: float = flag(3e-3, "the critic's learning rate")
    critic_warmup: int = flag(0, "first rollouts that train the critic only")
    value_clip: float = flag(0.2, "a value further than this from its old one is clipped")
    clip_low: float = flag(0.2, "the ratio is clipped below 1 - clip_low")
    clip_high: float = flag(0.2, "the ratio is clipped above 1 + clip_high")
    kl_coef: float = flag(0.001, "weight of the KL to the reference; 0: no reference network")
    ref_every: int = flag(400, "optimizer steps until the reference becomes the policy; 0: never")
    minibatches: int = flag(4, "optimizer steps per pass over a rollout", at_least=1)
    epochs: int = flag(1, "passes over a rollout", at_least=1)


def networks(policy, hp):
    """The networks of a run: policy, critic, and a frozen reference unless the KL is off."""
    ref = copy.deepcopy(policy).requires_grad_(False) if hp.kl_coef else None
    return SimpleNamespace(policy=policy, ref=ref, critic=Critic(policy))


@torch.no_grad()
def score(nets, rollout, hp):
    """Fills in what the other networks say, once a rollout: ref_logprobs and values (N, T)."""
    if nets.ref is not None:
        rollout.ref_logprobs, _ = response_logprobs(nets.ref, rollout)
    rollout.values = nets.critic.value(response_states(nets.critic, rollout))


def gae(rewards, values, mask, gamma, lam):
    """rewards of each token, values of the state before it -> advantages, returns; all (N, T).

    mask (N, T) bool is True up to a response's end; padding is ignored."""
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    delta = rewards - values  # (2)
    delta[:, :-1] += gamma * values[:, 1:]
    A = delta.clone()
    for t in reversed(range(A.shape[1] - 1)):
        A[:, t] += gamma * lam * A[:, t + 1]  # (3)
    return A, A + values


def advantages(rollout, hp):
    """(N, T), of mean 0 and variance 1 over the tokens of the rollout; fills in rollout.returns.

    A NaN reward takes its response out of rollout.response_mask."""
    mask = rollout.response_mask & ~rollout.rewards.isnan()[:, None]
    last = rollout.lengths - 1
    rollout.response_mask = mask
    rewards = torch.zeros_like(rollout.values)
    if rollout.ref_logprobs is not None:
        rewards = -hp.kl_coef * (rollout.old_logprobs - rollout.ref_logprobs)  # (1)
    rewards[torch.arange(len(mask)), last] += rollout.rewards  # (1)
    A, rollout.returns = gae(rewards, rollout.values, mask, hp.gamma, hp.lam)
    returns, values = rollout.returns[mask], rollout.values[mask]
    rollout.metrics["explained_variance"] = float(1 - (returns - values).var() / returns.var())
    std, mean = torch.std_mean(A[mask], correction=0)
    return torch.where(mask, (A - mean) / std.clamp(min=1e-8), 0.0)


def objective(logprobs, old_logprobs, advantages, mask, hp, ref_logprobs=None):
    """All (N, T), mask bool -> objective per token (N, T), and metrics as sums over tokens.

    As in grpo.py, but the KL is only measured: it is in the reward (1)."""
    logprobs = torch.where(mask, logprobs, 0.0)
    old_logprobs = torch.where(mask, old_logprobs, 0.0)
    A = torch.where(mask, advantages, 0.0)
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()  # (4)
    clipped = ratio.clamp(1 - hp.clip_low, 1 + hp.clip_high)
    J = torch.minimum(ratio * A, clipped * A)  # (5)
    metrics = {"clip_low": ((ratio < clipped) & (A < 0)).sum()}
    metrics["clip_high"] = ((ratio > clipped) & (A > 0)).sum()
    if ref_logprobs is not None:
        d = (logprobs - torch.where(mask, ref_logprobs, 0.0)).detach()
        metrics["kl"] = ((-d).clamp(max=20).exp() + d.clamp(min=-20) - 1).sum()
    return J, metrics


def value_loss(values, old_values, returns, shares, hp):
    """All (N, T), shares (the weights) 0 outside the mask -> the critic's loss, a scalar."""
    clipped = old_values + (values - old_values).clamp(-hp.value_clip, hp.value_clip)
    error = torch.maximum((values - returns).square(), (clipped - returns).square())
    return (error * shares).sum() / 2  # (7)


def loss(nets, batch, hp):
    """A micro-batch of an optimizer step -> its part of L - J, a scalar, and metrics as above."""
    mask = batch.response_mask
    with torch.set_grad_enabled(batch.step >= hp.critic_warmup):
        logprobs, entropy = response_logprobs(nets.policy, batch)
    old_logprobs = batch.old_logprobs
    # pi is pi_old: the ratio is 1, but has a gradient
    if hp.minibatches * hp.epochs == 1 and not batch.lag:
        old_logprobs = logprobs.detach()
    J, metrics = objective(logprobs, old_logprobs, batch.advantages, mask, hp, batch.ref_logprobs)
    metrics["entropy"] = entropy.detach().sum()
    log_ratio = (logprobs.detach() - batch.old_logprobs) * mask
    metrics["mean_abs_log_ratio"] = log_ratio.abs().sum()
    values = nets.critic.value(response_states(nets.critic, batch))
    L = value_loss(values, batch.values, batch.returns, batch.weights, hp)
    metrics["value_clip"] = (mask & ((values - batch.values).abs() > hp.value_clip)).sum()
    return L - (J * batch.weights).sum(), metrics
