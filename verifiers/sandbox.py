"""Model-written Python against tests: a child process computes, this process alone judges.

    run("def f(x): return 2 * x", ["assert f(2) == 4", "assert f(0) == 0"])      True
    run("print(int(input()) * 2)", [("2", "4")])                                 True, by its output

A program that is paid for passing tests will try to pass them without solving the task, so it is
never asked for a verdict. An assert line is taken apart here: the child gets `f(2)`, sends back the
text of its value, and that text is compared with the text of 4, which never left. Whatever a
program does to ==, to assert, to exit codes or to the channel itself, it can only claim values, and
has to know the right ones. Nothing that comes back is parsed.

    assert CALL == LITERAL    or `is`; 2 and 2.0 are equal, a Counter and a dict, d.keys() and a
                              set; True and 1, (1,) and [1] are not
    assert CALL               the value must be True
    assert not CALL           the value must be False; give tests of both, or a constant passes them
    CALL                      f(2), f([1] * 3), list(gen(3)), f(f(2)): what takes the result of a
                              call takes nothing else. Anything more, as isclose(f(2), 4) or
                              abs(f(2) - 4) == 0, would show the child the expected value or take
                              its word for it: ValueError

The child (sandbox_child.py) is one process that can only compute. seccomp: a list of harmless
system calls; no other process, no socket, no thread, no signal to others, no file for writing.
Landlock: no file but the interpreter's libraries. Limits on memory, time and output (1 MB); no
environment; its own session and, where the system lets it, namespaces (a second wall: seccomp
leaves no call that could reach over it). `start` says what holds, and refuses to go on without
seccomp or Landlock.

A program has not got, though plain Python has: child processes, threads, and asyncio.run, which
needs a pair of sockets; files to write, even for itself (a folder in memory is a mount, which
takes rights that containers refuse, and a folder on disk is room to fill); packages outside the
standard library. Fraction, Decimal and complex values are not judged equal to any literal.
What is left over: the kernel is shared (for a model meant to be hostile, put a virtual machine
round it), and a program can see that a file exists, though not what is in it. x86-64 Linux 5.13 or
newer.
"""

import ast
import marshal
import os
import subprocess
import sys
from contextlib import ExitStack
from tempfile import TemporaryFile

from verifiers.sandbox_child import canon

CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox_child.py")
ISOLATED = "host files hidden, network and processes off"  # how a child begins that is confined
ENVIRONMENT = {"PYTHONHASHSEED": "0"}  # the same program gives the same values
OUTPUT = 1 << 20  # bytes that are read of it


class System:
    """What the system allows, found out once by `start`."""

    confinement = None  # what every child must say before a program runs in it


# --- One process ----------------------------------------------------------------------------------


def read_text(file):
    return os.pread(file.fileno(), OUTPUT, 0).decode(errors="replace")


def lines_of(text):
    """Lines without space at their ends, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().split("\n")]


def execute(source, calls, stdin, timeout, memory_mb):
    """Runs a program in a child. -> what the child says of its confinement, and the lines of its
    answer, None if the program failed or was stopped."""
    # Files: unlike pipes these cannot block.
    with ExitStack() as stack:
        request, text, out, errors = [stack.enter_context(TemporaryFile()) for _ in range(4)]
        request.write(marshal.dumps((source, calls, memory_mb, int(timeout) + 2)))
        request.flush()
        text.write(stdin.encode(errors="replace"))
        text.seek(0)
        command = [sys.executable, "-sSB", CHILD, str(request.fileno())]
        settings = {"stdin": text, "stdout": out, "stderr": errors, "env": ENVIRONMENT}
        settings["pass_fds"] = [request.fileno()]
        try:  # one process is all there is to kill at the timeout
            subprocess.run(command, check=True, timeout=timeout, start_new_session=True, **settings)
            answer = lines_of(read_text(out))
        except subprocess.SubprocessError:
            answer = None
        return read_text(errors), answer


def start(unsafe=False):
    """Finds out, once, what the system allows, and says it on stderr.

    `run` calls it; call it before to fail early, or with `unsafe`. ValueError if a program could
    reach host files, the network or other processes, unless `unsafe`."""
    if System.confinement is not None:
        return
    said = "this is not Linux"
    if sys.platform == "linux":
        said, _ = execute("", (), "", timeout=10.0, memory_mb=256)
    print(f"code sandbox: {said}", file=sys.stderr, flush=True)
    allowed = unsafe and said.startswith("host files")
    if not said.startswith(ISOLATED) and not allowed:
        raise ValueError(f"programs are not run without isolation: {said.strip()[-200:]}")
    System.confinement = said


# --- Tests ----------------------------------------------------------------------------------------


def is_call(node):
    """A call of a name whose arguments hold no call, or are one such call.

    There is no room for an expected value in it."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    arguments = node.args + [keyword.value for keyword in node.keywords]
    if any(isinstance(node, ast.Call) for argument in arguments for node in ast.walk(argument)):
        return len(arguments) == 1 and is_call(arguments[0])
    return True


def split(test):
    """An assert line -> (the call that the child computes, the text of the value it must have)."""
    try:
        match ast.parse(test).body:
            case [ast.Assert(ast.Compare(call, [ast.Eq() | ast.Is()], [literal]))] if is_call(call):
                return ast.unparse(call), canon(ast.literal_eval(literal))
            case [ast.Assert(ast.UnaryOp(ast.Not(), call))] if is_call(call):
                return ast.unparse(call), "False"
            case [ast.Assert(call)] if is_call(call):
                return ast.unparse(call), "True"
    except (SyntaxError, ValueError, TypeError):
        pass
    raise ValueError(f"cannot judge the test {test!r}, only assert CALL == LITERAL, [not] CALL")


def jobs(tests):
    """Tests as of `run` -> [(calls that a process computes, its stdin, lines it must answer)].

    ValueError if they cannot be judged."""
    if tests and isinstance(tests, (list, tuple)):
        if isinstance(tests[0], str):
            parts = [split(test) for test in tests]
            return [(tuple(call for call, _ in parts), "", [value for _, value in parts])]
        if all(isinstance(t, (list, tuple)) and [*map(type, t)] == [str, str] for t in tests):
            return [((), stdin, lines_of(stdout)) for stdin, stdout in tests]
    raise ValueError("tests: at least one, all of them assert lines or all (stdin, stdout) pairs")


def run(source, tests, timeout=2.0, memory_mb=256):
    """Does the program pass all tests?

    tests: assert lines, run in one process, or (stdin, stdout) pairs, a process each, where space
    at the end of a line is free. timeout: seconds of wall clock for a process. ValueError: tests
    that cannot be judged. RuntimeError: the sandbox did not start. No program makes it raise."""
    start()
    for calls, stdin, wanted in jobs(tests):
        said, lines = execute(source, calls, stdin, timeout, memory_mb)
        if said != System.confinement:  # nothing of the program has run: it is not wrong
            reason = said.strip()[-200:] or "no time"
            raise RuntimeError(f"the code sandbox did not start: {reason}")
        if lines != wanted:
            return False
    return True
