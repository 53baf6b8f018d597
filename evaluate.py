"""How good is a model? k samples a problem on held-out problems, each number with a 95% interval.

    pass@k = mean over problems of 1 - C(n-c, k) / C(n, k)       c of n samples right; unbiased
    cons@k = share of problems whose most frequent answer is right (majority vote)

pass@k is eq. 1 of Chen et al. 2021 (arXiv 2107.03374), cons@k is "cons@64" of the R1 paper. Both,
and pass@1, are for answers that are right or wrong: a graded reward has its mean, accuracy.

    python evaluate.py --model data/base --task pairs --k 16
"""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from tqdm import tqdm

from data import Task
from plumbing import world
from plumbing.flags import REQUIRED, fill, flag, one_line_errors, parse
from rewards import extract_answer
from sampler import sample
from start.compose import autocast
from start.task import TaskFlags, load_for_sampling

DIGITS = {"length": 1, "reflections": 1}  # after the point; 3 of the others


@dataclass(kw_only=True)
class Config(TaskFlags):
    model: str = flag(REQUIRED, "checkpoint folder")
    k: int = flag(16, "samples per problem", at_least=1, at_most=10_000)
    problems: int = flag(0, "only the first so many problems of each set; 0: all")
    max_new_tokens: int = flag(320, "longest response", at_least=1)
    temperature: float = flag(1.0, "of the samples; 0: greedy")


