"""Refusal v1: why something that claimed to be an update did not count.  Lies beside it in quarantine."""

from typing import ClassVar, Literal

from schemas.base import Manifest
from schemas.refs import DeviceName, Digest

Reason = Literal[
    "unreadable",  # no valid manifest, or one of a newer version
    "altered",  # bytes are not what the manifest says
    "link",  # a link where a directory should be
    "another-plan",
    "another-state",
    "another-round",
    "another-assignment",  # trained something else than was assigned
    "another-device",  # one that does not take part
    "signature",  # none, of another key, or of other bytes
    "example-count",  # above what is enrolled
    "step-count",  # not what that many texts take
    "tensors",  # not those that were to be trained
    "numbers",  # not those that the method asks for
    "not-finite",
    "norm",  # further from the state than the plan allows
    "equivocation",  # a device sent different updates
    "copy",  # the tensors of another device's update
]


class RefusalManifest(Manifest):
    """One refusal, for machines and people."""

    KIND: ClassVar[str] = "refusal"

    kind: Literal["refusal"] = "refusal"
    version: Literal[1] = 1
    reason: Reason
    fact: str
    values: dict[str, str]
    hint: str
    update: Digest | None
    device: DeviceName | None
    plan: Digest
    state: Digest
