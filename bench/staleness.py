"""The figure of the staleness study: a panel an algorithm, a line a lag; the range of the seeds.

    python bench/staleness.py results/staleness --out results/staleness/staleness.png
    python bench/staleness.py out/staleness/*-?/ --out staleness.png --column truncated

The column is one of eval.csv (the policy that learns, on held-out problems), else of metrics.csv.
A panel of GRPO with one choice changed has GRPO itself, at the same lag, as a thin line.
"""

import argparse
import math
import statistics
from collections import defaultdict

from matplotlib.figure import Figure
from table import MAIN_SET, algorithm_and_lag, evaluations, read_runs

COLUMNS = 4  # panels side by side
COLORS = ["tab:blue", "tab:orange", "tab:red", "tab:purple", "tab:brown"]  # of the lags


def curves(seeds, column):
    """{step: the values of the seeds}"""
    points = defaultdict(list)
    for run in seeds:
        rows = evaluations(run, MAIN_SET)
        if rows and column not in rows[0]:
            rows = run["metrics.csv"]
        for row in rows:
            points[int(row["step"])].append(float(row[column]))
    return dict(sorted(points.items()))


def draw_panel(axis, lines, column, colors):
    """lines: {label: the runs of the seeds}; a label that has no color is drawn thin."""
    for label, seeds in lines.items():
        points = curves(seeds, column)
        steps = list(points)
        mean = [statistics.mean(values) for values in points.values()]
        if label not in colors:
            axis.plot(steps, mean, color="gray", linewidth=0.8, linestyle="--", zorder=1)
            continue
        low = [min(values) for values in points.values()]
        high = [max(values) for values in points.values()]
        axis.plot(steps, mean, color=colors[label], linewidth=2)
        axis.fill_between(steps, low, high, color=colors[label], alpha=0.15, linewidth=0)
    axis.grid(alpha=0.3)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="a study folder, or run folders")
    parser.add_argument("--out", required=True)
    parser.add_argument("--column", default="pass@1")
    args = parser.parse_args()
    panels = defaultdict(dict)
    for name, seeds in read_runs(args.folders).items():
        algorithm, lag = algorithm_and_lag(name)
        panels[algorithm][lag] = seeds
    lags = sorted({lag for lines in panels.values() for lag in lines})
    colors = dict(zip(lags, COLORS, strict=False))
    names = sorted(panels, key=lambda name: ("-" in name, name))
    height = math.ceil((len(names) + 1) / COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.4 * height), layout="constrained")
    axes = figure.subplots(height, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        lines = dict(sorted(panels[name].items()))
        original, _, change = name.partition("-")
        if change and original in panels:
            for lag in list(lines):
                lines[f"{original}, {lag}"] = panels[original].get(lag, [])
        draw_panel(axis, lines, args.column, colors)
        axis.set_title(name.replace("-", ", ").replace("_", " "), fontsize=11)
    for axis in axes[len(names) :]:
        axis.axis("off")
    for place, axis in enumerate(axes[: len(names)]):
        axis.tick_params(labelbottom=place + COLUMNS >= len(names), labelleft=place % COLUMNS == 0)
        if place + COLUMNS >= len(names):
            axis.set_xlabel("step")
    key = axes[-1]  # in a cell of its own, beside the data
    for lag in lags:
        key.plot([], [], color=colors[lag], linewidth=2, label=f"lag {lag}")
    key.plot([], [], color="gray", linewidth=0.8, linestyle="--", label="grpo unchanged")
    key.legend(loc="center", frameon=False)
    seeds = max(len(seeds) for lines in panels.values() for seeds in lines.values())
    what = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"{args.column} on {MAIN_SET}: {what}", fontsize=11)
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
