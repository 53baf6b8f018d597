"""Flags that name a model -> the model and its tokenizer."""

import importlib
import math
import os
from dataclasses import dataclass

import torch

from model import GPT
from plumbing import world
from plumbing.flags import Flags, flag

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
SCHEDULES = ("constant", "linear", "cosine")  # of the learning rate
DTYPES = ("float32", "bfloat16")  # weights and log-probs are float32 always


@dataclass
class ModelFlags(Flags):
    """How a problem is put to the model, and where the model runs."""

    chat: bool = flag(False, "put the problems in the chat format of the model")
    system: str = flag("", "with --chat: text of the system's turn")
    think: bool = flag(False, "the prompt opens the <think> block")
    seed: int = flag(0, "of all that is drawn at random (evaluate.py: of the samples)")
    device: str = flag("cpu", "cpu or cuda", choices=DEVICES)
    dtype: str = flag("float32", "of matrix products: float32 or bfloat16", choices=DTYPES)


def load_model(folder, flags, weights=True):
    """The model of a checkpoint folder: the one place that a module of your own replaces."""
    world.join(flags.device)
    torch.manual_seed(flags.seed)  # of random weights
    model = GPT.load(folder, weights).to(flags.device)
    model.folder = folder
    return model


def load_tokenizer(folder, flags, model):
    """The tokenizer of a checkpoint folder, ours or public, that puts problems as `flags` say.

    ValueError if it has more tokens than the model, or ours fewer: then its end is missing."""
    is_ours = os.path.exists(os.path.join(folder, "tokenizer.tiktoken"))
    module = importlib.import_module("data.tokenizer" if is_ours else "public.tokenizer")
    if flags.system and not flags.chat:
        raise ValueError("--system needs --chat")
    tokenizer = module.Tokenizer.load(folder, flags.chat, flags.system, flags.think)
    size = model.config.vocab_size
    if tokenizer.vocab_size > size or (is_ours and tokenizer.vocab_size < size):
        raise ValueError(f"{folder}: {tokenizer.vocab_size} tokens, but a model for {size}")
    return tokenizer


def make_optimizer(nets, hp, lr):
    """AdamW over the networks that are trained. A field X_lr of hp is the rate of network X.

    An algorithm's Config may name another class of optimizers, as `optimizer`."""
    groups = []
    for name, net in vars(nets).items():
        parameters = [p for p in net.parameters() if p.requires_grad] if net is not None else []
        if parameters:
            groups.append({"params": parameters, "base_lr": getattr(hp, f"{name}_lr", lr)})
    optimizer = getattr(hp, "optimizer", torch.optim.AdamW)
    return optimizer(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def lr_share(step, config):
    """The share of the learning rate that a step gets: the warm-up's times the schedule's."""
    left = 1 - step / config.steps
    schedule = {"constant": 1.0, "linear": left, "cosine": math.sin(math.pi / 2 * left) ** 2}
    return min(1.0, (step + 1) / config.warmup) * schedule[config.schedule]


def check_context(name, prompts, longest_response, model):
    """prompts (lists of ids) -> tokens of the longest.

    ValueError that begins with `name` if it and a response do not fit into the model's context."""
    longest = max(len(prompt) for prompt in prompts)
    context = model.config.max_seq_len
    if longest + longest_response > context:
        tokens = f"the longest prompt, {longest} tokens, and a response of {longest_response}"
        raise ValueError(f"{name}: {tokens} do not fit into the model's context of {context}")
    return longest


def autocast(flags):
    """The precision of the forward passes, to be entered with `with`."""
    bfloat16 = flags.dtype == "bfloat16"
    return torch.autocast(flags.device, torch.bfloat16, enabled=bfloat16)
