"""Supervised fine-tuning: next-token loss on (prompt, response) pairs. It makes the base model here, R1's cold start,
the model after rejection sampling, and a student out of a teacher's traces.

    L = - sum over response tokens of log pi(token) / number of response tokens in the step                      (1)

A pair is a `Rollout` that somebody else wrote, so the log-probabilities come from the same function as in RL. Matrices
are trained by Muon (Jordan et al. 2024; torch.optim.Muon), embeddings and norms by AdamW; the learning rate falls
linearly to zero over the last half.

    python sft.py --data pairs.jsonl --init FOLDER --out FOLDER            rows: {"prompt": ..., "response": ...}
"""
import itertools
import math
import os
import random
import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from checkpoint import Log, load, restore, save
from data import Common
from data.jsonl import read
from data.tokenizer import OPEN
from flags import check, fill, one_line_errors, parse
from logprobs import response_logprobs
from model import GPT
from sampler import Rollout


@dataclass(kw_only=True)
class Config(Common):
    data: str                     # JSON lines with "prompt" and "response"
    init: str                     # checkpoint folder to start from (config.json, tokenizer.tiktoken, weights)
    out: str                      # folder for the result
    scratch: bool = False         # start from random weights: init needs no model.safetensors
    steps: int = 0                # optimizer steps; 0: as many as `epochs` takes
    epochs: float = 1.0           # passes over the data
    batch: int = 256              # pairs per optimizer step
    tokens: int = 16384           # padded tokens per micro-batch
    lr: float = 4e-3              # AdamW's learning rate (embeddings, norms)
    muon_lr: float = 0.02         # Muon's learning rate (matrices)
    warmup: int = 20              # steps of linear warm-up
    clip: float = 1.0             # gradient norm limit
    save_every: int = 200         # steps between checkpoints
    resume: bool = False          # go on from the checkpoint in --out

    def __post_init__(self):
        check(self, ("batch", "tokens", "warmup", "save_every"))


def optimizers(model, lr, muon_lr):
    """[Muon on the matrices inside the blocks, AdamW on everything else]."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def descend(model, opts, config, step, steps, warmup=20, clip=1.0):
    """An optimizer step. The learning rates go linearly up, stay, and go linearly down to 0 over the last half."""
    share = min(1.0, (step + 1) / warmup, 2 * (1 - step / steps))
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip, error_if_nonfinite=True)
    for opt, lr in zip(opts, (config.muon_lr, config.lr)):
        opt.param_groups[0]["lr"] = lr * share
        opt.step()
        opt.zero_grad(set_to_none=True)


def batches(pairs, size, seed):
    """Endless lists of `size` pairs: all of them in one order, then in another."""
    rng, order = random.Random(seed), []
    while True:
        while len(order) < size:
            order += rng.sample(range(len(pairs)), len(pairs))
        yield [pairs[i] for i in order[:size]]
        order = order[size:]


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        torch.manual_seed(config.seed)
        model = GPT.load(config.init, weights=not config.scratch).to(config.device)
        tokenizer = config.tokenizer(config.init, model)
        opened = OPEN * config.think               # by the prompt
        pairs = [(tokenizer.prompt(row), tokenizer.encode(row["response"].removeprefix(opened)) + [tokenizer.eos_id])
                 for row in tqdm(read(config.data, ("prompt", "response")), desc="tokenize", leave=False)]
        columns = sum(max(map(len, side)) for side in zip(*pairs))
        if columns > model.config.max_seq_len:
            raise ValueError(f"{config.data}: the longest prompt and the longest response have {columns} tokens, "
                             f"the model's context is {model.config.max_seq_len}")
        os.makedirs(config.out, exist_ok=True)
        opts, state_pt = optimizers(model, config.lr, config.muon_lr), f"{config.out}/state.pt"
        flags, state = asdict(config) | {"resume": True}, {"step": 0, "smooth": None, "end": 0}
        if config.resume:
            state = load(state_pt)
            if not isinstance(state, dict) or state.get("flags") != flags:
                raise ValueError(f"{state_pt} is of a run with other flags")
            restore(state_pt, config.init, zip([model, *opts], [state["model"], *state["opts"]]))
        first, smooth, log = state["step"], state["smooth"], Log(f"{config.out}/metrics.csv", state["end"])
    steps, began = config.steps or max(1, math.ceil(config.epochs * len(pairs) / config.batch)), time.time()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(pairs):,} pairs, {steps:,} steps")
    bar = tqdm(range(first, steps), initial=first, total=steps, mininterval=1)
    for step, chosen in zip(bar, itertools.islice(batches(pairs, config.batch, config.seed), first, None)):
        batch = Rollout.pack(*zip(*chosen), device=config.device)
        total = batch.response_mask.sum()
        mean = torch.zeros((), device=config.device)
        for rows in batch.micro_batches(config.tokens):
            with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                logprobs, _ = response_logprobs(model, batch.rows(rows))
            loss = -logprobs.sum() / total                                                                      # (1)
            loss.backward()
            mean += loss.detach()
        descend(model, opts, config, step, steps, config.warmup, config.clip)
        smooth = float(mean) if smooth is None else 0.98 * smooth + 0.02 * float(mean)
        bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
        log.row({"step": step + 1, "nll": float(mean), "tokens": int(total), "seconds": time.time() - began})
        if (step + 1) % config.save_every == 0 or step == steps - 1:
            tqdm.write(f"step {step + 1:5d}  loss {smooth:.4f}  seconds {time.time() - began:.0f}")
            model.save(config.out)
            tokenizer.save(config.out)
            save(state_pt, {"flags": flags, "step": step + 1, "smooth": smooth, "end": log.file.tell(),
                            "model": model.state_dict(), "opts": [opt.state_dict() for opt in opts]})
    print(f"wrote {os.path.join(config.out, 'model.safetensors')}")


if __name__ == "__main__":
    main()
