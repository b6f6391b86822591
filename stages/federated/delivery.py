"""What was delivered for a round: which folders claim to be updates, and which updates rule each other out."""

import os
from collections.abc import Iterator, Sequence
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

    `accepted`: what counts.  `same`: updates of other devices with the tensors of one of those, which count in it.
    `judged`: which file or folder each path of a candidate was when it was examined.
    """

    accepted: list[Update] = field(default_factory=list)
    same: list[Update] = field(default_factory=list)
    refused: list[RefusedUpdate] = field(default_factory=list)
    counted: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    judged: dict[Path, Identity] = field(default_factory=dict)

    @property
    def named(self) -> list[Update]:
        """Every update that is not refused, by device."""
        return sorted([*self.accepted, *self.same], key=by_device)


def is_link(path: Path) -> bool:
    """Whether a path is a link, as far as that can be told."""
    return os.path.islink(path)  # noqa: PTH114 -- of a path that cannot be looked at, Path.is_symlink raises


def is_folder(path: Path) -> bool:
    """Whether a path is a directory or leads to one, as far as that can be told."""
    return os.path.isdir(path)  # noqa: PTH112 -- as above


def by_device(update: Update) -> tuple[str, str]:
    """The canonical order of updates."""
    return update.manifest.device, update.digest


def candidates(paths: Sequence[Path], ignored: list[Path]) -> Iterator[Path]:
    """Directories that hold a manifest: those given, and those in folders that were given, except hidden ones.

    A folder may be given by a link.  What operating systems leave is neither a candidate nor `ignored`.  Raises
    `UsageProblem` for a path that does not exist or cannot be listed.
    """
    for path in without_debris(paths):
        if not os.path.lexists(path):
            raise UsageProblem(f"there is no {path}", values={"expected": "an update artifact, or a folder of them"})
        if os.path.lexists(path / MANIFEST_FILE) or not is_folder(path):
            yield path
            continue
        put_back(path)
        for name in _listed(path):
            if is_link(path / name) or os.path.lexists(path / name / MANIFEST_FILE):
                yield path / name
            else:
                ignored.append(path / name)


def _listed(folder: Path) -> list[str]:
    """Names in a folder, sorted, but for hidden ones and what operating systems leave.  Raises `UsageProblem`."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise UsageProblem(
            f"{folder} cannot be listed",
            values={"expected": "a folder of update artifacts", "found": error.strerror or type(error).__name__},
            hint="check its permissions, or give the updates in it one by one",
        ) from None
    return sorted(name for name in names if not (name.startswith(".") or is_debris(name)))


def claims_to_be_an_update(path: Path) -> bool:
    """Whether a directory is to be judged: what is whole and of another kind was given by mistake."""
    if is_link(path) or not is_folder(path):
        return is_link(path)
    try:
        kind, _ = kind_and_version(path)
    except (ChainError, OSError):
        return True
    return not isinstance(kind, str) or kind == UpdateManifest.KIND or kind not in ARTIFACTS


def refused_update(update: Update, reason: Reason, error: ChainError) -> RefusedUpdate:
    """A whole update that does not count."""
    return RefusedUpdate(update.path, reason, error, update.digest, update.manifest.device)


def equivocations(updates: Sequence[Update]) -> dict[str, ChainError]:
    """Updates of devices that sent more than one."""
    of_device: dict[str, list[Update]] = {}
    for update in updates:
        of_device.setdefault(update.manifest.device, []).append(update)
    return {
        update.digest: BadInput(
            f"device {device} sent {len(sent)} different updates",
            values={other.digest: other.path.name for other in sent[:4]},
            hint="decide which one is meant, move it back and aggregate again",
        )
        for device, sent in of_device.items()
        if len(sent) > 1
        for update in sent
    }


def counted_once(updates: Sequence[Update]) -> tuple[list[Update], list[Update]]:
    """Of updates with the same tensors (or, where there are none, numbers), the one that counts; and the others.

    Nobody can tell who copied whom, so neither device is refused.  The update that claims most texts counts, of several
    the first by device.  `updates`: by device.
    """
    of_content: dict[object, list[Update]] = {}
    for update in updates:
        tensors = frozenset((tensor.name, tensor.sha256) for tensor in update.manifest.tensors)
        of_content.setdefault(tensors or frozenset(update.manifest.numbers.items()), []).append(update)
    counting = {max(same, key=_claim).digest for same in of_content.values()}
    return (
        [update for update in updates if update.digest in counting],
        [update for update in updates if update.digest not in counting],
    )


def _claim(update: Update) -> int:
    return update.manifest.example_count
