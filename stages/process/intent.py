"""What a command is about to do, noted while it finds out; a dry run ends where the work would begin.

A dry run is the command itself, with its own checks: whoever opens an input, predicts a cost or is about to write says
so here.  Outside a dry run nobody listens.  In one,

- what writes a file or takes a lock (`store/files.py`, `store/filesystem.py` and what stands on them) notes it instead;
- what makes a folder of results, or starts to compute, ends the command: `begin`.

What can only be checked by writing is named as unchecked.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Intent:
    """What a command would do, as far as it has come.

    `reads` maps what it opened to what that is; `writes` what it would make, replace or extend to the number of bytes
    that is known beforehand (None: nothing is); `predicted` holds sizes (`…_bytes`), `seconds` and facts of the work.
    """

    reads: dict[Path, str] = field(default_factory=dict)
    writes: dict[Path, int | None] = field(default_factory=dict)
    predicted: dict[str, object] = field(default_factory=dict)
    unchecked: list[str] = field(default_factory=list)
    opened: set[Path] = field(default_factory=set, repr=False)  # `reads` from the root: a path may be spelled twice


class WorkBegins(BaseException):
    """A dry run has come to where the work would begin.  Nothing but `rehearsing` catches it."""


_noted: ContextVar[Intent | None] = ContextVar("intent", default=None)


@contextmanager
def rehearsing() -> Iterator[Intent]:
    """A dry run of the block, which ends at the latest where its work begins: what it would have done."""
    noted = Intent()
    before = _noted.set(noted)
    try:
        yield noted
    except WorkBegins:
        pass
    finally:
        _noted.reset(before)


def is_dry_run() -> bool:
    """Whether nothing may be written."""
    return _noted.get() is not None


def will_read(path: Path, what: str) -> None:
    """An input is opened."""
    noted = _noted.get()
    if noted and _absolute(path) not in noted.opened:
        noted.opened.add(_absolute(path))
        noted.reads[path] = what


def will_write(path: Path, size_bytes: int | None = None) -> None:
    """Something is made, replaced or extended at `path`, of at least `size_bytes`."""
    if noted := _noted.get():
        noted.writes[path] = size_bytes


def is_there(path: Path) -> None:
    """What would be written at `path` is there already, and stays."""
    if noted := _noted.get():
        noted.writes.pop(path, None)


def expect(**facts: object) -> None:
    """What is predicted of the work."""
    if noted := _noted.get():
        noted.predicted |= facts


def leave_unchecked(what: str) -> None:
    """A check that cannot be made without writing."""
    if noted := _noted.get():
        noted.unchecked.append(what)


def begin(*targets: Path) -> None:
    """Everything is checked that can be: here the work begins, and a dry run ends.

    `targets` are written; each stands for itself where nothing in it was noted.
    """
    if noted := _noted.get():
        there = [_absolute(path) for path in noted.writes]
        for target in targets:
            if not any(path.is_relative_to(_absolute(target)) for path in there):
                noted.writes[target] = None
        raise WorkBegins


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 -- `resolve` follows links
