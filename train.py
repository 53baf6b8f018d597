"""Reinforcement learning with verifiable rewards: Algorithm 1 of DeepSeekMath (arXiv 2402.03300).

    python train.py --algo grpo                      R1-Zero in small: pure RL on a small base model, on a laptop
    python train.py --out DIR --resume               go on where a run stopped

The numbers at the right of the code are the lines of that algorithm.

A run writes into its folder: metrics.csv (a row a step), eval.csv (held-out problems), samples.txt (whole groups),
config.json (all flags, versions), state.pt (to resume), model/ (the trained checkpoint).
"""
import csv
import io
import json
import math
import os
import pickle
import platform
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

import grpo
import rewards
from data import load_task
from data.tokenizer import Tokenizer
from evaluate import check_room, evaluate, table
from flags import check, fill, one_line_errors, parse
from model import GPT
from sampler import sample

ALGORITHMS = {"grpo": grpo}
LINE = dict(step="d", reward=".3f", accuracy=".3f", format=".3f", length=".1f", reflection=".3f", kl=".4f",
            entropy=".4f", zero_groups=".2f", tokens_per_second=".0f", seconds=".2f")            # what is printed
METRICS = ("kl", "entropy", "clip_low", "clip_high", "gap")                                  # of algo.loss
HARMLESS = ("resume", "out", "steps", "eval_every", "save_every", "tokens")      # may change when a run is resumed


@dataclass
class Config:
    algo: str = "grpo"            # grpo
    task: str = "pairs"           # pairs, or a .jsonl file
    init: str = "data/base"       # checkpoint folder that RL starts from
    out: str = ""                 # folder of the run; default out/ALGO-TASK-SEED
    resume: bool = False          # go on from the checkpoint in --out
    seed: int = 0                 # of problems and samples
    steps: int = 80               # rollouts
    problems: int = 16            # B, problems per rollout
    max_new_tokens: int = 160     # longest response in training
    temperature: float = 1.0      # of the sampler, and of every log-prob computed on what it sampled
    format_weight: float = 0.1    # reward = accuracy + format_weight * format
    lr: float = 5e-4              # AdamW's learning rate, constant after the warm-up
    warmup: int = 5               # steps of linear warm-up
    clip_norm: float = 1.0        # gradient norm limit
    tokens: int = 4096            # padded tokens per micro-batch: memory, never a gradient
    eval_every: int = 20          # steps between evaluations on held-out problems
    eval_problems: int = 96       # problems of a held-out set
    eval_k: int = 16              # samples per held-out problem
    eval_max_new_tokens: int = 320  # longest response in evaluation
    save_every: int = 20          # steps between checkpoints
    device: str = "cpu"           # cpu or cuda
    dtype: str = "float32"        # of the matrix products: float32 or bfloat16 (weights and log-probs stay float32)

    def __post_init__(self):
        check(self, ("problems", "max_new_tokens", "warmup", "tokens", "eval_every", "eval_problems", "eval_k",
                     "eval_max_new_tokens", "save_every"),
              algo=ALGORITHMS)
        if not self.temperature > 0:
            raise ValueError(f"--temperature {self.temperature}: training samples, so it must be above 0")


def problems_of(step, train, config):
    """The B problems of a step: the training set in an order of its own for each epoch. Depends on nothing else, so
    a resumed run sees what it would have seen."""
    chosen = []
    for position in range(step * config.problems, (step + 1) * config.problems):
        epoch, i = divmod(position, len(train))
        if not chosen or i == 0:
            order = random.Random(f"{config.seed} {epoch}").sample(range(len(train)), len(train))
        chosen.append(train[order[i]])
    return chosen


