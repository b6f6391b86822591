"""Commands that a release runs, and how one stops."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A check of the release that did not pass; its text is one line for a person."""


def run(*command: object, cwd: Path = ROOT, extra: Mapping[str, str] | None = None) -> str:
    """Run a command outside of the checkout's import path; what it printed.  Raises `Failed` with its last lines."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=environment | dict(extra or {}), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(f"{done.stdout}\n{done.stderr}".strip().splitlines()[-20:])
        raise Failed(f"{' '.join(words[:6])} … ended with {done.returncode}:\n{last}")
    return done.stdout


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def folder_mib(folder: Path) -> int:
    """What a folder takes on disk, in MiB; hard links count once, links not at all."""
    sizes: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = (Path(parent) / name).lstat()
            sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values()) >> 20
