"""The stages of runs/r1.sh and runs/distill.sh as one Markdown table: the mean over the folders, one a seed (lowest-highest).

    python bench/stages.py out/r1 [out/r1-1 ...]

A stage whose model has not been measured yet is measured first: held-out problems of four numbers and held-out requests of the
general task, a row each in the folder's stages.csv. minutes: of training, without what was judged in between. A second table: what
the reward model and the rule say while 4b-farmed goes on (the five steps before; held-out requests).
"""
import argparse
import csv
import glob
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from checkpoint import Log  # noqa: E402
from data import load_task  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from evaluate import evaluate  # noqa: E402
from model import GPT  # noqa: E402

COLUMNS = (("pass@1", "4 numbers", "pass@1"), ("cons", "4 numbers", "cons@"), ("length", "4 numbers", "length"),
           ("format", "4 numbers", "format"), ("language", "4 numbers", "language"), ("reflection", "4 numbers", "reflection"),
           ("preference", "general", "pass@1"))


def rows_of(path):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return list(csv.DictReader(f))


def measure(folder, sets, args):
    """Appends to stages.csv what is not in it, in the order in which the stages were finished."""
    path = f"{folder}/stages.csv"
    known = {row["stage"] for row in rows_of(path)}
    stages = [os.path.dirname(done) for done in sorted(glob.glob(f"{folder}/*/done"), key=os.path.getmtime)]
    for name, model in [*([("base", f"{ROOT}/data/base")] if glob.glob(f"{folder}/zero/done") else []),
                        *((os.path.basename(s), f"{s}/model" if os.path.exists(f"{s}/model") else s) for s in stages)]:
        if name in known:
            continue
        policy, tokenizer = GPT.load(model), Tokenizer.load(model)
        log = Log(path, os.path.getsize(path) if os.path.exists(path) else 0)
        for which, problems in sets:
            metrics, _ = evaluate(policy, tokenizer, problems[:args.problems], args.k, args.max_new_tokens)
            log.row({"stage": name, "set": which} | metrics)


def cell(values, digits):
    if not values:
        return ""
    spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if min(values) < max(values) else ""
    return f"{sum(values) / len(values):.{digits}f}" + spread


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--problems", type=int, default=96)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=320)
    args = parser.parse_args()
    found, clocks, sets = {}, {}, list(load_task("pairs+general")[1].items())[:2]
    for folder in args.folders:
        measure(folder, sets, args)
        rows = rows_of(f"{folder}/stages.csv")
        for row in rows:
            found.setdefault(row["stage"], {}).setdefault(row["set"], []).append(row)
        for stage in {row["stage"] for row in rows}:
            metrics = rows_of(f"{folder}/{stage}/metrics.csv")
            seconds = [float(row["seconds"]) for row in metrics]
            spent = 0 if not metrics else seconds[-1] if "nll" in metrics[0] else sum(seconds)        # of SFT: so far
            clocks.setdefault(stage, []).append((len(metrics), spent / 60))
    print("| stage | " + " | ".join(name for name, _, _ in COLUMNS) + " | steps | minutes |\n|" + "---|" * (len(COLUMNS) + 3))
    for stage, sets in found.items():
        cells = []
        for name, which, metric in COLUMNS:
            values = [float(value) for row in sets.get(which, []) for key, value in row.items() if value and (
                key == metric or metric == "cons@" and key.startswith(metric) and not key.endswith("_ci"))]
            cells.append(cell(values, 1 if name == "length" else 3))
        steps, minutes = zip(*clocks[stage])
        print(f"| {stage} | " + " | ".join(cells) + f" | {steps[0] or ''} | {sum(minutes) / len(minutes):.1f} |")
    if "4b-farmed" in found:
        farmed(args.folders)


def farmed(folders):
    paid, real = {}, {}
    for folder in folders:
        trained = [float(row["accuracy"]) for row in rows_of(f"{folder}/4b-farmed/metrics.csv")]
        for row in rows_of(f"{folder}/4b-farmed/eval.csv"):
            step = int(row["step"])
            if row["set"] == "general":
                last = trained[max(0, step - 5):step or 1]
                paid.setdefault(step, []).append(sum(last) / len(last))
                real.setdefault(step, []).append(float(row["pass@1"]))
    print("\n| step | the reward model | the rule |\n|---|---|---|")
    for step in sorted(paid):
        print(f"| {step} | {cell(paid[step], 3)} | {cell(real[step], 3)} |")


if __name__ == "__main__":
    main()
