"""State v1: all adapters and the head after some rounds, and what the next round is to train."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.base import Manifest, Record
from schemas.refs import DeviceName, Digest, FileReference, TensorReference, Window


class AcceptedUpdate(Record):
    """An update that went into the state."""

    device: DeviceName
    update: Digest
    example_count: Annotated[int, Field(ge=1)]
    train_loss: float


class Convergence(Record):
    """How long the window has not improved (only counts where windows advance on convergence)."""

    best_loss: float | None = None
    stale_rounds: Annotated[int, Field(ge=0)] = 0


class StateManifest(Manifest):
    """Round `t`: the tensors after `t` aggregations, and the window and devices of the next one."""

    KIND: ClassVar[str] = "state"

    kind: Literal["state"] = "state"
    version: Literal[1] = 1
    plan: Digest
    parent: Digest | None  # the state before; None for round 0
    round: Annotated[int, Field(ge=0)]
    window: Window
    window_index: Annotated[int, Field(ge=0)]
    participants: tuple[DeviceName, ...]
    convergence: Convergence
    accepted: tuple[AcceptedUpdate, ...]
    train_loss: float | None  # mean over the accepted updates, weighted by their example counts
    tensors: tuple[TensorReference, ...]
    files: tuple[FileReference, ...]

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
