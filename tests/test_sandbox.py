"""verifiers/sandbox.py and the task code: programs that want to be paid without solving the task,
programs that reach for what is not theirs, and ordinary ones.

That a barrier holds is shown by a program that answers rightly if and only if it was refused, and
by the same line done outside the sandbox, where it is not refused. After every test no process and
no descriptor may be left. `sandbox.run` of the design is verifiers.sandbox.run.
"""

import os
import re
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

import rewards
from data import code
from data.tokenizer import Tokenizer
from verifiers import sandbox, sandbox_child
from verifiers.sandbox import run, split
from verifiers.sandbox_child import canon

SQUARE = ["assert f(2) == 4", "assert f(5) == 25"]
try:
    sandbox.start()
    isolated = pytest.mark.skipif(False, reason="")
except ValueError as reason:
    isolated = pytest.mark.skip(reason=str(reason))


def text_of(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def alive():
    """Descendants of this process, and programs in the sandbox that have lost their parent."""
    parent = {}
    orphans = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        try:
            parent[pid] = text_of(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[1]
            command = text_of(f"/proc/{pid}/cmdline")
        except OSError:
            continue
        if parent[pid] == "1" and "sandbox_child.py" in command:
            orphans.add(pid)
    family = {str(os.getpid())}
    for _ in range(5):  # generations
        family |= {pid for pid in parent if parent[pid] in family}
    return family | orphans


@pytest.fixture(autouse=True)
def nothing_is_left():
    processes = alive()
    descriptors = os.listdir("/proc/self/fd")
    yield
    assert alive() <= processes and os.listdir("/proc/self/fd") == descriptors


# --- Ordinary programs -------------------------------------------------------------------------


@isolated
@pytest.mark.parametrize(
    "source, tests",
    [
        ("def f(x): return x * x", SQUARE),
        ("f = lambda x: x ** 2.0", SQUARE),  # 4.0 == 4
        ("def f(x):\n    print('now', x)\n    return x * x", SQUARE),
        (
            "class Stack:\n"
            "    def __init__(self):\n"
            "        self.items = []\n"
            "    def push(self, x):\n"
            "        self.items.append(x)\n"
            "        return self\n"
            "\n"
            "def f(n):\n"
            "    s = Stack()\n"
            "    [s.push(i) for i in range(n)]\n"
            "    return s.items",
            ["assert f(3) == [0, 1, 2]"],
        ),
        (
            "def gen(n):\n    for i in range(n):\n        yield i",
            ["assert list(gen(3)) == [0, 1, 2]", "assert sum(gen(4)) == 6"],
        ),
        (
            "from itertools import *\n"
            "from functools import reduce\n"
            "def f(xs): return list(accumulate(xs)), [*permutations(xs, 2)][:2]",
            ["assert f([1, 2, 3]) == ([1, 3, 6], [(1, 2), (1, 3)])"],
        ),
        (
            "import functools\n"
            "@functools.cache\n"
            "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)",
            ["assert fib(90) == 2880067194370816120"],
        ),
        (
            "import sys\n"
            "sys.setrecursionlimit(10000)\n"
            "def f(n): return 0 if n == 0 else 1 + f(n - 1)",
            ["assert f(5000) == 5000"],
        ),
        (
            "from dataclasses import dataclass\n"
            "@dataclass\n"
            "class P:\n"
            "    x: int\n"
            "def f(x): return P(x).x ** 2",
            SQUARE,
        ),
        (
            "from collections import *\n"
            "def f(s): return Counter(s)\n"
            "def g(): return namedtuple('T', 'a b')(1, 2)\n"
            "def h():\n"
            "    d = defaultdict(int)\n"
            "    d['b'] += 1\n"
            "    d['a'] += 2\n"
            "    return d",
            [
                "assert f('aab') == {'a': 2, 'b': 1}",
                "assert g() == (1, 2)",
                "assert h() == {'a': 2, 'b': 1}",
            ],
        ),
        (
            "import enum\n"
            "class E(enum.IntEnum):\n"
            "    A = 4\n"
            "def f(x): return E.A if x == 2 else 25",
            SQUARE,
        ),
        (
            "import re, math, json, random, string, heapq, bisect, decimal, fractions\n"
            "import datetime, statistics, operator, copy, typing\n"
            "def f(x): return int(math.isqrt(x ** 4))",
            SQUARE,
        ),
        (
            "def f(x): return frozenset([x, 1])\n"
            "def g(): return None\n"
            "def h(x): return x > 3\n"
            "def s(): return 'a\\nb\\u00e9\\ud800'\n"
            "def b(): return b'\\n'",
            [
                "assert f(2) == {1, 2}",
                "assert g() is None",
                "assert h(4)",
                "assert not h(3)",
                "assert h(1) == False, 'three or less'",
                "assert s() == 'a\\nb\\u00e9\\ud800'",
                "assert b() == b'\\n'",
            ],
        ),
        ("if __name__ == '__main__':\n    raise SystemExit(1)\ndef f(x): return x * x", SQUARE),
        (
            "print(sum(map(int, input().split())))",
            [("1 2\n", "3\n"), ("3 4", "7"), ("5 -5\n", "0   \n\n")],
        ),
        (
            "import sys\nfor line in sys.stdin:\n    print(line.strip()[::-1])",
            [("ab\ncd\n", "ba\ndc\n"), ("", "")],
        ),
        (
            "def main():\n    print('hé')\n    exit()\nif __name__ == '__main__':\n    main()",
            [("", "hé")],
        ),
        ("import os\nos.write(1, os.read(0, 100))", [("as it is\n", "as it is\n")]),
        ("print('x' * 900_000)", [("", "x" * 900_000)]),
        (
            "import sys\nprint(sys.argv, __file__, sys.stdin.seek(0), sys.stdin.read())",
            [("its stdin\n", "['solution.py'] solution.py 0 its stdin")],
        ),
        (
            "def f(n): return dict.fromkeys(range(n)).keys()\ndef g(): return {1: 2}.items()",
            ["assert f(2) == {0, 1}", "assert g() == {(1, 2)}"],
        ),
    ],
)
def test_ordinary_programs_pass(source, tests):
    assert run(source, tests) is True


@isolated
@pytest.mark.parametrize(
    "source, tests",
    [
        ("def f(x): return x + 2", SQUARE),
        ("def g(x): return x * x", SQUARE),
        ("", SQUARE),
        ("def f(x) return", SQUARE),
        ("def f(x): return str(x * x)", SQUARE),
        ("f = lambda x: [x * x]", SQUARE),
        ("f = lambda x: x > 0", ["assert f(1) == 1"]),
        ("f = lambda: (1, 2)", ["assert f() == [1, 2]"]),
        ("f = lambda: [1, True]", ["assert f() == [1, 1]"]),
        ("f = lambda: 1", ["assert f()"]),
        ("f = lambda: {}", ["assert f() == []"]),
        ("f = lambda: 1 / 0", ["assert f() is None"]),
        ("\0", SQUARE),
        ("\ud800", SQUARE),
        ("(" * 100_000, SQUARE),
        ("-" * 100_000 + "1", SQUARE),
        ("x = 1\nf = lambda x: float('nan')", SQUARE),
        ("print(3)\nprint(4)", [("", "3")]),
        ("print(3)", [("", "3\n4")]),
        ("print(3)\nraise SystemExit(1)", [("", "3")]),
        ("print(3)\n1 / 0", [("", "3")]),
        ("", [("", "3")]),
        ("1 / 0", [("", "")]),
        ("print(input())", [("3", "3"), ("3", "4")]),
        # what the docstring says that a program has not got
        (
            "import asyncio\nasync def g(): return 4\nf = lambda: asyncio.run(g())",
            ["assert f() == 4"],
        ),
        ("open('x', 'w').write('4')\nf = lambda: int(open('x').read())", ["assert f() == 4"]),
        ("from fractions import Fraction\nf = lambda: Fraction(4)", ["assert f() == 4"]),
    ],
)
def test_wrong_programs_fail(source, tests):
    assert run(source, tests) is False


# --- Claims ------------------------------------------------------------------------------------


@isolated
@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "raise SystemExit",
        "import builtins\nbuiltins.AssertionError = type(None)\nf = lambda x: 5",
        "f = lambda x: 5\nassert_ = True\n__debug__2 = False",
        "import builtins, ast\n"
        "for m in (builtins, ast):\n"
        "    for n in 'repr eval isinstance type literal_eval str sorted next'.split():\n"
        "        if hasattr(m, n):\n"
        "            setattr(m, n, lambda *a, **k: True)\n"
        "f = lambda x: 5",
        "class A:\n"
        "    def __eq__(self, other): return True\n"
        "    __hash__ = None\n"
        "    __bool__ = __ne__ = __lt__ = __eq__\n"
        "f = lambda x: A()",
        "class A:\n    def __repr__(self): return '4'\n    __str__ = __repr__\nf = lambda x: A()",
        "class A(int):\n"
        "    def __eq__(self, other): return True\n"
        "    def __repr__(self): return '4' if self else '25'\n"
        "f = lambda x: A(x)",
        "class A(str):\n    def __eq__(self, other): return True\nf = lambda x: A('4')",
        "class A(float):\n"
        "    def is_integer(self): return True\n"
        "    def __int__(self): return 4\n"
        "f = lambda x: A(x)",
        "f = lambda x: print('True', 'passed', 4, 25)",
        "print('4\\n25')\nf = lambda x: None",
        "import sys\n"
        "sys.stdout.write('4\\n25\\n' * 9)\n"
        "sys.stderr.write('4\\n25\\n')\n"
        "sys.stdout.flush()\n"
        "import os\n"
        "os._exit(0)",
        "import os\n"
        "for fd in range(64):\n"
        "    try: os.write(fd, b'True\\nTrue\\n')\n"
        "    except OSError: pass\n"
        "os._exit(0)",
        "import os\nos.closerange(0, 64)\nf = lambda x: x * x",
        "import os\n"
        "for fd in range(64):\n"
        "    try: os.lseek(fd, 0, 0)\n"
        "    except OSError: pass\n"
        "f = lambda x: 5",
        "import sys\nsys.modules['__main__'] = sys.modules['solution'] = None\nf = lambda x: 5",
        "import sys\n"
        "frame = sys._getframe()\n"
        "while frame:\n"
        "    for g in (frame.f_globals, frame.f_locals):\n"
        "        if 'canon' in g: g['canon'] = lambda v: 'True'\n"
        "        if 'calls' in g and isinstance(g['calls'], list): g['calls'].clear()\n"
        "        elif 'calls' in g: g.update(calls=())\n"
        "    frame = frame.f_back\n"
        "f = lambda x: 5",
        "import atexit, os\natexit.register(os._exit, 0)\nf = lambda x: 5",
        "import ctypes\nctypes.string_at(0)",
        "def f(x):\n    v = []\n    for _ in range(10 ** 5): v = [v]\n    return v",
        "def f(x):\n    v = []\n    v.append(v)\n    return v",
        "f = lambda x: 'x' * 10 ** 7",
        "f = lambda x: 10 ** 10 ** 4",
        "f = lambda x: (i for i in [4, 25])",
    ],
)
def test_claims_are_worth_nothing(source):
    assert run(source, SQUARE) is False


