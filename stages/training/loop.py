"""The steps of one `train-window`, whatever the method: losses are kept, checkpoints written, progress told."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from stages.process.progress import Progress
from stages.training.objective import StepLoss
from stages.training.resume import Resumable, TrainingCheckpoint
from stages.training.tally import Tally


class Training(Protocol):
    """A method at work on one device."""

    @property
    def optimizer(self) -> Resumable:
        """What a checkpoint keeps."""
        ...

    def opened(self, progress: Progress) -> AbstractContextManager[None]:
        """Everything before the first step; what it holds is given back at the end."""
        ...

    def step(self, batch: list[int]) -> StepLoss:
        """Learn from the texts of one batch; their loss."""
        ...

    def tensors(self) -> dict[str, np.ndarray]:
        """What goes into the update, by name, float32."""
        ...


def train(
    training: Training,
    batches: Sequence[list[int]],
    counts: Sequence[int],
    checkpoint: TrainingCheckpoint,
    progress: Progress,
) -> Tally:
    """Take the steps that are left, and say what each of all of them cost.

    `counts` are the targets of each batch.  Raises `BadInput` where training diverges.
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
