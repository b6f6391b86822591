"""What was delivered for a round: which folders claim to be updates, and which updates rule each other out."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import BadInput, ChainError, UsageProblem
from schemas.kinds import ARTIFACTS
from schemas.refusal import Reason
from schemas.update import UpdateManifest
from stages.federated.rules import Update
from stages.store.artifact import MANIFEST_FILE, kind_and_version
from stages.store.debris import is_debris, without_debris
from stages.store.files import put_back
from stages.store.folder import Identity


@dataclass(frozen=True)
class RefusedUpdate:
    """Something that claimed to be an update."""

    path: Path
    reason: Reason
    error: ChainError
    update: str | None  # digest of its manifest, where that could be read
    device: str | None  # that it names


@dataclass
class Delivery:
    """What arrived for a round.  `counted` were accepted in earlier rounds, `ignored` claim to be no update.

    `judged`: which file or folder each path of a candidate was when it was examined.
    """

    accepted: list[Update] = field(default_factory=list)
    refused: list[RefusedUpdate] = field(default_factory=list)
    counted: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    judged: dict[Path, Identity] = field(default_factory=dict)


def candidates(paths: Sequence[Path], ignored: list[Path]) -> Iterator[Path]:
    """Directories that hold a manifest: those given, and those in folders that were given, except hidden ones.

    What operating systems leave is neither that nor `ignored`.  Raises `UsageProblem` for a path that does not exist.
    """
    for path in without_debris(paths):
        if not os.path.lexists(path):
            raise UsageProblem(f"there is no {path}", values={"expected": "an update artifact, or a folder of them"})
        if path.is_symlink() or os.path.lexists(path / MANIFEST_FILE) or not path.is_dir():
            yield path
            continue
        put_back(path)
        with os.scandir(path) as entries:
            below = sorted(entry.name for entry in entries if not (entry.name.startswith(".") or is_debris(entry.name)))
        for name in below:
            if (path / name).is_symlink() or os.path.lexists(path / name / MANIFEST_FILE):
                yield path / name
            else:
                ignored.append(path / name)


def claims_to_be_an_update(path: Path) -> bool:
    """Whether a directory is to be judged: what is whole and of another kind was given by mistake."""
    if path.is_symlink() or not path.is_dir():
        return path.is_symlink()
    try:
        kind, _ = kind_and_version(path)
    except ChainError:
        return True
    return not isinstance(kind, str) or kind == UpdateManifest.KIND or kind not in ARTIFACTS


def refused_update(update: Update, reason: Reason, error: ChainError) -> RefusedUpdate:
    """A whole update that does not count."""
    return RefusedUpdate(update.path, reason, error, update.digest, update.manifest.device)


def _equivocations(updates: Sequence[Update]) -> dict[str, ChainError]:
    """Updates of devices that sent more than one."""
    of_device: dict[str, list[Update]] = {}
    for update in updates:
        of_device.setdefault(update.manifest.device, []).append(update)
    return {
        update.digest: BadInput(
            f"device {device} sent {len(sent)} different updates",
            values={str(other.path): other.digest for other in sent[:4]},
            hint="decide which one is meant, move it back and aggregate again",
        )
        for device, sent in of_device.items()
        if len(sent) > 1
        for update in sent
    }


def _copies(updates: Sequence[Update]) -> dict[str, ChainError]:
    """Updates whose tensors (or, where there are none, numbers) equal those of an earlier update."""
    first: dict[tuple[str, ...], Update] = {}
    copies: dict[str, ChainError] = {}
    for update in updates:
        tensors, numbers = update.manifest.tensors, update.manifest.numbers
        key = tuple(tensor.sha256 for tensor in tensors) or tuple(
            f"{name}={numbers[name]!r}" for name in sorted(numbers)
        )
        original = first.setdefault(key, update)
        if original is not update:
            copies[update.digest] = BadInput(
                f"{update.path} holds the tensors of another device's update",
                values={"first": original.manifest.device, "again": update.manifest.device},
                hint="an update counts once, for one device",
            )
    return copies


AMONG_EACH_OTHER: tuple[tuple[Reason, Callable[[Sequence[Update]], dict[str, ChainError]]], ...] = (
    ("equivocation", _equivocations),
    ("copy", _copies),
)
