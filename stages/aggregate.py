"""Aggregate stage: from the updates of a round to the next state.

Chain:  profile -> plan -> train-window -> [aggregate] -> eval
Reads:  plan and state artifacts, update artifacts.
Writes: a state artifact: the mean of what was trained, everything else as it was, and the next round's window.

Tensors pass through in chunks, every byte hashed on its way; nothing is published unless every hash agrees.  Memory
does not grow with the number of updates or the size of the tensors.  numpy alone: no torch.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from schemas.errors import BadInput, TooFewUpdates
from schemas.plan import PlanManifest
from schemas.state import AcceptedUpdate, StateManifest
from schemas.update import UpdateManifest
from stages.federated.sampling import next_window, sample_devices
from stages.federated.weighted_mean import weighted_mean
from stages.store.artifact import Artifact, Draft, check_same_plan, drafting, existing, open_artifact, tensor_file
from stages.store.measure import MeasuredFacts, Stopwatch
from stages.store.tensors import elements

CHUNK_ELEMENTS = 2**16  # 256 KiB of float32 an update

Update = Artifact[UpdateManifest]
Source = Artifact[UpdateManifest] | Artifact[StateManifest]


def run(updates: Sequence[Path], *, plan: Path, state: Path, out: Path, force: bool = False) -> Artifact[StateManifest]:
    """Average a round's updates into the next state.

    The order of `updates` does not matter, and the same update given twice counts once.  Raises `BadInput` for an
    update of another plan, state, round, window or device, `NotTrusted` for altered bytes, `TooFewUpdates` for none.
    """
    planned = open_artifact(plan, PlanManifest)
    parent = open_artifact(state, StateManifest)
    check_same_plan(planned, parent)
    accepted = accept([open_artifact(path, UpdateManifest) for path in updates], planned, parent)
    manifest = describe(planned, parent, accepted)

    def same(there: StateManifest) -> bool:
        return there.model_copy(update={"tensors": (), "files": ()}) == manifest

    found = existing(out, StateManifest, same=same, force=force)
    if found is not None:
        return found
    with drafting(out, force=force) as draft:
        with Stopwatch() as watch:
            manifest = _combine(draft, parent, accepted, manifest)
        draft.finish(manifest, MeasuredFacts(seconds=watch.seconds, peak_bytes=watch.peak_bytes))
    return Artifact(out, manifest, manifest.digest)


def accept(updates: Sequence[Update], plan: Artifact[PlanManifest], parent: Artifact[StateManifest]) -> list[Update]:
    """The round's updates in canonical order: by device name.  Raises where one does not belong."""
    distinct = {update.digest: update for update in updates}
    if not distinct:
        raise TooFewUpdates(
            "a round cannot close without updates",
            values={"expected from": ", ".join(parent.manifest.participants), "found": "none"},
        )
    by_device: dict[str, Update] = {}
    for update in distinct.values():
        check_update(update, plan, parent)
        other = by_device.setdefault(update.manifest.device, update)
        if other is not update:
            raise BadInput(
                f"device {update.manifest.device} sent two different updates",
                values={str(other.path): other.digest, str(update.path): update.digest},
                hint="keep one of them",
            )
    return [by_device[device] for device in sorted(by_device)]


def check_update(update: Update, plan: Artifact[PlanManifest], parent: Artifact[StateManifest]) -> None:
    """An update is of this plan, state, round, window and one of its devices, and holds what was trained, exactly."""
    found, round_state = update.manifest, parent.manifest
    where = str(update.path)
    _agree(where, "plan", plan.digest, found.plan)
    _agree(where, "state", parent.digest, found.state)
    _agree(where, "round", round_state.round, found.round)
    _agree(where, "window", str(round_state.window), str(found.window))
    if found.device not in round_state.participants:
        raise BadInput(
            f"{where}: device {found.device} does not take part in round {round_state.round}",
            values={"expected": ", ".join(round_state.participants), "found": found.device},
        )
    expected = {name: shape for name, shape in _shapes(parent).items() if is_trained(name, parent.manifest)}
    if expected != _shapes(update):
        raise BadInput(
            f"{where} does not hold the tensors that round {round_state.round} trains",
            values={"expected": f"{len(expected)} tensors", "found": f"{len(found.tensors)} tensors"},
            hint="the update was made by another version or altered: train again",
        )


