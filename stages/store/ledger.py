"""The coordinator's append-only record, beside its states: `states/ledger.jsonl`.

Each line names the digest of the line before, so that nothing can be altered, left out or inserted unnoticed.  An
incomplete line that a power cut left is removed by the next writer; the event is then recorded again, because every
writer checks first whether it was.

A federation has one ledger, found from the state that a round starts from, wherever the next state goes (`heads.py`).
Whoever decides by what it says holds its lock until the decision is recorded.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import NotTrusted
from schemas.ledger import LINE_LIMIT_BYTES, Accepted, Event, Planned, line_bytes, line_digest, parse_line
from stages.process import intent
from stages.store.filesystem import locked_file, sync_directory, sync_file
from stages.store.regular import open_regular

LEDGER_FILE = "ledger.jsonl"

Entry = Callable[[str | None], Event]  # makes an event that follows the line with that digest


@dataclass
class End:
    """Where the whole lines of a ledger end: their bytes, their number, and the digest of the last one."""

    size_bytes: int = 0
    line_count: int = 0
    line: str | None = None

    def follow(self, line: bytes) -> None:
        """One line further."""
        self.size_bytes, self.line_count, self.line = (
            self.size_bytes + len(line),
            self.line_count + 1,
            line_digest(line),
        )

    def watch(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events as they come."""
        for event in events:
            self.follow(line_bytes(event))
            yield event


def unremembered(end: End) -> None:
    """What is done with the end of a ledger that nobody remembers."""


@dataclass(frozen=True)
class Ledger:
    """The ledger at `path`, which may not exist yet."""

    path: Path

    def events(self) -> Iterator[Event]:
        """Every event in order.  Raises `NotTrusted` where a line does not follow the one before."""
        if not os.path.lexists(self.path):
            return
        with os.fdopen(open_regular(self.path), "rb") as file:
            previous, number = None, 0
            while line := file.readline(LINE_LIMIT_BYTES + 1):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > LINE_LIMIT_BYTES:
                        raise NotTrusted(f"{self.path}: line {number} is too long", hint="the ledger was altered")
                    return  # a power cut; see `append`
                yield parse_line(line, number=number, previous=previous, source=str(self.path))
                previous = line_digest(line)

    def append(self, entries: Callable[[Iterable[Event]], Sequence[Entry]]) -> None:
        """Append what `entries` derives from the events so far, in one durable write.  One writer at a time.

        The events pass once, one after the other: a ledger has a line for each update of each round.
        """
        with self.locked() as ledger:
            ledger.append(entries)

    def holds(self, line: str, *, size_bytes: int) -> bool:
        """Whether the line with digest `line` ends after `size_bytes`.

        As each line names the one before, `events` then shows that everything up to there is as it was.
        """
        if not os.path.lexists(self.path):
            return False
        start = max(0, size_bytes - LINE_LIMIT_BYTES)
        with os.fdopen(open_regular(self.path), "rb") as file:
            data = os.pread(file.fileno(), size_bytes - start, start)
        whole = len(data) == size_bytes - start and data.endswith(b"\n")
        return whole and line_digest(data[:-1].rpartition(b"\n")[2] + b"\n") == line

    def planned(self, plan: str, state: str, participant_count: int) -> None:
        """Record that a federation begins, unless it is recorded."""

        def entries(events: Iterable[Event]) -> Sequence[Entry]:
            if any(isinstance(event, Planned) and event.state == state for event in events):
                return []
            return [
                lambda previous: Planned(previous=previous, plan=plan, state=state, participant_count=participant_count)
            ]

        self.append(entries)

    def counted(self, *, before: str) -> dict[str, int]:
        """Digests of the updates that counted for states other than `before`, with their rounds."""
        accepted = (event for event in self.events() if isinstance(event, Accepted))
        return {event.update: event.round for event in accepted if event.state != before}

    @contextmanager
    def locked(self, appended: Callable[[End], None] = unremembered) -> Iterator["LockedLedger"]:
        """The ledger with its lock held; `appended` is told the end of it, when every line is durable."""
        with locked_file(self.path) as descriptor:
            yield LockedLedger(self.path, descriptor, appended)


@dataclass(frozen=True)
class LockedLedger(Ledger):
    """A ledger that no other process changes meanwhile."""

    descriptor: int
    appended: Callable[[End], None]

    def append(self, entries: Callable[[Iterable[Event]], Sequence[Entry]]) -> None:
        """As `Ledger.append`, under the lock that is held."""
        end, new = End(), bytearray()
        events = end.watch(self.events())
        made = entries(events)
        for _ in events:  # those that `entries` had no need of
            pass
        start = end.size_bytes
        for entry in made:
            line = line_bytes(entry(end.line))
            assert len(line) <= LINE_LIMIT_BYTES, "a line is longer than anybody reads"
            end.follow(line)
            new += line
        if intent.is_dry_run():
            (intent.will_write(self.path, len(new)) if new else intent.is_there(self.path))
        elif new:
            os.ftruncate(self.descriptor, start)
            os.pwrite(self.descriptor, new, start)
        if end.line is not None:  # also where a killed command wrote the lines, and neither synced nor told them
            if not intent.is_dry_run():
                sync_file(self.descriptor, self.path.parent)
                sync_directory(self.path.parent)
            self.appended(end)
