"""What fits this device?  A model's parts in bytes, and the predicted peak of each window size.

Nothing is read but headers and the few tensors around the layers; nothing is trained.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from schemas.refs import Window
from schemas.settings import Settings
from stages.model.aside import aside
from stages.model.loading import LoadedModel
from stages.model.memory import PLACEMENTS, MemoryModel, Placement
from stages.model.names import stored
from stages.model.skeleton import is_decoder
from stages.store.measure import device_memory_bytes, resident_bytes

TEXTS = 64  # assumed on the device, where hidden states are kept in memory


@dataclass(frozen=True)
class Fit:
    """One window size: the predicted peak with everything kept and with the least, and what the budget allows."""

    window_size: int
    fastest_bytes: int
    smallest_bytes: int
    chosen: str  # what the budget allows to keep; empty where nothing fits


@dataclass(frozen=True)
class Diagnosis:
    """Sizes in bytes."""

    model_type: str
    num_layers: int
    hidden_size: int
    layer_bytes: int  # the largest layer, as stored
    embedding_bytes: int  # gathered by row, never loaded
    head_bytes: int  # of a language model: streamed in chunks
    rest_bytes: int
    opened_bytes: int  # resident size of this process with the model open
    budget_bytes: int
    disk_free_bytes: int
    micro_batch: int
    max_length: int
    dtype: str
    threads: int
    processors: int
    bfloat16_in_hardware: bool
    versions: dict[str, str]
    fits: tuple[Fit, ...]


def examine(model_dir: Path, settings: Settings, *, budget_bytes: int | None = None) -> Diagnosis:
    """Open a model and predict.  Raises `BadInput`."""
    numerics = settings.numerics.decided(settings.encoding.max_length)
    settings = settings.model_copy(update={"numerics": numerics})
    model = LoadedModel.open(model_dir, settings)
    backbone = model.backbone
    if settings.adapter.activation == "auto":
        activation = "silu" if is_decoder(backbone.skeleton.config) else "relu"
        settings = settings.model_copy(
            update={"adapter": settings.adapter.model_copy(update={"activation": activation})}
        )
    bottleneck = max(1, backbone.hidden_size // settings.adapter.reduction_factor)
    memory = MemoryModel(backbone, settings, bottleneck, TEXTS * settings.encoding.max_length, resident_bytes())
    budget = budget_bytes or device_memory_bytes()
    sizes = [size for size in (1, 2, 3, 4, 8, 16, 32, 64) if size <= backbone.num_layers]

    def fits() -> tuple[Fit, ...]:
        return tuple(_fit(memory, backbone.num_layers, size, budget) for size in sizes)

    names = backbone.reader.names
    head = [load for load in names.rest if load.target in backbone.skeleton.output_names]
    rest = [load for load in names.rest if load not in head]
    return Diagnosis(
        model_type=backbone.skeleton.config.model_type,
        num_layers=backbone.num_layers,
        hidden_size=backbone.hidden_size,
        layer_bytes=max(backbone.reader.layer_bytes(layer) for layer in range(backbone.num_layers)),
        embedding_bytes=sum(tensor.size for tensor in stored([names.embeddings])),
        head_bytes=sum(tensor.size for tensor in stored(head)),
        rest_bytes=sum(tensor.size for tensor in stored(rest)),
        opened_bytes=memory.baseline_bytes or 0,
        budget_bytes=budget,
        disk_free_bytes=shutil.disk_usage(model_dir).free,
        micro_batch=numerics.rows,
        max_length=settings.encoding.max_length,
        dtype=numerics.dtype,
        threads=numerics.threads,
        processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        bfloat16_in_hardware=_multiplies_bfloat16(),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        fits=aside(fits),
    )


def _fit(memory: MemoryModel, depth: int, size: int, budget: int) -> Fit:
    start = (depth - size) // 2  # in the middle: a prefix before it, adapters behind it
    window = Window(start=start, stop=start + size)
    peaks = [memory.train_window(window, placement, start_layer=start) for placement in PLACEMENTS]
    chosen = next((describe(choice) for choice, peak in zip(PLACEMENTS, peaks, strict=True) if peak <= budget), "")
    return Fit(size, peaks[0], min(peaks), chosen)


def describe(placement: Placement) -> str:
    """What a placement keeps in memory, fastest first."""
    if placement == PLACEMENTS[0]:
        return "everything kept"
    kept = [
        name
        for name, keeps in (
            ("hidden states", placement.hidden_in_memory),
            ("the next layer", placement.prefetch),
            ("the window", placement.window_resident),
            ("the head", placement.head_resident),
        )
        if keeps
    ]
    return "kept: " + ", ".join(kept) if kept else "one layer at a time"


def _multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("amx_bf16", "avx512_bf16", " bf16"))


def lines(diagnosis: Diagnosis) -> Sequence[str]:
    """For people: the machine and the model."""
    mib, gib = 2**20, 2**30
    one = diagnosis
    hardware = "in hardware" if one.bfloat16_in_hardware else "emulated, slow"
    return [
        f"machine   {one.processors} processors ({one.threads} threads in the recipe), budget "
        f"{one.budget_bytes / gib:.2f} GiB, {one.disk_free_bytes / gib:.0f} GiB of disk free, bfloat16 {hardware}",
        f"software  torch {one.versions['torch']}, transformers {one.versions['transformers']}: "
        f"{one.opened_bytes / mib:.0f} MiB before anything is read",
        f"model     {one.model_type}, {one.num_layers} layers of {one.layer_bytes / mib:.1f} MiB, hidden size "
        f"{one.hidden_size}; embeddings {one.embedding_bytes / mib:.0f} MiB (gathered by row), language head "
        f"{one.head_bytes / mib:.0f} MiB (in chunks), rest {one.rest_bytes / mib:.1f} MiB",
        f"work      {one.dtype}, micro-batch {one.micro_batch} x {one.max_length} tokens",
    ]
