"""Folders that are not overwritten, full disks, kills, stops, and inputs that changed."""

import contextlib
import math
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from test_train import (  # noqa: F401
    base_weights,
    finished,
    metrics,
    one_step,
    refused,
    repository,
    resume,
    small_run,
    weights,
)

import plot
import train
from bench import crash
from data import jsonl
from data.tokenizer import Tokenizer
from model import GPT
from plumbing import checkpoint
from plumbing.run_folder import TAKEN, Log, save_state
from rewards import Judge
from stages import reward_model, sft

TINY = "--eval_sets 1 --eval_problems 1 --eval_k 1 --max_new_tokens 8 --eval_max_new_tokens 8"


@contextlib.contextmanager
def largest_file(size):
    """A disk on which no file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names_in(folder):
    return sorted(os.listdir(folder))


def contents(folder):
    """{path: bytes} of all files in a folder but its lock."""
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if name != "lock":
                path = os.path.join(parent, name)
                with open(path, "rb") as f:
                    files[path] = f.read()
    return files


# --- Folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKEN)
def test_a_folder_of_another_run_or_of_a_model_is_not_overwritten(capsys, tmp_path, name):
    folder = tmp_path / "taken"
    (folder / name).parent.mkdir()
    if name == "model":
        shutil.copytree("data/base", folder / name)
    else:
        (folder / name).write_text("precious")
    before = contents(folder)
    data = tmp_path / "rows.jsonl"
    jsonl.write(str(data), [{"prompt": f"{i}", "response": "x"} for i in range(3)])
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"name {i}", "better": "x", "worse": "y"} for i in range(40)]
    jsonl.write(str(pairs), rows)
    words = (str(folder), f"holds {name} already", "name another --out")
    refused(capsys, train.main, ["--out", folder, "--steps", 0, *TINY.split()], *words)
    stage = ["--init", "data/base", "--out", folder, "--data"]
    refused(capsys, sft.main, [*stage, data], *words)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        reward_model.main([str(word) for word in (*stage, pairs)])
    assert f"holds {name} already" in capsys.readouterr().err
    assert contents(folder) == before


def test_a_run_does_not_destroy_the_model_that_it_begins_with(capsys, tmp_path):
    base = shutil.copytree("data/base", tmp_path / "base")
    os.symlink(base, tmp_path / "link")
    inside = tmp_path / "run" / "model"
    shutil.copytree(base, inside)
    before = contents(tmp_path)
    for init, out in ((base, base), (base, tmp_path / "link"), (inside, inside.parent)):
        flags = ["--init", init, "--out", out, "--steps", 0, *TINY.split()]
        refused(capsys, train.main, flags, out, "already")
    assert contents(tmp_path) == before


def test_a_run_has_a_file_of_flags_and_a_model_has_another(finished):  # noqa: F811
    assert "run.json" in names_in(finished) and "config.json" not in names_in(finished)
    assert "model_type" in (finished / "model" / "config.json").read_text()


def test_without_out_the_second_run_takes_the_next_folder(tmp_path, monkeypatch, capsys):
    """The same command typed twice, in a folder of its own."""
    os.symlink(os.path.abspath("data"), tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    flags = f"--prompts_per_step 1 --group_size 2 --steps 0 {TINY}".split()
    train.main(flags)
    first = contents("out/grpo-pairs-0")
    train.main(flags)
    assert "this one goes to out/grpo-pairs-0-run2" in capsys.readouterr().out
    assert names_in("out") == ["grpo-pairs-0", "grpo-pairs-0-run2"]
    assert contents("out/grpo-pairs-0") == first


HOLD = (
    "import sys; from plumbing.files import lock; x = lock(sys.argv[1]); print(flush=True); input()"
)


def test_a_second_run_in_a_folder_is_refused_unless_the_first_is_dead(capsys, finished):  # noqa: F811
    before = contents(finished)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(finished)], **pipes)
    other.stdout.readline()
    again = ["--out", finished, "--resume", "--steps", 1]
    refused(capsys, train.main, again, "another run is at work", finished)
    assert contents(finished) == before
    other.kill()
    other.wait()
    resume(finished, steps=1)


# --- The disk ---------------------------------------------------------------------------------

WRITERS = {
    "log.csv": lambda path: Log(path).write("x" * 5000),
    "row.csv": lambda path: Log(path).write_row({f"column {i}": i for i in range(900)}),
    "state.pt": lambda path: save_state(path, {"nets": {"policy": [torch.ones(900)]}}),
    "model.safetensors": lambda path: GPT.load("data/base").save(os.path.dirname(path)),
    "tokenizer.tiktoken": lambda path: Tokenizer.load("data/base").save(os.path.dirname(path)),
    "rows.jsonl": lambda path: jsonl.write(path, [{"prompt": "x" * 5000}]),
    "curves.png": lambda path: plot.save(plot.draw(plot.read_runs(["results/r1_zero"])), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, capsys, name):
    path = tmp_path / name
    if not name.endswith(".csv"):
        path.write_text("old")
    with largest_file(3000), pytest.raises(SystemExit) as stop:
        WRITERS[name](str(path))
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said == f"{path}: File too large\n"
    assert not [left for left in names_in(tmp_path) if left.endswith(".tmp")]
    if not name.endswith(".csv"):
        assert path.read_text() == "old"


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_the_disk_refuses_is_one_line(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit) as stop:
        WRITERS[name](str(tmp_path / name))
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"{tmp_path}/{name}: Is a directory\n"


def test_a_run_whose_disk_is_full_goes_on_from_the_checkpoint_before(finished, capsys):  # noqa: F811
    state = (finished / "state.pt").read_bytes()
    with largest_file(10**6), pytest.raises(SystemExit):
        resume(finished, steps=2)
    assert capsys.readouterr().err.endswith("state.pt: File too large\n")
    assert (finished / "state.pt").read_bytes() == state
    resume(finished, steps=2)
    assert [row["step"] for row in metrics(finished)] == ["1", "2"]


KILLED = """
import resource, signal
from model import GPT
model = GPT.load("data/base")
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model.save({!r})
"""


def test_a_run_that_was_killed_inside_a_save_goes_on_as_if_nothing_had_happened(tmp_path, capsys):
    """`python bench/crash.py --out out/crash` is the long form: 20 kills each of GRPO and PPO."""
    flags = ["--out", str(tmp_path), "--algo", "grpo", "--steps", "24", "--kills", "1"]
    assert crash.main(flags) == 0
    assert "1 kills" in capsys.readouterr().out


def test_a_killed_save_leaves_only_what_the_next_one_takes_away(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLED.format(str(tmp_path))])
    assert run.returncode == -signal.SIGXFSZ
    assert names_in(tmp_path) == ["model.safetensors.tmp"]
    GPT.load("data/base").save(tmp_path)
    assert names_in(tmp_path) == ["config.json", "model.safetensors"]


def test_a_log_that_lost_its_end_is_whole_again(finished):  # noqa: F811
    """The checkpoint holds the logs, so a power cut after it costs them nothing."""
    before = contents(finished)
    os.truncate(finished / "metrics.csv", 10)
    os.remove(finished / "samples.txt")
    resume(finished, steps=1)
    for path in (f"{finished}/metrics.csv", f"{finished}/samples.txt"):
        assert contents(finished)[path] == before[path]


def test_a_tokenizer_that_lost_its_end_is_refused(capsys, tmp_path):
    folder = shutil.copytree("data/base", tmp_path / "model")
    lines = (folder / "tokenizer.tiktoken").read_bytes().splitlines(keepends=True)
    (folder / "tokenizer.tiktoken").write_bytes(b"".join(lines[:600]))
    flags = ["--out", tmp_path / "out", "--init", folder, "--steps", 0, *TINY.split()]
    refused(capsys, train.main, flags, "601 tokens", "640")


# --- Inputs -----------------------------------------------------------------------------------


def test_a_run_goes_on_only_with_the_files_that_it_began_with(capsys, tmp_path):
    task, reward = tmp_path / "task.jsonl", tmp_path / "mine.py"
    jsonl.write(str(task), [{"prompt": f"{i}+1?", "answer": f"{i + 1}"} for i in range(40)])
    reward.write_text("def f(problem, response):\n    return len(response) % 2\n")
    init = shutil.copytree("data/base", tmp_path / "init")
    test = shutil.copy(task, tmp_path / "test.jsonl")
    flags = f"--prompts_per_step 1 --task {task} --reward {reward}:f --init {init} {TINY}"
    flags += f" --eval {test}"
    small_run(tmp_path / "out", flags, steps=0)
    again = ["--out", tmp_path / "out", "--resume", "--steps", 1]
    endings = {
        task: b'{"prompt": "1+99?", "answer": "100"}\n',
        test: b'{"prompt": "1+99?", "answer": "100"}\n',
        reward: b"# another rule\n",
        init / "tokenizer.tiktoken": b"",
        init / "model.safetensors": b"",
    }
    for path, ending in endings.items():
        before = path.read_bytes()
        path.write_bytes(before + ending)
        if path.suffix == ".safetensors":  # the last weight is 0
            path.write_bytes(before[:-4] + bytes(4))
        if path.suffix == ".tiktoken":  # two tokens change places
            path.write_bytes(
                before.replace(b" 638", b" x").replace(b" 637", b" 638").replace(b" x", b" 637")
            )
        refused(capsys, train.main, again, f"{path} is not what it was")
        path.write_bytes(before)
    resume(tmp_path / "out", steps=1)


def test_the_initial_model_may_be_gone_at_the_end(capsys, tmp_path, monkeypatch):
    init = shutil.copytree("data/base", tmp_path / "init")

    def train_and_remove(run, stop, real=train.train):
        real(run, stop)
        shutil.rmtree(init)

    monkeypatch.setattr(train, "train", train_and_remove)
    small_run(tmp_path / "out", f"--init {init} --eval_problems 1 --eval_k 1")
    out = capsys.readouterr().out
    assert "no comparison with the model before RL: " in out and str(init) in out
    assert "held-out 6 numbers" in out and "Curves: python plot.py" in out


# --- Stops ------------------------------------------------------------------------------------


def stop_in_call(monkeypatch, name, number):
    """The run gets SIGTERM in its call of a function of train.py of this number -> the calls."""
    calls = []
    real = getattr(train, name)

    def stopping(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(train, name, stopping)
    return calls


STEPS = f"--prompts_per_step 1 --eval_every 1 {TINY}".replace("--eval_sets 1 ", "--eval_sets 2 ")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    small_run(folder, STEPS, steps=2)
    return folder


@pytest.mark.parametrize(
    "number, steps",
    [(1, 0), (2, 1), (3, 2), (4, 2)],
    ids=["before RL", "between steps", "at the end", "second set"],
)
def test_a_stop_in_an_evaluation_is_at_once_and_loses_nothing(
    capsys, tmp_path, monkeypatch, uninterrupted, number, steps
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        calls = stop_in_call(patch, "evaluate", number)
        small_run(tmp_path, STEPS, steps=2)
    assert stop.value.code == 128 + signal.SIGTERM and len(calls) == number
    assert f"go on with: python train.py --out {tmp_path} --resume" in capsys.readouterr().out
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == steps
    resume(tmp_path, steps=2)
    assert metrics(tmp_path) == metrics(uninterrupted)
    assert (tmp_path / "eval.csv").read_bytes() == (uninterrupted / "eval.csv").read_bytes()


def test_a_stop_in_a_step_is_honoured_before_the_evaluation(tmp_path, monkeypatch, uninterrupted):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        stop_in_call(patch, "train_step", 1)
        judged = stop_in_call(patch, "evaluate", 99)
        small_run(tmp_path, STEPS, steps=2)
    assert stop.value.code == 128 + signal.SIGTERM and len(judged) == 1
    resume(tmp_path, steps=2)
    assert (tmp_path / "eval.csv").read_bytes() == (uninterrupted / "eval.csv").read_bytes()


def test_a_column_that_comes_later_is_added(tmp_path):
    """A reward of a user's own may have a name from the third step on. Then the run goes on."""
    log = Log(f"{tmp_path}/metrics.csv")
    for row in ({"step": 1, "b": 2.5}, {"step": 2}, {"step": 3, "new": 7, "b": math.nan}):
        log.write_row(row)
    text = "step,b,new\n1,2.5\n2,\n3,nan,7\n"
    assert (tmp_path / "metrics.csv").read_text() == log.text == text
    log = Log(f"{tmp_path}/metrics.csv", log.text)
    log.write_row({"step": 4, "new": 1})
    rows = plot.read_rows(tmp_path / "metrics.csv")
    assert [row["new"] for row in rows] == [None, None, "7", "1"]


