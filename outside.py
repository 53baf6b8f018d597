"""Verifiers that are other people's code, math-verify and reasoning-gym (both optional), in a process of their own.

They are handed text of a policy, can spend hours or all memory on 200 characters of it (9^9^9^9), and some scorers of
reasoning-gym evaluate it. So each has a child process, started when first needed, that answers one request after the
other within a time and a memory limit. The time limit is an alarm without a handler: the system ends the child,
whatever it is doing, whichever thread asked, and the next request starts another; a child that switched its alarm off
is ended after a minute. (math-verify's own limit works in a main thread only; it is off.) Once the package is imported
the child reads no files but Python's own and has no processes, network and writing (sandbox.py; on Linux. math-verify
only parses; gym tasks are refused where that does not hold). What evaluates an answer believes what the answer does to
it: a policy that learns to write Python can make such a scorer say anything, and this process cannot know.
"""
import functools
import importlib.util
import json
import os
import random
import select
import signal
import subprocess
import sys
import traceback

from sandbox import confine

SECONDS, MEMORY = 3.0, 4 << 10    # MB
children = {}                     # of each package its own


@functools.cache
def latex():
    """Is math-verify installed? Asked, and said, once."""
    found = importlib.util.find_spec("math_verify") is not None
    if not found:
        print("math-verify is not installed: answers to truths that are no numbers are compared as text", flush=True)
    return found


def ask(package, *question):
    """What `same` (math_verify) or `score` (reasoning_gym) returns in the child; None if it takes too long.

    RuntimeError with the child's traceback if it raises. From any thread, but one at a time."""
    child = children.get(package)
    if child is None or child.poll() is not None:         # a session of its own: Ctrl-C is for the parent only
        child = children[package] = subprocess.Popen(
            [sys.executable, "-B", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, bufsize=1, start_new_session=True,
            env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"})
    child.stdin.write(json.dumps([package, *question]) + "\n")
    if not select.select([child.stdout], [], [], 60)[0]:      # what it was asked has switched off its alarm
        children.pop(package).kill()
        return None
    line = child.stdout.readline()
    if not line and child.wait() == -signal.SIGALRM:
        return None
    answer, error = json.loads(line) if line else (None, f"outside.py ended with status {child.returncode}")
    if error:
        raise RuntimeError(error)
    return answer


# --- The child ------------------------------------------------------------------------------------------------------

@functools.lru_cache(4096)
def same(answer, truth):
    """Are two LaTeX texts the same value, set, expression, ...? Read by a grammar of LaTeX only, never as Python."""
    from math_verify import LatexExtractionConfig, parse, verify
    truth, answer = (f"${text.replace('$', '').rstrip(' .')}$" for text in (truth, answer))
    truth, answer = (parse(t, [LatexExtractionConfig()], "no_fallback", parsing_timeout=None) for t in (truth, answer))
    return verify(truth, answer, float_rounding=12, timeout_seconds=None)


@functools.lru_cache(4096)
def item(name, seed, index):
    """(generator, item). Some draw from the global random state (and some from the order of sets: PYTHONHASHSEED)."""
    import reasoning_gym
    random.seed(f"{seed} {index}")
    generator = reasoning_gym.create_dataset(name, seed=seed, size=index + 1)
    return generator, generator[index]


def score(name, seed, index, answer=None):
    """An item's question; with an answer, its score. Wrong is also what the scorer cannot read, such as int("x"), if
    it reads the item's own answer."""
    generator, entry = item(name, seed, index)
    if answer is None:
        return entry["question"]
    try:
        return float(generator.score_answer(answer, entry))
    except BaseException:                         # exit() too
        generator.score_answer(entry["answer"], entry)
        return 0.0


def serve():
    requests, replies = sys.stdin, sys.stdout
    sys.stdin, sys.stdout = None, sys.stderr                  # what a package prints is no reply
    for line in requests:
        package, *question = json.loads(line)
        try:
            if package not in sys.modules:
                __import__(package)                           # not within the time limit
                sys.platform == "linux" and confine(MEMORY, -1)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            reply = [{"math_verify": same, "reasoning_gym": score}[package](*question), None]
        except BaseException:
            reply = [None, traceback.format_exc()]
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
