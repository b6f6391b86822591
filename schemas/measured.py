"""Measured v1: the cost of a stage on its machine.  Stored beside a manifest, which it names; decides nothing."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from schemas.base import Manifest, Many, Record
from schemas.refs import Digest

Count = Annotated[int, Field(ge=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]


class LayerPasses(Record):
    """How often texts passed a frozen layer, each text and each layer counted.

    `recomputed`: forwards once more, to make the graph of a backward pass that memory had no room for.  `visits`: how
    often an optimizer step saw a text.
    """

    forward: Count = 0
    recomputed: Count = 0
    backward: Count = 0
    visits: Count = 0

    @property
    def total(self) -> int:
        """All passes."""
        return self.forward + self.recomputed + self.backward

    @property
    def per_text(self) -> float:
        """Passes for each text that a step saw, those before the first step shared among them."""
        return self.total / max(1, self.visits)


class Spent(Record):
    """What updates cost their devices, as those measured it: sums, and the largest peak."""

    seconds: Annotated[float, Field(ge=0)]
    peak_bytes: Annotated[int, Field(ge=0)]
    passes: Annotated[int, Field(ge=0)]  # of a text through a frozen layer, in all directions
    visits: Annotated[int, Field(ge=0)]  # of a text in an optimizer step
    bytes_read: Annotated[int, Field(ge=0)]  # of frozen weights, from disk
    bytes_up: Annotated[int, Field(ge=0)]
    bytes_down: Annotated[int, Field(ge=0)]

    @property
    def per_text(self) -> float:
        """Passes for each text that a step saw, those before the first step shared among them."""
        return self.passes / max(1, self.visits)


def spent(parts: "Sequence[Spent]") -> dict[str, Any]:
    """The fields of all of them together."""
    sums = {name: sum(getattr(part, name) for part in parts) for name in Spent.model_fields}
    return sums | {"peak_bytes": max((part.peak_bytes for part in parts), default=0)}


class Cost(Spent):
    """What a round's updates cost; `updates` of them came with a measurement."""

    updates: Annotated[int, Field(ge=0)]

    @classmethod
    def sum(cls, costs: "Iterable[Cost]") -> "Cost":
        """All of them together."""
        found = list(costs)
        return cls(updates=sum(cost.updates for cost in found), **spent(found))


class TextCounts(Record):
    """How many of a device's texts were read, and what encoding did to them."""

    read: Annotated[int, Field(ge=0)]
    truncated: Annotated[int, Field(ge=0)]  # texts longer than encoding.max_length
    without_loss: Annotated[int, Field(ge=0)]  # texts without a token in the loss


class Measured(Manifest):
    """Seconds, bytes, machine and versions.  Differs from run to run, so it is not part of an artifact's digest."""

    KIND: ClassVar[str] = "measured"

    kind: Literal["measured"] = "measured"
    version: Literal[1] = 1
    artifact: Digest
    seconds: Seconds
    predicted_peak_bytes: Count | None
    peak_bytes: Count | None  # high-water mark of the process; None if the OS reports none
    bytes_streamed: Count  # of frozen weights, from disk
    bytes_written: Count = 0  # to temporary files
    passes: LayerPasses = LayerPasses()  # through frozen layers, by the process that finished the work
    updates: Cost | None = None  # of a state: what the updates that went into it cost their devices
    texts: TextCounts | None  # None if no text was read
    layer_seconds: Many[float]  # forward pass of each layer over all texts; empty if not measured
    machine: str
    versions: dict[str, str]
