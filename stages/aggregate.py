"""Aggregate stage: from the updates of a round to the next state.

Chain:  profile -> plan -> train-window -> [aggregate] -> eval
Reads:  plan and state artifacts, update artifacts.
Writes: a state artifact: what was trained, combined by the plan's strategy, everything else as it was, and what
        the next round trains;
        lines in the ledger beside it; refused updates into quarantine beside them.

Tensors pass through in chunks, every byte hashed on its way; nothing is published unless every hash agrees.  Memory
does not grow with the size of the tensors.  numpy alone: no torch.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.devices import ACCEPTED_FILE, AcceptedUpdate
from schemas.errors import TooFewUpdates, UsageProblem, some
from schemas.ledger import Accepted, Closed, Event, Refused
from schemas.plan import PlanManifest
from schemas.refusal import Reason, RefusalManifest
from schemas.settings import FederationSettings
from schemas.state import Coverage, ServerSteps, StateManifest
from stages.federated.assumptions import Support
from stages.federated.costs import cost_of_round
from stages.federated.delivery import Delivery, RefusedUpdate, by_device, is_link
from stages.federated.intake import Intake
from stages.federated.quarantine import refusal_of, set_aside
from stages.federated.rules import Update
from stages.federated.sampling import sample_participants
from stages.methods.registry import server_method
from stages.methods.server import Combination, ServerMethod, Unmoved
from stages.process import intent
from stages.process.measure import MeasuredFacts, Stopwatch
from stages.store.artifact import Artifact, Draft, check_place, existing, new_artifact, tensor_file
from stages.store.devices import accepted_updates, participants
from stages.store.heads import intend_ledger, open_ledger
from stages.store.ledger import Entry, Ledger
from stages.store.lines import Lines, encode_lines
from stages.store.recorded import expect_seconds
from stages.store.signing import Signer
from stages.store.tensors import TENSORS_FILE
from stages.store.trust import check_signer, open_trusted
from stages.tuning.tensors import adapter_names

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
    few are left, `UsageProblem` where the round is closed already, with other updates, `NotTrusted` where the ledger is
    not the one that this machine wrote to.
    """
    planned, parent = open_trusted(plan, state)
    policy = planned.manifest.trust
    method = server_method(planned.manifest.settings.chain.method)
    if not method.trains:  # what claims to be an update was never asked for
        raise UsageProblem(
            "this plan trains nothing, so it has no rounds to close",
            values={"chain.method": method.name},
            hint="evaluate its state with 'chainctl eval', or plan with a method that trains",
        )
    check_signer(policy, policy.coordinator, signer, whose="the coordinator")
    needed_bytes = sum(file.size_bytes for file in parent.manifest.files)
    check_place(out, StateManifest, plan, state, *updates, force=force, signer=signer, needed_bytes=needed_bytes)
    with open_ledger(parent, planned, signer) as ledger:  # nobody else closes this round meanwhile
        delivery = Intake(planned, parent, ledger.counted(before=parent.digest), method).take(updates)
        # All documents are made before anything is recorded or moved.
        refusals = [refusal_of(refused, planned, parent) for refused in delivery.refused]
        too_few, following = short_of_quorum(delivery, planned.manifest, parent, quorum), None
        if too_few is None:
            try:
                following = _following(planned, parent, delivery, method)
            except TooFewUpdates as error:  # for the strategy; what was refused is said and moved all the same
                error.values |= _why_not_more(delivery)
                too_few = error
        _expect(delivery)
        ledger.append(lambda events: _refusals(events, delivery.refused, planned, parent))
        _put_aside(delivery, refusals, {path for path in updates if is_link(path)}, on_refusal)
        if too_few is not None:
            raise too_few
        assert following is not None
        if not force:
            _check_open(ledger, parent.digest, delivery.named)
        intend_ledger(ledger.path, planned)
        made = _next_state(parent, delivery, following, out, force=force, signer=signer)
        ledger.append(lambda events: _closing(events, parent, made))
    return made


@dataclass(frozen=True)
class _Following:
    """The next state before its tensors are written."""

    combination: Combination | None  # None: the model stays
    listed: Lines  # the updates that went into it
    coming: Lines  # the participants of the next round
    manifest: StateManifest


def _following(
    planned: Artifact[PlanManifest], parent: Artifact[StateManifest], delivery: Delivery, method: ServerMethod
) -> _Following:
    accepted = delivery.accepted
    combination = method.combine(planned.manifest, parent, accepted)
    listed = accepted_lines(accepted, delivery.same)
    coming = sample_participants(planned, parent.manifest.round + 1)
    manifest = describe(planned, parent, accepted, method, (listed, coming), combination)
    return _Following(combination, listed, coming, manifest)


