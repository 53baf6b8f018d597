"""Kills a run at random moments, some of them inside a save, and goes on with it each time. Nothing
may differ from the run that was left alone: weights, metrics, samples, groups, every step once.

    python bench/crash.py --out out/crash                      2,000 tiny steps and 20 kills of each

It also says how much memory and how many open files the run that was left alone had after a fifth
of its steps, and at its end. Exit status 1 if anything differs.
"""

import argparse
import csv
import filecmp
import os
import random
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FLAGS = "--prompts_per_step 2 --group_size 2 --max_new_tokens 20 --eval_every 0 --save_every 3"
FILES = ("samples.txt", "groups.jsonl", "model/model.safetensors")


def begin(out, algo, steps):
    command = [sys.executable, "train.py", "--algo", algo, "--steps", str(steps), "--out", out]
    command += ["--resume"] if os.path.exists(f"{out}/state.pt") else FLAGS.split()
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def rows_of(out):
    """What metrics.csv says, but for the clock."""
    with open(f"{out}/metrics.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    return [{k: v for k, v in row.items() if k and "second" not in k} for row in rows]


def steps_of(out):
    """How many steps a run has made so far."""
    if not os.path.exists(f"{out}/metrics.csv"):
        return 0
    with open(f"{out}/metrics.csv", "rb") as f:
        return max(0, f.read().count(b"\n") - 1)


def wait_for(run, ready, seconds=0.01):
    """-> False if the run ends before it is so."""
    while not ready():
        if run.poll() is not None:
            return False
        time.sleep(seconds)
    return True


def usage(pid):
    """MB of memory, open files."""
    with open(f"/proc/{pid}/statm") as f:
        pages = int(f.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(f"/proc/{pid}/fd"))


def leave_alone(out, algo, steps):
    run = begin(out, algo, steps)
    for share in (0.2, 0.98):
        wait_for(run, lambda share=share: steps_of(out) >= share * steps)
        memory, files = usage(run.pid)
        print(f"{algo}, step {steps_of(out)}: {memory:.0f} MB, {files} open files", flush=True)
    run.wait()


def kill_often(out, algo, steps, kills, rng):
    """-> how many of the kills were inside a save."""
    inside = 0
    for i, step in enumerate(sorted(rng.sample(range(1, steps), kills))):
        run = begin(out, algo, steps)
        if not wait_for(run, lambda step=step: steps_of(out) >= step):
            break
        if i % 3 == 0:
            wait_for(run, lambda: os.path.exists(f"{out}/state.pt.tmp"), 0.0005)
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0, 0.3))
        run.send_signal(signal.SIGKILL)
        run.wait()
        inside += os.path.exists(f"{out}/state.pt.tmp")
    begin(out, algo, steps).wait()
    return inside


def differences(whole, cut):
    """Names of what the two runs differ in."""
    names = [name for name in FILES if not filecmp.cmp(f"{whole}/{name}", f"{cut}/{name}", False)]
    a, b = rows_of(whole), rows_of(cut)
    if a != b or [row["step"] for row in b] != [str(i + 1) for i in range(len(b))]:
        names.append("metrics.csv")
    return names + [name for name in os.listdir(cut) if name.endswith(".tmp")]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--algo", nargs="+", default=["grpo", "ppo"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    args = parser.parse_args(argv)
    wrong = []
    for algo in args.algo:
        whole, cut = f"{args.out}/{algo}-whole", f"{args.out}/{algo}-cut"
        leave_alone(whole, algo, args.steps)
        rng = random.Random(0)
        inside = kill_often(cut, algo, args.steps, args.kills, rng)
        names = differences(whole, cut)
        wrong += names
        print(f"{algo}: {args.kills} kills, {inside} inside a save; differs: {names or 'nothing'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
