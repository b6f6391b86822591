"""Globally perceptive optimisation (GPO), Eq. 2 of the paper.

    loss        = loss_local + λ · loss_global                     e < L-1
    loss        = loss_end_to_end                                  the last window, e = L-1
    loss_local  = CE(head(h_{e+1}))
    loss_global = CE(head(A_{L-1} ∘ … ∘ A_{e+1}(h_{e+1})))

The global branch runs the adapters behind the window and the head, never a frozen layer.  Sums are divided by the
size of the whole batch, so that micro-batches with accumulation give the gradient of the batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from schemas.refs import Window
from stages.model.adapters import Adapter
from stages.model.backbone import Backbone
from stages.model.reader import Weights
from stages.model.skeleton import Batch


@dataclass(frozen=True)
class Losses:
    """Scalars in nats.  `downstream` is None where the global branch does not run."""

    local: Tensor
    downstream: Tensor | None
    global_weight: float

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.local if self.downstream is None else self.local + self.global_weight * self.downstream

    def values(self) -> "StepLoss":
        """As numbers, without the graph."""
        downstream = None if self.downstream is None else self.downstream.item()
        return StepLoss(self.total.item(), self.local.item(), downstream)


@dataclass(frozen=True)
class StepLoss:
    """The same as numbers."""

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


def window_losses(
    backbone: Backbone,
    window: Window,
    weights: Mapping[int, Weights],
    adapters: Mapping[int, Adapter],
    hidden: Tensor,
    batch: Batch,
    targets: Tensor,
    *,
    global_weight: float,
    batch_size: int,
) -> Losses:
    """Eq. 2 for a micro-batch: `hidden` h_s (B, S, D), `targets` (B,) class indices, `batch_size` ≥ B."""
    inside = {layer: adapters[layer] for layer in window.layers}
    leaving = backbone.run_layers(weights, hidden, batch, inside) if inside else hidden
    local = _cross_entropy(backbone.head(leaving, batch), targets, batch_size)
    if window.stop == backbone.num_layers or global_weight == 0.0:
        return Losses(local, None, global_weight)
    for layer in range(window.stop, backbone.num_layers):
        leaving = adapters[layer](leaving)
    downstream = _cross_entropy(backbone.head(leaving, batch), targets, batch_size)
    return Losses(local, downstream, global_weight)


def _cross_entropy(logits: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum") / batch_size
