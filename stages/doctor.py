"""What fits this device?  The sizes of a model's parts, and the predicted peak of each window size.

Reads only headers and the few tensors outside the layers; trains nothing.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from schemas.refs import Dtype
from schemas.settings import Settings
from stages.memory.fits import Fit, Parts, fits, predictor
from stages.methods.windows import peaks_of_windows
from stages.process.arithmetic import gigaflops, native_dtypes
from stages.process.measure import device_memory_bytes
from stages.process.scratch import Medium, existing_folder, medium_of, scratch_folder

MEDIA: dict[Medium, str] = {
    "disk": "on a disk",
    "memory": "in memory (tmpfs), so temporary files count in the peaks below",
    "removable": "removable",
    "network": "on a network",
}
SIZES = (1, 2, 3, 4, 8, 16, 32, 64)  # of windows


@dataclass(frozen=True)
class Diagnosis:
    """A machine, a model and the windows that fit; sizes in bytes."""

    model_type: str
    num_layers: int
    hidden_size: int
    layer_bytes: int  # the largest layer, as stored
    embedding_bytes: int  # gathered by row, never loaded
    head_bytes: int  # language head, streamed in chunks
    rest_bytes: int
    opened_bytes: int  # resident size of this process after opening the model
    budget_bytes: int
    disk_free_bytes: int
    scratch_folder: Path  # of temporary files
    scratch_medium: Medium
    scratch_free_bytes: int
    micro_batch: int
    max_length: int
    compute: str
    threads: int
    processors: int
    gigaflops: dict[Dtype, float]  # of a matrix product by dtype on one thread, measured
    native_dtypes: tuple[Dtype, ...]  # what the processor multiplies in hardware
    versions: dict[str, str]
    fits: tuple[Fit, ...]


def examine(
    model_dir: Path, settings: Settings, *, budget_bytes: int | None = None, scratch_dir: Path | None = None
) -> Diagnosis:
    """Open a model and predict the peaks of its windows, for outputs in the current folder.  Raises `BadInput`."""
    scratch = scratch_folder(scratch_dir, beside=Path.cwd(), cache=None)
    medium = medium_of(scratch)
    memory = predictor(model_dir, settings)
    backbone, numerics = memory.backbone, memory.settings.numerics
    budget = budget_bytes or device_memory_bytes()
    parts = Parts.of(backbone.reader.names, backbone.skeleton.output_names)
    return Diagnosis(
        model_type=backbone.skeleton.config.model_type,
        num_layers=backbone.num_layers,
        hidden_size=backbone.hidden_size,
        layer_bytes=max(parts.layers),
        embedding_bytes=parts.embeddings,
        head_bytes=parts.head,
        rest_bytes=parts.rest,
        opened_bytes=memory.baseline_bytes or 0,
        budget_bytes=budget,
        disk_free_bytes=shutil.disk_usage(model_dir).free,
        scratch_folder=scratch,
        scratch_medium=medium,
        scratch_free_bytes=shutil.disk_usage(existing_folder(scratch)).free,
        micro_batch=numerics.rows,
        max_length=memory.settings.encoding.most_tokens,
        compute=numerics.computes_in,
        threads=numerics.threads,
        processors=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gigaflops=gigaflops(),
        native_dtypes=native_dtypes(),
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        fits=fits(len(parts.layers), SIZES, budget, peaks_of_windows(memory, with_files=medium == "memory")),
    )


def lines(diagnosis: Diagnosis) -> Sequence[str]:
    """The machine and the model, for people."""
    mib, gib = 2**20, 2**30
    one = diagnosis
    speed = ", ".join(
        f"{dtype} {found:.0f} GFLOP/s{'' if dtype in one.native_dtypes else ' (emulated)'}"
        for dtype, found in one.gigaflops.items()
    )
    return [
        f"machine   {one.processors} processors ({one.threads} threads in the recipe), budget "
        f"{one.budget_bytes / gib:.2f} GiB, {one.disk_free_bytes / gib:.0f} GiB of disk free",
        f"scratch   {one.scratch_folder}: {MEDIA[one.scratch_medium]}, {one.scratch_free_bytes / gib:.0f} GiB free",
        f"speed     of one thread: {speed}",
        f"software  torch {one.versions['torch']}, transformers {one.versions['transformers']}: "
        f"{one.opened_bytes / mib:.0f} MiB before anything is read",
        f"model     {one.model_type}, {one.num_layers} layers of {one.layer_bytes / mib:.1f} MiB, hidden size "
        f"{one.hidden_size}; embeddings {one.embedding_bytes / mib:.0f} MiB (gathered by row), language head "
        f"{one.head_bytes / mib:.0f} MiB (in chunks), rest {one.rest_bytes / mib:.1f} MiB",
        f"work      in {one.compute}, micro-batch {one.micro_batch} x {one.max_length} tokens",
    ]
