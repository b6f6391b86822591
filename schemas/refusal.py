"""Refusal v1: why an update was refused.  Stored beside the update in quarantine."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from schemas.base import Manifest
from schemas.refs import DeviceName, Digest

Reason = Literal[
    "unreadable",  # no valid manifest, or one of a newer version
    "altered",  # bytes do not match the manifest
    "link",  # a link where a directory should be
    "another-plan",
    "another-state",
    "another-round",
    "another-assignment",  # trained something other than its assignment
    "another-device",  # a device that does not take part
    "signature",  # missing, by another key, or of other bytes
    "example-count",  # more than the device enrolled
    "step-count",  # not the number for that many texts
    "tensors",  # not the assigned tensors
    "numbers",  # not the numbers that the method asks for
    "not-finite",
    "norm",  # farther from the state than the plan allows
    "equivocation",  # one device sent different updates
    "copy",  # the tensors of another device's update: in older ledgers; such updates now count together, once
]

MOST_VALUES = 16
TEXT_LENGTH = 1024
Text = Annotated[str, StringConstraints(max_length=TEXT_LENGTH)]


class RefusalManifest(Manifest):
    """One refusal, for machines and people."""

    KIND: ClassVar[str] = "refusal"

    kind: Literal["refusal"] = "refusal"
    version: Literal[1] = 1
    reason: Reason
    fact: Text
    values: Annotated[dict[Text, Text], Field(max_length=MOST_VALUES)]
    hint: Text
    update: Digest | None
    device: DeviceName | None
    plan: Digest
    state: Digest
