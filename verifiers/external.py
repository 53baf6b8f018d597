"""Verifiers of other packages, math-verify and reasoning-gym (both optional), each in a process.

They are handed text of a policy, can spend hours or all memory on 200 characters of it (9^9^9^9),
and some scorers of reasoning-gym evaluate it. So each package has a child process, started when
first needed, that answers one request after the other within limits of time and memory. A timer
kills it, whatever it is doing, whichever thread asked, and the next request starts another.
(math-verify's own limit works in a main thread only; it is off.) On Linux, once the package is
imported, the child reads no files but Python's own and has no processes, no network and no files to
write (sandbox_child.py). math-verify only parses; gym tasks are refused where that does not hold. A
scorer that evaluates an answer believes what the answer does to it: a policy that learns to write
Python can make such a scorer say anything, and this process cannot know.

    python -m verifiers.external PACKAGE     the child: a list of arguments a line on stdin, in
                                             JSON, [answer, null] or [null, traceback] a line on
                                             stdout; the first such line, [] -> null, is its start
"""

import functools
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
import traceback

from verifiers.sandbox_child import confine

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECONDS = 3.0  # of a request
SECONDS_TO_START = 60.0
MEMORY_MB = 4096


@functools.cache
def has_math_verify():
    """Asked, and said, once."""
    installed = importlib.util.find_spec("math_verify") is not None
    if not installed:
        print("math-verify is not installed: answers that are no numbers are compared as text")
    return installed


def equal_latex(answer, truth):
    """Are two texts equal by math-verify, or without it as texts? None if it could not tell."""
    if not has_math_verify():
        return answer == truth
    return MATH_VERIFY.ask(answer, truth)


class Child:
    """The process of one package. It is started by the first request, and again after its end.

    From any thread, but one request at a time."""

    def __init__(self, package):
        self.package = package
        self.process = None

    def ask(self, *arguments):
        """What `same` (math_verify) or `score` (reasoning_gym) returns; None if it takes too long.

        RuntimeError with the child's traceback if it raises."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-B", "-m", "verifiers.external", self.package],
                cwd=ROOT,
                env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the parent only
            )
            self.request([], SECONDS_TO_START)
        return self.request(arguments, SECONDS)

    def request(self, arguments, seconds):
        """As `ask`, of a process that runs, which is killed after so many seconds."""
        process = self.process
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        print(json.dumps(arguments), file=process.stdin, flush=True)
        line = process.stdout.readline()
        timer.cancel()
        if not line.endswith("\n"):  # it has ended
            if process.wait() == -signal.SIGKILL:
                return None
            raise RuntimeError(f"{self.package} ended with status {process.returncode}")
        answer, error = json.loads(line)
        if error:
            raise RuntimeError(error)
        return answer


MATH_VERIFY = Child("math_verify")
REASONING_GYM = Child("reasoning_gym")


# --- The child ------------------------------------------------------------------------------------


def parsed(text):
    from math_verify import LatexExtractionConfig, parse

    text = text.replace("$", "").rstrip(" .")
    return parse(f"${text}$", [LatexExtractionConfig()], "no_fallback", parsing_timeout=None)


@functools.lru_cache(4096)
def same(answer, truth):
    """Are two LaTeX texts the same value, set, expression, ...?

    They are read by a grammar of LaTeX only, never as Python."""
    from math_verify import verify

    return verify(parsed(truth), parsed(answer), float_rounding=12, timeout_seconds=None)


@functools.lru_cache(4096)
def item(name, seed, index):
    """(generator, item). Some draw from the global random state, some from the order of sets."""
    import reasoning_gym

    random.seed(f"{seed} {index}")
    generator = reasoning_gym.create_dataset(name, seed=seed, size=index + 1)
    return generator, generator[index]


def score(name, seed, index, answer=None):
    """An item's question; with an answer, its score. What the scorer cannot read, such as int("x"),
    is wrong too, if the scorer reads the item's own answer."""
    generator, entry = item(name, seed, index)
    if answer is None:
        return entry["question"]
    try:
        return float(generator.score_answer(answer, entry))
    except BaseException:  # exit() too
        generator.score_answer(entry["answer"], entry)
        return 0.0


FUNCTIONS = {"math_verify": same, "reasoning_gym": score}


def serve(package):
    requests, replies = sys.stdin, sys.stdout
    sys.stdin = None
    sys.stdout = sys.stderr  # what a package prints is no reply
    for line in requests:
        arguments = json.loads(line)
        try:
            if package not in sys.modules:
                importlib.import_module(package)
                if sys.platform == "linux":
                    confine(MEMORY_MB, -1)
            answer = FUNCTIONS[package](*arguments) if arguments else None
            reply = [answer, None]
        except BaseException:
            reply = [None, traceback.format_exc()]
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
