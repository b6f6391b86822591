"""Refused updates, out of the way and with their reason.

    updates/0003/.refused/device-07-another-state-1f2e3d4c/          what was refused, untouched
    updates/0003/.refused/device-07-another-state-1f2e3d4c.json      why, for machines

On the same medium, so that moving is one step; where the medium cannot be written, the update stays where it is.
"""

import hashlib
import os
from pathlib import Path

from schemas.plan import PlanManifest
from schemas.refusal import RefusalManifest
from schemas.state import StateManifest
from stages.federated.delivery import RefusedUpdate
from stages.store.artifact import Artifact
from stages.store.files import move, write_file

FOLDER = ".refused"


def refusal_of(
    refused: RefusedUpdate, plan: Artifact[PlanManifest], parent: Artifact[StateManifest]
) -> RefusalManifest:
    """What is written beside a refused update."""
    return RefusalManifest(
        reason=refused.reason,
        fact=refused.error.fact,
        values={label: str(value) for label, value in refused.error.values.items()},
        hint=refused.error.hint,
        update=refused.update,
        device=refused.device,
        plan=plan.digest,
        state=parent.digest,
    )


def set_aside(path: Path, refusal: RefusalManifest) -> Path | None:
    """Move a refused update away, its reason first; where it lies now, or None where it could not be moved."""
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