SEARCH = """
import gc, os, sys
WHAT = "".join(reversed("DERAPS"))  # the head of the expected value, not written out here
def search(root):
    seen, todo = set(), [root]
    while todo:
        thing = todo.pop()
        if isinstance(thing, str) and thing.startswith(WHAT) and len(thing) > len(WHAT):
            return thing
        if isinstance(thing, bytes) and WHAT.encode() in thing:
            return WHAT + thing.split(WHAT.encode())[1][:4].decode()
        if id(thing) not in seen:
            seen.add(id(thing))
            todo += gc.get_referents(thing)
def f(x):
    os.lseek(0, 0, 0)
    roots = [gc.get_objects(), sys._getframe(), os.read(0, 1 << 20)]
    return search(roots + [os.environ, sys.argv, sys.orig_argv])
"""


@isolated
def test_the_expected_value_is_nowhere_in_the_child(monkeypatch):
    monkeypatch.setenv("EXPECTED", "SPARED1234")
    tests = ["assert f(1) == 'SPARED1234'"]
    assert run(SEARCH, tests) is False
    has_it = SEARCH.replace("[gc.", "['SPAR' + 'ED1234', gc.")
    assert run(has_it, tests)  # the search would find it
    environment = "import os\nf = lambda: sorted({*os.environ} - {'LC_CTYPE'})"
    assert run(environment, ["assert f() == ['PYTHONHASHSEED']"])


