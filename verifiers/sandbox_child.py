"""The process in which one program of the model runs, started by verifiers/sandbox.py.

    python -sSB sandbox_child.py FILE     the number of an open file that holds a request

It confines itself, says on stderr what holds, runs the program, and writes one line for each call,
or else what the program prints. It judges nothing. It imports little, since its start is most of
the cost of judging a program.
"""

import ctypes
import marshal
import os
import resource
import struct
import sys
import types

# System calls of x86-64 that compute and do no more: read and write what is open, memory, clocks,
# who am I. Not fcntl, which can have the system send any signal to any process of the same user.
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "system_calls.txt")) as f:
    HARMLESS = [int(line.split()[0]) for line in f]

# Operations of a BPF program (linux/bpf_common.h), and values that they take.
LOAD = 0x20  # the word at this place of struct seccomp_data
IF_EQUAL = 0x15  # is the word equal to the value?
IF_ANY_BIT = 0x45  # has it a bit in common with the value?
RETURN = 0x06
X86_64 = 0xC000003E
OPENAT = 257
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0x400000  # the last: __O_TMPFILE
ALLOW = 0x7FFF0000
REFUSE = 0x50026  # with the error ENOSYS


def canon(value):
    """The text of plain data, the same for equal data: of 2 and 2.0, of {1, 2} and {2, 1}.

    Not of True and 1, or of a list and a tuple. TypeError if it is no plain data."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    for kind in (bool, int, float, str, bytes, type(None)):
        if isinstance(value, kind):
            return kind.__repr__(value)  # of the plain type, whatever a subclass prints
    if isinstance(value, dict):
        return f"dict({', '.join(sorted(canon(item) for item in value.items()))})"
    if isinstance(value, (set, frozenset, type({}.keys()), type({}.items()))):
        return f"set({', '.join(sorted(canon(part) for part in value))})"
    for kind in (list, tuple):
        if isinstance(value, kind):
            return f"{kind.__name__}({', '.join(canon(part) for part in value)})"
    raise TypeError(f"{type(value).__name__} is not plain data")


def step(operation, value, skip_if=0, skip_if_not=0):
    """An operation, and how many of the next steps are skipped if what it asks is so, if not."""
    return struct.pack("HBBI", operation, skip_if, skip_if_not, value)


def seccomp_filter():
    """A BPF program that allows the HARMLESS system calls, and openat to read. Else: ENOSYS."""
    steps = [step(LOAD, 4), step(IF_EQUAL, X86_64, 1, 0), step(RETURN, REFUSE)]  # architecture
    steps.append(step(LOAD, 0))  # the number of the call
    for number in HARMLESS:
        steps += [step(IF_EQUAL, number, 0, 1), step(RETURN, ALLOW)]
    steps += [step(IF_EQUAL, OPENAT, 1, 0), step(RETURN, REFUSE), step(LOAD, 32)]  # its flags
    steps += [step(IF_ANY_BIT, TO_WRITE, 0, 1), step(RETURN, REFUSE), step(RETURN, ALLOW)]
    return b"".join(steps)


def hide_files(libc):
    """Landlock: no file but the system's libraries and sys.path without its head. -> is it so?"""
    rights = struct.pack("Q", 0x1FFF)  # all 13 of Landlock's first version
    rules = libc.syscall(444, rights, 8, 0)  # landlock_create_ruleset
    libraries = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", sys.base_prefix + "/lib")
    for folder in (*libraries, *sys.path[1:]):
        if os.path.isdir(folder):
            rule = struct.pack("=Qi", 12, os.open(folder, os.O_PATH))  # 4 read files, 8 list them
            libc.syscall(445, rules, 1, rule, 0)  # landlock_add_rule, of the kind PATH_BENEATH
    return libc.syscall(446, rules, 0) == 0  # landlock_restrict_self


def stop_calls(libc):
    """seccomp: no system calls but those of the filter. -> is it so?"""
    if os.uname().machine != "x86_64":
        return False
    program = ctypes.create_string_buffer(seccomp_filter())
    size_and_place = struct.pack("HP", len(program) // 8, ctypes.addressof(program))
    return libc.prctl(22, 2, size_and_place, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def confine(memory_mb, seconds):
    """Takes from this process what a program must not have, for good. -> what holds now, as a text.

    seconds: of computing; -1: without a limit."""
    limits = {"AS": memory_mb << 20, "CPU": seconds, "FSIZE": 1 << 20, "NOFILE": 64, "CORE": 0}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    libc = ctypes.CDLL(None)
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL: killed when its parent dies
    own_namespaces = libc.unshare(0x5C020000) == 0  # CLONE_NEW: USER, NET, IPC, UTS, NS
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which the next two ask for
    files = "hidden" if hide_files(libc) else "IN REACH"
    others = "off" if stop_calls(libc) else "IN REACH"
    text = f"host files {files}, network and processes {others}"
    return text + ", own namespaces" if own_namespaces else text


def main(request):
    size = os.fstat(request).st_size
    source, calls, memory_mb, seconds = marshal.loads(os.pread(request, size, 0))
    os.close(request)
    write = os.write  # the program may put another one in its place
    channel = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    write(2, confine(memory_mb, seconds).encode())
    os.dup2(nowhere, 2)  # the program cannot take this back
    if calls:
        os.dup2(nowhere, 1)  # its stdout is not where the values go
    os.closerange(nowhere, 64)
    module = types.ModuleType("solution" if calls else "__main__")
    sys.modules[module.__name__] = module  # dataclasses look for it
    module.exit = module.quit = sys.exit  # as the site module, left out for its time, has them
    module.__file__ = "solution.py"
    sys.argv = ["solution.py"]
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    for call in calls:
        value = eval(call, module.__dict__)
        write(channel, canon(value).encode() + b"\n")


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose math.py is not Python's
    main(int(sys.argv[1]))
