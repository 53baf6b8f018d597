"""How good is a model? k samples a problem on held-out problems: pass@1, pass@k, cons@k, each with a 95% interval.

    pass@k = E over problems of 1 - C(n-c, k) / C(n, k)       c of n samples right; unbiased (Chen et al. 2021, eq. 1)
    cons@k = share of problems whose most frequent answer is right (majority vote; "cons@64" in the R1 paper)

    python evaluate.py --model data/base --task pairs --k 16 [--keep correct.jsonl]
"""
import math
import traceback
from collections import Counter
from dataclasses import dataclass

import torch
from tqdm import tqdm

import rewards
from data import Task, check_room
from data.jsonl import write
from data.tokenizer import OPEN
from flags import check, fill, one_line_errors, parse
from model import GPT
from sampler import sample


@dataclass(kw_only=True)
class Config(Task):
    model: str                    # checkpoint folder
    k: int = 16                   # samples per problem
    problems: int = 128           # at most this many problems of each set
    train: bool = False           # judge training problems instead: rejection sampling, with --keep
    max_new_tokens: int = 320     # longest response
    temperature: float = 1.0      # of the samples (0: greedy); pass@1 is their mean, the greedy row is apart
    keep: str = ""                # write responses that are right, well formed and in one language to this .jsonl file
    keep_tokens: int = 160        # and no longer than this

    def __post_init__(self):
        check(self, ("k", "problems", "max_new_tokens", "keep_tokens"))


def pass_at_k(n, c, k):
    """Chance that k of n samples, drawn without replacement, hold one of the c right ones."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right ones in {n} samples")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers):
    """The most frequent answer that is not None, the first to appear among equals; None if there is none."""
    votes = Counter(a for a in answers if a is not None)
    return max(votes, key=votes.get) if votes else None      # max and Counter keep the order of appearance


def mean_interval(values):
    """Mean over problems and half the width of its 95% interval (normal approximation). NaN takes no part."""
    values = [v for v in values if v == v] or [math.nan]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / len(values))
    return mean, 1.96 * spread


COUNTS = Counter()                # of this process: judged responses, and reward_errors among them


def accuracy(problem, text):
    """rewards.accuracy; NaN, counted, where it raises. The first time the traceback is shown; over 1% stop the run."""
    COUNTS["judged"] += 1
    try:
        return rewards.accuracy(problem, text)
    except Exception:
        COUNTS["reward_errors"] += 1
        if COUNTS["reward_errors"] == 1:
            traceback.print_exc()
    if COUNTS["reward_errors"] > max(5, COUNTS["judged"] / 100):
        raise SystemExit(f"the reward raised for {COUNTS['reward_errors']} of {COUNTS['judged']} responses, over 1%")
    return math.nan


def judge(problem, ids, tokenizer):
    """A response, as ids with the end token -> all that rewards and metrics are made of. Its text begins with the
    <think> that the prompt opened."""
    text = OPEN * tokenizer.think + tokenizer.decode(ids)
    score = accuracy(problem, text)
    count = rewards.reflections(text)
    return dict(ids=ids, text=text, length=len(ids), truncated=float(ids[-1] not in tokenizer.eos_ids), accuracy=score,
                unjudged=float(score != score), format=rewards.format(text), reflection=float(count > 0),
                reflections=count, language=rewards.language(text, problem.get("language", "en")))


@torch.no_grad()
def responses(model, tokenizer, problems, k, max_new_tokens, temperature=1.0, seed=0):
    """k judged responses to each problem: [[dict]]."""
    groups, batch = [], max(1, 512 // k)
    for i in tqdm(range(0, len(problems), batch), desc="evaluate", leave=False):
        part = problems[i:i + batch]
        out = sample(model, [tokenizer.prompt(p) for p in part], k, max_new_tokens, temperature,
                     tokenizer.eos_ids, seed)
        ids = [row[:n] for row, n in zip(out.response_ids.tolist(), out.lengths.tolist())]
        groups += [[judge(p, row, tokenizer) for row in ids[j * k:(j + 1) * k]] for j, p in enumerate(part)]
    return groups


def evaluate(model, tokenizer, problems, k=16, max_new_tokens=320, temperature=1.0, seed=0):
    """-> ({metric: value, metric_ci: half width of its 95% interval}, judged responses [[dict]])."""
    groups = responses(model, tokenizer, problems, k, max_new_tokens, temperature, seed)
    greedy = responses(model, tokenizer, problems, 1, max_new_tokens, 0.0, seed)
    vote = []
    judged = [rows for group in groups if (rows := [row for row in group if not row["unjudged"]])]
    for group in judged:
        answers = [rewards.extract_answer(row["text"]) for row in group]
        winner = majority(answers)
        vote.append(group[answers.index(winner)]["accuracy"] if winner is not None else 0.0)
    mean = lambda name, groups=groups: [sum(row[name] for row in group) / len(group) for group in groups]
    per_problem = {
        "pass@1": mean("accuracy", judged),
        f"pass@{k}": [pass_at_k(len(rows), sum(row["accuracy"] == 1 for row in rows), len(rows)) for rows in judged],
        f"cons@{k}": vote,
        "greedy": [group[0]["accuracy"] for group in greedy],
        **{name: mean(name) for name in ("length", "reflection", "reflections", "format", "language", "truncated",
                                         "unjudged")},
    }
    metrics = {}
    for name, values in per_problem.items():
        metrics[name], metrics[name + "_ci"] = mean_interval(values)
    return metrics, groups


def table(columns):
    """Lines of a table: {column: metrics of evaluate()} side by side, each value with its interval."""
    names = [n for n in next(iter(columns.values())) if not n.endswith("_ci")]
    lines = [f"{'':12}" + "".join(f"{c:>18}" for c in columns)]
    for n in names:
        digits = 1 if n in ("length", "reflections") else 3
        cells = (f"{m[n]:.{digits}f} ± {m[n + '_ci']:.{digits}f}" for m in columns.values())
        lines.append(f"{n:12}" + "".join(f"{c:>18}" for c in cells))
    return "\n".join(lines)


def main(argv=None):
    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        model = GPT.load(config.model).to(config.device)
        tokenizer = config.tokenizer(config.model, model)
        train, sets = config.load()
        sets = {"training": train} if config.train else sets
        check_room(config.task, map(tokenizer.prompt, sum(sets.values(), [])), config.max_new_tokens, model)
        if config.keep:
            open(config.keep + ".tmp", "w").close()        # found out now if it cannot be written
    columns, kept = {}, {}                        # a prompt can stand twice
    for name, problems in sets.items():
        problems = problems[:config.problems]
        with torch.autocast(config.device, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            columns[name], groups = evaluate(model, tokenizer, problems, config.k, config.max_new_tokens,
                                             config.temperature, config.seed)
        for kind, checked in (("with", 1), ("without", 0)):
            hits = [r["accuracy"] for r in sum(groups, []) if r["reflection"] == checked and not r["unjudged"]]
            print(f"{name}, {len(hits)} responses {kind} a self-check: {sum(hits) / max(1, len(hits)):.3f} right")
        good = lambda row: (row["accuracy"] == row["format"] == row["language"] == 1
                            and row["length"] <= config.keep_tokens)
        kept |= {(p["prompt"], row["text"]): {key: p[key] for key in ("prompt", "user") if key in p}
                 | {"response": row["text"].removesuffix(rewards.END)}
                 for p, group in zip(problems, groups) for row in group if good(row)}
    print(table(columns))
    if config.keep:
        write(config.keep, kept.values())
        print(f"wrote {len(kept)} responses to {config.keep}")


if __name__ == "__main__":
    main()
