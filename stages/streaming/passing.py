"""The batches of a pass over all texts in canonical order, prepared once for all layers as far as memory is set aside.

A small layer takes milliseconds; laying its batch anew and running the model's forward around it (embeddings, masks,
rotary angles) take a tenth of that, at every layer again.  So ids, mask and what the model hands its layers are kept
for the first batches, up to `KEPT_BYTES` whatever the number of texts; those after are prepared at each layer, to the
same values.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from stages.data.layout import Layout
from stages.model.backbone import Backbone
from stages.model.skeleton import Batch, LayerArguments
from stages.streaming.texts import EncodedTexts

KEPT_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Passing:
    """Some texts as they pass a layer.  Without `arguments` the model's own forward runs around it."""

    indices: list[int]
    layout: Layout
    batch: Batch
    arguments: LayerArguments | None = None


class CanonicalBatches:
    """All texts, a micro-batch at a time; to be gone through once for each layer."""

    def __init__(self, backbone: Backbone, texts: EncodedTexts, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._backbone = backbone
        self._texts = texts
        self._chunks = texts.chunks()
        self._kept: list[Passing] = []
        self._left_bytes = kept_bytes

    def __iter__(self) -> Iterator[Passing]:
        """In canonical order."""
        yield from self._kept
        for indices in self._chunks[len(self._kept) :]:
            passing = Passing(indices, self._texts.layout(indices), self._texts.batch(indices))
            yield self._keep(passing) if self._left_bytes > 0 else passing

    def _keep(self, passing: Passing) -> Passing:
        """The same, with what the model hands its layers; kept unless it is larger than what is left."""
        arguments = self._backbone.skeleton.layer_arguments(passing.batch)
        prepared = Passing(passing.indices, passing.layout, passing.batch, arguments)
        batch = passing.batch
        tensors = [
            tensor for tensor in (batch.input_ids, batch.attention_mask, batch.position_ids) if tensor is not None
        ]
        self._left_bytes -= sum(tensor.nbytes for tensor in tensors) + (arguments.total_bytes if arguments else 0)
        if self._left_bytes >= 0:
            self._kept.append(prepared)
        return prepared
