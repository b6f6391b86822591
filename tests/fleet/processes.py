"""The command line: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from chainctl.cli import main

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
