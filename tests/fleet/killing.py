"""Commands that are killed before any chosen one of the calls by which they change a file system.

    LD_PRELOAD=lacking.so python -m tests.fleet.killing

A process that has imported everything, with the preloaded library of `lacking.py`, forks once for each command; in the
fork the library counts the calls, and kills.  So a kill takes milliseconds, and always comes at the same place.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fleet.processes import ROOT

KILLED = -9
Run = Callable[..., int]  # of (call, *arguments, lacks="…"): the exit code, or -9


@contextmanager
def killer(library: Path) -> Iterator[Run]:
    """A function that runs a command line and kills it before its `call`-th call (0: never); its exit code."""
    command = [sys.executable, "-m", "tests.fleet.killing"]
    own = {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}  # what an import caches is no command's call
    environment = os.environ | own
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sends, answers = process.stdin, process.stdout

        def run(call: int, *arguments: object, lacks: str = "") -> int:
            print(json.dumps([call, lacks, [*map(str, arguments)]]), file=sends, flush=True)
            return int(answers.readline())

        yield run
        sends.close()


def serve() -> None:
    """Fork for each line that comes."""
    for module in ("stages.aggregate", "stages.store.bundle", "stages.data.split", "chainctl.cli"):
        importlib.import_module(module)
    for line in sys.stdin:
        call, lacks, arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            run_command(call, lacks, arguments)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run_command(call: int, lacks: str, arguments: list[str]) -> None:
    """In the fork: become the command."""
    from chainctl.cli import main

    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os.environ["LACKING"] = lacks
    sys.argv = ["chainctl", *arguments]
    code = 70  # what no command gives
    ctypes.CDLL(None).kill_before_call(call)
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
