"""Encoded texts, the batches they are laid in, and the two orders they are visited in.

The canonical order (by length, then by place in the data) with a fixed micro-batch serves every pass that learns
nothing: it wastes little on padding and gives the same batches, hence the same bits, everywhere.  Training visits
texts in an order drawn from the seed, the round and the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from schemas.measured import TextCounts
from schemas.settings import OptimizerSettings
from stages.data.encode import Encoder
from stages.data.layout import Layout, pack
from stages.data.load import Example
from stages.model.language_head import IGNORED
from stages.model.skeleton import Batch
from stages.process import seeds


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of each text, how they are padded, and the micro-batch (rows) of canonical passes.

    `in_loss`: which tokens of each are in the loss (None: all); `row_length`: several texts share a row of that
    many tokens (None: a row each); `truncated`: how many texts were longer than the plan allows.
    """

    rows: tuple[np.ndarray, ...]
    pad_id: int
    side: str
    micro_batch: int
    in_loss: tuple[np.ndarray, ...] | None = None
    row_length: int | None = None
    truncated: int = 0

    @classmethod
    def encode(cls, examples: Sequence[Example], encoder: Encoder, micro_batch: int) -> "EncodedTexts":
        """Encode `examples` in order.  Raises `BadInput`."""
        encoded = encoder.encode_examples(examples)
        settings = encoder.settings
        return cls(
            rows=tuple(one.ids for one in encoded),
            pad_id=encoder.pad_id,
            side=settings.padding_side,
            micro_batch=micro_batch,
            in_loss=tuple(one.in_loss for one in encoded),
            row_length=settings.most_tokens if settings.packing else None,
            truncated=sum(one.truncated for one in encoded),
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(row) for row in self.rows]

    @property
    def token_count(self) -> int:
        """Tokens of all texts together."""
        return sum(self.lengths)

    @cached_property
    def target_counts(self) -> list[int]:
        """How many tokens of each text are foretold."""
        return [int((self._targets(index) != IGNORED).sum()) for index in range(len(self.rows))]

    def counts(self) -> TextCounts:
        """What encoding did, for `measured.json`."""
        return TextCounts(
            read=len(self.rows), truncated=self.truncated, without_loss=sum(count == 0 for count in self.target_counts)
        )

    def chunks(self) -> list[list[int]]:
        """Indices of all texts in canonical order, a micro-batch at a time."""
        return self.micro_batches(sorted(range(len(self.rows)), key=lambda index: (len(self.rows[index]), index)))

    def micro_batches(self, indices: Sequence[int]) -> list[list[int]]:
        """Some texts in order, as many at a time as fill the rows of a micro-batch."""
        size = self.micro_batch
        if self.row_length is None:
            return [list(indices[first : first + size]) for first in range(0, len(indices), size)]
        bins = pack([len(self.rows[index]) for index in indices], self.row_length)
        groups = (bins[first : first + size] for first in range(0, len(bins), size))
        return [[indices[member] for members in group for member in members] for group in groups]

    def layout(self, indices: Sequence[int]) -> Layout:
        """Where some texts lie in their batch."""
        lengths = [len(self.rows[index]) for index in indices]
        if self.row_length is None:
            return Layout.padded(lengths, self.side)
        return Layout.packed(lengths, self.row_length)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Token ids and mask (B, S) of some texts, and positions where they do not follow from the columns."""
        layout, rows = self.layout(indices), [self.rows[index] for index in indices]
        ids = torch.from_numpy(layout.lay(rows, self.pad_id))
        mask = torch.from_numpy(layout.lay([np.ones_like(row) for row in rows], 0))
        if self.row_length is None and self.side == "right":
            return Batch(ids, mask)
        positions = torch.from_numpy(layout.lay([np.arange(len(row)) for row in rows], 0))
        return Batch(ids, mask, positions, packed=self.row_length is not None)

    def targets(self, indices: Sequence[int]) -> Tensor:
        """(B, S) int64: at each token the next one of its text, if that is to be foretold; `IGNORED` elsewhere."""
        return torch.from_numpy(self.layout(indices).lay([self._targets(index) for index in indices], IGNORED))

    def _targets(self, index: int) -> np.ndarray:
        row = self.rows[index]
        in_loss = np.ones(len(row), dtype=bool) if self.in_loss is None else self.in_loss[index]
        targets = np.full(len(row), IGNORED, dtype=np.int64)
        targets[:-1] = np.where(in_loss[1:], row[1:], IGNORED)
        return targets


def training_batches(
    count: int, optimizer: OptimizerSettings, *, seed: int, round_number: int, device: str
) -> list[list[int]]:
    """Which of `count` texts each step sees: epoch after epoch, each in an order of its own, until the last step."""
    steps, size = optimizer.step_count(count), optimizer.batch_size
    batches: list[list[int]] = []
    epoch = 0
    while len(batches) < steps:
        order = training_order(count, seed=seed, round_number=round_number, device=device, epoch=epoch)
        batches += [order[first : first + size] for first in range(0, count, size)]
        epoch += 1
    return batches[:steps]


def training_order(count: int, *, seed: int, round_number: int, device: str, epoch: int) -> list[int]:
    """A permutation of `count` texts, drawn from SHA-256(seed, round, device, epoch) by numpy's PCG64."""
    generator = seeds.generator("order", seed, round_number, device, epoch)
    order: list[int] = generator.permutation(count).tolist()
    return order
