"""Micro-batches that share their prompts, each of which runs once: the fast twin of prompt_states.

What a prompt gives, the state of its last token and its keys and values, is cut off from the graph
for the micro-batches. The gradient that they leave there goes back through the prompts at the end.
"""

import functools

import torch
from torch.utils._pytree import tree_map_only

from logprobs import prompt_states
from plumbing import world


def micro_batches(rollout, tokens, keep=None):
    """Yields this process's share of `rollout.micro_batches`: row indices, the rollout of them.

    To be used up: a backward pass follows the last one. Prompts are shared where all of them
    together are no more than a micro-batch, since their activations stay."""
    pieces = world.share(rollout.micro_batches(tokens, keep))
    columns = rollout.group.unique().numel() * rollout.prompt_ids.shape[1]
    cuts = []  # (what a prompt gave, the same cut off)

    def cut(x):
        cuts.append((x, x.detach().requires_grad_(x.requires_grad)))
        return cuts[-1][1]

    @functools.cache
    def run(model, with_gradient):
        problems, hidden, cache = prompt_states(model, rollout.select(torch.cat(pieces)))
        vars(cache).update(tree_map_only(torch.Tensor, cut, vars(cache)))
        return problems, cut(hidden), cache

    def shared(model, part):
        return run(model, torch.is_grad_enabled())

    for rows in pieces:
        part = rollout.select(rows)
        part.prompts = shared if columns <= tokens else None
        yield rows, part
    outputs = [(x, leaf.grad) for x, leaf in cuts if leaf.grad is not None]
    if outputs:
        torch.autograd.backward(*zip(*outputs, strict=True))
