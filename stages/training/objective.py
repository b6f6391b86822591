"""Eq. 2 of the paper, with two kinds of foresight, for a window s … e that trains.

    loss        = w · loss_local + λ · loss_global             e < L-1
    loss        = loss_end_to_end                              the last window, e = L-1
    loss_local  = CE(head(h_{e+1}))

    loss_global = CE(head(A_{L-1} ∘ … ∘ A_{e+1}(h_{e+1})))                  foresight through adapters: the paper's
    loss_global = CE(head(A_{L-1} f_{L-1} … A_{e+1} f_{e+1}(h_{e+1})))      foresight through layers: the true loss

The paper's global branch runs the adapters above the window and the head, never a frozen layer; w is 1.  Through
layers, with w = 0 and λ = 1, the gradient is that of end-to-end training.  Sums are divided by the number of targets of
the whole batch, so that accumulated micro-batches give the gradient of the batch.

Both losses depend on h_{e+1}: their gradients are summed there, and the sum is backpropagated through the window.  The
graph of the layers may be kept while the head computes, or made afterwards: a forward more, and the two never share the
memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from schemas.methods.chain import LossWeights
from schemas.refs import Window
from stages.model.backbone import Backbone
from stages.model.skeleton import Batch
from stages.training.criterion import Branch, Criterion, backward_with_gradient
from stages.tuning.tuning import Tuning
from stages.weights.reader import Weights

T = TypeVar("T")


@dataclass(frozen=True)
class StepLoss:
    """Losses in nats per target; None where that branch does not run."""

    total: float
    local: float | None
    downstream: float | None

    @classmethod
    def sum(cls, parts: Sequence["StepLoss"]) -> "StepLoss":
        """The loss of a batch: the sum over its micro-batches."""
        local = [part.local for part in parts if part.local is not None]
        downstream = [part.downstream for part in parts if part.downstream is not None]
        return cls(
            total=sum(part.total for part in parts),
            local=sum(local) if local else None,
            downstream=sum(downstream) if downstream else None,
        )


@dataclass(frozen=True)
class Objective:
    """Eq. 2 for one window of layers.  `tuning` holds what trains and the adapters above the window.

    `local_criterion` is the criterion of the local loss where it is computed apart from the global one (through
    layers): its head has gradients of its own, so that sums have one order whatever is in memory.  `recomputes`: no
    graph of the layers is alive while the head computes.
    """

    backbone: Backbone
    window: Window
    tuning: Tuning
    weights: LossWeights
    criterion: Criterion
    local_criterion: Criterion | None = None
    recomputes: bool = False
    ahead: range = field(init=False)  # the frozen layers that the global loss runs

    def __post_init__(self) -> None:
        depth = self.backbone.num_layers
        stop = depth if self.weights.through_layers else self.window.stop
        object.__setattr__(self, "ahead", range(self.window.stop, stop))

    def accumulate(
        self, weights: Mapping[int, Weights], hidden: Tensor, batch: Batch, targets: Tensor, *, count: int
    ) -> StepLoss:
        """Add the gradient of a micro-batch to the `.grad` of what trains (and of `hidden`, if it requires one).

        `weights` belong to the layers of the window and `ahead`, or to the last of them if `hidden` (B, S, D) has
        passed the others; then the local loss is left to `local`.  `targets` fit the criterion; `count` is the number
        of targets of the whole batch.
        """
        inside = {layer: own for layer, own in weights.items() if layer not in self.ahead}
        beyond = {layer: own for layer, own in weights.items() if layer in self.ahead}

        def end_to_end(meeting: Tensor) -> StepLoss:
            (end,) = self._descend(
                beyond,
                meeting,
                batch,
                lambda top: self._losses([(top, self.weights.downstream)], batch, targets, count),
            )
            return StepLoss(self.weights.downstream * end, None, end)

        if beyond and not inside:
            return end_to_end(hidden)
        if beyond:
            return self._descend(
                inside, hidden, batch, lambda meeting: self._with_local(meeting, end_to_end, batch, targets, count)
            )
        local, *rest = self._descend(
            inside, hidden, batch, lambda meeting: self._losses(self._branches(meeting), batch, targets, count)
        )
        if not rest:
            return StepLoss(local, local, None)
        return StepLoss(self.weights.local * local + self.weights.downstream * rest[0], local, rest[0])

    def local(self, leaving: Tensor, batch: Batch, targets: Tensor, *, count: int) -> tuple[float, Tensor]:
        """The local loss through layers, and w times its gradient with respect to h_{e+1} (B, S, D)."""
        assert self.local_criterion is not None
        meeting = leaving.detach().requires_grad_()
        (loss,) = self.local_criterion.descend([(meeting, self.weights.local)], batch, targets, count)
        assert meeting.grad is not None
        return loss, meeting.grad

    @property
    def has_local(self) -> bool:
        """Whether the local loss is computed apart, at the end of the window."""
        return len(self.ahead) > 0 and self.weights.local > 0

    def _with_local(
        self, meeting: Tensor, end: Callable[[Tensor], StepLoss], batch: Batch, targets: Tensor, count: int
    ) -> StepLoss:
        """Both losses through layers; their gradients meet in `meeting`."""
        if not self.has_local:
            return end(meeting)
        local, gradient = self.local(meeting, batch, targets, count=count)
        loss = end(meeting)
        assert meeting.grad is not None
        meeting.grad.add_(gradient)
        return StepLoss(loss.total + self.weights.local * local, local, loss.downstream)

    def _descend(
        self, weights: Mapping[int, Weights], hidden: Tensor, batch: Batch, losses: Callable[[Tensor], T]
    ) -> T:
        """Through layers, to the losses of their output, and back."""

        def through() -> Tensor:
            return self.backbone.run_layers(weights, hidden, batch, self.tuning) if weights else hidden

        leaving = None
        if self.recomputes:
            trains = hidden.requires_grad or self.tuning.trains(weights)
            with torch.no_grad():
                meeting = through().detach()
        else:
            leaving = through()
            meeting, trains = leaving.detach(), leaving.requires_grad
        meeting.requires_grad_(trains)
        found = losses(meeting)
        if trains:
            assert meeting.grad is not None
            if leaving is None:
                with self.backbone.skeleton.passes.again():
                    leaving = through()
            backward_with_gradient(leaving, meeting.grad)
        return found

    def _losses(
        self, branches: "Iterator[Branch] | Sequence[Branch]", batch: Batch, targets: Tensor, count: int
    ) -> list[float]:
        return self.criterion.descend(branches, batch, targets, count)

    def _branches(self, meeting: Tensor) -> Iterator[Branch]:
        """h_{e+1} itself, then h_{e+1} through the adapters above the window, if the global branch runs."""
        above = self.window.stop < self.backbone.num_layers
        yield meeting, self.weights.local if above else 1.0
        if above and self.weights.downstream > 0.0:
            foreseen = meeting
            for layer in range(self.window.stop, self.backbone.num_layers):
                foreseen = self.tuning.after(layer, foreseen)
            yield foreseen, self.weights.downstream
