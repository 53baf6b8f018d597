"""Supervised fine-tuning: next-token loss on (prompt, response) pairs.

It makes the base model here, R1's cold start, the model after rejection sampling, and a student out
of a teacher's traces.

    L = -(1/M) sum log pi(token)                  over the M response tokens of the step       (1)

A pair is a `Rollout` that somebody else wrote, so the log-probabilities come from the same function
as in RL. Matrices are trained by Muon (Jordan et al. 2024; torch.optim.Muon), embeddings and norms
by AdamW; the learning rate falls linearly to zero over the last half.

    python -m stages.sft --data pairs.jsonl --init FOLDER --out FOLDER

A row of the data is {"prompt": ..., "response": ...}.
"""

import itertools
import math
import random
import time
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from data.jsonl import read
from logprobs import response_logprobs
from plumbing import checkpoint
from plumbing.files import checksums, model_files
from plumbing.flags import REQUIRED, fill, flag, one_line_errors, parse
from plumbing.run_folder import Log, read_state, restore, save_state
from sampler import Rollout
from start.compose import ModelFlags, autocast, check_context, load_model, load_tokenizer

STATE = ("flags", "step", "log", "model", "optimizers")


@dataclass(kw_only=True)
class Training(ModelFlags):
    """Flags of SFT and of the reward model."""

    data: str = flag(REQUIRED, "JSON lines, the rows as above")
    init: str = flag(REQUIRED, "checkpoint folder to start from (config.json, tokenizer, weights)")
    out: str = flag(REQUIRED, "folder for the result")
    steps: int = flag(0, "optimizer steps; 0: as many as `epochs` takes")
    epochs: float = flag(1.0, "passes over the data", at_most=10**6)
    batch: int = flag(256, "rows per optimizer step", at_least=1, at_most=10**6)
    lr: float = flag(4e-3, "AdamW's learning rate (embeddings, norms, value head)")
    muon_lr: float = flag(0.02, "Muon's learning rate (matrices)")
    warmup: int = flag(20, "steps of linear warm-up", at_least=1)
    save_every: int = flag(200, "steps between checkpoints", at_least=1)
    resume: bool = flag(False, "go on from the checkpoint in --out")


@dataclass(kw_only=True)
class Config(Training):
    scratch: bool = flag(False, "start from random weights: init needs no model.safetensors")
    tokens_per_microbatch: int = flag(16384, "padded tokens that run at once", at_least=1)


def optimizers(model, lr, muon_lr):
    """[Muon on the matrices but embeddings and the head, AdamW on everything else]."""
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    matrices = [linear.weight for linear in linears if linear.weight is not model.head]
    of_muon = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in of_muon]
    muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0)
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def start(config, model, opts):
    """The state to begin with, after --resume that of the checkpoint, which is put back.

    It holds the CRCs of the data and of --init: a run goes on with the same or not at all."""
    inputs = checksums([config.data, *model_files(config.init)])
    flags = asdict(config) | {"resume": True, "inputs": inputs}
    state = read_state(config.out, config.resume, STATE)
    if state is None:
        return {"flags": flags, "step": 0, "log": ""}
    path = f"{config.out}/state.pt"
    if state["flags"] != flags:
        raise ValueError(f"{path} is of a run with other flags, data or init")
    parts = [(model, state["model"]), *zip(opts, state["optimizers"], strict=True)]
    restore(path, config.init, parts)
    return state


def batches(config, rows):
    """The batches, without end: the rows in one order, then in another one, and so on."""
    rng = random.Random(config.seed)
    order = []
    while True:
        while len(order) < config.batch:
            order += rng.sample(rows, len(rows))
        yield order[: config.batch]
        order = order[config.batch :]


def fit(config, model, tokenizer, rows, loss):
    """Trains `model` on `rows` and writes it to --out.

    loss(rows of a batch) leaves its gradient in the model and returns columns of metrics.csv, one
    of them "nll"."""
    steps = config.steps or max(1, math.ceil(config.epochs * len(rows) / config.batch))
    opts = optimizers(model, config.lr, config.muon_lr)
    with one_line_errors():
        state = start(config, model, opts)
        log = Log(f"{config.out}/metrics.csv", state["log"])

    def save(step):
        state["step"] = step
        state["log"] = log.text
        state["model"] = model.state_dict()
        state["optimizers"] = [opt.state_dict() for opt in opts]
        save_state(f"{config.out}/state.pt", state)
        checkpoint.save(model, config.out)
        tokenizer.save(config.out)

    save(state["step"])
    print(f"{len(rows):,} pairs, {steps:,} steps")
    rest = itertools.islice(batches(config, rows), state["step"], steps)
    bar = tqdm(rest, initial=state["step"], total=steps, mininterval=1, disable=None)
    for step, chosen in enumerate(bar, state["step"]):
        began = time.time()
        metrics = loss(chosen)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        if not math.isfinite(norm):
            raise SystemExit(f"step {step + 1}: the gradient norm is {norm}; no step was taken")
        share = min(1.0, (step + 1) / config.warmup, 2 * (1 - step / steps))
        for opt, lr in zip(opts, (config.muon_lr, config.lr), strict=True):
            opt.param_groups[0]["lr"] = lr * share
            opt.step()
            opt.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{metrics['nll']:.3f}", refresh=False)
        log.write_row({"step": step + 1} | metrics | {"seconds": time.time() - began})
        if (step + 1) % config.save_every == 0 or step == steps - 1:
            save(step + 1)
    print(f"wrote {config.out}/model.safetensors")


def read_pairs(config, tokenizer):
    """[(prompt ids, response ids with the end token)], without a <think> that the prompt opens."""
    pairs = []
    rows = read(config.data, ("prompt", "response"))
    for row in tqdm(rows, desc="tokenize", leave=False, disable=None):
        response = row["response"].removeprefix(tokenizer.opening)
        pairs.append((tokenizer.prompt(row), tokenizer.encode(response) + [tokenizer.eos_id]))
    return pairs


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        model = load_model(config.init, config, weights=not config.scratch)
        tokenizer = load_tokenizer(config.init, config, model)
        pairs = read_pairs(config, tokenizer)
        longest = max(len(response) for _, response in pairs)
        check_context(config.data, [prompt for prompt, _ in pairs], longest, model)

    def loss(chosen):
        prompts = [prompt for prompt, _ in chosen]
        responses = [response for _, response in chosen]
        batch = Rollout.from_lists(prompts, responses, device=config.device)
        tokens = batch.response_mask.sum()
        mean = torch.zeros((), device=config.device)
        for rows in batch.micro_batches(config.tokens_per_microbatch):
            with autocast(config):
                logprobs, _ = response_logprobs(model, batch.select(rows))
            part = -logprobs.sum() / tokens  # (1)
            part.backward()
            mean += part.detach()
        return {"nll": float(mean), "tokens": int(tokens)}

    fit(config, model, tokenizer, pairs, loss)


if __name__ == "__main__":
    main()
