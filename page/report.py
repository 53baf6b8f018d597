"""report.html: one file with all of a run, to be opened in a browser. No network, no server.

The page is report.html of this folder, its program report.js; the run's files go in as they are.
"""

import json
import os
import pathlib

from plumbing.files import write_file

FILES = ("run.json", "metrics.csv", "eval.csv", "groups.jsonl", "held_out.jsonl")
MOST = 1_500_000  # characters of recorded groups; of more, every second one is left out


def read_files(folder):
    """{name of a file: its text}, "" where there is none."""
    texts = {"name": os.path.basename(os.path.normpath(folder))}
    for name in FILES:
        path = pathlib.Path(folder, name)
        texts[name] = path.read_text("utf-8") if path.exists() else ""
    groups = texts["groups.jsonl"].splitlines()
    while sum(len(group) for group in groups) > MOST and len(groups) > 1:
        groups = groups[::-2][::-1]  # the last one stays
    return texts | {"groups.jsonl": "\n".join(groups)}


def write_page(folders, out):
    """Run folders -> the page `out`, which begins with the first of them."""
    here = pathlib.Path(__file__).parent
    data = json.dumps([read_files(folder) for folder in folders]).replace("<", "\\u003c")
    page = (here / "report.html").read_text("utf-8")
    page = page.replace("SCRIPT", (here / "report.js").read_text("utf-8"), 1)
    write_file(out, page.replace("DATA", data, 1).encode())
    print(f"wrote {out}")
