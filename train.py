"""Reinforcement learning with verifiable rewards: Algorithm 1 of DeepSeekMath (arXiv 2402.03300).

    python train.py --algo grpo                      R1-Zero in small: pure RL on a small base model, on a laptop
    python train.py --out DIR --resume               go on where a run stopped

The numbers at the right of the code are the lines of that algorithm.

A run writes into its folder: metrics.csv (a row a step), eval.csv (held-out problems), samples.txt (whole groups),
config.json (all flags, versions), state.pt (to resume), model/ (the trained checkpoint).
"""
import itertools
import json
import math
import os
import platform
import random
import signal
import time
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import torch

import grpo
import memory
import ppo
from checkpoint import Log, commit, restore, write
from data import Task, check_room
from evaluate import COUNTS, evaluate, judge, table
from flags import check, fill, of_run, one_line_errors
from model import GPT
from sampler import Rollout, sample

ALGORITHMS = {"grpo": grpo, "ppo": ppo}
LINE = dict(step="d", reward=".3f", accuracy=".3f", format=".3f", length=".1f", reflection=".3f", kl=".4f",
            entropy=".4f", zero_groups=".2f", explained_variance=".3f", tokens_per_second=".0f", seconds=".2f")
SHORT = dict(tokens_per_second="tokens/s", explained_variance="expl_var")
METRICS = ("kl", "entropy", "clip_low", "clip_high", "drift")                     # of every algorithm's loss
MEANS = ("reward", "accuracy", "format", "length", "reflection", "language", "truncated", "unjudged")   # of responses


@dataclass
class Config(Task):
    algo: str = "grpo"            # grpo or ppo
    init: str = "data/base"       # checkpoint folder that RL starts from
    out: str = ""                 # folder of the run; default out/ALGO-TASK-SEED
    recompute: bool = False       # activation checkpointing: a third more time, memory of one layer and not of all
    dry_run: bool = False         # print how much memory the run would take, and stop
    resume: bool = False          # go on from the checkpoint in --out
    steps: int = 40               # rollouts
    problems: int = 16            # B, problems per rollout
    max_new_tokens: int = 160     # longest response in training
    temperature: float = 1.0      # of the sampler, and of every log-prob computed on what it sampled
    format_weight: float = 0.1    # reward = accuracy + format_weight * format
    language_weight: float = 0.0  # R1: + language_weight * share of the thinking that is in the question's language
    overlong: float = 0.0         # DAPO: over this last share of max_new_tokens the reward falls linearly, by 1
    resample: int = 1             # DAPO: groups with equal rewards make way for new ones, in at most so many samplings
    lr: float = 5e-4              # AdamW's learning rate, constant after the warm-up
    warmup: int = 5               # steps of linear warm-up
    clip_norm: float = 1.0        # gradient norm limit
    tokens: int = 1536            # padded tokens per micro-batch: time and memory, never a gradient
    eval_every: int = 10          # steps between evaluations on held-out problems
    eval_problems: int = 96       # problems of a held-out set
    eval_sets: int = 0            # judge only the first so many held-out sets; 0: all
    eval_k: int = 16              # samples per held-out problem
    eval_max_new_tokens: int = 320  # longest response in evaluation
    save_every: int = 20          # steps between checkpoints

    def __post_init__(self):
        check(self, ("problems", "max_new_tokens", "warmup", "tokens", "eval_every", "eval_problems", "eval_k",
                     "eval_max_new_tokens", "save_every", "resample"), algo=ALGORITHMS)
        if not self.temperature > 0 or self.overlong > 1:
            raise ValueError(f"--temperature {self.temperature} must be above 0, --overlong {self.overlong} at most 1")


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


