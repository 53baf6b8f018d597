"""How much memory a run takes, by arithmetic: `python train.py --dry_run` prints it and stops.

Weights, gradients and AdamW's two moments are fp32: 16 bytes a trained parameter, 2 more for the
copy that bf16 products need, 4 a frozen one.
What a token takes is counted on the policy itself: what two rows of tokens take more than one.
"""

import io
import os

import torch

from fast.prompts import prompts_at_once
from logprobs import KEEP_BYTES, SMALL_VOCABULARY
from start.compose import autocast


def count_bytes(model, ids):
    """Of ids (N, S): what autograd keeps for the backward pass; the cache, whatever it is made of:
    the length of its file. -> (2,)"""
    sizes = {}

    def note(x):
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x

    cache = model.new_cache()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model(ids, cache)
    file = io.BytesIO()
    torch.save(cache, file)  # not a pickle: it holds addresses, and has not always the same length
    return torch.tensor([sum(sizes.values()), file.tell()])


def per_token(model):
    """What a token adds to `count_bytes`, (2,)."""
    columns = min(64, model.config.max_seq_len)
    ids = torch.zeros(2, columns, dtype=torch.long, device=model.head.device)
    return (count_bytes(model, ids) - count_bytes(model, ids[:1])) / columns


def estimate(nets, config, group_size, prompt_columns):
    """{part: bytes} of a run of train.py: what is there always, in sampling, in an update.

    The peak is what is there always and the larger of the two phases."""
    networks = [net for net in vars(nets).values() if net is not None]
    parameters = {p for net in networks for p in net.parameters()}  # networks may share some
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    frozen += config.lag * sum(p.numel() for p in nets.policy.parameters())
    B, T, P = config.prompts_per_step, config.max_new_tokens, prompt_columns
    sampled = config.prompts_sampled * group_size * (T + P)
    rows = max(1, config.tokens_per_microbatch // (P + T))
    # a micro-batch, and the prompts that micro-batches share, as in fast/prompts.py
    updated = rows * T + P * min(B, prompts_at_once(config.tokens_per_microbatch, P))
    vocab_size = len(nets.policy.head)
    logits = 4 * rows * T * vocab_size
    with autocast(config):
        kept, cached = per_token(nets.policy).tolist()
    logits = min(logits, KEEP_BYTES) if vocab_size > SMALL_VOCABULARY else 3 * logits
    always = (16 if config.dtype == "float32" else 18) * trained + 4 * frozen
    activations, cache = updated * kept, sampled * cached
    return {
        "weights, gradients, AdamW": always,
        "sampling: KV cache": cache,
        "update: activations": activations,
        "update: logits": logits,
        "peak": always + max(cache, activations + logits),
    }


def print_estimate(nets, config, group_size, prompt_columns):
    parts = estimate(nets, config, group_size, prompt_columns)
    parts["memory here"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if config.device == "cuda":
        parts["memory here"] = torch.cuda.mem_get_info()[1]
    for name, size in parts.items():
        print(f"{name:28}{size / 2**30:8.2f} GiB")
