"""KL(pi || q) of two models over a large vocabulary, without a table of the logits of either."""

import torch
from torch.utils.checkpoint import checkpoint

TABLE = 1 << 24  # logits of each model that are there at a time


def kl_divergence(hidden, weight, other_hidden, other_weight, temperature=1.0):
    """KL(pi || q) in nats over the whole vocabulary, at each of M states -> (M,) fp32.

    pi: softmax(weight hidden / temperature), q: the same of the others. Differentiable in pi. The
    logits of a few rows are there at a time, and once more in the backward pass."""
    rows = max(1, TABLE // len(weight))
    pieces = []
    with torch.autocast(hidden.device.type, enabled=False):
        for h, other_h in zip(hidden.split(rows), other_hidden.split(rows), strict=True):
            arguments = (h, weight, other_h, other_weight, temperature)
            pieces.append(checkpoint(kl_of_rows, *arguments, use_reentrant=False))
    return torch.cat(pieces)


def kl_of_rows(hidden, weight, other_hidden, other_weight, temperature):
    """The definition of `kl_divergence`."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    logits = hidden.to(dtype) @ weight.to(dtype).T / temperature
    other_logits = other_hidden.to(dtype) @ other_weight.to(dtype).T / temperature
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - other_logits.log_softmax(-1))).sum(-1)
