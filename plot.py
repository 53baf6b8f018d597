"""Curves of runs -> curves.png, and report.html: curves, what was judged, groups of responses.

A folder is that of a run, or of a study: its metrics.csv and eval.csv hold several runs, named in
the columns run and seed. Run folders whose names differ only in the number at the end, the seed,
become one line (mean) and a band (range).

    python plot.py out/grpo-pairs-0                          writes curves.png and report.html there
    python plot.py results/r1_zero --out curves.png          the picture only
    python plot.py --journey out/r1/{0-zero,1-cold-start,2-reasoning} --out journey.png
                                                             one stage after the other
"""

import base64
import csv
import html
import io
import math
import os
import re
from pathlib import Path

from matplotlib.figure import Figure

from plumbing.files import write_file
from plumbing.flags import Parser, one_line_errors

# title, file, [(column, style)]; a column is the first that begins so
PANELS = [
    ("right on held-out problems", "eval", [("accuracy", "-"), ("cons@", "--"), ("greedy", ":")]),
    ("training reward", "metrics", [("reward", "-")]),
    ("response length, tokens", "metrics", [("length", "-")]),
    ("responses with a self-check", "metrics", [("reflection", "-")]),
    ("well formed", "metrics", [("format", "-")]),
    ("entropy (SFT: loss), nats per token", "metrics", [("entropy", "-"), ("nll", ":")]),
    ("KL to the reference, nats per token", "metrics", [("kl", "-")]),
    ("groups without a signal", "metrics", [("zero_groups", "-")]),
    ("thinking in the question's language", "metrics", [("language", "-")]),
]
COLUMNS = 3  # panels side by side


def read_text(path):
    """Empty where there is no file. ValueError that names it if it is no text."""
    file = Path(path)
    try:
        return file.read_text(encoding="utf-8") if file.exists() else ""
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_rows(path):
    """Rows of a CSV file, {column: text}. ValueError("path:line: reason")."""
    reader = csv.DictReader(read_text(path).splitlines())
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError("more or fewer cells than the header")
            for name, text in row.items():
                if text and name not in ("run", "seed", "set"):
                    kind = int if name == "step" else float
                    kind(text)
            rows.append(row)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}") from None
    return rows


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


def find_column(rows, name):
    """The first column of CSV rows that begins with `name`, or None."""
    header = list(rows[0]) if rows else []
    return next((column for column in header if column.startswith(name)), None)


def read_curve(rows, name):
    """{step: value} of a column; empty cells and NaN are left out."""
    column = find_column(rows, name)
    curve = {}
    for row in rows:
        step, value = row.get("step"), row.get(column)
        if step and value and value != "nan":
            curve[int(step)] = float(value)
    return curve


def draw_panel(axis, panel, groups, journey):
    title, file, columns = panel
    for i, (name, runs) in enumerate(groups.items()):
        for column, style in columns:
            curves = [read_curve(files[file], column) for files in runs]
            steps = sorted(set().union(*curves))
            if not steps:
                continue
            at_step = [[curve[step] for curve in curves if step in curve] for step in steps]
            mean = [sum(values) / len(values) for values in at_step]
            low = [min(values) for values in at_step]
            high = [max(values) for values in at_step]
            if journey:  # each stage is as wide as any other
                last = int(runs[0]["metrics"][-1]["step"])
                steps = [i + step / last for step in steps]
            label = None
            if len(groups) == 1 and len(columns) > 1:
                label = find_column(runs[0][file], column)
            elif style == "-":
                label = name
            axis.plot(steps, mean, style, color=f"C{i}", label=label)
            axis.fill_between(steps, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.3)
    if axis.dataLim.ymin >= 0:
        axis.set_ylim(bottom=0)
    if journey:
        axis.set_xticks(range(len(groups)), groups, fontsize=7, ha="left")
    else:
        axis.set_xlabel("step")


def draw(folders, out, journey=False):
    groups = read_runs(folders)
    lines = math.ceil(len(PANELS) / COLUMNS)
    figure = Figure(figsize=(13, 3 * lines), layout="constrained")
    for place, panel in enumerate(PANELS, 1):
        draw_panel(figure.add_subplot(lines, COLUMNS, place), panel, groups, journey)
    if figure.axes[0].lines:
        figure.axes[0].legend(fontsize=9)
    title = ", ".join(groups)
    seeds = max(len(runs) for runs in groups.values())
    if seeds > 1:
        title += f": mean and range of {seeds} seeds"
    figure.suptitle(title)
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    write_file(out, image.getvalue())
    print(f"wrote {out}")


PAGE = """<!doctype html><meta charset="utf-8"><title>pocket-r1</title>
<style>body {{font: 15px sans-serif; margin: 2em}} td {{padding-right: 1em}}
pre {{white-space: pre-wrap}}</style>
<img src="data:image/png;base64,{image}">{parts}"""


def html_row(cells):
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def report(folders, picture):
    """A page that needs no other file: curves, and of each folder eval.csv and samples.txt."""
    parts = []
    for folder in folders:
        parts.append(f"<h2>{html.escape(folder)}</h2><table>")
        rows = read_rows(f"{folder}/eval.csv")
        if rows:
            columns = [name for name in rows[0] if not name.endswith("_ci")]
            parts.append(html_row(columns))
            for row in rows:
                parts.append(html_row(row[name] for name in columns))
        parts.append("</table>")
        for group in re.split("(?m)^=== ", read_text(f"{folder}/samples.txt"))[1:]:
            step, _, text = html.escape(group).partition("\n")
            summary = f"<summary>{step}: a prompt and its group</summary>"
            parts.append(f"<details>{summary}<pre>{text}</pre></details>")
    image = base64.b64encode(Path(picture).read_bytes()).decode()
    return PAGE.format(image=image, parts="\n".join(parts))


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="runs", help="folders of runs or studies")
    parser.add_argument("--journey", action="store_true", help="draw the runs one after the other")
    parser.add_argument("--out", default="", help="the picture (default: in the first folder)")
    with one_line_errors():
        args = parser.parse_args(argv)
        picture = args.out or os.path.join(args.folders[0], "curves.png")
        if not picture.endswith(".png"):
            raise ValueError(f"--out {picture}: a name that ends in .png is needed")
        draw(args.folders, picture, args.journey)
        if not args.out:
            page = os.path.join(args.folders[0], "report.html")
            write_file(page, report(args.folders, picture).encode())
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
