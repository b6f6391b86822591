"""Measured v2: what a stage cost where it ran.  Lies beside a manifest, names it, and decides nothing.

v1 did not count what was cut.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from schemas.base import Manifest, Many, Record, Upgrade, added
from schemas.refs import Digest


def from_v1(document: dict[str, Any]) -> dict[str, Any]:
    """A v1 as v2."""
    return {**added(document, {"texts": None}), "version": 2}


class TextCounts(Record):
    """What encoding did to a device's texts."""

    read: Annotated[int, Field(ge=0)]
    cut: Annotated[int, Field(ge=0)]  # longer than encoding.max_length
    unlearned: Annotated[int, Field(ge=0)]  # nothing left to learn from: the whole response was cut off


class Measured(Manifest):
    """Seconds, bytes, machine and versions.  Differs from run to run, so it is no part of an artifact's name."""

    KIND: ClassVar[str] = "measured"
    VERSION: ClassVar[int] = 2
    OLDER: ClassVar[Mapping[int, Upgrade]] = {1: from_v1}

    kind: Literal["measured"] = "measured"
    version: Literal[2] = 2
    artifact: Digest
    seconds: Annotated[float, Field(ge=0)]
    predicted_peak_bytes: Annotated[int, Field(ge=0)] | None
    peak_bytes: Annotated[int, Field(ge=0)] | None  # high-water mark of the process; None where the OS has none
    bytes_streamed: Annotated[int, Field(ge=0)]  # of frozen weights, from disk
    texts: TextCounts | None  # None where no text was read
    layer_seconds: Many[float]  # forward of one layer over all texts; empty where not measured
    machine: str
    versions: dict[str, str]
