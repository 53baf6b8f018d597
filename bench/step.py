"""One training step on fixed work, so that others can be held against it: time, its split, and peak memory.

    python bench/step.py --setting S --algo grpo              a line of JSON

S: 256 wide, 6 layers, 8 heads, SwiGLU 704, vocabulary 512; 32 prompts of 32 ids, 8 responses each.
R: the shape of SmolLM2-135M, vocabulary 49,152; 4 prompts of 64 ids, 8 responses each.
Both: random weights, 64 new tokens in every response, reward = share of even ids, lr 1e-4, one update a rollout. of_it_head:
what the head and the log-probs take of the update, forward and backward, timed alone;
product_gflops: the rate of one product of matrices, to hold the seconds against; estimate_mb: what train.py --dry_run
would say. Each run is a process of its own: its peak memory is that of nothing else.
"""
import argparse
import json
import os
import resource
import statistics
import sys
import time
from types import SimpleNamespace

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import memory
import train
from logprobs import token_logprobs
from model import GPT, GPTConfig
from sampler import sample

SETTINGS = {
    "S": (GPTConfig(vocab_size=512, n_layer=6, n_head=8, n_kv_head=8, n_embd=256, n_hidden=704), 32, 32),
    "R": (GPTConfig(vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_hidden=1536), 4, 64),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="S", choices=SETTINGS)
    parser.add_argument("--algo", default="grpo", choices=train.ALGORITHMS)
    parser.add_argument("--kl_coef", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that is not")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=4096, help="padded tokens per micro-batch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, B, P = SETTINGS[args.setting]
    algo, G = train.ALGORITHMS[args.algo], 8
    hp = algo.Config(group_size=G, kl_coef=args.kl_coef, minibatches=1)
    nets = algo.networks(GPT(shape).to(args.device), hp)
    trained = [net for name, net in vars(nets).items() if net is not None and name != "ref"]
    run = SimpleNamespace(
        algo=algo, hp=hp, nets=nets, config=train.Config(algo=args.algo, lr=1e-4, tokens=args.tokens, device=args.device,
                                                            dtype=args.dtype, problems=B, max_new_tokens=64),
        precision=torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"),
        optimizer=torch.optim.AdamW([{"params": list(net.parameters())} for net in trained], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    cuda = args.device == "cuda"
    times = []
    for step in range(args.steps + 1):
        prompts = torch.randint(shape.vocab_size, (B, P), generator=torch.Generator().manual_seed(step)).tolist()
        marks = [now(cuda)]
        with run.precision:
            rollout = sample(nets.policy, prompts, G, 64, seed=step)
        rollout.rewards = (rollout.response_ids % 2 == 0).float().mean(1)
        marks.append(now(cuda))
        train.score(run, rollout)
        rollout.advantages = algo.advantages(rollout, hp)
        marks.append(now(cuda))
        train.update(run, rollout, step)
        marks.append(now(cuda))
        times.append([b - a for a, b in zip(marks, marks[1:])])
    hidden = torch.randn(B * G * 64, shape.n_embd, device=args.device, requires_grad=True)
    head = []
    for _ in range(3):                            # the log-probs of all responses by themselves: a part of the update
        began = now(cuda)
        for part in hidden.split(args.tokens):
            with run.precision:
                token_logprobs(part, nets.policy.head, torch.zeros(len(part), dtype=torch.long, device=args.device))[0].sum().backward()
        head.append(now(cuda) - began)
    a, b = torch.randn(2048, 576, device=args.device), torch.randn(576, 1536, device=args.device)
    rates = []
    for _ in range(9):                            # what the machine gives at best in this hour
        began = now(cuda)
        with run.precision:
            a @ b
        rates.append(2e-9 * 2048 * 576 * 1536 / (now(cuda) - began))
    sample_s, score_s, update_s = (statistics.median(column) for column in zip(*times[1:]))
    seconds = statistics.median(map(sum, times[1:]))
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(
        setting=args.setting, algo=args.algo, kl_coef=args.kl_coef, dtype=args.dtype, device=args.device, threads=torch.get_num_threads(),
        trained_parameters=sum(p.numel() for net in trained for p in net.parameters()), seconds=round(seconds, 3), sample=round(sample_s, 3),
        score=round(score_s, 3), update=round(update_s, 3), of_it_head=round(min(head), 3), tokens_per_second=round(B * G * 64 / seconds), peak_mb=round(peak / 2 ** 20),
        estimate_mb=round(memory.peak(memory.estimate(nets, run.config, G, P, run.precision)) / 2 ** 20),
        product_gflops=round(statistics.median(rates)),
        torch=torch.__version__)))


def now(cuda):
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
