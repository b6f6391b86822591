"""The coordinator's append-only record, beside its states: `states/ledger.jsonl`.

Each line names the digest of the line before, so that nothing can be altered, left out or inserted unnoticed.  An
incomplete line that a power cut left is removed by the next writer; the event is then recorded again, because every
writer checks first whether it was.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import NotTrusted
from schemas.ledger import LINE_LIMIT_BYTES, Accepted, Closed, Event, Planned, line_bytes, line_digest, parse_line
from stages.store.filesystem import lock, lock_file, sync_directory, sync_file
from stages.store.regular import open_regular

LEDGER_FILE = "ledger.jsonl"

Entry = Callable[[str | None], Event]  # makes an event that follows the line with that digest


@dataclass
class _End:
    """Where the whole lines of a ledger end, and the digest of the last one."""

    size: int = 0
    digest: str | None = None

    def watch(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events as they come."""
        for event in events:
            line = line_bytes(event)
            self.size, self.digest = self.size + len(line), line_digest(line)
            yield event


@dataclass(frozen=True)
class Ledger:
    """The ledger at `path`, which may not exist yet."""

    path: Path

    @classmethod
    def beside(cls, state: Path) -> "Ledger":
        """The ledger that a state artifact at `state` is recorded in."""
        return cls(state.parent / LEDGER_FILE)

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
        with self._locked() as descriptor:
            end = _End()
            events = end.watch(self.events())
            made = entries(events)
            for _ in events:  # those that `entries` had no need of
                pass
            previous, new = end.digest, bytearray()
            for entry in made:
                line = line_bytes(entry(previous))
                assert len(line) <= LINE_LIMIT_BYTES, "a line is longer than anybody reads"
                previous = line_digest(line)
                new += line
            if not new:
                return
            os.ftruncate(descriptor, end.size)
            os.pwrite(descriptor, new, end.size)
            sync_file(descriptor, self.path.parent)
        sync_directory(self.path.parent)

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

    def successor(self, plan: str, state: str) -> Closed | None:
        """The event that closed the round that trains `state`; None while it is open."""
        closings = (event for event in self.events() if isinstance(event, Closed))
        return next((event for event in closings if (event.plan, event.parent) == (plan, state)), None)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with ExitStack() as stack:
            descriptor = os.open(self.path, flags, 0o644)
            stack.callback(os.close, descriptor)
            if not lock(descriptor, self.path.parent, wait=True):
                stack.enter_context(lock_file(self.path.with_name(f".{self.path.name}.lock")))
            yield descriptor
