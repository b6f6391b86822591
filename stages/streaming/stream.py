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
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.texts import EncodedTexts
from stages.tuning.tuning import Tuning
from stages.weights.reader import Weights, new_arena

AfterLayer = Callable[[int, HiddenStates], None]


def hidden_states(backbone: Backbone, texts: EncodedTexts, placement: Placement, *, scratch: Path) -> HiddenStates:
    """A place for what leaves a layer, for all texts: in memory or in an unlinked file in `scratch`."""
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
    after_layer: AfterLayer = lambda layer, hidden: None,
    layer_seconds: Callable[[float], object] = lambda seconds: None,
    progress: Progress = silent,
) -> None:
    """Bring every text from its embedding to h_stop, in place, in layer-major order.

    `after_layer(-1, hidden)` follows the embeddings, `after_layer(l, hidden)` layer l.  With a `cache` the deepest
    h_d that it has is the start (layers before have no `after_layer`), and h_d is kept for each depth d of `keep`.
    """
    start = cache.deepest(stop, hidden) if cache is not None else 0
    chunks = texts.chunks()
    if start == 0:
        for indices in chunks:
            hidden.scatter(indices, backbone.embed(texts.batch(indices)), texts.layout(indices))
        after_layer(-1, hidden)
    for layer, weights in stream_layers(backbone, range(start, stop), prefetch=prefetch):
        progress("layers", layer, stop)
        began = time.perf_counter()
        for indices in chunks:
            layout = texts.layout(indices)
            arriving = hidden.gather(indices, layout)
            output = backbone.run_layers({layer: weights}, arriving, texts.batch(indices), tuning)
            hidden.scatter(indices, output, layout)
        layer_seconds(time.perf_counter() - began)
        after_layer(layer, hidden)
        if cache is not None and layer + 1 in keep:
            cache.store(layer + 1, hidden)
    progress("layers", stop, stop)
