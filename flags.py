"""Command-line flags from commented dataclasses, and the one rule for bad input: one clear line, exit status 2."""
import argparse
import contextlib
import inspect
import os
import re
import sys
from dataclasses import MISSING, fields

import torch

from checkpoint import load
from variants import PRESETS

HARMLESS = ("resume", "dry_run", "out", "steps", "eval_every", "save_every", "tokens")      # may change on --resume


class Parser(argparse.ArgumentParser):
    def error(self, message):     # argparse would print the whole usage before it
        raise ValueError(f"{message} (see --help)")


def true_or_false(text):
    return bool(("false", "true").index(text.lower()))


def parse(argv, doc, *configs):
    """The flags that were given, as {field: value}. Every field of the dataclasses is a flag, its comment the help."""
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    seen = set()                  # a flag that two dataclasses share is described once
    for config in configs:
        shared = ", ".join(f"--{f.name}" for f in fields(config) if f.name in seen)
        comments = dict(re.findall(r"^ +(\w+):.*?# *(.*)$", "".join(map(inspect.getsource, config.__mro__[:-1])), re.M))
        group = parser.add_argument_group(f"{config.__module__}.{config.__name__}".replace("__main__.", ""),
                                           shared and f"of those above also {shared}; and")
        for f in fields(config):
            if f.name in seen:
                continue
            seen.add(f.name)
            default = "required" if f.default is MISSING else f"default: {f.default}"
            more = dict(nargs="?", const=True, type=true_or_false) if f.type is bool else dict(type=f.type)
            group.add_argument(f"--{f.name}", default=argparse.SUPPRESS, required=f.default is MISSING, **more,
                               metavar=f.type.__name__, help=f"{comments[f.name]} ({default})".replace("%", "%%"))
    spelled = lambda name: "--" + name[2:].replace("-", "_") if name.startswith("--") else name       # --dry-run too
    words = (str(word).partition("=") for word in (sys.argv[1:] if argv is None else argv))
    return vars(parser.parse_args([spelled(name) + equals + value for name, equals, value in words]))


def fill(config, values):
    """The dataclass `config` with those of `values` that are its fields."""
    return config(**{f.name: values[f.name] for f in fields(config) if f.name in values})


def check(config, at_least_1=(), at_least_2=(), **choices):
    """ValueError that names the flag when a field is too small, or is none of the choices given for it."""
    known = dict(device=("cpu", "cuda")[:1 + torch.cuda.is_available()], dtype=("float32", "bfloat16")) | choices
    for name, value in vars(config).items():
        least = 2 if name in at_least_2 else int(name in at_least_1)
        if isinstance(value, (int, float)) and not least <= value < 1e12:
            raise ValueError(f"--{name} {value}: {f'at least {least}' if least else '0 or more'} is needed, below 1e12")
        if name in known and value not in known[name]:
            raise ValueError(f"--{name} {value}: choose from {', '.join(known[name])}{' here' * (name == 'device')}")


def of_run(argv, doc, config, algorithms):
    """The command line of train.py -> ({flag: value} of the whole run, folder, checkpoint to resume from).

    config: its dataclass. algorithms: {name: module}, each with a Config of its own."""
    given = parse(argv, doc, config, *(algo.Config for algo in algorithms.values()))
    named = fill(config, given)
    out = named.out or f"out/{named.algo}-{os.path.basename(named.task).removesuffix('.jsonl')}-{named.seed}"
    algo, before, state = named.algo, {}, None
    if named.resume:
        if not os.path.exists(f"{out}/state.pt"):
            raise ValueError(f"{out} holds no state.pt to resume from")
        state = load(f"{out}/state.pt")
        if not isinstance(state, dict) or "before" not in state:
            raise ValueError(f"{out}/state.pt is not a checkpoint of this program")
        if state["threads"] != torch.get_num_threads():
            print(f"resumed with {torch.get_num_threads()} threads, not {state['threads']}: rounding will differ")
        before = state["flags"]
        algo = before["algo"]
    elif os.path.exists(f"{out}/state.pt"):
        raise ValueError(f"{out} holds a run already: go on with --resume, or name another folder with --out")
    for name, value in given.items():
        owners = [a for a, module in algorithms.items() if name in (f.name for f in fields(module.Config))]
        if owners and algo not in owners:
            raise ValueError(f"--{name} belongs to --algo {' or '.join(owners)}, and this run is --algo {algo}")
        if state and name not in HARMLESS and before.get(name) != value:
            raise ValueError(f"--{name} {value}: the run in {out} was started with {before.get(name)}")
    flags = before | given
    for name, value in PRESETS.get(flags.get("variant"), {}).items():
        if flags.setdefault(name, value) != value:
            raise ValueError(f"--{name} {flags[name]} contradicts --variant {flags['variant']}: {name} {value}")
    return flags, out, state


@contextlib.contextmanager
def one_line_errors():
    """Around everything that reads flags and files: ValueError and OSError end the program with one line, status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
