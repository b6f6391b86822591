"""Hidden states between the layers of a span while a batch passes it, forwards and back: in memory, or in a file.

A step that has one layer in memory keeps the input of every layer from the forward to the backward pass, and then, in
the same place, the gradient with respect to it.  That is as large as the span is deep, so it may go to an unnamed
file: the memory of a step then grows neither with the span nor with the batch.

Unlike `HiddenStates` it keeps whole tensors (B, S, D), padding included: experts route padding rows too.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stages.streaming.scratch_file import ScratchFile

Key = tuple[int, int]  # the layer that the states enter, and the micro-batch


@dataclass
class _Place:
    """Where a tensor is in the file."""

    offset: int
    capacity: int
    shape: torch.Size
    dtype: torch.dtype


class Boundaries:
    """Tensors by layer and micro-batch.  `scratch`: the folder of the file; None: they stay in memory."""

    def __init__(self, scratch: Path | None) -> None:
        self._kept: dict[Key, Tensor] = {}
        self._places: dict[Key, _Place] = {}
        self._file = ScratchFile(scratch) if scratch else None
        self._end = 0

    def put(self, layer: int, part: int, tensor: Tensor) -> None:
        """Keep a tensor in the place of (layer, part); what was there is gone."""
        tensor = tensor.detach()
        if self._file is None:
            self._kept[layer, part] = tensor
            return
        tensor = tensor.contiguous()
        place = self._places.get((layer, part))
        if place is None or place.capacity < tensor.nbytes:
            place = _Place(self._end, tensor.nbytes, tensor.shape, tensor.dtype)
            self._end += tensor.nbytes
        place.shape, place.dtype = tensor.shape, tensor.dtype
        self._places[layer, part] = place
        self._file.write(tensor, place.offset)

    def get(self, layer: int, part: int) -> Tensor:
        """The tensor of (layer, part)."""
        if self._file is None:
            return self._kept[layer, part]
        place = self._places[layer, part]
        return self._file.read(place.shape, place.dtype, place.offset)

    def drop(self, layer: int, part: int) -> None:
        """Forget a tensor in memory; its place in the file is used again."""
        self._kept.pop((layer, part), None)

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
