"""Reinforcement learning with verifiable rewards: Algorithm 1 of DeepSeekMath (arXiv 2402.03300).

    python train.py --algo grpo              R1-Zero at small scale, on a laptop
    python train.py --out DIR --resume       go on where a run stopped

The numbers at the right of the code are the lines of that algorithm:

     3      the reference becomes the policy        9       advantages
     5      a batch of problems                     10      several times:
     7      G responses to each, from the policy    11      a step that raises the objective
     8      their rewards

A run writes into its folder: metrics.csv (a row a step), eval.csv and held_out.jsonl (held-out
problems), samples.txt and groups.jsonl (whole groups), run.json (flags, versions), state.pt (to
resume), model/ and best/ (checkpoints). It is locked while a run is at work there; a new run does
not begin in a folder that holds another's. A full disk or a stop ends a run, which goes on from its
last checkpoint.
"""

import copy
import json
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import torch

from data import Task
from evaluate import evaluate, judge_all, print_before_after, summary
from fast.prompts import micro_batches
from grpo import rewards_differ
from page.record import write_group
from plumbing import world
from plumbing.flags import flag, one_line_errors
from plumbing.run_folder import RunFolder
from rewards import Judge
from sampler import sample
from start.compose import SCHEDULES, autocast, load_model, load_tokenizer, lr_share, make_optimizer
from start.resume import StopSignal, keep_best, load_initial, open_run, parse_run, save_checkpoint
from start.task import TaskFlags, build_task, check_task

MICROBATCH = {"cpu": 1536, "cuda": 16384}  # a GPU wants large products
PRINTED = dict(step="d", reward=".3f", accuracy=".3f", format=".3f", length=".1f", reflection=".3f")
PRINTED |= dict(zero_groups=".2f", tokens_per_second=".0f", seconds=".2f")


@dataclass
class Config(TaskFlags):
    algo: str = flag("grpo", "grpo, ppo, a row of variants.py (dapo, ...) or a module of yours")
    init: str = flag("data/base", "checkpoint folder that RL starts from")
    out: str = flag("", "folder of the run; by default out/ALGO-TASK-SEED")
    recompute: bool = flag(False, "activation checkpointing: a third more time, less memory")
    dry_run: bool = flag(False, "print how much memory the run would take, and stop")
    resume: bool = flag(False, "go on from the checkpoint in --out")
    steps: int = flag(40, "rollouts")
    lag: int = flag(0, "rollouts are of the policy this many steps ago (asynchronous training)")
    prompts_per_step: int = flag(16, "B, problems per rollout", at_least=1, at_most=65536)
    max_new_tokens: int = flag(160, "longest response in training", at_least=1)
    temperature: float = flag(1.0, "of the sampler, and of all log-probs", at_least=1e-6)
    format_weight: float = flag(0.1, "reward = accuracy + format_weight * format")
    language_weight: float = flag(0.0, "R1: + language_weight * share of the question's language")
    overlong: float = flag(0.0, "DAPO: share of the length over which the reward falls", at_most=1)
    dynamic_sampling: int = flag(1, "DAPO: times as many groups, less equal ones", at_least=1)
    lr: float = flag(5e-4, "AdamW's learning rate")
    warmup: int = flag(5, "steps of linear warm-up", at_least=1)
    schedule: str = flag("constant", "after it; linear and cosine fall to 0", choices=SCHEDULES)
    clip_norm: float = flag(1.0, "gradient norm limit", at_least=1e-6)
    tokens_per_microbatch: int = flag(0, "padded tokens: memory and time; 0: 1536, on a GPU 16384")
    eval: str = flag("", "held-out problems from elsewhere: tasks or .jsonl files, joined by +")
    eval_every: int = flag(10, "steps between evaluations on held-out problems; 0: none")
    eval_problems: int = flag(96, "only the first so many problems of a held-out set; 0: all")
    eval_sets: int = flag(0, "only the first so many held-out sets; 0: all")
    eval_k: int = flag(16, "samples per held-out problem", at_least=1, at_most=10_000)
    eval_max_new_tokens: int = flag(320, "longest response in evaluation", at_least=1)
    save_every: int = flag(20, "steps between checkpoints", at_least=1)
    inspect_every: int = flag(10, "steps between groups that are recorded", at_least=1)

    def __post_init__(self):
        super().__post_init__()
        self.tokens_per_microbatch = self.tokens_per_microbatch or MICROBATCH[self.device]

    @property
    def prompts_sampled(self):
        return self.prompts_per_step * self.dynamic_sampling

    def evaluates_at(self, step):
        return self.eval_every and step % self.eval_every == 0


