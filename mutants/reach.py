"""Which tests reach which lines of a module: a mutant is asked only of those, the quickest first.

A line that runs when the module is loaded is reached by every test, and one that runs while fixtures are made by every
test of that file.  What runs in processes that tests start is not seen here: those tests are asked of a line that no
test reaches in its own process.  So a mutant that only they would find counts as survived where others reach it too,
and so does one that only slow tests would find: all tests of a mutant take fifteen seconds at most.
"""

import ast
import inspect
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

STARTS = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec")  # audit events
SLACK_SECONDS = 20.0
MOST_SECONDS = 15.0  # of all tests that a mutant is asked of
EVERYWHERE = ""  # the name under which the lines stand that run when a module is loaded


@dataclass(frozen=True)
class Reach:
    """By test: its seconds, the lines it reaches, and whether it starts processes."""

    seconds: dict[str, float]
    lines: dict[str, frozenset[int]]
    starts: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> "Reach":
        """What a `Tracer` has written."""
        found = json.loads(path.read_text())
        lines = {test: frozenset(lines) for test, lines in found["lines"].items()}
        return cls(found["seconds"], lines, frozenset(found["starts"]))

    def limit(self, tests: Sequence[str]) -> float:
        """How many seconds tests may take on a mutant."""
        return 3 * sum(self.seconds[test] for test in tests) + SLACK_SECONDS

    def tests(self, lines: range) -> list[str]:
        """The tests that an error in these lines is asked of, in order."""
        wanted = frozenset(lines)
        everywhere = bool(wanted & self.lines.get(EVERYWHERE, frozenset()))
        reaching = {
            test
            for test in self.seconds
            if everywhere or wanted & (self.lines.get(test, frozenset()) | self.lines.get(file_of(test), frozenset()))
        }
        ordered = sorted(reaching or self.starts, key=lambda test: self.seconds[test])
        until = itertools.accumulate(self.seconds[test] for test in ordered)
        return [test for test, seconds in zip(ordered, until, strict=True) if seconds <= MOST_SECONDS] or ordered[:1]


def file_of(test: str) -> str:
    """The file of a test, from its name."""
    return test.partition("::")[0]


def statement(tree: ast.AST, line: int) -> range:
    """The lines of the innermost statement at `line`; of one that holds others, only those before the first of them."""
    best = range(line, line + 1)
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            inner = [each.lineno for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)]
            last = min(inner) - 1 if inner else node.end_lineno or node.lineno
            if node.lineno <= line <= max(last, node.lineno) and not isinstance(node, ast.Module):
                best = range(node.lineno, max(last, node.lineno) + 1)
    return best


class Tracer:
    """A plugin of pytest that writes down what each test reaches in one module."""

    def __init__(self, module: Path, out: Path) -> None:
        self.module, self.out = str(module), out
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, set[int]] = {}
        self.starts: set[str] = set()
        self.test = self.place = EVERYWHERE
        sys.addaudithook(self._audit)
        threading.settrace(self._call)
        sys.settrace(self._call)

    def _audit(self, event: str, _arguments: Any) -> None:
        if event in STARTS and self.test:
            self.starts.add(self.test)

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != self.module:
            return None
        in_function = frame.f_code.co_flags & inspect.CO_NEWLOCALS and frame.f_code.co_flags & inspect.CO_OPTIMIZED
        reached = self.lines.setdefault(self.place if in_function else EVERYWHERE, set())

        def line(inner: FrameType, _event: str, _argument: Any) -> Any:
            reached.add(inner.f_lineno)
            return line

        return line(frame, "", None)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """pytest's hook."""
        self.test, self.place = nodeid, file_of(nodeid)
        self.seconds[nodeid] = time.monotonic()

    def pytest_runtest_call(self, item: Any) -> None:
        """pytest's hook: the fixtures are there."""
        self.place = item.nodeid
        sys.settrace(self._call)  # a test before may have taken it away

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """pytest's hook."""
        self.seconds[nodeid] = time.monotonic() - self.seconds[nodeid]
        self.test = self.place = EVERYWHERE

    def pytest_sessionfinish(self) -> None:
        """pytest's hook."""
        sys.settrace(None)
        lines = {test: sorted(lines) for test, lines in self.lines.items()}
        self.out.write_text(json.dumps({"seconds": self.seconds, "lines": lines, "starts": sorted(self.starts)}))


@dataclass(frozen=True)
class Only:
    """A plugin of pytest that runs some tests, in their order."""

    tests: Sequence[str]

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """pytest's hook."""
        items[:] = list(self._chosen({item.nodeid: item for item in items}))

    def _chosen(self, items: dict[str, Any]) -> Iterator[Any]:
        return (items[test] for test in self.tests if test in items)
