"""What a run leaves on disk while it runs, so that it can be stopped at any moment and go on.

A checkpoint holds the logs, too. A run that goes on writes them anew, and so has every row once.
"""

import csv
import io
import json
import os
import platform
import subprocess
import zipfile

import torch

from plumbing import world
from plumbing.files import lock, replacing, write_file, writing

# A new run does not begin in a folder that holds one of these: they are of a run or of a model.
TAKEN = "state.pt metrics.csv eval.csv samples.txt config.json model model.safetensors".split()


class Log:
    """A file that grows, in a folder that is locked. A checkpoint holds all of its text.

    text: what it begins with; a run that goes on writes anew what the checkpoint holds."""

    def __init__(self, path, text=""):
        self.path = path
        if world.RANK == 0:
            folder = os.path.dirname(path)
            os.makedirs(folder, exist_ok=True)
            self.lock = lock(folder)
        self.begin(text)

    def begin(self, text):
        self.text = text
        if world.RANK == 0:
            write_file(self.path, text.encode())

    def write(self, text):
        self.text += text
        if world.RANK == 0:
            with writing(self.path), open(self.path, "ab") as f:
                f.write(text.encode())

    def write_row(self, values):
        """A row of CSV, {column: value}. What it has not is left empty, a new column is added."""
        header, _, rows = self.text.partition("\n")
        old = header.rstrip().split(",")
        columns = list(dict.fromkeys([*filter(None, old), *values]))
        if columns != old:
            self.begin(",".join(columns) + "\n" + rows)
        line = io.StringIO()
        cells = {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in values.items()}
        csv.DictWriter(line, columns, lineterminator="\n").writerow(cells)
        self.write(line.getvalue())


def save_state(path, state):
    """Writes a checkpoint, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as f:
        torch.save(state, f)


def read_state(out, resume, entries):
    """The checkpoint of a folder to go on from, on the CPU. None for a new run.

    entries: what a checkpoint of this program has. ValueError if a new run would overwrite an old
    one, or a model; if there is no checkpoint, it is damaged (torch alone does not notice a flipped
    byte), holds more than tensors and numbers, or is of another program."""
    if not resume:
        for name in TAKEN:
            path = os.path.join(out, name)
            if os.path.exists(path) and os.path.getsize(path) > 0:
                raise ValueError(f"{out} holds {name} already: --resume it, or name another --out")
        return None
    path = f"{out}/state.pt"
    try:
        with zipfile.ZipFile(path) as archive:
            altered = any(m.external_attr or m.compress_type for m in archive.infolist())
            if altered or archive.testzip() is not None:
                raise ValueError("a checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = [name for name in entries if name not in state]
        if missing:
            raise ValueError(f"it has no {missing[0]}, and may be of another program")
    except Exception as error:
        sentence, _, _ = " ".join(str(error).split()).partition(". ")
        raise ValueError(f"{path} is no checkpoint: {sentence}") from None
    return state


def restore(path, init, saved):
    """Puts back what a checkpoint holds: saved = [(network or optimizer, its state)].

    path, init: of the checkpoint and of the model, for the ValueError if they do not fit."""
    try:
        for part, state in saved:
            part.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not fit {init}: {reason}") from None


class RunFolder:
    """The logs of a run.

    texts: what `texts()` was at the checkpoint to go on from; {}: they begin anew. inputs: the
    checksums of what the run reads."""

    def __init__(self, path, texts, inputs):
        self.metrics = Log(f"{path}/metrics.csv", texts.get("metrics", ""))
        self.eval = Log(f"{path}/eval.csv", texts.get("eval", ""))
        self.samples = Log(f"{path}/samples.txt", texts.get("samples", ""))
        self.groups = Log(f"{path}/groups.jsonl", texts.get("groups", ""))
        self.held_out = Log(f"{path}/held_out.jsonl", texts.get("held_out", ""))
        self.inputs = inputs

    def texts(self):
        """{log: its text}, for the checkpoint."""
        return {name: log.text for name, log in vars(self).items() if name != "inputs"}


def describe(path, flags):
    """Writes run.json: the flags of the run, the versions and the commit that it runs on."""
    if world.RANK > 0:
        return
    about = {"flags": flags, "commit": commit(), "threads": torch.get_num_threads()}
    about |= {"python": platform.python_version(), "torch": torch.__version__}
    write_file(f"{path}/run.json", json.dumps(about, indent=1).encode())


def commit():
    """The commit of this code, with -dirty if it was changed since; "" where git does not know."""
    command = ["git", "describe", "--always", "--dirty"]
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
