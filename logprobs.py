"""log pi(token): the hot loop of policy-gradient training.

    log pi(y | state) = z_y - logsumexp(z),   entropy = -sum_v p_v log p_v,
    z = W h / temperature,   p = softmax(z)

`reference_logprobs` is the definition, and what runs for a small vocabulary such as the default
model's. A large one goes through fast/tiles.py, which equals it in value and gradient.

Logits, sums and results are fp32 whatever comes in: bf16 log-probs are off by up to 0.1 nat, and
a ratio is the exponential of a difference of two of them.
"""

import torch

from fast import tiled_logprobs
from sampler import run_prompts

SMALL_VOCABULARY = 4096
SMALL_TABLE = 1 << 24  # up to so many logits of a small vocabulary autograd does the work
KEEP_BYTES = 1 << 30  # of a large vocabulary's logits are kept for the backward pass


def log_softmax_gather(logits, targets):
    """logits (M, V), targets (M,) -> log softmax(logits)[targets] (M,), at least fp32.

    Differentiable. NaN for an id that is not in V."""
    return tiled_logprobs(logits.contiguous(), None, targets, 1.0, 0)[0]


def reference_logprobs(hidden, weight, targets, temperature=1.0):
    """The definition of `token_logprobs`."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ weight.to(dtype).T / temperature
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp(min=-1e30)).sum(-1)
    return logp.gather(-1, targets[:, None])[:, 0], entropy


def token_logprobs(hidden, weight, targets, temperature=1.0, keep=KEEP_BYTES):
    """hidden (M, C), weight (V, C), targets (M,) -> logprobs (M,), entropy (M,), in nats.

    Both are differentiable. keep: bytes of logits for the backward pass."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    V = len(weight)
    with torch.autocast(device, enabled=False):
        if V <= SMALL_VOCABULARY and len(hidden) * V <= SMALL_TABLE:
            return reference_logprobs(hidden, weight, targets, temperature)
        hidden = hidden.to(dtype)
        weight = weight.to(dtype)
        return tiled_logprobs(hidden, weight, targets, temperature, keep)


def response_logprobs(model, rollout, states=None):
    """log pi(response token) and entropy, (N, T) fp32 each, 0 outside the mask.

    At the rollout's temperature. Only positions inside the mask reach the head. states: those of
    `response_states`, if they are there already."""
    if states is None:
        states = response_states(model, rollout)
    mask = rollout.response_mask
    targets = rollout.response_ids[mask]
    logprobs, entropy = token_logprobs(states[mask], model.head, targets, rollout.temperature)
    zeros = logprobs.new_zeros(mask.shape)
    return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy)


def prompt_states(model, rollout):
    """Each prompt run once -> which problems they are of (U,), hidden (U, 1, C) and the cache."""
    problems, group = rollout.group.unique(return_inverse=True)  # (U,), (N,)
    rows = torch.arange(len(group), device=group.device)
    row = torch.zeros_like(problems).index_copy_(0, group, rows)  # (U,) one row of each problem
    return problems, *run_prompts(model, rollout.prompt_ids[row], rollout.prompt_start[row])


def response_states(model, rollout):
    """The state before each response token, (N, T, C).

    This is the only place that shifts by one: the last state of the prompt predicts the first
    token of the response, and so on. The cache of a prompt is repeated for its rows."""
    run = rollout.prompts or prompt_states  # fast/prompts.py: once for all micro-batches
    problems, hidden, cache = run(model, rollout)
    group = torch.searchsorted(problems, rollout.group)  # (N,)
    first = hidden.index_select(0, group)  # (N, 1, C)
    rest = model(rollout.response_ids[:, :-1], cache.select(group))  # (N, T - 1, C)
    return torch.cat((first, rest), 1)
