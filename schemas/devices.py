"""What grows with the number of devices: files of lines that lie beside a manifest.

    plan/devices.jsonl          every planned device: its profile, texts, budget, and its key where updates are signed
    state/participants.jsonl    who trains in the next round
    state/accepted.jsonl        whose updates went into the state

One canonical JSON object per line (keys sorted, no spaces, UTF-8, one newline), one line for each device at most,
by its name.  The manifest lists each file with size and SHA-256 and holds what does not grow: counts, and sums.  The
version of the manifest is that of its lines.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, ClassVar

from pydantic import StringConstraints

from schemas.base import Record
from schemas.refs import DeviceName, Digest, FileReference, Loss, NonNegativeInt, PositiveInt, PublicKey

DEVICES_FILE = "devices.jsonl"
PARTICIPANTS_FILE = "participants.jsonl"
ACCEPTED_FILE = "accepted.jsonl"

MOST_DEVICES = 100_000
LINE_LIMIT_BYTES = 1024  # the longest line of a planned device takes about 600

Remark = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,128}$")]


class Line(Record):
    """What a file of lines says of one device."""

    KIND: ClassVar[str]

    name: DeviceName

    def canonical_bytes(self) -> bytes:
        """The only bytes that stand for this line."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class PlannedDevice(Line):
    """A device that may take part, by the profile it sent and, where updates are signed, by its key."""

    KIND: ClassVar[str] = "planned-device"

    profile: Digest
    example_count: NonNegativeInt
    max_example_count: NonNegativeInt  # that it may say it trained on: as enrolled, or else as profiled
    memory_budget_bytes: PositiveInt
    left_out: Remark = ""  # why its curve is not in the average; empty when it is
    key: PublicKey | None = None  # None where nothing is signed


class Participant(Line):
    """A device that trains in a round."""

    KIND: ClassVar[str] = "participant"


class AcceptedUpdate(Line):
    """An update that went into the state; `name` is the device's."""

    KIND: ClassVar[str] = "accepted-update"

    update: Digest
    example_count: NonNegativeInt  # 0 where the update of another device has the same tensors and counts for both
    train_loss: Loss


class SmallestBudget(Record):
    """The device with the smallest memory budget; of several, the first by name."""

    device: DeviceName
    memory_budget_bytes: PositiveInt


def listed_once(files: Sequence[FileReference], names: Iterable[str]) -> bool:
    """Whether a manifest lists each file of lines exactly once."""
    found = [file.name for file in files]
    return all(found.count(name) == 1 for name in names)


def checked_devices(
    lines: Iterator[PlannedDevice],
    *,
    count: int,
    example_count: int,
    smallest: SmallestBudget,
    coordinator: str | None,
) -> Iterator[PlannedDevice]:
    """The lines as they come; raises `ValueError` where they and the manifest contradict each other.

    `coordinator` is its key where the plan requires signatures.
    """
    keys = set() if coordinator is None else {coordinator}
    found, texts, least = 0, 0, None
    for line in lines:
        if (line.key is None) != (coordinator is None):
            raise ValueError("a plan that requires signatures has a key for every device, another one for none")
        if line.key is not None and line.key in keys:
            raise ValueError("every device, and the coordinator, has a key of its own")
        if line.key is not None:
            keys.add(line.key)
        budget = (line.memory_budget_bytes, line.name)
        least = budget if least is None else min(least, budget)
        found, texts = found + 1, texts + line.example_count
        yield line
    _agree(("devices", count, found), ("texts", example_count, texts))
    if least != (smallest.memory_budget_bytes, smallest.device):
        raise ValueError("the smallest memory budget is another than the manifest says")


def checked_participants(lines: Iterator[Participant], *, count: int) -> Iterator[Participant]:
    """The lines as they come; raises `ValueError` where there are more or fewer than the manifest says."""
    found = 0
    for line in lines:
        found += 1
        yield line
    _agree(("participants", count, found))


def checked_updates(lines: Iterator[AcceptedUpdate], *, count: int, example_count: int) -> Iterator[AcceptedUpdate]:
    """The lines as they come; raises `ValueError` where they and the manifest contradict each other."""
    found, texts = 0, 0
    for line in lines:
        found, texts = found + 1, texts + line.example_count
        yield line
    _agree(("accepted updates", count, found), ("texts", example_count, texts))


def _agree(*counts: tuple[str, int, int]) -> None:
    for what, expected, found in counts:
        if expected != found:
            raise ValueError(f"the manifest says {expected} {what}, the lines have {found}")