@dataclass
class Run:
    """All that a run is made of. `setup` builds it."""

    config: Config
    algo: object  # the module grpo, ppo or variants
    hp: object  # the Config of the algorithm
    nets: object  # its networks: policy, ref, ...
    optimizer: object  # a parameter group for each network that is trained, the policy first
    tokenizer: object
    task: Task  # training problems, held-out sets
    judge: Judge
    autocast: object  # the precision of the forward passes
    past: list = field(default_factory=list)  # the policies before the last --lag steps
    folder: RunFolder = None
    step: int = 0  # rollouts done
    before: dict = None  # the held-out results before RL
    best: float = -math.inf  # the best accuracy on the first held-out set after a step


# --- A step -----------------------------------------------------------------------------------


def problems_of(step, train, config):
    """The problems of a step: the training set in an order of its own for each epoch.

    They depend on nothing else, so a resumed run sees what it would have seen."""
    count = config.prompts_sampled
    chosen = []
    for position in range(step * count, (step + 1) * count):
        epoch, i = divmod(position, len(train))
        if i == 0 or not chosen:
            order = random.Random(f"{config.seed} {epoch}").sample(train, len(train))
        chosen.append(order[i])
    return chosen


def total_reward(judged, config):
    """The reward of a judged response: right, well formed, of one language, not overlong."""
    reward = judged["accuracy"] + config.format_weight * judged["format"]
    reward += config.language_weight * judged["language"]
    reward += sum(x for name, x in judged.items() if name.startswith("reward_"))
    margin = config.overlong * config.max_new_tokens
    if margin:
        reward -= max(0.0, judged["length"] + margin - config.max_new_tokens) / margin
    return reward


def informative_rows(rewards, group_size, groups):
    """The rows of the first `groups` groups whose rewards differ (of any, where none do)."""
    chosen = rewards_differ(rewards.view(-1, group_size)).nonzero()[:groups]  # (B, 1)
    if len(chosen) == 0:
        chosen = torch.arange(groups, device=rewards.device)[:, None]
    return (chosen * group_size + torch.arange(group_size, device=rewards.device)).flatten()


def collect_rollout(run, step):
    """Samples and judges the responses of a step -> Rollout with rewards, what the judge said.

    They are of the policy as it was --lag steps ago, at first of the initial one."""
    config, G = run.config, run.hp.group_size
    problems = problems_of(step, run.task.train, config)  # 5
    prompts = [run.tokenizer.prompt(problem) for problem in problems]
    seed = config.seed * 1_000_003 + step
    limits = (config.max_new_tokens, config.temperature, run.tokenizer.eos_ids)
    policy = run.past[0] if run.past else run.nets.policy
    with run.autocast:
        rollout = sample(policy, prompts, G, *limits, seed)  # 7   o_1..o_G ~ pi_old
    rollout.step = step
    rollout.lag = len(run.past)
    rollout.problems = problems
    judged = judge_all(run.judge, problems, rollout)
    for facts in judged:
        facts["reward"] = total_reward(facts, config)  # 8   r_1..r_G
    rewards = [facts["reward"] for facts in judged]
    rollout.rewards = torch.tensor(rewards, device=rollout.response_ids.device)
    if rollout.rewards.isnan().all():
        text = judged[0]["text"]
        raise SystemExit(f"step {step + 1}: no response could be judged, the first is {text!r}")
    if config.dynamic_sampling > 1:
        rows = informative_rows(rollout.rewards, G, config.prompts_per_step)
        rollout = rollout.select(rows)
        judged = [judged[i] for i in rows.tolist()]
    return rollout, judged


def score(run, rollout):
    """Fills in what the other networks say, a micro-batch at a time."""
    empty = [name for name, value in vars(rollout).items() if value is None]
    scored = {}
    for rows, part in micro_batches(rollout, run.config.tokens_per_microbatch, rollout.lengths > 0):
        with run.autocast:
            run.algo.score(run.nets, part, run.hp)
        for name in empty:
            x = getattr(part, name)  # (M, T of the part)
            if torch.is_tensor(x):
                whole = scored.setdefault(name, x.new_zeros(rollout.response_mask.shape))
                whole[rows, : x.shape[1]] = x
    for name in world.union(scored):
        whole = scored.get(name, torch.zeros_like(rollout.old_logprobs))
        world.add(whole)
        setattr(rollout, name, whole)


