"""The two elementwise functions of tiles.py as Triton kernels: one pass over a tile each.

Tests run them on a CPU through Triton's interpreter (TRITON_INTERPRET=1).
"""

import triton
import triton.language as tl

BLOCK = 4096  # columns a program holds at a time


@triton.jit
def update_stats_kernel(z, y, stats, stride, M, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # rows * columns can pass 2^31
    maximum = tl.load(stats + row)
    total = tl.load(stats + M + row)
    weighted = tl.load(stats + 3 * M + row)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(z + row * stride + column, mask=column < K, other=-float("inf")).to(tl.float32)
        new_maximum = tl.maximum(maximum, tl.max(x, 0))
        p = tl.exp(x - new_maximum)
        rescale = tl.exp(maximum - new_maximum)
        total = total * rescale + tl.sum(p, 0)
        weighted = weighted * rescale + tl.sum(p * tl.maximum(x, -1e30), 0)
        maximum = new_maximum
    tl.store(stats + row, maximum)
    tl.store(stats + M + row, total)
    tl.store(stats + 3 * M + row, weighted)
    target = tl.load(y + row)
    if (target >= 0) & (target < K):
        tl.store(stats + 2 * M + row, tl.load(z + row * stride + target).to(tl.float32))


@triton.jit
def logits_gradient_kernel(
    z, out, y, saved, stride, out_stride, M, K: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lse = tl.load(saved + row)
    d_logp = tl.load(saved + M + row)
    entropy = tl.load(saved + 2 * M + row)
    d_entropy = tl.load(saved + 3 * M + row)
    x = tl.load(z + row * stride + column, mask=column < K, other=-float("inf")).to(tl.float32)
    logp = x - lse
    through_softmax = tl.exp(logp) * (d_logp + d_entropy * tl.maximum(logp + entropy, -1e30))
    d = tl.where(column == tl.load(y + row), d_logp, 0.0) - through_softmax
    tl.store(out + row * out_stride + column, d, mask=column < K)


def update_stats(z, y, stats):
    rows, K = z.shape
    block = min(BLOCK, triton.next_power_of_2(K))
    update_stats_kernel[(rows,)](z, y, stats, z.stride(0), stats.stride(0), K, block)


def logits_gradient(z, y, saved, out):
    rows, K = z.shape
    block = min(BLOCK, triton.next_power_of_2(K))
    grid = (rows, triton.cdiv(K, block))
    strides = z.stride(0), out.stride(0), saved.stride(0)
    logits_gradient_kernel[grid](z, out, y, saved, *strides, K, block)
