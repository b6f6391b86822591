"""A copy of the tree, and the processes forked for its mutants.

A process collects the tests of a module once and forks one for each mutant, which puts it into the functions there and
runs the tests that reach it.  A mutant that cannot be put in, or that only other processes would meet, is written into
the copy, and its tests are collected anew, in a process that has the heavy libraries and none of our modules.
"""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest

from mutants.reach import Only, Reach, Tracer, file_of
from mutants.swap import CannotSwap, functions_of, swap
from mutants.targets import Target

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

OURS = ("chainctl", "stages", "schemas", "tests")
FOLDERS = ("benchmarks", "docs", "examples", "website")
COPIED = (*OURS, *FOLDERS, "mkdocs.yml", "pyproject.toml", "README.md", "CHANGELOG.md", "Justfile", "LICENSE")
Outcome = Literal["killed", "survived", "timeout"]
NOT_RUN = 5  # pytest's exit statuses from here on: the tests could not be asked (4: a mutant cannot be imported)
CANNOT = 99
BASELINE_SECONDS = 900.0


@dataclass
class Run:
    """Tests that run in a process of their own."""

    process: int
    deadline: float

    def outcome(self) -> Outcome | Literal["cannot"] | None:
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
        if code == CANNOT:
            return "cannot"
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

    def ask(self, tests: Sequence[str], *, seconds: float) -> Run:
        """Run some tests of the copy as it is now, up to the first that fails, at most so long."""
        process = os.fork()
        if not process:
            end_with(lambda: self.pytest(dict.fromkeys(map(file_of, tests)), Only(tests)))
        return Run(process, time.monotonic() + seconds)

    def serve(self, target: Target, *, loaded: Path) -> "Server":
        """A process that has the tests of a module collected, and has run them once.

        At its end it leaves the names of the libraries that they have loaded.
        """
        here, there = Pipe()
        process = os.fork()
        if not process:
            end_with(lambda: self._serve(target, there, loaded))
        there.close()
        return Server(process, here)

    def _serve(self, target: Target, connection: "Connection[Any, Any]", loaded: Path) -> int:
        code = self.pytest(target.tests, Serving(self.folder, target.module, connection))
        loaded.write_text("\n".join(name for name in sys.modules if name.split(".")[0] not in OURS))
        return code

    def pytest(self, files: Iterable[str], plugin: object) -> int:
        """In a forked process: pytest's exit status."""
        os.chdir(self.folder)
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(log, standard)
        home = str(self.folder)
        sys.path[:] = [home, *(entry for entry in sys.path if entry and not (Path(entry) / "stages").is_dir())]
        os.environ["PYTHONPATH"] = home
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        from hypothesis import Phase, settings

        # Without the search for the smallest example, and with the same examples for every mutant.
        settings.register_profile("mutants", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
        settings.load_profile("mutants")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--benchmark-disable"]
        return int(pytest.main([*options, f"--basetemp={self.folder / 'pytest'}", *files], plugins=[plugin]))


def end_with(work: Callable[[], int]) -> NoReturn:
    """Do the work of a forked process, and end it with the exit status that comes out."""
    code = NOT_RUN
    try:
        os.setsid()
        code = work()
    finally:
        os._exit(code)


@dataclass
class Server:
    """A process with the tests of one module."""

    process: int
    connection: "Connection[Any, Any]"

    def survey(self) -> Reach:
        """What its tests reach.  Raises `RuntimeError` if they fail."""
        if (path := self._answer()) is None:
            raise RuntimeError("the tests fail without a mutant")
        return Reach.read(path)

    def _answer(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise RuntimeError("the tests could not be collected") from None

    def ask(self, mutant: str, tests: Sequence[str], seconds: float) -> None:
        """Run tests on a mutant."""
        self.connection.send((mutant, tests, seconds))

    def outcome(self) -> Outcome | Literal["cannot"] | None:
        """What they found: None while they run; "cannot" where the mutant cannot be put into a process that runs."""
        if not self.connection.poll():
            return None
        found: Outcome | Literal["cannot"] = self._answer()
        return found

    def close(self) -> None:
        """End it."""
        self.connection.send(None)
        os.waitpid(self.process, 0)


@dataclass
class Serving:
    """A plugin of pytest: instead of running the tests it forks a process for each mutant, which runs some of them."""

    folder: Path
    module: str
    connection: "Connection[Any, Any]"
    forked: bool = False

    def pytest_runtestloop(self, session: Any) -> bool | None:
        """pytest's hook: None where the tests are to be run."""
        path = self.folder / self.module
        functions, source = functions_of(path), path.read_text()
        surveyed = self.folder / "reach.json"
        run = self._fork(BASELINE_SECONDS)
        if run is None:
            session.config.pluginmanager.register(Tracer(path, surveyed))
            return None
        self.connection.send(surveyed if waited(run) == "survived" else None)
        while asked := self.connection.recv():
            mutant, tests, seconds = asked
            run = self._fork(seconds)
            if run is None:
                try:
                    swap(functions, source, mutant, path)
                except CannotSwap:
                    os._exit(CANNOT)
                items = {item.nodeid: item for item in session.items}
                session.items[:] = [items[test] for test in tests if test in items]
                return None
            self.connection.send(waited(run))
            shutil.rmtree(self.folder / "pytest", ignore_errors=True)
            (self.folder / "pytest").mkdir()
        return True

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """pytest's hook."""
        if self.forked:
            os._exit(int(exitstatus))

    def _fork(self, seconds: float) -> Run | None:
        """None in the process that was forked."""
        process = os.fork()
        if process:
            return Run(process, time.monotonic() + seconds)
        os.setsid()
        self.forked = True
        return None


def waited(run: Run) -> Outcome | Literal["cannot"]:
    """What the tests have found, once they have."""
    while not (outcome := run.outcome()):
        time.sleep(0.01)
    return outcome


def preload(names: Sequence[str]) -> None:
    """Import libraries, as far as they can be imported by name."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