def _next_state(
    parent: Artifact[StateManifest],
    delivery: Delivery,
    following: _Following,
    out: Path,
    *,
    force: bool,
    signer: Signer | None,
) -> Artifact[StateManifest]:
    """The state at `out` that these updates make of `parent`: found there, or made."""
    manifest = following.manifest

    def same(there: StateManifest) -> bool:
        lines = tuple(file for file in there.files if file.name != TENSORS_FILE)
        return there.model_copy(update={"tensors": (), "files": lines}) == manifest

    made = existing(out, StateManifest, same=same, force=force, signer=signer)
    if made is not None:
        return made
    alike = (manifest.plan, manifest.accepted_count)
    expect_seconds(out, StateManifest, lambda there: (there.plan, there.accepted_count) == alike)
    sources: list[Artifact[Any]] = [parent, *delivery.accepted]
    with new_artifact(out, force=force, signer=signer) as draft:
        draft.write_lines(following.listed, following.coming)
        with Stopwatch() as watch:
            manifest = write_tensors(draft, following.combination or Unmoved(parent), sources, manifest)
        cost = cost_of_round(delivery.named, parent)
        draft.finish(manifest, MeasuredFacts(seconds=watch.seconds, peak_bytes=watch.peak_bytes, updates=cost))
    return Artifact(out, manifest, manifest.digest)


def short_of_quorum(
    delivery: Delivery, plan: PlanManifest, parent: Artifact[StateManifest], quorum: int | None = None
) -> TooFewUpdates | None:
    """The error where too few updates count to close the round, with who is missing and why."""
    chosen = quorum or plan.settings.federation.quorum
    expected = parent.manifest.participant_count
    needed = expected if chosen == "all" else min(chosen, expected)
    if len(delivery.accepted) >= needed:
        return None
    there = {update.manifest.device for update in delivery.named}
    missing = [device for device in participants(parent) if device not in there]
    values: dict[str, object] = {
        "needed": f"{needed} of {expected}",
        "accepted": len(delivery.accepted),
        "missing": some(missing) or "none",
    }
    fewer = "close with fewer by --quorum"
    return TooFewUpdates(
        f"round {parent.manifest.round} cannot close yet",
        values=values | _why_not_more(delivery),
        hint=f"bring the missing updates and run the same command, or {fewer}" if missing else fewer,
    )


def _why_not_more(delivery: Delivery) -> dict[str, object]:
    """What arrived and does not count, for an error."""
    values: dict[str, object] = {}
    if delivery.same:
        values["not counted twice"] = f"{some([update.manifest.device for update in delivery.same])} (same tensors)"
    if delivery.counted:
        values["counted before"] = f"{len(delivery.counted)} of earlier rounds: they were trained from an older state"
    for refused in delivery.refused[:8]:
        values[f"refused {refused.path.name}"] = refused.error.fact
    if len(delivery.refused) > 8:
        values["refused"] = f"{len(delivery.refused)} in all"
    if delivery.ignored:
        values["ignored"] = f"{len(delivery.ignored)} that are no updates"
    return values


def _put_aside(
    delivery: Delivery,
    refusals: Sequence[RefusalManifest],
    given_links: Collection[Path],
    on_refusal: OnRefusal,
) -> None:
    """Move what was refused out of the way; neither a link that was given, nor what lies behind one."""
    meant = bool(delivery.accepted) or any(refused.reason not in MISDIRECTED for refused in delivery.refused)
    for refused, refusal in zip(delivery.refused, refusals, strict=True):
        behind = refused.path in given_links or refused.path.parent in given_links
        judged = delivery.judged.get(refused.path)
        place = set_aside(refused.path, refusal, judged) if meant and not behind else None
        if not intent.is_dry_run():
            on_refusal(refused, place)


def _expect(delivery: Delivery) -> None:
    """Note for a dry run which updates would count, and which would be refused, and why."""
    if delivery.same:
        intent.expect(not_counted_twice=[update.manifest.device for update in delivery.same])
    intent.expect(
        accepted=[update.manifest.device for update in delivery.accepted],
        refused=[
            {"path": str(one.path), "reason": one.reason, "device": one.device, "fact": one.error.fact}
            for one in delivery.refused
        ],
    )


def _refusals(
    events: Iterable[Event],
    refused: Sequence[RefusedUpdate],
    plan: Artifact[PlanManifest],
    parent: Artifact[StateManifest],
) -> list[Entry]:
    """A line for each refusal of this round that has none yet; one for all that cannot be told apart."""
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

    new = {(parent.digest, one.update, one.reason): one for one in refused}
    return [entry(one) for key, one in new.items() if key not in said]


