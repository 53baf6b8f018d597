"""Model-written Python against tests: the child computes, the parent alone judges.

    run("def f(x): return 2 * x", ["assert f(2) == 4", "assert f(0) == 0"])      True
    run("print(int(input()) * 2)", [("2", "4")])                                 True, by what it prints

A program that is paid for passing tests will try to pass them without solving the task, so it is never asked for a
verdict. An assert line is taken apart here: the child gets `f(2)`, sends back the text of its value, and that text is
compared with the text of 4, which never left. Whatever a program does to ==, to assert, to exit codes or to the channel
itself, it can only claim values, and has to know the right ones. Nothing that comes back is parsed.

    assert CALL == LITERAL (or `is`)    2 and 2.0 are equal, a Counter and a dict; True and 1, (1,) and [1] are not
    assert CALL, assert not CALL        the value must be True, False; give tests of both, or a constant passes them
    CALL                                f(2), f([1] * 3), list(gen(3)), f(f(2)): what takes the result of a call takes
                                        nothing else. Anything more, as isclose(f(2), 4) or abs(f(2) - 4) == 0, would
                                        show the child the expected value or take its word for it: ValueError

The child is one process that can only compute. seccomp: a list of harmless system calls; no other process, no socket,
no thread, no signal to others, no file for writing. Landlock: no file but the interpreter's libraries. Limits on
memory, time and output (1 MB); no environment; its own session and, where the system lets it, namespaces (a second
wall: seccomp leaves no call that could reach over it). `start` says what holds, and refuses to go on without seccomp or
Landlock.

What a program has not got: child processes, threads, files, packages outside the standard library. What is left over:
the kernel is shared (for a model meant to be hostile, put a virtual machine round it), and a program can see that a
file exists, though not what is in it. x86-64 Linux 5.13 or newer.
"""
import ctypes
import marshal
import os
import struct
import sys

if __name__ != "__main__":        # the child starts in half the time without these
    import ast
    import contextlib
    import select
    import subprocess
    from tempfile import TemporaryFile

SAFE = "host files hidden, network and processes off"
layers = None                     # once `start` has run: what a child says of its confinement


