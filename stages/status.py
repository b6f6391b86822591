"""Status stage: the state of a federation, from the coordinator's ledger and the artifacts beside it.

Reads:  RUN/states/ledger.jsonl (or RUN/ledger.jsonl), the newest state, the updates that have arrived, evaluations.
Writes: nothing.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.assignment import described
from schemas.measured import Cost
from stages.run_view.read import read_run
from stages.run_view.view import Score


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


def run(run_directory: Path, *, inboxes: Sequence[Path] = ()) -> Status:
    """The status of the federation in `run_directory`; updates are in its `updates/` and in `inboxes`.

    Raises `BadInput` if there is no ledger, `NotTrusted` if it was altered or lacks what it said before, or if plan or
    state are not trusted here.
    """
    found = read_run(run_directory, inboxes=inboxes, by_device=False)
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
        used_bytes=sum(path.stat().st_size for path in run_directory.rglob("*") if path.is_file()),
    )


def _described(score: Score | None) -> str:
    """The metric of the newest evaluated state of the ledger, with its round there; empty if there is none."""
    return f"{score.metric} {score.value:.4f} after round {score.round}" if score else ""
