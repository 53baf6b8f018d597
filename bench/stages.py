"""The stages of runs/r1.sh and runs/distill.sh as one Markdown table: the mean over the folders, one a seed (lowest-highest).

    python bench/stages.py out/r1 [out/r1-1 ...] [--base data/base]

A stage that has not been measured is measured first, with held-out problems of four numbers and held-out requests of the general
task: held_out.csv in its folder. --base: a model that no stage has made, for a first row. minutes: of training, without what was
judged in between. A second table: what the reward model and the rule say while 4c-farmed goes on (the five steps before; held-out
requests), and what the rule says while it is the reward itself, in 4d-by-rule.
"""
import argparse
import glob
import os
import random
import statistics
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from checkpoint import Log  # noqa: E402
from data import general, load_task  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from evaluate import evaluate  # noqa: E402
from flags import one_line_errors  # noqa: E402
from model import GPT  # noqa: E402
from table import cell, read  # noqa: E402

COLUMNS = (("pass@1", "4 numbers", "pass@1"), ("cons", "4 numbers", "cons@"), ("length", "4 numbers", "length"),
           ("format", "4 numbers", "format"), ("language", "4 numbers", "language"), ("reflection", "4 numbers", "reflection"),
           ("preference", "general", "pass@1"), ("preference, greedy", "general", "greedy"))


def measure(stage, model, sets, args):
    """Writes held_out.csv of a stage, whole or not at all."""
    os.makedirs(stage, exist_ok=True)
    policy, tokenizer, log = GPT.load(model), Tokenizer.load(model), Log(f"{stage}/held_out.csv.tmp")
    for name in ("4 numbers", "general"):
        metrics, _ = evaluate(policy, tokenizer, sets[name][:args.problems], args.k, args.max_new_tokens)
        log.row({"set": name} | metrics)
    os.replace(f"{stage}/held_out.csv.tmp", f"{stage}/held_out.csv")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--base", default="")
    parser.add_argument("--problems", type=int, default=96)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=320)
    args = parser.parse_args()
    found, sets = {}, load_task("pairs+general")[1]
    with one_line_errors():
        for folder in args.folders:
            done = [os.path.dirname(path) for path in glob.glob(f"{folder}/*/done")]
            models = {stage: f"{stage}/model" if os.path.exists(f"{stage}/model") else stage for stage in done}
            models.pop(f"{folder}/reward-model", None)
            models |= {f"{folder}/base": args.base} if args.base else {}
            for stage, model in models.items():
                if not os.path.exists(f"{stage}/held_out.csv"):
                    measure(stage, model, sets, args)
            stages = map(os.path.dirname, glob.glob(f"{folder}/*/held_out.csv"))
            stages = sorted(stages, key=lambda path: (os.path.basename(path) != "base", path))
            if not stages:
                raise ValueError(f"{folder} holds no stage")
            for stage in stages:
                found.setdefault(os.path.basename(stage), []).append(stage)
    print("| stage | " + " | ".join(name for name, _, _ in COLUMNS) + " | steps | minutes |\n|" + "---|" * (len(COLUMNS) + 3))
    for name, stages in found.items():
        rows = [row for stage in stages for row in read(f"{stage}/held_out.csv")]
        cells = []
        for title, which, metric in COLUMNS:
            values = [float(value) for row in rows if row["set"] == which for key, value in row.items()
                      if key == metric or metric == "cons@" and key.startswith(metric) and not key.endswith("_ci")]
            cells.append(cell(values, 1 if title == "length" else 3))
        steps = [read(path) for stage in stages if os.path.exists(path := f"{stage}/metrics.csv")]       # not of the base
        minutes = sum(float(row["seconds"]) for some in steps for row in some) / 60 / len(stages)
        cells += [cell([len(some) for some in steps], 0), f"{minutes:.1f}"] if steps else ["", ""]
        print(f"| {name} | " + " | ".join(cells) + " |")
    rng = random.Random(0)
    mean = statistics.mean(general.preference(p, general.author(rng, p)) for p in sets["general"] for _ in range(1000))
    print(f"\npreference: {len(sets['general'])} requests; an author's answer has {mean:.3f}")
    if {"4c-farmed", "4d-by-rule"} <= set(found):
        farmed(found["4c-farmed"], found["4d-by-rule"])


def farmed(stages, by_rule):
    """Step by step: the reward of 4c, which is the reward model's; what the rule says of 4c and of 4d."""
    columns = {}
    for stage in stages + by_rule:
        trained = [float(row["accuracy"]) for row in read(f"{stage}/metrics.csv")]
        for row in read(f"{stage}/eval.csv"):
            if row["set"] == "general":
                step = int(row["step"])
                paid, judged, control = columns.setdefault(step, ([], [], []))
                (judged if stage in stages else control).append(float(row["pass@1"]))
                paid += [statistics.mean(trained[max(0, step - 5):step or 1])] * (stage in stages)
    print("\n| step | the reward model | the rule | the rule where it is the reward |\n|---|---|---|---|")
    for step, values in sorted(columns.items()):
        print(f"| {step} | " + " | ".join(cell(some, 3) for some in values) + " |")


if __name__ == "__main__":
    main()
