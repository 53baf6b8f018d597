"""On-policy distillation, on one page. Read it beside grpo.py: same names, same order.

The student pi answers; a teacher q says at each token of the answer how it would have gone on. No
reward is used. OPD minimises the mean over the tokens of the student's own responses of

    KL_t = sum_v pi(v) log( pi(v) / q(v) )         the reverse KL, over the whole vocabulary     (1)

or, with `--estimate token`, of the sampled token only, as a policy gradient that maximises

    A_t  = log q(o_t) - log pi_old(o_t)            expected value: -KL_t                         (2)
    J    = mean over tokens of A_t log pi(o_t)                                                   (3)

At pi = pi_old the gradient of -J is that of (1) in expectation, with more variance. Neither looks
beyond the token: what it does to the tokens after it has no gradient. A rollout is used for one
step, so there is no ratio and no clip.

(1) is the generalized knowledge distillation of arXiv 2306.13649 with reverse KL and the student's
own data only; arXiv 2306.08543 has the same divergence of whole responses.

    python train.py --algo opd --teacher DIR
    python train.py --algo opd --task pairs+general --teacher pairs=DIR --teacher general=DIR
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from fast.kl import kl_divergence
from logprobs import response_logprobs, response_states
from plumbing.files import checksums
from plumbing.flags import Flags, flag
from start.compose import load_model

# columns of metrics.csv, and those of them that the line of a step shows
METRICS = "kl entropy mean_abs_log_ratio".split()
SHOWN = "kl entropy".split()


@dataclass
class Config(Flags):
    teacher: tuple = flag((), "checkpoint folder; or TASK=FOLDER, once for each task")
    estimate: str = flag("full", "of the KL: full or token", choices=("full", "token"))
    group_size: int = flag(4, "G, responses per problem", at_least=1, at_most=4096)
    minibatches: int = flag(1, "optimizer steps per pass over a rollout", at_least=1)
    epochs: int = flag(1, "passes over a rollout", at_least=1)


def check_same_tokenizer(folder, other):
    """ValueError if two checkpoint folders have different tokenizers."""
    names = ("tokenizer.tiktoken", "tokenizer.json")
    sums = [list(checksums(f"{at}/{name}" for name in names).values()) for at in (folder, other)]
    if sums[0] != sums[1]:
        raise ValueError(f"{folder} has another tokenizer than {other}")


def networks(policy, hp):
    """The networks of a run: the policy, and frozen teachers, one for each --teacher."""
    if not hp.teacher:
        raise ValueError("--algo opd needs --teacher FOLDER")
    where = SimpleNamespace(device=policy.head.device, seed=0)
    teachers = torch.nn.ModuleList()
    for text in hp.teacher:
        folder = text.rpartition("=")[2]
        teachers.append(load_model(folder, where).requires_grad_(False))
        check_same_tokenizer(folder, policy.folder)
    return SimpleNamespace(policy=policy, teachers=teachers)


def update_reference(nets, rollouts, hp):
    """Teachers stay as they are."""


def by_teacher(nets, rollout, hp):
    """-> [(teacher, its rows (M,))]: by the task of a row's problem."""
    tasks = [rollout.problems[i].get("task", "") for i in rollout.group.tolist()]
    parts = []
    for text, teacher in zip(hp.teacher, nets.teachers, strict=True):
        name = text.rpartition("=")[0]
        rows = [i for i, task in enumerate(tasks) if name in ("", task)]
        if rows:
            parts.append((teacher, torch.tensor(rows, device=rollout.group.device)))
    if sum(len(rows) for _, rows in parts) != len(tasks):
        raise SystemExit(f"--teacher {' '.join(hp.teacher)}: not one for each of the tasks")
    return parts


@torch.no_grad()
def score(nets, rollout, hp):
    """For (2) fills in what the teachers say of the sampled tokens: ref_logprobs (N, T)."""
    if hp.estimate == "full":
        return
    rollout.ref_logprobs = torch.zeros_like(rollout.old_logprobs)
    for teacher, rows in by_teacher(nets, rollout, hp):
        logprobs, _ = response_logprobs(teacher, rollout.select(rows))
        rollout.ref_logprobs[rows, : logprobs.shape[1]] = logprobs


def advantages(rollout, hp):
    """(N, T): the teacher's log-prob of a token minus the student's; 1, not used, for (1)."""
    if rollout.ref_logprobs is None:
        return rollout.response_mask.float()
    return rollout.ref_logprobs - rollout.old_logprobs  # (2)


def weights(mask, hp):
    """mask (N, T) of an optimizer step -> each token's share of its loss, 0 outside the mask."""
    return mask / mask.sum().clamp(min=1)


def full_kl(nets, batch, states, hp):
    """states (N, T, C) of the student -> KL (N, T) to the teachers, 0 outside the mask."""
    kl = torch.zeros_like(batch.old_logprobs)
    for teacher, rows in by_teacher(nets, batch, hp):
        part = batch.select(rows)
        mask = part.response_mask  # (M, T of the part)
        ours = states[rows, : mask.shape[1]][mask], nets.policy.head
        with torch.no_grad():
            theirs = response_states(teacher, part)[mask], teacher.head
        values = kl_divergence(*ours, *theirs, batch.temperature)  # (1)
        kl[rows, : mask.shape[1]] = values.new_zeros(mask.shape).masked_scatter(mask, values)
    return kl


def loss(nets, batch, hp):
    """A micro-batch of an optimizer step -> its part of the loss, a scalar, and metrics."""
    states = response_states(nets.policy, batch)
    logprobs, entropy = response_logprobs(nets.policy, batch, states)
    kl = -batch.advantages
    J = logprobs * batch.advantages  # (3)
    if hp.estimate == "full":
        kl = full_kl(nets, batch, states, hp)
        J = -kl
    metrics = {"kl": kl.detach().sum(), "entropy": entropy.detach().sum()}
    metrics["mean_abs_log_ratio"] = (logprobs.detach() - batch.old_logprobs).abs().sum()
    return -(J * batch.weights).sum(), metrics