def update(run, rollout, step):
    """The optimizer steps of one rollout -> metrics, means over the trained tokens."""
    hp = run.hp
    N = len(rollout.rewards)
    generator = torch.Generator().manual_seed(run.config.seed * 1_000_003 + step)
    # without a reference and a critic, a response with no advantage has no gradient
    trained = (rollout.advantages != 0).any(1)
    if rollout.ref_logprobs is not None or rollout.values is not None:
        trained = rollout.response_mask.any(1)
    totals = Counter()
    norms = []
    gap = math.nan
    for _ in range(hp.epochs):  # 10
        rows = torch.randperm(N, generator=generator) if hp.minibatches > 1 else torch.arange(N)
        for minibatch in rows.to(trained.device).tensor_split(min(N, hp.minibatches)):
            batch = rollout.select(minibatch)
            batch.weights = run.algo.weights(batch.response_mask, hp)
            accumulate_gradient(run, batch, trained[minibatch], totals)
            if math.isnan(gap):  # nothing has moved yet: rounding, or --lag
                gap = mean(totals, "mean_abs_log_ratio")
            norms.append(optimizer_step(run, step))  # 11
    metrics = {"loss": totals["loss"] / len(norms), "grad_norm": sum(norms) / len(norms)}
    metrics["sampler_trainer_gap"] = gap
    for name in run.algo.METRICS:
        metrics[name] = rollout.metrics.get(name, mean(totals, name))
    return metrics


def mean(totals, name):
    """The mean over the trained tokens; NaN where there is none."""
    return totals.get(name, math.nan) / (totals["tokens"] or math.nan)


def accumulate_gradient(run, batch, trained, totals):
    """The gradient of an optimizer step, a micro-batch at a time; adds its metrics to totals."""
    sums = []
    for _, part in micro_batches(batch, run.config.tokens_per_microbatch, trained):
        with run.autocast:
            loss, metrics = run.algo.loss(run.nets, part, run.hp)
        loss.backward()
        metrics["tokens"] = part.response_mask.sum()
        metrics["loss"] = loss.detach()
        sums.append({name: float(value) for name, value in metrics.items()})
    for metrics in world.gather(sums):
        totals.update(metrics)


def optimizer_step(run, step):
    """Clips the gradient of each network and takes the step -> norm of the policy's before that."""
    norms = []
    for group in run.optimizer.param_groups:
        world.add_gradients(group["params"])
        norm = torch.nn.utils.clip_grad_norm_(group["params"], run.config.clip_norm)
        norms.append(float(norm))
    if not math.isfinite(sum(norms)):
        raise SystemExit(f"step {step + 1}: the gradient norm is {sum(norms)}; no step was taken")
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return norms[0]


def train_step(run, step):
    """Lines 3 to 11 of Algorithm 1 -> a row of metrics.csv."""
    began = time.time()
    errors = run.judge.errors
    run.algo.update_reference(run.nets, step, run.hp)  # 3   pi_ref <- pi
    rollout, judged = collect_rollout(run, step)  # 5, 7, 8
    sample_seconds = time.time() - began
    score(run, rollout)  # log pi_ref
    rollout.advantages = run.algo.advantages(rollout, run.hp)  # 9   A
    if run.config.lag:
        run.past = [*run.past, copy.deepcopy(run.nets.policy)][-run.config.lag :]
    for group in run.optimizer.param_groups:
        group["lr"] = group["base_lr"] * lr_share(step, run.config)
    metrics = update(run, rollout, step)  # 10, 11
    row = {"step": step + 1}
    columns = sorted(set().union(*judged) - {"text"})
    values = [[facts.get(name, math.nan) for name in columns] for facts in judged]
    means = torch.tensor(values, dtype=torch.float64).nanmean(0)
    row |= zip(columns, means.tolist(), strict=True)
    row["reward_errors"] = sum(world.gather([run.judge.errors - errors]))
    informative = rewards_differ(rollout.rewards.view(-1, run.hp.group_size))
    row["zero_groups"] = 1 - float(informative.float().mean())
    row |= metrics
    row["responses"] = run.config.prompts_sampled * run.hp.group_size
    row["seconds"] = time.time() - began
    row["sample_seconds"] = sample_seconds
    row["tokens_per_second"] = float(rollout.lengths.sum()) / row["seconds"]
    if step == 0 or (step + 1) % run.config.inspect_every == 0:
        rows = informative_rows(rollout.rewards, run.hp.group_size, 1)
        write_group(run, rollout.select(rows), [judged[i] for i in rows.tolist()])
    return row


