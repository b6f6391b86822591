"""Plan stage: from many profiles to one agreement.

Chain:  profile -> [plan] -> train-window -> aggregate -> eval
Reads:  profile artifacts, the base model (shapes and hashes only), a recipe.
Writes: a plan artifact, and state 0: fresh adapters and head.

`make_plan` is the pure core: what FOAT, the memory budgets and the recipe decide.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from schemas.base import Record
from schemas.errors import BadInput, DoesNotFit, UsageProblem
from schemas.plan import HeadParameter, PlanManifest, PlannedDevice, StartReason, WindowMemory
from schemas.profile import LayerSimilarity, ProfileManifest
from schemas.refs import ModelFingerprint, Window
from schemas.settings import Settings
from schemas.state import Convergence, StateManifest
from schemas.trust import TrustPolicy
from stages.federated.sampling import sample_devices
from stages.memory.predict import MemoryModel
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.model.skeleton import is_decoder
from stages.process.measure import mebibytes
from stages.store.artifact import Artifact, existing, new_artifact, open_artifact
from stages.store.ledger import Ledger
from stages.store.signing import Signer
from stages.store.trust import check_device_signature, check_signer
from stages.streaming.check import check_architecture
from stages.streaming.placement import PLACEMENTS
from stages.tuning.adapters import fresh_adapters

# (window, start layer, micro-batch) -> bytes, as small as the budgets ask for
PredictPeak = Callable[[Window, int, int], int]
STREAMED_WINDOW = 2  # the widest window that `auto` chooses when only one layer of it fits at a time


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

    Under a `policy` that asks for signatures every profile must be signed by the device it names.  Raises `NotTrusted`
    where one is not, `BadInput` where profiles disagree with each other, the recipe or the model, `DoesNotFit` where
    no window fits the smallest budget.
    """
    opened = [open_artifact(path, ProfileManifest) for path in profiles]
    policy = policy or TrustPolicy()
    check_signer(policy, policy.coordinator, signer, whose="the coordinator")
    if policy.required:
        for artifact in opened:
            check_device_signature(artifact, policy)
    check_architecture(model_dir, settings.head_form, packing=settings.encoding.packing)
    model = model or LoadedModel.open(model_dir, settings)
    check_profiles([artifact.manifest for artifact in opened], settings)
    fingerprint = opened[0].manifest.model
    model.backbone.reader.check_same(fingerprint, model.backbone.reader.fingerprint())
    settings = decide_settings(settings, opened[0].manifest, decoder=is_decoder(model.backbone.skeleton.config))
    bottleneck = settings.adapter.bottleneck(model.backbone.hidden_size)
    head = model.backbone.head_parameters.items()
    plan = make_plan(
        [artifact.manifest for artifact in opened],
        settings,
        bottleneck=bottleneck,
        head_parameters=tuple(HeadParameter(name=name, shape=tuple(value.shape)) for name, value in head),
        predict_peak=peak_predictor(model.backbone, settings, bottleneck, [one.manifest for one in opened]),
        policy=policy,
    )
    planned = _write_plan(plan, out, force=force, signer=signer)
    first = _write_state(plan, model, state_out, force=force, signer=signer)
    Ledger.beside(state_out).planned(planned.digest, first.digest, first.manifest.participants)
    return planned, first


