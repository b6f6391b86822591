"""A copy of the tree, and processes forked for its mutants: they have the heavy libraries, and none of our modules.

A mutant is written into the copy, so that processes which tests start find it as well.
"""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

OURS = ("chainctl", "stages", "schemas", "tests")
FOLDERS = ("benchmarks", "docs", "examples", "website")
COPIED = (*OURS, *FOLDERS, "mkdocs.yml", "pyproject.toml", "README.md", "CHANGELOG.md", "Justfile", "LICENSE")
Outcome = Literal["killed", "survived", "timeout"]
NOT_RUN = 5  # pytest's exit statuses from here on: the tests could not be asked (4: a mutant cannot be imported)


@dataclass
class Run:
    """Tests that run in a process of their own."""

    process: int
    deadline: float

    def outcome(self) -> Outcome | None:
        """What they found; None while they run.  Raises `RuntimeError` if they could not be run."""
        finished, status = os.waitpid(self.process, os.WNOHANG)
        if not finished and time.monotonic() < self.deadline:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # and what the tests started
        if not finished:
            os.waitpid(self.process, 0)
            return "timeout"
        code = os.waitstatus_to_exitcode(status)
        if code >= NOT_RUN:
            raise RuntimeError(f"pytest ended with {code}")
        return "killed" if code else "survived"


@dataclass(frozen=True)
class Slot:
    """One copy of the tree, in `folder`."""

    folder: Path

    @classmethod
    def of(cls, root: Path, folder: Path) -> "Slot":
        """A fresh copy."""
        shutil.rmtree(folder, ignore_errors=True)
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy2(source, folder / name)
        return cls(folder)

    def write(self, module: str, text: str) -> None:
        """Replace a module, and forget its compiled form."""
        path = self.folder / module
        path.write_text(text)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()

    def start(self, tests: Sequence[str], *, seconds: float, loaded: Path | None = None) -> Run:
        """Run tests, at most so long.  `loaded`: where to leave the names of the libraries that they have loaded."""
        process = os.fork()
        if process:
            return Run(process, time.monotonic() + seconds)
        code = NOT_RUN
        try:
            os.setsid()
            code = self._run(tests)
            if loaded:
                loaded.write_text("\n".join(name for name in sys.modules if name.split(".")[0] not in OURS))
        finally:
            os._exit(code)

    def _run(self, tests: Sequence[str]) -> int:
        """In the forked process: pytest's exit status."""
        os.chdir(self.folder)
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(log, standard)
        home = str(self.folder)
        sys.path[:] = [home, *(entry for entry in sys.path if entry and not (Path(entry) / "stages").is_dir())]
        os.environ["PYTHONPATH"] = home
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        import pytest
        from hypothesis import Phase, settings

        # Without the search for the smallest example, and with the same examples for every mutant.
        settings.register_profile("mutants", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--benchmark-disable"]
        return int(pytest.main([*options, f"--basetemp={self.folder / 'pytest'}", *tests], plugins=[QuickFirst()]))


class QuickFirst:
    """Runs tests that draw many examples last."""

    @staticmethod
    def pytest_collection_modifyitems(items: list[Any]) -> None:
        """pytest's hook."""
        items.sort(key=lambda item: item.get_closest_marker("hypothesis") is not None)


def preload(names: Sequence[str]) -> None:
    """Import libraries, as far as they can be imported by name."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
