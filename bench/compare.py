"""The runs of runs/compare.sh as one Markdown table, each cell the mean over the seeds (lowest-highest).

    python bench/compare.py results/compare

Every run is judged at its last evaluation within the same number of sampled responses (dapo samples more a step than the
others). Steps and seconds to 80%: where the line through the evaluations, every 5 steps, crosses pass@1 = 0.8; seconds
are those of training, of the fastest seed, which was disturbed least. ± is the half width of the 95% interval over problems.
"""
import os
import re
import sys

from table import cell, read

COLUMNS = ("pass@1", "cons@16", "steps to 80%", "seconds to 80%", "seconds a step", "length", "reflection", "KL")
BUDGET = 40 * 256                 # sampled responses


def summary(folder):
    """A finished run -> its cells, or None."""
    steps, evals = read(os.path.join(folder, "metrics.csv")), read(os.path.join(folder, "eval.csv"))
    if int(evals[-1]["step"]) < 40:
        return None
    seen, clock, at = 0, 0.0, {0: (0, 0.0)}
    for row in steps:
        seen, clock = seen + int(row["responses"]), clock + float(row["seconds"])
        at[int(row["step"])] = seen, clock
    evals = [e for e in evals if at[int(e["step"])][0] <= BUDGET]
    last, points = evals[-1], [(float(e["pass@1"]), int(e["step"]), at[int(e["step"])][1]) for e in evals]
    i = next((i for i, (right, *_) in enumerate(points) if right >= 0.8), None)
    between = i and (0.8 - points[i - 1][0]) / (points[i][0] - points[i - 1][0])
    crossed = [a + between * (b - a) for a, b in zip(points[i - 1], points[i])] if i else [None] * 3
    kl = [float(r["kl"]) for r in steps[int(last["step"]) - 5:int(last["step"])]]
    return {"pass@1": float(last["pass@1"]), "pass@1_ci": float(last["pass@1_ci"]), "cons@16": float(last["cons@16"]),
            "cons@16_ci": float(last["cons@16_ci"]), "steps to 80%": crossed[1], "seconds to 80%": crossed[2],
            "seconds a step": clock / len(steps), "length": float(last["length"]), "reflection": float(last["reflection"]),
            "KL": sum(kl) / len(kl) if kl[0] == kl[0] else None, "step": int(last["step"])}


def main(folder):
    rows = {}
    for name in sorted(os.listdir(folder)):
        if os.path.exists(os.path.join(folder, name, "eval.csv")) and (found := summary(os.path.join(folder, name))):
            rows.setdefault(re.sub(r"-\d+$", "", name), []).append(found)
    print("| 4 numbers | seeds | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 2))
    for name, members in sorted(rows.items(), key=lambda item: -sum(m["pass@1"] for m in item[1]) / len(item[1])):
        cells = []
        for column in COLUMNS:
            values, digits = [m[column] for m in members if m[column] is not None], 3 if "@" in column or column == "reflection" else 1
            values = [min(values)] if values and "seconds" in column else values
            text = cell(values, 0 if column == "seconds to 80%" else 2 if column == "KL" else digits) if values else "never" if "to 80%" in column else "-"
            if f"{column}_ci" in members[0]:
                text += f" ± {sum(m[column + '_ci'] for m in members) / len(members):.3f}"
            if values and "seconds" not in column and len(values) < len(members):
                text += f", {len(values)} of {len(members)} seeds"
            cells.append(text)
        print(f"| {name} | {len(members)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