def peak_predictor(
    backbone: Backbone, settings: Settings, bottleneck: int, profiles: Sequence[ProfileManifest]
) -> PredictPeak:
    """Predicts `train-window` on the device with the smallest budget, as it will place things to keep it."""
    budget = min(profile.memory_budget_bytes for profile in profiles)
    tokens = max(profile.example_count for profile in profiles) * settings.encoding.max_length

    @lru_cache
    def predict(window: Window, start: int, micro_batch: int) -> int:
        numerics = settings.numerics.model_copy(update={"micro_batch": micro_batch})
        model = MemoryModel(backbone, settings.model_copy(update={"numerics": numerics}), bottleneck, tokens)
        streamed = settings.chain.window_size != "auto" or len(window.layers) <= STREAMED_WINDOW
        choices = [choice for choice in PLACEMENTS if choice.window_resident or streamed]
        peaks = [model.train_window(window, choice, start_layer=start) for choice in choices]
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
    """Decide start layer, windows and Q.  Touches no file."""
    model = profiles[0].model
    devices = tuple(sorted((_planned(profile) for profile in profiles), key=lambda device: device.name))
    curve = mean_curve(profiles)
    size, micro_batch, limited_by = choose_window_size(settings, model, devices, predict_peak)
    start, reason, start_range = choose_start(settings, model.num_layers, curve, size)
    windows = make_windows(settings, model.num_layers, start, size)
    chain = settings.chain.model_copy(update={"window_size": size})
    numerics = settings.numerics.model_copy(update={"micro_batch": micro_batch})
    return PlanManifest(
        model=model,
        settings=settings.model_copy(update={"chain": chain, "numerics": numerics}),
        devices=devices,
        curve=curve,
        start_layer=start,
        start_reason=reason,
        start_range=start_range,
        bottleneck=bottleneck,
        head_parameters=head_parameters,
        windows=windows,
        memory=tuple(
            WindowMemory(window=window, predicted_peak_bytes=predict_peak(window, start, micro_batch))
            for window in windows
        ),
        limited_by=limited_by,
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
    if settings.task.kind == "causal-lm" and settings.chain.method == "linear-probe":
        raise BadInput(
            "a linear probe trains a head, and the head of a causal language model is frozen",
            values={"task.kind": settings.task.kind, "chain.method": settings.chain.method},
            hint="compare with full-adapters or no-ft",
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


def choose_window_size(
    settings: Settings, model: ModelFingerprint, devices: Sequence[PlannedDevice], predict_peak: PredictPeak
) -> tuple[int, int, str | None]:
    """Q, the micro-batch, and who limits them.

    As fixed; where they are `auto`, the largest Q up to `max_window` that fits the smallest budget with some
    micro-batch, and the largest micro-batch that goes with it.
    """
    depth, chain = model.num_layers, settings.chain
    whole = settings.numerics.decided(settings.encoding.max_length).rows
    if chain.method != "chain":
        return (depth if chain.method == "full-adapters" else 1), whole, None
    shrinks = settings.numerics.micro_batch == "auto"
    micro_batches = [whole >> halvings for halvings in range(whole.bit_length() if shrinks else 1)]
    smallest = min(devices, key=lambda device: (device.memory_budget_bytes, device.name))
    most = max(2, depth // 4) if chain.max_window == "auto" else chain.max_window
    sizes = range(min(most, depth), 0, -1) if chain.window_size == "auto" else [chain.window_size]
    if max(sizes) > depth:
        raise BadInput("the window is larger than the model", values={"window_size": max(sizes), "layers": depth})
    peaks: list[int] = []
    for size in sizes:
        for micro_batch in micro_batches:
            peaks.append(predict_peak(Window(start=0, stop=size), 0, micro_batch))
            if peaks[-1] <= smallest.memory_budget_bytes:
                return size, micro_batch, (smallest.name if len(peaks) > 1 else None)
    raise DoesNotFit(
        f"no window fits the memory budget of device {smallest.name}",
        values={"budget": mebibytes(smallest.memory_budget_bytes), "needed": mebibytes(min(peaks))},
        hint="leave that device out, or lower encoding.max_length or adapter size (raise adapter.reduction_factor)",
    )


def choose_start(
    settings: Settings, depth: int, curve: Sequence[LayerSimilarity], size: int
) -> tuple[int, StartReason, tuple[int, int]]:
    """FOAT: the first layer whose mean CKA is below T, but at most L - Q; and the range that the intervals allow."""
    chain = settings.chain
    if chain.method != "chain":
        start = 0 if chain.method == "full-adapters" else depth
        return start, "method", (start, start)
    last = depth - size
    if chain.start != "foat":
        fixed = last if chain.start == "last" else chain.start
        if fixed > last:
            raise BadInput(
                "the start layer leaves no room for a window", values={"start": fixed, "latest possible": last}
            )
        return fixed, "fixed", (fixed, fixed)
    if not curve:
        raise BadInput(
            "no device has enough texts for a curve, so FOAT cannot choose the start layer",
            values={"min_examples": settings.similarity.min_examples},
            hint="lower similarity.min_examples, or fix the start with chain.start",
        )

    def first_below(values: Sequence[float]) -> int:
        return next((layer for layer, value in enumerate(values) if value < chain.cka_threshold), depth)

    found = first_below([layer.cka for layer in curve])
    earliest = first_below([layer.low for layer in curve])
    latest = first_below([layer.high for layer in curve])
    reason: StartReason = "below-threshold"
    if found == depth:
        reason = "no-layer-below-threshold"
    elif found > last:
        reason = "clamped"
    return min(found, last), reason, (min(earliest, last), min(latest, last))


def make_windows(settings: Settings, depth: int, start: int, size: int) -> tuple[Window, ...]:
    """DLCT: starts `start … L-Q`, sliding by one.  References have one window: everything, or the head."""
    if settings.chain.method != "chain":
        return (Window(start=start, stop=depth),)
    return tuple(Window(start=first, stop=first + size) for first in range(start, depth - size + 1))


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
    plan: PlanManifest, model: LoadedModel, out: Path, *, force: bool, signer: Signer | None
) -> Artifact[StateManifest]:
    def same(there: StateManifest) -> bool:
        return (there.plan, there.round) == (plan.digest, 0)

    found = existing(out, StateManifest, same=same, force=force, signer=signer)
    if found is not None:
        return found
    tensors = fresh_adapters(
        range(plan.start_layer, plan.model.num_layers),
        hidden_size=plan.model.hidden_size,
        bottleneck=plan.bottleneck,
        seed=plan.settings.seed,
    )
    head = model.backbone.head_parameters.items()
    tensors |= {f"head.{name}": value.detach().numpy() for name, value in head}
    names = [device.name for device in plan.devices if device.example_count > 0]
    with new_artifact(out, force=force, signer=signer) as draft:
        references, files = draft.write_tensors(tensors)
        state = StateManifest(
            plan=plan.digest,
            parent=None,
            round=0,
            window=plan.windows[0],
            window_index=0,
            participants=sample_devices(plan.settings.seed, 0, names, plan.settings.federation.devices_per_round),
            convergence=Convergence(),
            accepted=(),
            train_loss=None,
            tensors=references,
            files=files,
        )
        draft.finish(state, None)
    return Artifact(out, state, state.digest)
