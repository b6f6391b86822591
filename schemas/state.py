"""State v1: all adapters and the head after some rounds, and what the next round is to train.

Who takes part in it, and whose updates went in, are lines of files beside the manifest.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from schemas.assignment import Assignment
from schemas.base import LARGE_MANIFEST_LIMIT_BYTES, Manifest, Many, Record
from schemas.devices import (
    ACCEPTED_FILE,
    MOST_DEVICES,
    PARTICIPANTS_FILE,
    AcceptedUpdate,
    Participant,
    checked_participants,
    checked_updates,
    listed_once,
)
from schemas.methods import ChosenProgress
from schemas.refs import (
    Digest,
    FileReference,
    Layer,
    Loss,
    NonNegativeInt,
    PositiveInt,
    TensorName,
    TensorReference,
    Total,
)


class Coverage(Record):
    """How many of the accepted updates held a layer, the texts behind them, and what the strategy makes of so many.

    `tolerates`: malicious devices among them that cannot turn the layer, by the plan's strategy.  `kept`: why the layer
    has its parent's values nevertheless; empty where it was combined.
    """

    layer: Layer
    devices: PositiveInt
    example_count: Annotated[Total, Field(ge=1)]
    tolerates: NonNegativeInt = 0
    kept: Literal["", "too-few-devices"] = ""

    def __str__(self) -> str:
        devices = f"layer {self.layer}: trained by {self.devices} devices"
        if self.kept:
            return f"{devices}, too few for the plan's strategy: it stays as it was"
        return f"{devices}, of which {self.tolerates} may be malicious"


class ServerSteps(Record):
    """How often the server optimiser has moved a tensor.  Its moments are tensors of the state."""

    tensor: TensorName
    steps: PositiveInt


class StateManifest(Manifest):
    """Round `t`: the tensors after `t` aggregations, and the window and devices of the next one."""

    KIND: ClassVar[str] = "state"
    LIMIT_BYTES: ClassVar[int] = LARGE_MANIFEST_LIMIT_BYTES
    LINES: ClassVar[Mapping[str, type[Record]]] = {ACCEPTED_FILE: AcceptedUpdate, PARTICIPANTS_FILE: Participant}
    SMALLER: ClassVar[str] = "a state has about ten lines for each of its tensors: it cannot hold more than 3,000"

    kind: Literal["state"] = "state"
    version: Literal[1] = 1
    plan: Digest
    parent: Digest | None  # the state before; None for round 0
    round: NonNegativeInt
    assignment: Assignment | None  # of every participant of the next round; None where it differs by device
    progress: ChosenProgress  # of the method
    moved: bool  # whether the method combined the updates: a round may close without moving the model
    participant_count: Annotated[int, Field(ge=0, le=MOST_DEVICES)]  # of the next round; lines of participants.jsonl
    accepted_count: Annotated[int, Field(ge=0, le=MOST_DEVICES)]  # updates that went into it; lines of accepted.jsonl
    example_count: Total  # texts behind those updates
    coverage: Many[Coverage] = ()  # of the round that made it, by layer; empty for round 0
    train_loss: Loss | None  # mean over the accepted updates, weighted by their example counts
    server_steps: Many[ServerSteps] = ()  # by tensor; empty without a server optimiser
    tensors: Many[TensorReference]
    files: Many[FileReference]

    @model_validator(mode="after")
    def _only_round_zero_has_no_parent(self) -> "StateManifest":
        if (self.parent is None) != (self.round == 0):
            raise ValueError("every state but that of round 0 names its parent")
        return self

    @model_validator(mode="after")
    def _lists_its_devices(self) -> "StateManifest":
        if not listed_once(self.files, self.LINES):
            raise ValueError(f"a state lists {' and '.join(self.LINES)} once each")
        return self

    def checked_lines(self, file: str, lines: Iterator[Any]) -> Iterator[Any]:
        """Participants or accepted updates; raises `ValueError` where they contradict the manifest."""
        if file == PARTICIPANTS_FILE:
            return checked_participants(lines, count=self.participant_count)
        assert file == ACCEPTED_FILE
        return checked_updates(lines, count=self.accepted_count, example_count=self.example_count)
