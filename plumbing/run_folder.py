"""What a run leaves on disk while it runs, so that it can be stopped at any moment and go on.

A checkpoint holds how long each log was when it was written. A run that goes on cuts the logs back
to that length, and so writes every row once.
"""

import csv
import json
import os
import platform
import subprocess
import zipfile

import torch

from plumbing.checkpoint import replacing


class Log:
    """A file that can be cut back to where a checkpoint saw it.

    size: the bytes to keep; 0 begins anew. ValueError if the file is shorter than that."""

    def __init__(self, path, size=0):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # buffering=1: line by line
        self.file = open(path, "a+", buffering=1, encoding="utf-8", newline="")  # noqa: SIM115
        if self.file.tell() < size:
            raise ValueError(f"{path} is shorter than when the checkpoint was written")
        self.file.truncate(size)
        self.file.seek(0)
        header = next(csv.reader([self.file.readline()]))  # [] of a new file
        self.rows = csv.DictWriter(self.file, header)
        self.file.seek(size)

    def size(self):
        """Bytes written so far."""
        return self.file.tell()

    def write(self, text):
        self.file.write(text)

    def write_row(self, values):
        """A row of CSV, {column: value}. The first one makes the header.

        A column that a later row lacks is left empty. ValueError for one that the header lacks."""
        if not self.rows.fieldnames:
            self.rows.fieldnames = list(values)
            self.rows.writeheader()
        cells = {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in values.items()}
        self.rows.writerow(cells)


def save_state(path, state):
    """Writes a checkpoint, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(state | {"threads": torch.get_num_threads()}, temporary)


def read_state(out, resume, entry):
    """The checkpoint of a folder to go on from, on the CPU. None for a new run.

    entry: one that only checkpoints of this program have. ValueError if a new run would overwrite
    an old one; if there is no checkpoint, it is damaged (torch alone does not notice a flipped
    byte), holds more than tensors and numbers, or is of another program."""
    path = f"{out}/state.pt"
    if not resume:
        if os.path.exists(path):
            raise ValueError(f"{out} holds a run already: --resume it, or name another --out")
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            altered = any(m.external_attr or m.compress_type for m in archive.infolist())
            if altered or archive.testzip() is not None:
                raise ValueError("a checksum is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if entry not in state:
            raise ValueError("it is of another program")
    except Exception as error:
        sentence, _, _ = " ".join(str(error).split()).partition(". ")
        raise ValueError(f"{path} is no checkpoint: {sentence}") from None
    threads = state.get("threads")
    if threads != torch.get_num_threads():
        print(f"resumed with other threads than {threads}: rounding will differ")
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

    sizes: what `sizes()` was at the checkpoint to go on from; {}: they begin anew."""

    def __init__(self, path, sizes):
        self.metrics = Log(f"{path}/metrics.csv", sizes.get("metrics", 0))
        self.eval = Log(f"{path}/eval.csv", sizes.get("eval", 0))
        self.samples = Log(f"{path}/samples.txt", sizes.get("samples", 0))

    def sizes(self):
        """{log: bytes}, for the checkpoint."""
        return {name: log.size() for name, log in vars(self).items()}


def describe(path, flags):
    """Writes config.json: the flags of the run, the versions and the commit that it runs on."""
    about = {
        "flags": flags,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }
    with open(f"{path}/config.json", "w") as f:
        json.dump(about, f, indent=1)


def write_group(run, rollout, judged):
    """The first group of a rollout into samples.txt: the prompt, then responses with advantages."""
    prompt = rollout.prompt_ids[0, int(rollout.prompt_start[0]) :].tolist()
    text = f"=== step {rollout.step + 1}\n{run.tokenizer.decode(prompt)}\n"
    for i in range(run.hp.group_size):
        A = float(rollout.advantages[i, 0])
        text += f"--- reward {judged[i]['reward']:.2f}  advantage {A:+.2f}\n{judged[i]['text']}\n"
    run.folder.samples.write(text)


def commit():
    """The commit of this code, with -dirty if it was changed since; "" where git does not know."""
    command = ["git", "describe", "--always", "--dirty"]
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
