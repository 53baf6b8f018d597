"""Curves of one or several runs -> curves.png, and report.html, one page: curves, what was judged, whole groups.

Runs whose names differ only in the number at the end, the seed, become one line (mean) and a band (range).

    python plot.py out/grpo-pairs-0                             writes curves.png and report.html into that folder
    python plot.py results/r1_zero/grpo-? --out curves.png      the picture only
    python plot.py --journey out/r1/{0-zero,1-cold-start,2-reasoning} --out journey.png     one stage after the other
"""
import argparse
import base64
import csv
import html
import os
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from flags import Parser, one_line_errors

# title, file, [(column, style)]
PANELS = [
    ("accuracy on held-out problems", "eval.csv", [("pass@1", "-"), ("cons@16", "--"), ("greedy", ":")]),
    ("training reward", "metrics.csv", [("reward", "-")]),
    ("response length, tokens", "metrics.csv", [("length", "-")]),
    ("responses with a self-check", "metrics.csv", [("reflection", "-")]),
    ("well formed", "metrics.csv", [("format", "-")]),
    ("entropy (SFT: loss), nats per token", "metrics.csv", [("entropy", "-"), ("nll", ":")]),
    ("KL to the reference, nats per token", "metrics.csv", [("kl", "-")]),
    ("groups without a signal", "metrics.csv", [("zero_groups", "-")]),
    ("thinking in the question's language", "metrics.csv", [("language", "-")]),
]


def lines(path):
    """Of a text file; none where there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return f.read().split("\n")


def read(path, column):
    """(steps, values) of a CSV column; of eval.csv only the first held-out set. Empty when they are not there."""
    rows = [r for r in csv.DictReader(lines(path)) if r.get(column)]
    rows = [r for r in rows if r.get("set") == rows[0].get("set")]
    return [int(r["step"]) for r in rows], [float(r[column]) for r in rows]


def draw(runs, out, journey=False):
    groups = {}
    for run in runs:
        if not read(f"{run}/metrics.csv", "step")[0]:
            raise ValueError(f"{run} holds no metrics.csv, or an empty one")
        name = re.sub(r"-\d+$", "", os.path.basename(os.path.normpath(run)))              # without the seed
        groups.setdefault(name, []).append(run)
    figure, axes = plt.subplots(3, 3, figsize=(13, 9), layout="constrained")
    for axis, (title, file, columns) in zip(axes.flat, PANELS):
        for i, (name, members) in enumerate(groups.items()):
            for column, style in columns:
                curves = [read(os.path.join(run, file), column) for run in members]
                curves = [c for c in curves if c[0]]
                if not curves:
                    continue
                n = min(len(steps) for steps, _ in curves)
                steps, y = np.array(curves[0][0][:n]), np.array([values[:n] for _, values in curves])
                if journey:                        # each stage is as wide as any other
                    steps = i + steps / read(os.path.join(members[0], "metrics.csv"), "step")[0][-1]
                label = column if len(columns) > 1 == len(groups) else name if style == "-" else None
                axis.plot(steps, y.mean(0), style, color=f"C{i}", label=label)
                if len(curves) > 1:
                    axis.fill_between(steps, y.min(0), y.max(0), color=f"C{i}", alpha=0.2, linewidth=0)
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
        if journey:
            axis.set_xticks(range(len(groups)), groups, fontsize=7, ha="left")
        else:
            axis.set_xlabel("step")
    axes.flat[0].legend(fontsize=9)
    seeds = max(map(len, groups.values()))
    figure.suptitle(", ".join(groups) + (f": mean and range of {seeds} seeds" if seeds > 1 else ""))
    figure.savefig(out, dpi=110)
    print(f"wrote {out}")


PAGE = """<!doctype html><meta charset="utf-8"><title>pocket-r1</title>
<style>body {{font: 15px sans-serif; margin: 2em}} td {{padding-right: 1em}} pre {{white-space: pre-wrap}}</style>
<img src="data:image/png;base64,{image}">{runs}"""


def report(runs, picture):
    """A page that needs no other file: the curves, and of each run what was judged and the groups of samples.txt."""
    parts = []
    for run in runs:
        parts.append(f"<h2>{html.escape(run)}</h2><table>")
        judged = list(csv.DictReader(lines(f"{run}/eval.csv")))
        columns = [name for name in judged[0] if not name.endswith("_ci")] if judged else []
        for row in [dict(zip(columns, columns)), *judged]:
            parts.append("<tr>" + "".join(f"<td>{html.escape(row[name])}</td>" for name in columns) + "</tr>")
        parts.append("</table>")
        for group in "\n".join(lines(f"{run}/samples.txt")).split("=== ")[1:]:
            step, _, text = map(html.escape, group.partition("\n"))
            parts.append(f"<details><summary>{step}: a prompt and its group</summary><pre>{text}</pre></details>")
    with open(picture, "rb") as f:
        image = base64.b64encode(f.read()).decode()
    return PAGE.format(image=image, runs="\n".join(parts))


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--journey", action="store_true", help="the runs are stages: draw one after the other")
    parser.add_argument("--out", default="", help="the picture (default: curves.png in the first run's folder)")
    with one_line_errors():
        args = parser.parse_args(argv)
        picture = args.out or os.path.join(args.runs[0], "curves.png")
        draw(args.runs, picture, args.journey)
        if not args.out:
            page = os.path.join(args.runs[0], "report.html")
            with open(page, "w", encoding="utf-8") as f:
                f.write(report(args.runs, picture))
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
