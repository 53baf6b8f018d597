"""One run in several processes: torchrun --nproc_per_node=2 train.py --algo grpo

Each process has all of the networks. It samples the responses to its share of the problems, judges
its share of the responses, and runs its share of the micro-batches. What they find is put together,
so that every process knows the whole rollout, and their gradients are added up, not averaged: a
token's weight is its share of the whole optimizer step. So several processes draw the same
responses and take the same steps as one, rounding apart. Only the first one writes and prints.
"""

import atexit
import os
import sys

import torch
import torch.distributed as dist

RANK = int(os.environ.get("RANK", 0))  # the number of this process
SIZE = int(os.environ.get("WORLD_SIZE", 1))  # of how many, as torchrun says


def join(device):
    """Waits for the other processes, the first time that it is called."""
    if SIZE == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)  # its threads must not outlive the interpreter
    if RANK > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def share(items):
    """The items that are of this process: one in turn for each."""
    return items[RANK::SIZE]


def gather(items):
    """What all processes have made of their shares, in the order of the whole."""
    parts = [items] * SIZE
    if SIZE > 1:
        dist.all_gather_object(parts, items)
    return [parts[i % SIZE][i // SIZE] for i in range(sum(map(len, parts)))]


def union(names):
    """What is among the names of any process, in order."""
    return sorted(set().union(*gather([list(names)])))


def add(*tensors):
    """Each becomes the sum of those of all processes."""
    for x in tensors if SIZE > 1 else ():
        dist.all_reduce(x)


def add_gradients(parameters):
    """Of the parameters that have a gradient in any process."""
    for i in union(i for i, p in enumerate(parameters) if p.grad is not None):
        if parameters[i].grad is None:
            parameters[i].grad = torch.zeros_like(parameters[i])
        add(parameters[i].grad)
