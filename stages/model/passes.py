"""Count how often texts pass a frozen layer: forwards, forwards again to make a graph, and backwards.

Every layer that runs is counted where it runs, whoever runs it; a backward pass is counted when a gradient arrives at
the layer's output.  What only an adapter computes is not a pass: the first layer that trains has none backwards.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from schemas.measured import LayerPasses


class PassCounter:
    """Passes so far.  `texts`: how many the batch that runs now holds."""

    def __init__(self) -> None:
        self.texts = 0
        self._counts: Counter[str] = Counter()  # by the names of `LayerPasses`
        self._forwards = "forward"

    def layer(self, output: Tensor) -> None:
        """A layer has made `output` of the batch."""
        texts = self.texts
        self._counts[self._forwards] += texts
        if output.requires_grad:
            output.register_hook(lambda _: self._counts.update(backward=texts))

    def step(self, texts: int) -> None:
        """An optimizer step has seen so many texts."""
        self._counts["visits"] += texts

    @contextmanager
    def again(self) -> Iterator[None]:
        """Layers in this block run for the second time."""
        self._forwards = "recomputed"
        try:
            yield
        finally:
            self._forwards = "forward"

    def counted(self, since: LayerPasses = LayerPasses()) -> LayerPasses:  # noqa: B008 -- frozen
        """The passes so far, or since an earlier count."""
        return LayerPasses(**{name: self._counts[name] - getattr(since, name) for name in LayerPasses.model_fields})
