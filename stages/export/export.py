"""Export: write a state in a form that other libraries load.

Reads:  plan and state artifacts, the base model, evaluations for the card.
Writes: a folder that is complete or absent: hf, adapterhub or onnx, with README.md, the model card.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from schemas.errors import BadInput, UsageProblem
from schemas.kinds import EVALUATIONS, artifact_model
from schemas.plan import PlanManifest
from schemas.state import StateManifest
from stages.data.encode import Encoder
from stages.export.card import TAGS, Evaluated, Subject, model_card
from stages.export.huggingface import LOADER, write_folder
from stages.methods.registry import device_method
from stages.model.backbone import Backbone
from stages.model.loading import LoadedModel
from stages.process import intent
from stages.store.artifact import Artifact, kind_and_version, open_artifact, read_tensors
from stages.store.debris import without_debris
from stages.store.files import complete_directory, refuse_existing
from stages.store.lineage import history
from stages.store.output import check_output, refuse_overlap
from stages.store.regular import read_start
from stages.store.trust import check_signed, open_trusted
from stages.tuning.tuning import BottleneckTuning
from stages.weights.files import checkpoint_files
from stages.weights.reader import Verify

Format = Literal["hf", "adapterhub", "onnx"]
CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written, its size, and notes for people."""

    path: Path
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """An opened state, with the model that it belongs to."""

    model_dir: Path
    plan: Artifact[PlanManifest]
    state: Artifact[StateManifest]
    encoder: Encoder
    backbone: Backbone
    tuning: BottleneckTuning

    @classmethod
    def open(cls, model_dir: Path, plan: Path, state: Path, *, verify: Verify) -> "Source":
        """Open plan, state and model.  Raises `BadInput` and `NotTrusted`."""
        planned, current = open_trusted(plan, state)
        settings = planned.manifest.settings
        model = LoadedModel.open(model_dir, settings, expected=planned.manifest.model, verify=verify)
        method = device_method(settings.chain.method)
        tuning = method.tuning(planned.manifest, read_tensors(current, *method.reads), torch.float32)
        if not isinstance(tuning, BottleneckTuning):
            raise BadInput(
                "only adapters after layers can be exported",
                values={"expected": "bottleneck adapters", "chain.method": settings.chain.method},
                hint="no format of 'chainctl export' can hold what this method tunes",
            )
        return cls(model_dir, planned, current, model.encoder, model.backbone, tuning)


def run(
    *,
    model_dir: Path,
    plan: Path,
    state: Path,
    out: Path,
    format: Format,
    evaluations: Sequence[Path] = (),
    force: bool = False,
    verify: Verify = "once",
) -> Exported:
    """Write `state` into the folder `out`.

    Raises `BadInput` where artifacts do not belong together, `NotTrusted` for altered bytes, `UsageProblem` where
    something else is at `out` (with `force`: what is not an export) or an extra is missing.
    """
    check_target(out, force=force)
    refuse_overlap(out, model_dir, plan, state)
    if format == "onnx":
        from stages.export.onnx import need_the_extra

        need_the_extra()
    holds = [] if format == "adapterhub" else checkpoint_files(model_dir)
    needed_bytes = sum(file.stat().st_size for file in holds) // 2  # without its head
    check_output(out, force=force, needed_bytes=needed_bytes, or_holding=CARD)
    intent.will_write(out, needed_bytes or None)
    source = Source.open(model_dir, plan, state, verify=verify)
    metrics = [open_evaluation(path, source.plan, source.state.digest) for path in evaluations]
    subject = Subject(source.plan.digest, source.plan.manifest, history(state, [plan, plan.parent]).lines, metrics)
    with complete_directory(out, force=force, or_same=True) as partial:
        loader, notes = write(source, partial, format)
        card = model_card(subject, format=format, loader=loader, notes=notes)
        (partial / CARD).write_text(card, encoding="utf-8")
    return Exported(out, sum(file.stat().st_size for file in out.iterdir()), notes)


def check_target(out: Path, *, force: bool) -> None:
    """Refuse an `out` that is not an export, such as a base model; without `force`, one that is not a whole export."""
    if not os.path.lexists(out):
        return
    if not force and not (is_export(out) and (out / CARD).is_file()):
        refuse_existing(out, force=force)
    if not is_export(out):
        raise UsageProblem(
            f"{out} is not an export, so it is not replaced",
            values={"expected": f"an empty folder, or one with a {CARD} of chainctl", "found": "something else"},
            hint="give another --out",
        )


def is_export(folder: Path) -> bool:
    """Whether a folder is empty, or holds what `run` wrote."""
    card = folder / CARD
    if not folder.is_dir():
        return False
    if not os.path.lexists(card):
        return not any(without_debris(folder.iterdir()))
    return card.is_file() and not card.is_symlink() and TAGS.encode() in read_start(card, 256)


def write(source: Source, folder: Path, format: Format) -> tuple[str, tuple[str, ...]]:
    """Write the files of a format; the class that loads them, and notes for people."""
    loader = LOADER[source.plan.manifest.settings.task.kind]
    if format == "adapterhub":
        from stages.export.adapterhub import write_adapter

        return write_adapter(folder, plan=source.plan, backbone=source.backbone, tuning=source.tuning)
    if format == "onnx":
        from stages.export.onnx import write_onnx

        return loader, write_onnx(folder, lambda into: _write_hf(source, into), source.plan.manifest)
    _write_hf(source, folder)
    return loader, ()


def _write_hf(source: Source, folder: Path) -> None:
    write_folder(
        folder,
        model_dir=source.model_dir,
        backbone=source.backbone,
        plan=source.plan.manifest,
        tuning=source.tuning,
        pad_id=source.encoder.pad_id,
    )


def open_evaluation(path: Path, plan: Artifact[PlanManifest], state: str) -> Evaluated:
    """An evaluation of that state of that plan.

    Raises `BadInput` for anything else, `NotTrusted` where the plan asks for signatures and the coordinator's is not
    on it.
    """
    kind, _ = kind_and_version(path)
    if kind not in EVALUATIONS:
        raise BadInput(
            f"{path} is not an evaluation",
            values={"expected": ", ".join(EVALUATIONS), "found": str(kind)[:32]},
            hint="'chainctl eval' writes them",
        )
    artifact: Artifact[Any] = open_artifact(path, artifact_model(str(kind)))
    check_signed(artifact, plan)
    found: Evaluated = artifact.manifest
    if found.state != state:
        raise BadInput(
            f"{path} evaluates another state",
            values={"expected": state, "found": found.state},
            hint="evaluate the state that is exported",
        )
    return found
