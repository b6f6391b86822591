"""Status stage: the state of a federation, from the coordinator's ledger and the artifacts beside it.

Reads:  RUN/states/ledger.jsonl (or RUN/ledger.jsonl), the newest state, the updates that have arrived, evaluations.
Writes: nothing.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.assignment import described
from schemas.measured import Cost
from stages.federated.intake import Judged
from stages.run_view.read import read_run, update_places
from stages.run_view.view import Score
from stages.store.ledger import LEDGER_FILE
from stages.store.snapshot import Snapshot, file_sizes, snapshot


@dataclass(frozen=True)
class Status:
    """A federation between two rounds.  `metric` belongs to the newest evaluated state."""

    plan: str
    state: str
    round: int
    assignment: str  # what this round trains
    delivered: tuple[str, ...]
    missing: tuple[str, ...]
    refused: tuple[str, ...]  # in this round: device or folder, and the reason
    rounds_closed: int
    updates_counted: int
    updates_refused: int
    metric: str
    left_out: int  # evaluations of this plan that the right key did not sign
    cost: Cost  # of all closed rounds whose states are here, as the devices measured it
    free_bytes: int
    used_bytes: int

    @property
    def waiting(self) -> bool:
        """Whether updates are still missing."""
        return bool(self.missing)

    @property
    def disk(self) -> str:
        """How much the federation takes, and what is free beside it."""
        return f"{self.used_bytes / 2**20:.0f} MiB used, {self.free_bytes / 2**30:.1f} GiB free"


@dataclass
class Watch:
    """A federation that is looked at again and again, and read only where something has changed.

    An update is read once, for as long as its files stay the same: the folder may be on a stick.
    """

    run_directory: Path
    inboxes: Sequence[Path] = ()
    _judged: Judged = field(default_factory=dict)
    _seen: Snapshot | None = None
    _round: int = 0

    def look(self) -> Status | None:
        """The status, None where nothing has changed since the last one.  Raises as `run` does."""
        seen = snapshot(self._places(), depth=2)  # before it is read: what changes meanwhile is found at the next look
        if seen == self._seen:
            return None
        found = run(self.run_directory, inboxes=self.inboxes, judged=self._judged)
        self._seen = seen if found.round == self._round else None  # the new round's folder was not in it
        self._round = found.round
        return found

    def _places(self) -> list[Path]:
        places = [self.run_directory / name for name in (LEDGER_FILE, "states", "evals")]
        return [*places, *update_places(self.run_directory, self._round), *self.inboxes]


def run(run_directory: Path, *, inboxes: Sequence[Path] = (), judged: Judged | None = None) -> Status:
    """The status of the federation in `run_directory`; updates are in its `updates/` and in `inboxes`.

    `judged`: see `Intake`.  Raises `BadInput` if there is no ledger, `NotTrusted` if it was altered or lacks what it
    said before, or if plan or state are not trusted here.
    """
    found = read_run(run_directory, inboxes=inboxes, by_device=False, judged=judged)
    return Status(
        plan=found.plan_digest,
        state=found.state,
        round=found.open.number - 1,
        assignment=described(found.open.assignment),
        delivered=found.open.delivered,
        missing=found.open.missing,
        refused=tuple(f"{device} ({reason})" for device, reason in found.open.refused),
        rounds_closed=found.closed,
        updates_counted=found.counted,
        updates_refused=found.refused,
        metric=_described(found.newest_score),
        left_out=found.left_out,
        cost=found.cost,
        free_bytes=shutil.disk_usage(run_directory).free,
        used_bytes=sum(file_sizes(run_directory)),
    )


def _described(score: Score | None) -> str:
    """The metric of the newest evaluated state of the ledger, with its round there; empty if there is none."""
    return f"{score.metric} {score.value:.4f} after round {score.round}" if score else ""
