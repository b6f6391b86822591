"""Losses of the training steps in nats, kept for checkpoints and summarised for the update."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.checkpoint import FinishedStep
from schemas.errors import BadInput
from schemas.refs import LARGEST_LOSS
from schemas.update import TrainingLoss
from stages.training.objective import StepLoss


class Diverged(BadInput):
    """A loss is not a finite number."""


@dataclass
class Tally:
    """Losses of all steps so far, and the number of targets of each."""

    losses: list[StepLoss] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, steps: Sequence[FinishedStep]) -> "Tally":
        """The losses of a checkpoint's steps."""
        losses = [StepLoss(step.total, step.local, step.downstream) for step in steps]
        return cls(losses, [step.target_count for step in steps])

    def steps(self) -> list[FinishedStep]:
        """The steps as a checkpoint records them."""
        return [
            FinishedStep(total=loss.total, local=loss.local, downstream=loss.downstream, target_count=count)
            for loss, count in zip(self.losses, self.counts, strict=True)
        ]

    def add(self, loss: StepLoss, count: int) -> None:
        """Add one step.  Raises `Diverged` if its loss is not finite, or larger than any that float32 holds."""
        if not abs(loss.total) <= LARGEST_LOSS:
            raise Diverged(
                "training diverged: the loss is not a finite number",
                values={"step": len(self.losses) + 1, "last loss": self.losses[-1].total if self.losses else "none"},
                hint="lower optimizer.learning_rate",
            )
        self.losses.append(loss)
        self.counts.append(count)

    def summary(self) -> TrainingLoss:
        """The losses as the update's manifest reports them, weighted by target counts."""
        local = [loss.local for loss in self.losses if loss.local is not None]
        downstream = [loss.downstream for loss in self.losses if loss.downstream is not None]
        return TrainingLoss(
            first=self.losses[0].total,
            last=self.losses[-1].total,
            mean=self._mean([loss.total for loss in self.losses]),
            mean_local=self._mean(local) if local else None,
            mean_global=self._mean(downstream) if downstream else None,
        )

    def _mean(self, values: list[float]) -> float:
        return float(np.average(values, weights=self.counts))
