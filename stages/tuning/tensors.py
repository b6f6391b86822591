"""Names, shapes and initial values of the trained tensors in states and updates, without torch.

Shapes: D hidden size, R bottleneck.
"""

from collections.abc import Iterable

import numpy as np

from stages.process.seeds import normal

LIVE_TENSORS = ("adapters.", "head.")  # tensors of a state that devices use; the others are for the server only
SUFFIXES = ("down.weight", "down.bias", "up.weight", "up.bias")


def adapter_names(layer: int) -> list[str]:
    """Names of a layer's adapter tensors in states and updates, in the order of `Adapter.parameters`."""
    return [f"adapters.{layer}.{suffix}" for suffix in SUFFIXES]


def layer_of(name: str) -> int | None:
    """The layer that an adapter's tensor belongs to; None for tensors of the head."""
    group, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if group == "adapters" else None


def fresh_adapters(layers: Iterable[int], *, hidden_size: int, bottleneck: int, seed: int) -> dict[str, np.ndarray]:
    """Tensors of untrained adapters, float32, drawn by numpy's PCG64: the same on every machine."""
    tensors: dict[str, np.ndarray] = {}
    for layer in layers:
        down = normal(f"adapters.{layer}", seed, (bottleneck, hidden_size))
        zeros = [np.zeros(shape, np.float32) for shape in (bottleneck, (hidden_size, bottleneck), hidden_size)]
        tensors |= dict(zip(adapter_names(layer), [down, *zeros], strict=True))
    return tensors


def adapter_shapes(layers: Iterable[int], *, hidden_size: int, bottleneck: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of `fresh_adapters`, by name."""
    shapes = ((bottleneck, hidden_size), (bottleneck,), (hidden_size, bottleneck), (hidden_size,))
    return {name: shape for layer in layers for name, shape in zip(adapter_names(layer), shapes, strict=True)}
