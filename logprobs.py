"""log pi(token): the hot loop of policy-gradient training.

    log pi(y | state) = z_y / temperature - logsumexp(z / temperature),   z = W h

`log_softmax_gather` and `reference_logprobs` are the definition. `token_logprobs` equals it in value
and gradient and never holds the logits of a whole batch: rows go through the head a chunk at a time, and a chunk is
computed again in the backward pass. `response_logprobs` is the only place in the repository that shifts by one: the
hidden state of column t-1 speaks of the token in column t.

Everything after the head is fp32 whatever the model runs in: bf16 log-probs are off by up to 0.1 nat, and the ratio of
PPO and GRPO is the exponential of a difference of two of them.
"""
import torch
from torch.utils.checkpoint import checkpoint

from sampler import run_prompts

CHUNK = 1 << 24                                   # entries of the (rows, V) table held at a time: 64 MB in fp32


def log_softmax_gather(logits, targets):
    """logits (M, V), targets (M,) int64 -> log softmax(logits)[targets] (M,), at least fp32."""
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def reference_logprobs(hidden, weight, targets, temperature=1.0):
    """The definition of `token_logprobs`."""
    logits = hidden @ weight.T
    logits = (logits.float() if logits.dtype.itemsize < 4 else logits) / temperature
    logp = logits.log_softmax(-1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp.clamp(min=-1e30)).sum(-1)


def token_logprobs(hidden, weight, targets, temperature=1.0):
    """hidden (M, C), weight (V, C), targets (M,) int64 -> logprobs (M,), entropy (M,), both differentiable, in nats."""
    rows = max(1, CHUNK // weight.shape[0])
    if len(hidden) <= rows:
        return reference_logprobs(hidden, weight, targets, temperature)
    chunks = [checkpoint(reference_logprobs, h, weight, y, temperature, use_reentrant=False)
              for h, y in zip(hidden.split(rows), targets.split(rows))]
    return tuple(map(torch.cat, zip(*chunks)))


def response_logprobs(model, rollout):
    """log pi(response token) and entropy, (N, T) fp32 each, 0 outside the mask, at the rollout's temperature.

    The same two calls as the sampler's: each prompt once, its cache repeated for its rows (gradients flow through the
    repeat), responses on top. Only positions inside the mask reach the head."""
    states = response_states(model, rollout)
    mask = rollout.response_mask
    logprobs, entropy = token_logprobs(states[mask], model.head, rollout.response_ids[mask], rollout.temperature)
    zeros = torch.zeros(mask.shape, device=mask.device, dtype=logprobs.dtype)
    return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy)


def response_states(model, rollout):
    """The state before each response token, (N, T, C)."""
    problems, group = rollout.group.unique(return_inverse=True)                  # (U,), (N,)
    row = torch.zeros_like(problems).index_copy_(0, group, torch.arange(len(group), device=group.device))
    hidden, cache = run_prompts(model, rollout.prompt_ids[row], rollout.prompt_start[row])
    first = hidden.index_select(0, group)                                       # (N, 1, C)
    if rollout.response_ids.shape[1] == 1:
        return first
    return torch.cat((first, model(rollout.response_ids[:, :-1], cache.select(group))), 1)
