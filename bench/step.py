"""One training step on fixed work: time, its split, and peak memory, as a line of JSON.

    python bench/step.py --setting S --algo grpo

S: 256 wide, 6 layers, 8 heads, SwiGLU 704, vocabulary 512; 32 prompts of 32 ids, 8 responses each.
R: the shape of SmolLM2-135M, vocabulary 49,152; 4 prompts of 64 ids, 8 responses each.
1.5B: the shape of Qwen2.5-1.5B, for a GPU; 64 prompts of 256 ids, 8 responses of 1,024 each.
All: random weights, 64 new tokens in every response of S and R, reward = share of even ids, lr
1e-4, one optimizer step a rollout. --prompts, --group_size, --new, --vocabulary: other sizes.

of_it_head: what the head and the log-probs take of the update, forward and backward, timed alone.
product_gflops: the rate of one matrix product, to hold the seconds against. estimate_mb: what
train.py --dry_run would say. Each run is a process of its own, and so is its peak memory.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import replace

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import train  # noqa: E402
from logprobs import token_logprobs  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from sampler import sample  # noqa: E402
from start import memory  # noqa: E402
from start.compose import autocast  # noqa: E402
from start.resume import parse_run  # noqa: E402

S = GPTConfig(vocab_size=512, n_layer=6, n_head=8, n_kv_head=8, n_embd=256, n_hidden=704)
R = GPTConfig(vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_hidden=1536)
BILLIONS = GPTConfig(
    vocab_size=151936,
    n_layer=28,
    n_head=12,
    n_kv_head=2,
    n_embd=1536,
    n_hidden=8960,
    qkv_bias=True,
    max_seq_len=2048,
)
# shape, prompts, ids of a prompt, new tokens
SETTINGS = {"S": (S, 32, 32, 64), "R": (R, 4, 64, 64), "1.5B": (BILLIONS, 64, 256, 1024)}
GROUP_SIZE = 8  # responses to a prompt


def now(device):
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def make_run(args, shape):
    """A train.Run without task, tokenizer and folder: nothing here needs them."""
    flags = {
        "algo": args.algo,
        "group_size": args.group_size,
        "kl_coef": args.kl_coef,
        "minibatches": 1,
        "lr": 1e-4,
        "prompts_per_step": args.prompts,
        "max_new_tokens": args.new,
        "tokens_per_microbatch": args.tokens_per_microbatch,
        "device": args.device,
        "dtype": args.dtype,
        "out": "no such folder",
    }
    argv = [f"--{name}={value}" for name, value in flags.items()]
    config, hp, algo, _ = parse_run(argv, __doc__, train.Config)
    with torch.device(args.device):  # where random weights are soon made
        policy = GPT(shape)
    nets = algo.networks(policy.to(args.device), hp)
    optimizer = train.make_optimizer(nets, hp, config.lr)
    for group in optimizer.param_groups:
        group["lr"] = config.lr
    return train.Run(
        config=config,
        algo=algo,
        hp=hp,
        nets=nets,
        optimizer=optimizer,
        tokenizer=None,
        task=None,
        judge=None,
        autocast=autocast(config),
    )


def time_step(run, shape, prompt_length, step):
    """-> seconds of sampling, of the other networks and advantages, of the update"""
    device, prompts = run.config.device, run.config.prompts_per_step
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(shape.vocab_size, (prompts, prompt_length), generator=generator).tolist()
    began = now(device)
    with run.autocast:
        limits = run.hp.group_size, run.config.max_new_tokens
        rollout = sample(run.nets.policy, ids, *limits, seed=step)
    rollout.step = step
    rollout.rewards = (rollout.response_ids % 2 == 0).float().mean(1)
    sampled = now(device)
    train.score(run, rollout)
    rollout.advantages = run.algo.advantages(rollout, run.hp)
    scored = now(device)
    train.update(run, rollout, step)
    return sampled - began, scored - sampled, now(device) - scored


def time_head(run, shape, tokens):
    """The log-probs of all responses by themselves, which are a part of the update."""
    device = run.config.device
    hidden = torch.randn(tokens, shape.n_embd, device=device, requires_grad=True)
    times = []
    for _ in range(3):
        began = now(device)
        for part in hidden.split(run.config.tokens_per_microbatch):
            targets = torch.zeros(len(part), dtype=torch.long, device=device)
            with run.autocast:
                logprobs, _ = token_logprobs(part, run.nets.policy.head, targets)
                logprobs.sum().backward()
        times.append(now(device) - began)
    return min(times)


def product_gflops(run):
    """What the machine gives at this moment."""
    device = run.config.device
    a = torch.randn(2048, 576, device=device)
    b = torch.randn(576, 1536, device=device)
    rates = []
    for _ in range(9):
        began = now(device)
        with run.autocast:
            a @ b
        rates.append(2e-9 * 2048 * 576 * 1536 / (now(device) - began))
    return statistics.median(rates)


def peak_bytes(device):
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", default="S", choices=SETTINGS)
    parser.add_argument("--algo", default="grpo", help="as for train.py")
    parser.add_argument("--kl_coef", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens_per_microbatch", type=int, default=4096)
    parser.add_argument("--prompts", type=int, default=0)
    parser.add_argument("--group_size", type=int, default=GROUP_SIZE)
    parser.add_argument("--new", type=int, default=0, help="tokens of a response")
    parser.add_argument("--vocabulary", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, prompts, prompt_length, new_tokens = SETTINGS[args.setting]
    args.prompts = args.prompts or prompts
    args.new = args.new or new_tokens
    context = max(shape.max_seq_len, prompt_length + args.new)
    vocab_size = args.vocabulary or shape.vocab_size
    shape = replace(shape, vocab_size=vocab_size, max_seq_len=context)
    run = make_run(args, shape)
    times = [time_step(run, shape, prompt_length, i) for i in range(args.steps + 1)]
    timed = times[1:]
    tokens = args.prompts * args.group_size * args.new
    head_seconds = time_head(run, shape, tokens)
    gflops = product_gflops(run)
    peak = peak_bytes(args.device)
    parts = memory.estimate(run.nets, run.config, args.group_size, prompt_length)
    seconds = statistics.median(sum(t) for t in timed)
    parameters = sum(p.numel() for group in run.optimizer.param_groups for p in group["params"])
    line = {
        "setting": args.setting,
        "prompts": args.prompts,
        "group_size": args.group_size,
        "new": args.new,
        "vocabulary": vocab_size,
        "algo": args.algo,
        "kl_coef": args.kl_coef,
        "dtype": args.dtype,
        "device": args.device,
        "threads": torch.get_num_threads(),
        "trained_parameters": parameters,
        "seconds": round(seconds, 3),
        "sample": round(statistics.median(t[0] for t in timed), 3),
        "score": round(statistics.median(t[1] for t in timed), 3),
        "update": round(statistics.median(t[2] for t in timed), 3),
        "of_it_head": round(head_seconds, 3),
        "tokens_per_second": round(tokens / seconds),
        "peak_mb": round(peak / 2**20),
        "estimate_mb": round(parts["peak"] / 2**20),
        "product_gflops": round(gflops),
        "torch": torch.__version__,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