def pass_at_k(n, c, k):
    """Chance that k of n samples, drawn without replacement, hold one of the c right ones."""
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right ones in {n} samples")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority(answers):
    """The most frequent answer that is not None, the first to appear among equals, or None."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def mean_interval(values):
    """The mean of `values` and half the width of its 95% interval (normal approximation).

    NaN takes no part. ([], or nothing but NaN) -> NaN, NaN"""
    x = torch.tensor(values, dtype=torch.float64)
    x = x[~x.isnan()]
    if len(x) < 2:
        return float(x.mean()), 0.0 if len(x) else math.nan
    return float(x.mean()), 1.96 * float(x.std()) / math.sqrt(len(x))


def judge_all(judge, problems, rollout):
    """Judges a rollout of as many responses to each problem -> [the judge's dict of a response].

    SystemExit that names a response whose accuracy is infinite, or too large to train on."""
    ids = rollout.response_ids.tolist()
    n = len(ids) // len(problems)
    asked = world.share([problems[i // n] for i in range(len(ids))])
    responses = world.share([row[:T] for row, T in zip(ids, rollout.lengths.tolist(), strict=True)])
    workers = getattr(judge, "workers", 1)  # a function has none
    with ThreadPoolExecutor(workers) as pool:
        judge_each = pool.map if workers > 1 else map
        bar = {"total": len(asked), "desc": "judge", "delay": 2, "leave": False, "disable": None}
        judged = world.gather(list(tqdm(judge_each(judge, asked, responses), **bar)))
    for facts in judged:
        for name, value in facts.items():
            if name.startswith(("accuracy", "reward_")) and abs(value) > 1e12:
                raise SystemExit(f"a reward of {value} for the response {facts['text']!r}")
    return judged


@torch.no_grad()
def sample_and_judge(model, tokenizer, judge, problems, k, max_new_tokens, temperature, seed):
    """k responses to each problem, as the judge's dicts: [[dict]], one list a problem."""
    groups = []
    batch = max(1, 512 // k)
    for i in tqdm(range(0, len(problems), batch), desc="evaluate", leave=False, disable=None):
        part = problems[i : i + batch]
        prompts = [tokenizer.prompt(problem) for problem in part]
        rollout = sample(model, prompts, k, max_new_tokens, temperature, tokenizer.eos_ids, seed)
        judged = judge_all(judge, part, rollout)
        groups += [judged[j : j + k] for j in range(0, len(judged), k)]
    return groups


def vote(group):
    """Accuracy of the most frequent answer of a group; 0 where there is no answer."""
    answers = [extract_answer(response["text"]) for response in group]
    winner = majority(answers)
    return 0.0 if winner is None else group[answers.index(winner)]["accuracy"]


def means(groups, name):
    """The mean of a column over each group."""
    return [sum(facts.get(name, math.nan) for facts in group) / len(group) for group in groups]


def evaluate(model, tokenizer, judge, problems, k=16, max_new_tokens=320, temperature=1.0, seed=0):
    """-> ({metric: mean over problems, metric_ci: half its 95% interval}, [[judged response]]).

    Runs in the caller's precision. accuracy: the mean over the samples. If one is neither right (1)
    nor wrong (0), pass@1, pass@k and cons@k are NaN."""
    settings = (max_new_tokens, temperature, seed)
    groups = sample_and_judge(model, tokenizer, judge, problems, k, *settings)
    greedy = sample_and_judge(model, tokenizer, judge, problems, 1, max_new_tokens, 0.0, seed)
    judged = [[response for response in group if not response["unjudged"]] for group in groups]
    judged = [group for group in judged if group]
    is_graded = any(response["accuracy"] not in (0, 1) for group in judged for response in group)
    ungraded = [] if is_graded else judged
    counts = [(len(group), sum(r["accuracy"] == 1 for r in group)) for group in ungraded]
    per_problem = {
        "accuracy": means(judged, "accuracy"),
        "pass@1": means(ungraded, "accuracy"),
        f"pass@{k}": [pass_at_k(n, right, n) for n, right in counts],
        f"cons@{k}": [vote(group) for group in ungraded],
        "greedy": means(greedy, "accuracy"),
    }
    columns = {name for group in groups for response in group for name in response}
    for name in sorted(columns - {"text", "accuracy"}):
        per_problem[name] = means(groups, name)
    metrics = {}
    for name, values in per_problem.items():
        metrics[name], metrics[name + "_ci"] = mean_interval(values)
    return metrics, groups


def metric_names(metrics):
    """The metrics to show. pass@1 and accuracy are the same number unless the reward is graded."""
    hidden = ("pass@", "cons@") if math.isnan(metrics["pass@1"]) else ("accuracy",)
    return [name for name in metrics if not name.endswith("_ci") and not name.startswith(hidden)]


def summary(metrics):
    """One line about one held-out set."""
    chosen = ("accuracy", "pass@", "cons@", "greedy", "length", "reward_")
    names = [name for name in metric_names(metrics) if name.startswith(chosen)] + ["reflection"]
    return "  ".join(f"{name} {metrics[name]:.{DIGITS.get(name, 3)}f}" for name in names)


def table(columns):
    """Lines of a table: {column: metrics of evaluate()} side by side, values with intervals."""
    names = dict.fromkeys(name for metrics in columns.values() for name in metric_names(metrics))
    lines = [" " * 12 + "".join(f"{column:>18}" for column in columns)]
    for name in names:
        line = f"{name:12}"
        for metrics in columns.values():
            digits = DIGITS.get(name, 3)
            cell = f"{metrics[name]:.{digits}f} ± {metrics[name + '_ci']:.{digits}f}"
            line += f"{cell:>18}"
        lines.append(line)
    return "\n".join(lines)


def print_before_after(before, after, step):
    """Tables of the held-out sets before and after training, and the first responses to one."""
    for name, metrics in after["metrics"].items():
        columns = {f"step {step}": metrics}
        if name in before["metrics"]:
            columns = {"before": before["metrics"][name]} | columns
        print(f"\nheld-out {name}, mean ± 95% interval")
        print(table(columns))
    for (prompt, old), (_, new) in zip(before["samples"], after["samples"], strict=True):
        print(f"\n{'-' * 40}\n{prompt}\n--- before\n{old}\n--- after\n{new}")


def main(argv=None):
    from data import mix

    with one_line_errors():
        config = fill(Config, parse(argv, __doc__, Config))
        task = Task([], mix.load_held_out(config.task))
        model, tokenizer, judge = load_for_sampling(config, task)
    settings = (config.k, config.max_new_tokens, config.temperature, config.seed)
    columns = {}
    for name, problems in task.held_out.items():
        problems = problems[: config.problems or None]
        print(f"{name}: {len(problems)} of {len(task.held_out[name])} problems")
        with autocast(config):
            columns[name], _ = evaluate(model, tokenizer, judge, problems, *settings)
    print(table(columns))


if __name__ == "__main__":
    main()
