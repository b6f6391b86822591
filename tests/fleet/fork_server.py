"""`chainctl` for shell scripts: each command in a process of its own, and none that has to import torch again.

    python -m tests.fleet.fork_server SOCKET

A server that has imported everything forks once for each command.  The `chainctl` that a script finds on its path is a
small client: it hands over its arguments, folder, environment and open files, and ends with the command's exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fleet.processes import ROOT

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
    data = json.dumps(request).encode()
    socket.send_fds(server, [len(data).to_bytes(4, "little")], [0, 1, 2])
    server.sendall(data)
    code = server.recv(1)
sys.exit(code[0] if code else 70)
"""


@contextmanager
def chainctl_on_path(folder: Path) -> Iterator[Path]:
    """A folder with a `chainctl` in it, for as long as the block runs."""
    path, client = folder / "socket", folder / "chainctl"
    client.write_text(CLIENT.format(python=sys.executable, path=str(path)))
    client.chmod(0o755)
    command = [sys.executable, "-m", "tests.fleet.fork_server", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield folder
        finally:
            server.terminate()


def serve(path: Path) -> None:
    """Fork for each command that comes, until terminated."""
    for stage in ("profile", "plan", "train_window", "aggregate", "eval"):
        importlib.import_module(f"stages.{stage}")
    importlib.import_module("transformers.models.bert.modeling_bert")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: the client hears the exit code
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                run_command(connection)
            connection.close()


def run_command(connection: socket.socket) -> None:
    """In the fork: become the command, and say how it ended."""
    from chainctl.cli import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, *_ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(head, "little")))
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["chainctl", *request["arguments"]]
    code = 70  # what no command gives
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([code]))
        os._exit(0)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
