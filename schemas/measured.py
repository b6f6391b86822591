"""Measured v1: the cost of a stage on its machine.  Stored beside a manifest, which it names; decides nothing."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from schemas.base import Manifest, Many, Record
from schemas.refs import LARGEST_TOTAL, Digest, NonNegativeInt, Total

Seconds = Annotated[float, Field(ge=0, le=1e12)]
MOST_SECONDS = 1e21  # of 10^5 devices in 10^3 rounds
TotalSeconds = Annotated[float, Field(ge=0, le=MOST_SECONDS)]


class LayerPasses(Record):
    """How often texts passed a frozen layer, each text and each layer counted.

    `recomputed`: forwards once more, to make the graph of a backward pass that memory had no room for.  `visits`: how
    often an optimizer step saw a text.
    """

    forward: NonNegativeInt = 0
    recomputed: NonNegativeInt = 0
    backward: NonNegativeInt = 0
    visits: NonNegativeInt = 0

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

    seconds: TotalSeconds
    peak_bytes: NonNegativeInt
    passes: Total  # of a text through a frozen layer, in all directions
    visits: Total  # of a text in an optimizer step
    bytes_read: Total  # of frozen weights, from disk
    bytes_up: Total
    bytes_down: Total

    @property
    def per_text(self) -> float:
        """Passes for each text that a step saw, those before the first step shared among them."""
        return self.passes / max(1, self.visits)


def spent(parts: "Sequence[Spent]") -> dict[str, Any]:
    """The fields of all of them together; what a measurement claims stops at the bounds of a sum."""
    most = {name: MOST_SECONDS if name == "seconds" else LARGEST_TOTAL for name in Spent.model_fields}
    sums = {name: min(sum(getattr(part, name) for part in parts), limit) for name, limit in most.items()}
    return sums | {"peak_bytes": max((part.peak_bytes for part in parts), default=0)}


class Cost(Spent):
    """What a round's updates cost; `updates` of them came with a measurement."""

    updates: NonNegativeInt

    @classmethod
    def sum(cls, costs: "Iterable[Cost]") -> "Cost":
        """All of them together."""
        found = list(costs)
        return cls(updates=sum(cost.updates for cost in found), **spent(found))


class TextCounts(Record):
    """How many of a device's texts were read, and what encoding did to them."""

    read: NonNegativeInt
    truncated: NonNegativeInt  # texts longer than encoding.max_length
    without_loss: NonNegativeInt  # texts without a token in the loss


class Measured(Manifest):
    """Seconds, bytes, machine and versions.  Differs from run to run, so it is not part of an artifact's digest."""

    KIND: ClassVar[str] = "measured"

    kind: Literal["measured"] = "measured"
    version: Literal[1] = 1
    artifact: Digest
    seconds: Seconds
    predicted_peak_bytes: NonNegativeInt | None
    peak_bytes: NonNegativeInt | None  # high-water mark of the process; None if the OS reports none
    bytes_streamed: NonNegativeInt  # of frozen weights, from disk
    bytes_written: NonNegativeInt = 0  # to temporary files
    passes: LayerPasses = LayerPasses()  # through frozen layers, by the process that finished the work
    updates: Cost | None = None  # of a state: what the updates that went into it cost their devices
    texts: TextCounts | None  # None if no text was read
    layer_seconds: Many[Seconds]  # forward pass of each layer over all texts; empty if not measured
    machine: str
    versions: dict[str, str]
