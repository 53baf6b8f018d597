"""What a run leaves on disk while it runs, so that it can be stopped at any moment and go on exactly."""
import csv
import os
import subprocess
import zipfile
from dataclasses import asdict

import torch


class Log:
    """A file that can be cut back to where a checkpoint saw it; `row` writes CSV."""

    def __init__(self, path, keep=0):
        if keep and os.path.getsize(path) < keep:
            raise ValueError(f"{path} is shorter than when the checkpoint was written")
        self.file = open(path, "r+" if keep else "w", buffering=1, encoding="utf-8", newline="")       # line by line
        self.file.truncate(keep)
        self.file.seek(keep)

    def row(self, values):
        writer = csv.DictWriter(self.file, values)
        if self.file.tell() == 0:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})


def save(path, state):
    """Whole or not at all: a new file is written, flushed to disk and put in place of the old one."""
    with open(path + ".tmp", "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(path + ".tmp", path)


def load(path):
    """A checkpoint written by `save`. ValueError if it is damaged (torch alone does not notice a flipped byte), or
    holds more than tensors and numbers."""
    try:
        with zipfile.ZipFile(path) as z:
            if z.testzip() is not None or any(i.external_attr or i.compress_type for i in z.infolist()):
                raise ValueError("a checksum is wrong")
        return torch.load(path, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint: {' '.join(str(error).split()).partition('. ')[0]}") from None


def restore(path, init, saved):
    """Puts back what a checkpoint holds, [(network or optimizer, its state)]. ValueError if it is of another shape."""
    try:
        for part, state in saved:
            part.load_state_dict(state)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit {init}: {str(error).splitlines()[0]}") from None


def write(run, step):
    """All that `setup` needs to go on after `step`, and the policy as a checkpoint folder."""
    save(f"{run.config.out}/state.pt", {
        "flags": asdict(run.config) | asdict(run.hp), "threads": torch.get_num_threads(), "step": step,
        "nets": {name: net.state_dict() for name, net in vars(run.nets).items() if net is not None},
        "optimizer": run.optimizer.state_dict(), "before": run.before, "ends": [log.file.tell() for log in run.logs]})
    run.nets.policy.save(f"{run.config.out}/model")
    run.tokenizer.save(f"{run.config.out}/model")


def commit():
    """The commit that this code is of, with -dirty if it has changed since; "" where git does not know."""
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