# --- Barriers ----------------------------------------------------------------------------------


HARMLESS = [  # refused in the sandbox, done outside of it
    "open(SECRET)",
    "open('/etc/passwd')",
    "os.listdir('/')",
    "os.listdir(os.path.dirname(SECRET))",
    "open(PROJECT)",
    "open('/proc/self/environ')",
    "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "open(f'/proc/{os.getppid()}/cmdline')",
    "open(SECRET + '.new', 'w')",
    "open('/dev/shm/pocket', 'w').close(), os.remove('/dev/shm/pocket')",
    "open(SECRET, 'a')",
    "os.open('/tmp', os.O_TMPFILE | os.O_RDWR)",
    "os.mkdir(SECRET + '.dir')",
    "os.link(SECRET, SECRET + '.link')",
    "os.symlink('/', SECRET + '.sym')",
    "os.chmod(SECRET, 0o600)",
    "os.chown(SECRET, os.getuid(), os.getgid())",
    "os.utime(SECRET, (0, 0))",
    "os.truncate(SECRET, 0)",
    "os.rename(SECRET, SECRET + '.moved')",
    "os.remove(SECRET + '.moved')",
    "socket.socket()",
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "socket.socket(socket.AF_UNIX)",
    "socket.socketpair()",
    "os.fork() or os._exit(0)",
    "os.posix_spawn('/bin/true', ['true'], {})",
    "subprocess.run(['/bin/true'], check=True)",
    "os.execv('/bin/true', ['true'])",
    "os.kill(os.getppid(), 0)",
    "resource.prlimit(os.getppid(), resource.RLIMIT_CORE)",
    "os.pipe()",
    "os.memfd_create('x')",
    "os.eventfd(0)",
    "syscall(57) or os._exit(0)",  # fork
    "syscall(56, 17, 0, 0, 0, 0) or os._exit(0)",  # clone
    "syscall(41, 2, 1, 0)",  # socket
    "syscall(2, SECRET.encode(), 0x41, 0)",  # open
    "syscall(157, 1, 0, 0, 0, 0)",  # prctl
    # a signal by way of a file
    "fcntl.fcntl(os.open('/usr/lib', os.O_RDONLY), fcntl.F_SETOWN, os.getppid())",
]
HARMFUL = [  # outside of it not even tried here
    "os.kill(os.getpid(), signal.SIGSTOP)",
    "os.killpg(0, signal.SIGKILL)",
    "signal.raise_signal(signal.SIGSTOP)",
    "os.setpgid(0, 0)",
    "signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)",
    "os.setsid()",
    "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "syscall(435, 0, 0)",  # clone3
    "syscall(425, 1, bytes(120))",  # io_uring_setup
    "syscall(29, 0, 4096, 0o1600)",  # shmget
    "syscall(272, 0x10000000)",  # unshare
    "syscall(101, 16, os.getppid(), 0, 0)",  # ptrace
    "syscall(0x40000000 + 39)",  # getpid of the x32 interface
    "syscall(165, b'none', b'/tmp', b'tmpfs', 0, 0)",  # mount
]


