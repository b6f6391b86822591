"""Plan stage: from many profiles to one agreement.

Chain:  profile -> [plan] -> train-window -> aggregate -> eval
Reads:  profile artifacts, the base model (shapes and hashes only), a recipe.
Writes: a plan artifact, and state 0: fresh adapters and head.

`make_plan` is the pure core: what the method, the memory budgets and the recipe decide.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from schemas.assignment import Assignment
from schemas.devices import ACCEPTED_FILE
from schemas.errors import BadInput, UsageProblem
from schemas.head import HeadParameter
from schemas.plan import AssignmentMemory, PlanManifest
from schemas.profile import ProfileManifest
from schemas.settings import EncodingSettings, Settings
from schemas.state import StateManifest
from schemas.trust import EnrolledDevice, TrustPolicy, check_keys
from stages.federated.profiles import Profiles, gather
from stages.federated.sampling import sample_participants
from stages.memory.predict import MemoryModel
from stages.methods.options import Option, options
from stages.methods.registry import device_method, server_method
from stages.methods.server import Facts, PredictPeak, ServerMethod, Smallest, over_limit
from stages.model.architecture import is_decoder
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.process import intent
from stages.process.progress import Say, unsaid
from stages.store.artifact import MANIFEST_FILE, Artifact, check_place, existing, new_artifact, open_artifact
from stages.store.debris import without_debris
from stages.store.heads import beside, intend_ledger, open_ledger
from stages.store.lines import Lines, check_device_count, encode_lines
from stages.store.signing import Signer
from stages.store.tensors import FLOAT32, elements
from stages.store.trust import Trust, check_device_signature, check_signer
from stages.streaming.check import refuse_unlike
from stages.streaming.placement import PLACEMENTS


def run(
    profiles: Sequence[Path],
    *,
    model_dir: Path,
    settings: Settings,
    out: Path,
    state_out: Path,
    policy: TrustPolicy | None = None,
    roster: Sequence[EnrolledDevice] = (),
    signer: Signer | None = None,
    force: bool = False,
    model: LoadedModel | None = None,
    say: Say = unsaid,
) -> tuple[Artifact[PlanManifest], Artifact[StateManifest]]:
    """Agree on a plan and write it with state 0.

    Under a `policy` that asks for signatures every profile must be signed by a device of the `roster`, and the signer's
    key is pinned on this machine; `say` is told that once, and whose texts do not all count; `model` spares a caller
    opening the base model again.  Raises `NotTrusted` where a signature is missing or wrong, `BadInput` where profiles
    disagree with each other, the recipe or the model, `DoesNotFit` where nothing fits the smallest budget.
    """
    policy = policy or TrustPolicy()
    check_place(out, PlanManifest, model_dir, *profiles, force=force, signer=signer)
    check_place(state_out, StateManifest, model_dir, *profiles, force=force, signer=signer)
    check_signer(policy, policy.coordinator, signer, whose="the coordinator")
    profiles = list(without_debris(profiles))
    check_device_count(len(profiles))
    keys = enrolled(policy, roster)
    refuse_unlike(model_dir, settings.head_form, packing=settings.encoding.packing)
    model = model or LoadedModel.open(model_dir, settings)
    found = gather(open_profiles(profiles, keys), model.reading(settings)[0], keys)
    for sentence in found.said():
        say(sentence)
    model.backbone.reader.check_same(found.first.model, model.backbone.reader.fingerprint())
    settings = decide_settings(settings, found, decoder=is_decoder(model.backbone.skeleton.config))
    settings, model = model.deciding_compute(settings, native=[one for one, few in found.emulating.items() if not few])
    plan = make_plan(
        found,
        settings,
        head_parameters=model.backbone.head_parameters,
        predict_peak=peak_predictor(model.backbone, settings, found),
        policy=policy,
    )
    _intend(plan, found.devices, out, state_out)
    if policy.required and signer is not None and Trust.of_this_machine().add_own(signer):
        say(
            f"{signer.name} {signer.public} is pinned here as a coordinator; only signed plans are accepted from now on"
        )
    planned = _write_plan(plan, found.devices, out, force=force, signer=signer)
    first = _write_state(planned, model.backbone, state_out, force=force, signer=signer)
    with open_ledger(first, planned, signer) as ledger:
        ledger.planned(planned.digest, first.digest, first.manifest.participant_count)
    return planned, first


def _intend(plan: PlanManifest, devices: Lines, out: Path, state_out: Path) -> None:
    """Note for a dry run what is written, and what the largest assignment takes of a device."""
    shapes = server_method(plan.settings.chain.method).shapes(plan)
    intent.will_write(out, len(plan.canonical_bytes()) + devices.reference.size_bytes)
    intent.will_write(state_out, FLOAT32.itemsize * sum(map(elements, shapes.values())))
    intend_ledger(beside(state_out), Artifact(out, plan, plan.digest))
    intent.expect(
        devices=plan.device_count,
        first_layer=plan.decisions.first_layer,
        trains=[str(entry.assignment) for entry in plan.memory],
        peak_bytes=max((entry.predicted_peak_bytes for entry in plan.memory), default=0),
        budget_bytes=plan.smallest_budget.memory_budget_bytes,
    )


def alternatives(plan: PlanManifest, model_dir: Path) -> list[Option]:
    """What else could be trained and what it would cost a device; nothing beside a plan without adapters in layers.

    Raises `BadInput`.
    """
    if plan.decisions.first_layer == plan.model.num_layers:
        return []
    return options(plan, LoadedModel.open(model_dir, plan.settings, expected=plan.model).backbone)


def enrolled(policy: TrustPolicy, roster: Sequence[EnrolledDevice]) -> dict[str, EnrolledDevice] | None:
    """The roster by name where the policy asks for signatures, None where it does not.  Raises `BadInput`."""
    if policy.coordinator is None:
        return None
    check_keys(roster, policy.coordinator)
    return {device.name: device for device in roster}


def open_profiles(paths: Sequence[Path], keys: Mapping[str, EnrolledDevice] | None) -> Iterator[ProfileManifest]:
    """The profiles one after the other, signed by their devices where `keys` has those.

    Raises `BadInput` and `NotTrusted`, `UsageProblem` for a folder of profiles.
    """
    for path in paths:
        if not os.path.lexists(path / MANIFEST_FILE) and any(path.glob(f"*/{MANIFEST_FILE}")):
            raise UsageProblem(
                f"{path} is a folder of artifacts",
                values={"expected": "profile artifacts", "found": "folders that hold them"},
                hint=f"give each of them: {path}/*",
            )
        artifact = open_artifact(path, ProfileManifest)
        if keys is not None:
            device = keys.get(artifact.manifest.device)
            check_device_signature(artifact, device.key if device else None)
        yield artifact.manifest


def peak_predictor(backbone: Backbone, settings: Settings, profiles: Profiles) -> PredictPeak:
    """Predicts `train-window` on the device with the smallest budget, as it will place things to keep it."""
    budget = profiles.smallest_budget.memory_budget_bytes
    tokens = profiles.most_examples * settings.encoding.most_tokens
    method = device_method(settings.chain.method)

    known: dict[tuple[str, int, int, int, bool], int] = {}

    def predict(
        assignment: Assignment, first_layer: int, micro_batch: int, *, bottleneck: int, streamed: bool = True
    ) -> int:
        key = (str(assignment), first_layer, micro_batch, bottleneck, streamed)
        if key not in known:
            numerics = settings.numerics.model_copy(update={"micro_batch": micro_batch})
            memory = MemoryModel(backbone, settings.model_copy(update={"numerics": numerics}), bottleneck, tokens)
            choices = [choice for choice in PLACEMENTS if choice.window_resident or streamed]
            peaks = [method.peak_bytes(memory, assignment, choice, first_layer=first_layer) for choice in choices]
            known[key] = next((peak for peak in peaks if peak <= budget), min(peaks))
        return known[key]

    return predict


def make_plan(
    profiles: Profiles,
    settings: Settings,
    *,
    head_parameters: tuple[HeadParameter, ...],
    predict_peak: PredictPeak,
    policy: TrustPolicy | None = None,
) -> PlanManifest:
    """Everything that a federation agrees on, by the method of the recipe.  Touches no file.

    Raises `BadInput`, and `DoesNotFit` where a round would cost a device more than it has or the recipe allows.
    """
    model, smallest = profiles.first.model, profiles.smallest_budget
    method = server_method(settings.chain.method)
    decided = method.decide(
        Facts(
            model=model,
            settings=settings,
            curve=profiles.curve,
            smallest=Smallest(smallest.device, smallest.memory_budget_bytes),
            predict_peak=predict_peak,
            head_values=sum(math.prod(one.shape) for one in head_parameters),
        )
    )
    bottleneck = decided.adapter.bottleneck(model.hidden_size)
    numerics = settings.numerics.model_copy(update={"micro_batch": decided.micro_batch})
    decisions, depth = decided.decisions, model.num_layers
    chosen = {"chain": decided.settings, "adapter": decided.adapter, "numerics": numerics}
    plan = PlanManifest(
        model=model,
        settings=settings.model_copy(update=chosen),
        device_count=profiles.devices.count,
        example_count=profiles.example_count,
        smallest_budget=smallest,
        emulating_count=profiles.emulating[settings.numerics.computes_in],
        lengths=profiles.lengths,
        curve=profiles.curve,
        decisions=decisions,
        bottleneck=bottleneck,
        head_parameters=head_parameters,
        memory=tuple(
            AssignmentMemory(
                assignment=assignment,
                predicted_peak_bytes=predict_peak(
                    assignment, decisions.first_layer, decided.micro_batch, bottleneck=bottleneck
                ),
            )
            for assignment in decisions.assignments(depth)
        ),
        trust=policy or TrustPolicy(),
        files=(profiles.devices.reference,),
    )
    check_limits(plan, method)
    return plan


def check_limits(plan: PlanManifest, method: ServerMethod) -> None:
    """No round costs a device more than the recipe allows.  Raises `DoesNotFit`."""
    limits = plan.settings.federation
    for entry in plan.memory if method.trains else ():
        costs, what = method.costs(plan, entry.assignment), f"training {entry.assignment}"
        if limits.round_passes != "none" and costs.passes > limits.round_passes:
            raise over_limit("passes", limits.round_passes, costs.passes, what=what)
        if limits.round_bytes != "none" and costs.bytes_up > limits.round_bytes:
            raise over_limit("bytes", limits.round_bytes, costs.bytes_up, what=what)


def decide_settings(settings: Settings, profiles: Profiles, *, decoder: bool) -> Settings:
    """Resolve what model and texts decide: activation by family, similarity and template as profiled, the length."""
    if settings.task.kind == "text-classification" and not settings.task.labels:
        raise BadInput(
            "the recipe names no labels",
            values={"expected": 'labels = ["…", "…"] in the [task] section'},
            hint="'chainctl recipe new recipe.toml --data FILE' takes them from labelled data",
        )
    adapter, encoding = settings.adapter.decided(decoder=decoder), decide_length(settings.encoding, profiles)
    first = profiles.first
    decided = {"adapter": adapter, "similarity": first.similarity, "prompt": first.prompt, "encoding": encoding}
    return settings.model_copy(update=decided)


def decide_length(encoding: EncodingSettings, profiles: Profiles) -> EncodingSettings:
    """Resolve `max_length = "auto"`: what 99 % of all devices' texts need.

    Rows that several texts share are as long as what profiles read of a text, which is as much as the model can.
    """
    if encoding.max_length != "auto":
        return encoding
    if encoding.packing or profiles.lengths is None:
        return profiles.first.encoding
    return encoding.model_copy(update={"max_length": profiles.lengths.p99})


def _write_plan(
    plan: PlanManifest, devices: Lines, out: Path, *, force: bool, signer: Signer | None
) -> Artifact[PlanManifest]:
    found = existing(out, PlanManifest, same=lambda there: there == plan, force=force, signer=signer)
    if found is not None:
        return found
    with new_artifact(out, force=force, signer=signer) as draft:
        draft.write_lines(devices)
        draft.finish(plan, None)
    return Artifact(out, plan, plan.digest)


def _write_state(
    planned: Artifact[PlanManifest], backbone: Backbone, out: Path, *, force: bool, signer: Signer | None
) -> Artifact[StateManifest]:
    def same(there: StateManifest) -> bool:
        return (there.plan, there.round) == (planned.digest, 0)

    found = existing(out, StateManifest, same=same, force=force, signer=signer)
    if found is not None:
        return found
    plan = planned.manifest
    method = server_method(plan.settings.chain.method)
    first = method.first(plan)
    participants, accepted = sample_participants(planned, 0), encode_lines(ACCEPTED_FILE, ())
    with new_artifact(out, force=force, signer=signer) as draft:
        head = {name: value.numpy() for name, value in backbone.initial_head.items()}
        references, files = draft.write_tensors(method.initial(plan, head))
        state = StateManifest(
            plan=planned.digest,
            parent=None,
            round=0,
            assignment=first.assignment,
            progress=first.progress,
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
    return Artifact(out, state, state.digest)
