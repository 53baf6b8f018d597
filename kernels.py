"""The two elementwise kernels of logprobs.py in Triton: one pass over a tile of logits each. One program a row.

Tests run them on a CPU through Triton's interpreter (TRITON_INTERPRET=1).
"""
import triton
import triton.language as tl

BLOCK = 4096                      # columns a program holds at a time


@triton.jit
def stats_kernel(z, y, state, stride, M, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)                       # rows * columns can pass 2^31
    top, total, mean = tl.load(state + row), tl.load(state + M + row), tl.load(state + 3 * M + row)
    for start in range(0, K, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = tl.load(z + row * stride + c, mask=c < K, other=-float("inf")).to(tl.float32)
        new = tl.maximum(top, tl.max(x, 0))
        p, old = tl.exp(x - new), tl.exp(top - new)
        total = total * old + tl.sum(p, 0)
        mean = mean * old + tl.sum(p * tl.maximum(x, -1e30), 0)
        top = new
    tl.store(state + row, top)
    tl.store(state + M + row, total)
    tl.store(state + 3 * M + row, mean)
    target = tl.load(y + row)
    if (target >= 0) & (target < K):
        tl.store(state + 2 * M + row, tl.load(z + row * stride + target).to(tl.float32))


@triton.jit
def dlogits_kernel(z, out, y, known, stride, out_stride, M, K: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lse, g, entropy, g_entropy = (tl.load(known + row), tl.load(known + M + row), tl.load(known + 2 * M + row),
                                  tl.load(known + 3 * M + row))
    logp = tl.load(z + row * stride + c, mask=c < K, other=-float("inf")).to(tl.float32) - lse
    p = tl.exp(logp)
    d = tl.where(c == tl.load(y + row), g, 0.0) - p * (g + g_entropy * tl.maximum(logp + entropy, -1e30))
    tl.store(out + row * out_stride + c, d, mask=c < K)


def stats(z, y, state):
    rows, K = z.shape
    stats_kernel[(rows,)](z, y, state, z.stride(0), state.stride(0), K, min(BLOCK, triton.next_power_of_2(K)))


def dlogits(z, y, known, out):
    rows, K = z.shape
    block = min(BLOCK, triton.next_power_of_2(K))
    grid = rows, triton.cdiv(K, block)
    dlogits_kernel[grid](z, out, y, known, z.stride(0), out.stride(0), known.stride(0), K, block)
