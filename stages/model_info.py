"""What a model directory holds, and which windows fit the budget.

Reads headers and the few tensors outside the layers: about as fast for a large model as for a small one.  Only the
fingerprint reads every weight, so it is computed only on request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import some
from schemas.head import described_head
from schemas.settings import Settings
from stages.data.template import chat_template
from stages.memory.fits import Fit, Parts, fits, predictor
from stages.methods.windows import peaks_of_windows
from stages.model.architecture import is_decoder
from stages.process.measure import device_memory_bytes
from stages.streaming.whole import parameter_count, read_names
from stages.weights.files import bytes_by_dtype
from stages.weights.names import missing_parameters, stored

WINDOW_SIZES = (1, 2, 3, 4)
MIB = 2**20
FOR_ITS_LABELS = "a plan with the same labels starts from it, any other fresh"


@dataclass(frozen=True)
class ModelInfo:
    """A model directory; sizes in bytes, as stored.  `fingerprint` is empty if it was not asked for."""

    architecture: str
    model_type: str
    decoder: bool
    parameters: int
    num_layers: int
    hidden_size: int
    smallest_layer_bytes: int
    largest_layer_bytes: int
    embedding_bytes: int
    head_bytes: int
    head_is_tied: bool
    rest_bytes: int
    unused_bytes: int  # stored, but used by no parameter
    dtypes: tuple[str, ...]  # on disk, the one with the most bytes first
    missing: tuple[str, ...]  # parameters that are not stored
    stored_labels: tuple[str, ...]  # of the head that is stored, by row; none where there is none
    head: tuple[str, ...]  # where the head begins that trains under the labels of the recipe, if it has any
    chat_template: bool
    fingerprint: str
    budget_bytes: int
    micro_batch: int
    max_length: int
    compute: str  # the dtype that computes, decided as for this machine
    fits: tuple[Fit, ...]

    @property
    def largest_window(self) -> int:
        """The largest of the tried windows that fits the budget; 0 if none does."""
        return max((fit.window_size for fit in self.fits if fit.chosen), default=0)


def look(
    model_dir: Path, settings: Settings, *, budget_bytes: int | None = None, fingerprint: bool = False
) -> ModelInfo:
    """Inspect a model directory; peaks are predicted for `train-window` with `settings`.  Raises `BadInput`."""
    memory = predictor(model_dir, settings)  # first: it measures this process before the rest adds to it
    backbone = memory.backbone
    skeleton, names = read_names(model_dir)
    parts = Parts.of(names, skeleton.output_names)
    used = stored([*(load for layer in names.layers for load in layer), names.embeddings, *names.rest])
    budget = budget_bytes or device_memory_bytes()
    return ModelInfo(
        architecture=type(skeleton.model).__name__,
        model_type=skeleton.config.model_type,
        decoder=is_decoder(skeleton.config),
        parameters=parameter_count(names),
        num_layers=len(names.layers),
        hidden_size=int(skeleton.config.hidden_size),
        smallest_layer_bytes=min(parts.layers),
        largest_layer_bytes=max(parts.layers),
        embedding_bytes=parts.embeddings,
        head_bytes=parts.head,
        head_is_tied=skeleton.embedding_name in skeleton.output_names,
        rest_bytes=parts.rest,
        unused_bytes=sum(tensor.size for tensor in names.unused),
        dtypes=tuple(str(dtype).removeprefix("torch.") for dtype, _ in bytes_by_dtype(used).most_common()),
        missing=tuple(missing_parameters(skeleton, names)),
        stored_labels=backbone.stored_labels,
        head=tuple(described_head(backbone.head_parameters)) if settings.task.labels else (),
        chat_template=has_chat_template(model_dir),
        fingerprint=backbone.reader.fingerprint().digest if fingerprint else "",
        budget_bytes=budget,
        micro_batch=memory.settings.numerics.rows,
        max_length=memory.settings.encoding.most_tokens,
        compute=memory.settings.numerics.computes_in,
        fits=fits(len(parts.layers), WINDOW_SIZES, budget, peaks_of_windows(memory)),
    )


def has_chat_template(model_dir: Path) -> bool:
    """Whether the tokenizer has a chat template that the stages can use.  Raises `BadInput` where it cannot be read."""
    return chat_template(model_dir) is not None


def lines(info: ModelInfo) -> Sequence[str]:
    """The model and its sizes, for people."""
    one = info
    head = "tied to the embeddings" if one.head_is_tied else f"{one.head_bytes / MIB:.0f} MiB"
    layer = f"{one.largest_layer_bytes / MIB:.1f} MiB"
    if one.smallest_layer_bytes != one.largest_layer_bytes:
        layer = f"{one.smallest_layer_bytes / MIB:.1f} to {layer}"
    unused = f", unused {one.unused_bytes / MIB:.1f} MiB" if one.unused_bytes else ""
    absent = f"; not stored: {', '.join(one.missing[:3])}{', …' if one.missing[3:] else ''}" if one.missing else ""
    stored = one.stored_labels
    heads = [f"in the checkpoint for {len(stored)} labels: {some(stored)}", *(one.head or [FOR_ITS_LABELS])]
    return [
        f"model        {one.architecture} ({one.model_type}, {'decoder' if one.decoder else 'encoder'}), "
        f"{one.parameters:,} parameters as {' and '.join(one.dtypes)}{absent}",
        f"layers       {one.num_layers} of {layer}, hidden size {one.hidden_size}",
        f"around them  embeddings {one.embedding_bytes / MIB:.1f} MiB, language head {head}, "
        f"rest {one.rest_bytes / MIB:.1f} MiB{unused}",
        *(f"head         {line}" for line in (heads if stored else one.head)),
        f"chat         {'has a template' if one.chat_template else 'no template'}",
        f"fingerprint  {one.fingerprint or 'not asked for: --fingerprint reads every weight'}",
        f"predicted    peaks of train-window in {one.compute}, micro-batch {one.micro_batch} x {one.max_length} tokens",
    ]