# --- A run ------------------------------------------------------------------------------------


def setup(argv):
    """Flags and files -> Run. All that a user can get wrong is found out here."""
    config, hp, algo, state = parse_run(argv, __doc__, Config)
    policy = load_model(config.init, config)
    policy.recompute = config.recompute
    tokenizer = load_tokenizer(config.init, config, policy)
    task = build_task(config, config.seed, config.eval)
    longest = check_task(config, task, tokenizer, policy)
    nets = algo.networks(policy, hp)
    if config.dry_run:
        from start import memory

        memory.print_estimate(nets, config, hp.group_size, longest)
        raise SystemExit
    optimizer = make_optimizer(nets, hp, config.lr)
    judge = Judge(task.accuracy, tokenizer, config.reward_workers)
    run = Run(config, algo, hp, nets, optimizer, tokenizer, task, judge, autocast(config))
    open_run(run, state)
    return run


def judge_held_out(run, names, model, step):
    """Judges `model` on held-out sets -> {"metrics": {name: ...}, "samples": [[prompt, text]]}"""
    metrics = {}
    samples = []
    for name in names:
        problems = run.task.held_out[name]
        limits = (run.config.eval_k, run.config.eval_max_new_tokens)
        with run.autocast:
            metrics[name], groups = evaluate(model, run.tokenizer, run.judge, problems, *limits)
        run.folder.eval.write_row({"step": step, "set": name} | metrics[name])
        if not samples:
            first = zip(problems[:3], groups, strict=False)
            samples = [[problem["prompt"], group[0]["text"]] for problem, group in first]
            run.folder.held_out.write(json.dumps([step, samples]) + "\n")
            keep_best(run, model, metrics[name]["accuracy"])
    return {"metrics": metrics, "samples": samples}


def judge_main_set(run):
    """Judges the policy on the first held-out set, and says how it does."""
    name = next(iter(run.task.held_out))
    judged = judge_held_out(run, [name], run.nets.policy, run.step)
    print(f"held-out {name} at step {run.step}: {summary(judged['metrics'][name])}")
    return judged


def train(run, stop):
    """The steps of a run. It is saved before each evaluation, which a stop may cut off."""
    config = run.config
    columns = PRINTED | dict.fromkeys(run.algo.SHOWN, ".4f")
    first = run.step
    for step in range(first, config.steps):
        if step and config.evaluates_at(step):
            judge_main_set(run)
        with stop.delayed():
            row = train_step(run, step)
            run.step = step + 1
            stop.agreed = max(world.gather([stop.number]))
            if (step - first) % 20 == 0:
                print(" ".join(f"{name[:11]:>11}" for name in columns))
            print(" ".join(f"{row[name]:11{form}}" for name, form in columns.items()), flush=True)
            run.folder.metrics.write_row(row)
            is_due = run.step % config.save_every == 0 or config.evaluates_at(run.step)
            if is_due or run.step == config.steps or stop.agreed:
                save_checkpoint(run)


def report(run):
    """Judges the policy, and the model before RL, on all held-out sets, and prints both."""
    held_out = run.task.held_out
    after = judge_held_out(run, held_out, run.nets.policy, run.step)
    initial = load_initial(run.config)  # the other sets wait until now: RL starts at once
    if initial is not None:
        run.before["metrics"] |= judge_held_out(run, list(held_out)[1:], initial, 0)["metrics"]
    print_before_after(run.before, after, run.step)


def main(argv=None):
    began = time.time()
    with one_line_errors():
        run = setup(argv)
    config = run.config
    stop = StopSignal(config.out)
    parameters = sum(p.numel() for p in run.nets.policy.parameters())
    responses = f"{config.prompts_per_step} x {run.hp.group_size} responses a step"
    print(f"{config.algo} on {config.task}: {parameters:,} parameters, {responses}, {config.out}")
    save_checkpoint(run)
    if config.eval_every and run.step == 0:
        run.before = judge_main_set(run)
    print(f"RL starts {time.time() - began:.0f} s after the command", flush=True)
    train(run, stop)
    if config.eval_every and run.before:
        report(run)
    print(f"\n{time.time() - began:.0f} s. Curves: python plot.py {config.out}")


if __name__ == "__main__":
    main()
