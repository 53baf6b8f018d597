"""The tables of the studies, in Markdown, from a study folder or from run folders.

    python bench/table.py final results/r1_zero --set "5 numbers"    the base, each run at its end
    python bench/table.py compare results/compare                    after equally many responses
    python bench/table.py staleness results/staleness                algorithms by lag
    python bench/table.py stages results/r1                          stages of r1.sh and distill.sh
    python bench/table.py reward_hacking results/r1                  reward model against rule

Cells are the mean over the seeds (lowest-highest). A run folder is named NAME-SEED; a stage of
runs/r1.sh is named after the stage, and the folder around it may end in -SEED.
"""

import argparse
import csv
import math
import os
import re
import statistics
from collections import defaultdict

MAIN_SET = "4 numbers"
RESPONSES = 40 * 256  # compare: every run is judged after at most so many sampled responses
LEVEL = 0.8  # compare: steps and seconds until pass@1 crosses this level
FILES = ("metrics.csv", "eval.csv", "held_out.csv")


def run_and_seed(folder):
    """out/grpo-2 -> ("grpo", "2");  out/r1-1/3-sft -> ("3-sft", "1");  out/r1/3-sft -> (.., "0")"""
    parent, name = os.path.split(os.path.normpath(folder))
    own = re.fullmatch(r"(.+)-(\d+)", name)
    if own:
        return own[1], own[2]
    seed = re.search(r"-(\d+)$", parent)
    return name, seed[1] if seed else "0"


def read_rows(folders, file):
    """The rows of a CSV file of all folders, {column: text}, with run and seed in front."""
    rows = []
    for folder in folders:
        path = os.path.join(folder, file)
        if not os.path.exists(path):
            continue
        run, seed = run_and_seed(folder)
        with open(path, encoding="utf-8", newline="") as f:
            for row in csv.DictReader(f):
                rows.append({"run": run, "seed": seed} | row)
    return rows


def write_csv(path, rows):
    """Rows with different columns: all columns; what is missing is empty."""
    columns = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_runs(folders):
    """{name of a run: [{file: its rows}, one a seed]}"""
    runs = defaultdict(lambda: defaultdict(lambda: {file: [] for file in FILES}))
    for file in FILES:
        for row in read_rows(folders, file):
            runs[row["run"]][row["seed"]][file].append(row)
    return {name: list(seeds.values()) for name, seeds in runs.items()}


