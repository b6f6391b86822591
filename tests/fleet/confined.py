"""The command line in a process that the system ends at a limit of processor time or of memory.

It is forked from a process that has imported and done nothing else.  A fork of the test process would begin with what
the tests before left there: a heap full of holes absorbs what the limit is there to refuse.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from multiprocessing import forkserver, get_context
from pathlib import Path
from unittest import mock

import pyarrow  # noqa: F401  a command that begins with it has it counted as the limit's
import transformers.models.auto.modeling_auto  # noqa: F401

from chainctl.cli import main
from stages.process.confined import data_bytes
from tests.fleet.processes import ROOT, Done

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "tests.fleet"])


def chainctl_confined(*arguments: object, folder: Path, cpu_seconds: int = 10, extra_bytes: int = 192 * 2**20) -> Done:
    """Run the command line within limits; what it says goes through files in `folder`.

    A code below zero is the signal that ended it; SIGALRM: it waited for something for two minutes.
    """
    command = ["chainctl", *map(str, arguments)]
    streams = [folder / "stdout", folder / "stderr"]
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):  # what is imported beforehand is found from anywhere
        forkserver.ensure_running()
    process = FORKS.Process(target=_run, args=(command, streams, dict(os.environ), cpu_seconds, extra_bytes))
    process.start()
    process.join()
    return Done(command, process.exitcode or 0, *(path.read_text() for path in streams))


def _run(command: list[str], streams: list[Path], environment: dict[str, str], cpu_seconds: int, extra: int) -> None:
    code = 1
    try:
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.alarm(120)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
        most = (data_bytes() or 0) + extra
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        os.environ.update(environment)
        sys.argv = command
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
