"""log pi(token): the hot loop of policy-gradient training.

    log pi(y | state) = z_y / temperature - lse,     z = W h,   lse = logsumexp(z / temperature)                  (1)
    entropy           = lse - sum_v p_v z_v / temperature,                p = softmax(z / temperature)            (2)
    d log pi / dz_v = ([v = y] - p_v) / temperature,   d entropy / dz_v = -p_v (log p_v + entropy) / temperature     (3)

`reference_logprobs` is the definition; a small table of logits (M, V) is left to it. `token_logprobs` equals it in
value and gradient up to rounding, in tiles of rows x vocabulary: it keeps a running maximum and sum, and saves two
numbers a row, lse and entropy, for the backward pass, which turns each tile into its gradient in place and multiplies
it. Tiles that fit into `keep` bytes stay in between, the others are computed again: one knob from fast to small. The
elementwise work is two functions with a torch body here and a Triton kernel in kernels.py. `response_states` is the
only place that shifts by one: the hidden state of column t-1 speaks of the token in column t.

Logits, sums and results are fp32 whatever comes in: bf16 log-probs are off by up to 0.1 nat, and the ratio of PPO and
GRPO is the exponential of a difference of two of them. The target's 1 joins p in fp32 too, before any rounding: at
p = 0.98 the other order doubles the error of the gradient.
"""
import os
import warnings

import torch
from torch.autograd.function import once_differentiable

from model import product
from sampler import run_prompts

try:
    import kernels
except ImportError:
    kernels = None
PLAIN = 1 << 24                   # a table of so many logits, of a small vocabulary, is left to plain autograd
KEEP = 1 << 30                    # bytes of logits that stay for the backward pass
TILE = {"cpu": (512, 2048), "cuda": (4096, 8192)}             # rows, columns


def log_softmax_gather(logits, targets):
    """logits (M, V), targets (M,) int64 -> log softmax(logits)[targets] (M,), at least fp32; NaN for an id not in V."""
    return TokenLogprobs.apply(logits.contiguous(), None, targets, 1.0, 0)[0]


def reference_logprobs(hidden, weight, targets, temperature=1.0):
    """The definition of `token_logprobs`."""
    logits = hidden @ weight.T
    logits = (logits.float() if logits.dtype.itemsize < 4 else logits) / temperature
    logp = logits.log_softmax(-1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp.clamp(min=-1e30)).sum(-1)


def token_logprobs(hidden, weight, targets, temperature=1.0, keep=KEEP):
    """hidden (M, C), weight (V, C), targets (M,) int64 -> logprobs (M,), entropy (M,), both differentiable, in nats."""
    device = hidden.device.type
    rounded = torch.get_autocast_dtype(device) if device == "cuda" and torch.is_autocast_enabled(device) else None
    dtype = rounded or torch.promote_types(hidden.dtype, weight.dtype)
    with torch.autocast(device, enabled=False):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        if weight.shape[0] <= 4096 and len(hidden) * weight.shape[0] <= PLAIN:
            return reference_logprobs(hidden, weight, targets, temperature)
        return TokenLogprobs.apply(hidden, weight, targets, temperature, keep)


def fused(z):
    """Whether the Triton kernels take the tile z."""
    if z.is_cuda and kernels is None:
        warnings.warn("triton is not installed: log-probs run on torch's own kernels, which is slower", stacklevel=2)
    return kernels is not None and z.dtype != torch.float64 and (z.is_cuda or os.environ.get("TRITON_INTERPRET") == "1")


def stats(z, y, state):
    """A tile of logits z (R, K), targets y (R,) counted from its first column -> updates `state` (4, R): the running
    maximum, sum of exp, target logit, sum of exp * logit."""
    if fused(z):
        return kernels.stats(z, y, state)
    z = z.to(state.dtype)
    top = torch.maximum(state[0], z.amax(1))
    p, old = (z - top[:, None]).exp_(), (state[0] - top).exp()
    inside = (y >= 0) & (y < z.shape[1])
    target = torch.where(inside, z.gather(1, torch.where(inside, y, 0)[:, None])[:, 0], state[2])
    mean = torch.linalg.vecdot(p, z)              # NaN with logits of -inf, which nobody asks the entropy of
    state.copy_(torch.stack((top, state[1] * old + p.sum(1), target, state[3] * old + mean)))