def is_trained(name: str, state: StateManifest) -> bool:
    """Whether the tensor `name` is one that the state's round trains: the head, or an adapter in the window."""
    group, _, rest = name.partition(".")
    return group == "head" or int(rest.split(".")[0]) in state.window.layers


def describe(
    plan: Artifact[PlanManifest], parent: Artifact[StateManifest], accepted: Sequence[Update]
) -> StateManifest:
    """The next state, but for its tensors.  Pure."""
    weights = [update.manifest.example_count for update in accepted]
    losses = [update.manifest.loss.mean for update in accepted]
    train_loss = float(np.average(losses, weights=weights))
    index, convergence = next_window(
        plan.manifest, parent.manifest.window_index, parent.manifest.convergence, train_loss
    )
    names = [device.name for device in plan.manifest.devices if device.example_count > 0]
    count = plan.manifest.settings.federation.devices_per_round
    following = parent.manifest.round + 1
    return StateManifest(
        plan=plan.digest,
        parent=parent.digest,
        round=following,
        window=plan.manifest.windows[index],
        window_index=index,
        participants=sample_devices(plan.digest, following, names, count),
        convergence=convergence,
        accepted=tuple(
            AcceptedUpdate(
                device=update.manifest.device,
                update=update.digest,
                example_count=update.manifest.example_count,
                train_loss=update.manifest.loss.mean,
            )
            for update in accepted
        ),
        train_loss=train_loss,
        tensors=(),
        files=(),
    )


def _combine(
    draft: Draft, parent: Artifact[StateManifest], accepted: Sequence[Update], manifest: StateManifest
) -> StateManifest:
    shapes = _shapes(parent)
    writer = draft.tensor_writer(shapes)
    weights = [update.manifest.example_count for update in accepted]
    for name in sorted(shapes):
        sources: Sequence[Source] = [parent]
        if is_trained(name, parent.manifest):
            sources = accepted
        for chunks in _chunks(name, sources):
            writer.write(name, weighted_mean(chunks, weights if sources is accepted else [1]))
    references, file = writer.finish()
    return manifest.model_copy(update={"tensors": references, "files": (file,)})


def _chunks(name: str, sources: Sequence[Source]) -> Iterator[Iterator[np.ndarray]]:
    """For each chunk of a tensor, that chunk of every source, one at a time: one chunk is in memory, whatever K.

    Each source's hash is checked at the tensor's end.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(tensor_file(source)) for source in sources]
        hashes = [hashlib.sha256() for _ in files]
        size = elements(files[0].references[name].shape)

        def read(start: int) -> Iterator[np.ndarray]:
            for file, digest, source in zip(files, hashes, sources, strict=True):
                chunk = file.chunk(name, start, min(CHUNK_ELEMENTS, size - start))
                digest.update(chunk.data)
                _check_finite(chunk, name, source)
                yield chunk

        for start in range(0, size, CHUNK_ELEMENTS):
            yield read(start)
        for file, digest in zip(files, hashes, strict=True):
            file.check_digest(name, digest.hexdigest())


def _check_finite(chunk: np.ndarray, name: str, source: Source) -> None:
    if not np.isfinite(chunk).all():
        raise BadInput(
            f"{source.path}: tensor {name} holds values that are no numbers",
            values={"expected": "finite values", "found": f"{int((~np.isfinite(chunk)).sum())} NaN or infinite"},
            hint="leave this update out; its device diverged or is broken",
        )


def _shapes(artifact: Source) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in artifact.manifest.tensors}


def _agree(where: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise BadInput(
            f"{where} is of another {what}",
            values={"expected": expected, "found": found},
            hint="check which artifacts were given",
        )
