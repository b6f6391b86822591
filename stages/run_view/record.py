"""The ledger of a federation in little memory: what it says of one plan, a round at a time.

A ledger has a line for each update of each round, so its events are not kept: names are shared, digests are kept once.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import BadInput
from schemas.ledger import Accepted, Closed, Event, Planned, Refused
from stages.run_view.view import Refusal
from stages.store.ledger import LEDGER_FILE, Ledger


@dataclass
class Entries:
    """What came for the round that starts from a state.  `accepted`: devices by the digest of their updates."""

    round: int
    accepted: dict[str, str] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)


@dataclass
class Record:
    """Everything that a ledger says of one plan.  `asked`: how many devices are to train from a state."""

    plan: str
    state: str  # the newest one
    asked: dict[str, int] = field(default_factory=dict)
    closed: list[Closed] = field(default_factory=list)
    entries: dict[str, Entries] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """The next event."""
        if isinstance(event, Planned | Closed):
            self.state = event.state
            self.asked[event.state] = event.participant_count
            if isinstance(event, Closed):
                self.closed.append(event)
            return
        entries = self.entries.setdefault(event.state, Entries(event.round))
        device = event.device and sys.intern(event.device)
        if isinstance(event, Accepted):
            entries.accepted[event.update] = sys.intern(event.device)
        else:
            entries.refused.append(Refusal(device, event.reason, event.update))

    def of(self, state: str) -> Entries:
        """What came for the round that starts from that state."""
        return self.entries.get(state, Entries(0))

    def rounds(self) -> dict[str, int]:
        """The round of each state: how many rounds made it."""
        return dict.fromkeys(self.asked, 0) | {event.state: event.round + 1 for event in self.closed}

    def lineage(self) -> list[Closed]:
        """The rounds that made the newest state, the first one first."""
        by_state = {event.state: event for event in self.closed}
        found: list[Closed] = []
        state = self.state
        while state in by_state:
            event = by_state.pop(state)  # each once: a ledger by another hand may go in circles
            found.append(event)
            state = event.parent
        return found[::-1]


@dataclass(frozen=True)
class Records:
    """A ledger by plan; `newest` is the record that is still written to."""

    ledger: Ledger
    by_plan: Mapping[str, Record]
    newest: Record

    @classmethod
    def read(cls, directory: Path) -> "Records":
        """The ledger of a run folder.  Raises `BadInput` if there is none, `NotTrusted` if it was altered."""
        ledger = find_ledger(directory)
        by_plan: dict[str, Record] = {}
        newest: Record | None = None
        for event in ledger.events():
            record = by_plan.get(event.plan)
            if record is None:
                record = by_plan[event.plan] = Record(event.plan, event.state)
            record.add(event)
            if not isinstance(event, Accepted | Refused):
                newest = record
        if newest is None:
            raise BadInput(f"{ledger.path} is empty", hint="'chainctl plan' starts a federation")
        return cls(ledger, by_plan, newest)

    def counted(self, *, before: str) -> dict[str, int]:
        """As `Ledger.counted`."""
        return {
            update: entries.round
            for record in self.by_plan.values()
            for state, entries in record.entries.items()
            if state != before
            for update in entries.accepted
        }


def find_ledger(directory: Path) -> Ledger:
    """The ledger of a run folder.  Raises `BadInput`."""
    places = [directory / "states" / LEDGER_FILE, directory / LEDGER_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise BadInput(
            f"{directory} holds no federation",
            values={"expected": " or ".join(str(place) for place in places), "found": "neither"},
            hint="'chainctl plan' and 'chainctl aggregate' write the ledger beside the states",
        )
    return Ledger(path)
