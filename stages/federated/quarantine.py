"""Move refused updates aside, with the reason for the refusal.

    updates/0003/.refused/device-07-another-state-1f2e3d4c/          the refused update, unchanged
    updates/0003/.refused/device-07-another-state-1f2e3d4c.json      the reason, for machines

The folder is on the same file system, so that a move is one step; if that is read-only, the update stays.
"""

import hashlib
import os
from pathlib import Path

from schemas.errors import printable
from schemas.plan import PlanManifest
from schemas.refusal import MOST_VALUES, TEXT_LENGTH, RefusalManifest
from schemas.state import StateManifest
from stages.federated.delivery import RefusedUpdate
from stages.store.artifact import Artifact
from stages.store.files import move, write_file

FOLDER = ".refused"


def refusal_of(
    refused: RefusedUpdate, plan: Artifact[PlanManifest], parent: Artifact[StateManifest]
) -> RefusalManifest:
    """The manifest that is written beside a refused update: it travels, so it names no folder of this machine."""
    error = refused.error

    def written(text: object) -> str:
        return printable(str(text).replace(f"{refused.path.parent}{os.sep}", ""))[:TEXT_LENGTH]

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


def set_aside(path: Path, refusal: RefusalManifest) -> Path | None:
    """Write the reason, then move the refused update; its new path, or None if it could not be moved."""
    data = refusal.canonical_bytes()
    folder = path.parent / FOLDER
    name = f"{path.name[:80]}-{refusal.reason}-{hashlib.sha256(data).hexdigest()[:8]}"
    target = next(
        candidate
        for number in range(10_000)
        if not os.path.lexists(candidate := folder / (f"{name}-{number}" if number else name))
    )
    try:
        write_file(target.with_name(f"{target.name}.json"), data)
        move(path, target)
    except OSError:
        return None
    return target
