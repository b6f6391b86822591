"""The sizes of a model's parts, and which windows fit a budget: for `doctor` and `model info`.

Reads only headers and the few tensors outside the layers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.refs import Window
from schemas.settings import Settings
from stages.memory.predict import MemoryModel
from stages.model.architecture import is_decoder
from stages.model.loading import LoadedModel
from stages.process.arithmetic import native_dtypes
from stages.process.fork import run_in_fork
from stages.process.measure import resident_bytes
from stages.streaming.placement import PLACEMENTS, Placement
from stages.weights.names import Names, stored

Predict = Callable[[Window, Placement], int]  # peak in bytes of training a window
TEXTS = 64  # assumed number on the device, if hidden states stay in memory


@dataclass(frozen=True)
class Parts:
    """Sizes in bytes, as stored."""

    layers: tuple[int, ...]
    embeddings: int  # gathered by row, never loaded
    head: int  # language head, streamed in chunks; 0 if tied to the embeddings
    rest: int

    @classmethod
    def of(cls, names: Names, head_parameters: Collection[str]) -> "Parts":
        """The parts of a model whose language head consists of `head_parameters`."""
        head = [load for load in names.rest if load.target in head_parameters]
        rest = [load for load in names.rest if load.target not in head_parameters]
        return cls(
            layers=tuple(sum(tensor.size for tensor in stored(loads)) for loads in names.layers),
            embeddings=sum(tensor.size for tensor in stored([names.embeddings])),
            head=sum(tensor.size for tensor in stored(head)),
            rest=sum(tensor.size for tensor in stored(rest)),
        )


@dataclass(frozen=True)
class Fit:
    """One window size: predicted peaks of the fastest and the smallest placement, and what the budget allows."""

    window_size: int
    fastest_bytes: int
    smallest_bytes: int
    chosen: str  # what the budget allows to keep in memory; empty if nothing fits


def predictor(model_dir: Path, settings: Settings) -> MemoryModel:
    """The memory model of `train-window`, as for a federation of this device alone.  Raises `BadInput`."""
    settings, model = LoadedModel.open(model_dir, settings).reading(settings)
    numerics = settings.numerics.decided(settings.encoding.most_tokens)
    settings = settings.model_copy(update={"numerics": numerics})
    settings, model = model.deciding_compute(settings, native=native_dtypes())
    backbone = model.backbone
    adapter = settings.adapter.decided(decoder=is_decoder(backbone.skeleton.config)).choices(settings.task.kind)[0]
    settings = settings.model_copy(update={"adapter": adapter})
    bottleneck = adapter.bottleneck(backbone.hidden_size)
    return MemoryModel(backbone, settings, bottleneck, TEXTS * settings.encoding.most_tokens, resident_bytes())


def fits(depth: int, sizes: Sequence[int], budget_bytes: int, predict: Predict) -> tuple[Fit, ...]:
    """Predictions for those window sizes that a model of `depth` layers has room for."""
    return run_in_fork(lambda: tuple(_fit(depth, size, budget_bytes, predict) for size in sizes if size <= depth))


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


def _fit(depth: int, size: int, budget: int, predict: Predict) -> Fit:
    start = (depth - size) // 2  # in the middle: a prefix below it, adapters above it
    window = Window(start=start, stop=start + size)
    peaks = [predict(window, placement) for placement in PLACEMENTS]
    chosen = next((describe(choice) for choice, peak in zip(PLACEMENTS, peaks, strict=True) if peak <= budget), "")
    return Fit(size, peaks[0], min(peaks), chosen)
