"""Makes a study folder out of run folders.

    python bench/collect.py out/grpo-? out/ppo-? --out results/NAME       --add: to what is there

metrics.csv, eval.csv and held_out.csv hold the rows of all runs, with run and seed in front;
runs.csv has a line a run: seed, commit, torch, threads, and the flags that differ from the
defaults; samples.txt has the samples of each run's lowest seed. A run folder is named NAME-SEED;
of a stage of runs/r1.sh the seed is that of the folder around it (out/r1-SEED/3-sft).
"""

import argparse
import json
import os
import sys
from dataclasses import asdict

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import train  # noqa: E402
from bench.table import FILES, read_rows, run_and_seed, write_csv  # noqa: E402
from start.resume import parse_run  # noqa: E402


def defaults(algo):
    """{flag: value} of `python train.py --algo ALGO` and nothing else."""
    argv = ["--algo", algo, "--out", "no such folder"]
    config, hp, _, _ = parse_run(argv, "", train.Config)
    return asdict(config) | asdict(hp)


def changed_flags(flags):
    """{flag: value} -> those that differ from the defaults, as on the command line."""
    usual = defaults(flags["algo"])
    words = [f"--algo {flags['algo']}"]
    for name, value in flags.items():
        if name not in ("seed", "out", "resume") and value != usual.get(name):
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}" if v is True else f"--{name} {v}" for v in values]
    return " ".join(words)


def describe(folder):
    """A run folder -> its line of runs.csv."""
    run, seed = run_and_seed(folder)
    line = {"run": run, "seed": seed, "commit": "", "torch": "", "threads": "", "flags": ""}
    config = {}
    for name in ("run.json", "config.json"):  # the second: of runs made before there was the first
        if not config and os.path.exists(f"{folder}/{name}"):
            with open(f"{folder}/{name}") as f:
                config = json.load(f)
    if "flags" in config:
        line |= {name: config[name] for name in ("commit", "torch", "threads")}
        line["flags"] = changed_flags(config["flags"])
    elif os.path.exists(f"{folder}/command.txt"):  # SFT: config.json is that of its model
        with open(f"{folder}/command.txt") as f:
            line["flags"] = f.read().strip().removeprefix("python ")
    return line


def samples(folders):
    """samples.txt of each run's lowest seed; the headings name the run."""
    texts = []
    seen = set()
    for folder in sorted(folders, key=run_and_seed):
        run, seed = run_and_seed(folder)
        path = os.path.join(folder, "samples.txt")
        if run in seen or not os.path.exists(path):
            continue
        seen.add(run)
        with open(path, encoding="utf-8") as f:
            texts.append(f.read().replace("=== ", f"=== {run}-{seed} "))
    return "\n".join(texts)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--add", action="store_true", help="keep the other runs of --out")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    new = {run_and_seed(folder) for folder in args.runs}
    for file in (*FILES, "runs.csv"):
        old = read_rows([args.out], file) if args.add else []
        rows = [row for row in old if (row["run"], row["seed"]) not in new]
        if file == "runs.csv":
            rows += [describe(folder) for folder in args.runs]
        else:
            rows += read_rows(args.runs, file)
        if rows:
            write_csv(os.path.join(args.out, file), rows)
    text = "" if args.add else samples(args.runs)
    if text:
        with open(os.path.join(args.out, "samples.txt"), "w", encoding="utf-8") as f:
            f.write(text)
    print(f"wrote {args.out}: {len(args.runs)} runs")


if __name__ == "__main__":
    main()
