"""Reads a run folder, a simulation's or a coordinator's, from its artifacts alone.

Reads:  RUN/states/ledger.jsonl (or RUN/ledger.jsonl), the plan, states, evaluations and updates beside it.
Writes: nothing.

Trust is asked as `log` and `status` ask it: the plan must be trusted on this machine, and what the plan wants signed
counts only where the right key signed it.  No tensor is read, as nothing of one is shown.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from schemas.assignment import Assignment
from schemas.errors import BadInput
from schemas.evaluation import EvaluationManifest
from schemas.ledger import Closed
from schemas.plan import PlanManifest
from schemas.run import FEDERATION_FILE, FederationManifest
from schemas.state import StateManifest
from stages.federated.intake import Intake, Judged
from stages.methods.registry import server_method
from stages.run_view.devices import Tallies
from stages.run_view.record import Record, Records
from stages.run_view.states import StateFacts, read_states
from stages.run_view.view import ACCURACY, PERPLEXITY, OpenRound, RoundView, RunView, Score
from stages.store.artifact import Artifact, read_manifest
from stages.store.debris import without_debris
from stages.store.devices import participants
from stages.store.heads import check_ledger
from stages.store.lineage import Found, Scored, evaluations, find_plan, find_state, index

T = TypeVar("T")


def read_run(
    directory: Path, *, inboxes: Sequence[Path] = (), by_device: bool = True, judged: Judged | None = None
) -> RunView:
    """The run in `directory`; updates of the round that is open are in its `updates/` and in `inboxes`.

    `by_device`: also what each device did and what that cost it, for which the `measured.json` of every update is read.
    `judged`: see `Intake`.
    Raises `BadInput` if there is no ledger, `NotTrusted` if it was altered or lacks what it said before, or if plan or
    newest state are not trusted here.
    """
    records = Records.read(directory)
    record = records.newest
    below = [one for one in without_debris(directory.iterdir()) if one.is_dir()]
    found = index([directory, records.ledger.path.parent, *below])
    plan = _at_hand(found, record.plan, "plan", find_plan(found, record.plan))
    remembered = check_ledger(records.ledger, plan)
    newest = _at_hand(found, record.state, "state", find_state(found, record.state, plan))
    believed, left_out = evaluations(found, plan)
    scores = tuple(_score(one, record.rounds()[one.state]) for one in believed if one.state in record.asked)
    lineage = record.lineage()
    first = lineage[0].parent if lineage else record.state
    states = [first, *(event.state for event in lineage)]
    tallies = Tallies(plan, record) if by_device else None
    facts = read_states(states[::-1], found, plan, tallies.visit if tallies else lambda state: None)
    if tallies:
        tallies.measure(directory / "updates", found, facts)
    history = _History(plan.manifest, record, facts, _compared(scores), tallies.predicted if tallies else {})
    return RunView(
        name=directory.resolve().name,
        plan=plan.manifest,
        plan_digest=plan.digest,
        state=newest.digest,
        remembered=remembered,
        federation=_federation(directory),
        scores=scores,
        before=history.scores.get(first),
        problem=facts[first].problem,
        rounds=tuple(history.round(event) for event in lineage),
        abandoned=len(record.closed) - len(lineage),
        closed=len(record.closed),
        counted=sum(len(entries.accepted) for entries in record.entries.values()),
        refused=sum(len(entries.refused) for entries in record.entries.values()),
        open=_open_round(records, plan, newest, [*update_places(directory, newest.manifest.round), *inboxes], judged),
        devices=tallies.views() if tallies else (),
        left_out=left_out,
    )


@dataclass(frozen=True)
class _History:
    """What the rounds of a run are put together from.

    `scores`: by state, all on the same texts.  `predicted`: the largest peak that a device predicted, by the state that
    was trained.
    """

    plan: PlanManifest
    record: Record
    facts: Mapping[str, StateFacts]
    scores: Mapping[str, Score]
    predicted: Mapping[str, int]

    def round(self, event: Closed) -> RoundView:
        """The round that an event closed."""
        trained, made = self.facts[event.parent], self.facts[event.state]
        entries = self.record.of(event.parent)
        return RoundView(
            number=event.round + 1,
            state=event.state,
            parent=event.parent,
            known=not trained.problem,
            assignment=trained.assignment,
            kept=made.kept,
            moved=made.moved,
            asked=self.record.asked.get(event.parent, 0),
            accepted=tuple(sorted(entries.accepted.values())),
            refused=tuple(entries.refused),
            texts=made.texts,
            train_loss=made.train_loss,
            score=self.scores.get(event.state),
            cost=made.cost,
            predicted_peak_bytes=self.predicted.get(event.parent) or self._planned_peak(trained.assignment),
            problem=made.problem,
        )

    def _planned_peak(self, assignment: Assignment | None) -> int | None:
        planned = (one.predicted_peak_bytes for one in self.plan.memory if one.assignment == assignment)
        return next(planned, None)


def _score(manifest: Scored, round_number: int) -> Score:
    if isinstance(manifest, EvaluationManifest):
        metric, estimate = ACCURACY, manifest.accuracy
    else:
        metric, estimate = PERPLEXITY, manifest.perplexity
    return Score(
        state=manifest.state,
        round=round_number,
        metric=metric,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        texts=manifest.example_count,
        data=manifest.data,
    )


def _compared(scores: Sequence[Score]) -> dict[str, Score]:
    """By state, the scores on the texts that most states were evaluated on."""
    counts = Counter((score.metric, score.data) for score in scores)
    most = max(counts, key=lambda kind: (counts[kind], kind), default=None)
    return {score.state: score for score in scores if (score.metric, score.data) == most}


def _open_round(
    records: Records,
    plan: Artifact[PlanManifest],
    state: Artifact[StateManifest],
    places: Sequence[Path],
    judged: Judged | None,
) -> OpenRound:
    """Who has delivered for the round that starts from the newest state.  Raises `NotTrusted` and `BadInput`."""
    manifest, record = state.manifest, records.newest
    method = server_method(plan.manifest.settings.chain.method)
    intake = Intake(plan, state, records.counted(before=state.digest), method, {} if judged is None else judged)
    delivery = intake.take([path for path in places if path.exists()])
    refused = {(one.device or "unknown", one.reason) for one in record.of(state.digest).refused}
    refused |= {(one.device or one.path.name, one.reason) for one in delivery.refused}
    return OpenRound(
        number=manifest.round + 1,
        assignment=manifest.assignment,
        participants=tuple(participants(state)),
        delivered=tuple(sorted({update.manifest.device for update in delivery.named})),
        refused=tuple(sorted(refused)),
    )


def update_places(directory: Path, round_number: int) -> list[Path]:
    """`updates`, and `updates/0003` where rounds have folders of their own; a device may have such a name too."""
    folder = directory / "updates"
    return [folder, folder / f"{round_number:04d}"]


def _federation(directory: Path) -> FederationManifest | None:
    """What a simulation is made of.  Raises `BadInput` where that was altered."""
    path = directory / FEDERATION_FILE
    return read_manifest(path, FederationManifest) if os.path.lexists(path) else None


def _at_hand(found: Found, digest: str, kind: str, opened: T | None) -> T:
    if opened is None:
        raise BadInput(
            f"the ledger's newest {kind} is not here",
            values={"expected": digest, "found": f"{len(found)} other artifacts"},
            hint="restore it, or run the last 'chainctl aggregate' again",
        )
    return opened
