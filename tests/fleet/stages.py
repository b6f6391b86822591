"""The stages as tests call them: what changes in how a stage is called changes here, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.plan import PlanManifest
from schemas.profile import ProfileManifest
from schemas.settings import Settings
from schemas.state import StateManifest
from schemas.update import UpdateManifest
from stages import aggregate, plan, profile, train_window
from stages import eval as evaluation
from stages.session import Machine
from stages.store.artifact import Artifact

ROOMY_BYTES = 2**33  # a budget that everything tiny fits


def run_profile(
    model_dir: Path, data: Path, chosen: Settings, out: Path, *, device: str = "one", **options: Any
) -> Artifact[ProfileManifest]:
    """Profile one device."""
    machine, rest = machine_of(model_dir, {"memory_budget_bytes": ROOMY_BYTES} | options)
    return profile.run(machine=machine, data=data, settings=chosen, device=device, out=out, **rest)


def run_plan(
    profiles: Sequence[Path], model_dir: Path, chosen: Settings, out: Path, state_out: Path, **options: Any
) -> tuple[Artifact[PlanManifest], Artifact[StateManifest]]:
    """Plan, with state 0."""
    return plan.run(profiles, model_dir=model_dir, settings=chosen, out=out, state_out=state_out, **options)


def begin(
    folder: Path, model_dir: Path, data: Path, chosen: Settings, *, state: str = "state"
) -> tuple[Artifact[PlanManifest], Artifact[StateManifest]]:
    """A federation of one device up to state 0: `profile`, `plan` and `state` in `folder`."""
    run_profile(model_dir, data, chosen, folder / "profile")
    return run_plan([folder / "profile"], model_dir, chosen, folder / "plan", folder / state)


def places(folder: Path, model_dir: Path, state: Path | str = "state") -> dict[str, Any]:
    """What every stage takes that goes on from the state of a plan in `folder`."""
    return {"machine": Machine(model_dir), "plan": folder / "plan", "state": folder / state}


def machine_of(model_dir: Path, options: Mapping[str, Any]) -> tuple[Machine, dict[str, Any]]:
    """A machine from the options that are its own, and the others."""
    own = {name: value for name, value in options.items() if name in ("memory_budget_bytes", "verify", "cache")}
    return Machine(model_dir, **own), {name: value for name, value in options.items() if name not in own}


def run_train(
    folder: Path, model_dir: Path, data: Path, out: Path, *, device: str = "one", state: str = "state", **options: Any
) -> Artifact[UpdateManifest]:
    """Train the window of a state of the plan in `folder`."""
    machine, rest = machine_of(model_dir, options)
    inputs = places(folder, model_dir, state) | {"machine": machine}
    return train_window.run(**inputs, data=data, device=device, out=out, **rest)


def run_aggregate(
    updates: Sequence[Path], plan: Path, state: Path, out: Path, **options: Any
) -> Artifact[StateManifest]:
    """Close a round."""
    return aggregate.run(updates, plan=plan, state=state, out=out, **options)


def run_eval(
    folder: Path, model_dir: Path, data: Path, out: Path, *, state: Path | str = "state", **options: Any
) -> Artifact[Any]:
    """Evaluate a state of the plan in `folder`."""
    machine, rest = machine_of(model_dir, options)
    return evaluation.run(**places(folder, model_dir, state) | {"machine": machine}, data=data, out=out, **rest)
