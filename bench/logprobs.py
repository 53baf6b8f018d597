"""The log-prob loop beside other people's: time forward + backward, error against float64, peak memory.

    python bench/logprobs.py --rows 1024 --vocabulary 49152 --width 576 --threads 1

All variants run in one process in rotation; times are the minimum and the median over the rounds. Peak memory is that of
a fresh process that runs one variant once (on a GPU: of the allocator), less what is there before it. Packages that are
not installed are skipped with a notice.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from logprobs import dlogits, reference_logprobs, stats, token_logprobs


def variants():
    """{name: function(hidden, weight, targets) -> log-probs}, and notices about what is missing."""
    found, missing = {
        "log_softmax + gather": lambda h, w, y: reference_no_entropy(h, w, y),
        "definition, with entropy": lambda h, w, y: reference_logprobs(h, w, y)[0],
        "ours, all kept": lambda h, w, y: token_logprobs(h, w, y, 1.0, 1 << 40)[0],
        "ours, half kept": lambda h, w, y: token_logprobs(h, w, y, 1.0, 2 * len(h) * len(w))[0],            # bytes: 4 an entry
        "ours, recomputed": lambda h, w, y: token_logprobs(h, w, y, 1.0, 0)[0],
    }, []
    compiled = torch.compile(reference_no_entropy)
    found["torch.compile(log_softmax + gather)"] = lambda h, w, y: compiled(h, w, y)
    if hasattr(F, "linear_cross_entropy"):
        found["F.linear_cross_entropy, automatic"] = lambda h, w, y: -F.linear_cross_entropy(
            h, w, y, reduction="none", options=torch.nn.LinearCrossEntropyOptions())
    else:
        missing.append("F.linear_cross_entropy: this torch has none")
    try:
        from liger_kernel.chunked_loss import fused_linear_ppo as liger
        found["Liger, torch path"] = lambda h, w, y: liger._ChunkedSelectiveLogProbFunction.apply(
            h, w, y, None, 1.0, liger._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE)
    except Exception as error:
        missing.append(f"liger-kernel: {error}")
    try:
        from trl.kernels import ChunkedLogProbFunction
        from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, selective_log_softmax
        found["TRL selective_log_softmax"] = lambda h, w, y: selective_log_softmax(h @ w.T, y)
        found["TRL chunked"] = lambda h, w, y: ChunkedLogProbFunction.apply(
            h, w, None, y, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ())[0]
        found["TRL chunked, with entropy"] = lambda h, w, y: ChunkedLogProbFunction.apply(
            h, w, None, y, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("entropy",))[0]
    except Exception as error:
        missing.append(f"trl: {error}")
    try:
        from cut_cross_entropy import linear_cross_entropy
        for impl in ("cce", "cce_exact") if torch.cuda.is_available() else ("torch_compile",):
            found[f"cut-cross-entropy, {impl}"] = lambda h, w, y, impl=impl: -linear_cross_entropy(h, w, y, reduction="none", impl=impl)
    except Exception as error:
        missing.append(f"cut-cross-entropy: {error}")
    return found, missing


def reference_no_entropy(hidden, weight, targets):
    logits = hidden @ weight.T
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def inputs(args):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(args.rows, args.width, generator=g).to(args.device, getattr(torch, args.dtype)).requires_grad_()
    weight = (torch.randn(args.vocabulary, args.width, generator=g) * args.width ** -0.5 * 3).to(args.device, getattr(torch, args.dtype)).requires_grad_()
    return hidden, weight, torch.randint(args.vocabulary, (args.rows,), generator=g).to(args.device)


def kernel_rates(args):
    """GB/s of the two Triton kernels on one tile of logits, beside the copy rate of the same tensor."""
    z = torch.randn(4096, 32768, device="cuda", dtype=torch.float32)
    out, y, four = torch.empty_like(z), torch.zeros(len(z), dtype=torch.long, device="cuda"), torch.zeros(4, len(z), device="cuda")
    calls = {"copy": (2, lambda: out.copy_(z)), "stats, 1 read": (1, lambda: stats(z, y, four)),
             "dlogits, 1 read + 1 write": (2, lambda: dlogits(z, y, four, out))}
    for name, (passes, call) in calls.items():
        call()
        began = now(z)
        for _ in range(20):
            call()
        print(f"{name:28}{20 * passes * z.nbytes / (now(z) - began) / 1e9:8.0f} GB/s")


def once(function, hidden, weight, targets):
    hidden.grad = weight.grad = None
    began = now(hidden)
    logp = function(hidden, weight, targets)
    middle = now(hidden)
    logp.sum().backward()
    return middle - began, now(hidden) - began, logp.detach()


def now(x):
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def high_water():
    """Peak resident memory of this process in kB, since it was last reset. Linux only."""
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])


def peak(args, name):
    """MB that one forward and backward add to a fresh process."""
    command = [sys.executable, os.path.abspath(__file__), "--alone", name] + [
        f"--{k}={v}" for k, v in vars(args).items() if k not in ("alone", "rounds")]
    run = subprocess.run(command, capture_output=True, text=True)
    return int(run.stdout.split()[-1]) if run.returncode == 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 1024), ("vocabulary", 49152), ("width", 576), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found, missing = variants()
    hidden, weight, targets = inputs(args)
    if args.alone:
        once(found[args.alone], *(x[:8].detach().requires_grad_(x.is_floating_point()) if x is not weight else x for x in (hidden, weight, targets)))
        weight.grad = None                        # a small run first: libraries and compiled code are not counted
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            once(found[args.alone], hidden, weight, targets)
            return print((torch.cuda.max_memory_allocated() - before) >> 20)
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")                          # the high-water mark starts again from here
        before = high_water()
        once(found[args.alone], hidden, weight, targets)
        return print((high_water() - before) >> 10)
    for line in missing:
        print(f"skipped {line}")
    with torch.no_grad():
        truth = torch.cat([                       # a piece at a time: float64 logits would not fit
            torch.log_softmax(h.double() @ weight.double().T, -1).gather(1, y[:, None])[:, 0] for h, y in zip(hidden.split(128), targets.split(128))])
    times = {name: [] for name in found}
    errors = {}
    for round in range(args.rounds + 1):
        for name in list(found):
            try:
                forward, both, logp = once(found[name], hidden, weight, targets)
            except Exception as error:
                print(f"skipped {name}: {type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}")
                del found[name], times[name]
                continue
            errors[name] = (logp.double() - truth).abs().max().item()
            if round:                                            # the first one warms up and compiles
                times[name].append((forward, both))
    if args.device == "cuda":
        kernel_rates(args)
    base = statistics.median(both for _, both in times["log_softmax + gather"])
    print(f"{args.rows} x {args.vocabulary} x {args.width}, {args.dtype}, {args.device}, {args.threads} threads, torch {torch.__version__}")
    print(f"{'':38}{'fwd+bwd s':>12}{'min':>8}{'fwd':>8}{'ratio':>8}{'peak MB':>9}{'error':>10}")
    rows = []
    for name, pairs in times.items():
        median, fastest = statistics.median(b for _, b in pairs), min(b for _, b in pairs)
        row = dict(name=name, seconds=median, min=fastest, forward=statistics.median(f for f, _ in pairs), ratio=median / base,
                   peak_mb=peak(args, name), error=errors[name])
        rows.append(row)
        print(f"{name:38}{median:12.3f}{fastest:8.3f}{row['forward']:8.3f}{row['ratio']:8.2f}{row['peak_mb'] or 0:9d}{row['error']:10.1e}", flush=True)
    print(json.dumps(vars(args) | {"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
