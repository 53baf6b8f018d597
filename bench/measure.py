"""Measures the finished stages of runs/r1.sh and runs/distill.sh: held_out.csv in each folder.

    python bench/measure.py out/r1 [--base data/base]
    python bench/table.py stages out/r1/*                prints what was measured

Held-out problems of four and six numbers, and held-out requests of the general task. A stage that
has been measured is not measured again. --base: a model that no stage has made; its numbers go to
FOLDER/base. For comparison the last line says how an author's answer to a request is judged.
"""

import argparse
import glob
import os
import random
import statistics
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bench.table import write_csv  # noqa: E402
from data import general, load_task  # noqa: E402
from data.tokenizer import Tokenizer  # noqa: E402
from evaluate import evaluate  # noqa: E402
from model import GPT  # noqa: E402
from plumbing.flags import one_line_errors  # noqa: E402
from rewards import Judge  # noqa: E402


def finished_stages(folder, base):
    """{folder of a stage: folder of its model}"""
    stages = {}
    for done in sorted(glob.glob(f"{folder}/*/done")):
        stage = os.path.dirname(done)
        if os.path.basename(stage).endswith("reward-model"):
            continue
        has_own = os.path.exists(f"{stage}/model")
        stages[stage] = f"{stage}/model" if has_own else stage
    if base:
        stages[f"{folder}/base"] = base
    if not stages:
        raise ValueError(f"{folder} holds no finished stage")
    return stages


def measure(stage, model_folder, task, args):
    """Writes held_out.csv of a stage, whole or not at all."""
    os.makedirs(stage, exist_ok=True)
    model = GPT.load(model_folder)
    tokenizer = Tokenizer.load(model_folder)
    judge = Judge(task.accuracy, tokenizer)
    rows = []
    for name in ("4 numbers", "6 numbers", "general"):
        problems = task.held_out[name][: args.problems]
        metrics, _ = evaluate(model, tokenizer, judge, problems, args.k, args.max_new_tokens)
        rows.append({"set": name} | metrics)
    write_csv(f"{stage}/held_out.csv.tmp", rows)
    os.replace(f"{stage}/held_out.csv.tmp", f"{stage}/held_out.csv")


def print_authors_preference(requests):
    rng = random.Random(0)
    values = []
    for request in requests:
        for _ in range(1000):
            values.append(general.verify(request, general.author(rng, request)))
    mean = statistics.mean(values)
    print(f"preference: {len(requests)} requests; an author's answer has {mean:.3f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--base", default="")
    parser.add_argument("--problems", type=int, default=96)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=320)
    args = parser.parse_args()
    task = load_task("pairs+general")
    with one_line_errors():
        for folder in args.folders:
            for stage, model in finished_stages(folder, args.base).items():
                if not os.path.exists(f"{stage}/held_out.csv"):
                    print(f"measuring {stage}", flush=True)
                    measure(stage, model, task, args)
    print_authors_preference(task.held_out["general"])


if __name__ == "__main__":
    main()