def cell(values, digits):
    """[0.5, 0.75] -> "0.625 (0.500-0.750)"; of four or more with their standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    lowest, highest = min(values), max(values)
    if lowest == highest:
        return mean
    if len(values) >= 4:
        mean += f" ± {statistics.stdev(values):.{digits}f}"
    return f"{mean} ({lowest:.{digits}f}-{highest:.{digits}f})"


def print_table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def evaluations(run, held_out_set):
    """The rows of eval.csv for one held-out set, by step."""
    rows = [row for row in run["eval.csv"] if row["set"] == held_out_set]
    return sorted(rows, key=lambda row: int(row["step"]))


def of_steps(run, column):
    """The numbers of a column of metrics.csv; a step without a trained token has none."""
    values = [float(row[column]) for row in run["metrics.csv"]]
    return [value for value in values if not math.isnan(value)]


def seconds_of(run):
    return sum(float(row["seconds"]) for row in run["metrics.csv"])


def final(runs, held_out_set):
    """The base, which is what the seeds of the first run began with, and each run at its end."""
    rows = [row for seeds in runs.values() for run in seeds for row in run["eval.csv"]]
    votes = sorted({name for row in rows for name in row if re.fullmatch(r"cons@\d+", name)})
    columns = ["pass@1", *votes, *[name.replace("cons", "pass") for name in votes]]
    columns += "greedy length reflection format language truncated".split()

    def line(name, chosen, seconds=""):
        values = {column: [float(row[column]) for row in chosen] for column in columns}
        cells = [cell(values[column], 1 if column == "length" else 3) for column in columns]
        return [name, chosen[0]["step"], *cells, seconds]

    lines = []
    for name, seeds in runs.items():
        evaluated = [evaluations(run, held_out_set) for run in seeds]
        finished = [i for i, rounds in enumerate(evaluated) if len(rounds) > 1]
        if not finished:
            continue
        if not lines:
            lines.append(line("base", [evaluated[i][0] for i in finished]))
        seconds = cell([seconds_of(seeds[i]) for i in finished], 0)
        lines.append(line(name, [evaluated[i][-1] for i in finished], seconds))
    print_table([held_out_set, "step", *columns, "seconds of RL"], lines)


def crossing(points):
    """[(pass@1, steps, seconds)] -> (steps, seconds) where the line through them crosses LEVEL."""
    for before, after in zip(points, points[1:], strict=False):
        if before[0] < LEVEL <= after[0]:
            part = (LEVEL - before[0]) / (after[0] - before[0])
            steps = before[1] + part * (after[1] - before[1])
            seconds = before[2] + part * (after[2] - before[2])
            return steps, seconds
    return None, None


def summary(run):
    """A run at its last evaluation within RESPONSES -> {column: number or None}; None if it is
    not finished."""
    rounds = evaluations(run, MAIN_SET)
    if not rounds or int(rounds[-1]["step"]) < 40:
        return None
    responses = {0: 0}
    seconds = {0: 0.0}
    for row in run["metrics.csv"]:
        step = int(row["step"])
        responses[step] = responses[step - 1] + int(row["responses"])
        seconds[step] = seconds[step - 1] + float(row["seconds"])
    rounds = [row for row in rounds if responses[int(row["step"])] <= RESPONSES]
    points = [(float(row["pass@1"]), int(row["step"]), seconds[int(row["step"])]) for row in rounds]
    steps_to_level, seconds_to_level = crossing(points)
    last = rounds[-1]
    step = int(last["step"])
    kl = statistics.mean(float(row["kl"]) for row in run["metrics.csv"][step - 5 : step])
    names = ("pass@1", "pass@1_ci", "cons@16", "cons@16_ci", "length", "reflection")
    return {name: float(last[name]) for name in names} | {
        "steps to 80%": steps_to_level,
        "seconds to 80%": seconds_to_level,
        "seconds a step": seconds[len(run["metrics.csv"])] / len(run["metrics.csv"]),
        "KL": None if kl != kl else kl,
    }


def compare_cell(summaries, column):
    """Seconds are those of the fastest seed, which was disturbed least."""
    values = [s[column] for s in summaries if s[column] is not None]
    if not values:
        return "never" if "80%" in column else "-"
    if column == "seconds to 80%":
        return f"{min(values):.0f}"
    if column == "seconds a step":
        return f"{min(values):.1f}"
    digits = {"pass@1": 3, "cons@16": 3, "reflection": 3, "KL": 2}.get(column, 1)
    text = cell(values, digits)
    if "@" in column:
        text += f" ± {statistics.mean(s[column + '_ci'] for s in summaries):.3f}"
    if len(values) < len(summaries):
        text += f", {len(values)} of {len(summaries)} seeds"
    return text


def compare(runs):
    """Every run after the same number of sampled responses; ± is the half width of the 95%
    interval over the problems; KL is the mean of the last five steps."""
    columns = ["pass@1", "cons@16", "steps to 80%", "seconds to 80%", "seconds a step"]
    columns += ["length", "reflection", "KL"]
    finished = {}
    for name, seeds in sorted(runs.items()):
        summaries = [summary(run) for run in seeds]
        finished[name] = [s for s in summaries if s is not None]
    finished = {name: summaries for name, summaries in finished.items() if summaries}

    def mean_accuracy(name):
        return statistics.mean(s["pass@1"] for s in finished[name])

    rows = []
    for name in sorted(finished, key=mean_accuracy, reverse=True):
        cells = [compare_cell(finished[name], column) for column in columns]
        rows.append([name, str(len(finished[name])), *cells])
    print_table([MAIN_SET, "seeds", *columns], rows)


def algorithm_and_lag(name):
    """grpo_lag16 -> ("grpo", 16)"""
    algorithm, _, lag = name.rpartition("_lag")
    return algorithm, int(lag)


def staleness(runs):
    """The policy that learns, on held-out problems; what its updates did, over all steps."""
    columns = ["pass@1 at the end", "pass@1 at its best", "truncated", "tokens clipped"]
    columns += ["mean abs log ratio", "largest gradient norm"]
    rows = []
    for name, seeds in sorted(runs.items(), key=lambda item: algorithm_and_lag(item[0])):
        finished = [run for run in seeds if len(evaluations(run, MAIN_SET)) > 1]
        values = defaultdict(list)
        for run in finished:
            rounds = evaluations(run, MAIN_SET)
            accuracy = [float(row["pass@1"]) for row in rounds]
            numbers = (
                accuracy[-1],
                max(accuracy),
                float(rounds[-1]["truncated"]),
                statistics.mean(of_steps(run, "clip_low") + of_steps(run, "clip_high")) * 2,
                statistics.mean(of_steps(run, "mean_abs_log_ratio")),
                max(of_steps(run, "grad_norm")),
            )
            for column, number in zip(columns, numbers, strict=True):
                values[column].append(number)
        if finished:
            algorithm, lag = algorithm_and_lag(name)
            cells = [cell(values[c], 2 if "norm" in c else 3) for c in columns]
            rows.append([algorithm, str(lag), str(len(finished)), *cells])
    print_table([MAIN_SET, "lag", "seeds", *columns], rows)


def stages(runs):
    """The stages as bench/measure.py measured them; minutes are of training alone."""
    columns = {  # title: (held-out set, metric, digits)
        "pass@1": (MAIN_SET, "pass@1", 3),
        "6 numbers": ("6 numbers", "pass@1", 3),
        "cons": (MAIN_SET, "cons@", 3),
        "length": (MAIN_SET, "length", 1),
        "format": (MAIN_SET, "format", 3),
        "language": (MAIN_SET, "language", 3),
        "reflection": (MAIN_SET, "reflection", 3),
        "preference": ("general", "accuracy", 3),
        "preference, greedy": ("general", "greedy", 3),
    }
    rows = []
    for name, seeds in sorted(runs.items(), key=lambda item: (item[0] != "base", item[0])):
        measured = [row for run in seeds for row in run["held_out.csv"]]
        if not measured:
            continue
        cells = []
        for held_out_set, metric, digits in columns.values():
            if metric == "cons@":  # the number of samples is in the name
                metric = next(c for c in measured[0] if re.fullmatch(r"cons@\d+", c))
            values = [float(row[metric]) for row in measured if row["set"] == held_out_set]
            cells.append(cell(values, digits) if values else "")
        trained = [run for run in seeds if run["metrics.csv"]]
        steps, minutes = "", ""
        if trained:
            steps = cell([len(run["metrics.csv"]) for run in trained], 0)
            minutes = f"{statistics.mean(seconds_of(run) for run in trained) / 60:.1f}"
        rows.append([name, *cells, steps, minutes])
    print_table(["stage", *columns, "steps", "minutes"], rows)


def reward_hacking(runs):
    """What a reward model and the rule say while a policy is trained on that reward model alone:
    the first one, the second; and what the rule says while it is the reward itself. A reward
    model's column is the mean of the five steps before, on training requests; the rule's is of
    held-out requests."""
    columns = {}
    for name in ("4c-first-model-only", "4c-second-model-only", "4d-rule-only"):
        if name not in runs:
            raise SystemExit(f"no run {name}: runs/r1.sh makes it")
        paid, judged = defaultdict(list), defaultdict(list)
        for run in runs[name]:
            accuracy = [float(row["accuracy"]) for row in run["metrics.csv"]]
            for row in evaluations(run, "general"):
                step = int(row["step"])
                recent = accuracy[max(0, step - 5) : step] if step > 0 else accuracy[:1]
                paid[step].append(statistics.mean(recent))
                judged[step].append(float(row["accuracy"]))
        if "model" in name:
            which = name.split("-")[1]
            columns[f"the {which} reward model"] = paid
            columns[f"the rule, with the {which}"] = judged
        else:
            columns["the rule, where it is the reward"] = judged
    steps = sorted(next(iter(columns.values())))
    rows = [[str(step), *(cell(column[step], 3) for column in columns.values())] for step in steps]
    print_table(["step", *columns], rows)


TABLES = {f.__name__: f for f in (final, compare, staleness, stages, reward_hacking)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("folders", nargs="+", help="a study folder, or run folders")
    parser.add_argument("--set", default=MAIN_SET, help="final: the held-out set")
    args = parser.parse_args()
    runs = read_runs(args.folders)
    if not runs:
        raise SystemExit(f"{' '.join(args.folders)}: no metrics.csv, eval.csv or held_out.csv")
    if args.table == "final":
        final(runs, args.set)
    else:
        TABLES[args.table](runs)


if __name__ == "__main__":
    main()
