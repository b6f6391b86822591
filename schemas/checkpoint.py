"""Checkpoint v1: a `train-window` that can be resumed.  Stays on the device; holds no text."""

from typing import ClassVar, Literal

from schemas.assignment import Assignment
from schemas.base import Manifest, Many, Record
from schemas.refs import DeviceName, Digest, FileReference, Loss, PositiveInt, TensorReference

MOST_STEPS = 5000  # a checkpoint lists each of them


class FinishedStep(Record):
    """Losses of one optimiser step, in nats per target, and its number of targets."""

    total: Loss
    local: Loss | None
    downstream: Loss | None
    target_count: PositiveInt


class CheckpointManifest(Manifest):
    """The steps so far and their inputs; the tensors are the parameters and the optimiser's moments."""

    KIND: ClassVar[str] = "checkpoint"
    SMALLER: ClassVar[str] = f"a checkpoint has six lines per step: train at most {MOST_STEPS} steps per round with it"
    LIMIT_BYTES: ClassVar[int] = 4 * 2**20  # a few lines per step

    kind: Literal["checkpoint"] = "checkpoint"
    version: Literal[1] = 1
    plan: Digest
    state: Digest
    assignment: Assignment
    device: DeviceName
    inputs: Digest
    steps: Many[FinishedStep]
    tensors: Many[TensorReference]
    files: Many[FileReference]
