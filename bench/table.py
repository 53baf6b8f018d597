"""Results of several runs as one Markdown table: the base, and each run at its last step, as the mean over its seeds
(lowest-highest).

    python bench/table.py results/r1_zero [HELD-OUT SET]
"""
import csv
import os
import re
import sys

COLUMNS = ("pass@1", "cons@16", "pass@16", "greedy", "length", "reflection", "format", "language", "truncated")


def read(path):
    with open(path) as f:
        return list(csv.DictReader(f))


def cell(values, digits):
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if min(values) == max(values) else f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main(folder, which="4 numbers"):
    runs = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.exists(os.path.join(path, "eval.csv")):
            rows = [r for r in read(os.path.join(path, "eval.csv")) if r["set"] == which]
            rows.sort(key=lambda r: int(r["step"]))
            seconds = sum(float(r["seconds"]) for r in read(os.path.join(path, "metrics.csv")))
            if rows and rows[0]["step"] != rows[-1]["step"]:                     # it has come to its end
                runs.setdefault(re.sub(r"-\d+$", "", name), []).append((rows, seconds))
    print(f"| {which} | step | " + " | ".join(COLUMNS) + " | seconds of RL |\n|" + "---|" * (len(COLUMNS) + 3))
    first = next(iter(runs.values()))
    for name, members in [("base", first), *runs.items()]:
        picked = [rows[0] if name == "base" else rows[-1] for rows, _ in members]
        cells = [cell([float(r[c]) for r in picked], 1 if c == "length" else 3) for c in COLUMNS]
        if name == "base":                        # the same samples whatever the seed of RL
            cells = [c.split(" ")[0] for c in cells]
        clock = "" if name == "base" else cell([s for _, s in members], 0)
        print(f"| {name} | {picked[0]['step']} | " + " | ".join(cells) + f" | {clock} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
