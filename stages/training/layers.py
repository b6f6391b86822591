"""Train consecutive layers: the frozen prefix runs once, then every step trains the span on one batch.

The prefix streams through memory a layer at a time, for all texts; its hidden states are the input of the span in
every step.  Prefix and span are never in memory together.

Shapes: B texts of a micro-batch, S tokens, D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.refs import Window
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.process.progress import Progress
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.stream import hidden_states, load_layers, run_prefix, stream_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import ClassCriterion, Criterion, TokenCriterion, backward_with_gradient
from stages.training.objective import Objective, StepLoss
from stages.training.optimizer import Optimizer
from stages.tuning.tuning import BottleneckTuning
from stages.weights.reader import Weights


@dataclass(frozen=True)
class DeviceTexts:
    """A device's encoded texts and targets.

    `targets` (N,) int64 are indices into the plan's labels; None: the targets are the next tokens.
    """

    encoded: EncodedTexts
    targets: Tensor | None

    def targets_of(self, indices: list[int]) -> Tensor:
        """Targets of the texts at `indices`: classes (B,) or tokens (B, S), int64."""
        return self.encoded.targets(indices) if self.targets is None else self.targets[indices]

    def target_count(self, indices: Sequence[int]) -> int:
        """The number of targets of the texts at `indices`, at least 1."""
        if self.targets is not None:
            return len(indices)
        return max(1, sum(self.encoded.target_counts[index] for index in indices))


@dataclass
class LayerTraining:
    """Trains tensors of a span of layers, and the head.

    `before` is the tuning that the prefix runs with, `tuning` the one that trains; `keep` lists depths whose hidden
    states are written to the `cache`, if any; `global_weight` is λ of Eq. 2.
    """

    backbone: Backbone
    texts: DeviceTexts
    span: Window
    before: BottleneckTuning
    tuning: BottleneckTuning
    optimizer: Optimizer
    placement: Placement
    scratch: Path
    global_weight: float = 0.0
    cache: PrefixCache | None = None
    keep: tuple[int, ...] = ()
    _hidden: HiddenStates = field(init=False)
    _objective: Objective = field(init=False)
    _resident: dict[int, Weights] | None = field(init=False)  # None: one layer in memory at a time

    @contextmanager
    def opened(self, progress: Progress) -> Iterator[None]:
        """Run the prefix and keep its hidden states; then load the span's layers, if they are to stay in memory."""
        with hidden_states(self.backbone, self.texts.encoded, self.placement, scratch=self.scratch) as self._hidden:
            run_prefix(
                self.backbone,
                self.texts.encoded,
                self._hidden,
                self.before,
                stop=self.span.start,
                prefetch=self.placement.prefetch,
                cache=self.cache,
                keep=self.keep,
                progress=progress,
            )
            del self.before, self.cache  # as large as what trains, and no longer needed
            self._objective = Objective(
                self.backbone,
                self.span,
                self.tuning,
                self.global_weight,
                self._criterion(),
                recomputes=not self.placement.window_resident,
            )
            stays = self.placement.window_resident or len(self.span.layers) < 2
            self._resident = load_layers(self.backbone, self.span.layers) if stays else None
            yield

    def step(self, batch: list[int]) -> StepLoss:
        """One optimiser step on the gradient of Eq. 2 over a batch; its loss, in nats per target."""
        loss = self._streamed(batch) if self._resident is None else self._kept(batch, self._resident)
        self.optimizer.step()
        return loss

    def tensors(self) -> dict[str, np.ndarray]:
        """The trained tensors by name, float32."""
        return {name: value.detach().numpy() for name, value in self.tuning.trainable().items()}

    def _kept(self, batch: list[int], weights: dict[int, Weights]) -> StepLoss:
        """Accumulate the gradient over one batch, a micro-batch at a time."""
        parts = []
        for indices in self.texts.encoded.micro_batches(batch):
            arriving = self._hidden.gather(indices, self.texts.encoded.layout(indices))
            parts.append(self._accumulate(weights, arriving, indices, batch))
        return StepLoss.sum(parts)

    def _streamed(self, batch: list[int]) -> StepLoss:
        """The same sums in the same order as `_kept`, with one layer of the span in memory at a time.

        The forward pass builds no graph and keeps each layer's input; the backward pass runs each layer again with a
        graph.  `arriving[l][m]` is the input of layer l for micro-batch m, later the gradient with respect to it.
        """
        encoded = self.texts.encoded
        micro_batches = encoded.micro_batches(batch)
        batches = [encoded.batch(indices) for indices in micro_batches]
        first, *_, last = self.span.layers
        arriving: dict[int, list[Tensor]] = {layer: [] for layer in self.span.layers[1:]}

        def entering(layer: int, part: int) -> Tensor:
            if layer == first:
                return self._hidden.gather(micro_batches[part], encoded.layout(micro_batches[part]))
            return arriving[layer][part]

        def through(layer: int, weights: Weights, arrived: Tensor, part: int) -> Tensor:
            return self.backbone.run_layers({layer: weights}, arrived, batches[part], self.tuning)

        for layer, weights in stream_layers(self.backbone, self.span.layers[:-1], prefetch=False):
            with torch.no_grad():
                arriving[layer + 1] = [
                    through(layer, weights, entering(layer, part), part) for part in range(len(batches))
                ]
            del weights  # otherwise this layer stays in memory while the next is read
        parts: list[StepLoss] = []
        for layer, weights in stream_layers(self.backbone, self.span.layers[::-1], prefetch=False):
            for part, indices in enumerate(micro_batches):
                arrived = entering(layer, part).requires_grad_(layer != first)
                if layer == last:
                    parts.append(self._accumulate({layer: weights}, arrived, indices, batch))
                else:
                    backward_with_gradient(through(layer, weights, arrived, part), arriving[layer + 1][part])
                if layer != first:
                    assert arrived.grad is not None
                    arriving[layer][part] = arrived.grad
        return StepLoss.sum(parts)

    def _accumulate(
        self, weights: dict[int, Weights], arriving: Tensor, indices: list[int], batch: list[int]
    ) -> StepLoss:
        targets, count = self.texts.targets_of(indices), self.texts.target_count(batch)
        return self._objective.accumulate(weights, arriving, self.texts.encoded.batch(indices), targets, count=count)

    def _criterion(self) -> Criterion:
        if self.texts.targets is None:
            return TokenCriterion(LanguageHead.of(self.backbone, resident=self.placement.head_resident))
        return ClassCriterion(self.backbone, self.tuning.head)
