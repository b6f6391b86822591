"""Compute, prefetch, evict: layers come from disk one after the other into memory that is used again.

While layer l computes, a thread reads layer l+1 into the other of two arenas (hashing releases the GIL as reading
does).  Layer-major order: every text passes layer l before layer l+1 is touched, so each frozen layer is read once
a stage, not once a step.
"""

import mmap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from stages.model.adapters import Adapter
from stages.model.backbone import Backbone
from stages.model.cache import PrefixCache
from stages.model.hidden import HiddenStates
from stages.model.reader import Weights
from stages.model.texts import EncodedTexts

AfterLayer = Callable[[int, HiddenStates], None]


def arena(size: int) -> mmap.mmap:
    """Private anonymous memory: given back to the system when the last tensor in it is gone."""
    return mmap.mmap(-1, max(size, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def stream_layers(backbone: Backbone, layers: Sequence[int]) -> Iterator[tuple[int, Weights]]:
    """Each layer's weights in turn.  They are valid until the next one is asked for."""
    if not layers:
        return
    size = max(backbone.reader.layer_bytes(layer) for layer in layers)
    arenas = [arena(size) for _ in layers[:2]]
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
    return {layer: backbone.reader.layer(layer, arena(backbone.reader.layer_bytes(layer))) for layer in layers}


@torch.no_grad()
def run_prefix(
    backbone: Backbone,
    texts: EncodedTexts,
    hidden: HiddenStates,
    adapters: Mapping[int, Adapter],
    *,
    stop: int,
    cache: PrefixCache | None = None,
    after_layer: AfterLayer = lambda layer, hidden: None,
    layer_seconds: Callable[[float], object] = lambda seconds: None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> None:
    """Bring every text from its embedding to h_stop, in place, in layer-major order.

    `after_layer(-1, hidden)` follows the embeddings, `after_layer(l, hidden)` layer l.  With a `cache`, what leaves
    its layers is taken from there or kept there; those layers then have no `after_layer`.
    """
    start = 0
    if cache is not None and cache.depth <= stop and cache.load(texts, hidden):
        start = cache.depth
    else:
        for indices in texts.chunks():
            hidden.scatter(indices, backbone.embed(texts.batch(indices)), side=texts.side)
        after_layer(-1, hidden)
    for layer, weights in stream_layers(backbone, range(start, stop)):
        progress("layers", layer, stop)
        began = time.perf_counter()
        for indices in texts.chunks():
            arriving = hidden.gather(indices, side=texts.side)
            output = backbone.run_layers({layer: weights}, arriving, texts.batch(indices), adapters)
            hidden.scatter(indices, output, side=texts.side)
        layer_seconds(time.perf_counter() - began)
        after_layer(layer, hidden)
        if cache is not None and layer + 1 == cache.depth:
            cache.store(texts, hidden)
    progress("layers", stop, stop)
