"""Cross-entropy losses on hidden states: over classes, or over next tokens.

A criterion takes several branches of one micro-batch (local and global, Eq. 2).  It computes each branch's loss and
backpropagates it, times its weight, into what the branch was computed from, as early as memory allows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own convention
from torch import Tensor

from stages.model.backbone import Backbone
from stages.model.language_head import IGNORED, LanguageHead
from stages.model.skeleton import Batch

Branch = tuple[Tensor, float]  # hidden states (B, S, D) that the head is applied to, and the weight of their loss


class Criterion(Protocol):
    """Cross entropy over classes or tokens."""

    def descend(self, branches: Iterable[Branch], batch: Batch, targets: Tensor, count: int) -> list[float]:
        """Accumulate gradients; the loss of each branch in nats, summed over the targets and divided by `count`."""
        ...


@dataclass(frozen=True)
class ClassCriterion:
    """Targets (B,) are class indices.  Each branch is computed only after the one before it is freed."""

    backbone: Backbone
    head: Mapping[str, Tensor]  # the head's parameters, float32

    def descend(self, branches: Iterable[Branch], batch: Batch, targets: Tensor, count: int) -> list[float]:
        """See `Criterion`."""
        losses = []
        for hidden, weight in branches:
            loss = F.cross_entropy(self.backbone.head(hidden, batch, self.head), targets, reduction="sum") / count
            torch.autograd.backward(weight * loss)
            losses.append(loss.item())
        return losses


@dataclass(frozen=True)
class TokenCriterion:
    """Targets (B, S) are token ids, `IGNORED` outside the loss.  Branches share one pass over the vocabulary."""

    head: LanguageHead

    def descend(self, branches: Iterable[Branch], batch: Batch, targets: Tensor, count: int) -> list[float]:
        """See `Criterion`."""
        predicts = targets != IGNORED
        arrived, weights = [], []
        for hidden, weight in branches:
            arrived.append(self.head.arriving(hidden, batch)[predicts])
            weights.append(weight)
        wanted = targets[predicts]
        rows = torch.cat([rows.detach() for rows in arrived])
        losses, gradient = self.head.cross_entropy(rows, wanted.repeat(len(arrived)), gradient=True)
        assert gradient is not None
        for branch, weight, slope in zip(arrived, weights, gradient.tensor_split(len(arrived)), strict=True):
            backward_with_gradient(branch, (slope * (weight / count)).to(branch.dtype))
        return [float(part.sum(dtype=torch.float64)) / count for part in losses.tensor_split(len(arrived))]


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


def backward_with_gradient(tensor: Tensor, gradient: Tensor) -> None:
    """Like `tensor.backward(gradient)`, which would import sympy (36 MiB) to compare the two shapes."""
    scalar: Tensor = _Meeting.apply(tensor, gradient)  # type: ignore[no-untyped-call]
    torch.autograd.backward(scalar)
