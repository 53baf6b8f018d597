"""The panels of plot.py for the stages of a pipeline, one after the other.

    python bench/journey.py out/r1/{0-zero,1-cold-start,2-reasoning} --out journey.png
    python bench/journey.py results/r1 --stages 0-zero 1-cold-start --out journey.png

Each stage is as wide as any other.
"""

import argparse
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import plot  # noqa: E402
from plumbing.flags import one_line_errors  # noqa: E402


def place(groups):
    """The steps of the first stage become 0 to 1, those of the second 1 to 2, and so on."""
    for i, runs in enumerate(groups.values()):
        last = int(runs[0]["metrics"][-1]["step"])
        for files in runs:
            for row in files["metrics"] + files["eval"]:
                if row.get("step"):
                    row["step"] = str(i + int(row["step"]) / last)


def draw(folders, stages=None):
    groups = plot.read_runs(folders)
    groups = {name: groups[name] for name in stages or groups}
    place(groups)
    figure = plot.draw(groups)
    for axis in figure.axes:
        axis.set_xlabel("")
        axis.set_xticks(range(len(groups)), groups, fontsize=7, ha="left", rotation=-20)
    return figure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="folders of runs, in their order")
    parser.add_argument("--stages", nargs="*", help="of a study's runs those to draw")
    parser.add_argument("--out", required=True, help="the picture, a .png file")
    args = parser.parse_args()
    with one_line_errors():
        plot.save(draw(args.folders, args.stages), args.out)


if __name__ == "__main__":
    main()
