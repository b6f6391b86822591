"""Plan v1: everything a federation agreed on before the first round."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.assignment import Assignment
from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many, Record
from schemas.methods import ChosenDecisions
from schemas.profile import LayerSimilarity
from schemas.refs import DeviceName, Digest, ModelFingerprint, TensorName
from schemas.settings import Settings
from schemas.trust import TrustPolicy


class PlannedDevice(Record):
    """A device that may take part, by the profile it sent."""

    name: DeviceName
    profile: Digest
    example_count: Annotated[int, Field(ge=0)]
    memory_budget_bytes: Annotated[int, Field(ge=1)]
    left_out: str = ""  # why its curve is not in the average; empty when it is


class AssignmentMemory(Record):
    """Predicted peak of `train-window` on one assignment."""

    assignment: Assignment
    predicted_peak_bytes: Annotated[int, Field(ge=0)]


class HeadParameter(Record):
    """A head parameter that trains: one that the checkpoint does not hold."""

    name: TensorName
    shape: Many[Annotated[int, Field(ge=1)]]


class PlanManifest(Manifest):
    """What `chainctl plan` decided and why."""

    KIND: ClassVar[str] = "plan"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES

    kind: Literal["plan"] = "plan"
    version: Literal[1] = 1
    model: ModelFingerprint
    settings: Settings
    devices: Many[PlannedDevice]
    curve: Many[LayerSimilarity]  # mean over devices, weighted by their example counts
    decisions: ChosenDecisions  # of the method
    bottleneck: Annotated[int, Field(ge=1)]  # r of Eq. 1
    head_parameters: Many[HeadParameter]
    memory: Many[AssignmentMemory]  # one for each assignment that the decisions list
    trust: TrustPolicy = TrustPolicy()

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
    def _devices_are_distinct_and_sorted(self) -> "PlanManifest":
        names = [device.name for device in self.devices]
        if names != sorted(set(names)):
            raise ValueError("devices are listed once each, by name")
        return self

    @model_validator(mode="after")
    def _settings_are_decided(self) -> "PlanManifest":
        chosen = self.settings
        decided = (chosen.similarity.scale, chosen.adapter.activation, chosen.numerics.micro_batch)
        if "auto" in (*decided, chosen.prompt.template) or not chosen.chain.decided:
            raise ValueError("a plan holds decisions, not auto")
        if chosen.task.kind == "text-classification" and not chosen.task.labels:
            raise ValueError("a plan fixes the label set")
        return self

    @model_validator(mode="after")
    def _who_signs_is_enrolled(self) -> "PlanManifest":
        enrolled = {device.name for device in self.trust.devices}
        if self.trust.required and not {device.name for device in self.devices} <= enrolled:
            raise ValueError("a plan that requires signatures enrols every device")
        return self

    def most_examples(self, name: str) -> int:
        """How many texts a device may say it trained on: as enrolled, or else as it profiled."""
        enrolled = self.trust.device(name)
        planned = self.device(name)
        return enrolled.max_example_count if enrolled else planned.example_count if planned else 0

    def device(self, name: str) -> PlannedDevice | None:
        """The planned device called `name`, if there is one."""
        return next((device for device in self.devices if device.name == name), None)
