"""A federation as its server sees it: a plan, states and updates of made-up tensors; no model and no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.assignment import Assignment
from schemas.devices import ACCEPTED_FILE, PARTICIPANTS_FILE, Participant
from schemas.methods import ChainDecisions, ChainProgress
from schemas.plan import PlanManifest
from schemas.refs import Window
from schemas.state import StateManifest
from schemas.update import TrainingLoss
from stages.methods.server import trains
from stages.store.artifact import Artifact, new_artifact, open_artifact, read_tensors
from stages.store.lines import encode_lines
from stages.tuning.tensors import adapter_names
from tests.fleet.manifests import LAYERS, decided, profile_manifest, write_plan, write_update
from tests.fleet.stages import run_aggregate

DEVICES = ("a", "b", "c")


def make_world(
    folder: Path,
    *,
    width: int = 4,
    devices: Sequence[str] = DEVICES,
    federation: Mapping[str, object] | None = None,
    **chain: Any,
) -> tuple[Artifact[PlanManifest], Artifact[StateManifest]]:
    """A plan for six layers and windows of two, and its state 0; each tensor is (2, `width`)."""
    chosen = decided(**chain)
    chosen = chosen.model_copy(update={"federation": chosen.federation.model_copy(update=dict(federation or {}))})
    profiles = [profile_manifest(name, [0.9] * LAYERS, texts=1000) for name in devices]
    plan = write_plan(folder / "plan", profiles, chosen, bottleneck=2)
    accepted = encode_lines(ACCEPTED_FILE, ())
    participants = encode_lines(PARTICIPANTS_FILE, (Participant(name=name) for name in devices))
    draw = np.random.default_rng(0)
    names = [name for layer in range(LAYERS) for name in adapter_names(layer)] + ["head.classifier.weight"]
    tensors = {name: draw.standard_normal((2, width)).astype(np.float32) for name in names}
    with new_artifact(folder / "state", force=False) as draft:
        references, files = draft.write_tensors(tensors)
        state = StateManifest(
            plan=plan.digest,
            parent=None,
            round=0,
            assignment=Assignment.of(windows_of(plan.manifest)[0]),
            progress=ChainProgress(),
            moved=False,
            participant_count=participants.count,
            accepted_count=0,
            example_count=0,
            train_loss=None,
            tensors=references,
            files=(accepted.reference, participants.reference, *files),
        )
        draft.write_lines(accepted, participants)
        draft.finish(state, None)
    return plan, open_artifact(folder / "state", StateManifest)


def trained_tensors(state: Artifact[StateManifest]) -> dict[str, np.ndarray]:
    """The tensors that this round trains, as the state has them."""
    layers = set(assigned(state).layers)
    return {name: values for name, values in read_tensors(state).items() if trains(name, layers)}


def assigned(state: Artifact[StateManifest]) -> Assignment:
    """What the chain trains after a state."""
    assert state.manifest.assignment is not None
    return state.manifest.assignment


def windows_of(plan: PlanManifest) -> tuple[Window, ...]:
    """The chain's windows."""
    assert isinstance(plan.decisions, ChainDecisions)
    return plan.decisions.windows


def make_update(
    out: Path,
    state: Artifact[StateManifest],
    device: str,
    *,
    seed: int,
    count: int = 5,
    changes: dict[str, object] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """An update with drawn tensors, or those given; `changes` go into its manifest, `value` into a tensor."""
    changed = dict(changes or {})
    draw = np.random.default_rng(seed)
    tensors = tensors or {
        name: values + 0.01 * draw.standard_normal(values.shape).astype(np.float32)
        for name, values in trained_tensors(state).items()
    }
    if "value" in changed:
        tensors["head.classifier.weight"][0, 0] = changed.pop("value")
    fields: dict[str, Any] = {
        "plan": state.manifest.plan,
        "state": state.digest,
        "round": state.manifest.round,
        "assignment": state.manifest.assignment,
        "device": device,
        "example_count": count,
        "steps": -(-count // 8),
        "loss": TrainingLoss(first=1.0, last=1.0, mean=float(seed), mean_local=1.0, mean_global=None),
    }
    return write_update(out, tensors, measured=False, **(fields | changed)).path


def combine(
    folder: Path, updates: Sequence[Path], out: Path | str = "next", state: Path | str = "state", **options: Any
) -> Artifact[StateManifest]:
    """Close a round of the federation in `folder`; `out` and `state` are places in it."""
    return run_aggregate(updates, folder / "plan", folder / state, folder / out, **options)
