"""Status stage: the state of a federation, from the coordinator's ledger and the artifacts beside it.

Reads:  RUN/states/ledger.jsonl (or RUN/ledger.jsonl), the newest state, the updates that have arrived, evaluations.
Writes: nothing.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from schemas.assignment import described
from schemas.errors import BadInput, ChainError
from schemas.evaluation import EvaluationManifest
from schemas.ledger import Accepted, Closed, Event, Planned, Refused
from schemas.measured import Cost
from schemas.state import StateManifest
from stages.federated.intake import Intake
from stages.methods.registry import server_method
from stages.store.artifact import open_artifact
from stages.store.debris import without_debris
from stages.store.devices import participants
from stages.store.heads import check_ledger
from stages.store.ledger import LEDGER_FILE, Ledger
from stages.store.lineage import Found, Scored, evaluations, find_plan, find_state, first_whole, index

T = TypeVar("T")


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
    ledger = _ledger(run_directory)
    events = list(ledger.events())
    newest = next((event for event in reversed(events) if isinstance(event, Planned | Closed)), None)
    if newest is None:
        raise BadInput(f"{ledger.path} is empty", hint="'chainctl plan' starts a federation")
    events = [event for event in events if event.plan == newest.plan]  # another plan may have its states there too
    below = [one for one in without_debris(run_directory.iterdir()) if one.is_dir()]
    found = index([run_directory, ledger.path.parent, *below])
    plan = _at_hand(found, newest.plan, "plan", find_plan(found, newest.plan))
    check_ledger(ledger, plan)
    state = _at_hand(found, newest.state, "state", find_state(found, newest.state, plan))
    method = server_method(plan.manifest.settings.chain.method)
    delivery = Intake(plan, state, ledger.counted(before=state.digest), method).take(
        [path for path in (*_updates(run_directory, state.manifest.round), *inboxes) if path.exists()]
    )
    delivered = {update.manifest.device for update in delivery.named}
    refusals = [event for event in events if isinstance(event, Refused)]
    said = {(event.device or "unknown", event.reason) for event in refusals if event.state == state.digest}
    said |= {(one.device or one.path.name, one.reason) for one in delivery.refused}
    believed, left_out = evaluations(found, plan)
    return Status(
        plan=plan.digest,
        state=state.digest,
        round=state.manifest.round,
        assignment=described(state.manifest.assignment),
        delivered=tuple(sorted(delivered)),
        missing=tuple(device for device in participants(state) if device not in delivered),
        refused=tuple(f"{device} ({reason})" for device, reason in sorted(said)),
        rounds_closed=sum(isinstance(event, Closed) for event in events),
        updates_counted=sum(isinstance(event, Accepted) for event in events),
        updates_refused=len(refusals),
        metric=_metric(believed, _rounds(events)),
        left_out=left_out,
        cost=_cost(found, [event.state for event in events if isinstance(event, Closed)]),
        free_bytes=shutil.disk_usage(run_directory).free,
        used_bytes=sum(path.stat().st_size for path in run_directory.rglob("*") if path.is_file()),
    )


def _ledger(run_directory: Path) -> Ledger:
    places = [run_directory / "states" / LEDGER_FILE, run_directory / LEDGER_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise BadInput(
            f"{run_directory} holds no federation",
            values={"expected": " or ".join(str(place) for place in places), "found": "neither"},
            hint="'chainctl plan' and 'chainctl aggregate' write the ledger beside the states",
        )
    return Ledger(path)


def _at_hand(found: Found, digest: str, kind: str, opened: T | None) -> T:
    if opened is None:
        raise BadInput(
            f"the ledger's newest {kind} is not here",
            values={"expected": digest, "found": f"{len(found)} other artifacts"},
            hint="restore it, or run the last 'chainctl aggregate' again",
        )
    return opened


def _updates(run_directory: Path, round_number: int) -> list[Path]:
    """`updates`, and `updates/0003` where rounds have folders of their own; a device may have such a name too."""
    folder = run_directory / "updates"
    return [folder, folder / f"{round_number:04d}"]


def _cost(found: Found, closed: Sequence[str]) -> Cost:
    """What the rounds that became these states cost, as far as the states are here."""
    costs: list[Cost] = []
    for digest in dict.fromkeys(closed):
        try:
            measured = first_whole(found, digest, lambda path: open_artifact(path, StateManifest).measured())
        except ChainError:
            continue
        if measured is not None and measured.updates is not None:
            costs.append(measured.updates)
    return Cost.sum(costs)


def _rounds(events: Sequence[Event]) -> dict[str, int]:
    """The round of each state that the ledger names."""
    planned = {event.state: 0 for event in events if isinstance(event, Planned)}
    return planned | {event.state: event.round + 1 for event in events if isinstance(event, Closed)}


def _metric(believed: Sequence[Scored], rounds: Mapping[str, int]) -> str:
    """The metric of the newest evaluated state of the ledger, with its round there; empty if there is none."""
    of_these = [one for one in believed if one.state in rounds]
    if not of_these:
        return ""
    newest = max(of_these, key=lambda one: rounds[one.state])
    return f"{_describe(newest)} after round {rounds[newest.state]}"


def _describe(manifest: Scored) -> str:
    if isinstance(manifest, EvaluationManifest):
        return f"accuracy {manifest.accuracy.value:.4f}"
    return f"perplexity {manifest.perplexity.value:.4f}"
