"""Train-window stage: one device trains its assignment of one round.

Chain:  profile -> plan -> [train-window] -> aggregate -> eval
Reads:  plan and state artifacts, the base model, the device's labelled texts.
Writes: an update artifact: the tensors that it trained, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from schemas.errors import BadInput
from schemas.settings import TaskSettings
from schemas.update import UpdateManifest
from stages.data.load import Example, label_indices
from stages.methods.device import Work
from stages.methods.registry import device_method
from stages.process import intent
from stages.process.progress import Progress, Say, silent, unsaid
from stages.session import Machine, Session
from stages.store.artifact import Artifact, check_place, existing, new_artifact
from stages.store.recorded import expect_seconds
from stages.store.signing import Signer
from stages.streaming.texts import EncodedTexts
from stages.training.layers import DeviceTexts
from stages.training.loop import train
from stages.training.resume import TrainingCheckpoint
from stages.training.tally import Diverged
from stages.turn import Turn
from stages.weights.finite import check_finite


def run(
    *,
    machine: Machine,
    plan: Path,
    state: Path,
    data: Path,
    device: str,
    out: Path,
    force: bool = False,
    progress: Progress = silent,
    signer: Signer | None = None,
    window_size: int | None = None,
    checkpoint_every: int | None = None,
    say: Say = unsaid,
) -> Artifact[UpdateManifest]:
    """Train what `state` assigns to `device`, on its texts.

    `window_size` trains only that many last layers of a window.  A checkpoint is written every `checkpoint_every`
    steps, and the same command resumes from it.  `say` is told what an emulated dtype costs here.  Raises `BadInput`
    for artifacts or data that do not match, `NotTrusted` for altered bytes or documents that are not trusted here,
    `DoesNotFit` if the budget is too small.
    """
    turn = Turn.open(plan, state, device, signer=signer, window_size=window_size)
    check_place(
        out,
        UpdateManifest,
        machine.model_dir,
        plan,
        state,
        data,
        force=force,
        signer=signer,
        needed_bytes=turn.update_bytes(),
    )
    examples = turn.read(data)
    inputs = turn.inputs(examples)
    checkpoint = turn.checkpoint(out, checkpoint_every, inputs, signer=signer)
    turn.remember()  # before anything is signed: whoever is killed after that has not forgotten
    found = existing(out, UpdateManifest, same=turn.made(inputs), force=force, signer=signer)
    if found is not None:
        checkpoint.forget()
        return found
    expect_seconds(out, UpdateManifest, turn.alike(len(examples)))
    expected = turn.plan.manifest.model
    opened = Session.open(machine, turn.settings, expected=expected, beside=out.parent, progress=progress, say=say)
    with opened as session:
        trained = train_turn(session, turn, examples, checkpoint)
    predicted = turn.predicted_peak_bytes() if machine.simulates else None
    with new_artifact(out, force=force, signer=signer) as draft:
        tensors, files = draft.write_tensors(trained.tensors)
        update = turn.update(inputs, trained.facts | {"tensors": tensors, "files": files})
        draft.finish(update, session.measured(trained.texts, predicted=predicted))
    checkpoint.forget()
    return Artifact(out, update, update.digest)


@dataclass(frozen=True)
class Trained:
    """The result of a turn: its texts, the update's tensors, and the manifest fields that training decides."""

    texts: EncodedTexts
    tensors: Mapping[str, np.ndarray]
    facts: dict[str, Any]


def train_turn(session: Session, turn: Turn, examples: list[Example], checkpoint: TrainingCheckpoint) -> Trained:
    """Train the turn's assignment.  Empties `examples`, which take as much memory as what is trained."""
    count = len(examples)
    batches, seen = turn.batches(count)
    checkpoint.check_steps(len(batches))
    texts = read_texts(session, [examples[index] for index in seen], turn.settings.task)
    examples.clear()
    method = device_method(turn.settings.chain.method)
    intent.expect(**turn.described(), texts=count, steps=len(batches))
    work = prepare_work(session, turn, texts, all_texts=len(seen) == count)
    training = method.open(work)
    counts = [texts.target_count(batch) for batch in batches]
    try:
        loss = train(training, batches, counts, checkpoint, session.progress).summary()
    except Diverged:
        reader = session.backbone.reader
        check_finite(reader.files, reader.files.tensors.values())
        raise
    numbers = method.numbers(work, training)
    facts = {"example_count": count, "steps": len(batches), "loss": loss, "numbers": numbers}
    return Trained(texts.encoded, training.tensors(), facts)


def read_texts(session: Session, examples: Sequence[Example], task: TaskSettings) -> DeviceTexts:
    """The encoded texts with their targets.  Raises `BadInput` if no token is in the loss."""
    encoded = session.encode(examples)
    if task.kind != "causal-lm":
        return DeviceTexts(encoded, torch.tensor(label_indices(list(examples), task.labels)))
    if not any(encoded.target_counts):
        raise BadInput(
            "no text has a token in the loss",
            values={"texts": len(encoded.rows), "truncated at max_length": encoded.truncated},
            hint="raise encoding.max_length: responses start after it, or texts have only one token",
        )
    return DeviceTexts(encoded, None)


def prepare_work(session: Session, turn: Turn, texts: DeviceTexts, *, all_texts: bool) -> Work:
    """The work of a turn, with the placement that fits the budget.  Raises `DoesNotFit`.

    Hidden states are cached only for `all_texts` of the device: a part of them is another part in the next round.
    """
    plan, method = turn.plan.manifest, device_method(turn.settings.chain.method)
    first_layer = plan.decisions.first_layer
    placement = session.place(
        lambda memory, choice: method.peak_bytes(memory, turn.assignment, choice, first_layer=first_layer),
        lambda memory, choice: method.scratch_bytes(memory, turn.assignment, choice),
        texts.encoded,
        bottleneck=plan.bottleneck,
        what=f"training {turn.assignment}",
    )
    return Work(
        backbone=session.backbone,
        plan=turn.plan,
        state=turn.state,
        assignment=turn.assignment,
        texts=texts,
        placement=placement,
        scratch=session.scratch,
        cache=session.machine.cache if all_texts else None,
    )
