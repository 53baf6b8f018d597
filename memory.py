"""How much memory a run takes, by arithmetic: `python train.py --dry_run` prints it and stops.

Weights, gradients and AdamW's two moments are fp32: 16 bytes a trained parameter, 4 for the reference. What a backward
pass keeps is not guessed: a model of two layers and one of one layer, of the width in question, run a few tokens, and
every tensor that autograd saves is counted.
"""
from dataclasses import replace

import torch

import logprobs
import sampler
from model import GPT


def saved_bytes(config, precision, device, recompute=False):
    """Bytes that autograd keeps for the backward pass of GPTConfig `config`, for each token more."""
    found = []
    for layers in (1, 2):
        model = GPT(replace(config, n_layer=layers, vocab_size=8, max_seq_len=64)).to(device)
        model.recompute = recompute
        for rows in (1, 2):
            seen = {}
            def count(x):
                seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x
            with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x), precision:
                model(torch.zeros(rows, 64, dtype=torch.long, device=device))
            found.append(sum(seen.values()) / 64)
    one, two = found[1] - found[0], found[3] - found[2]
    return one + (config.n_layer - 1) * (two - one)


def estimate(nets, config, group_size, prompt_columns, precision):
    """{part: bytes} of a run of train.py: of what is there always, of sampling, of an update."""
    shape, half = nets.policy.config, 2 if config.dtype == "bfloat16" else 4
    trained = [net for name, net in vars(nets).items() if net is not None and name != "ref"]
    size = sum(p.numel() for p in nets.policy.parameters())
    rows, share = config.problems * group_size, sampler.shares(prompt_columns, group_size, config.device)
    columns = rows * config.max_new_tokens + (config.problems if share else rows) * prompt_columns
    cache = columns * 2 * shape.n_layer * shape.n_kv_head * shape.head_dim
    logits = 4 * config.tokens * shape.vocab_size
    return {
        "weights, gradients, AdamW": sum(16 * p.numel() for net in trained for p in net.parameters()),
        "reference": 4 * size * (nets.ref is not None),
        "weights in bf16": 2 * size * (half == 2),
        "sampling: KV cache": cache * (half if config.device == "cuda" else 4),
        "update: activations": config.tokens * saved_bytes(shape, precision, config.device, config.recompute),
        "update: logits": min(logits, logprobs.KEEP) if shape.vocab_size > 4096 else 3 * logits,
    }


def peak(parts):
    """What is there always, and the larger of the two phases."""
    phase = lambda name: sum(size for part, size in parts.items() if part.startswith(name))
    return sum(parts.values()) - min(phase("sampling"), phase("update"))


def table(parts):
    """Lines to print: each part in GiB, and the peak."""
    return "\n".join(f"{name:28}{size / 2 ** 30:8.2f} GiB" for name, size in (parts | {"peak": peak(parts)}).items())