@isolated
@pytest.mark.parametrize("attempt", HARMLESS + HARMFUL)
def test_barriers_hold(attempt, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the answer")
    os.utime(secret, (1, 1))
    if ".moved" in attempt:
        (tmp_path / "secret.moved").write_text("x")
    files = sorted(os.listdir(tmp_path))
    source = f"""
import ctypes, fcntl, os, resource, signal, socket, subprocess, sys, threading
SECRET, PROJECT = {str(secret)!r}, {os.path.join(ROOT, "data", "code.py")!r}
def syscall(number, *arguments):
    result = ctypes.CDLL(None).syscall(number, *arguments)
    if result < 0: raise OSError(number)
    return result
refused = False
try: {attempt}
except OSError: refused = True
f = lambda x: x * x if refused else -1
"""
    assert run(source, SQUARE) is True
    assert sorted(os.listdir(tmp_path)) == files
    assert secret.read_text() == "the answer" and secret.stat().st_mtime == 1
    if attempt in HARMLESS:
        done = subprocess.run(
            [sys.executable, "-c", source + "sys.exit(7 if refused else 0)"],
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stderr


@isolated
@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "x = bytearray(10 ** 10)",
        "x = []\nwhile True: x.append(bytearray(10 ** 6))",
        "x = '9' * 10 ** 9",
        "9 ** 9 ** 9",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import threading\n"
        "threading.Thread(target=lambda: [0 for _ in iter(int, 1) if _]).start()\n"
        "f = lambda x: x * x",
        "import os\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        import time\n"
        "        time.sleep(100)\n"
        "    os._exit(0)\n"
        "f = lambda x: x * x",
        "import subprocess\n"
        "subprocess.Popen(['sleep', '100'], start_new_session=True)\n"
        "f = lambda x: x * x",
        "import signal, time\n"
        "for s in range(1, 65):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "time.sleep(100)",
        "import atexit, time\natexit.register(time.sleep, 100)\nf = lambda x: x * x",
        "def f(x):\n    while True: print('x' * 10 ** 6)",
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(100,)).start()",
    ],
)
def test_bombs_end_and_leave_nothing(source):
    began = time.time()
    assert run(source, SQUARE, timeout=0.7) is False
    assert time.time() - began < 3  # 0.7 s and a busy machine


