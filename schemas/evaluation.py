"""Evaluation v1: how well a state classifies labelled texts."""

from typing import ClassVar, Literal

from pydantic import model_validator

from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many, Record
from schemas.refs import Digest, Label, Loss, NonNegativeInt, Number, PositiveInt

MOST_LABELS = 175  # of a confusion matrix: it takes 31,000 of the lines that a manifest may have


class Estimate(Record):
    """A value with its 95 % interval."""

    value: Number
    low: Number
    high: Number


class EvaluationManifest(Manifest):
    """Metrics of one state on one data set.

    `confusion[i][j]` counts texts of label i predicted as label j; empty where there are more than `MOST_LABELS`.
    """

    KIND: ClassVar[str] = "evaluation"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES  # as of the plan, which holds the labels too
    SMALLER: ClassVar[str] = "an evaluation has a line for each label: use at most 30,000"

    kind: Literal["evaluation"] = "evaluation"
    version: Literal[1] = 1
    plan: Digest
    state: Digest
    round: NonNegativeInt
    data: Digest
    example_count: PositiveInt
    labels: Many[Label]
    accuracy: Estimate  # with the Wilson interval
    macro_f1: Estimate  # with a bootstrap interval over texts
    loss: Loss  # mean cross entropy in nats per text
    confusion: Many[tuple[NonNegativeInt, ...]]

    @model_validator(mode="after")
    def _confusion_counts_every_example_once(self) -> "EvaluationManifest":
        if len(self.labels) > MOST_LABELS:
            if self.confusion or len(self.labels) != len(set(self.labels)):
                raise ValueError(f"the labels differ, and of more than {MOST_LABELS} no confusion matrix is kept")
            return self
        square = len(self.confusion) == len(self.labels) == len(set(self.labels))
        if not square or any(len(row) != len(self.labels) for row in self.confusion):
            raise ValueError("the confusion matrix needs a row and a column for each label")
        if sum(map(sum, self.confusion)) != self.example_count:
            raise ValueError("the confusion matrix does not count every example once")
        return self
