"""What each device did in all closed rounds, and what that cost it by its own measurement."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from schemas.devices import PlannedDevice
from schemas.errors import ChainError
from schemas.measured import Measured
from schemas.plan import PlanManifest
from schemas.refusal import Reason
from stages.run_view.record import Record
from stages.run_view.states import State, StateFacts
from stages.run_view.view import DeviceView
from stages.store.artifact import MEASURED_FILE, Artifact, artifact_bytes
from stages.store.debris import without_debris
from stages.store.devices import accepted_updates, participants, planned_devices
from stages.store.lineage import Found
from stages.store.regular import read_regular

MOST_MEASURED = 10_000  # updates: a second or two of reading


@dataclass
class Tally:
    """Sums over the rounds of one device."""

    asked: int = 0
    accepted: int = 0
    refused: list[Reason] = field(default_factory=list)
    train_loss: float | None = None
    measured: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    predicted_peak_bytes: int = 0
    passes: int = 0
    bytes_read: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def add(self, measured: Measured, bytes_up: int, bytes_down: int) -> None:
        """One more update, as its device measured it."""
        self.measured += 1
        self.seconds += measured.seconds
        self.peak_bytes = max(self.peak_bytes, measured.peak_bytes or 0)
        self.predicted_peak_bytes = max(self.predicted_peak_bytes, measured.predicted_peak_bytes or 0)
        self.passes += measured.passes.total
        self.bytes_read += measured.bytes_streamed
        self.bytes_up += bytes_up
        self.bytes_down += bytes_down


class Tallies:
    """Of all devices; the states are visited from the newest one back, then the updates are measured."""

    def __init__(self, plan: Artifact[PlanManifest], record: Record) -> None:
        self.planned: dict[str, PlannedDevice] = {sys.intern(one.name): one for one in planned_devices(plan)}
        self.with_texts = [name for name, device in self.planned.items() if device.example_count]
        self.record = record
        self.by_name: dict[str, Tally] = {name: Tally() for name in self.planned}
        self.predicted: dict[str, int] = {}  # largest predicted peak by the state that was trained
        for entries in record.entries.values():
            for name in entries.accepted.values():
                self._of(name).accepted += 1
            for refusal in entries.refused:
                if refusal.device is not None:
                    self._of(refusal.device).refused.append(refusal.reason)
        self.without_loss = {name for name, tally in self.by_name.items() if tally.accepted}

    def visit(self, state: State) -> None:
        """Who was to train from a state, and the loss of those whose newest update went into it."""
        if state.digest != self.record.state:
            everybody = state.manifest.participant_count == len(self.with_texts)
            for name in self.with_texts if everybody else participants(state):
                self._of(name).asked += 1
        if self.without_loss:
            for update in accepted_updates(state):
                if update.name in self.without_loss:
                    self.without_loss.discard(update.name)
                    self._of(update.name).train_loss = update.train_loss

    def measure(self, updates: Path, found: Found, states: Mapping[str, StateFacts]) -> None:
        """Read what each update that counted cost: those that a search has `found`, and those in folders of `updates`.

        What cannot be read, or is of another update than it says, counts for nothing.  Of very many updates the newest
        are read.
        """
        accepted = {
            digest: (state, name)
            for state, entries in self.record.entries.items()
            for digest, name in entries.accepted.items()
        }
        at_hand = [path for digest in accepted.keys() & found.keys() for path in found[digest]]
        for path in islice(chain(sorted(at_hand), _below(updates)), MOST_MEASURED):
            with suppress(ChainError, OSError):
                source = path / MEASURED_FILE
                measured = Measured.from_bytes(read_regular(source, at_most=Measured.LIMIT_BYTES), source=str(source))
                state, name = accepted.pop(measured.artifact, ("", ""))
                if name:
                    self._of(name).add(
                        measured, artifact_bytes(path), states[state].size_bytes if state in states else 0
                    )
                    predicted = measured.predicted_peak_bytes or 0
                    self.predicted[state] = max(predicted, self.predicted.get(state, 0))

    def views(self) -> tuple[DeviceView, ...]:
        """Every device, by name."""
        return tuple(self._view(name, tally) for name, tally in sorted(self.by_name.items()))

    def _view(self, name: str, tally: Tally) -> DeviceView:
        device = self.planned.get(name)
        return DeviceView(
            name=name,
            planned=device is not None,
            texts=device.example_count if device else 0,
            budget_bytes=device.memory_budget_bytes if device else None,
            left_out=device.left_out if device else "",
            **vars(tally) | {"refused": tuple(tally.refused)},
        )

    def _of(self, name: str) -> Tally:
        return self.by_name.setdefault(name, Tally())


def _below(updates: Path) -> Iterator[Path]:
    """`updates/0003/device-07`: the folders of rounds that have folders of their own, the newest first."""
    for folder in _folders(updates)[::-1]:
        yield from _folders(folder)


def _folders(folder: Path) -> Sequence[Path]:
    try:
        found = (one for one in without_debris(folder.iterdir()) if not one.name.startswith(".") and one.is_dir())
        return sorted(found)
    except OSError:
        return []
