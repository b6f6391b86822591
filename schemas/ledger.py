"""Ledger v1: the coordinator's record, one line an event, each naming the digest of the line before.

A line is JSON without spaces, keys sorted, ending in a newline; its digest is the SHA-256 of those bytes.  No line
holds a time: what counts is the order.
"""

import json
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from schemas.base import Record, describe_validation_error, sha256_digest
from schemas.errors import NotTrusted
from schemas.refs import DeviceName, Digest, NonNegativeInt
from schemas.refusal import Reason

LINE_LIMIT_BYTES = 2**10  # of any event: none grows with the number of devices


class Planned(Record):
    """A federation began."""

    event: Literal["planned"] = "planned"
    version: Literal[1] = 1
    previous: Digest | None
    plan: Digest
    state: Digest  # of round 0
    participant_count: NonNegativeInt  # that state names them


class OfRound(Record):
    """What is said of an update: the round that it was for, by the state that was trained."""

    version: Literal[1] = 1
    previous: Digest | None
    plan: Digest
    state: Digest
    round: NonNegativeInt


class Refused(OfRound):
    """Something that claimed to be an update did not count."""

    event: Literal["refused"] = "refused"
    reason: Reason
    update: Digest | None  # of its manifest, where that could be read
    device: DeviceName | None  # that it names


class Accepted(OfRound):
    """An update counted."""

    event: Literal["accepted"] = "accepted"
    update: Digest
    device: DeviceName


class Closed(Record):
    """A round became the next state."""

    event: Literal["closed"] = "closed"
    version: Literal[1] = 1
    previous: Digest | None
    plan: Digest
    parent: Digest
    round: NonNegativeInt  # of the parent: the round that was trained
    state: Digest  # the new one
    participant_count: NonNegativeInt  # of the next round; that state names them


Event = Planned | Refused | Accepted | Closed
EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def line_bytes(event: Event) -> bytes:
    """The line of an event."""
    document = event.model_dump(mode="json")
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def parse_line(line: bytes, *, number: int, previous: str | None, source: str) -> Event:
    """An event that follows the line with digest `previous`.  Raises `NotTrusted`."""
    try:
        event = EVENT.validate_json(line)
    except ValidationError as error:
        raise NotTrusted(
            f"{source}: line {number} is no event",
            values=describe_validation_error(error),
            hint="the ledger was altered",
        ) from None
    if line_bytes(event) != line or event.previous != previous:
        raise NotTrusted(
            f"{source}: line {number} does not follow the line before it",
            values={"line before is": previous or "none", f"line {number} names": event.previous or "none"},
            hint="lines were altered, left out or put in: restore the ledger from a copy",
        )
    return event


def line_digest(line: bytes) -> str:
    """The name of a line."""
    return sha256_digest(line)