@isolated
@pytest.mark.parametrize(
    "source",
    [
        "while True: print('x' * 10 ** 6)",
        "print('x' * 10 ** 8)",
        "import sys\nsys.stdout.buffer.write(bytes(2 ** 21))",
        "import os\nwhile True: os.write(1, bytes(10 ** 6))",
        "import os\nos.lseek(1, 2 ** 40, 0)\nos.write(1, b'x')",
    ],
)
def test_huge_output_fails(source):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wanted = "x" * 10**8 if "8" in source else "x"
    assert run(source, [("", wanted)], timeout=0.7) is False
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 300_000  # of the 100 MB wanted above


@isolated
def test_the_memory_limit_is_the_one_asked_for():
    source = "def f(mb): return len(bytearray(mb << 20))"
    small, large = [f"assert f(100) == {100 << 20}"], [f"assert f(300) == {300 << 20}"]
    assert run(source, small) and not run(source, large)
    assert run(source, large, memory_mb=512) and not run(source, small, memory_mb=64)


@isolated
def test_a_program_dies_with_the_trainer():
    script = (
        f"import sys\n"
        f"sys.path.insert(0, {ROOT!r})\n"
        f"from verifiers import sandbox\n"
        f"sandbox.start()\n"
        f"print('ready', flush=True)\n"
        f"sandbox.run('import time\\ntime.sleep(60)', ['assert f(1) == 1'], timeout=60)"
    )
    before = alive()
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert trainer.stdout.readline() == "ready\n"
    time.sleep(0.5)
    assert len(alive() - before) == 2  # it and the program
    trainer.send_signal(signal.SIGKILL)
    trainer.communicate()
    for _ in range(50):
        if alive() <= before:
            break
        time.sleep(0.1)
    assert alive() <= before


@isolated
def test_many_calls_threads_and_the_price_of_one():
    program = "def f(x): return x * x"
    wrong = []
    seconds = []

    def work():
        for i in range(5):
            if not run(program, SQUARE) or run("f = id", SQUARE):
                wrong.append(i)

    def used():
        here = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return here.ru_utime + here.ru_stime + children.ru_utime + children.ru_stime

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for _ in range(40):
        began = used()
        assert run(program, SQUARE)
        seconds.append(used() - began)
    assert statistics.median(seconds) < 0.070  # of computing, whatever else the machine does


