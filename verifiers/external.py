"""Verifiers of another package, reasoning-gym (optional), out of this process.

Its scorers are handed text of a policy, and some evaluate it. So the package has a server, a
process that is started when first needed. It makes the items, reads no answer itself, and forks for
every one. A fork has limits of time and memory and no descriptor but a pipe of its own. On Linux it
reads no files but Python's and has no processes, no network and no files to write
(sandbox_child.py); gym tasks are refused where that does not hold. It writes one number and is
gone, with all that an answer did to the package. An answer that takes too long, ends its process,
or writes anything but a number from 0 to 1 is wrong: 0.

A scorer that evaluates an answer believes what the answer does to it: a policy that learns to write
Python can claim any reward for that one answer, and no process outside can know.

    python -m verifiers.external PIPE     the server. PIPE: the number of an open connection, of
                                          arguments in JSON, and of [value, null] or
                                          [null, traceback] in return
"""

import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection, Pipe

from verifiers.sandbox_child import confine

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECONDS = 3  # of an answer, one of them of computing
SERVER_SECONDS = 60  # of the server: to start, to make an item
MEMORY_MB = 4096
MOST_BYTES = 1 << 24  # of a reply


class Server:
    """The process of the package. It is started by the first request, and again after its end.

    From any thread, but one request at a time."""

    process = None

    def ask(self, *arguments):
        """What `score` returns; None if the server does not answer, and has been killed.

        RuntimeError with the server's traceback if it raises."""
        if self.process is None or self.process.poll() is not None:
            self.pipe, theirs = Pipe()
            command = [sys.executable, "-B", "-m", "verifiers.external", str(theirs.fileno())]
            settings = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            settings["env"] = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
            settings["pass_fds"] = [theirs.fileno()]
            # Ctrl-C is for the parent only
            self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **settings)
            theirs.close()
        try:
            self.pipe.send_bytes(json.dumps(arguments).encode())
            if self.pipe.poll(SERVER_SECONDS):
                value, error = json.loads(self.pipe.recv_bytes(MOST_BYTES))
                if error:
                    raise RuntimeError(error)
                return value
        except (OSError, EOFError, ValueError):
            pass  # it has ended, or says nonsense
        self.process.kill()
        self.process.wait()


REASONING_GYM = Server()


# --- The server -----------------------------------------------------------------------------------


def in_fork(judge, *arguments):
    """The number from 0 to 1 that a function returns in a process of its own; 0 if it does not."""
    out, into = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.dup2(into, 3)
            os.closerange(4, 64)  # what is left is /dev/null and the pipe
            if sys.platform == "linux":
                confine(MEMORY_MB, 1)
            os.write(3, str(float(judge(*arguments))).encode())
        finally:
            os._exit(0)
    os.close(into)
    reply = b""
    if select.select([out], [], [], SECONDS)[0]:
        reply = os.read(out, 64)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(out)
    try:
        return float(reply) if 0 <= float(reply) <= 1 else 0.0
    except ValueError:
        return 0.0


@functools.lru_cache(4096)
def item(name, seed, index):
    """(generator, item). name: of the generator, with its parameters, as sum,terms=3

    Some draw from the global random state, some from the order of sets."""
    import reasoning_gym

    name, *pairs = name.split(",")
    settings = {key: json.loads(value) for key, _, value in (p.partition("=") for p in pairs)}
    random.seed(f"{seed} {index}")
    generator = reasoning_gym.create_dataset(name, seed=seed, size=index + 1, **settings)
    entry = generator[index]
    generator.score_answer(entry["answer"], entry)  # raises if no answer could be scored
    return generator, entry


def score(name, seed, index, answer=None):
    """An item's question; with an answer, its score. What the scorer cannot read is wrong."""
    generator, entry = item(name, seed, index)
    if answer is None:
        return entry["question"]
    return in_fork(generator.score_answer, answer, entry)


def serve(pipe):
    while True:
        arguments = json.loads(pipe.recv_bytes())
        try:
            reply = [score(*arguments), None]
        except BaseException:
            reply = [None, traceback.format_exc()]
        pipe.send_bytes(json.dumps(reply).encode())


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