def _check_open(ledger: Ledger, parent: str, accepted: Sequence[Update]) -> None:
    """The round is open, or was closed with the very same updates."""
    closings = _closings(ledger.events(), parent)
    now = {update.digest for update in accepted}
    if closings and not any(now == updates for _, updates in closings):
        closed, before = closings[-1]
        raise UsageProblem(
            f"round {closed.round} is closed already",
            values={"closed as": closed.state, "with": f"{len(before)} updates", "given": f"{len(now)} updates"},
            hint="go on with that state; --force closes the round anew and makes a second history",
        )


def _closings(events: Iterable[Event], parent: str) -> list[tuple[Closed, set[str]]]:
    """How the round that trains `parent` was closed, and with which updates; more than once with `--force` alone."""
    closings: list[tuple[Closed, set[str]]] = []
    updates: set[str] = set()
    for event in events:
        if isinstance(event, Accepted) and event.state == parent:
            updates.add(event.update)
        elif isinstance(event, Closed) and event.parent == parent:
            closings.append((event, updates))
            updates = set()
    return closings


def _closing(events: Iterable[Event], parent: Artifact[StateManifest], state: Artifact[StateManifest]) -> list[Entry]:
    """What the ledger says of a round that has become `state`, unless it says so."""
    manifest = state.manifest
    said: set[str] = set()
    for event in events:
        if isinstance(event, Closed) and event.state == state.digest:
            return []
        if isinstance(event, Closed) and event.parent == parent.digest:
            said.clear()  # these went into another state
        elif isinstance(event, Accepted) and event.state == parent.digest:
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
    settings: FederationSettings, parent: StateManifest, accepted: Sequence[Update], support: Mapping[str, Support]
) -> tuple[ServerSteps, ...]:
    """How often the server optimiser has moved each tensor, this round included; not those that keep their values."""
    if settings.server_optimizer == "none":
        return ()
    steps = {entry.tensor: entry.steps for entry in parent.server_steps}
    sent = {tensor.name for update in accepted for tensor in update.manifest.tensors}
    moved = {name for name in sent if name not in support or support[name].suffices}
    for name in moved & {tensor.name for tensor in parent.tensors}:
        steps[name] = steps.get(name, 0) + 1
    return tuple(ServerSteps(tensor=name, steps=steps[name]) for name in sorted(steps))


def accepted_lines(accepted: Sequence[Update], same: Sequence[Update] = ()) -> Lines:
    """A line of the next state for each update that goes into it; `same`: whose tensors count in another's line."""
    counts = {update.digest: update.manifest.example_count for update in accepted}
    return encode_lines(
        ACCEPTED_FILE,
        (
            AcceptedUpdate(
                name=update.manifest.device,
                update=update.digest,
                example_count=counts.get(update.digest, 0),
                train_loss=update.manifest.loss.mean,
            )
            for update in sorted([*accepted, *same], key=by_device)
        ),
    )


def coverage(accepted: Sequence[Update], support: Mapping[str, Support]) -> tuple[Coverage, ...]:
    """For each layer that some update trained: how many did, the texts behind them, and what so many allow."""
    layers = sorted({layer for update in accepted for layer in update.manifest.assignment.layers})
    return tuple(cover(layer, accepted, support) for layer in layers)


def cover(layer: int, accepted: Sequence[Update], support: Mapping[str, Support]) -> Coverage:
    """The coverage of one layer."""
    holders = [update for update in accepted if layer in update.manifest.assignment.layers]
    supports = [support[name] for name in adapter_names(layer) if name in support]
    return Coverage(
        layer=layer,
        devices=len(holders),
        example_count=sum(update.manifest.example_count for update in holders),
        tolerates=min((one.tolerates for one in supports), default=0),
        kept="" if all(one.suffices for one in supports) else "too-few-devices",
    )


def describe(
    plan: Artifact[PlanManifest],
    parent: Artifact[StateManifest],
    accepted: Sequence[Update],
    method: ServerMethod,
    lines: tuple[Lines, Lines],
    combination: Combination | None,
) -> StateManifest:
    """The next state, but for its tensors.  `lines`: the accepted updates, and the participants of the next round."""
    listed, coming = lines
    weights = [update.manifest.example_count for update in accepted]
    losses = [update.manifest.loss.mean for update in accepted]
    train_loss = float(np.average(losses, weights=weights))
    next_round = method.next(plan.manifest, parent.manifest, [update.manifest for update in accepted], train_loss)
    federation, steps = plan.manifest.settings.federation, parent.manifest.server_steps
    support = {} if combination is None else combination.support()
    if combination is not None:
        steps = server_steps(federation, parent.manifest, accepted, support)
    return StateManifest(
        plan=plan.digest,
        parent=parent.digest,
        round=parent.manifest.round + 1,
        assignment=next_round.assignment,
        progress=next_round.progress,
        moved=combination is not None,
        participant_count=coming.count,
        accepted_count=listed.count,
        example_count=sum(weights),
        coverage=coverage(accepted, support),
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
