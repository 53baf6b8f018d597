"""The runs of runs/compare.sh as one Markdown table, each cell the mean over the seeds (lowest-highest).

    python runs/compare.py results/compare

Every run is judged at its last evaluation within the same number of sampled responses (dapo samples more a step than the
others); steps and seconds to 80% are those of the first evaluation with pass@1 of at least 0.8. ± is the half width of
the 95% interval over problems, of the mean of the seeds.
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
    last, reached = evals[-1], next((e for e in evals if float(e["pass@1"]) >= 0.8), None)
    step = int(reached["step"]) if reached else None
    kl = [float(r["kl"]) for r in steps[int(last["step"]) - 5:int(last["step"])]]
    return {"pass@1": float(last["pass@1"]), "pass@1_ci": float(last["pass@1_ci"]), "cons@16": float(last["cons@16"]),
            "cons@16_ci": float(last["cons@16_ci"]), "steps to 80%": step, "seconds to 80%": step and at[step][1],
            "seconds a step": clock / len(steps), "length": float(last["length"]), "reflection": float(last["reflection"]),
            "KL": sum(kl) / len(kl), "step": int(last["step"])}
