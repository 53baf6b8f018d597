"""The log-prob loop beside other people's: time forward + backward, error against float64, memory.

    python bench/logprobs.py --rows 1024 --vocabulary 49152 --width 576 --threads 1

All contenders run in one process in rotation. Times are the minimum and the median over the rounds.
Peak memory is that of a fresh process that runs one contender once (on a GPU: of the allocator),
less what was there before. Packages that are not installed are skipped with a notice.
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

from logprobs import reference_logprobs, token_logprobs  # noqa: E402

BASELINE = "log_softmax + gather"


def log_softmax_gather(hidden, weight, targets):
    logits = hidden @ weight.T
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def definition(hidden, weight, targets):
    return reference_logprobs(hidden, weight, targets)[0]


def ours_all_kept(hidden, weight, targets):
    return token_logprobs(hidden, weight, targets, 1.0, 1 << 40)[0]


def ours_half_kept(hidden, weight, targets):
    logits_bytes = 4 * len(hidden) * len(weight)
    return token_logprobs(hidden, weight, targets, 1.0, logits_bytes // 2)[0]


def ours_recomputed(hidden, weight, targets):
    return token_logprobs(hidden, weight, targets, 1.0, 0)[0]


def torch_contenders():
    def linear_cross_entropy(hidden, weight, targets):
        options = torch.nn.LinearCrossEntropyOptions()
        return -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)

    return {
        BASELINE: log_softmax_gather,
        "definition, with entropy": definition,
        "ours, all kept": ours_all_kept,
        "ours, half kept": ours_half_kept,
        "ours, recomputed": ours_recomputed,
        "torch.compile(log_softmax + gather)": torch.compile(log_softmax_gather),
        "F.linear_cross_entropy, automatic": linear_cross_entropy,
    }


def liger_contenders():
    from liger_kernel.chunked_loss import fused_linear_ppo as liger

    def chunked(hidden, weight, targets):
        chunk = liger._SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
        function = liger._ChunkedSelectiveLogProbFunction
        return function.apply(hidden, weight, targets, None, 1.0, chunk)

    return {"Liger, torch path": chunked}


def trl_contenders():
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK
    from trl.trainer.utils import selective_log_softmax

    def selective(hidden, weight, targets):
        return selective_log_softmax(hidden @ weight.T, targets)

    def chunked(hidden, weight, targets, more=()):
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, more
        )[0]

    def chunked_with_entropy(hidden, weight, targets):
        return chunked(hidden, weight, targets, ("entropy",))

    return {
        "TRL selective_log_softmax": selective,
        "TRL chunked": chunked,
        "TRL chunked, with entropy": chunked_with_entropy,
    }


def cut_cross_entropy_contenders():
    from cut_cross_entropy import linear_cross_entropy

    def contender(implementation):
        def call(hidden, weight, targets):
            return -linear_cross_entropy(
                hidden, weight, targets, reduction="none", impl=implementation
            )

        return call

    implementations = ("cce", "cce_exact") if torch.cuda.is_available() else ("torch_compile",)
    return {f"cut-cross-entropy, {name}": contender(name) for name in implementations}


def contenders():
    """{name: function(hidden, weight, targets) -> log-probs}, and notices of what is missing."""
    available = torch_contenders()
    missing = []
    for more in (liger_contenders, trl_contenders, cut_cross_entropy_contenders):
        try:
            available |= more()
        except Exception as error:
            missing.append(f"{more.__name__.removesuffix('_contenders')}: {error}")
    return available, missing


def inputs(args):
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, args.dtype)
    hidden = torch.randn(args.rows, args.width, generator=generator)
    weight = torch.randn(args.vocabulary, args.width, generator=generator)
    weight = weight * args.width**-0.5 * 3
    targets = torch.randint(args.vocabulary, (args.rows,), generator=generator)
    hidden = hidden.to(args.device, dtype).requires_grad_()
    weight = weight.to(args.device, dtype).requires_grad_()
    return hidden, weight, targets.to(args.device)


def now(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run_once(function, hidden, weight, targets):
    """-> (seconds of the forward pass, seconds of both passes, log-probs)"""
    device = hidden.device.type
    hidden.grad = None
    weight.grad = None
    began = now(device)
    logprobs = function(hidden, weight, targets)
    middle = now(device)
    logprobs.sum().backward()
    return middle - began, now(device) - began, logprobs.detach()


def float64_logprobs(hidden, weight, targets):
    """A piece at a time: the float64 logits of all rows would not fit."""
    pieces = []
    with torch.no_grad():
        for i in range(0, len(hidden), 128):
            logits = hidden[i : i + 128].double() @ weight.double().T
            chosen = targets[i : i + 128, None]
            pieces.append(logits.log_softmax(-1).gather(1, chosen)[:, 0])
    return torch.cat(pieces)


def print_kernel_rates():
    """GB/s of the two Triton kernels on one tile of logits, beside the copy rate of the tile."""
    from fast.triton_kernels import logits_gradient, update_stats

    logits = torch.randn(4096, 32768, device="cuda", dtype=torch.float32)
    out = torch.empty_like(logits)
    targets = torch.zeros(len(logits), dtype=torch.long, device="cuda")
    numbers = torch.zeros(4, len(logits), device="cuda")
    calls = {  # name: (reads and writes of the tile, call)
        "copy": (2, lambda: out.copy_(logits)),
        "update_stats, 1 read": (1, lambda: update_stats(logits, targets, numbers)),
        "logits_gradient, 1 read + 1 write": (
            2,
            lambda: logits_gradient(logits, targets, numbers, out),
        ),
    }
    for name, (passes, call) in calls.items():
        call()
        began = now("cuda")
        for _ in range(20):
            call()
        rate = 20 * passes * logits.nbytes / (now("cuda") - began)
        print(f"{name:36}{rate / 1e9:8.0f} GB/s")


def high_water_mark():
    """Peak resident memory of this process in kB since it was last reset. Linux only."""
    with open("/proc/self/status") as f:
        return int(re.search(r"VmHWM:\s+(\d+)", f.read())[1])


def own_peak(function, hidden, weight, targets):
    """MB that one forward and backward pass add to this process."""
    # A small run first, so that libraries and compiled code are not counted.
    few = hidden[:8].detach().requires_grad_()
    run_once(function, few, weight, targets[:8])
    weight.grad = None
    if hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(function, hidden, weight, targets)
        return (torch.cuda.max_memory_allocated() - before) >> 20
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the high-water mark starts again from here
    before = high_water_mark()
    run_once(function, hidden, weight, targets)
    return (high_water_mark() - before) >> 10


def peak_in_new_process(args, name):
    """MB that this contender adds to a fresh process; None if it failed."""
    command = [sys.executable, os.path.abspath(__file__), "--alone", name]
    for flag, value in vars(args).items():
        if flag not in ("alone", "rounds"):
            command.append(f"--{flag}={value}")
    run = subprocess.run(command, capture_output=True, text=True)
    return int(run.stdout.split()[-1]) if run.returncode == 0 else None


def time_all(functions, rounds, hidden, weight, targets):
    """-> {name: [(forward, both)]}, {name: largest error}. The first round warms up."""
    truth = float64_logprobs(hidden, weight, targets)
    times = {name: [] for name in functions}
    errors = {}
    for i in range(rounds + 1):
        for name in list(times):
            try:
                forward, both, logprobs = run_once(functions[name], hidden, weight, targets)
            except Exception as error:
                first_line = str(error).partition("\n")[0]
                print(f"skipped {name}: {type(error).__name__} {first_line}")
                del times[name]
                continue
            errors[name] = (logprobs.double() - truth).abs().max().item()
            if i > 0:
                times[name].append((forward, both))
    return times, errors


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    functions, missing = contenders()
    hidden, weight, targets = inputs(args)
    if args.alone:
        print(own_peak(functions[args.alone], hidden, weight, targets))
        return
    for notice in missing:
        print(f"skipped {notice}")
    times, errors = time_all(functions, args.rounds, hidden, weight, targets)
    if args.device == "cuda":
        print_kernel_rates()
    print(
        f"{args.rows} x {args.vocabulary} x {args.width}, {args.dtype}, {args.device}, "
        f"{args.threads} threads, torch {torch.__version__}"
    )
    titles = f"{'fwd+bwd s':>12}{'min':>8}{'fwd':>8}{'ratio':>8}{'peak MB':>9}{'error':>10}"
    print(f"{'':38}{titles}")
    base = statistics.median(both for _, both in times[BASELINE])
    rows = []
    for name, pairs in times.items():
        seconds = statistics.median(both for _, both in pairs)
        row = {
            "name": name,
            "seconds": seconds,
            "min": min(both for _, both in pairs),
            "forward": statistics.median(forward for forward, _ in pairs),
            "ratio": seconds / base,
            "peak_mb": peak_in_new_process(args, name),
            "error": errors[name],
        }
        rows.append(row)
        print(
            f"{name:38}{seconds:12.3f}{row['min']:8.3f}{row['forward']:8.3f}{row['ratio']:8.2f}"
            f"{row['peak_mb'] or 0:9d}{row['error']:10.1e}",
            flush=True,
        )
    print(json.dumps(vars(args) | {"torch": torch.__version__, "contenders": rows}))


if __name__ == "__main__":
    main()