def judge(rollout, problems, texts, group_size, config):
    """Fills rollout.rewards (N,) and returns what it is made of, [[accuracy], [format]]."""
    accuracy = [rewards.accuracy(problems[i // group_size], text) for i, text in enumerate(texts)]
    form = [rewards.format(text) for text in texts]
    rollout.rewards = torch.tensor(accuracy) + config.format_weight * torch.tensor(form)
    rollout.rewards = rollout.rewards.to(rollout.response_ids.device)
    return accuracy, form


def update(algo, nets, optimizer, rollout, hp, config, step, precision):
    """The optimizer steps of one rollout -> metrics, means over the trained tokens."""
    N = len(rollout.rewards)
    order = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    totals, norms = dict.fromkeys(("tokens", "loss", *METRICS), 0.0), []
    # Without KL and without a critic, a response with no advantage has no gradient: it need not be run.
    idle = (rollout.ref_logprobs is None) & (rollout.values is None) & (rollout.advantages == 0).all(1)
    for _ in range(hp.epochs):                                                                   # 10
        index = torch.randperm(N, generator=order) if hp.minibatches > 1 else torch.arange(N)
        for part in index.to(idle.device).chunk(hp.minibatches):
            batch = rollout.rows(part)
            batch.weights = algo.weights(batch.response_mask, hp)
            for piece in batch.micro_batches(config.tokens, keep=(~idle[part]).tolist()):
                micro = batch.rows(piece)
                with precision:
                    loss, metrics = algo.loss(nets, micro, hp)                                   # 11
                loss.backward()
                metrics |= {"tokens": micro.response_mask.sum(), "loss": loss.detach()}
                for name, value in metrics.items():
                    totals[name] += float(value)
            norm = torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], config.clip_norm)
            if not norm.isfinite():
                raise SystemExit(f"step {step + 1}: the gradient norm is {norm}; stopped before the optimizer step")
            norms.append(float(norm))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    tokens, loss = totals.pop("tokens"), totals.pop("loss")
    means = {name: total / tokens if tokens else math.nan for name, total in totals.items()}
    return {"loss": loss / len(norms), "grad_norm": sum(norms) / len(norms)} | means


class Log:
    """A file that can be cut back to where a checkpoint saw it; `row` writes CSV."""

    def __init__(self, path, keep=0):
        if keep and os.path.getsize(path) < keep:
            raise ValueError(f"{path} is shorter than when the checkpoint was written")
        self.file = open(path, "r+" if keep else "w", encoding="utf-8", newline="")
        self.file.truncate(keep)
        self.file.seek(keep)

    def row(self, values):
        out = io.StringIO()
        writer = csv.DictWriter(out, values)
        if self.file.tell() == 0:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
        self.text(out.getvalue())

    def text(self, text):
        self.file.write(text)
        self.file.flush()


def save(path, state):
    """Whole or not at all: a new file is written, flushed to disk and put in place of the old one."""
    with open(path + ".tmp", "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".tmp", path)


def load(path):
    """A checkpoint written by `save`. ValueError if it is damaged (torch alone does not notice a flipped byte)."""
    try:
        with zipfile.ZipFile(path) as z:
            if z.testzip() is not None:
                raise ValueError("a checksum is wrong")
        return torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds more than tensors and numbers, and is refused") from None
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def setup(argv):
    """Flags and files -> everything a run needs. All that a user can get wrong is found out here."""
    given = parse(argv, __doc__, Config, *(algo.Config for algo in ALGORITHMS.values()))
    named = fill(Config, given)
    out = named.out or f"out/{named.algo}-{os.path.basename(named.task).removesuffix('.jsonl')}-{named.seed}"
    flags, state = given, None
    if given.get("resume"):
        if not os.path.exists(f"{out}/state.pt"):
            raise ValueError(f"{out} holds no state.pt to resume from")
        try:
            with open(f"{out}/config.json") as f:
                saved = json.load(f)
            if saved["threads"] != torch.get_num_threads():
                print(f"resumed with {torch.get_num_threads()} threads, not {saved['threads']}: rounding will differ")
            saved = dict(saved["flags"])
            fill(Config, saved)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{out}/config.json is damaged: {error}") from None
        for name, value in given.items():
            if name not in HARMLESS and saved.get(name) != value:
                raise ValueError(f"--{name} {value}: the run in {out} was started with {saved.get(name)}")
        flags, state = saved | given, load(f"{out}/state.pt")
    elif os.path.exists(f"{out}/state.pt"):
        raise ValueError(f"{out} holds a run already: go on with --resume, or name another folder with --out")
    config = fill(Config, flags | {"out": out})
    algo = ALGORITHMS[config.algo]
    hp = fill(algo.Config, flags)
    policy, tokenizer = GPT.load(config.init).to(config.device), Tokenizer.load(config.init)
    if tokenizer.vocab_size > policy.config.vocab_size:
        raise ValueError(f"{config.init}: the tokenizer has {tokenizer.vocab_size} tokens, "
                         f"the model {policy.config.vocab_size}")
    train, sets = load_task(config.task, config.seed)
    if config.problems > len(train):
        raise ValueError(f"--problems {config.problems}: {config.task} has {len(train)} training problems")
    check_room(config.task, [train, *sets.values()], tokenizer, policy,
               max(config.max_new_tokens, config.eval_max_new_tokens))
    return config, algo, hp, tokenizer, policy, train, sets, state


def main(argv=None):
    began = time.time()
    with one_line_errors():
        config, algo, hp, tokenizer, policy, train, sets, state = setup(argv)
        os.makedirs(config.out, exist_ok=True)
        nets = algo.networks(policy, hp)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        step, before, ends = 0, None, (0, 0, 0)
        if state:
            try:
                policy.load_state_dict(state["policy"])
                optimizer.load_state_dict(state["optimizer"])
                if nets.ref is not None:
                    nets.ref.load_state_dict(state["ref"])
                step, before, ends = state["step"], state["before"], state["ends"]
            except (KeyError, TypeError, AttributeError, RuntimeError) as error:
                raise ValueError(f"{config.out}/state.pt is not of this run: {str(error).splitlines()[0]}") from None
        files = ("metrics.csv", "eval.csv", "samples.txt")
        metrics_csv, eval_csv, samples_txt = logs = [Log(f"{config.out}/{f}", end) for f, end in zip(files, ends)]
        with open(f"{config.out}/config.json.tmp", "w") as f:
            json.dump({"flags": asdict(config) | asdict(hp), "python": platform.python_version(),
                       "torch": torch.__version__, "threads": torch.get_num_threads(), "commit": commit()}, f, indent=1)
        os.replace(f"{config.out}/config.json.tmp", f"{config.out}/config.json")
    stop = []                     # signals that arrived; a second one stops at once
    def note(number, _):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping after this step (once more: at once, back to the last checkpoint)", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)

    def checkpoint(step):
        save(f"{config.out}/state.pt", {
            "step": step, "policy": policy.state_dict(), "optimizer": optimizer.state_dict(), "before": before,
            "ref": nets.ref and nets.ref.state_dict(), "ends": [log.file.tell() for log in logs]})
        policy.save(f"{config.out}/model")
        tokenizer.save(f"{config.out}/model")

    def held_out(step, names, model=policy):
        found, shown = {}, []
        for name in names:
            problems = sets[name][:config.eval_problems]
            found[name], texts = evaluate(model, tokenizer, problems, config.eval_k, config.eval_max_new_tokens)
            eval_csv.row({"step": step, "set": name} | found[name])
            if name == main_set:
                shown = [[p["prompt"], group[0]] for p, group in zip(problems[:3], texts)]
        return {"metrics": found, "shown": shown}

    main_set = next(iter(sets))
    precision = torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16")
    print(f"{config.algo} on {config.task}: {sum(p.numel() for p in policy.parameters()):,} parameters, "
          f"{len(train)} training problems, {config.problems} x {hp.group_size} responses a step, folder {config.out}")
    if before is None:
        before = held_out(0, [main_set])
        print(f"held-out {main_set} before RL: " + brief(before["metrics"][main_set]))
    checkpoint(step)
    print(f"RL starts {time.time() - began:.0f} s after the command", flush=True)
    while step < config.steps and not stop:
        clock = time.time()
        if hp.kl_coef and hp.ref_every and step and step % hp.ref_every == 0:
            nets.ref.load_state_dict(policy.state_dict())                                        # 3   pi_ref <- pi
        problems = problems_of(step, train, config)                                              # 5
        prompts = [tokenizer.encode(p["prompt"]) for p in problems]
        with precision:
            rollout = sample(policy, prompts, hp.group_size, config.max_new_tokens, config.temperature,
                             tokenizer.eos_id, seed=config.seed * 1_000_003 + step)              # 7   o_1..o_G ~ pi_old
        lengths = rollout.lengths.tolist()
        texts = [tokenizer.decode(ids[:n]) for ids, n in zip(rollout.response_ids.tolist(), lengths)]
        accuracy, form = judge(rollout, problems, texts, hp.group_size, config)                  # 8   r_1..r_G
        sampled = time.time()
        with precision:
            algo.score(nets, rollout, hp)                                                        #     log pi_ref
        rollout.advantages = algo.advantages(rollout, hp)                                        # 9   A
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / config.warmup)
        metrics = update(algo, nets, optimizer, rollout, hp, config, step, precision)            # 10, 11
        seconds, N = time.time() - clock, len(texts)
        grouped = rollout.rewards.view(-1, hp.group_size)
        ended = [ids[n - 1] == tokenizer.eos_id for ids, n in zip(rollout.response_ids.tolist(), lengths)]
        row = {"step": step + 1, "reward": float(rollout.rewards.mean()), "accuracy": sum(accuracy) / N,
               "format": sum(form) / N, "length": sum(lengths) / N,
               "reflection": sum(rewards.reflections(t) > 0 for t in texts) / N, "truncated": 1 - sum(ended) / N,
               "zero_groups": float((grouped.amax(1) == grouped.amin(1)).float().mean()), **metrics,
               "tokens_per_second": sum(lengths) / seconds, "sample_seconds": sampled - clock, "seconds": seconds}
        if step % 20 == 0:
            print(" ".join(f"{name.replace('_per_second', '/s'):>11}" for name in LINE))
        print(" ".join(f"{row[name]:11{spec}}" for name, spec in LINE.items()), flush=True)
        metrics_csv.row(row)
        if step % 10 == 0:
            group = zip(texts[:hp.group_size], rollout.rewards.tolist(), rollout.advantages[:, 0].tolist())
            samples_txt.text(f"=== step {step + 1}\n{problems[0]['prompt']}\n" + "".join(
                f"--- reward {r:.2f}  advantage {A:+.2f}\n{text}\n" for text, r, A in group))
        step += 1
        if step % config.eval_every == 0 and step < config.steps:
            print(f"held-out {main_set} at step {step}: " + brief(held_out(step, [main_set])["metrics"][main_set]))
        if step % config.save_every == 0 or step == config.steps or stop:
            checkpoint(step)
    if stop:
        print(f"stopped after step {step}; go on with: python train.py --out {config.out} --resume")
        raise SystemExit(128 + stop[0])
    for number in (signal.SIGINT, signal.SIGTERM):       # all is saved: from here on a stop is just a stop
        signal.signal(number, signal.SIG_DFL)
    after = held_out(step, sets)
    start = GPT.load(config.init).to(config.device)      # the other sets wait until now, so that RL starts at once
    before["metrics"] |= held_out(0, [name for name in sets if name != main_set], start)["metrics"]
    for name in sets:
        print(f"\nheld-out {name}, {config.eval_k} samples a problem, mean ± 95% interval")
        print(table({"before": before["metrics"][name], f"step {step}": after["metrics"][name]}))
    for (prompt, old), (_, new) in zip(before["shown"], after["shown"]):
        print(f"\n{'-' * 40}\n{prompt}\n--- before\n{old}\n--- after\n{new}")
    print(f"\n{time.time() - began:.0f} s. Curves: python plot.py {config.out}")


def brief(m):
    return "  ".join(f"{name} {m[name]:.3f}" for name in m if "@" in name and not name.endswith("_ci")) \
        + f"  length {m['length']:.1f}  reflection {m['reflection']:.3f}"


def commit():
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
