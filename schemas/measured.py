"""Measured v1: the cost of a stage on its machine.  Stored beside a manifest, which it names; decides nothing."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import Manifest, Many, Record
from schemas.refs import Digest


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
    seconds: Annotated[float, Field(ge=0)]
    predicted_peak_bytes: Annotated[int, Field(ge=0)] | None
    peak_bytes: Annotated[int, Field(ge=0)] | None  # high-water mark of the process; None if the OS reports none
    bytes_streamed: Annotated[int, Field(ge=0)]  # of frozen weights, from disk
    texts: TextCounts | None  # None if no text was read
    layer_seconds: Many[float]  # forward pass of each layer over all texts; empty if not measured
    machine: str
    versions: dict[str, str]
