"""Benchmark v1: how well a state answers the questions of a published benchmark."""

from typing import Annotated, ClassVar, Literal

from pydantic import StringConstraints, model_validator

from schemas.base import Manifest, Many, Record
from schemas.evaluation import Estimate
from schemas.refs import Digest, NonNegativeInt, Number, PositiveInt

# Names of subjects, tasks and metrics: they come from file names and task files, never from a text.
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:+-]{0,127}$")]


class GroupScore(Record):
    """The mean score of one subject, task or kind of answer."""

    name: PlainName
    count: PositiveInt
    value: Number


class Score(Record):
    """One metric: over all questions, as the mean of the groups, and group by group."""

    metric: PlainName
    overall: Estimate  # Wilson interval if every score is 0 or 1, else the ratio estimator's
    macro: Estimate  # mean of the group means; groups are strata
    groups: Many[GroupScore]

    @model_validator(mode="after")
    def _groups_are_named_once_in_order(self) -> "Score":
        names = [group.name for group in self.groups]
        if not names or names != sorted(set(names)):
            raise ValueError("groups must be named once each, in order")
        return self

    @model_validator(mode="after")
    def _intervals_hold_their_values(self) -> "Score":
        if not all(one.low <= one.value <= one.high for one in (self.overall, self.macro)):
            raise ValueError("an interval does not hold its value")
        return self


class BenchmarkManifest(Manifest):
    """Scores of one state on one benchmark."""

    KIND: ClassVar[str] = "benchmark"

    kind: Literal["benchmark"] = "benchmark"
    version: Literal[1] = 1
    plan: Digest
    state: Digest
    round: NonNegativeInt
    data: Digest  # digest of all questions and their correct answers
    benchmark: PlainName
    shots: NonNegativeInt | None  # None: as many as the data has, or the task sets
    limit: PositiveInt | None  # questions per group, at most; None: all
    example_count: PositiveInt
    truncated_count: NonNegativeInt  # prompts longer than the model's window: their beginning is lost
    scores: Many[Score]

    @model_validator(mode="after")
    def _no_question_counts_twice(self) -> "BenchmarkManifest":
        if any(sum(group.count for group in score.groups) > self.example_count for score in self.scores):
            raise ValueError("a metric counts more questions than were asked")
        return self

    @model_validator(mode="after")
    def _metrics_are_named_once_in_order(self) -> "BenchmarkManifest":
        names = [score.metric for score in self.scores]
        if not names or names != sorted(set(names)):
            raise ValueError("metrics must be named once each, in order")
        return self