@isolated
def test_the_same_program_gives_the_same_values():
    program = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"  # ordered by hash
    orders = set()
    for _ in range(6):
        _, lines = sandbox.execute(program, ["f()"], "", 2.0, 256)
        orders.add(tuple(lines))
    assert len(orders) == 1


# --- Refusals ----------------------------------------------------------------------------------


def start_of_a_broken_copy(folder, right, wrong, unsafe):
    """-> stdout, stderr of a program that starts a copy in which a line of the child is broken."""
    shutil.copytree(os.path.join(ROOT, "verifiers"), folder / "verifiers", dirs_exist_ok=True)
    path = folder / "verifiers" / "sandbox_child.py"
    source = path.read_text()
    assert source.count(right) == 1
    path.write_text(source.replace(right, wrong))
    script = (
        f"import sys\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        f"from verifiers import sandbox\n"
        f"try: sandbox.start({unsafe})\n"
        f"except ValueError as e: print(e)\n"
        f"else: print(sandbox.run('f = lambda x: x * x', ['assert f(2) == 4']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.stdout, done.stderr


@isolated
@pytest.mark.parametrize(
    "right, wrong, lost",
    [
        (
            "libc.syscall(446, rules, 0)",
            "libc.syscall(446, -1, 0)",
            "host files IN REACH, network and processes off",
        ),
        ("prctl(22, 2,", "prctl(22, 9,", "host files hidden, network and processes IN REACH"),
    ],
)
def test_without_isolation_nothing_runs_unless_it_is_allowed(right, wrong, lost, tmp_path):
    out, err = start_of_a_broken_copy(tmp_path, right, wrong, unsafe=False)
    assert "without isolation" in out and lost in out and err.startswith(f"code sandbox: {lost}")
    assert start_of_a_broken_copy(tmp_path, right, wrong, unsafe=True)[0] == "True\n"


def verdict_of_the_filter(number, architecture, flags):
    """The seccomp filter, run by an interpreter of the four operations that it has."""
    call = struct.pack("IIQ6Q", number, architecture, 0, 0, 0, flags, 0, 0, 0)
    program = sandbox_child.seccomp_filter()
    place = word = 0
    while True:
        operation, skip_if, skip_if_not, value = struct.unpack_from("HBBI", program, 8 * place)
        place += 1
        if operation == sandbox_child.LOAD:
            (word,) = struct.unpack_from("I", call, value)
        elif operation == sandbox_child.IF_EQUAL:
            place += skip_if if word == value else skip_if_not
        elif operation == sandbox_child.IF_ANY_BIT:
            place += skip_if if word & value else skip_if_not
        else:
            assert operation == sandbox_child.RETURN
            return value


def test_the_filter_by_itself():
    """What it refuses, whatever Landlock and the limits would refuse too."""
    x86_64, openat = 0xC000003E, 257
    for number in [*range(600), 0x40000000 + 39, 2**32 - 1]:
        for flags in (0, os.O_CLOEXEC, os.O_DIRECTORY):
            allowed = number in sandbox_child.HARMLESS or number == openat
            verdict = sandbox_child.ALLOW if allowed else sandbox_child.REFUSE
            assert verdict_of_the_filter(number, x86_64, flags) == verdict
            assert verdict_of_the_filter(number, 0x40000003, flags) == sandbox_child.REFUSE
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE):
        assert verdict_of_the_filter(openat, x86_64, flags) == sandbox_child.REFUSE
    names = {"fork", "clone", "execve", "socket", "open", "kill", "ptrace", "fcntl", "mount"}
    with open(f"{ROOT}/verifiers/system_calls.txt") as f:
        assert not names & set(f.read().split())
    assert not {2, 41, 56, 57, 58, 59, 62, 72, 101, 165} & set(sandbox_child.HARMLESS)


