"""What a tracker is told of a run: settings once, then metrics round by round.  Nothing is recorded twice.

A tracker is a module of this package with a function `open_tracker(directory, run) -> Tracker`.  It records neither
texts nor paths, and opens no connection.  Several runs share a directory; a run has the name of its plan, so that the
same run is found again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from schemas.errors import BadInput
from stages.process import intent
from stages.store.output import check_output

PROJECT = "chainctl"  # the experiment or project that runs belong to, where a tracker has such a thing

Value = str | int | float | bool
Held = frozenset[tuple[int, str]]  # rounds and metrics


@dataclass(frozen=True)
class TrackedRun:
    """What identifies a run for a tracker, and its settings."""

    plan: str  # digest
    method: str
    settings: Mapping[str, Value]

    @property
    def name(self) -> str:
        """A file name everywhere."""
        return f"{self.method}-{self.plan.removeprefix('sha256:')[:16]}"


class Tracker(Protocol):
    """An open run of a tracker, with its settings recorded."""

    @property
    def shown_by(self) -> str:
        """The command that shows what was recorded, or sends it on."""
        ...

    def held(self) -> Held:
        """What it had recorded when it was opened."""
        ...

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a round that it does not hold."""
        ...

    def close(self) -> None:
        """Everything is recorded."""
        ...


class Tracking:
    """A tracker that is given whatever there is, and records what it does not hold."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.recorded = 0  # rounds that this one added to
        self._held = set(tracker.held())

    def round(self, number: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a round; round 0 is the state before the first."""
        new = {name: value for name, value in metrics.items() if (number, name) not in self._held}
        if new:
            self.tracker.round(number, new)
            self._held |= {(number, name) for name in new}
            self.recorded += 1

    def close(self) -> None:
        """Everything is recorded."""
        self.tracker.close()


def check_tracker(name: str) -> None:
    """Its library is here.  Raises `BadInput` where it is not."""
    try:
        import_module(f"stages.trackers.{name}")
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{name} needs a library that is not installed",
            values={"missing": error.name},
            hint=f"pip install 'chainctl[{name}]'",
        ) from None


def open_tracking(name: str, directory: Path, run: TrackedRun) -> Tracking:
    """A run of the tracker of that name, begun or continued, with what it keeps in `directory`.

    Raises `BadInput` where its library is missing, or what is in `directory` cannot be used.
    """
    check_tracker(name)
    check_output(directory / run.name, force=True)
    intent.leave_unchecked(f"whether {name} can go on from what is in {directory}")
    intent.begin(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return Tracking(import_module(f"stages.trackers.{name}").open_tracker(directory, run))
