"""Curves of runs -> curves.png, and a page with every number of a group -> report.html.

A folder is that of a run, or of a study: its metrics.csv and eval.csv hold several runs, named in
the columns run and seed. Run folders whose names differ only in the number at the end, the seed,
become one line (mean) and a band (range).

    python plot.py out/grpo-pairs-0                          writes both there
    python plot.py results/r1_zero --out curves.png          the curves only, elsewhere
"""

import csv
import math
import os
import re

import numpy as np
from matplotlib.figure import Figure

from page.report import write_page
from plumbing.files import replacing
from plumbing.flags import Parser, one_line_errors

# title, file, columns; a column is the first that begins so
PANELS = [
    ("right on held-out problems", "eval", ["accuracy", "cons@", "greedy"]),
    ("response length, tokens", "metrics", ["length"]),
    ("responses with a self-check", "metrics", ["reflection"]),
    ("training reward", "metrics", ["reward"]),
    ("entropy (SFT: loss), nats per token", "metrics", ["entropy", "nll"]),
    ("thinking in the question's language", "metrics", ["language"]),
]
STYLES = ("-", "--", ":")


def read_rows(path):
    """Rows of a CSV file, {column: text}; none where there is no file."""
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8", newline="") as f:
            return list(csv.DictReader(f, restkey=""))  # cells beyond the header have no column
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from None


def read_runs(folders):
    """{run's name without the seed: [{"metrics": rows, "eval": rows} of each seed]}.

    Of eval.csv the rows of the first held-out set."""
    runs = {}
    for folder in folders:
        if not read_rows(f"{folder}/metrics.csv"):
            raise ValueError(f"{folder} holds no metrics.csv, or an empty one")
        name = re.sub(r"-\d+$", "", os.path.basename(os.path.normpath(folder)))
        for file in ("metrics", "eval"):
            for row in read_rows(f"{folder}/{file}.csv"):
                seeds = runs.setdefault(row.get("run", name), {})
                files = seeds.setdefault((folder, row.get("seed")), {"metrics": [], "eval": []})
                rows = files[file]
                if not rows or row.get("set") == rows[0].get("set"):
                    rows.append(row)
    return {name: list(seeds.values()) for name, seeds in runs.items()}


def read_curve(rows, name):
    """{step: value} of the first column that begins so; empty cells and NaN are left out."""
    header = list(rows[0]) if rows else []
    column = next((column for column in header if column.startswith(name)), None)
    curve = {}
    for row in rows:
        step, value = row.get("step"), row.get(column)
        if step and value and value != "nan":
            curve[float(step)] = float(value)
    return curve


def draw_panel(axis, panel, groups):
    title, file, columns = panel
    for i, (name, runs) in enumerate(groups.items()):
        for column, style in zip(columns, STYLES, strict=False):
            curves = [read_curve(files[file], column) for files in runs]
            steps = sorted(set().union(*curves))
            if not steps:
                continue
            seeds = np.array([[curve.get(step, np.nan) for step in steps] for curve in curves])
            label = name if style == "-" else None
            if len(groups) == 1 and len(columns) > 1:
                label = column.replace("@", "@k")
            axis.plot(steps, np.nanmean(seeds, 0), style, color=f"C{i}", label=label)
            range_of_seeds = np.nanmin(seeds, 0), np.nanmax(seeds, 0)
            axis.fill_between(steps, *range_of_seeds, color=f"C{i}", alpha=0.2, linewidth=0)
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    if axis.dataLim.ymin >= 0:
        axis.set_ylim(bottom=0)
    axis.set_xlabel("step")


def draw(groups):
    """What read_runs returns -> a Figure."""
    lines = math.ceil(len(PANELS) / 3)
    figure = Figure(figsize=(12, 3.25 * lines), layout="constrained")
    for place, panel in enumerate(PANELS, 1):
        draw_panel(figure.add_subplot(lines, 3, place), panel, groups)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    seeds = max(len(runs) for runs in groups.values())
    title = ", ".join(groups)
    figure.suptitle(f"{title}: mean and range of {seeds} seeds" if seeds > 1 else title)
    return figure


def save(figure, out):
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    print(f"wrote {out}")


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="runs", help="folders of runs or studies")
    parser.add_argument("--out", default="", help="the picture (default: in the first folder)")
    with one_line_errors():
        args = parser.parse_args(argv)
        out = args.out or os.path.join(args.folders[0], "curves.png")
        if not out.endswith(".png"):
            raise ValueError(f"--out {out}: a name that ends in .png is needed")
        save(draw(read_runs(args.folders)), out)
        if not args.out:
            write_page(args.folders, os.path.join(args.folders[0], "report.html"))


if __name__ == "__main__":
    main()