@isolated
def test_namespaces_where_the_system_lets_it():
    """What a child says of its namespaces is what the kernel shows.

    The other walls, which would hide /proc from it, are left out."""
    script = f"""if True:
        import ctypes, os, sys
        sys.path.insert(0, {ROOT!r})
        from verifiers import sandbox_child
        class OnlyNamespaces:
            unshare = ctypes.CDLL(None).unshare
            def prctl(*arguments): return -1
            syscall = prctl
        ctypes.CDLL = lambda _: OnlyNamespaces
        before = os.readlink("/proc/self/ns/net")
        said = sandbox_child.confine(4096, -1)
        print("own namespaces" in said, os.readlink("/proc/self/ns/net") != before)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout in ("True True\n", "False False\n"), done.stderr


@isolated
def test_a_child_that_does_not_start_is_no_wrong_answer(tmp_path, monkeypatch):
    out, _ = start_of_a_broken_copy(
        tmp_path, "libc = ctypes.CDLL(None)", "raise OSError('no such luck')", unsafe=True
    )
    assert "no such luck" in out  # refused, even so
    assert run("f = lambda x: x * x", SQUARE)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="did not start"):
        run("f = lambda x: x * x", SQUARE)


def test_importing_starts_nothing():
    script = (
        f"import sys\n"
        f"sys.path.insert(0, {ROOT!r})\n"
        f"import subprocess\n"
        f"subprocess.Popen = None\n"
        f"import rewards, data.code, data.gym\n"
        f"from verifiers import sandbox, external\n"
        f"assert sandbox.System.confinement is None and external.REASONING_GYM.process is None"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize(
    "test, wanted",
    [
        ("assert f(2) == 4", ("f(2)", "4")),
        ("assert f(2) == 4.0, 'no'", ("f(2)", "4")),
        ("assert f(*[1], k=2) == (1,)", ("f(*[1], k=2)", "tuple(1)")),
        ("assert f(f(2)) == -1", ("f(f(2))", "-1")),
        ("assert f(2) is None", ("f(2)", "None")),
        ("assert f(2)", ("f(2)", "True")),
        ("assert not f(2)", ("f(2)", "False")),
        ("assert list(g([1] * 3)) == []", ("list(g([1] * 3))", "list()")),
        (
            "assert f(10 ** 9, [x for x in 'ab']) == {'b': 1, 'a': {2, 1}}",
            ("f(10 ** 9, [x for x in 'ab'])", "dict(tuple('a', set(1, 2)), tuple('b', 1))"),
        ),
    ],
)
def test_an_assert_line_is_taken_apart(test, wanted):
    assert split(test) == wanted


@pytest.mark.parametrize(
    "test",
    [
        "assert abs(f(2) - 4) == 0",
        "assert isclose(f(2), 4)",
        "assert math.isclose(f(2), 4)",
        "assert isinstance(f(2), int)",
        "assert f(2) == g(2)",
        "assert (f(2) == 4) == True",
        "assert f(2) == 4 == 4",
        "assert 4 == f(2)",
        "assert f(2) != 5",
        "assert f(2) < 5",
        "assert f(2) in (4, 5)",
        "assert f(2) == 4 and f(3) == 9",
        "assert f(2).__eq__(4)",
        "assert all([f(2), 4])",
        "assert all(f(x) == 4 for x in [2])",
        "assert True",
        "assert x == 4",
        "assert (lambda: f(2) == 4)()",
        "assert f(2) == {[]}",
        "assert f(2) == ...",
        "f(2) == 4",
        "x = 1\nassert f(x) == 4",
        "assert f(2) ==",
        "",
        "\0",
        "assert f(2) == 1j",
    ],
)
def test_other_tests_are_refused(test):
    with pytest.raises(ValueError, match="cannot judge the test"):
        split(test)


@isolated
def test_a_program_without_tests_is_refused():
    with pytest.raises(ValueError, match="tests: at least one"):
        run("f = 1", [])
    with pytest.raises(ValueError, match="cannot judge"):
        run("f = lambda x: x * x", ["assert f(2) == 4", "assert True"])


def test_canon_is_equality_but_for_types():
    values = [
        None,
        True,
        False,
        0,
        1,
        -0.0,
        1.0,
        0.5,
        1e300,
        10**300,
        float("inf"),
        "1",
        "",
        "None",
        b"1",
        [],
        (),
        set(),
        {},
        frozenset(),
        [1],
        (1,),
        {1},
        {1: 1},
        {1.0: True},
        {1: True},
        [True],
        ["a, b"],
        ["a", "b"],
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        {"ab", "c"},
        frozenset({"c", "ab"}),
        [[1], 2],
        [[1, 2]],
        ((),),
        ("",),
    ]

    def marked(value):
        """The value with its booleans as text, since == does not tell True from 1."""
        if isinstance(value, bool):
            return f"bool {value}"
        if isinstance(value, dict):
            return {key: marked(part) for key, part in value.items()}
        if isinstance(value, list):
            return [marked(part) for part in value]
        return value

    for a in values:
        for b in values:
            assert (canon(a) == canon(b)) == (marked(a) == marked(b)), (a, b)
    with pytest.raises(TypeError):
        canon(object())


# --- The task ----------------------------------------------------------------------------------


@isolated
def test_the_task_is_solvable_and_tables_of_the_examples_fail():
    train, sets = code.load(0)
    other_train, same_sets = code.load(1)
    assert train != other_train and sets == same_sets
    functions = {"train": {problem["solution"] for problem in train}}
    for name, problems in sets.items():
        functions[name] = {problem["solution"] for problem in problems}
    assert not functions["train"] & (functions["new functions"] | functions["two cases"])
    sizes = {name: len(solutions) for name, solutions in functions.items()}
    assert sizes["train"] > 300 and min(sizes.values()) > 30, sizes
    everything = train + sets["new functions"] + sets["two cases"]
    prompts = {problem["prompt"] for problem in train}
    assert not any(problem["prompt"] in prompts for problem in everything[len(train) :])
    tokenizer = Tokenizer.load(os.path.join(ROOT, "data", "base"))
    assert max(len(tokenizer.encode(problem["prompt"])) for problem in everything) < 64
    for problem in everything[::9]:  # by plain Python: the texts are our own
        space = {}
        exec(problem["solution"], space)
        tests = problem["tests"]
        examples = problem["prompt"].removeprefix("User: ").removesuffix("\nAssistant:").split()
        assert tests[:4] == [f"assert {example.replace('=', ' == ')}" for example in examples]
        assert len(examples) == 4 and len(set(tests)) == 10
        for test in tests:
            assert split(test)
            exec(test, space)
    for problem in train[:6] + sets["new functions"][:3] + sets["two cases"][:3]:
        values = re.findall(r"f\((\d+)\)=(-?\d+)", problem["prompt"])
        examples = {int(x): int(value) for x, value in values}
        assert len(examples) == 4
        for source, right in (
            (problem["solution"], 1.0),
            (f"f = {examples}.get", 0.0),
            ("def f(x): return x", 0.0),
        ):
            response = f"<think>hm</think>\n<answer>{source}</answer>"
            assert rewards.accuracy(problem, response) == right


@isolated
@pytest.mark.parametrize(
    "answer, right",
    [
        ("def f(x): return x*x", 1),
        ("\n```python\ndef f(x):\n    return x*x\n```\n", 1),
        ("```\nf = lambda x: x*x\n```", 1),
        ("Here it is:\n```py\nf = lambda x: x*x\n``` done", 1),
        ("```python\nf = 1\n```\nno:\n```python\nf = lambda x: x*x\n```", 1),
        ("```python\nf = lambda x: x*x\n```\nor\n```python\nf = 1\n```", 0),
        ("```python\nf = lambda x: x*x\n```\nprints\n```\n4\n```", 1),
        ("```\nf = 1\n```\nso:\n```Python\nf = lambda x: x*x\n```\nor:\n```\n4\n``` ```", 1),
        ("```python\nf = lambda x: x*x\n```\n```python\nf = 1\n```\n```\n4\n```", 0),
        ("```python\ndef f(x): return x*x", 0),
        ("``` ```", 0),
        ("```", 0),
        ("", 0),
        ("```" * 200_000, 0),
        ("4 25", 0),
    ],
)
def test_the_verifier(answer, right):
    problem = {"kind": "code", "tests": SQUARE}
    assert rewards.accuracy(problem, f"<think>x</think><answer>{answer}</answer>") == right
