"""The language head without its logits: cross entropy over the vocabulary in chunks.

(B, S, V) logits are the largest tensor of a language model, and are needed only for

    loss_i = log Σ_v exp z_iv - z_iy        d loss_i / d h_i = Σ_v softmax(z_i)_v W_v - W_y        z_iv = h_i · W_v

Both come from one pass over chunks of W with a running maximum (an online softmax: Milakov & Gimelshein 2018,
arXiv 1805.02867).  The rows of several losses (local and global, Eq. 2) share the pass, and the chunks may stay on
disk.  Where a model transforms its logits (Gemma 2 caps them, Granite scales them) its own code does so, chunk by
chunk; `check.py` verifies that it transforms each value by itself.

Shapes: N predicted positions, D hidden size, V vocabulary, C chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stages.model.backbone import Backbone
from stages.model.skeleton import Batch
from stages.model.stored import block_bytes, linear, times
from stages.weights.files import StoredTensor
from stages.weights.reader import new_arena

CHUNK_ROWS = 2048
IGNORED = -100  # a position that predicts nothing, as in torch


@dataclass
class LanguageHead:
    """The rows of a frozen language head, read from disk in chunks or kept in memory (`resident`)."""

    backbone: Backbone
    table: StoredTensor
    resident: Tensor | None = None

    @classmethod
    def of(cls, backbone: Backbone, *, resident: bool = False) -> "LanguageHead":
        """The head of a backbone.  Raises `BadInput` where it is not one table of rows."""
        table = backbone.reader.output_rows()
        if not resident:
            return cls(backbone, table)
        return cls(backbone, table, backbone.reader.rows(table, 0, table.shape[0], new_arena(table.size)))

    @property
    def vocabulary(self) -> int:
        """Number of rows, V."""
        return self.table.shape[0]

    def arriving(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The head's input (B, S, D): `hidden` (B, S, D), the output of any layer, after the final norm."""
        last = self.backbone.num_layers - 1
        return self.backbone.skeleton.run_to_vocabulary(
            batch, lambda index, flowing, apply: hidden if index == last else flowing
        )

    @torch.no_grad()
    def logits(self, hidden: Tensor, batch: Batch, *, chunk: int = CHUNK_ROWS) -> Tensor:
        """Logits (B, S, V) float32 of `hidden` (B, S, D); for small vocabularies and comparisons."""
        arrived = self.arriving(hidden, batch)
        return self.logits_of(arrived.reshape(-1, arrived.shape[-1]), chunk=chunk).view(*arrived.shape[:2], -1)

    @torch.no_grad()
    def logits_of(self, arrived_ND: Tensor, *, chunk: int = CHUNK_ROWS) -> Tensor:
        """Logits (N, V) float32 of the head's input (N, D)."""
        return torch.cat([self._finish(self._times(arrived_ND, rows)) for _, rows in self.chunks(chunk)], dim=1)

    @torch.no_grad()
    def cross_entropy(
        self, arrived_ND: Tensor, targets_N: Tensor, *, gradient: bool, chunk: int = CHUNK_ROWS
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of each position (N,) in nats, float32, and its gradient with respect to `arrived_ND` (N, D)."""
        count = len(arrived_ND)
        highest = torch.full((count, 1), -torch.inf)
        total = torch.zeros(count, 1)
        chosen = torch.zeros(count)
        expected = torch.zeros(arrived_ND.shape, dtype=torch.float32) if gradient else None  # Σ exp(z - max) W
        wanted = torch.zeros_like(arrived_ND) if gradient else None  # W_y
        for first, rows in self.chunks(chunk):
            logits, slopes = self._finish_with_slopes(self._times(arrived_ND, rows), gradient=gradient)
            raised = torch.maximum(highest, logits.amax(1, keepdim=True))
            shrink = torch.exp(highest - raised)
            inside = (targets_N >= first) & (targets_N < first + len(rows))
            here = targets_N[inside] - first
            chosen[inside] = logits[inside, here]
            weights = logits.sub_(raised).exp_()
            total = total * shrink + weights.sum(1, keepdim=True)
            highest = raised
            if expected is None or wanted is None:
                continue
            if slopes is not None:
                weights *= slopes
                wanted[inside] = rows[here].to(wanted.dtype) * slopes[inside, here, None].to(wanted.dtype)
            else:
                wanted[inside] = rows[here].to(wanted.dtype)
            expected.mul_(shrink).add_(times(weights.to(wanted.dtype), rows, threads=self._threads))
        losses = highest.squeeze(1) + total.log().squeeze(1) - chosen
        if expected is None or wanted is None:
            return losses, None
        return losses, expected.div_(total).sub_(wanted)

    @torch.no_grad()
    def log_probabilities(
        self, arrived_ND: Tensor, targets_N: Tensor, *, chunk: int = CHUNK_ROWS
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target (N,) in nats, float32, and whether it is the (first) likeliest, (N,) bool."""
        count = len(arrived_ND)
        highest, total, chosen = torch.full((count,), -torch.inf), torch.zeros(count), torch.zeros(count)
        likeliest = torch.zeros(count, dtype=torch.int64)
        for first, rows in self.chunks(chunk):
            logits = self._finish(self._times(arrived_ND, rows))
            peak, place = logits.max(1)
            likeliest = torch.where(peak > highest, first + place, likeliest)
            raised = torch.maximum(highest, peak)
            inside = (targets_N >= first) & (targets_N < first + len(rows))
            chosen[inside] = logits[inside, targets_N[inside] - first]
            total = total * torch.exp(highest - raised) + logits.sub_(raised.unsqueeze(1)).exp_().sum(1)
            highest = raised
        return chosen - highest - total.log(), likeliest == targets_N

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows (C, D)) over the whole vocabulary.  Rows are valid until the next chunk is read."""
        arena = new_arena(0 if self.resident is not None else size * (self.table.size // self.vocabulary))
        for first in range(0, self.vocabulary, size):
            last = min(first + size, self.vocabulary)
            if self.resident is not None:
                yield first, self.resident[first:last]
            else:
                yield first, self.backbone.reader.rows(self.table, first, last, arena)

    def working_bytes(self, positions: int) -> int:
        """Bytes that `cross_entropy` with its gradient needs for N positions, with its chunk of rows."""
        width, item = self.backbone.hidden_size, self.backbone.dtype.itemsize
        chunk = min(CHUNK_ROWS, self.vocabulary)
        rows = 0 if self.resident is not None else chunk * (self.table.size // self.vocabulary)
        if self.table.dtype != self.backbone.dtype:
            rows += block_bytes(chunk, width, self.backbone.dtype, self._threads)
        # In another dtype than float32: logits, their exponentials, and those in the dtype of the product.
        logits = positions * chunk * (2 * item + 4 if item != 4 else 2 * 4)
        if self._is_finished_by_the_model:  # its own logits, their slopes, and what the graph between keeps
            logits += positions * chunk * 4 * 4
        # The softmax's expectation, what is added to it, the target's rows, and the head's input.
        return rows + logits + positions * width * (4 + 4 + 2 * item)

    @property
    def _threads(self) -> int:
        return self.backbone.skeleton.threads

    def _times(self, arrived_ND: Tensor, rows_CD: Tensor) -> Tensor:
        """The head's own logits (N, C)."""
        return linear(arrived_ND, rows_CD, threads=self._threads)

    def _finish(self, logits_NC: Tensor) -> Tensor:
        """The model's final logits, in float32."""
        return (self._through_model(logits_NC) if self._is_finished_by_the_model else logits_NC).float()

    def _finish_with_slopes(self, logits_NC: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """The same, and the derivative of each value; None where it is one."""
        if not self._is_finished_by_the_model or not gradient:
            return self._finish(logits_NC), None
        with torch.enable_grad():
            leaf = logits_NC.requires_grad_()
            finished = self._through_model(leaf).float()
            (slopes,) = torch.autograd.grad(finished.sum(), leaf)
        return finished.detach(), slopes.float()

    def _through_model(self, logits_NC: Tensor) -> Tensor:
        return self.backbone.skeleton.run_from_vocabulary(logits_NC.unsqueeze(0)).squeeze(0)

    @cached_property
    def _is_finished_by_the_model(self) -> bool:
        """Whether the model transforms its head's logits: tried on a few values."""
        probe = torch.linspace(-50, 50, 8, dtype=self.backbone.dtype).view(2, 4)
        return not torch.equal(self._through_model(probe), probe)
