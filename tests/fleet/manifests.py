"""Manifests of made-up federations: whatever a test says nothing about has one value, here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from schemas.assignment import Assignment
from schemas.plan import PlanManifest
from schemas.profile import LayerSimilarity, ProfileManifest, TextLengths
from schemas.refs import ModelFingerprint
from schemas.settings import Settings
from schemas.state import StateManifest
from schemas.update import TrainingLoss, UpdateManifest
from stages.federated.profiles import Profiles, gather
from stages.plan import make_plan
from stages.process.measure import MeasuredFacts
from stages.store.artifact import Artifact, new_artifact, open_artifact
from stages.store.devices import accepted_updates
from tests.fleet.recipes import settings

MIB = 2**20
ZERO = "sha256:" + "0" * 64
LAYERS = 6  # of the model that these profiles are of
TENSORS = {"head.b": np.arange(3, dtype=np.float32), "head.a": np.arange(6, dtype=np.float32).reshape(2, 3)}


def decided(chosen: Settings | None = None, **chain: object) -> Settings:
    """As a plan has them: nothing left to decide but the window."""
    chosen = chosen or settings()
    return chosen.model_copy(
        update={
            "similarity": chosen.similarity.model_copy(update={"scale": "none"}),
            "adapter": chosen.adapter.model_copy(update={"activation": "relu"}),
            "prompt": chosen.prompt.model_copy(update={"template": "none"}),
            "numerics": chosen.numerics.computing_in("float32"),
            "chain": chosen.chain.model_copy(update=chain),
        }
    )


def profile_manifest(
    device: str, curve: Sequence[float], *, texts: int = 10, budget: int = 100 * MIB
) -> ProfileManifest:
    """A profile with this similarity for each layer, or without any."""
    chosen = decided()
    read = chosen.encoding.most_tokens
    return ProfileManifest(
        device=device,
        model=ModelFingerprint(
            model_type="bert",
            num_layers=LAYERS,
            hidden_size=64,
            config=ZERO,
            tokenizer=ZERO,
            embeddings=ZERO,
            layers=(ZERO,) * LAYERS,
            rest=ZERO,
        ),
        inputs=ZERO,
        example_count=texts,
        profiled_count=texts if curve else 0,
        memory_budget_bytes=budget,
        prompt=chosen.prompt.model_copy(update={"template": "none"}),
        encoding=chosen.encoding,
        lengths=TextLengths(read=read, median=8, p90=read, p99=read, longest=read) if texts else None,
        similarity=chosen.similarity,
        numerics=chosen.numerics,
        layers=tuple(LayerSimilarity(cka=value, low=value - 0.02, high=value + 0.02) for value in curve),
    )


def peak(assignment: Assignment, *_: Any, **__: Any) -> int:
    """A toy memory model: 20 MiB, and 30 per layer."""
    return (20 + 30 * len(assignment.layers)) * MIB


def plan_manifest(profiles: Sequence[ProfileManifest], chosen: Settings, *, bottleneck: int = 8) -> PlanManifest:
    """What the plan stage decides from these profiles."""
    return _planned(gather(profiles, chosen), chosen, bottleneck)


def write_plan(
    out: Path, profiles: Iterable[ProfileManifest], chosen: Settings, *, bottleneck: int = 8
) -> Artifact[PlanManifest]:
    """The same as an artifact."""
    gathered = gather(profiles, chosen)
    plan = _planned(gathered, chosen, bottleneck)
    with new_artifact(out, force=False) as draft:
        draft.write_lines(gathered.devices)
        draft.finish(plan, None)
    return open_artifact(out, PlanManifest)


def _planned(profiles: Profiles, chosen: Settings, bottleneck: int) -> PlanManifest:
    factor = profiles.first.model.hidden_size // bottleneck
    adapter = chosen.adapter.model_copy(update={"reduction_factor": factor})
    chosen = chosen.model_copy(update={"adapter": adapter})
    return make_plan(profiles, chosen, head_parameters=(), predict_peak=peak)


def update_manifest(**fields: Any) -> UpdateManifest:
    """An update of nothing in particular, but for the fields given."""
    everything: dict[str, Any] = {
        "plan": ZERO,
        "state": ZERO,
        "round": 0,
        "assignment": Assignment(layers=(0,)),
        "device": "phone",
        "inputs": ZERO,
        "example_count": 3,
        "steps": 1,
        "loss": TrainingLoss(first=1.0, last=1.0, mean=1.0, mean_local=1.0, mean_global=None),
    }
    return UpdateManifest(**(everything | fields))


def write_update(
    out: Path,
    tensors: Mapping[str, np.ndarray] = TENSORS,
    *,
    force: bool = False,
    measured: bool = True,
    **fields: Any,
) -> Artifact[UpdateManifest]:
    """An update artifact with these tensors."""
    with new_artifact(out, force=force) as draft:
        references, files = draft.write_tensors(tensors)
        manifest = update_manifest(**fields, tensors=references, files=files)
        draft.finish(manifest, MeasuredFacts(seconds=1.0) if measured else None)
    return Artifact(out, manifest, manifest.digest)


def rewrite(artifact: Artifact[Any], out: Path, tensors: Mapping[str, np.ndarray], **options: Any) -> None:
    """The same artifact with other tensors."""
    with new_artifact(out, **({"force": False} | options)) as draft:
        references, (file,) = draft.write_tensors(tensors)
        for name in artifact.manifest.LINES:
            (draft.path / name).write_bytes((artifact.path / name).read_bytes())
        files = tuple(file if one.name == file.name else one for one in artifact.manifest.files)
        draft.finish(artifact.manifest.model_copy(update={"tensors": references, "files": files}), None)


def accepted_devices(state: Artifact[StateManifest]) -> list[str]:
    """Whose updates went into a state."""
    return [update.name for update in accepted_updates(state)]
