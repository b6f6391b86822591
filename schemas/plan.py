"""Plan v1: everything a federation agreed on before the first round.  Its devices are lines of a file beside it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.assignment import Assignment
from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many, Record
from schemas.devices import (
    DEVICES_FILE,
    MOST_DEVICES,
    PlannedDevice,
    SmallestBudget,
    checked_devices,
    listed_once,
)
from schemas.head import HeadParameter
from schemas.methods import ChosenDecisions
from schemas.profile import LayerSimilarity, TextLengths
from schemas.refs import FileReference, ModelFingerprint, NonNegativeInt, PositiveInt, Total
from schemas.settings import Settings
from schemas.trust import TrustPolicy


class AssignmentMemory(Record):
    """Predicted peak of `train-window` on one assignment."""

    assignment: Assignment
    predicted_peak_bytes: Total


class PlanManifest(Manifest):
    """What `chainctl plan` decided and why."""

    KIND: ClassVar[str] = "plan"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES
    LINES: ClassVar[Mapping[str, type[Record]]] = {DEVICES_FILE: PlannedDevice}
    SMALLER: ClassVar[str] = "a plan grows with the labels of its task and the layers of its model: use fewer labels"

    kind: Literal["plan"] = "plan"
    version: Literal[1] = 1
    model: ModelFingerprint
    settings: Settings
    device_count: Annotated[int, Field(ge=1, le=MOST_DEVICES)]  # lines of devices.jsonl
    example_count: Total  # texts on all devices together
    smallest_budget: SmallestBudget
    emulating_count: NonNegativeInt = 0  # devices whose processors emulate `numerics.compute`
    lengths: TextLengths | None  # of the texts of all devices, at most
    curve: Many[LayerSimilarity]  # mean over devices, weighted by their example counts
    decisions: ChosenDecisions  # of the method
    bottleneck: PositiveInt  # r of Eq. 1
    head_parameters: Many[HeadParameter]
    memory: Many[AssignmentMemory]  # one for each assignment that the decisions list
    trust: TrustPolicy = TrustPolicy()
    files: Many[FileReference]

    @model_validator(mode="after")
    def _decisions_fit_method_and_model(self) -> "PlanManifest":
        if self.decisions.method != self.settings.chain.method:
            raise ValueError("the decisions are those of the method")
        self.decisions.check(self.model.num_layers)
        return self

    @model_validator(mode="after")
    def _every_assignment_has_its_memory(self) -> "PlanManifest":
        if tuple(entry.assignment for entry in self.memory) != self.decisions.assignments(self.model.num_layers):
            raise ValueError("each assignment has one predicted peak")
        return self

    @model_validator(mode="after")
    def _lists_its_devices(self) -> "PlanManifest":
        if not listed_once(self.files, self.LINES):
            raise ValueError(f"a plan lists {DEVICES_FILE} once")
        return self

    @model_validator(mode="after")
    def _emulating_devices_are_among_its_own(self) -> "PlanManifest":
        if self.emulating_count > self.device_count:
            raise ValueError("more devices emulate than there are")
        return self

    @model_validator(mode="after")
    def _settings_are_decided(self) -> "PlanManifest":
        chosen = self.settings
        decided = (
            chosen.similarity.scale,
            chosen.adapter.activation,
            chosen.adapter.reduction_factor,
            chosen.numerics.micro_batch,
            chosen.numerics.compute,
            chosen.encoding.max_length,
        )
        if "auto" in (*decided, chosen.prompt.template) or not chosen.chain.decided:
            raise ValueError("a plan holds decisions, not auto")
        if chosen.task.kind == "text-classification" and not chosen.task.labels:
            raise ValueError("a plan fixes the label set")
        return self

    def checked_lines(self, file: str, lines: Iterator[Any]) -> Iterator[Any]:
        """The planned devices; raises `ValueError` where they contradict the manifest."""
        assert file == DEVICES_FILE
        return checked_devices(
            lines,
            count=self.device_count,
            example_count=self.example_count,
            smallest=self.smallest_budget,
            coordinator=self.trust.coordinator,
        )
