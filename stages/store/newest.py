"""A device follows one history: the newest state that this machine trained on, and how the next one comes from it.

    HOME/trust/newest/<plan>.json     round and digest

The state of the next round names the remembered one as its parent.  A device takes part in some rounds only: between
the remembered state and the given one stand the signed manifests of those in between (`ancestry.py`), or a person's
word.  A machine that has trained on nothing accepts any signed state.
"""

import os
import shlex
from pathlib import Path

from pydantic import ValidationError

from schemas.base import canonical_json
from schemas.errors import BadInput, NotTrusted, UsageProblem
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from schemas.trust import NewestState
from stages.store.ancestry import Nearby
from stages.store.artifact import Artifact
from stages.store.files import write_file
from stages.store.home import locked_home
from stages.store.regular import open_regular
from stages.store.trust import home_directory

LIMIT_BYTES = 2**12


def check_newest(plan: Artifact[PlanManifest], state: Artifact[StateManifest]) -> None:
    """Check that a state comes from the newest that this machine trained on.  Raises `NotTrusted`."""
    if plan.manifest.trust.required:
        _check(plan, state, _seen(plan))


def remember(plan: Artifact[PlanManifest], state: Artifact[StateManifest]) -> None:
    """Remember the state as the newest of its plan.  Raises `NotTrusted` where another command was faster."""
    if not plan.manifest.trust.required:
        return
    with locked_home(home_directory()):
        seen = _seen(plan)
        _check(plan, state, seen)
        if seen is None or state.manifest.round > seen.round:
            _write(plan, state)


def accept(plan: Artifact[PlanManifest], state: Artifact[StateManifest]) -> NewestState | None:
    """Go on from a state because a person says so, whatever was seen before; what that was.  Raises `UsageProblem`."""
    if not plan.manifest.trust.required:
        raise UsageProblem("this plan asks for no signatures, so nothing is remembered of its states")
    with locked_home(home_directory()):
        seen = _seen(plan)
        _write(plan, state)
    return seen


def _check(plan: Artifact[PlanManifest], state: Artifact[StateManifest], seen: NewestState | None) -> None:
    if seen is None:
        return
    found = state.manifest.round
    values: dict[str, object] = {
        "newest here": f"round {seen.round}, {seen.state}",
        "given": f"round {found}, {state.digest}",
    }
    paths = (shlex.quote(str(path)) for path in (plan.path, state.path))
    accepting = "'chainctl trust accept --plan {} --state {}'".format(*paths)
    if found < seen.round or (found == seen.round and state.digest != seen.state):
        raise NotTrusted(
            f"{state.path} is not newer than what this machine has trained on",
            values=values,
            hint="an old state was delivered again, or there are two histories: ask the coordinator; if the given one "
            f"is right, {accepting}",
        )
    if found > seen.round:
        _check_descent(plan, state, seen, values, accepting)


def _check_descent(
    plan: Artifact[PlanManifest],
    state: Artifact[StateManifest],
    seen: NewestState,
    values: dict[str, object],
    accepting: str,
) -> None:
    """Walk from the state back to the round of the remembered one."""
    coordinator = plan.manifest.trust.coordinator
    assert coordinator is not None
    nearby = Nearby(state.path)
    parent = state.manifest.parent
    for number in range(state.manifest.round - 1, seen.round, -1):
        assert parent is not None  # only a state of round 0 has none
        earlier = nearby.signed(parent, coordinator)
        if earlier is None:
            raise NotTrusted(
                f"{state.path} cannot be shown to come from what this machine has trained on",
                values=values | {"missing": f"the signed manifest of round {number}, {parent}"},
                hint="ask the coordinator to send the state by 'chainctl bundle pack', which adds those manifests, or "
                "copy the states between beside it; or ask whether the digest is right, then "
                f"{accepting}",
            )
        if (earlier.plan, earlier.round) != (plan.digest, number):
            raise NotTrusted(
                f"the history of {state.path} contradicts itself",
                values={"expected": f"round {number} of {plan.digest}", "found": f"{earlier.round} of {earlier.plan}"},
                hint="ask the coordinator for a new plan",
            )
        parent = earlier.parent
    if parent != seen.state:
        raise NotTrusted(
            f"{state.path} does not come from what this machine has trained on",
            values=values | {"comes from": f"round {seen.round}, {parent}"},
            hint=f"there are two histories: ask the coordinator; if the given one is right, {accepting}",
        )


def _seen(plan: Artifact[PlanManifest]) -> NewestState | None:
    path = _path(plan)
    if not os.path.lexists(path):
        return None
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(LIMIT_BYTES)
    try:
        return NewestState.model_validate_json(data)
    except ValidationError:
        raise BadInput(f"{path} is damaged", hint="remove it if you are sure that the state is new") from None


def _write(plan: Artifact[PlanManifest], state: Artifact[StateManifest]) -> None:
    seen = NewestState(plan=plan.digest, round=state.manifest.round, state=state.digest)
    write_file(_path(plan), canonical_json(seen.model_dump(mode="json")))


def _path(plan: Artifact[PlanManifest]) -> Path:
    return home_directory() / "trust" / "newest" / f"{plan.digest.removeprefix('sha256:')}.json"
