"""The training loop of one `train-window`, for any method: losses, checkpoints, progress."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from stages.process.progress import Progress
from stages.training.objective import StepLoss
from stages.training.resume import Resumable, TrainingCheckpoint
from stages.training.tally import Tally


class Training(Protocol):
    """What a method trains on one device."""

    @property
    def optimizer(self) -> Resumable:
        """The state that a checkpoint saves."""
        ...

    def opened(self, progress: Progress) -> AbstractContextManager[None]:
        """Do all work before the first step; release its memory at the end of the block."""
        ...

    def step(self, batch: list[int]) -> StepLoss:
        """Take one optimiser step on a batch; its loss in nats per target."""
        ...

    def tensors(self) -> Mapping[str, np.ndarray]:
        """The update's tensors by name, float32."""
        ...


def train(
    training: Training,
    batches: Sequence[list[int]],
    counts: Sequence[int],
    checkpoint: TrainingCheckpoint,
    progress: Progress,
) -> Tally:
    """Take the remaining steps, after those of the checkpoint; the losses of all steps.

    `counts` holds the number of targets of each batch.  Raises `BadInput` if training diverges.
    """
    with training.opened(progress):
        tally = Tally.of(checkpoint.restore(training.optimizer))
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True), 1):
            if number <= len(tally.losses):
                continue
            progress("steps", number - 1, len(batches))
            tally.add(training.step(batch), count)
            if checkpoint.due(number):
                checkpoint.save(training.optimizer, tally.steps())
        progress("steps", len(batches), len(batches))
        return tally
