"""Plan v1: everything a federation agreed on before the first round."""

import itertools
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many, Record
from schemas.profile import LayerSimilarity
from schemas.refs import DeviceName, Digest, ModelFingerprint, TensorName, Window
from schemas.settings import Settings
from schemas.trust import TrustPolicy


class PlannedDevice(Record):
    """A device that may take part, by the profile it sent."""

    name: DeviceName
    profile: Digest
    example_count: Annotated[int, Field(ge=0)]
    memory_budget_bytes: Annotated[int, Field(ge=1)]
    left_out: str = ""  # why its curve is not in the average; empty when it is


class WindowMemory(Record):
    """Predicted peak of `train-window` on one window."""

    window: Window
    predicted_peak_bytes: Annotated[int, Field(ge=0)]


class HeadParameter(Record):
    """A head parameter that trains: one that the checkpoint does not hold."""

    name: TensorName
    shape: Many[Annotated[int, Field(ge=1)]]


StartReason = Literal["below-threshold", "clamped", "no-layer-below-threshold", "fixed", "method"]


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
    start_layer: Annotated[int, Field(ge=0)]
    start_reason: StartReason
    start_range: tuple[int, int]  # earliest and latest start that the curve's intervals allow
    bottleneck: Annotated[int, Field(ge=1)]  # r of Eq. 1
    head_parameters: Many[HeadParameter]
    windows: Many[Window]
    memory: Many[WindowMemory]  # one for each window
    limited_by: DeviceName | None  # the device whose budget decided Q
    trust: TrustPolicy = TrustPolicy()

    @model_validator(mode="after")
    def _windows_tile_the_tail(self) -> "PlanManifest":
        edges = [(window.start, window.stop) for window in self.windows]
        forward = all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(edges))
        if not edges or not forward or edges[-1][1] != self.model.num_layers:
            raise ValueError("windows move forward and the last one ends at the last layer")
        if self.windows[0].start != self.start_layer:
            raise ValueError("the first window begins at the start layer")
        if any(later.start > earlier.stop for earlier, later in zip(self.windows, self.windows[1:], strict=False)):
            raise ValueError("windows leave no layer out")
        return self

    @model_validator(mode="after")
    def _every_window_has_its_memory(self) -> "PlanManifest":
        if tuple(entry.window for entry in self.memory) != self.windows:
            raise ValueError("each window has one predicted peak")
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
        chain, numerics = chosen.chain, chosen.numerics
        decided = (chosen.similarity.scale, chosen.adapter.activation, chain.window_size, numerics.micro_batch)
        if "auto" in (*decided, chosen.prompt.template):
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