def dlogits(z, y, known, out):
    """A tile as above, known (4, R): lse, gradient of log pi, entropy, its gradient -> gradient of z into `out`."""
    if fused(z):
        return kernels.dlogits(z, y, known, out)
    lse, g, entropy, g_entropy = known[:, :, None]
    d = out if out.dtype == known.dtype else torch.empty_like(out, dtype=known.dtype)
    p = torch.sub(z, lse, out=d).exp()                                                                          # (3)
    if known[3].any():
        d.add_(entropy).clamp_(min=-1e30).mul_(g_entropy).add_(g).mul_(p).neg_()
    else:
        torch.mul(p, -g, out=d)
    inside = ((y >= 0) & (y < z.shape[1])).nonzero()[:, 0]
    d[inside, y[inside]] += known[1, inside]
    out.copy_(d)


def tiles(hidden, weight):
    """Slices of the rows, slices of the vocabulary. Logits that exist already are cut by rows only."""
    V = hidden.shape[1] if weight is None else len(weight)
    rows, columns = TILE[hidden.device.type]
    cut = lambda n, size: [slice(i, min(i + size, n)) for i in range(0, n, size)]
    return cut(len(hidden), rows), cut(V, V if weight is None else columns)


class TokenLogprobs(torch.autograd.Function):
    """hidden (M, C), weight (V, C) -> logprobs, entropy (M,). weight None: hidden are the logits (M, V) themselves."""

    @staticmethod
    def logits(hidden, weight, r, v, temperature):
        if weight is None:
            return hidden[r, v]
        z = product(hidden[r], weight[v].T)
        return z if temperature == 1 else z.div_(temperature)

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, keep):
        state = hidden.new_zeros(4, len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        state[0], state[2] = -1e30, torch.nan                 # from -inf, a first tile of -inf would be inf - inf
        ctx.kept, ctx.temperature = {}, temperature
        rows, columns = tiles(hidden, weight)
        for r in rows:
            for v in columns:
                z = TokenLogprobs.logits(hidden, weight, r, v, temperature)
                stats(z, targets[r] - v.start, state[:, r])
                if any(ctx.needs_input_grad) and z.nbytes <= keep:
                    ctx.kept[r.start, v.start], keep = z, keep - z.nbytes
        lse = state[0] + state[1].log()
        entropy = lse - state[3] / state[1]                                                                     # (2)
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        return state[2] - lse, entropy                                                                          # (1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g, g_entropy):
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        known = torch.stack((lse, g / ctx.temperature, entropy, g_entropy / ctx.temperature))
        d_hidden = torch.zeros_like(hidden, dtype=hidden.dtype if weight is None else lse.dtype)
        d_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        rows, columns = tiles(hidden, weight)
        for v in columns:
            d_slice = 0.0
            for r in rows:
                z = ctx.kept.pop((r.start, v.start), None)    # used up: a second backward pass computes it again
                z = TokenLogprobs.logits(hidden, weight, r, v, ctx.temperature) if z is None else z
                dlogits(z, targets[r] - v.start, known[:, r], d_hidden[r] if weight is None else z)
                if weight is not None:
                    z = z.to(hidden.dtype)
                    d_hidden[r] += product(z, weight[v])
                if d_weight is not None:
                    d_slice = d_slice + product(z.T, hidden[r])
            if d_weight is not None:
                d_weight[v] = d_slice
        return d_hidden.to(hidden.dtype), d_weight, None, None, None


def response_logprobs(model, rollout):
    """log pi(response token) and entropy, (N, T) fp32 each, 0 outside the mask, at the rollout's temperature.

    Each prompt runs once, as in the sampler; its cache is repeated for its rows (gradients flow through the repeat),
    and responses run on top. Only positions inside the mask reach the head."""
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
