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
SMALL_TABLE = 1 << 24  # so many logits of a small vocabulary are left to autograd
KEEP_BYTES = 1 << 30  # of a large vocabulary's logits, that stay for the backward pass


def log_softmax_gather(logits, targets):
    """logits (M, V), targets (M,) -> log softmax(logits)[targets] (M,), at least fp32.

    Differentiable. NaN for an id that is not in V."""
    return tiled_logprobs(logits.contiguous(), None, targets, 1.0, 0)[0]


def reference_logprobs(hidden, weight, targets, temperature=1.0):
    """The definition of `token_logprobs`."""
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp(min=-1e30)).sum(-1)
    return logp.gather(-1, targets[:, None])[:, 0], entropy


def token_logprobs(hidden, weight, targets, temperature=1.0, keep=None):
    """hidden (M, C), weight (V, C), targets (M,) -> logprobs (M,), entropy (M,), in nats.

    Both are differentiable. keep: bytes of logits for the backward pass (KEEP_BYTES)."""
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if device == "cuda" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        hidden = hidden.to(dtype)
        weight = weight.to(dtype)
        V = len(weight)
        if V <= SMALL_VOCABULARY and len(hidden) * V <= SMALL_TABLE:
            return reference_logprobs(hidden, weight, targets, temperature)
        keep = KEEP_BYTES if keep is None else keep
        return tiled_logprobs(hidden, weight, targets, temperature, keep)


def response_logprobs(model, rollout):
    """log pi(response token) and entropy, (N, T) fp32 each, 0 outside the mask.

    At the rollout's temperature. Only positions inside the mask reach the head."""
    states = response_states(model, rollout)
    mask = rollout.response_mask
    targets = rollout.response_ids[mask]
    logprobs, entropy = token_logprobs(states[mask], model.head, targets, rollout.temperature)
    zeros = logprobs.new_zeros(mask.shape)
    return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, entropy)


def response_states(model, rollout):
    """The state before each response token, (N, T, C): the only place that shifts by one.

    Each prompt runs once, as in the sampler; its cache is repeated for its rows, with gradients."""
    problems, group = rollout.group.unique(return_inverse=True)  # (U,), (N,)
    rows = torch.arange(len(group), device=group.device)
    row = torch.zeros_like(problems).index_copy_(0, group, rows)  # (U,) a row of each problem
    hidden, cache = run_prompts(model, rollout.prompt_ids[row], rollout.prompt_start[row])
    first = hidden.index_select(0, group)  # (N, 1, C)
    if rollout.response_ids.shape[1] == 1:
        return first
    rest = model(rollout.response_ids[:, :-1], cache.select(group))  # (N, T - 1, C)
    return torch.cat((first, rest), 1)
