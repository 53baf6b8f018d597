"""Proximal Policy Optimization with a critic, on one page. Read it beside grpo.py: same names, same order.

The policy writes a response o_1..o_T to a problem q, which earns R. PPO pays token by token, and a critic V, as large
as the policy, learns what is still to come. PPO maximises J and minimises V's loss L:

    r_t     = -kl_coef (log pi_old(o_t) - log pi_ref(o_t))  + R  if t = T      KL estimator "k1", in the reward      (1)
    delta_t = r_t + gamma V_t+1 - V_t                       V_T+1 = 0: a response ends, also where it was cut        (2)
    A_t     = delta_t + gamma lam A_t+1                     then normalised over the tokens of the rollout           (3)
    ratio   = pi(o_t | q, o_<t) / pi_old(o_t | q, o_<t)                                                              (4)
    clip_t  = min( ratio A_t, clip(ratio, 1 - clip_low, 1 + clip_high) A_t )                                         (5)
    J       = mean over responses of 1/T sum_t clip_t                                                                (6)
    L       = same mean of 1/2 max( (V - target)^2, (V_old + clip(V - V_old, +-value_clip) - target)^2 )             (7)

target_t = A_t + V_t before normalising: with gamma = lam = 1, R less what the KL still costs.
(1) is eq. 2 of DeepSeekMath (arXiv 2402.03300), with pi_old for its pi; (2), (3) are eq. 12, 11 of PPO (arXiv
1707.06347), whose lambda is from generalized advantage estimation (arXiv 1506.02438); (5) is eq. 7 of PPO; (7) is in
its authors' code, not in the paper.

Differs from common practice:
 1. lam is 1, not 0.95: the reward comes at the end, and at 0.95 it counts .006 a hundred tokens earlier. DeepSeek-R1
    (arXiv 2501.12948v2, supplement) found 0.95 considerably worse. Our own comparison is in results/compare.
 2. The critic is a network of its own, with its own learning rate: nothing of (7) reaches the policy.
 3. The mean (6) is that of DeepSeekMath's eq. 1 and GRPO's, so that the two differ in nothing but the advantage and the
    place of the KL.
 4. A response whose reward could not be determined (NaN) is left out, as if it had not been sampled.
"""
import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from flags import check
from grpo import CHOICES, kl_estimate, weights      # noqa: F401  the same
from logprobs import response_logprobs, response_states
from model import Critic


@dataclass
class Config:
    group_size: int = 16          # responses per problem; they are not compared with each other
    gamma: float = 1.0            # discount per token
    lam: float = 1.0              # lambda of GAE: 1 trusts the reward, 0 trusts the critic
    critic_lr: float = 3e-3       # the critic's learning rate
    critic_warmup: int = 0        # first steps that train the critic only
    value_clip: float = 0.2       # a value further than this from its old one is clipped
    clip_low: float = 0.2         # the ratio is clipped below 1 - clip_low
    clip_high: float = 0.2        # and above 1 + clip_high
    kl_coef: float = 0.001        # weight of the KL penalty to the reference; 0: no reference network at all
    ref_every: int = 400          # the reference becomes a copy of the policy every so many steps; 0: never
    aggregate: str = "sequence"   # each token's share: sequence (1/|o_i|, then mean), token (1/all tokens), constant
    constant: int = 160           # tokens per response that `--aggregate constant` divides by
    minibatches: int = 4          # optimizer steps per pass over a rollout
    epochs: int = 1               # passes over a rollout

    def __post_init__(self):
        check(self, ("group_size", "constant", "minibatches", "epochs"), aggregate=CHOICES["aggregate"])


def networks(policy, hp):
    """The networks of a run: the policy, the frozen reference unless the KL is off, and the critic."""
    ref = copy.deepcopy(policy).requires_grad_(False) if hp.kl_coef else None
    return SimpleNamespace(policy=policy, ref=ref, critic=Critic(policy))


