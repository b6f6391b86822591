"""Move refused updates aside, with the reason for the refusal.

    updates/0003/.refused/device-07-another-state-1f2e3d4c/          the refused update, unchanged
    updates/0003/.refused/device-07-another-state-1f2e3d4c.json      the reason, for machines

The folder is on the same file system, so that a move is one step; if that is read-only, or if somebody has put a link
or a folder of their own there, the update stays.
"""

import errno
import hashlib
import logging
import os
from pathlib import Path
from urllib.parse import quote

from schemas.plan import PlanManifest
from schemas.refusal import MOST_VALUES, TEXT_LENGTH, RefusalManifest
from schemas.state import StateManifest
from schemas.visible import visible
from stages.federated.delivery import RefusedUpdate
from stages.process import intent
from stages.store.artifact import Artifact
from stages.store.files import write_in
from stages.store.folder import Folder, Identity, identity_of

FOLDER = ".refused"

log = logging.getLogger(__name__)


def refusal_of(
    refused: RefusedUpdate, plan: Artifact[PlanManifest], parent: Artifact[StateManifest]
) -> RefusalManifest:
    """The manifest that is written beside a refused update: it travels, so it names no folder of this machine."""
    error = refused.error

    def written(text: object) -> str:
        return visible(str(text).replace(f"{refused.path.parent}{os.sep}", ""))[:TEXT_LENGTH]

    return RefusalManifest(
        reason=refused.reason,
        fact=written(error.fact),
        values={written(label): written(value) for label, value in list(error.values.items())[:MOST_VALUES]},
        hint=written(error.hint),
        update=refused.update,
        device=refused.device,
        plan=plan.digest,
        state=parent.digest,
    )


def set_aside(path: Path, refusal: RefusalManifest, judged: Identity | None) -> Path | None:
    """Write the reason, then move the refused update; its new path, or None if it could not be moved.

    `judged`: of the very file or folder that was refused; another one in its place is not moved.
    """
    if intent.is_dry_run():
        data = refusal.canonical_bytes()
        stem = path.parent / FOLDER / _stem(path.name, refusal, data)
        intent.will_write(stem)
        intent.will_write(stem.with_name(f"{stem.name}.json"), len(data))
        return None
    try:
        with Folder.open(path.parent) as arrived, arrived.own(FOLDER) as aside:
            return _move(arrived, path.name, aside, refusal, judged)
    except OSError as error:
        log.warning("note: %a cannot be moved into %s: %s", path.name, FOLDER, error.strerror)
        return None


def _move(arrived: Folder, name: str, aside: Folder, refusal: RefusalManifest, judged: Identity | None) -> Path:
    data = refusal.canonical_bytes()
    stem = _stem(name, refusal, data)
    new = next(
        candidate
        for number in range(10_000)
        if aside.status(candidate := f"{stem}-{number}" if number else stem) is None
    )
    _check_same(arrived, name, judged)
    write_in(aside, f"{new}.json", data)
    try:
        arrived.move(name, aside, new)
        _check_moved(arrived, name, aside, new, judged)
    except OSError:
        aside.remove(f"{new}.json")
        raise
    aside.sync()
    arrived.sync()
    return aside.path / new


def _stem(name: str, refusal: RefusalManifest, data: bytes) -> str:
    """What an update is called that was moved aside for a reason; `data`: the refusal's bytes."""
    return f"{quote(os.fsencode(name), safe='')[:80]}-{refusal.reason}-{hashlib.sha256(data).hexdigest()[:8]}"


def _check_moved(arrived: Folder, name: str, aside: Folder, new: str, judged: Identity | None) -> None:
    """What was moved is what was examined, or goes back: between a look and a rename anybody may swap the two."""
    try:
        _check_same(aside, new, judged)
    except OSError:
        aside.move(new, arrived, name)
        raise


def _check_same(folder: Folder, name: str, judged: Identity | None) -> None:
    there = folder.status(name)
    if there is None or identity_of(there) != judged:
        raise OSError(errno.ESTALE, "something else has taken its place since it was examined", str(folder.path / name))
