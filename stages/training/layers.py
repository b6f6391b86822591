"""Train consecutive layers: the frozen prefix runs once, then every step trains the span on one batch.

The prefix streams through memory a layer at a time, for all texts; its hidden states are the input of the span in
every step.  Prefix and span are never in memory together.

Shapes: B texts of a micro-batch, S tokens, D hidden size.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from schemas.methods.chain import LossWeights
from schemas.refs import Window
from stages.model.backbone import Backbone
from stages.model.language_head import LanguageHead
from stages.process.progress import Progress
from stages.store.tensors import LazyTensors
from stages.streaming.boundaries import Boundaries
from stages.streaming.hidden_states import HiddenStates
from stages.streaming.placement import Placement
from stages.streaming.prefix_cache import PrefixCache
from stages.streaming.stream import hidden_states, load_layers, run_prefix, stream_layers
from stages.streaming.texts import EncodedTexts
from stages.training.criterion import ClassCriterion, Criterion, TokenCriterion, backward_with_gradient
from stages.training.objective import Objective, StepLoss
from stages.training.optimizer import HEAD, Optimizer
from stages.tuning.tensors import layer_of
from stages.tuning.tuning import BottleneckTuning, Tuning
from stages.weights.reader import Weights

LOCAL = -1  # in the place of a layer: gradients of the local loss


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
    states are written to the `cache`, if any; `loss_weights` are those of Eq. 2 for the `window`: the span, or the part
    of it that trains where the loss is behind frozen layers.
    """

    backbone: Backbone
    texts: DeviceTexts
    span: Window
    before: Tuning
    tuning: BottleneckTuning
    optimizer: Optimizer
    placement: Placement
    scratch: Path
    loss_weights: LossWeights
    window: Window | None = None  # None: the span
    cache: PrefixCache | None = None
    keep: tuple[int, ...] = ()
    _hidden: HiddenStates = field(init=False)
    _objective: Objective = field(init=False)
    _resident: dict[int, Weights] | None = field(init=False)  # None: one layer in memory at a time
    _between: Boundaries = field(init=False)
    _local_head: dict[str, Tensor] = field(init=False)

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
            self._objective = self._compose()
            stays = self.placement.window_resident or len(self.span.layers) < 2
            self._resident = load_layers(self.backbone, self.span.layers) if stays else None
            self._between = Boundaries(None if self.placement.hidden_in_memory else self.scratch)
            with self.optimizer.pages.holding(*(self.span.layers if stays else ())):
                yield
            self._between.close()

    def step(self, batch: list[int]) -> StepLoss:
        """One optimiser step on the gradient of Eq. 2 over a batch; its loss, in nats per target."""
        self.backbone.skeleton.passes.step(len(batch))
        loss = self._streamed(batch) if self._resident is None else self._kept(batch, self._resident)
        for name, apart in self._local_head.items():
            whole, gradient = self.tuning.head[name], apart.grad
            if gradient is not None and whole.grad is not None:
                whole.grad.add_(gradient)
            apart.grad = None
        self.optimizer.step()
        return loss

    def tensors(self) -> Mapping[str, np.ndarray]:
        """The trained tensors by name, float32."""
        trained = self.tuning.trainable()

        def values(name: str) -> np.ndarray:
            layer = layer_of(name)
            with self.optimizer.pages.holding(HEAD if layer is None else layer):
                return np.array(trained[name].detach().numpy())

        return LazyTensors({name: tuple(value.shape) for name, value in trained.items()}, values)

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
        graph.  `between` holds the input of layer l for micro-batch m, later the gradient with respect to it.
        """
        pieces = self.texts.encoded.micro_batches(batch)
        first, *_, last = self.span.layers
        between, local = self._between, self._forwards(batch, pieces)
        parts: list[StepLoss] = []
        for layer, weights in self._stream(self.span.layers[::-1]):
            for part, indices in enumerate(pieces):
                arrived = self._entering(layer, part, indices).requires_grad_(layer != first)
                if layer == last:
                    parts.append(self._accumulate({layer: weights}, arrived, indices, batch))
                else:
                    with self.backbone.skeleton.passes.again():
                        leaving = self._through(layer, weights, arrived, indices)
                    backward_with_gradient(leaving, between.get(layer + 1, part))
                    between.drop(layer + 1, part)
                if layer != first:
                    assert arrived.grad is not None
                    gradient = arrived.grad
                    if part in local and layer == self._objective.window.stop:
                        gradient = gradient.add_(between.get(LOCAL, part))
                    between.put(layer, part, gradient)
            del weights  # otherwise this layer stays in memory while the next is read
            self.optimizer.complete(layer)
        return StepLoss.sum([self._with_local(loss, local.get(part)) for part, loss in enumerate(parts)])

    @torch.no_grad()
    def _forwards(self, batch: list[int], pieces: list[list[int]]) -> dict[int, float]:
        """Keep every layer's input; the local losses by micro-batch, where they are computed apart."""
        local: dict[int, float] = {}
        for layer, weights in self._stream(self.span.layers[:-1]):
            for part, indices in enumerate(pieces):
                leaving = self._through(layer, weights, self._entering(layer, part, indices), indices)
                self._between.put(layer + 1, part, leaving)
                if self._objective.has_local and layer + 1 == self._objective.window.stop:
                    one, targets = self.texts.encoded.batch(indices), self.texts.targets_of(indices)
                    with torch.enable_grad():
                        local[part], gradient = self._objective.local(
                            leaving, one, targets, count=self.texts.target_count(batch)
                        )
                    self._between.put(LOCAL, part, gradient)
            del weights
        return local

    def _with_local(self, loss: StepLoss, local: float | None) -> StepLoss:
        """The loss of a micro-batch with its local part, which was computed apart."""
        if local is None:
            return loss
        return StepLoss(loss.total + self._objective.weights.local * local, local, loss.downstream)

    def _stream(self, layers: Sequence[int]) -> Generator[tuple[int, Weights]]:
        """Each layer's weights in turn, with its adapter in hand."""
        for layer, weights in stream_layers(self.backbone, layers, prefetch=self.placement.prefetch):
            with self.optimizer.pages.holding(layer):
                yield layer, weights
            del weights

    def _entering(self, layer: int, part: int, indices: list[int]) -> Tensor:
        """The input (B, S, D) of a layer of the span for a micro-batch."""
        if layer == self.span.start:
            return self._hidden.gather(indices, self.texts.encoded.layout(indices))
        return self._between.get(layer, part)

    def _through(self, layer: int, weights: Weights, arrived: Tensor, indices: list[int]) -> Tensor:
        return self.backbone.run_layers({layer: weights}, arrived, self.texts.encoded.batch(indices), self.tuning)

    def _accumulate(
        self, weights: dict[int, Weights], arriving: Tensor, indices: list[int], batch: list[int]
    ) -> StepLoss:
        targets, count = self.texts.targets_of(indices), self.texts.target_count(batch)
        return self._objective.accumulate(weights, arriving, self.texts.encoded.batch(indices), targets, count=count)

    def _compose(self) -> Objective:
        """Eq. 2.  A local loss that is computed apart has a head with the same values and gradients of its own."""
        apart = self.loss_weights.through_layers and self.loss_weights.local > 0
        self._local_head = (
            {name: value.detach().requires_grad_() for name, value in self.tuning.head.items()} if apart else {}
        )
        criterion: Criterion
        local: Criterion
        if self.texts.targets is None:
            criterion = local = TokenCriterion(LanguageHead.of(self.backbone, resident=self.placement.head_resident))
        else:
            criterion = ClassCriterion(self.backbone, self.tuning.head)
            local = ClassCriterion(self.backbone, self._local_head)
        return Objective(
            self.backbone,
            self.window or self.span,
            self.tuning,
            self.loss_weights,
            criterion,
            local_criterion=local if apart else None,
            recomputes=not self.placement.window_resident,
        )
