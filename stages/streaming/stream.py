"""Compute, prefetch, evict: layers come from disk one after the other into memory that is used again.

While layer l computes, a thread reads layer l+1 into the other of two arenas (hashing releases the GIL as reading
does).  Layer-major order: every text passes layer l before layer l+1 is touched, so each frozen layer is read once
a stage, not once a step.
"""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from stages.model.backbone import Backbone
from stages.process.progress import Progress, silent
from stages.streaming.hidden_states import IN_MEMORY_LIMIT_BYTES, HiddenStates
from stages.streaming.passing import KEPT_BYTES, CanonicalBatches
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import UNTUNED, Tuning
from stages.weights.reader import Weights, new_arena

AfterLayer = Callable[[int, HiddenStates], None]


def hidden_states(backbone: Backbone, texts: EncodedTexts, placement: Placement, *, scratch: Path) -> HiddenStates:
    """A place for what leaves a layer, for all texts: in memory or in an unnamed file in `scratch`."""
    limit = IN_MEMORY_LIMIT_BYTES if placement.hidden_in_memory else 0
    return HiddenStates(
        texts.lengths, backbone.hidden_size, backbone.dtype, scratch=scratch, in_memory_limit_bytes=limit
    )


def stream_layers(
    backbone: Backbone, layers: Sequence[int], *, prefetch: bool = True
) -> Generator[tuple[int, Weights]]:
    """Each layer's weights in turn.  They are valid until the next one is asked for.

    With `prefetch` two layers are in memory, the second on its way while the first computes; without, one.
    """
    if not layers:
        return
    size = max(backbone.reader.layer_bytes(layer) for layer in layers)
    if not prefetch:
        only = new_arena(size)
        for layer in layers:
            weights = backbone.reader.layer(layer, only)
            yield layer, weights
            del weights
        return
    arenas = [new_arena(size) for _ in layers[:2]]
    with ThreadPoolExecutor(1, "prefetch") as executor:
        coming: Future[Weights] = executor.submit(backbone.reader.layer, layers[0], arenas[0])
        for position, layer in enumerate(layers):
            weights = coming.result()
            if position + 1 < len(layers):
                coming = executor.submit(backbone.reader.layer, layers[position + 1], arenas[(position + 1) % 2])
            yield layer, weights
            del weights


def load_layers(backbone: Backbone, layers: Sequence[int]) -> dict[int, Weights]:
    """Layers that stay: the window's, each in an arena of its own."""
    return {layer: backbone.reader.layer(layer, new_arena(backbone.reader.layer_bytes(layer))) for layer in layers}


@torch.no_grad()
def run_prefix(
    backbone: Backbone,
    texts: EncodedTexts,
    hidden: HiddenStates,
    tuning: Tuning,
    *,
    stop: int,
    prefetch: bool = True,
    cache: PrefixCache | None = None,
    keep: Sequence[int] = (),
    after_layer: AfterLayer | None = None,
    layer_seconds: Callable[[float], object] = lambda seconds: None,
    progress: Progress = silent,
) -> None:
    """Bring every text from its embedding to h_stop, in place, in layer-major order.

    `after_layer(-1, hidden)` follows the embeddings, `after_layer(l, hidden)` layer l.  With a `cache` the deepest
    states that it has are the start, unless `after_layer` wants all of them.  For each depth d of `keep` it keeps what
    layer d makes of h_d before the tuning changes it, or h_d where the pass ends there or the tuning changes nothing.
    """
    start, tuned = cache.deepest(stop, hidden) if cache is not None and after_layer is None else (0, True)
    batches = CanonicalBatches(backbone, texts, kept_bytes=KEPT_BYTES if prefetch else 0)
    if start == 0:
        for one in batches:
            hidden.scatter(one.indices, backbone.embed(one.batch), one.layout)
        if after_layer is not None:
            after_layer(-1, hidden)
    if not tuned:
        _tune(tuning, start - 1, hidden, batches)
    for layer, weights in stream_layers(backbone, range(start, stop), prefetch=prefetch):
        progress("layers", layer, stop)
        began = time.perf_counter()
        in_two_steps = cache is not None and layer in keep and cache.changes_after(layer)
        for one in batches:
            arriving = hidden.gather(one.indices, one.layout)
            within = UNTUNED if in_two_steps else tuning
            output = backbone.run_layers({layer: weights}, arriving, one.batch, within, one.arguments)
            hidden.scatter(one.indices, output, one.layout)
        if cache is not None and in_two_steps:
            cache.store(layer + 1, hidden, untuned=True)
            _tune(tuning, layer, hidden, batches)
        layer_seconds(time.perf_counter() - began)
        if after_layer is not None:
            after_layer(layer, hidden)
        if cache is not None and (layer + 1 in keep and (layer + 1 == stop or not cache.changes_after(layer + 1))):
            cache.store(layer + 1, hidden)
    progress("layers", stop, stop)


def _tune(tuning: Tuning, layer: int, hidden: HiddenStates, batches: CanonicalBatches) -> None:
    """From the outputs of a layer to what the tuning makes of them, in place."""
    for one in batches:
        changed = tuning.after(layer, hidden.gather(one.indices, one.layout))
        hidden.scatter(one.indices, changed, one.layout)
