"""Evaluation v1: how well a state classifies labelled texts."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import Manifest, Many, Record
from schemas.refs import Digest, Label

MOST_LABELS = 175  # their confusion matrix takes 31,000 of the lines that a manifest may have


class Estimate(Record):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class EvaluationManifest(Manifest):
    """Metrics of one state on one data set.  `confusion[i][j]` counts texts of label i predicted as label j."""

    KIND: ClassVar[str] = "evaluation"
    SMALLER: ClassVar[str] = f"a confusion matrix has a line for each pair of labels: use at most {MOST_LABELS} labels"

    kind: Literal["evaluation"] = "evaluation"
    version: Literal[1] = 1
    plan: Digest
    state: Digest
    round: Annotated[int, Field(ge=0)]
    data: Digest
    example_count: Annotated[int, Field(ge=1)]
    labels: Many[Label]
    accuracy: Estimate  # with the Wilson interval
    macro_f1: Estimate  # with a bootstrap interval over texts
    loss: float  # mean cross entropy in nats per text
    confusion: Many[tuple[Annotated[int, Field(ge=0)], ...]]

    @model_validator(mode="after")
    def _confusion_counts_every_example_once(self) -> "EvaluationManifest":
        square = len(self.confusion) == len(self.labels) == len(set(self.labels))
        if not square or any(len(row) != len(self.labels) for row in self.confusion):
            raise ValueError("the confusion matrix needs a row and a column for each label")
        if sum(map(sum, self.confusion)) != self.example_count:
            raise ValueError("the confusion matrix does not count every example once")
        return self
