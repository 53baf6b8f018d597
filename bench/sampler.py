"""sample() beside transformers' generate: same weights, dtype, prompts, threads, calls in turn.

    python bench/sampler.py --setting R --dtype bfloat16 --threads 1

Settings: R has the shape of SmolLM2-135M, vocabulary 49,152; 0.5B that of Qwen2.5-0.5B, for a GPU;
tiny is 192 wide, 6 layers, vocabulary 512. Random weights, 128 new tokens.
Cases: prompts of 64 tokens; prompts of 40 to 64 tokens, 8 samples each ("ragged x 8"); the same
with end tokens that are drawn with probability 1/48, where only tokens up to the end count ("early
stops"); prompts of 320 tokens, 8 samples each ("long x 8", not for tiny).
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

from model import GPT, GPTConfig  # noqa: E402
from sampler import sample  # noqa: E402

R = GPTConfig(vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, n_embd=576, n_hidden=1536)
HALF_BILLION = GPTConfig(
    vocab_size=151936,
    n_layer=24,
    n_head=14,
    n_kv_head=2,
    n_embd=896,
    n_hidden=4864,
    qkv_bias=True,
)
TINY = GPTConfig(vocab_size=512, n_layer=6, n_head=6, n_kv_head=6, n_embd=192, n_hidden=512)
SETTINGS = {"R": (R, 32), "0.5B": (HALF_BILLION, 256), "tiny": (TINY, 256)}  # shape, batch


def now(args):
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def make_cases(shape, batch, long_prompts):
    """{case: (prompts, samples a prompt, end tokens or None)}"""
    generator = torch.Generator().manual_seed(1)

    def draw(length):
        return torch.randint(shape.vocab_size, (length,), generator=generator).tolist()

    groups = batch // 8
    ragged = [draw(40 + 24 * i // max(1, groups - 1)) for i in range(groups)]
    shuffled = torch.randperm(shape.vocab_size, generator=generator)
    ends = shuffled[: shape.vocab_size // 48].tolist()
    cases = {
        "equal lengths": ([draw(64) for _ in range(batch)], 1, None),
        "ragged x 8": (ragged, 8, None),
        "early stops": (ragged, 8, ends),
    }
    if long_prompts:
        cases["long x 8"] = ([draw(320) for _ in range(groups)], 8, None)
    return cases


def call_ours(model, prompts, group_size, ends, args):
    """-> useful tokens. fp32 weights under autocast, as train.py samples."""
    bfloat16 = args.dtype == "bfloat16"
    with torch.autocast(args.device, torch.bfloat16, enabled=bfloat16):
        rollout = sample(model, prompts, group_size, args.new, eos_id=ends, seed=time.time_ns())
    return int(rollout.lengths.sum())


@torch.no_grad()
def call_theirs(model, prompts, group_size, ends, args):
    """-> useful tokens. Temperature 1, no truncation; left padding where prompts differ."""
    width = max(len(prompt) for prompt in prompts)
    ids = []
    mask = []
    for prompt in prompts:
        padding = width - len(prompt)
        ids += [[0] * padding + prompt] * group_size
        mask += [[0] * padding + [1] * len(prompt)] * group_size
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    options |= {"max_new_tokens": args.new, "pad_token_id": 0}
    if ends:
        options["eos_token_id"] = ends
    mask = torch.tensor(mask, device=args.device)
    if bool(mask.all()):
        mask = None
    ids = torch.tensor(ids, device=args.device)
    responses = model.generate(ids, attention_mask=mask, **options)[:, width:].cpu()
    if not ends:
        return responses.numel()
    is_end = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    is_end[ends] = True
    ends_before = is_end[responses].cumsum(1) - is_end[responses].long()
    return int((ends_before == 0).sum())


def load_theirs(folder, args):
    """The model of `folder` in transformers; None, with a notice, where that is not installed."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        print(f"skipped transformers: {error}")
        return None
    dtype = getattr(torch, args.dtype)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(args.device)
    theirs.generation_config.eos_token_id = None
    return theirs


def print_floor(model, batch, args):
    """The time of a token if the GPU did nothing but read weights and cache at its copy rate."""
    shape = model.config
    x = torch.empty(1 << 28, device="cuda")  # 1 GB, read and written
    x.clone()
    began = now(args)
    for _ in range(10):
        x.clone()
    rate = 10 * 2 * x.nbytes / (now(args) - began)
    parameters = sum(p.numel() for p in model.parameters())
    positions = 64 + args.new / 2  # on average
    cached = batch * positions * 2 * shape.n_layer * shape.n_kv_head * shape.head_dim
    bytes_read = (2 if args.dtype == "bfloat16" else 4) * (parameters + cached)
    print(
        f"copy {rate / 1e9:.0f} GB/s; floor of a token by bytes {bytes_read / rate * 1e3:.2f} ms, "
        f"{batch * rate / bytes_read:.0f} tokens/s"
    )


def time_case(contenders, case, args):
    """-> {name: tokens per second of each round}. The first round warms up."""
    rates = {name: [] for name in contenders}
    for i in range(args.rounds + 1):
        for name, (call, model) in contenders.items():
            began = now(args)
            tokens = call(model, *case, args)
            if i > 0:
                rates[name].append(tokens / (now(args) - began))
    return rates


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", default="R", choices=SETTINGS)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, usual_batch = SETTINGS[args.setting]
    args.batch = args.batch or usual_batch
    ours = GPT(shape)
    with tempfile.TemporaryDirectory() as folder:
        ours.save(folder)
        theirs = load_theirs(folder, args)
    ours = ours.to(args.device)
    contenders = {"ours": (call_ours, ours)}
    if theirs is not None:
        contenders["transformers generate"] = (call_theirs, theirs)
    print(
        f"{args.setting}, batch {args.batch}, {args.new} new tokens, {args.dtype}, {args.device}, "
        f"{args.threads} threads, torch {torch.__version__}"
    )
    if args.device == "cuda":
        print_floor(ours, args.batch, args)
    rows = []
    for case, work in make_cases(shape, args.batch, args.setting != "tiny").items():
        rates = time_case(contenders, work, args)
        our_rate = statistics.median(rates["ours"])
        for name, values in rates.items():
            rate = statistics.median(values)
            best = max(values)
            rows.append({"case": case, "name": name, "tokens_per_second": rate, "best": best})
            print(
                f"{case:16}{name:24}{rate:10.0f} tokens/s (best {best:.0f}){rate / our_rate:8.2f} "
                "of ours",
                flush=True,
            )
    print(json.dumps(vars(args) | {"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
