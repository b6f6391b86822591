"""Measured v1: what a stage cost where it ran.  Lies beside a manifest, names it, and decides nothing."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.base import Manifest, Many, Record
from schemas.refs import Digest


class TextCounts(Record):
    """What encoding did to a device's texts."""

    read: Annotated[int, Field(ge=0)]
    truncated: Annotated[int, Field(ge=0)]  # longer than encoding.max_length
    without_loss: Annotated[int, Field(ge=0)]  # truncation left no token in the loss


class Measured(Manifest):
    """Seconds, bytes, machine and versions.  Differs from run to run, so it is no part of an artifact's name."""

    KIND: ClassVar[str] = "measured"

    kind: Literal["measured"] = "measured"
    version: Literal[1] = 1
    artifact: Digest
    seconds: Annotated[float, Field(ge=0)]
    predicted_peak_bytes: Annotated[int, Field(ge=0)] | None
    peak_bytes: Annotated[int, Field(ge=0)] | None  # high-water mark of the process; None where the OS has none
    bytes_streamed: Annotated[int, Field(ge=0)]  # of frozen weights, from disk
    texts: TextCounts | None  # None where no text was read
    layer_seconds: Many[float]  # forward of one layer over all texts; empty where not measured
    machine: str
    versions: dict[str, str]
