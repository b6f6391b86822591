"""Count how often texts pass a frozen layer: forwards, forwards again to make a graph, and backwards.

Every layer that runs is counted where it runs, whoever runs it; a backward pass is counted when a gradient arrives at
the layer's output.  What only an adapter computes is not a pass: the first layer that trains has none backwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from schemas.measured import LayerPasses


class PassCounter:
    """Passes so far.  `texts`: how many the batch that runs now holds."""

    def __init__(self) -> None:
        self.texts = 0
        self._forward = self._recomputed = self._backward = self._visits = 0
        self._again = False

    def layer(self, output: Tensor) -> None:
        """A layer has made `output` of the batch."""
        if self._again:
            self._recomputed += self.texts
        else:
            self._forward += self.texts
        if output.requires_grad:
            texts = self.texts

            def back(_: Tensor) -> None:
                self._backward += texts

            output.register_hook(back)

    def step(self, texts: int) -> None:
        """An optimizer step has seen so many texts."""
        self._visits += texts

    @contextmanager
    def again(self) -> Iterator[None]:
        """Layers in this block run for the second time."""
        self._again = True
        try:
            yield
        finally:
            self._again = False

    def counted(self, since: LayerPasses | None = None) -> LayerPasses:
        """The passes so far, or since an earlier count."""
        now = LayerPasses(
            forward=self._forward, recomputed=self._recomputed, backward=self._backward, visits=self._visits
        )
        if since is None:
            return now
        return LayerPasses(**{name: getattr(now, name) - getattr(since, name) for name in LayerPasses.model_fields})
