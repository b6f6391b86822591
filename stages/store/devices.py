"""The devices of a federation as its artifacts list them: planned, taking part, accepted.

Everything here streams (see `lines.py`) and reads to the end before it answers: what it says was hashed and checked.
"""

from collections.abc import Iterator
from typing import cast

from schemas.devices import ACCEPTED_FILE, DEVICES_FILE, PARTICIPANTS_FILE, AcceptedUpdate, Participant, PlannedDevice
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.store.artifact import Artifact, artifact_lines


def planned_devices(plan: Artifact[PlanManifest]) -> Iterator[PlannedDevice]:
    """Every planned device, by name.  Iterate to the end: only then is the file checked.

    Raises `NotTrusted` and `BadInput`.
    """
    return cast("Iterator[PlannedDevice]", artifact_lines(plan, DEVICES_FILE))


def find_device(plan: Artifact[PlanManifest], name: str) -> PlannedDevice | None:
    """The planned device called `name`, if there is one.  Raises `NotTrusted` and `BadInput`."""
    found = [device for device in planned_devices(plan) if device.name == name]
    return found[0] if found else None


def names_with_texts(plan: Artifact[PlanManifest]) -> list[str]:
    """The planned devices that can train, sorted.  Raises `NotTrusted` and `BadInput`."""
    return [device.name for device in planned_devices(plan) if device.example_count > 0]


def participants(state: Artifact[StateManifest]) -> list[str]:
    """Who trains in a state's round, sorted.  Raises `NotTrusted` and `BadInput`."""
    lines = cast("Iterator[Participant]", artifact_lines(state, PARTICIPANTS_FILE))
    return [line.name for line in lines]


def takes_part(state: Artifact[StateManifest], name: str) -> bool:
    """Whether a device trains in a state's round.  Raises `NotTrusted` and `BadInput`."""
    return name in participants(state)


def accepted_updates(state: Artifact[StateManifest]) -> Iterator[AcceptedUpdate]:
    """The updates that went into a state, by device.  Iterate to the end: only then is the file checked.

    Raises `NotTrusted` and `BadInput`.
    """
    return cast("Iterator[AcceptedUpdate]", artifact_lines(state, ACCEPTED_FILE))
