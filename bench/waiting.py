"""Several processes wait for the longest response of all. How much does it cost?

    python bench/waiting.py out/r1-0/0-zero out/r1-1/0-zero

Lengths are those of the recorded groups of runs (groups.jsonl), from step 10 on. A token takes the
same time for any number of rows, so a process is busy until its own longest response ends.
"""

import argparse
import json
import random
import statistics
import sys

LINE = "| {} | {} | {:.0f} | {:.0f} | {:.0%} | {:.0%} |"


def read_lengths(folders):
    lengths = []
    for folder in folders:
        with open(f"{folder}/groups.jsonl") as f:
            for group in map(json.loads, f):
                if group["step"] >= 10:
                    lengths += [len(ids) for ids in group["ids"]]
    return lengths


def simulate(rng, lengths, processes, rows, rollouts=200):
    """-> mean longest response of a process, of all, over so many rollouts."""
    own, longest = [], []
    for _ in range(rollouts):
        of_each = [max(rng.choices(lengths, k=rows)) for _ in range(processes)]
        own.append(statistics.mean(of_each))
        longest.append(max(of_each))
    return statistics.mean(own), statistics.mean(longest)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--rows", type=int, default=64, help="responses of a process")
    args = parser.parse_args()
    lengths = read_lengths(args.folders)
    mean = statistics.mean(lengths)
    print(f"{len(lengths)} lengths, mean {mean:.0f}, longest {max(lengths)}", file=sys.stderr)
    print("| processes | responses | longest of one | of all | waits | rows at work |")
    print("|---|---|---|---|---|---|")
    rng = random.Random(0)
    for processes in (1, 2, 8, 32, 128, 512):
        own, longest = simulate(rng, lengths, processes, args.rows)
        cells = (own, longest, 1 - own / longest, mean / longest)
        print(LINE.format(processes, processes * args.rows, *cells))


if __name__ == "__main__":
    main()
