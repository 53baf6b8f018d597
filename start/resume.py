"""How a run starts, goes on from its checkpoint, and stops."""

import contextlib
import copy
import importlib
import importlib.util
import itertools
import os
import signal
from dataclasses import asdict

from plumbing import world
from plumbing.files import checksums, model_files
from plumbing.flags import fill, parse
from plumbing.run_folder import RunFolder, describe, read_state, restore, save_state
from start.compose import load_model

STATE = ("flags", "step", "nets", "optimizer", "before", "logs")

# flags that may differ when a run goes on
FREE = ("resume", "dry_run", "out", "steps", "eval_every", "save_every", "tokens_per_microbatch")


def find_algorithm(name):
    """The module of --algo NAME: NAME.py (grpo, ppo, yours), else variants.py for its table."""
    if name.isidentifier() and importlib.util.find_spec(name) is not None:
        module = importlib.import_module(name)
        if hasattr(module, "METRICS"):
            return module
    variants = importlib.import_module("variants")
    if name in variants.PRESETS:
        return variants
    names = ", ".join(["grpo", "ppo", *variants.PRESETS])
    raise ValueError(f"--algo {name}: choose from {names}, or a module that has what grpo.py has")


def parse_run(argv, doc, config_class):
    """The command line of train.py -> its Config, the algorithm's, its module, the checkpoint.

    config_class: train.py's. The checkpoint is None for a new run."""
    first = fill(config_class, parse(argv, doc, config_class, partly=True))
    out = first.out
    if not out:
        task = os.path.basename(first.task).removesuffix(".jsonl")
        out = f"out/{first.algo}-{task}-{first.seed}"
        if not first.resume:
            out = next_free(out)
    state = read_state(out, first.resume, STATE)
    before = state["flags"] if first.resume else {}
    name = before.get("algo", first.algo)
    algo = find_algorithm(name)
    given = parse(argv, doc, config_class, algo.Config)
    for flag, value in given.items():
        if first.resume and flag not in FREE and before.get(flag) != value:
            raise ValueError(f"--{flag} {value}: the run in {out} has {before.get(flag)}")
    # PRESETS of variants.py, and what they set of train.py's flags
    presets = getattr(algo, "PRESETS", {}).get(name, {})
    presets = presets | getattr(algo, "RUN_PRESETS", {}).get(name, {})
    flags = presets | before | given | {"out": out}
    hp = fill(algo.Config, flags)
    unread = algo.unread(hp) if hasattr(algo, "unread") else []
    for flag in given:
        if flag in unread:
            raise ValueError(f"--{flag} is not read by --algo {name} with its other flags")
    return fill(config_class, flags), hp, algo, state


def inputs_of(config):
    """{file that a run reads: CRC}: of the task, the reward and the models."""
    paths = [*config.task.split("+"), *config.eval.split("+"), config.reward.partition(":")[0]]
    for folder in (config.init, config.reward_model):
        if folder:
            paths += model_files(folder)
    return checksums(paths)


def next_free(folder):
    """The folder, or if it is there already the first of folder-run2, folder-run3, ..."""
    names = itertools.chain([folder], (f"{folder}-run{i}" for i in itertools.count(2)))
    free = next(name for name in names if not os.path.exists(name))
    if free != folder:
        print(f"{folder} holds a run already: this one goes to {free}")
    return free


def networks_of(run):
    return {name: net for name, net in vars(run.nets).items() if net is not None}


def save_checkpoint(run):
    """All that a run needs to go on after run.step, and the policy as a checkpoint folder."""
    state = {"optimizer": run.optimizer.state_dict()}  # of all, since each may have a part of it
    if world.RANK > 0:
        return
    state |= {"step": run.step, "before": run.before, "best": run.best}
    state["flags"] = asdict(run.config) | asdict(run.hp)
    state["nets"] = {name: net.state_dict() for name, net in networks_of(run).items()}
    state["past"] = [policy.state_dict() for policy in run.past]
    state |= {"logs": run.folder.texts(), "inputs": run.folder.inputs}
    save_state(f"{run.config.out}/state.pt", state)
    run.nets.policy.save(f"{run.config.out}/model")
    run.tokenizer.save(f"{run.config.out}/model")


def keep_best(run, model, accuracy):
    """Writes the policy into best/ if no earlier step had such an accuracy on the first set."""
    if world.RANK == 0 and model is run.nets.policy and run.step > 0 and accuracy > run.best:
        run.best = accuracy
        model.save(f"{run.config.out}/best")
        run.tokenizer.save(f"{run.config.out}/best")


def open_run(run, state):
    """Puts back what `save_checkpoint` wrote, if there is a state, and opens the run's folder."""
    logs = {}
    inputs = inputs_of(run.config)
    if state is not None:
        run.step = state["step"]
        run.before = state["before"]
        run.best = state.get("best", run.best)
        logs = state["logs"]
        inputs_before = state.get("inputs", inputs)
        for path in inputs_before | inputs:
            if inputs_before.get(path) != inputs.get(path):
                raise ValueError(f"{path} is not what it was when the run began")
        saved = [(run.optimizer, state["optimizer"])]
        saved += [(net, state["nets"].get(name, {})) for name, net in networks_of(run).items()]
        for weights in state.get("past", []):
            run.past.append(copy.deepcopy(run.nets.policy))
            saved.append((run.past[-1], weights))
        restore(f"{run.config.out}/state.pt", run.config.init, saved)
    run.folder = RunFolder(run.config.out, logs, inputs)
    describe(run.config.out, asdict(run.config) | asdict(run.hp))


def load_initial(config):
    """The model before RL; None, and a line that says so, if it is gone."""
    try:
        return load_model(config.init, config)
    except (ValueError, OSError) as error:
        print(f"no comparison with the model before RL: {error}")
        return None


class StopSignal:
    """Notes Ctrl-C and SIGTERM: a run ends where a checkpoint is. A second one kills.

    Of several processes all end after the same step, whichever heard it."""

    def __init__(self, out):
        self.out = out
        # a signal that this process heard; one that any of several heard
        self.number = self.agreed = 0
        self.is_delayed = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, _frame):
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        if not self.is_delayed:
            self.leave()
        print("\nstopping after this step (once more: at once)", flush=True)

    @contextlib.contextmanager
    def delayed(self):
        """Round a step and its checkpoint: a stop that was agreed on waits for their end."""
        self.is_delayed = True
        yield
        self.is_delayed = False
        if self.agreed:
            self.leave()

    def leave(self):
        print(f"stopped; go on with: python train.py --out {self.out} --resume", flush=True)
        raise SystemExit(128 + (self.agreed or self.number))
