"""sample() beside transformers' generate: the same weights, dtype, prompts and threads, whole calls in alternation.

    python bench/sampler.py --setting R --dtype bfloat16 --threads 1

R: the shape of SmolLM2-135M, vocabulary 49,152.  0.5B: of Qwen2.5-0.5B, for a GPU.  tiny: 192 wide, 6 layers, vocabulary 512. Random weights; 64 prompt and
128 new tokens. Cases: prompts of equal length; prompts of 40 to 64 tokens, 8 samples each; the same with a set of end
tokens that a token is in with probability 1/48, where only tokens up to the end count; prompts of 320 tokens, 8 samples each (not of tiny).
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from model import GPT, GPTConfig
from sampler import sample

SETTINGS = {
    "R": (GPTConfig(vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_hidden=1536), 32),
    "0.5B": (GPTConfig(vocab_size=151936, n_layer=24, n_head=14, n_kv_head=2, n_embd=896, n_hidden=4864, qkv_bias=True), 256),
    "tiny": (GPTConfig(vocab_size=512, n_layer=6, n_head=6, n_kv_head=6, n_embd=192, n_hidden=512), 256),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="R", choices=SETTINGS)
    for name, default in (("batch", 0), ("new", 128), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, batch = SETTINGS[args.setting]
    batch = args.batch or batch
    ours = GPT(shape)
    folder = tempfile.mkdtemp()
    ours.save(folder)
    ours = ours.to(args.device)                   # fp32 weights under autocast, as train.py samples
    contenders = {"ours": lambda prompts, G, ends: ours_call(ours, prompts, G, ends, args)}
    try:
        from transformers import AutoModelForCausalLM
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).to(args.device)
        theirs.generation_config.eos_token_id = None
        contenders["transformers generate"] = lambda prompts, G, ends: their_call(theirs, prompts, G, ends, args)
    except ImportError as error:
        print(f"skipped transformers: {error}")
    g = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(shape.vocab_size, (n,), generator=g).tolist()
    ragged = [draw(40 + 24 * i // max(1, batch // 8 - 1)) for i in range(batch // 8)]
    ends = torch.randperm(shape.vocab_size, generator=g)[:shape.vocab_size // 48].tolist()
    cases = {"equal lengths": ([draw(64) for _ in range(batch)], 1, None), "ragged x 8": (ragged, 8, None), "early stops": (ragged, 8, ends)}
    if args.setting != "tiny":                    # where it takes generate many minutes
        cases["long x 8"] = ([draw(320) for _ in ragged], 8, None)
    print(f"{args.setting}, batch {batch}, {args.new} new tokens, {args.dtype}, {args.device}, {args.threads} threads, torch {torch.__version__}")
    if args.device == "cuda":
        size = 2 if args.dtype == "bfloat16" else 4
        x = torch.empty(1 << 28, device="cuda")   # 1 GB, read and written
        x.clone()
        began = now(args)
        for _ in range(10):
            x.clone()
        rate = 10 * 2 * x.nbytes / (now(args) - began)
        columns = 64 + args.new / 2               # on average
        read = size * (sum(p.numel() for p in ours.parameters()) + batch * columns * 2 * shape.n_layer * shape.n_kv_head * shape.head_dim)
        print(f"copy {rate / 1e9:.0f} GB/s; floor of a token by bytes {read / rate * 1e3:.2f} ms, {batch * rate / read:.0f} tokens/s")
    rows = []
    for case, (prompts, G, stop) in cases.items():
        rates = {name: [] for name in contenders}
        for round in range(args.rounds + 1):
            for name, call in contenders.items():
                began = now(args)
                tokens = call(prompts, G, stop)
                if round:
                    rates[name].append(tokens / (now(args) - began))
        for name, found in rates.items():
            row = dict(case=case, name=name, tokens_per_second=statistics.median(found), best=max(found))
            rows.append(row)
            print(f"{case:16}{name:24}{row['tokens_per_second']:10.0f} tokens/s (best {row['best']:.0f})"
                  f"{row['tokens_per_second'] / statistics.median(rates['ours']):8.2f} of ours", flush=True)
    print(json.dumps(vars(args) | {"batch": batch, "torch": torch.__version__, "rows": rows}))


def now(args):
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours_call(model, prompts, G, ends, args):
    with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        return int(sample(model, prompts, G, args.new, eos_id=ends, seed=time.time_ns()).lengths.sum())


@torch.no_grad()
def their_call(model, prompts, G, ends, args):
    """Sampling at temperature 1 without truncation; left padding where prompts differ in length."""
    P = max(map(len, prompts))
    ids = torch.tensor([[0] * (P - len(p)) + p for p in prompts for _ in range(G)], device=args.device)
    mask = torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts for _ in range(G)], device=args.device)
    out = model.generate(ids, attention_mask=mask if (mask == 0).any() else None, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                         max_new_tokens=args.new, **(dict(eos_token_id=ends) if ends else {}), pad_token_id=0)[:, P:]
    if not ends:
        return out.numel()
    stops = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    stops[ends] = True
    return int((stops[out.cpu()].cumsum(1) - stops[out.cpu()].long() == 0).sum())


if __name__ == "__main__":
    main()