@torch.no_grad()
def score(nets, rollout, hp):
    """What the other networks say about a rollout, once: ref_logprobs (N, T) and values (N, T)."""
    if nets.ref is not None:
        rollout.ref_logprobs = response_logprobs(nets.ref, rollout)[0]
    rollout.values = nets.critic.value(response_states(nets.critic, rollout))


def gae(rewards, values, mask, gamma, lam):
    """rewards, values (N, T) of each token and of the state before it, mask (N, T) bool, True up to a response's end
    -> advantages, returns (N, T), 0 outside the mask. What stands there has no influence."""
    rewards, values = (torch.where(mask, x, 0.0) for x in (rewards, values))
    delta = rewards - values                                                                                    # (2)
    delta[:, :-1] += gamma * values[:, 1:]
    A = delta.clone()
    for t in reversed(range(A.shape[1] - 1)):
        A[:, t] += gamma * lam * A[:, t + 1]                                                                    # (3)
    return A, A + values


def advantages(rollout, hp):
    """One advantage a token (N, T), of mean 0 and variance 1 over the rollout; fills rollout.returns.

    A NaN reward takes its response out of rollout.response_mask: no advantage, no value loss, no share of anything."""
    rollout.response_mask = mask = rollout.response_mask & ~rollout.rewards.isnan()[:, None]
    rewards = torch.zeros_like(rollout.values)
    if rollout.ref_logprobs is not None:
        rewards = -hp.kl_coef * (rollout.old_logprobs - rollout.ref_logprobs)                                   # (1)
    rewards[torch.arange(len(mask)), rollout.lengths - 1] += rollout.rewards                                    # (1)
    A, rollout.returns = gae(rewards, rollout.values, mask, hp.gamma, hp.lam)
    std, mean = torch.std_mean(A[mask], correction=0)
    return torch.where(mask, (A - mean) / std.clamp(min=1e-8), 0.0)


def objective(logprobs, old_logprobs, advantages, mask, hp, ref_logprobs=None):
    """All (N, T), mask bool -> objective per token (N, T), 0 outside the mask, and metrics as sums over tokens.

    What stands outside the mask has no influence, not even NaN. The reference is only measured: its price is in (1)."""
    logprobs, old_logprobs, A = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
    ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()                                                      # (4)
    clipped = ratio.clamp(1 - hp.clip_low, 1 + hp.clip_high)
    J = torch.minimum(ratio * A, clipped * A)                                                                   # (5)
    metrics = dict(clip_low=((ratio < clipped) & (A < 0)).sum(), clip_high=((ratio > clipped) & (A > 0)).sum())
    if ref_logprobs is not None:
        metrics["kl"] = kl_estimate(logprobs.detach() - torch.where(mask, ref_logprobs, 0.0)).sum()
    return J, metrics


def value_loss(values, old_values, returns, weights, hp):
    """All (N, T), weights 0 outside the mask -> the critic's loss, a scalar."""
    clipped = old_values + (values - old_values).clamp(-hp.value_clip, hp.value_clip)
    return (torch.maximum((values - returns).square(), (clipped - returns).square()) * weights).sum() / 2       # (7)


def loss(nets, batch, hp):
    """A micro-batch of an optimizer step -> (its part of L - J, a scalar; metrics as sums over tokens)."""
    logprobs, entropy = response_logprobs(nets.policy, batch)
    # One update: pi is pi_old, the ratio is 1 exactly, and only its gradient counts.
    old_logprobs = logprobs.detach() if hp.minibatches * hp.epochs == 1 else batch.old_logprobs
    J, metrics = objective(logprobs, old_logprobs, batch.advantages, batch.response_mask, hp, batch.ref_logprobs)
    metrics |= dict(entropy=entropy.detach().sum(), drift=(logprobs.detach() - batch.old_logprobs).abs().sum())
    values = nets.critic.value(response_states(nets.critic, batch))
    metrics["value_clip"] = (batch.response_mask & ((values - batch.values).abs() > hp.value_clip)).sum()
    return value_loss(values, batch.values, batch.returns, batch.weights, hp) - (J * batch.weights).sum(), metrics # (6)
