"""Status stage: the state of a federation, from the coordinator's ledger and the artifacts beside it.

Reads:  RUN/states/ledger.jsonl (or RUN/ledger.jsonl), the newest state, the updates that have arrived, evaluations.
Writes: nothing.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.assignment import described
from schemas.errors import BadInput, ChainError
from schemas.evaluation import EvaluationManifest
from schemas.ledger import Accepted, Closed, Planned, Refused
from schemas.measured import Cost
from schemas.perplexity import PerplexityManifest
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.federated.intake import Intake
from stages.methods.registry import server_method
from stages.store.artifact import Artifact, open_artifact
from stages.store.debris import without_debris
from stages.store.devices import participants
from stages.store.heads import check_ledger
from stages.store.ledger import LEDGER_FILE, Ledger
from stages.store.lineage import index


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
    cost: Cost  # of all closed rounds whose states are here, as the devices measured it
    free_bytes: int
    used_bytes: int

    @property
    def waiting(self) -> bool:
        """Whether updates are still missing."""
        return bool(self.missing)


def run(run_directory: Path, *, inboxes: Sequence[Path] = ()) -> Status:
    """The status of the federation in `run_directory`; updates are in its `updates/` and in `inboxes`.

    Raises `BadInput` if there is no ledger, `NotTrusted` if it was altered or lacks what it said before.
    """
    ledger = _ledger(run_directory)
    events = list(ledger.events())
    newest = next((event for event in reversed(events) if isinstance(event, Planned | Closed)), None)
    if newest is None:
        raise BadInput(f"{ledger.path} is empty", hint="'chainctl plan' starts a federation")
    below = [one for one in without_debris(run_directory.iterdir()) if one.is_dir()]
    found = index([run_directory, ledger.path.parent, *below])
    state = open_artifact(_at_hand(found, newest.state, "state"), StateManifest)
    plan = open_artifact(_at_hand(found, newest.plan, "plan"), PlanManifest)
    check_ledger(ledger, plan)
    method = server_method(plan.manifest.settings.chain.method)
    delivery = Intake(plan, state, ledger.counted(before=state.digest), method).take(
        [path for path in (*_updates(run_directory, state.manifest.round), *inboxes) if path.exists()]
    )
    delivered = {update.manifest.device for update in delivery.named}
    refusals = [event for event in events if isinstance(event, Refused)]
    said = {(event.device or "unknown", event.reason) for event in refusals if event.state == state.digest}
    said |= {(one.device or one.path.name, one.reason) for one in delivery.refused}
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
        metric=_metric(found, state),
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


def _at_hand(found: dict[str, Path], digest: str, kind: str) -> Path:
    if digest not in found:
        raise BadInput(
            f"the ledger's newest {kind} is not here",
            values={"expected": digest, "found": f"{len(found)} other artifacts"},
            hint="restore it, or run the last 'chainctl aggregate' again",
        )
    return found[digest]


def _updates(run_directory: Path, round_number: int) -> list[Path]:
    """`updates/0003` if rounds have folders of their own, otherwise `updates`."""
    folder = run_directory / "updates"
    return [folder / f"{round_number:04d}"] if any(folder.glob("[0-9][0-9][0-9][0-9]")) else [folder]


def _cost(found: dict[str, Path], closed: Sequence[str]) -> Cost:
    """What the rounds that became these states cost, as far as the states are here."""
    costs: list[Cost] = []
    for digest in dict.fromkeys(closed):
        try:
            measured = open_artifact(found[digest], StateManifest).measured() if digest in found else None
        except ChainError:
            continue
        if measured is not None and measured.updates is not None:
            costs.append(measured.updates)
    return Cost.sum(costs)


def _metric(found: dict[str, Path], state: Artifact[StateManifest]) -> str:
    """The metric of the newest evaluated state of the run, with its round; empty if there is none."""
    best: tuple[int, str] = (-1, "")
    for path in found.values():
        manifest = _evaluation(path)
        if manifest is not None and manifest.plan == state.manifest.plan and manifest.round > best[0]:
            best = (manifest.round, _describe(manifest))
    return f"{best[1]} after round {best[0]}" if best[1] else ""


def _evaluation(path: Path) -> EvaluationManifest | PerplexityManifest | None:
    kind: type[EvaluationManifest] | type[PerplexityManifest]
    for kind in (EvaluationManifest, PerplexityManifest):
        try:
            return open_artifact(path, kind).manifest
        except ChainError:
            continue
    return None


def _describe(manifest: EvaluationManifest | PerplexityManifest) -> str:
    if isinstance(manifest, EvaluationManifest):
        return f"accuracy {manifest.accuracy.value:.4f}"
    return f"perplexity {manifest.perplexity.value:.4f}"
