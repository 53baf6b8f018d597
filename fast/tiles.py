"""log pi(token) and entropy of a large vocabulary, tile by tile: the fast twin of logprobs.py.

    log pi(y | state) = z_y / temperature - lse,   z = W h,   lse = logsumexp(z / temperature)   (1)
    entropy           = lse - sum_v p_v z_v / temperature,   p = softmax(z / temperature)        (2)
    d log pi / dz_v   = ([v = y] - p_v) / temperature                                            (3)
    d entropy / dz_v  = -p_v (log p_v + entropy) / temperature                                   (4)

The table of logits (M, V) is never there as a whole. The forward pass goes over tiles of rows x
vocabulary and keeps a running maximum and sum; the backward pass turns each tile into its gradient
in place. Tiles that fit into so many bytes stay in between, the others are computed again. The
elementwise work on a tile has a torch body here and a Triton kernel in triton_kernels.py.
"""

import functools
import os
import warnings

import torch
from torch.autograd.function import once_differentiable

from model import product

TILE = {"cpu": (512, 2048), "cuda": (4096, 8192)}  # rows, vocabulary


@functools.cache
def triton_module(device, dtype):
    """fast.triton_kernels on a GPU, or in Triton's interpreter; None where they do not compile.

    That takes the package, a C compiler and Python's headers."""
    on_cpu = device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"
    if on_cpu or dtype == torch.float64:
        return None
    try:
        from fast import triton_kernels

        z = torch.zeros(1, 1, device=device, dtype=dtype)
        triton_kernels.update_stats(z, z[0].long(), z.float().repeat(4, 1))
        return triton_kernels
    except Exception as error:  # of the package, the compiler or the driver
        warnings.warn(f"log-probs run on slower kernels, without Triton: {error}", stacklevel=2)


def update_stats(z, y, stats):
    """A tile of logits z (R, K), targets y (R,) as columns of it: updates stats (4, R).

    Its rows: running maximum, sum of exp, logit of the target, sum of exp * logit."""
    if kernels := triton_module(z.device.type, z.dtype):
        kernels.update_stats(z, y, stats)
        return
    z = z.to(stats.dtype)
    maximum, total, target, weighted = stats
    new_maximum = torch.maximum(maximum, z.amax(1))
    p = (z - new_maximum[:, None]).exp_()
    rescale = (maximum - new_maximum).exp()
    inside = (y >= 0) & (y < z.shape[1])
    here = z.gather(1, torch.where(inside, y, 0)[:, None])[:, 0]
    target = torch.where(inside, here, target)
    # logits of -inf give NaN here, and nobody asks for the entropy of those
    weighted = weighted * rescale + torch.linalg.vecdot(p, z)
    stats.copy_(torch.stack((new_maximum, total * rescale + p.sum(1), target, weighted)))


def logits_gradient(z, y, saved, out):
    """A tile as above; saved (4, R): lse, d log pi, entropy, d entropy. Its gradient -> out."""
    if kernels := triton_module(z.device.type, z.dtype):
        kernels.logits_gradient(z, y, saved, out)
        return
    lse, d_logp, entropy, d_entropy = saved[:, :, None]
    d = out if out.dtype == saved.dtype else torch.empty_like(out, dtype=saved.dtype)
    p = torch.sub(z, lse, out=d).exp()
    if d_entropy.any():
        d.add_(entropy).clamp_(min=-1e30).mul_(d_entropy).add_(d_logp).mul_(p).neg_()  # (3), (4)
    else:
        torch.mul(p, -d_logp, out=d)  # (3)
    inside = ((y >= 0) & (y < z.shape[1])).nonzero()[:, 0]
    d[inside, y[inside]] += saved[1, inside]  # in fp32, before any rounding
    out.copy_(d)


def slices(length, size):
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


class TiledLogprobs(torch.autograd.Function):
    """hidden (M, C), weight (V, C) -> logprobs, entropy (M,). No weight: hidden are the logits."""

    @staticmethod
    def tiles(hidden, weight):
        """Slices of the rows, slices of the vocabulary. Given logits are cut by rows only."""
        row_size, vocabulary_size = TILE[hidden.device.type]
        rows = slices(len(hidden), row_size)
        if weight is None:
            return rows, [slice(0, hidden.shape[1])]
        return rows, slices(len(weight), vocabulary_size)

    @staticmethod
    def logits(hidden, weight, rows, columns, temperature):
        if weight is None:
            return hidden[rows, columns]
        z = product(hidden[rows], weight[columns].T)
        return z if temperature == 1 else z.div_(temperature)

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, keep):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        stats = hidden.new_zeros(4, len(hidden), dtype=dtype)
        stats[0] = -1e30  # from -inf, a first tile of -inf would be inf - inf
        stats[2] = torch.nan
        ctx.temperature = temperature
        ctx.kept = {}
        row_slices, column_slices = TiledLogprobs.tiles(hidden, weight)
        for rows in row_slices:
            for columns in column_slices:
                z = TiledLogprobs.logits(hidden, weight, rows, columns, temperature)
                update_stats(z, targets[rows] - columns.start, stats[:, rows])
                if any(ctx.needs_input_grad) and z.nbytes <= keep:
                    ctx.kept[rows.start, columns.start] = z
                    keep -= z.nbytes
        maximum, total, target, weighted = stats
        lse = maximum + total.log()
        entropy = lse - weighted / total  # (2)
        ctx.save_for_backward(hidden, weight, targets, lse, entropy)
        return target - lse, entropy  # (1)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logp, d_entropy):
        hidden, weight, targets, lse, entropy = ctx.saved_tensors
        T = ctx.temperature
        saved = torch.stack((lse, d_logp / T, entropy, d_entropy / T))
        row_slices, column_slices = TiledLogprobs.tiles(hidden, weight)
        if weight is None:
            d_logits = torch.empty_like(hidden)
            for rows in row_slices:
                logits_gradient(hidden[rows], targets[rows], saved[:, rows], d_logits[rows])
            return d_logits, None, None, None, None
        d_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        d_weight = torch.empty_like(weight)
        for columns in column_slices:
            d_slice = 0.0
            for rows in row_slices:
                # taken out: a second backward pass computes it again
                z = ctx.kept.pop((rows.start, columns.start), None)
                if z is None:
                    z = TiledLogprobs.logits(hidden, weight, rows, columns, T)
                logits_gradient(z, targets[rows] - columns.start, saved[:, rows], z)
                z = z.to(hidden.dtype)
                d_hidden[rows] += product(z, weight[columns])
                d_slice = d_slice + product(z.T, hidden[rows])
            d_weight[columns] = d_slice
        return d_hidden.to(hidden.dtype), d_weight, None, None, None