def canon(value):
    """The text of plain data, the same for equal data: of 2 and 2.0, of {1, 2} and {2, 1}; not of True and 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    for kind in (bool, int, float, str, bytes, type(None)):
        if isinstance(value, kind):
            return kind.__repr__(value)           # of the plain type, whatever a subclass prints
    kind = [k for k in (dict, set, frozenset, list, tuple) if isinstance(value, k)][0].__name__.removeprefix("frozen")
    parts = [canon(part) for part in (value.items() if kind == "dict" else value)]
    return f"{kind}({', '.join(parts if kind in ('list', 'tuple') else sorted(parts))})"


# --- The child ------------------------------------------------------------------------------------------------------

# System calls of x86-64 that compute and do no more: read and write what is open, memory, clocks, threads, who am I.
# Not fcntl, which can have the system send any signal to any process of the same user.
HARMLESS = {*range(29), *range(32, 40), 60, 63, 79, 89, *range(96, 101), 102, 104, 107, 108, 110, 131, 186, 201,
            202, 204, 217, *range(228, 232), 262, 267, 270, 271, 273, 318, 332, 334, 436, 439} - {2, 16, 22}


def seccomp_filter():
    """HARMLESS as a BPF program, and openat (257) to read."""
    load, equal, any_bit, end = 0x20, 0x15, 0x45, 0x06
    steps = [(load, 4, 0, 0), (equal, 0xC000003E, 0, "no"), (load, 0, 0, 0),               # architecture; number
             (equal, 257, 0, 2), (load, 32, 0, 0), (any_bit, 0x400243, "no", "yes"),       # flags that write
             *((equal, number, "yes", 0) for number in HARMLESS), (end, 0x50026, 0, 0), (end, 0x7FFF0000, 0, 0)]
    goal = {"no": len(steps) - 2, "yes": len(steps) - 1}                                   # ENOSYS; allow
    return b"".join(struct.pack("HBBI", code, *(goal[to] - i - 1 if to in goal else to for to in jumps), value)
                    for i, (code, value, *jumps) in enumerate(steps))


def confine(memory_mb, seconds):
    """Takes from this process what a program must not have. None of it comes back. -> what holds now, as a text.

    It can read the system's libraries and sys.path without its head. seconds: of computing; -1: without a limit."""
    import resource               # Unix only
    for name, value in dict(AS=memory_mb << 20, CPU=seconds, FSIZE=1 << 20, NOFILE=64, CORE=0).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    libc = ctypes.CDLL(None)
    libc.prctl(1, 9, 0, 0, 0)     # killed when its parent dies
    alone = libc.unshare(0x5C020000) == 0         # user, network, IPC, host name, mounts
    libc.prctl(38, 1, 0, 0, 0)    # no new privileges, which the next two ask for
    rules = libc.syscall(444, struct.pack("Q", 0x1FFF), 8, 0)                    # Landlock: every right to files ...
    folders = "/lib", "/lib64", "/usr/lib", "/usr/lib64", sys.base_prefix + "/lib", *sys.path[1:]
    for path in filter(os.path.isdir, folders):
        libc.syscall(445, rules, 1, struct.pack("=Qi", 12, os.open(path, os.O_PATH)), 0)   # ... but reading these
    hidden = libc.syscall(446, rules, 0) == 0
    steps = ctypes.create_string_buffer(code := seccomp_filter())
    off = os.uname().machine == "x86_64" and libc.prctl(
        22, 2, struct.pack("HP", len(code) // 8, ctypes.addressof(steps)), 0, 0) == 0
    return (f"host files {'hidden' if hidden else 'IN REACH'}, network and processes {'off' if off else 'IN REACH'}"
            + ", own namespaces" * alone)


def child(size):
    """Reads the request at the head of stdin, runs the program, and answers: a line a call, or else what it prints."""
    source, calls, memory_mb, seconds = marshal.loads(os.read(0, size))
    write, channel, quiet = os.write, os.dup(1), os.open(os.devnull, os.O_WRONLY)
    write(2, confine(memory_mb, seconds).encode())
    os.dup2(quiet, 2)             # the program cannot take this back
    if calls:
        os.dup2(quiet, 1)         # its stdout is not where the values go
    os.closerange(quiet, 64)
    module = type(sys)("solution" if calls else "__main__")
    sys.modules[module.__name__] = module         # dataclasses look for it
    module.exit = module.quit = sys.exit          # as the site module, left out for its time, has them
    exec(compile(source, "solution", "exec"), module.__dict__)
    for call in calls:
        write(channel, canon(eval(call, module.__dict__)).encode() + b"\n")


# --- The parent -----------------------------------------------------------------------------------------------------

def execute(source, calls, stdin, timeout, memory_mb):
    """-> (what the child says of its confinement, lines of its answer or None if the program failed or was stopped)."""
    request = marshal.dumps((source, calls, memory_mb, int(timeout) + 2))
    with TemporaryFile() as head, TemporaryFile() as out, TemporaryFile() as errors:       # unlike a pipe cannot block
        head.write(request + stdin.encode(errors="replace"))
        head.seek(0)
        with subprocess.Popen([sys.executable, "-sSB", __file__, str(len(request))], env={"PYTHONHASHSEED": "0"},
                              stdin=head, stdout=out, stderr=errors, start_new_session=True) as process:
            try:
                end = os.pidfd_open(process.pid)
                select.select([end], [], [], timeout)
                os.close(end)
            finally:
                process.kill()    # one process is all there is
        said, answer = (os.pread(f.fileno(), 1 << 20, 0).decode(errors="replace") for f in (errors, out))
        return said, None if process.returncode else [line.rstrip() for line in answer.rstrip().split("\n")]


def start(unsafe=False):
    """Finds out, once, what the system allows, and says it on stderr. ValueError if a program could reach host files,
    the network or other processes, unless `unsafe`. `run` calls it; call it before to fail early, or to allow that."""
    global layers
    if layers is None:
        said = execute("", (), "", 10.0, 256)[0] if sys.platform == "linux" else "this is not Linux"
        print(f"code sandbox: {said}", file=sys.stderr, flush=True)
        if not said.startswith(SAFE) and not (unsafe and said.startswith("host files")):
            raise ValueError(f"programs of the model are not run without isolation: {said.strip()[-200:]}")
        layers = said


def is_call(node):
    """A call of a name whose arguments hold no call, or are one such call: no room for an expected value."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    inner = [a for a in arguments if any(isinstance(n, ast.Call) for n in ast.walk(a))]
    return not inner or len(arguments) == 1 and is_call(*inner)


def split(test):
    """An assert line -> (the call that the child computes, the text of the value that it must have)."""
    with contextlib.suppress(SyntaxError, ValueError, TypeError, IndexError):
        match ast.parse(test).body:
            case [ast.Assert(ast.Compare(call, [ast.Eq() | ast.Is()], [want]))] if is_call(call):
                return ast.unparse(call), canon(ast.literal_eval(want))
            case [ast.Assert(ast.UnaryOp(ast.Not(), call))] if is_call(call):
                return ast.unparse(call), "False"
            case [ast.Assert(call)] if is_call(call):
                return ast.unparse(call), "True"
    raise ValueError(f"sandbox.py cannot judge the test {test!r}: it takes assert CALL == LITERAL, assert [not] CALL")


def jobs(tests):
    """Tests as of `run` -> [(calls that one process computes, its stdin, the lines that it must answer)]."""
    if tests and isinstance(tests, (list, tuple)):
        if isinstance(tests[0], str):
            calls, wanted = zip(*map(split, tests))
            return [(calls, "", list(wanted))]
        if all(isinstance(test, (list, tuple)) and [*map(type, test)] == [str, str] for test in tests):
            return [((), stdin, [line.rstrip() for line in out.rstrip().split("\n")]) for stdin, out in tests]
    raise ValueError("tests are needed, at least one: all of them assert lines, or all of them (stdin, stdout) pairs")


def run(source, tests, timeout=2.0, memory_mb=256):
    """Does the program pass all tests? tests: assert lines, run in one process, or (stdin, stdout) pairs, a process
    each, where space at the end of a line is free. timeout: seconds of wall clock for a process.

    ValueError: tests that cannot be judged. RuntimeError: the sandbox did not start. No program makes it raise."""
    start()
    for calls, stdin, wanted in jobs(tests):
        said, lines = execute(source, calls, stdin, timeout, memory_mb)
        if said != layers:     # nothing of the program has run: no wrong answer, but no answer
            raise RuntimeError(f"the code sandbox did not start: {said.strip()[-200:] or 'no time'}")
        if lines != wanted:
            return False
    return True


if __name__ == "__main__":
    child(int(sys.argv[1]))