def explore(run, step):
    """Samples and judges the responses of a step -> Rollout with rewards, facts about each row, responses sampled."""
    config, G, device, rows, sampled = run.config, run.hp.group_size, run.config.device, [], 0
    for attempt in range(step * config.resample, (step + 1) * config.resample):
        problems = problems_of(attempt, run.train, config)[:config.problems - len(rows) // G]                    # 5
        prompts = [run.tokenizer.prompt(p) for p in problems]
        with run.precision:
            drawn = sample(run.nets.policy, prompts, G, config.max_new_tokens, config.temperature,
                           run.tokenizer.eos_ids, seed=config.seed * 1_000_003 + attempt)        # 7   o_1..o_G ~ pi_old
        columns = zip(drawn.response_ids.tolist(), drawn.old_logprobs, drawn.lengths.tolist())
        judged = [judge(problems[i // G], ids[:n], run.tokenizer) | {"prompt": prompts[i // G], "logp": logprobs[:n]}
                  for i, (ids, logprobs, n) in enumerate(columns)]
        for row in judged:
            row["reward"] = reward(row, config)                                                  # 8   r_1..r_G
        groups = [judged[i:i + G] for i in range(0, len(judged), G)]
        useful = [group for group in groups if len({r["reward"] for r in group if not r["unjudged"]}) > 1]
        rows += sum(useful if config.resample > 1 else groups, [])
        sampled += len(judged)
        if len(rows) == config.problems * G:
            break
    rows = rows or judged             # no signal in any of them
    rollout = Rollout.pack([row["prompt"] for row in rows[::G]], [row["ids"] for row in rows], G, device)
    rollout.old_logprobs = torch.zeros(rollout.response_mask.shape, device=device).masked_scatter(
        rollout.response_mask, torch.cat([row["logp"] for row in rows]))
    rollout.rewards = torch.tensor([row["reward"] for row in rows], device=device)
    rollout.temperature = config.temperature
    return rollout, rows, sampled


def reward(row, config):
    """The reward of a judged response: right, well formed, in the language of the question, and not overlong."""
    margin = config.overlong * config.max_new_tokens
    late = max(0.0, row["length"] + margin - config.max_new_tokens) / margin if margin else 0.0
    return row["accuracy"] + config.format_weight * row["format"] + config.language_weight * row["language"] - late


def score(run, rollout):
    """What the frozen networks say, a micro-batch at a time: ref_logprobs and, with a critic, values."""
    for piece in rollout.micro_batches(run.config.tokens):
        part = rollout.rows(piece)
        with run.precision:
            run.algo.score(run.nets, part, run.hp)
        for name in ("ref_logprobs", "values"):
            if (found := getattr(part, name)) is not None:
                if getattr(rollout, name) is None:
                    setattr(rollout, name, found.new_zeros(rollout.response_mask.shape))
                getattr(rollout, name)[piece, :found.shape[1]] = found


def update(run, rollout, step):
    """The optimizer steps of one rollout -> metrics, means over the trained tokens."""
    algo, nets, hp, config, optimizer = run.algo, run.nets, run.hp, run.config, run.optimizer
    N, order = len(rollout.rewards), torch.Generator().manual_seed(config.seed * 1_000_003 + step)
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
                with run.precision:
                    loss, metrics = algo.loss(nets, micro, hp)                                   # 11
                loss.backward()
                metrics |= {"tokens": micro.response_mask.sum(), "loss": loss.detach()}
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + float(value)
            norm = [float(torch.nn.utils.clip_grad_norm_(group["params"], config.clip_norm))
                    for group in optimizer.param_groups]
            if not math.isfinite(sum(norm)):
                raise SystemExit(f"step {step + 1}: the gradient norm is {sum(norm)}; no optimizer step was taken")
            if not norms:             # nothing has moved yet: what differs is the sampler from the trainer
                gap = totals["drift"] / totals["tokens"] if totals["tokens"] else math.nan
            norms.append(norm[0])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    tokens, loss = totals.pop("tokens"), totals.pop("loss")
    means = {name: total / tokens if tokens else math.nan for name, total in totals.items()}
    if rollout.ref_logprobs is None:
        means["kl"] = math.nan
    if rollout.values is not None:
        returns, values = (x[rollout.response_mask] for x in (rollout.returns, rollout.values))
        means["explained_variance"] = float(1 - (returns - values).var() / returns.var())
    return {"loss": loss / len(norms), "grad_norm": sum(norms) / len(norms), "gap": gap} | means


def train_step(run, step):
    """Lines 3 to 11 of Algorithm 1 -> a row of metrics.csv, and a group for samples.txt."""
    algo, nets, hp, config, clock = run.algo, run.nets, run.hp, run.config, time.time()
    errors = COUNTS["reward_errors"]
    if hp.kl_coef and hp.ref_every and step and step % hp.ref_every == 0:
        nets.ref.load_state_dict(nets.policy.state_dict())                                       # 3   pi_ref <- pi
    rollout, rows, sampled = explore(run, step)                                                  # 5, 7, 8
    sample_seconds = time.time() - clock
    score(run, rollout)                                                                          #     log pi_ref
    rollout.advantages = algo.advantages(rollout, hp)                                            # 9   A
    nets.policy.requires_grad_(step >= getattr(hp, "critic_warmup", 0))
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak"] * min(1.0, (step + 1) / config.warmup)
    metrics = update(run, rollout, step)                                                         # 10, 11
    seconds, grouped = time.time() - clock, rollout.rewards.view(-1, hp.group_size)
    means = torch.tensor([[r[name] for name in MEANS] for r in rows], dtype=torch.float64).nanmean(0).tolist()
    row = {"step": step + 1, **dict(zip(MEANS, means)), "reward_errors": COUNTS["reward_errors"] - errors}
    right = (torch.tensor([r["accuracy"] for r in rows]).view(-1, hp.group_size) == 1).all(1).float()
    equal = (grouped.nan_to_num(-math.inf).amax(1) <= grouped.nan_to_num(math.inf).amin(1)).float()
    row |= {"zero_groups": float(equal.mean()), "all_right": float(right.mean()), **metrics, "responses": sampled,
            "tokens_per_second": float(rollout.lengths.sum()) / seconds,
            "sample_seconds": sample_seconds, "seconds": seconds}
    shown = "".join(f"--- reward {r['reward']:.2f}  advantage {A:+.2f}\n{r['text']}\n"
                    for r, A in zip(rows[:hp.group_size], rollout.advantages[:, 0].tolist()))
    return row, f"=== step {step + 1}\n{run.tokenizer.decode(rows[0]['prompt'])}\n{shown}"


def setup(argv):
    """Flags and files -> everything a run needs. All that a user can get wrong is found out here."""
    flags, out, state = of_run(argv, __doc__, Config, ALGORITHMS)
    config = fill(Config, flags | {"out": out})
    algo = ALGORITHMS[config.algo]
    hp = fill(algo.Config, flags)
    policy = GPT.load(config.init).to(config.device)
    tokenizer = config.tokenizer(config.init, policy)
    train, sets = config.load(config.seed)
    if config.problems > len(train):
        raise ValueError(f"--problems {config.problems}: {config.task} has {len(train)} training problems")
    longest = check_room(config.task, map(tokenizer.prompt, sum(sets.values(), train)),
                         max(config.max_new_tokens, config.eval_max_new_tokens), policy)
    nets = algo.networks(policy, hp)
    for net in filter(None, vars(nets).values()):
        net.recompute = config.recompute
    precision = torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16")
    if config.dry_run:
        print(memory.table(memory.estimate(nets, config, hp.group_size, longest, precision)))
        raise SystemExit
    groups = [{"params": list(net.parameters()), "peak": getattr(hp, f"{name}_lr", config.lr)}
              for name, net in vars(nets).items() if net is not None and name != "ref"]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    state = state or {"step": 0, "before": None, "ends": (0, 0, 0)}
    if state["step"]:
        saved = ((net, state["nets"][name]) for name, net in vars(nets).items() if net)
        restore(f"{out}/state.pt", config.init, itertools.chain(saved, [(optimizer, state["optimizer"])]))
    os.makedirs(config.out, exist_ok=True)
    logs = [Log(f"{config.out}/{f}", end) for f, end in zip(("metrics.csv", "eval.csv", "samples.txt"), state["ends"])]
    with open(f"{config.out}/config.json", "w") as f:
        json.dump({"flags": asdict(config) | asdict(hp), "python": platform.python_version(),
                   "torch": torch.__version__, "threads": torch.get_num_threads(), "commit": commit()}, f, indent=1)
    sets = dict(list(sets.items())[:config.eval_sets or None])
    return SimpleNamespace(
        config=config, algo=algo, hp=hp, nets=nets, optimizer=optimizer, tokenizer=tokenizer, train=train, sets=sets,
        logs=logs, precision=precision, step=state["step"], before=state["before"])


def held_out(run, step, names, model):
    """Judges `model` on the held-out sets `names` -> their metrics, and some responses to the first set."""
    config, found, shown = run.config, {}, []
    for name in names:
        problems = run.sets[name][:config.eval_problems]
        found[name], groups = evaluate(model, run.tokenizer, problems, config.eval_k, config.eval_max_new_tokens)
        run.logs[1].row({"step": step, "set": name} | found[name])
        shown = shown or [[p["prompt"], group[0]["text"]] for p, group in zip(problems[:3], groups)]
    return {"metrics": found, "shown": shown}


def main(argv=None):
    began = time.time()
    with one_line_errors():
        run = setup(argv)
    config, policy, (main_set, *others) = run.config, run.nets.policy, run.sets
    metrics_csv, _, samples_txt = run.logs
    stop = []                     # signals that arrived; a second one stops at once
    def note(number, _):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping after this step (once more: at once, back to the last checkpoint)", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    print(f"{config.algo} on {config.task}: {sum(p.numel() for p in policy.parameters()):,} parameters, "
          f"{len(run.train)} training problems, {config.problems} x {run.hp.group_size} responses a step, {config.out}")
    if run.before is None:
        run.before = held_out(run, 0, [main_set], policy)
        print(f"held-out {main_set} before RL: " + brief(run.before["metrics"][main_set]))
    write(run, run.step)
    print(f"RL starts {time.time() - began:.0f} s after the command", flush=True)
    step = run.step
    for step in range(step, config.steps):
        row, group = train_step(run, step)
        line = {name: spec for name, spec in LINE.items() if name in row}
        if step % 20 == 0:
            print(" ".join(f"{SHORT.get(name, name):>11}" for name in line))
        print(" ".join(f"{row[name]:11{spec}}" for name, spec in line.items()), flush=True)
        metrics_csv.row(row)
        if step % 10 == 0:
            samples_txt.file.write(group)
        step += 1
        if step % config.eval_every == 0 and step < config.steps:
            found = held_out(run, step, [main_set], policy)["metrics"]
            print(f"held-out {main_set} at step {step}: " + brief(found[main_set]))
        if step % config.save_every == 0 or step == config.steps or stop:
            write(run, step)
        if stop:
            print(f"stopped after step {step}; go on with: python train.py --out {config.out} --resume")
            raise SystemExit(128 + stop[0])
    for number in (signal.SIGINT, signal.SIGTERM):       # all is saved: from here on a stop is just a stop
        signal.signal(number, signal.SIG_DFL)
    after = held_out(run, step, run.sets, policy)
    start = GPT.load(config.init).to(config.device)      # the other sets wait until now, so that RL starts at once
    run.before["metrics"] |= held_out(run, 0, others, start)["metrics"]
    for name in run.sets:
        print(f"\nheld-out {name}, {config.eval_k} samples a problem, mean ± 95% interval")
        print(table({"before": run.before["metrics"][name], f"step {step}": after["metrics"][name]}))
    for (prompt, old), (_, new) in zip(run.before["shown"], after["shown"]):
        print(f"\n{'-' * 40}\n{prompt}\n--- before\n{old}\n--- after\n{new}")
    print(f"\n{time.time() - began:.0f} s. Curves: python plot.py {config.out}")


def brief(m):
    return "  ".join(f"{name} {m[name]:.3f}" for name in m if "@" in name and not name.endswith("_ci")) \
        + f"  length {m['length']:.1f}  reflection {m['reflection']:.3f}"


if __name__ == "__main__":
    main()