# --- Numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reward, line",
    [
        (float("inf"), "a reward of inf for the response '"),
        (-1e308, "a reward of -1e[+]308 for the response '"),
        (float("nan"), "step 1: no response could be judged, the first is '"),
    ],
)
@pytest.mark.parametrize("calls_before", [0, 2])
def test_a_reward_that_is_no_number_stops_the_run(
    tmp_path, monkeypatch, reward, line, calls_before
):
    """In the evaluation before RL, or in the first step, which comes after two responses."""
    calls = []

    def call_accuracy(judge, problem, text):
        calls.append(text)
        verdict = reward if len(calls) > calls_before else 0.0
        return {"accuracy": verdict, "unjudged": float(verdict != verdict)}

    monkeypatch.setattr(Judge, "call_accuracy", call_accuracy)
    with pytest.raises(SystemExit, match=line):
        small_run(tmp_path, TINY)
    assert torch.equal(weights(tmp_path), base_weights())


def test_weights_that_are_no_numbers_are_refused(capsys, tmp_path):
    folder = shutil.copytree("data/base", tmp_path / "model")
    model = GPT.load(folder)
    model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    checkpoint.save(model, folder)
    flags = ["--out", tmp_path / "out", "--init", folder, "--steps", 0, *TINY.split()]
    refused(capsys, train.main, flags, folder, "model.layers.1.mlp.up_proj.weight holds NaN")


def test_a_checkpoint_that_lacks_an_entry_is_refused(capsys, finished):  # noqa: F811
    state = torch.load(finished / "state.pt", weights_only=True)
    again = ["--out", finished, "--resume", "--steps", 2]
    for name in ("flags", "step", "nets", "optimizer", "before", "logs"):
        torch.save(
            {key: value for key, value in state.items() if key != name}, finished / "state.pt"
        )
        refused(capsys, train.main, again, f"state.pt is no checkpoint: it has no {name}")
    del state["nets"]["ref"]
    torch.save(state, finished / "state.pt")
    refused(capsys, train.main, again, "state.pt does not fit")
