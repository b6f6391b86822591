"""Globally perceptive optimisation (GPO), Eq. 2 of the paper.

    loss        = loss_local + λ · loss_global                     e < L-1
    loss        = loss_end_to_end                                  the last window, e = L-1
    loss_local  = CE(head(h_{e+1}))
    loss_global = CE(head(A_{L-1} ∘ … ∘ A_{e+1}(h_{e+1})))

The global branch runs the adapters above the window and the head, never a frozen layer.  Sums are divided by the
number of targets of the whole batch, so that accumulated micro-batches give the gradient of the batch.

Both losses depend on h_{e+1}: their gradients are summed there, and the sum is backpropagated through the window.  Its
graph may be kept meanwhile, or made after the head is done: a forward more, and the two never share the memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schemas.refs import Window
from stages.model.backbone import Backbone
from stages.model.skeleton import Batch
from stages.training.criterion import Branch, Criterion, backward_with_gradient
from stages.tuning.tuning import Tuning
from stages.weights.reader import Weights


@dataclass(frozen=True)
class StepLoss:
    """Losses in nats per target.  `downstream` is None if the global branch does not run."""

    total: float
    local: float
    downstream: float | None

    @classmethod
    def sum(cls, parts: Sequence["StepLoss"]) -> "StepLoss":
        """The loss of a batch: the sum over its micro-batches."""
        downstream = [part.downstream for part in parts if part.downstream is not None]
        return cls(
            total=sum(part.total for part in parts),
            local=sum(part.local for part in parts),
            downstream=sum(downstream) if downstream else None,
        )


@dataclass(frozen=True)
class Objective:
    """Eq. 2 for one window of layers.  `tuning` holds what trains and the adapters above the window.

    `recomputes`: no graph of the layers is alive while the head computes.
    """

    backbone: Backbone
    window: Window
    tuning: Tuning
    global_weight: float
    criterion: Criterion
    recomputes: bool = False

    def accumulate(
        self, weights: Mapping[int, Weights], hidden: Tensor, batch: Batch, targets: Tensor, *, count: int
    ) -> StepLoss:
        """Add the gradient of a micro-batch to the `.grad` of what trains (and of `hidden`, if it requires one).

        `weights` belong to the window's layers, or to its last ones if `hidden` (B, S, D) has passed the others;
        `targets` fit the criterion; `count` is the number of targets of the whole batch.
        """

        def through() -> Tensor:
            return self.backbone.run_layers(weights, hidden, batch, self.tuning) if weights else hidden

        trains = bool(weights)
        leaving = None if self.recomputes else through()
        if leaving is None:
            with torch.no_grad():
                meeting = through().detach()
        else:
            trains, meeting = leaving.requires_grad, leaving.detach()
        meeting.requires_grad_(trains)
        local, *rest = self.criterion.descend(self._branches(meeting), batch, targets, count)
        if trains:
            assert meeting.grad is not None
            backward_with_gradient(through() if leaving is None else leaving, meeting.grad)
        downstream = rest[0] if rest else None
        total = local if downstream is None else local + self.global_weight * downstream
        return StepLoss(total, local, downstream)

    def _branches(self, meeting: Tensor) -> Iterator[Branch]:
        """h_{e+1} itself, then h_{e+1} through the adapters above the window, if the global branch runs."""
        yield meeting, 1.0
        if self.window.stop < self.backbone.num_layers and self.global_weight > 0.0:
            foreseen = meeting
            for layer in range(self.window.stop, self.backbone.num_layers):
                foreseen = self.tuning.after(layer, foreseen)
            yield foreseen, self.global_weight
