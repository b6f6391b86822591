"""The command line: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from chainctl.cli import main
from stages.process.measure import STATUS

ROOT = Path(__file__).resolve().parents[2]
Done = subprocess.CompletedProcess[str]


def chainctl(*arguments: object, check: bool = True, home: Path | None = None) -> Done:
    """Run the command line in this process: starting torch in another takes longer than most commands.

    `home` is whose keys and trust it finds; by default those of the test.
    """
    command = ["chainctl", *map(str, arguments)]
    environment = {"CHAINCTL_HOME": str(home)} if home else {}
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.dict("os.environ", environment),
        mock.patch("sys.argv", command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    done = Done(command, code, out.getvalue(), err.getvalue())
    if check and code:
        raise subprocess.CalledProcessError(code, command, done.stdout, done.stderr)
    return done


def chainctl_process(*arguments: object, check: bool = True, **options: Any) -> Done:
    """Run the command line in a process of its own, where the process is what is tested."""
    command = [sys.executable, "-m", "chainctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, cwd=ROOT, **options)


def chainctl_confined(*arguments: object, folder: Path, cpu_seconds: int = 10, extra_bytes: int = 192 * 2**20) -> Done:
    """Run the command line in a fork, which the system ends at a limit of processor time or of memory.

    What it says goes through files in `folder`.  A code below zero is the signal that ended it; SIGALRM: it waited for
    something for two minutes.
    """
    command = ["chainctl", *map(str, arguments)]
    streams = [folder / "stdout", folder / "stderr"]
    child = os.fork()
    if child == 0:
        code = 1
        gc.freeze()  # what the tests have made is not the command's to collect
        try:
            for number, path in enumerate(streams, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.alarm(120)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            data = next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmData:"))
            most = int(data) * 1024 + extra_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
            sys.argv = command
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return Done(command, os.waitstatus_to_exitcode(status), *(path.read_text() for path in streams))
