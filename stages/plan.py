"""Plan stage: from many profiles to one agreement.

Chain:  profile -> [plan] -> train-window -> aggregate -> eval
Reads:  profile artifacts, the base model (shapes and hashes only), a recipe.
Writes: a plan artifact, and state 0: fresh adapters and head.

`make_plan` is the pure core: what the method, the memory budgets and the recipe decide.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from schemas.base import Record
from schemas.errors import BadInput, UsageProblem
from schemas.plan import AssignmentMemory, HeadParameter, PlanManifest, PlannedDevice
from schemas.profile import LayerSimilarity, ProfileManifest
from schemas.refs import Window
from schemas.settings import Settings
from schemas.state import StateManifest
from schemas.trust import TrustPolicy
from stages.federated.sampling import sample_devices
from stages.memory.predict import MemoryModel
from stages.methods.registry import device_method, server_method
from stages.methods.server import Facts, PredictPeak, Smallest
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.model.skeleton import is_decoder
from stages.store.artifact import Artifact, existing, new_artifact, open_artifact
from stages.store.ledger import Ledger
from stages.store.signing import Signer
from stages.store.trust import check_device_signature, check_signer
from stages.streaming.check import check_architecture
from stages.streaming.placement import PLACEMENTS


def run(
    profiles: Sequence[Path],
    *,
    model_dir: Path,
    settings: Settings,
    out: Path,
    state_out: Path,
    policy: TrustPolicy | None = None,
    signer: Signer | None = None,
    force: bool = False,
    model: LoadedModel | None = None,
) -> tuple[Artifact[PlanManifest], Artifact[StateManifest]]:
    """Agree on a plan and write it with state 0.

    Under a `policy` that asks for signatures every profile must be signed by the device it names; `model` spares a
    caller opening the base model again.  Raises `NotTrusted` where a signature is missing or wrong, `BadInput` where
    profiles disagree with each other, the recipe or the model, `DoesNotFit` where nothing fits the smallest budget.
    """
    policy = policy or TrustPolicy()
    check_signer(policy, policy.coordinator, signer, whose="the coordinator")
    found = [artifact.manifest for artifact in open_profiles(profiles, policy)]
    check_architecture(model_dir, settings.head_form, packing=settings.encoding.packing)
    model = model or LoadedModel.open(model_dir, settings)
    check_profiles(found, settings)
    model.backbone.reader.check_same(found[0].model, model.backbone.reader.fingerprint())
    settings = decide_settings(settings, found[0], decoder=is_decoder(model.backbone.skeleton.config))
    bottleneck = settings.adapter.bottleneck(model.backbone.hidden_size)
    plan = make_plan(
        found,
        settings,
        bottleneck=bottleneck,
        head_parameters=tuple(
            HeadParameter(name=name, shape=tuple(value.shape)) for name, value in model.backbone.initial_head.items()
        ),
        predict_peak=peak_predictor(model.backbone, settings, bottleneck, found),
        policy=policy,
    )
    planned = _write_plan(plan, out, force=force, signer=signer)
    first = _write_state(plan, model.backbone, state_out, force=force, signer=signer)
    Ledger.beside(state_out).planned(planned.digest, first.digest, first.manifest.participants)
    return planned, first


def open_profiles(paths: Sequence[Path], policy: TrustPolicy) -> list[Artifact[ProfileManifest]]:
    """The profiles, each signed by its device where the policy asks for that.  Raises `BadInput` and `NotTrusted`."""
    opened = [open_artifact(path, ProfileManifest) for path in paths]
    if policy.required:
        for artifact in opened:
            check_device_signature(artifact, policy)
    return opened


def peak_predictor(
    backbone: Backbone, settings: Settings, bottleneck: int, profiles: Sequence[ProfileManifest]
) -> PredictPeak:
    """Predicts `train-window` on the device with the smallest budget, as it will place things to keep it."""
    budget = min(profile.memory_budget_bytes for profile in profiles)
    tokens = max(profile.example_count for profile in profiles) * settings.encoding.max_length
    method = device_method(settings.chain.method)

    @lru_cache
    def predict(span: Window, first_layer: int, micro_batch: int, *, streamed: bool = True) -> int:
        numerics = settings.numerics.model_copy(update={"micro_batch": micro_batch})
        memory = MemoryModel(backbone, settings.model_copy(update={"numerics": numerics}), bottleneck, tokens)
        choices = [choice for choice in PLACEMENTS if choice.window_resident or streamed]
        peaks = [method.peak_bytes(memory, span, choice, first_layer=first_layer) for choice in choices]
        return next((peak for peak in peaks if peak <= budget), min(peaks))

    return predict


def make_plan(
    profiles: Sequence[ProfileManifest],
    settings: Settings,
    *,
    bottleneck: int,
    head_parameters: tuple[HeadParameter, ...],
    predict_peak: PredictPeak,
    policy: TrustPolicy | None = None,
) -> PlanManifest:
    """Everything that a federation agrees on, by the method of the recipe.  Touches no file."""
    model = profiles[0].model
    devices = tuple(sorted((_planned(profile) for profile in profiles), key=lambda device: device.name))
    smallest = min(devices, key=lambda device: (device.memory_budget_bytes, device.name))
    curve = mean_curve(profiles)
    decided = server_method(settings.chain.method).decide(
        Facts(model, settings, curve, Smallest(smallest.name, smallest.memory_budget_bytes), predict_peak)
    )
    numerics = settings.numerics.model_copy(update={"micro_batch": decided.micro_batch})
    decisions, depth = decided.decisions, model.num_layers
    return PlanManifest(
        model=model,
        settings=settings.model_copy(update={"chain": decided.settings, "numerics": numerics}),
        devices=devices,
        curve=curve,
        decisions=decisions,
        bottleneck=bottleneck,
        head_parameters=head_parameters,
        memory=tuple(
            AssignmentMemory(
                assignment=assignment,
                predicted_peak_bytes=predict_peak(
                    assignment.span or Window(start=depth, stop=depth), decisions.first_layer, decided.micro_batch
                ),
            )
            for assignment in decisions.assignments(depth)
        ),
        trust=policy or TrustPolicy(),
    )


def check_profiles(profiles: Sequence[ProfileManifest], settings: Settings) -> None:
    """All profiles are of one model, made with one set of settings, those of the recipe; devices are distinct."""
    if not profiles:
        raise UsageProblem("a plan needs at least one profile", hint="run 'chainctl profile' on each device")
    first = profiles[0]
    for other in profiles[1:]:
        for field in ("model", "prompt", "encoding", "similarity", "numerics"):
            _check_same(field, first.device, getattr(first, field), other.device, getattr(other, field))
    _check_same("encoding", "recipe", settings.encoding, first.device, first.encoding)
    prompt = settings.prompt
    if prompt.template == "auto":
        prompt = prompt.model_copy(update={"template": first.prompt.template})
    _check_same("prompt", "recipe", prompt, first.device, first.prompt)
    numerics = settings.numerics
    if numerics.micro_batch == "auto":
        numerics = numerics.model_copy(update={"micro_batch": first.numerics.micro_batch})
    _check_same("numerics", "recipe", numerics, first.device, first.numerics)
    wanted = settings.similarity
    if wanted.scale == "auto":
        wanted = wanted.model_copy(update={"scale": first.similarity.scale})
    _check_same("similarity", "recipe", wanted, first.device, first.similarity)
    names = [profile.device for profile in profiles]
    doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if doubled:
        raise BadInput(
            f"two profiles are of one device, {doubled[0]}",
            values={"profiles": len(names), "devices": len(set(names))},
            hint="give every device a name of its own",
        )


def _check_same(field: str, left_name: str, left: Record, right_name: str, right: Record) -> None:
    if left == right:
        return
    a, b = left.model_dump(), right.model_dump()
    key = next(key for key in a if a[key] != b[key])
    raise BadInput(
        f"profiles do not go together: {field}.{key} differs",
        values={left_name: a[key], right_name: b[key]},
        hint="profile every device again with the same model and recipe",
    )


def decide_settings(settings: Settings, profile: ProfileManifest, *, decoder: bool) -> Settings:
    """Resolve what the model decides: activation by family, similarity and template as they were profiled."""
    if settings.task.kind == "text-classification" and not settings.task.labels:
        raise BadInput(
            "the recipe names no labels",
            values={"expected": 'labels = ["…", "…"] in the [task] section'},
            hint="'chainctl recipe new recipe.toml --data FILE' takes them from labelled data",
        )
    adapter = settings.adapter.decided(decoder=decoder)
    return settings.model_copy(update={"adapter": adapter, "similarity": profile.similarity, "prompt": profile.prompt})


def mean_curve(profiles: Sequence[ProfileManifest]) -> tuple[LayerSimilarity, ...]:
    """Mean CKA of each layer over the devices, weighted by their example counts (so are the interval's ends)."""
    counted = sorted((profile for profile in profiles if profile.layers), key=lambda profile: profile.device)
    if not counted:
        return ()
    weights = np.array([profile.example_count for profile in counted], dtype=np.float64)
    values = np.array([[(layer.cka, layer.low, layer.high) for layer in profile.layers] for profile in counted])
    mean = np.average(values, axis=0, weights=weights)
    # Devices are independent, so the half-width of the mean is the root of the weighted squares.
    half = np.maximum(values[..., 2] - values[..., 0], values[..., 0] - values[..., 1])
    width = np.sqrt((((weights / weights.sum())[:, None] * half) ** 2).sum(0))
    return tuple(
        LayerSimilarity(cka=float(cka), low=float(cka - margin), high=float(cka + margin))
        for cka, margin in zip(mean[:, 0], width, strict=True)
    )


def _planned(profile: ProfileManifest) -> PlannedDevice:
    few = f"{profile.example_count} texts are fewer than min_examples = {profile.similarity.min_examples}"
    return PlannedDevice(
        name=profile.device,
        profile=profile.digest,
        example_count=profile.example_count,
        memory_budget_bytes=profile.memory_budget_bytes,
        left_out="" if profile.layers else few,
    )


def _write_plan(plan: PlanManifest, out: Path, *, force: bool, signer: Signer | None) -> Artifact[PlanManifest]:
    found = existing(out, PlanManifest, same=lambda there: there == plan, force=force, signer=signer)
    if found is not None:
        return found
    with new_artifact(out, force=force, signer=signer) as draft:
        draft.finish(plan, None)
    return Artifact(out, plan, plan.digest)


def _write_state(
    plan: PlanManifest, backbone: Backbone, out: Path, *, force: bool, signer: Signer | None
) -> Artifact[StateManifest]:
    def same(there: StateManifest) -> bool:
        return (there.plan, there.round) == (plan.digest, 0)

    found = existing(out, StateManifest, same=same, force=force, signer=signer)
    if found is not None:
        return found
    method = server_method(plan.settings.chain.method)
    first = method.first(plan)
    names = [device.name for device in plan.devices if device.example_count > 0]
    with new_artifact(out, force=force, signer=signer) as draft:
        head = {name: value.numpy() for name, value in backbone.initial_head.items()}
        references, files = draft.write_tensors(method.initial(plan, head))
        state = StateManifest(
            plan=plan.digest,
            parent=None,
            round=0,
            assignment=first.assignment,
            progress=first.progress,
            moved=False,
            participants=sample_devices(plan.settings.seed, 0, names, plan.settings.federation.devices_per_round),
            accepted=(),
            train_loss=None,
            tensors=references,
            files=files,
        )
        draft.finish(state, None)
    return Artifact(out, state, state.digest)
