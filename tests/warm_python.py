"""A Python that has imported torch already, for tests of scripts that start many programs.

    python tests/warm_python.py FOLDER

makes FOLDER/python, which runs a program as the command `python` would, in a fork of this one.
"""

import json
import os
import pathlib
import runpy
import signal
import socket
import sys
import traceback

CLIENT = """#!{} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [request], [0, 1, 2])
os._exit(int(server.recv(8) or b"1"))
"""


def run(words, folder, environment, files):
    """In the fork -> the status that the program ends with."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        if words[0] == "-m":
            sys.path[0], sys.argv = folder, words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0], sys.argv = os.path.dirname(os.path.abspath(words[0])), words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve(folder):
    import torch._dynamo  # noqa: F401

    import plot  # noqa: F401
    import train  # noqa: F401
    from stages import rejection, reward_model  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children are nobody's
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen()
    client = pathlib.Path(folder, "python")
    client.write_text(CLIENT.format(sys.executable, f"{folder}/socket"))
    client.chmod(0o755)
    print("ready", flush=True)
    while True:
        caller, _ = listener.accept()
        request, files, _, _ = socket.recv_fds(caller, 1 << 16, 3)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            status = run(*json.loads(request), files)
            sys.stdout.flush()
            caller.sendall(b"%d" % status)
            os._exit(0)
        for file in files:
            os.close(file)
        caller.close()


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    serve(sys.argv[1])
