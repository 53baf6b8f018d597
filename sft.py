"""Supervised fine-tuning: next-token loss on (prompt, response) pairs. It makes the base model here, R1's cold start,
the model after rejection sampling, and a student out of a teacher's traces.

    L = -(1/M) sum log pi(token)                over the M response tokens of the step                           (1)

A pair is a `Rollout` that somebody else wrote, so the log-probabilities come from the same function as in RL. Matrices
are trained by Muon (Jordan et al. 2024; torch.optim.Muon), embeddings and norms by AdamW; the learning rate falls
linearly to zero over the last half.

    python sft.py --data pairs.jsonl --init FOLDER --out FOLDER            rows: {"prompt": ..., "response": ...}
"""
import math
import os
import random
import time
import zlib
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from checkpoint import Log, load, restore, save
from data import Common, check_room
from data.jsonl import read
from data.tokenizer import OPEN
from flags import check, fill, one_line_errors, parse
from logprobs import response_logprobs
from model import GPT
from sampler import Rollout


@dataclass(kw_only=True)
class Training(Common):
    """Flags of sft.py and reward_model.py."""
    data: str                     # JSON lines, the rows as above
    init: str                     # checkpoint folder to start from (config.json, tokenizer, weights)
    out: str                      # folder for the result
    steps: int = 0                # optimizer steps; 0: as many as `epochs` takes
    epochs: float = 1.0           # passes over the data
    batch: int = 256              # rows per optimizer step
    lr: float = 4e-3              # AdamW's learning rate (embeddings, norms, value head)
    muon_lr: float = 0.02         # Muon's learning rate (matrices)
    warmup: int = 20              # steps of linear warm-up
    clip: float = 1.0             # gradient norm limit
    save_every: int = 200         # steps between checkpoints
    resume: bool = False          # go on from the checkpoint in --out

    def __post_init__(self):
        check(self, ("batch", "warmup", "save_every", "tokens"))


@dataclass(kw_only=True)
class Config(Training):
    scratch: bool = False         # start from random weights: init needs no model.safetensors
    tokens: int = 16384           # padded tokens per micro-batch


def optimizers(model, lr, muon_lr):
    """[Muon on the matrices inside the blocks, AdamW on everything else]."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def fit(config, model, tokenizer, rows, loss):
    """Trains `model` on `rows` and writes it to --out. loss(rows of a batch) leaves its gradient in the model, and
    returns columns of metrics.csv, "nll" among them."""
    steps = config.steps or max(1, math.ceil(config.epochs * len(rows) / config.batch))
    opts, state_pt = optimizers(model, config.lr, config.muon_lr), f"{config.out}/state.pt"
    state = {"step": 0, "smooth": None, "end": 0}
    with one_line_errors():
        with open(config.data, "rb") as f:
            flags = asdict(config) | {"resume": True, "data": zlib.crc32(f.read())}
        os.makedirs(config.out, exist_ok=True)
        if config.resume:
            state = load(state_pt)
            if not isinstance(state, dict) or state.get("flags") != flags:
                raise ValueError(f"{state_pt} is of a run with other flags or other data")
            restore(state_pt, config.init, zip([model, *opts], [state["model"], *state["opts"]]))
        elif os.path.exists(state_pt):
            raise ValueError(f"{config.out} holds a run already: go on with --resume, or name another folder")
        first, smooth, log = state["step"], state["smooth"], Log(f"{config.out}/metrics.csv", state["end"])
    rng, order = random.Random(config.seed), []               # all rows in one order, then in another
    while len(order) < steps * config.batch:
        order += rng.sample(range(len(rows)), len(rows))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(rows):,} pairs, {steps:,} steps")
    began, bar = time.time(), tqdm(range(first, steps), initial=first, total=steps, mininterval=1)
    for step in bar:
        clock = time.time()
        found = loss([rows[i] for i in order[step * config.batch:(step + 1) * config.batch]])
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip, error_if_nonfinite=True)
        for opt, lr in zip(opts, (config.muon_lr, config.lr)):
            opt.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / config.warmup, 2 * (1 - step / steps))
            opt.step()
            opt.zero_grad(set_to_none=True)
        smooth = found["nll"] if smooth is None else 0.98 * smooth + 0.02 * found["nll"]
        bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
        log.row({"step": step + 1} | found | {"seconds": time.time() - clock})
        if (step + 1) % config.save_every == 0 or step == steps - 1:
            tqdm.write(f"step {step + 1:5d}  loss {smooth:.4f}  seconds {time.time() - began:.0f}")
            model.save(config.out)
            tokenizer.save(config.out)
            save(state_pt, {"flags": flags, "step": step + 1, "smooth": smooth, "end": log.file.tell(),
                            "model": model.state_dict(), "opts": [opt.state_dict() for opt in opts]})


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        torch.manual_seed(config.seed)
        model = GPT.load(config.init, weights=not config.scratch).to(config.device)
        tokenizer = config.tokenizer(config.init, model)
        opened = OPEN * config.think               # by the prompt
        pairs = [(tokenizer.prompt(row), tokenizer.encode(row["response"].removeprefix(opened)) + [tokenizer.eos_id])
                 for row in tqdm(read(config.data, ("prompt", "response")), desc="tokenize", leave=False)]
        prompts, responses = zip(*pairs)
        check_room(config.data, prompts, max(map(len, responses)), model)

    def loss(chosen):
        batch = Rollout.pack(*zip(*chosen), device=config.device)
        total = batch.response_mask.sum()
        mean = torch.zeros((), device=config.device)
        for rows in batch.micro_batches(config.tokens):
            with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
                logprobs, _ = response_logprobs(model, batch.rows(rows))
            part = -logprobs.sum() / total                                                                      # (1)
            part.backward()
            mean += part.detach()
        return {"nll": float(mean), "tokens": int(total)}

    fit(config, model, tokenizer, pairs, loss)
    print(f"wrote {os.path.join(config.out, 'model.safetensors')}")


if __name__ == "__main__":
    main()
