"""State v1: all adapters and the head after some rounds, and what the next round is to train."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.assignment import Assignment
from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many, Record
from schemas.methods import ChosenProgress
from schemas.refs import DeviceName, Digest, FileReference, TensorName, TensorReference


class AcceptedUpdate(Record):
    """An update that went into the state."""

    device: DeviceName
    update: Digest
    example_count: Annotated[int, Field(ge=1)]
    train_loss: float


class Coverage(Record):
    """How many of the accepted updates held a layer, and the texts behind them."""

    layer: Annotated[int, Field(ge=0)]
    devices: Annotated[int, Field(ge=1)]
    example_count: Annotated[int, Field(ge=1)]


class ServerSteps(Record):
    """How often the server optimiser has moved a tensor.  Its moments are tensors of the state."""

    tensor: TensorName
    steps: Annotated[int, Field(ge=1)]


class StateManifest(Manifest):
    """Round `t`: the tensors after `t` aggregations, and the window and devices of the next one."""

    KIND: ClassVar[str] = "state"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES

    kind: Literal["state"] = "state"
    version: Literal[1] = 1
    plan: Digest
    parent: Digest | None  # the state before; None for round 0
    round: Annotated[int, Field(ge=0)]
    assignment: Assignment | None  # of every participant of the next round; None where it differs by device
    progress: ChosenProgress  # of the method
    moved: bool  # whether any tensor differs from the parent's: a round may close without moving the model
    participants: Many[DeviceName]
    accepted: Many[AcceptedUpdate]
    coverage: Many[Coverage] = ()  # of the round that made it, by layer; empty for round 0
    train_loss: float | None  # mean over the accepted updates, weighted by their example counts
    server_steps: Many[ServerSteps] = ()  # by tensor; empty without a server optimiser
    tensors: Many[TensorReference]
    files: Many[FileReference]

    @model_validator(mode="after")
    def _only_round_zero_has_no_parent(self) -> "StateManifest":
        if (self.parent is None) != (self.round == 0):
            raise ValueError("every state but that of round 0 names its parent")
        return self

    @model_validator(mode="after")
    def _a_device_counts_once(self) -> "StateManifest":
        devices = [update.device for update in self.accepted]
        if devices != sorted(set(devices)):
            raise ValueError("accepted updates are listed once for each device, by name")
        return self
