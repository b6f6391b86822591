"""Aggregate stage: from the updates of a round to the next state.

Chain:  profile -> plan -> train-window -> [aggregate] -> eval
Reads:  plan and state artifacts, update artifacts.
Writes: a state artifact: what was trained, combined by the plan's strategy, everything else as it was, and what
        the next round trains;
        lines in the ledger beside it; refused updates into quarantine beside them.

Tensors pass through in chunks, every byte hashed on its way; nothing is published unless every hash agrees.  Memory
does not grow with the size of the tensors.  numpy alone: no torch.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from schemas.devices import ACCEPTED_FILE, AcceptedUpdate
from schemas.errors import TooFewUpdates, UsageProblem, some
from schemas.ledger import Accepted, Closed, Event, Refused
from schemas.plan import PlanManifest
from schemas.refusal import Reason
from schemas.settings import FederationSettings
from schemas.state import Coverage, ServerSteps, StateManifest
from stages.federated.costs import cost_of_round
from stages.federated.delivery import Delivery, RefusedUpdate
from stages.federated.intake import Intake
from stages.federated.quarantine import refusal_of, set_aside
from stages.federated.rules import Update
from stages.federated.sampling import sample_participants
from stages.methods.registry import server_method
from stages.methods.server import Combination, ServerMethod, Unmoved
from stages.process.measure import MeasuredFacts, Stopwatch
from stages.store.artifact import Artifact, Draft, check_place, existing, new_artifact, tensor_file
from stages.store.devices import accepted_updates, participants
from stages.store.ledger import Entry, Ledger
from stages.store.lines import Lines, encode_lines
from stages.store.signing import Signer
from stages.store.tensors import TENSORS_FILE
from stages.store.trust import check_signer, open_trusted

# Where these are all that arrived, the wrong plan or state was given, and nothing is moved.
MISDIRECTED: tuple[Reason, ...] = ("another-plan", "another-round", "another-state")

MOST_OPEN = 128  # files of tensors; the others are opened for each chunk: macOS lets a process have 256

OnRefusal = Callable[[RefusedUpdate, Path | None], None]  # and where it lies now; None: where it lay


def run(
    updates: Sequence[Path],
    *,
    plan: Path,
    state: Path,
    out: Path,
    quorum: int | None = None,
    signer: Signer | None = None,
    force: bool = False,
    on_refusal: OnRefusal = lambda refused, place: None,
) -> Artifact[StateManifest]:
    """Average a round's updates, or those in folders, into the next state.

    The order of `updates` does not matter, and the same update given twice counts once.  What does not belong is
    refused and moved aside, and the others count; `quorum` stands over the plan's.  Raises `TooFewUpdates` where too
    few are left, `UsageProblem` where the round is closed already, with other updates.
    """
    planned, parent = open_trusted(plan, state)
    policy = planned.manifest.trust
    check_signer(policy, policy.coordinator, signer, whose="the coordinator")
    needed_bytes = sum(file.size_bytes for file in parent.manifest.files)
    check_place(out, StateManifest, force=force, needed_bytes=needed_bytes)
    ledger = Ledger.beside(out)
    method = server_method(planned.manifest.settings.chain.method)
    delivery = Intake(planned, parent, ledger.counted(before=parent.digest), method).take(updates)
    _put_aside(delivery, planned, parent, ledger, on_refusal)
    accepted = delivery.accepted
    check_quorum(delivery, planned.manifest, parent, quorum)
    if not force:
        _check_open(ledger, planned.digest, parent.digest, accepted)
    combination = method.combine(planned.manifest, parent, accepted)
    listed, coming = accepted_lines(accepted), sample_participants(planned, parent.manifest.round + 1)
    manifest = describe(planned, parent, accepted, method, (listed, coming), moved=combination is not None)

    def same(there: StateManifest) -> bool:
        lines = tuple(file for file in there.files if file.name != TENSORS_FILE)
        return there.model_copy(update={"tensors": (), "files": lines}) == manifest

    made = existing(out, StateManifest, same=same, force=force, signer=signer)
    if made is None:
        with new_artifact(out, force=force, signer=signer) as draft:
            draft.write_lines(listed, coming)
            with Stopwatch() as watch:
                manifest = write_tensors(draft, combination or Unmoved(parent), [parent, *accepted], manifest)
            cost = cost_of_round(accepted, parent)
            draft.finish(manifest, MeasuredFacts(seconds=watch.seconds, peak_bytes=watch.peak_bytes, updates=cost))
        made = Artifact(out, manifest, manifest.digest)
    ledger.append(lambda events: _closing(events, parent, made))
    return made


def check_quorum(
    delivery: Delivery, plan: PlanManifest, parent: Artifact[StateManifest], quorum: int | None = None
) -> None:
    """Enough updates were accepted to close the round.  Raises `TooFewUpdates` with who is missing and why."""
    chosen = quorum or plan.settings.federation.quorum
    expected = parent.manifest.participant_count
    needed = expected if chosen == "all" else min(chosen, expected)
    if len(delivery.accepted) >= needed:
        return
    there = {update.manifest.device for update in delivery.accepted}
    missing = [device for device in participants(parent) if device not in there]
    values: dict[str, object] = {
        "needed": f"{needed} of {expected}",
        "accepted": len(delivery.accepted),
        "missing": some(missing),
    }
    for refused in delivery.refused[:8]:
        values[f"refused {refused.path.name}"] = refused.error.fact
    if len(delivery.refused) > 8:
        values["refused"] = f"{len(delivery.refused)} in all"
    if delivery.ignored:
        values["ignored"] = f"{len(delivery.ignored)} that are no updates"
    raise TooFewUpdates(
        f"round {parent.manifest.round} cannot close yet",
        values=values,
        hint="bring the missing updates and run the same command, or close with fewer by --quorum",
    )


def _put_aside(
    delivery: Delivery,
    plan: Artifact[PlanManifest],
    parent: Artifact[StateManifest],
    ledger: Ledger,
    on_refusal: OnRefusal,
) -> None:
    """Record every refusal, then move what was refused out of the way."""
    ledger.append(lambda events: _refusals(events, delivery.refused, plan, parent))
    meant = bool(delivery.accepted) or any(refused.reason not in MISDIRECTED for refused in delivery.refused)
    for refused in delivery.refused:
        refusal = refusal_of(refused, plan, parent)
        place = set_aside(refused.path, refusal, delivery.judged.get(refused.path)) if meant else None
        on_refusal(refused, place)


def _refusals(
    events: Iterable[Event],
    refused: Sequence[RefusedUpdate],
    plan: Artifact[PlanManifest],
    parent: Artifact[StateManifest],
) -> list[Entry]:
    said = {(event.state, event.update, event.reason) for event in events if isinstance(event, Refused)}

    def entry(one: RefusedUpdate) -> Entry:
        return lambda previous: Refused(
            previous=previous,
            plan=plan.digest,
            state=parent.digest,
            round=parent.manifest.round,
            reason=one.reason,
            update=one.update,
            device=one.device,
        )

    new = [one for one in refused if one.update is None or (parent.digest, one.update, one.reason) not in said]
    return [entry(one) for one in new]


def _check_open(ledger: Ledger, plan: str, parent: str, accepted: Sequence[Update]) -> None:
    """The round is open, or was closed with the very same updates."""
    closed = ledger.successor(plan, parent)
    if closed is None:
        return
    before = {event.update for event in ledger.events() if isinstance(event, Accepted) and event.state == parent}
    now = {update.digest for update in accepted}
    if now != before:
        raise UsageProblem(
            f"round {closed.round} is closed already",
            values={"closed as": closed.state, "with": f"{len(before)} updates", "given": f"{len(now)} updates"},
            hint="go on with that state; --force closes the round anew and makes a second history",
        )


def _closing(events: Iterable[Event], parent: Artifact[StateManifest], state: Artifact[StateManifest]) -> list[Entry]:
    """What the ledger says of a round that has become `state`, unless it says so."""
    manifest = state.manifest
    said: set[str] = set()
    for event in events:
        if isinstance(event, Closed) and event.state == state.digest:
            return []
        if isinstance(event, Accepted) and event.state == parent.digest:
            said.add(event.update)

    def acceptance(one: AcceptedUpdate) -> Entry:
        return lambda previous: Accepted(
            previous=previous,
            plan=manifest.plan,
            state=parent.digest,
            round=parent.manifest.round,
            update=one.update,
            device=one.name,
        )

    def closing(previous: str | None) -> Closed:
        return Closed(
            previous=previous,
            plan=manifest.plan,
            parent=parent.digest,
            round=parent.manifest.round,
            state=state.digest,
            participant_count=manifest.participant_count,
        )

    return [*(acceptance(one) for one in accepted_updates(state) if one.update not in said), closing]


def server_steps(
    settings: FederationSettings, parent: StateManifest, accepted: Sequence[Update]
) -> tuple[ServerSteps, ...]:
    """How often the server optimiser has moved each tensor, this round included."""
    if settings.server_optimizer == "none":
        return ()
    steps = {entry.tensor: entry.steps for entry in parent.server_steps}
    sent = {tensor.name for update in accepted for tensor in update.manifest.tensors}
    for name in sent & {tensor.name for tensor in parent.tensors}:
        steps[name] = steps.get(name, 0) + 1
    return tuple(ServerSteps(tensor=name, steps=steps[name]) for name in sorted(steps))


def accepted_lines(accepted: Sequence[Update]) -> Lines:
    """A line of the next state for each update that goes into it."""
    return encode_lines(
        ACCEPTED_FILE,
        (
            AcceptedUpdate(
                name=update.manifest.device,
                update=update.digest,
                example_count=update.manifest.example_count,
                train_loss=update.manifest.loss.mean,
            )
            for update in accepted
        ),
    )


def coverage(accepted: Sequence[Update]) -> tuple[Coverage, ...]:
    """For each layer that some update trained: how many did, and the texts behind them."""
    layers = sorted({layer for update in accepted for layer in update.manifest.assignment.layers})
    holders = {layer: [one for one in accepted if layer in one.manifest.assignment.layers] for layer in layers}
    return tuple(
        Coverage(
            layer=layer,
            devices=len(holders[layer]),
            example_count=sum(update.manifest.example_count for update in holders[layer]),
        )
        for layer in layers
    )


def describe(
    plan: Artifact[PlanManifest],
    parent: Artifact[StateManifest],
    accepted: Sequence[Update],
    method: ServerMethod,
    lines: tuple[Lines, Lines],
    *,
    moved: bool,
) -> StateManifest:
    """The next state, but for its tensors.  `lines`: the accepted updates, and the participants of the next round."""
    listed, coming = lines
    weights = [update.manifest.example_count for update in accepted]
    losses = [update.manifest.loss.mean for update in accepted]
    train_loss = float(np.average(losses, weights=weights))
    next_round = method.next(plan.manifest, parent.manifest, [update.manifest for update in accepted], train_loss)
    federation, steps = plan.manifest.settings.federation, parent.manifest.server_steps
    if moved:
        steps = server_steps(federation, parent.manifest, accepted)
    return StateManifest(
        plan=plan.digest,
        parent=parent.digest,
        round=parent.manifest.round + 1,
        assignment=next_round.assignment,
        progress=next_round.progress,
        moved=moved,
        participant_count=coming.count,
        accepted_count=listed.count,
        example_count=sum(weights),
        coverage=coverage(accepted),
        server_steps=steps,
        train_loss=train_loss,
        tensors=(),
        files=(listed.reference, coming.reference),
    )


def write_tensors(
    draft: Draft, combination: Combination, sources: Sequence[Artifact[Any]], manifest: StateManifest
) -> StateManifest:
    """Write the tensors of the next state, from the parent and the updates in `sources`: the manifest with them."""
    shapes = combination.shapes()
    writer = draft.tensor_writer(shapes)
    with ExitStack() as stack:
        files = [
            stack.enter_context(tensor_file(source, kept_open=number < MOST_OPEN))
            for number, source in enumerate(sources)
        ]
        combination.settle(files)
        for name in sorted(shapes):
            for values in combination.chunks(name, files):
                writer.write(name, values)
    references, file = writer.finish()
    return manifest.model_copy(update={"tensors": references, "files": (*manifest.files, file)})
