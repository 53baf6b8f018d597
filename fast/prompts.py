"""Micro-batches that share their prompts, each of which runs once: the fast twin of prompt_states.

What a prompt gives, the state of its last token and its keys and values, is cut off from the graph
for the micro-batches. The gradient that they leave there goes back through the prompts at the end.
"""

import functools

import torch
from torch.utils._pytree import tree_map_only

from logprobs import prompt_states
from plumbing import world


def prompts_at_once(tokens, columns):
    """How many prompts of so many columns are shared: their activations stay until the end."""
    return max(1, tokens // 4 // columns)


def micro_batches(rollout, tokens, keep):
    """Yields this process's share of the micro-batches of the rows in keep (N,) bool: row indices,
    the rollout of them. To be used up: a backward pass follows the last one.

    They share as many prompts as fit a quarter of a micro-batch."""
    columns = rollout.prompt_ids.shape[1]
    for problems in rollout.group.unique().split(prompts_at_once(tokens, columns)):
        rows = keep & torch.isin(rollout.group, problems)
        yield from share_prompts(rollout, world.share(rollout.micro_batches(tokens, rows)))


def share_prompts(rollout, pieces):
    """pieces: the row indices of micro-batches. Yields as above."""
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
        part.prompts = shared
        yield rows, part
    outputs = [(x, leaf.grad) for x, leaf in cuts if leaf.grad is not None]
    if outputs:
        torch.autograd.backward(*zip(*outputs, strict=True))
