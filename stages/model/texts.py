"""Encoded texts and the two orders they are visited in.

The canonical order (by length, then by place in the data) with a fixed micro-batch serves every pass that learns
nothing: it wastes little on padding and gives the same batches, hence the same bits, everywhere.  Training visits
texts in an order drawn from the plan, the round and the device.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stages.data.encode import Encoder, pad_batch
from stages.model.skeleton import Batch


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of each text, how they are padded, and the micro-batch of canonical passes."""

    rows: tuple[np.ndarray, ...]
    pad_id: int
    side: str
    micro_batch: int

    @classmethod
    def encode(cls, texts: Sequence[str], encoder: Encoder, micro_batch: int) -> "EncodedTexts":
        """Encode `texts` in order."""
        return cls(tuple(encoder.encode(texts)), encoder.pad_id, encoder.settings.padding_side, micro_batch)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(row) for row in self.rows]

    @property
    def token_count(self) -> int:
        """Tokens of all texts together."""
        return sum(self.lengths)

    def chunks(self) -> list[list[int]]:
        """Indices of all texts in canonical order, a micro-batch at a time."""
        order = sorted(range(len(self.rows)), key=lambda index: (len(self.rows[index]), index))
        return [order[first : first + self.micro_batch] for first in range(0, len(order), self.micro_batch)]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Padded token ids and mask (B, S) of some texts; S is the longest of them."""
        rows = [self.rows[index] for index in indices]
        input_ids, mask = pad_batch(rows, pad_id=self.pad_id, side=self.side)
        return Batch(torch.from_numpy(input_ids), torch.from_numpy(mask))


def training_order(count: int, *, plan: str, round_number: int, device: str, epoch: int) -> list[int]:
    """A permutation of `count` texts, drawn from SHA-256(plan, round, device, epoch) by numpy's PCG64."""
    key = hashlib.sha256(f"chainctl order {plan} {round_number} {device} {epoch}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little")))
    order: list[int] = generator.permutation(count).tolist()
    return order
