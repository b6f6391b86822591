"""Globally perceptive optimisation (GPO), Eq. 2 of the paper.

    loss        = loss_local + λ · loss_global                     e < L-1
    loss        = loss_end_to_end                                  the last window, e = L-1
    loss_local  = CE(head(h_{e+1}))
    loss_global = CE(head(A_{L-1} ∘ … ∘ A_{e+1}(h_{e+1})))

The global branch runs the adapters behind the window and the head, never a frozen layer.  Sums are divided by the
size of the whole batch, so that micro-batches with accumulation give the gradient of the batch.

Both losses meet in h_{e+1}: their gradients are taken there one after the other, so that their graphs are never in
memory together, and their sum goes back through the window.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from schemas.refs import Window
from stages.model.adapters import Adapter
from stages.model.backbone import Backbone
from stages.model.reader import Weights
from stages.model.skeleton import Batch


class _Meeting(torch.autograd.Function):
    """A scalar whose gradient with respect to `tensor` is `gradient`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


def go_back(tensor: Tensor, gradient: Tensor) -> None:
    """As `tensor.backward(gradient)`, which would import sympy (36 MiB) to compare two shapes."""
    scalar: Tensor = _Meeting.apply(tensor, gradient)  # type: ignore[no-untyped-call]
    torch.autograd.backward(scalar)


@dataclass(frozen=True)
class StepLoss:
    """Nats.  `downstream` is None where the global branch does not run."""

    total: float
    local: float
    downstream: float | None

    @classmethod
    def sum(cls, parts: Sequence["StepLoss"]) -> "StepLoss":
        """The loss of a batch from those of its micro-batches."""
        downstream = [part.downstream for part in parts if part.downstream is not None]
        return cls(
            total=sum(part.total for part in parts),
            local=sum(part.local for part in parts),
            downstream=sum(downstream) if downstream else None,
        )


@dataclass(frozen=True)
class Objective:
    """Eq. 2 for one window.  `adapters` are those of every layer from the start layer on; the window's train."""

    backbone: Backbone
    window: Window
    adapters: Mapping[int, Adapter]
    global_weight: float

    def accumulate(
        self, weights: Mapping[int, Weights], hidden: Tensor, batch: Batch, targets: Tensor, *, batch_size: int
    ) -> StepLoss:
        """Add the gradient of a micro-batch to the `.grad` of what trains (and of `hidden`, if it asks for one).

        `weights` are those of the window's layers, or of its last ones where `hidden` (B, S, D) has passed the
        others; `targets` (B,) are class indices; `batch_size` ≥ B.
        """
        inside = {layer: self.adapters[layer] for layer in weights}
        leaving = self.backbone.run_layers(weights, hidden, batch, inside) if weights else hidden
        meeting = leaving.detach().requires_grad_(leaving.requires_grad)
        local = self._backward(meeting, batch, targets, batch_size, weight=1.0)
        downstream = None
        if self.window.stop < self.backbone.num_layers and self.global_weight > 0.0:
            behind = meeting
            for layer in range(self.window.stop, self.backbone.num_layers):
                behind = self.adapters[layer](behind)
            downstream = self._backward(behind, batch, targets, batch_size, weight=self.global_weight)
        if leaving.requires_grad:
            assert meeting.grad is not None
            go_back(leaving, meeting.grad)
        total = local if downstream is None else local + self.global_weight * downstream
        return StepLoss(total, local, downstream)

    def _backward(self, hidden: Tensor, batch: Batch, targets: Tensor, batch_size: int, *, weight: float) -> float:
        loss = F.cross_entropy(self.backbone.head(hidden, batch), targets, reduction="sum") / batch_size
        torch.autograd.backward(weight * loss)
        return loss.item()
